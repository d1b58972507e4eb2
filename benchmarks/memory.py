"""What the compiler plans to have in memory for a training step of VGG-16 with the paper's module; nothing is run.

    python -m benchmarks.memory
    python -m benchmarks.memory --sides=448 --batch=8 --head=saliency

`state`: parameters, Adam's two moments and the batch, which the step takes and gives back in place. `beside`: what it
needs on top, activations and gradients above all. On a CPU the libraries' own scratch memory is not in it, and another
platform's compiler plans anew.
"""

import argparse
import functools

import jax
import jax.numpy as jnp

from benchmarks import machine
from configs import voc
from rmam_jax.training import loop, step

WAYS = {
  "as it is": {},
  "remat": {"remat": True},
  "accumulate=4": {"accumulate": 4},
  "remat, accumulate=4": {"remat": True, "accumulate": 4},
}
CLASSES = 20


def compiled_step(config, side: int) -> jax.stages.Compiled:
  """The train step of stage two for images of this side, compiled from shapes alone."""
  stage = loop.build_stage(config, "stage_two", num_classes=CLASSES, num_records=5_011)
  init = functools.partial(step.init_state, stage.model, stage.optimizer, size=side)
  state = jax.eval_shape(init, jax.random.key(0))
  batch = {
    "image": jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8),
    "labels": jax.ShapeDtypeStruct((config.batch_size, CLASSES), jnp.float32),
    "ignore": jax.ShapeDtypeStruct((config.batch_size, CLASSES), jnp.bool_),
    "mask": jax.ShapeDtypeStruct((config.batch_size,), jnp.float32),
  }
  train_step = step.make_train_step(stage.model, stage.optimizer, stage.objective, accumulate=config.accumulate)
  return jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sides", default="448,576", help="of the crops, in pixels")
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--head", default="recurrent")
  arguments = parser.parse_args()
  print(f"Compiled for {jax.devices()[0].device_kind}, not run; batch {arguments.batch}, head {arguments.head!r}.")
  print(f"{machine.describe('jax', 'flax', 'optax')}.\n")
  print(machine.header("crop", "backbone", "", "state, GB", "beside, GB", "together, GB"))
  for side in map(int, arguments.sides.split(",")):
    for dtype in arguments.dtypes.split(","):
      for title, changes in WAYS.items():
        config = voc.get_config(f"512:{arguments.head}")
        config.batch_size, config.model.dtype = arguments.batch, dtype
        config.update_from_flattened_dict(changes)
        planned = compiled_step(config, side).memory_analysis()
        sizes = planned.argument_size_in_bytes, planned.temp_size_in_bytes
        cells = (f"{size / 1e9:.2f}" for size in (*sizes, sum(sizes)))
        print(machine.row(side, dtype, title, *cells), flush=True)


if __name__ == "__main__":
  main()
