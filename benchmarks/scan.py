"""What the scan over K+1 looks costs against K and batch: seconds a training pass of the module on feature maps.

    python -m benchmarks.scan
    python -m benchmarks.scan --map=28x28x512 --width=4096 --looks=1,2,5,10 --batches=1,4,16       # for a GPU

Both sides give the gradients of parameters and map by `rmam_jax.attend` with the paper's rule: `scan`, a loop, and
`unrolled`, the looks one after the other in the program. The first compilation's time stands beside each.
"""

import functools
import time

import jax
import numpy as np

import rmam_jax as rmam
from benchmarks import machine, operations, roofline
from rmam_jax.ops import next_region

CLASSES = 20
REGION, POOL = (7, 7), 2


def side(params, feature_map, num_regions: int, unroll: bool):
  """A pass, the seconds that compiling it took, and its operations."""
  options = {"num_regions": num_regions, "next_region": next_region.recurrent, "region_size": REGION, "pool": POOL}

  def total(params, feature_map):
    return rmam.attend(params, feature_map, unroll=unroll, **options).scores.max(axis=0).sum()

  gradient, started = jax.grad(total, argnums=(0, 1)), time.perf_counter()
  program = jax.jit(gradient).lower(params, feature_map).compile()
  taken = time.perf_counter() - started
  return (
    functools.partial(machine.finish, program, params, feature_map),
    taken,
    operations.count(gradient, params, feature_map),
  )


def main() -> None:
  parser = machine.make_parser(__doc__, repeats=7)
  parser.add_argument("--map", default="14x14x128", help="HxWxC")
  parser.add_argument("--width", type=int, default=256, help="of x, the LSTM and z")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the map")
  parser.add_argument("--looks", default="1,2,5,10", help="values of K")
  parser.add_argument("--batches", default="1,4,16")
  arguments = parser.parse_args()
  shape = tuple(map(int, arguments.map.split("x")))
  widths = {f"{name}_width": arguments.width for name in ("x", "lstm", "z")}
  init = functools.partial(rmam.init_attention, init_next_region=next_region.init_recurrent, **widths)
  params = jax.jit(functools.partial(init, channels=shape[-1], num_classes=CLASSES))(jax.random.key(0))
  print(f"{machine.describe_device()}. Map {arguments.map}, {arguments.dtype}, widths {arguments.width};")
  print(f"medians of {arguments.repeats}, in ms.\n")
  print(machine.header("batch", "K", "scan", "a look", "unrolled", "ratio", "compiling scan, s", "unrolled, s"))
  rng = np.random.default_rng(0)
  for batch in map(int, arguments.batches.split(",")):
    feature_map = jax.device_put(rng.normal(size=(batch, *shape)).astype(jax.numpy.dtype(arguments.dtype)))
    for looks in map(int, arguments.looks.split(",")):
      sides = {unroll: side(params, feature_map, looks, unroll) for unroll in (False, True)}
      found = machine.medians({unroll: work for unroll, (work, _, _) in sides.items()}, arguments.repeats)
      times = (found[False], found[False] / (looks + 1), found[True])
      compiling = (f"{seconds:.1f}" for _, seconds, _ in sides.values())
      ratio = f"{found[True] / found[False]:.2f}"
      print(machine.row(batch, looks, *map(machine.milliseconds, times), ratio, *compiling), flush=True)
  *_, counted = sides[True]
  reached = roofline.by_operations(counted, found[True], arguments.dtype)
  print(f"\nThe last row, unrolled: {reached}. {roofline.ceilings(arguments.dtype)}")


if __name__ == "__main__":
  main()
