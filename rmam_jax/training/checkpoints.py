"""Checkpoints by Orbax: the last states of a stage, to go on from, and the parameters of its best epoch.

Orbax commits a checkpoint by renaming it, so that there is no half of one, but verifies nothing when it reads it: it
restores a flipped bit and casts another type without a word. So each checkpoint holds digests of its leaves, which are
compared.

The writer copies the arrays to the host and goes on; a thread digests and writes them meanwhile. Orbax's own asynchronous
manager would write the arrays so, but their digests, which take longer than the copy, have to be there when it begins.
Where several processes write together, all wait: their barriers must not meet those of training.
"""

import collections
import concurrent.futures
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
from rmam_jax.runtime.errors import UserError, os_errors
from rmam_jax.training import stages, workdir
from rmam_jax.training.step import Params, TrainState, init_params
from rmam_jax.weights import tensors

KEPT = {"last": 2, "best": 1}  # steps of each kind
WAITING = 2  # checkpoints at most that are being written, an epoch's best and last: copies on the host


class Damaged(UserError):
  """A checkpoint is not what was saved."""


class StageCheckpoints:
  """The checkpoints of one stage, `folder/last` and `folder/best`.

  Each step has three items: arrays; a JSON record `progress` of what the host knows; and `digests` of both.
  """

  def __init__(self, folder: pathlib.Path, *, writing: bool = False):
    """Opens or makes them; the writer removes partial checkpoints left by a killed process, and writes in a thread."""
    self._managers = {}
    self._thread = concurrent.futures.ThreadPoolExecutor(1) if writing and jax.process_count() == 1 else None
    self._begun: collections.deque[concurrent.futures.Future] = collections.deque()
    for name, kept in KEPT.items():
      fields = {"max_to_keep": kept, "enable_async_checkpointing": False, "cleanup_tmp_directories": writing}
      options = ocp.CheckpointManagerOptions(**fields)
      self._managers[name] = ocp.CheckpointManager((folder / name).absolute(), options=options)

  def _begin(self, name: str, step: int, arrays: Any, progress: dict) -> None:
    """Saves while the caller goes on, and may change or free what it gave; at once where there is no thread."""
    if self._thread is None:
      return self._save(name, step, arrays, progress)
    self.wait(WAITING - 1)
    self._begun.append(self._thread.submit(self._save, name, step, _on_host(arrays), dict(progress)))

  def wait(self, left: int = 0) -> None:
    """Until at most so many checkpoints are being written; raises the UserError of one that could not be."""
    while len(self._begun) > left:
      self._begun.popleft().result()

  def _save(self, name: str, step: int, arrays: Any, progress: dict) -> None:
    manager = self._managers[name]
    if step in manager.all_steps():  # an epoch done again after an interruption
      manager.delete(step)
    described = _describe(arrays)
    items = {"progress": progress, "digests": {"arrays": described, "whole": _digest_json([described, progress])}}
    saved = {item: ocp.args.JsonSave(value) for item, value in items.items()}
    try:
      manager.save(step, args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), **saved), force=True)
      manager.wait_until_finished()
    except (OSError, ValueError) as error:  # TensorStore's errors, a full disk among them, are ValueErrors
      raise UserError(
        f"cannot write a checkpoint below {manager.directory}: {error}. The last complete checkpoint is untouched: free"
        " or open the folder and run the same command again."
      ) from error

  def _read(self, name: str, step: int, item: str, how: Any = None) -> Any:
    """One item of a step, JSON unless `how` says otherwise; raises Damaged."""
    manager = self._managers[name]
    try:
      return manager.restore(step, args=ocp.args.Composite(**{item: how or ocp.args.JsonRestore()}))[item]
    except Exception as error:  # Orbax raises bare ones, some of many pages
      reason = f"{error} ".splitlines()[0].strip()[:300] or type(error).__name__
      raise Damaged(f"{manager.directory / str(step)} is damaged: {item} cannot be read ({reason})") from error

  def _restore(self, name: str, step: int, like: Any) -> tuple[Any, dict]:
    """A step, compared with its digests; raises Damaged, or UserError where it is of another model than `like`."""
    folder = self._managers[name].directory / str(step)
    progress, digests = self._read(name, step, "progress"), self._read(name, step, "digests")
    if not isinstance(digests, dict) or digests.get("whole") != _digest_json([digests.get("arrays"), progress]):
      raise Damaged(f"{folder} is damaged: progress does not have its digest")
    described, wanted = digests["arrays"], {leaf: _kind(array) for leaf, array in tensors.flatten(like).items()}
    for leaf in sorted(wanted | described):
      there, here = described.get(leaf, ["absent"])[0], wanted.get(leaf, "absent")
      if there != here:
        raise UserError(
          f"{folder} is of another model: {leaf} is {there} there and {here} in the configuration. Go on with the one"
          " that it was trained with, or train again into another folder."
        )
    arrays = self._read(name, step, "arrays", ocp.args.StandardRestore(like))
    for leaf, found in _describe(arrays).items():
      if found != described[leaf]:
        raise Damaged(f"{folder} is damaged: {leaf} does not have its digest")
    return arrays, progress

  def save_last(self, state: TrainState, progress: dict) -> None:
    """Saves what the stage needs to go on; once it is complete, all but the one before it are removed.

    The writer's saves are complete after `wait`; an error of one is raised by the next, by `wait` or by `close`.
    """
    self._begin("last", int(state.step), _arrays(state), progress)

  def save_best(self, step: int, params: Params, progress: dict) -> None:
    """Saves the parameters of the best epoch so far, as `save_last`."""
    self._begin("best", step, params, progress)

  def _restore_newest(self, name: str, like: Any) -> tuple[Any, dict] | None:
    """The newest step that is not damaged, or None where there is no step; says so if it takes one before the last."""
    self.wait()
    manager = self._managers[name]
    steps = sorted(manager.all_steps(), reverse=True)[: KEPT[name]]
    for step in steps:
      try:
        return self._restore(name, step, like)
      except Damaged as error:
        if step == steps[-1]:
          folder = manager.directory.parent
          raise UserError(f"{error}. Remove {folder}: the command that trained it trains this stage again.") from error
        print(f"{error}. Going on from the state before it.")
    return None

  def restore_last(self, like: TrainState) -> tuple[TrainState, dict] | None:
    """The last state, placed and sharded as `like` (arrays or shapes with shardings), and its progress, or None.

    If it is damaged, says so and takes the one before it; UserError if both are, or if it is of another model.
    """
    restored = self._restore_newest("last", _arrays(like))
    return restored and (TrainState(**restored[0]), restored[1])

  def restore_best(self, like: Params) -> tuple[Params, dict] | None:
    """The best epoch's parameters and progress, as `restore_last`; there is none before it."""
    return self._restore_newest("best", like)

  def read_best(self, item: str) -> Any:
    """The `progress` or the `digests` of the best epoch, or None."""
    step = self._managers["best"].latest_step()
    return None if step is None else self._read("best", step, item)

  def close(self) -> None:
    """Waits for what is being written; raises as `wait`."""
    with contextlib.ExitStack() as stack:
      for manager in self._managers.values():
        stack.callback(manager.close)
      if self._thread is not None:
        stack.callback(self._thread.shutdown)
      self.wait()


def _saved(folder: pathlib.Path, stage: str) -> contextlib.closing[StageCheckpoints]:
  return contextlib.closing(StageCheckpoints(folder / "checkpoints" / stage))


def best_epochs(folder: pathlib.Path) -> dict[str, int]:
  """The best epoch of each training of a workdir that has one, by its name."""
  found = {}
  for name in (stages.RPN, *stages.NAMES):
    if (folder / "checkpoints" / name).is_dir():
      with _saved(folder, name) as saved:
        if progress := saved.read_best("progress"):
          found[name] = progress["best_epoch"]
  return found


def best_digest(folder: pathlib.Path) -> str | None:
  """A digest of the parameters that were saved at stage two's best epoch, or None."""
  with _saved(folder, "stage_two") as saved:
    digests = saved.read_best("digests")
    return digests and _digest_json(digests["arrays"])


def digest_of(params: Params) -> str:
  """`best_digest` of parameters that were loaded."""
  return _digest_json(_describe(params))


def load_best(
  config: ml_collections.ConfigDict, folder: pathlib.Path, num_classes: int, mesh: jax.sharding.Mesh
) -> tuple[Recognizer, Params, dict]:
  """Stage two's recognizer, the parameters of its best epoch, and what the host knew then.

  Raises a UserError if stage two has not finished an epoch there, or the checkpoint is damaged or of another model.
  """
  model = stages.build_model(config, "stage_two", num_classes)
  like = jax.eval_shape(lambda key: init_params(model, key, config.data.crop_size), jax.random.key(0))
  with _saved(folder, "stage_two") as saved:
    restored = saved.restore_best(abstract(like, mesh_lib.replicated(mesh)))
  if restored is None:
    raise UserError(f"{folder} holds no checkpoint of stage two: run train.py --workdir={folder} to its end")
  return model, *restored


def take_over(stage: str, source: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies a stage that another workdir has finished: its checkpoints, and its lines of the metrics.

  Nothing happens if the source has not trained the stage, or if this workdir has begun it.
  """
  place = folder / "checkpoints" / stage
  if place.exists() or not (source / "checkpoints" / stage).is_dir():
    return
  draft = folder / "draft"
  shutil.rmtree(draft, ignore_errors=True)
  with os_errors(f"cannot copy {source / 'checkpoints' / stage} into {folder}", files.GO_ON):
    shutil.copytree(source / "checkpoints" / stage, draft)
  own, theirs = (workdir.read_lines(each / "metrics.jsonl") for each in (folder, source))
  both = [line for line in own if line["stage"] != stage] + [line for line in theirs if line["stage"] == stage]
  workdir.write_lines(folder / "metrics.jsonl", both)
  place.parent.mkdir(exist_ok=True)
  draft.rename(place)


def _arrays(state: TrainState) -> dict[str, Any]:
  """A state by its fields, without an average where there is none."""
  return {name: value for name, value in state._asdict().items() if value is not None}


def _on_host(arrays: Any) -> Any:
  """Copies that stay what they are when the devices' memory is used again: on a CPU a fetched array is that memory."""
  return jax.tree.map(lambda leaf: leaf if leaf.flags.owndata else leaf.copy(), jax.device_get(arrays))


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
