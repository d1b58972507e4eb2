"""How a training step grows with image side, K, classes and batch, each by itself, with the fitted exponent.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --axes=side --values=224,320,448,640 --full          # VGG-16, for a GPU

`exponent` is the slope of log seconds over log value by least squares: 1 is in proportion, 2 with the square. The model
is the thin one of `benchmarks/steps.py`; `--full` takes VGG-16 with widths of 4096.
"""

import jax
import numpy as np

from benchmarks import machine, steps
from configs import voc

AXES = {"side": (64, 96, 128, 192), "K": (1, 2, 4, 8), "classes": (10, 40, 160, 640), "batch": (2, 4, 8, 16)}
STANDARD = {"side": steps.SMALL_SIDE, "K": 5, "classes": 20, "batch": 8}


def make_work(full: bool, side: int, K: int, classes: int, batch: int):
  """A function that makes one step and waits for it."""
  config = voc.get_config()
  if not full:
    config.update_from_flattened_dict(steps.SMALL)
  config.batch_size, config.model.num_regions = batch, K
  stage, init, made = steps.make(config, side, classes)
  return steps.start(stage, jax.jit(init)(jax.random.key(0)), made)[0]


def main() -> None:
  parser = machine.make_parser(__doc__, repeats=5)
  parser.add_argument("--axes", default=",".join(AXES), help=f"of {', '.join(AXES)}")
  parser.add_argument("--values", help="of the one axis named")
  parser.add_argument("--full", action="store_true")
  arguments = parser.parse_args()
  standard = STANDARD | ({"side": 448, "batch": 16} if arguments.full else {})
  print(f"{machine.describe_device('flax', 'optax')}. Medians of {arguments.repeats}.")
  print(f"Where not varied: {', '.join(f'{name} {value}' for name, value in standard.items())}.\n")
  print(machine.header("", "values", "ms a step", "exponent"))
  for axis in arguments.axes.split(","):
    values = tuple(map(int, arguments.values.split(","))) if arguments.values else AXES[axis]
    sides = {value: make_work(arguments.full, **{**standard, axis: value}) for value in values}
    found = machine.medians(sides, arguments.repeats)
    slope = np.polyfit(np.log(values), np.log([found[value] for value in values]), 1)[0]
    times = ", ".join(f"{1e3 * found[value]:.1f}" for value in values)
    print(machine.row(axis, ", ".join(map(str, values)), times, f"{slope:.2f}"), flush=True)


if __name__ == "__main__":
  main()
