"""A trained model as two files that can be published, `model.safetensors` and `model.json`, and back."""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import ml_collections

from rmam_jax.runtime import files
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import checkpoints, stages, workdir
from rmam_jax.training import step as step_lib
from rmam_jax.version import __version__
from rmam_jax.weights import tensors

FORMAT = 1  # of model.json


class TrainedModel(NamedTuple):
  """All that a prediction needs. L is the number of classes."""

  config: ml_collections.ConfigDict  # locked; its `model` has the preprocessing
  class_names: tuple[str, ...]  # L, in the order of the scores
  params: Any  # stage two's recogniser at its best epoch: a tree of float32 numpy arrays
  selection: dict[str, Any] | None  # the content of the workdir's `selection.json` if it had one


def export(workdir_folder: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the best epoch of a workdir as `out/model.safetensors` and `out/model.json`.

  Args:
    workdir_folder: of a run that finished at least one epoch of stage two.
    out: a folder that is new or empty.

  Raises:
    UserError: with the file and what to do about it.
  """
  workdir_folder, out = pathlib.Path(workdir_folder), pathlib.Path(out)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"{out} exists and is not an empty folder: name another")
  found = _load_workdir(workdir_folder)
  arrays = tensors.flatten(found.params)
  try:
    out.mkdir(parents=True, exist_ok=True)
    tensors.write_safetensors(out / "model.safetensors", arrays, {"format": f"rmam_jax model {FORMAT}"})
    about = {
      "format": FORMAT,
      "version": __version__,
      "class_names": found.class_names,
      "selection": found.selection,
      "config": json.loads(found.config.to_json()),
    }
    digest = tensors.digest(arrays, about)
    files.write_json(out / "model.json", {"digest": digest, **about})  # last: a folder without it is no model
  except OSError as error:
    raise UserError(f"cannot export to {out}: {error}") from error


def load(folder: pathlib.Path) -> TrainedModel:
  """What `export` wrote, or a workdir's best epoch.

  Raises:
    UserError: the folder is neither.
    UserError: a file is damaged; names it and the tensor or field.
  """
  folder = pathlib.Path(folder)
  if (folder / "model.json").exists():
    return _load_exported(folder)
  if (folder / "config.json").exists():
    return _load_workdir(folder)
  raise UserError(
    f"{folder} holds neither a model.json (of an exported model) nor a config.json (of a workdir of train.py)"
  )


def _load_workdir(folder: pathlib.Path) -> TrainedModel:
  config, class_names = workdir.read_config(folder), workdir.read_class_names(folder)
  _, params, _ = checkpoints.load_best(config, folder, len(class_names), mesh_lib.make_mesh())
  selection = folder / "selection.json"
  return TrainedModel(
    config, class_names, jax.device_get(params), files.read_json(selection) if selection.exists() else None
  )


def _load_exported(folder: pathlib.Path) -> TrainedModel:
  path, about = folder / "model.safetensors", files.read_json(folder / "model.json")
  where = folder / "model.json"
  if not isinstance(about, dict) or about.get("format") != FORMAT:
    raise UserError(f"{where}: its format is not {FORMAT}, the one that rmam_jax {__version__} reads")
  for field, kind in (("config", dict), ("class_names", list), ("digest", str)):
    if not isinstance(about.get(field), kind):
      raise UserError(f"{where}: the field {field} is missing or not of the right kind")
  if not about["class_names"] or not all(isinstance(name, str) for name in about["class_names"]):
    raise UserError(f"{where}: class_names must be a list of names")
  config = ml_collections.ConfigDict(about["config"]).lock()
  class_names = tuple(about["class_names"])
  try:
    like = param_shapes(config, len(class_names))
  except (AttributeError, KeyError, TypeError) as error:
    raise UserError(
      f"{where}: its config describes no model of rmam_jax {__version__} ({error}); it was written by version"
      f" {about.get('version')}"
    ) from error
  shapes = {name: leaf.shape for name, leaf in tensors.flatten(like).items()}
  if not path.exists():
    raise UserError(f"{path} is missing beside {where.name}")
  with tensors.open_safetensors(path) as (entries, _):
    tensors.check_shapes(entries, shapes, path)
    arrays = tensors.read(entries, shapes, path)
  if tensors.digest(arrays, {field: value for field, value in about.items() if field != "digest"}) != about["digest"]:
    raise UserError(f"{path} does not have the digest that {where.name} states: one of them was changed or damaged")
  return TrainedModel(config, class_names, tensors.unflatten(like, arrays), about.get("selection"))


def param_shapes(config: ml_collections.ConfigDict, num_classes: int) -> Any:
  """The tree of stage two's parameters as shapes; takes no memory."""
  model = stages.build_model(config, "stage_two", num_classes)
  init = functools.partial(step_lib.init_params, model, size=config.data.crop_size)
  return jax.eval_shape(init, jax.random.key(0))
