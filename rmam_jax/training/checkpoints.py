"""Checkpoints by Orbax: the last state of a stage, to go on from, and the parameters of its best epoch."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from rmam_jax.training.step import Params, TrainState


class StageCheckpoints:
  """The checkpoints of one stage, `folder/last` and `folder/best`.

  Each is one step with two items: arrays, and a JSON record `progress` of what the host knows.
  """

  def __init__(self, folder: pathlib.Path):
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    self._managers = {
      name: ocp.CheckpointManager((folder / name).absolute(), options=options) for name in ("last", "best")
    }

  def _save(self, name: str, step: int, arrays: Any, progress: dict) -> None:
    manager = self._managers[name]
    if step in manager.all_steps():  # an epoch done again after an interruption
      manager.delete(step)
    args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress))
    try:
      manager.save(step, args=args, force=True)
      manager.wait_until_finished()
    except (OSError, ValueError) as error:  # TensorStore's errors, a full disk among them, are ValueErrors
      raise OSError(
        f"cannot write a checkpoint below {manager.directory}: {error}. The last complete checkpoint is untouched: free"
        " or open the folder and run the same command again."
      ) from error

  def _restore(self, name: str, like: Any) -> tuple[Any, dict] | None:
    manager = self._managers[name]
    if manager.latest_step() is None:
      return None
    args = ocp.args.Composite(arrays=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore())
    restored = manager.restore(manager.latest_step(), args=args)
    return restored["arrays"], restored["progress"]

  def save_last(self, state: TrainState, progress: dict) -> None:
    """Saves what the stage needs to go on; the one before it is removed once this one is complete."""
    self._save("last", int(state.step), state._asdict(), progress)

  def save_best(self, step: int, params: Params, progress: dict) -> None:
    """Saves the parameters of the best epoch so far."""
    self._save("best", step, params, progress)

  def restore_last(self, like: TrainState) -> tuple[TrainState, dict] | None:
    """The last state, placed and sharded as `like` (arrays or shapes with shardings), or None."""
    restored = self._restore("last", like._asdict())
    return restored and (TrainState(**restored[0]), restored[1])

  def restore_best(self, like: Params) -> tuple[Params, dict] | None:
    """The best epoch's parameters, placed and sharded as `like`, or None."""
    return self._restore("best", like)

  def best_progress(self) -> dict | None:
    """What the host knew at the best epoch, or None."""
    manager = self._managers["best"]
    if manager.latest_step() is None:
      return None
    return manager.restore(manager.latest_step(), args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]

  def best_step(self) -> int | None:
    """The step of the best epoch, or None."""
    return self._managers["best"].latest_step()

  def close(self) -> None:
    for manager in self._managers.values():
      manager.close()


def abstract(tree: Any, sharding: jax.sharding.Sharding) -> Any:
  """Shapes, types and one sharding for every leaf: what a restore needs to know."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
