"""How long a checkpoint holds training up, written at once and in a thread.

    python -m benchmarks.checkpoint                       # a state of 3 x 20 million numbers
    python -m benchmarks.checkpoint --millions=268        # the paper's: needs 10 GB on disk

`held up` is the time that the call takes; `complete` is when the checkpoint is on disk, with its digests.
"""

import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp

from benchmarks import machine
from rmam_jax.training import checkpoints
from rmam_jax.training.step import TrainState


def seconds(state: TrainState, writing: bool, number: int) -> tuple[float, float]:
  """Of saving a state once: of the call, and to the end of it."""
  state = jax.block_until_ready(jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), state))  # not fetched before
  with tempfile.TemporaryDirectory() as folder:
    saved = checkpoints.StageCheckpoints(pathlib.Path(folder), writing=writing)
    started = time.perf_counter()
    saved.save_last(state._replace(step=jnp.int32(number)), {})
    held_up = time.perf_counter() - started
    saved.wait()
    complete = time.perf_counter() - started
    saved.close()
  return held_up, complete


def main() -> None:
  parser = machine.make_parser(__doc__, repeats=3)
  parser.add_argument("--millions", type=int, default=20, help="of parameters; the state has two moments beside each")
  arguments = parser.parse_args()
  leaf = jnp.zeros((8, arguments.millions * 125_000), jnp.float32)
  state = TrainState(jnp.int32(0), {"w": leaf}, (leaf, leaf))
  print(
    f"{machine.describe_device('orbax-checkpoint')}. {3 * leaf.nbytes / 1e9:.3g} GB, medians of {arguments.repeats}.\n"
  )
  print(machine.header("", "held up, ms", "complete, ms"))
  for name, writing in (("at once", False), ("in a thread", True)):
    taken = sorted(seconds(state, writing, number) for number in range(arguments.repeats))
    print(machine.row(name, *map(machine.milliseconds, taken[len(taken) // 2])), flush=True)


if __name__ == "__main__":
  main()
