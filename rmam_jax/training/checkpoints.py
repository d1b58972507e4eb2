"""Checkpoints by Orbax: the last states of a stage, to go on from, and the parameters of its best epoch.

Orbax commits a checkpoint by renaming it, so that there is no half of one, but checks none when it reads it: a flipped
bit is restored in silence and another type cast. So each holds the digests of its leaves, which are compared.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from rmam_jax.recognizer import Recognizer
from rmam_jax.runtime import files
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import stages
from rmam_jax.training.step import Params, TrainState, init_params
from rmam_jax.weights import tensors

KEPT = {"last": 2, "best": 1}  # steps of each kind


class Damaged(UserError):
  """A checkpoint is not what was saved."""


class StageCheckpoints:
  """The checkpoints of one stage, `folder/last` and `folder/best`.

  Each has steps with three items: arrays; a JSON record `progress` of what the host knows; and `digests`, what both hold.
  """

  def __init__(self, folder: pathlib.Path, *, writing: bool = False):
    """Opens or makes them; the one who writes removes what a killed process left half written."""
    self._managers = {}
    for name, kept in KEPT.items():
      options = ocp.CheckpointManagerOptions(
        max_to_keep=kept, enable_async_checkpointing=False, cleanup_tmp_directories=writing
      )
      self._managers[name] = ocp.CheckpointManager((folder / name).absolute(), options=options)

  def _save(self, name: str, step: int, arrays: Any, progress: dict) -> None:
    manager = self._managers[name]
    if step in manager.all_steps():  # an epoch done again after an interruption
      manager.delete(step)
    described = _describe(arrays)
    digests = {"arrays": described, "whole": _digest_json([described, progress])}
    args = ocp.args.Composite(
      arrays=ocp.args.StandardSave(arrays),
      progress=ocp.args.JsonSave(progress),
      digests=ocp.args.JsonSave(digests),
    )
    try:
      manager.save(step, args=args, force=True)
      manager.wait_until_finished()
    except (OSError, ValueError) as error:  # TensorStore's errors, a full disk among them, are ValueErrors
      raise UserError(
        f"cannot write a checkpoint below {manager.directory}: {error}. The last complete checkpoint is untouched: free"
        " or open the folder and run the same command again."
      ) from error

  def _restore_step(self, name: str, step: int, like: Any) -> tuple[Any, dict]:
    """A step, compared with its digests; raises Damaged, or UserError where it is of another model than `like`."""
    manager = self._managers[name]
    folder = manager.directory / str(step)
    progress, digests = (self._read_json(name, step, item) for item in ("progress", "digests"))
    if not isinstance(digests, dict) or digests.get("whole") != _digest_json([digests.get("arrays"), progress]):
      raise Damaged(f"{folder} is damaged: progress does not have its digest")
    described, wanted = digests["arrays"], {name: _kind(leaf) for name, leaf in tensors.flatten(like).items()}
    for leaf in sorted(wanted | described):
      there, here = described.get(leaf, ["absent"])[0], wanted.get(leaf, "absent")
      if there != here:
        raise UserError(
          f"{folder} is of another model: {leaf} is {there} there and {here} in the configuration. Go on with the one"
          " that it was trained with, or train again into another folder."
        )
    try:
      arrays = manager.restore(step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(like)))["arrays"]
    except Exception as error:  # Orbax's own are bare ones
      raise Damaged(f"{folder} is damaged: its arrays cannot be read ({_brief(error)})") from error
    for leaf, found in _describe(arrays).items():
      if found != described[leaf]:
        raise Damaged(f"{folder} is damaged: {leaf} does not have its digest")
    return arrays, progress

  def _read_json(self, name: str, step: int, item: str) -> Any:
    manager = self._managers[name]
    try:
      return manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]
    except Exception as error:  # as above
      raise Damaged(f"{manager.directory / str(step)} is damaged: {item} cannot be read ({_brief(error)})") from error

  def save_last(self, state: TrainState, progress: dict) -> None:
    """Saves what the stage needs to go on; the one but one before it is removed once this one is complete."""
    self._save("last", int(state.step), state._asdict(), progress)

  def save_best(self, step: int, params: Params, progress: dict) -> None:
    """Saves the parameters of the best epoch so far."""
    self._save("best", step, params, progress)

  def restore_last(self, like: TrainState) -> tuple[TrainState, dict] | None:
    """The last state, placed and sharded as `like` (arrays or shapes with shardings), or None.

    If it is damaged, that is said and the one before it taken; UserError if all are, or it is of another model.
    """
    steps = sorted(self._managers["last"].all_steps(), reverse=True)
    for step in steps:
      try:
        arrays, progress = self._restore_step("last", step, like._asdict())
      except Damaged as error:
        if step == steps[-1]:
          raise UserError(f"{error}. {self._remedy()}") from error
        print(f"{error}. Going on from the state before it.")
      else:
        return TrainState(**arrays), progress
    return None

  def restore_best(self, like: Params) -> tuple[Params, dict] | None:
    """The best epoch's parameters, placed and sharded as `like`, or None; UserError if damaged or of another model."""
    step = self.best_step()
    try:
      return None if step is None else self._restore_step("best", step, like)
    except Damaged as error:
      raise UserError(f"{error}. {self._remedy()}") from error

  def _remedy(self) -> str:
    return f"Remove {self._managers['last'].directory.parent}: the command that trained it trains this stage again."

  def best_progress(self) -> dict | None:
    """What the host knew at the best epoch, or None."""
    step = self.best_step()
    return None if step is None else self._read_json("best", step, "progress")

  def best_step(self) -> int | None:
    """The step of the best epoch, or None."""
    return self._managers["best"].latest_step()

  def best_digest(self) -> str | None:
    """A digest of all that was saved at the best epoch, or None."""
    step = self.best_step()
    return None if step is None else self._read_json("best", step, "digests")["whole"]

  def close(self) -> None:
    for manager in self._managers.values():
      manager.close()


def _saved(folder: pathlib.Path, stage: str) -> contextlib.closing[StageCheckpoints]:
  return contextlib.closing(StageCheckpoints(folder / "checkpoints" / stage))


def best_epochs(folder: pathlib.Path) -> dict[str, int]:
  """The best epoch of each training of a workdir that has one, by its name."""
  found = {}
  for name in (stages.RPN, *stages.NAMES):
    if (folder / "checkpoints" / name).is_dir():
      with _saved(folder, name) as saved:
        if progress := saved.best_progress():
          found[name] = progress["best_epoch"]
  return found


def best_digest(folder: pathlib.Path) -> str | None:
  """A digest of all that was saved at stage two's best epoch, or None."""
  with _saved(folder, "stage_two") as saved:
    return saved.best_digest()


def load_best(
  config: ml_collections.ConfigDict, folder: pathlib.Path, num_classes: int, mesh: jax.sharding.Mesh
) -> tuple[Recognizer, Params, dict]:
  """Stage two's recognizer, the parameters of its best epoch, and what the host knew then.

  Raises:
    UserError: stage two has not finished an epoch there; or the checkpoint is damaged, or of another model.
  """
  model = stages.build_model(config, "stage_two", num_classes)
  like = jax.eval_shape(lambda key: init_params(model, key, config.data.crop_size), jax.random.key(0))
  with _saved(folder, "stage_two") as saved:
    restored = saved.restore_best(abstract(like, mesh_lib.replicated(mesh)))
  if restored is None:
    raise UserError(f"{folder} holds no checkpoint of stage two: run train.py --workdir={folder} to its end")
  return model, *restored


def take_over(stage: str, source: pathlib.Path, folder: pathlib.Path) -> None:
  """Begins a workdir with a stage that another has finished: its checkpoints, and its lines of the metrics.

  Nothing happens if the source has not trained the stage, or the workdir has begun it.
  """
  place = folder / "checkpoints" / stage
  if place.exists() or not (source / "checkpoints" / stage).is_dir():
    return
  draft, log = folder / "draft", folder / "metrics.jsonl"
  shutil.rmtree(draft, ignore_errors=True)
  shutil.copytree(source / "checkpoints" / stage, draft)

  def lines(path: pathlib.Path, wanted: bool) -> list[str]:
    every = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in every if (json.loads(line)["stage"] == stage) == wanted]

  files.write_text(log, "".join(lines(log, False) + lines(source / "metrics.jsonl", True)))
  place.parent.mkdir(exist_ok=True)
  draft.rename(place)


def _brief(error: Exception) -> str:
  """The first line of what may be pages."""
  return f"{error} ".splitlines()[0].strip()[:300] or type(error).__name__


def _kind(leaf: Any) -> str:
  """E.g. float32[3,3,3,64]."""
  return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _describe(arrays: Any) -> dict[str, list[str]]:
  """Each leaf's type and shape, and the SHA-256 of its name, type, shape and bytes."""
  leaves = tensors.flatten(arrays)
  return {name: [_kind(leaf), tensors.digest({name: np.asarray(leaf)})] for name, leaf in leaves.items()}


def _digest_json(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def abstract(tree: Any, sharding: jax.sharding.Sharding) -> Any:
  """Shapes, types and one sharding for every leaf: what a restore needs to know."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
