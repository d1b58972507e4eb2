"""What a training step of VGG-16 with the paper's module has in memory, by counting and compiling; nothing is run.

    python -m benchmarks.memory --dtypes=float32
    python -m benchmarks.memory --counted                    # at once: without what the compiler plans
    python -m benchmarks.memory --sides=448 --batch=8 --head=saliency

`kept`: what the forward pass keeps for the backward pass, counted from the shapes of autodiff's residuals without the
parameters; the same on any platform. `state`: parameters, Adam's two moments and the batch, which the step takes and
gives back in place. `beside`: what the compiler plans on top, gradients above all; on a CPU the same with and without
rematerialisation, presumably because XLA merges equal operations again. Libraries' scratch memory is in no figure.
"""

import jax

from benchmarks import machine, steps
from configs import voc
from rmam_jax.training import step as step_lib

WAYS = {
  "as it is": {},
  "remat": {"remat": True},
  "accumulate=4": {"accumulate": 4},
  "remat, accumulate=4": {"remat": True, "accumulate": 4},
}


def size_of(tree) -> int:
  """Bytes of all arrays or shapes in a tree."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def count(config, side: int) -> tuple[int, int, jax.stages.Lowered]:
  """What the backward pass keeps of one part of a batch and what the step takes, in bytes; and the step, uncompiled.

  From shapes alone, for stage two.
  """
  stage, init, batch = steps.make(config, side)
  state = jax.eval_shape(init, jax.random.key(0))

  def pull(params, part):
    def loss(params):
      recognition = stage.model.apply({"params": params}, part["image"])
      return stage.objective(recognition, part["labels"], part["ignore"], part["mask"])[0]

    return jax.vjp(loss, params)[1]  # a tree, whose leaves are what it has kept

  def kept_for(examples):
    return size_of(jax.eval_shape(pull, state.params, {name: x[:examples] for name, x in batch.items()}))

  per_example = kept_for(2) - kept_for(1)  # the rest are parameters and constants
  train_step = step_lib.make_train_step(stage.model, stage.optimizer, stage.objective, accumulate=config.accumulate)
  kept = per_example * config.batch_size // config.accumulate
  return kept, size_of((state, batch)), jax.jit(train_step, donate_argnums=0).lower(state, batch)


def main() -> None:
  parser = machine.make_parser(__doc__)
  parser.add_argument("--sides", default="448,576", help="of the crops, in pixels")
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--head", default="recurrent")
  parser.add_argument("--counted", action="store_true", help="compile nothing")
  arguments = parser.parse_args()
  print(f"Compiled for {jax.devices()[0].device_kind}, not run; batch {arguments.batch}, head {arguments.head!r}.")
  print(f"{machine.describe('jax', 'flax', 'optax')}.\n")
  print(machine.header("crop", "backbone", "", "kept, GB", "state, GB", "beside, GB"))
  for side in map(int, arguments.sides.split(",")):
    for dtype in arguments.dtypes.split(","):
      for title, changes in WAYS.items():
        config = voc.get_config(f"512:{arguments.head}")
        config.batch_size, config.model.dtype = arguments.batch, dtype
        config.update_from_flattened_dict(changes)
        kept, held, lowered = count(config, side)
        beside = "-" if arguments.counted else f"{lowered.compile().memory_analysis().temp_size_in_bytes / 1e9:.2f}"
        cells = (f"{kept / 1e9:.2f}", f"{held / 1e9:.2f}", beside)
        print(machine.row(side, dtype, title, *cells), flush=True)


if __name__ == "__main__":
  main()
