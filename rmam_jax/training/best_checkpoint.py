"""The best epochs of a run, and the recogniser that the last stage leaves."""

import contextlib
import pathlib

import jax
import ml_collections

from rmam_jax.recognizer import Recognizer
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import checkpoints, stages
from rmam_jax.training import rpn as rpn_training
from rmam_jax.training import step as step_lib


def _saved(folder: pathlib.Path, stage: str) -> contextlib.closing[checkpoints.StageCheckpoints]:
  return contextlib.closing(checkpoints.StageCheckpoints(folder / "checkpoints" / stage))


def epochs(folder: pathlib.Path) -> dict[str, int]:
  """The best epoch of each stage that has one in a workdir, the region proposal network's among them, by the stage's name."""
  found = {}
  for name in (rpn_training.NAME, *stages.NAMES):
    if not (folder / "checkpoints" / name).is_dir():
      continue
    with _saved(folder, name) as saved:
      if progress := saved.best_progress():
        found[name] = progress["best_epoch"]
  return found


def digest(folder: pathlib.Path) -> str | None:
  """A digest of all that was saved at stage two's best epoch, or None."""
  with _saved(folder, "stage_two") as saved:
    return saved.best_digest()


def load(
  config: ml_collections.ConfigDict, folder: pathlib.Path, num_classes: int, mesh: jax.sharding.Mesh
) -> tuple[Recognizer, step_lib.Params, dict]:
  """Stage two's recogniser, the parameters of its best epoch, and what the host knew then.

  Raises:
    UserError: stage two has not finished an epoch there.
    UserError: the checkpoint is damaged, or of another model than the configuration's.
  """
  model = stages.build_model(config, "stage_two", num_classes)
  size = config.data.crop_size
  like = jax.eval_shape(lambda key: step_lib.init_params(model, key, size), jax.random.key(0))
  with _saved(folder, "stage_two") as saved:
    restored = saved.restore_best(checkpoints.abstract(like, mesh_lib.replicated(mesh)))
  if restored is None:
    raise UserError(f"{folder} holds no checkpoint of stage two: run train.py --workdir={folder} to its end")
  return model, *restored
