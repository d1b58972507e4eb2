"""How a training step grows with image side, K, classes and batch, each by itself, with the fitted exponent.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --axes=side --values=224,320,448,640 --full          VGG-16, for a GPU

`exponent` is the slope of log seconds over log value by least squares: 1 is in proportion, 2 with the square. The values
between are those of the thin model of `benchmarks/train_step.py`; `--full` takes VGG-16 with widths of 4096.
"""

import argparse
import functools

import jax
import numpy as np

from benchmarks import machine, train_step
from configs import voc
from rmam_jax.training import stages
from rmam_jax.training import step as step_lib

AXES = {
  "side": (64, 96, 128, 192),
  "K": (1, 2, 4, 8),
  "classes": (10, 40, 160, 640),
  "batch": (2, 4, 8, 16),
}
STANDARD = {"side": 96, "K": 5, "classes": 20, "batch": 8}


def make_work(full: bool, side: int, K: int, classes: int, batch: int):
  """A function that makes one step and waits for it."""
  config = voc.get_config()
  if not full:
    config.update_from_flattened_dict(train_step.SMALL)
  config.batch_size, config.model.num_regions = batch, K
  stage = stages.build(config, "stage_two", num_classes=classes, num_records=5_011)
  params = jax.jit(functools.partial(step_lib.init_params, stage.model, size=side))(jax.random.key(0))
  rng = np.random.default_rng(0)
  made = {
    "image": rng.integers(0, 256, (batch, side, side, 3), np.uint8),
    "labels": np.eye(classes, dtype=np.float32)[rng.integers(0, classes, batch)],
    "ignore": np.zeros((batch, classes), bool),
    "mask": np.ones(batch, np.float32),
  }
  return train_step.our_side(params, stage, made)[0]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--axes", default=",".join(AXES), help=f"of {', '.join(AXES)}")
  parser.add_argument("--values", help="of the one axis named")
  parser.add_argument("--full", action="store_true")
  parser.add_argument("--repeats", type=int, default=5)
  arguments = parser.parse_args()
  axes = arguments.axes.split(",")
  standard = STANDARD | ({"side": 448, "batch": 16} if arguments.full else {})
  print(f"{jax.devices()[0].device_kind}; {machine.describe('jax', 'flax', 'optax')}. Medians of {arguments.repeats}.")
  print(f"Where not varied: {', '.join(f'{name} {value}' for name, value in standard.items())}.\n")
  print(machine.header("", "values", "ms a step", "exponent"))
  for axis in axes:
    values = tuple(map(int, arguments.values.split(","))) if arguments.values else AXES[axis]
    sides = {value: make_work(arguments.full, **{**standard, axis: value}) for value in values}
    found = machine.medians(sides, arguments.repeats)
    slope = np.polyfit(np.log(values), np.log([found[value] for value in values]), 1)[0]
    times = ", ".join(f"{1e3 * found[value]:.1f}" for value in values)
    print(machine.row(axis, ", ".join(map(str, values)), times, f"{slope:.2f}"), flush=True)


if __name__ == "__main__":
  main()
