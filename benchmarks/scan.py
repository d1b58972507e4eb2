"""What the scan over K+1 looks costs against K and batch: seconds a training pass of the module on feature maps.

    python -m benchmarks.scan
    python -m benchmarks.scan --map=28x28x512 --width=4096 --looks=1,2,5,10 --batches=1,4,16       for a GPU

Both sides give the gradients of parameters and map for the paper's rule: `scan`, as `rmam_jax.attend` has it, and
`unrolled`, the same looks one after the other in the program. The first compilation's time stands beside each.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

import rmam_jax as rmam
from benchmarks import machine, roofline
from rmam_jax.ops import attention, next_region, spatial_transformer

CLASSES = 20
REGION, POOL = (7, 7), 2


def scanned(params, feature_map, num_regions):
  """The scores of `attend`."""
  options = {"num_regions": num_regions, "next_region": next_region.recurrent, "region_size": REGION, "pool": POOL}
  return rmam.attend(params, feature_map, **options).scores


def unrolled(params, feature_map, num_regions):
  """The same without a scan."""
  _, choose = next_region.recurrent(params["next_region"], feature_map)
  hidden = jnp.zeros((len(feature_map), params["lstm"]["w_h"].shape[0]))
  carry, scores = (hidden, hidden), []
  theta = jnp.broadcast_to(jnp.asarray(spatial_transformer.WHOLE_IMAGE), (len(feature_map), 4))
  for k in range(num_regions + 1):
    x = attention.region_code(params, feature_map, theta, region_size=REGION, pool=POOL)
    carry, h = attention.lstm_step(params["lstm"], carry, x)
    z, every = attention.read_state(params, h)
    scores.append(every)
    _, theta = choose((), z, k)
  return jnp.stack(scores[1:])


def side(form, num_regions, params, feature_map):
  """A pass, the seconds that compiling it took, and the compiled program."""

  def total(params, feature_map):
    return form(params, feature_map, num_regions).max(axis=0).sum()

  started = time.perf_counter()
  program = jax.jit(jax.grad(total, argnums=(0, 1))).lower(params, feature_map).compile()
  return functools.partial(machine.finish, program, params, feature_map), time.perf_counter() - started, program


def main() -> None:
  parser = machine.make_parser(__doc__, repeats=7)
  parser.add_argument("--map", default="14x14x128", help="HxWxC")
  parser.add_argument("--width", type=int, default=256, help="of x, the LSTM and z")
  parser.add_argument("--looks", default="1,2,5,10", help="values of K")
  parser.add_argument("--batches", default="1,4,16")
  arguments = parser.parse_args()
  shape = tuple(map(int, arguments.map.split("x")))
  widths = {f"{name}_width": arguments.width for name in ("x", "lstm", "z")}
  init = functools.partial(rmam.init_attention, init_next_region=next_region.init_recurrent, **widths)
  params = jax.jit(functools.partial(init, channels=shape[-1], num_classes=CLASSES))(jax.random.key(0))
  print(f"{machine.describe_device()}. Map {arguments.map}, widths {arguments.width};")
  print(f"medians of {arguments.repeats}, in ms.\n")
  print(machine.header("batch", "K", "scan", "a look", "unrolled", "ratio", "compiling scan, s", "unrolled, s"))
  rng = np.random.default_rng(0)
  for batch in map(int, arguments.batches.split(",")):
    feature_map = jax.device_put(rng.normal(size=(batch, *shape)).astype(np.float32))
    for looks in map(int, arguments.looks.split(",")):
      forms = {form.__name__: side(form, looks, params, feature_map) for form in (scanned, unrolled)}
      found = machine.medians({name: work for name, (work, _, _) in forms.items()}, arguments.repeats)
      ours, other = 1e3 * found["scanned"], 1e3 * found["unrolled"]
      times = (f"{ours:.1f}", f"{ours / (looks + 1):.1f}", f"{other:.1f}", f"{other / ours:.2f}")
      print(machine.row(batch, looks, *times, *(f"{seconds:.1f}" for _, seconds, _ in forms.values())), flush=True)
  *_, program = forms["unrolled"]  # in which every look counts
  print("\n" + roofline.line(program, found["unrolled"]) + " Of the last row, unrolled.")


if __name__ == "__main__":
  main()
