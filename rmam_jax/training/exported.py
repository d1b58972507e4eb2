"""A trained model as two files that can be published, `model.safetensors` and `model.json`, and back."""

import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from rmam_jax.config import from_fields
from rmam_jax.evaluation import metrics, report
from rmam_jax.runtime import files
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError, os_errors
from rmam_jax.training import checkpoints, stages, workdir
from rmam_jax.training import step as step_lib
from rmam_jax.version import __version__
from rmam_jax.weights import files as weight_files
from rmam_jax.weights import hub, published, tensors

FORMAT = 4  # of model.json
FILES = ("model.json", "model.safetensors")
# Of results.json, what a published model tells of itself; the rest is of the machine, or long.
MEASURED = (
  *("data", "test_images", "views", "mirror", "AP_method", "top_k", "seed", "version"),
  *("mAP", "AP", *metrics.F1_NAMES, "svm_mAP", "auxiliary_head", "auxiliary_mAP"),
  *("undefined_classes", "never_predicted_classes"),
  *(f"{prefix}{name}" for prefix in ("", *report.BASELINES) for name in metrics.REGION_METRICS),
)
_HUB_NAME = re.compile(rf"(hf:{hub.REPOSITORY})(?:@([\w./-]+))?")


class TrainedModel(NamedTuple):
  """All that a prediction needs. L is the number of classes."""

  config: ml_collections.ConfigDict  # locked; its `model` has the preprocessing
  class_names: tuple[str, ...]  # L, in the order of the scores
  params: Any  # stage two's recognizer at its best epoch: a tree of float32 numpy arrays
  selection: dict[str, Any] | None  # the content of the workdir's `selection.json` if it had one
  results: dict[str, Any] | None = None  # what its `results.json` has of `MEASURED`, if it was evaluated at this epoch


def export(folder: pathlib.Path, out: pathlib.Path, *, half: bool = False) -> None:
  """Writes what `load` finds, e.g. a workdir's best epoch, as `out/model.safetensors` and `out/model.json`.

  They hold no paths of this machine.

  With `half`, tensors of two and more dimensions are stored as float16: half the size, and scores that differ by about
  a thousandth. Raises UserError: names the file and what to do about it; `out` is neither new nor an empty folder, or a
  value is beyond float16.
  """
  check_out(out)
  found = load(folder)
  arrays = tensors.flatten(halved(found.params) if half else found.params)
  about = {
    "format": FORMAT,
    "version": __version__,
    "class_names": found.class_names,
    "selection": found.selection,
    "results": found.results,
    "config": json.loads(_without_paths(found.config).to_json()),
  }
  with os_errors(f"cannot export to {out}"):
    out.mkdir(parents=True, exist_ok=True)
  tensors.write_safetensors(out / "model.safetensors", arrays, {"format": f"{weight_files.RECOGNIZER} {FORMAT}"})
  as_read = {name: array.astype(np.float32) for name, array in arrays.items()}
  # Last: a folder without it is no model.
  files.write_json(out / "model.json", {"digest": tensors.digest(as_read, about), **about})


def check_out(out: pathlib.Path) -> None:
  """Raises UserError unless `out` is new or an empty folder."""
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"{out} exists and is not an empty folder: name another")


def halved(params: Any) -> Any:
  """Parameters with their tensors of two and more dimensions as float16; UserError names one with a value beyond it."""
  arrays = tensors.flatten(params)
  if beyond := [name for name, array in arrays.items() if np.abs(array).max() > np.finfo(np.float16).max]:
    raise UserError(f"{beyond[0]} holds values beyond float16: export without --half")
  return tensors.unflatten(
    params, {name: array.astype(np.float16) if array.ndim > 1 else array for name, array in arrays.items()}
  )


def _without_paths(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  config = config.copy_and_resolve_references()
  if not published.is_name(config.weights):
    config.weights = pathlib.Path(config.weights).name
  config.data.root = config.data.images = config.data.edge_model = ""
  if config.data.name == "custom":  # its splits are files
    config.data.update(train="", validation="", test="", final_train="", expected=(), split=())
  if config.rpn.data == "custom":
    config.rpn.update(train="", validation="")
  return config


def load(folder: pathlib.Path) -> TrainedModel:
  """What `export` wrote, or a workdir's best epoch.

  Raises UserError: the folder is neither, or a file is damaged; names it and the tensor or field.
  """
  if (folder / "model.json").exists():
    return _load_exported(folder)
  if (folder / "config.json").exists():
    return _load_workdir(folder)
  raise UserError(
    f"{folder} holds neither a model.json (of an exported model) nor a config.json (of a workdir of train.py)"
  )


def is_of_hub(name: str | os.PathLike) -> bool:
  """Whether it names a model on the Hugging Face hub, for `fetch`, and no folder."""
  return str(name).startswith("hf:")


def fetch(name: str) -> pathlib.Path:
  """The folder of `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`, with `FILES` of it and nothing else; see `hub.fetch`.

  Raises UserError: it cannot be had, or holds no exported model.
  """
  found = _HUB_NAME.fullmatch(name)
  if found is None:
    raise UserError(f"{name}: a recognizer of the Hugging Face hub is hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
  repository, revision = found.groups()
  folder = hub.fetch(repository, revision, FILES)
  if not (folder / "model.json").exists():
    raise UserError(f"{repository} holds no model.json: it is no recognizer that `rmam-jax push` has published")
  return folder


def _load_workdir(folder: pathlib.Path) -> TrainedModel:
  config, class_names = workdir.read_config(folder), workdir.read_class_names(folder)
  _, params, progress = checkpoints.load_best(config, folder, len(class_names), mesh_lib.make_mesh())
  selection, results = (
    files.read_json(path) if (path := folder / name).exists() else None for name in ("selection.json", "results.json")
  )
  if results is not None and results.get("best_epoch") != progress["best_epoch"]:
    results = None  # of an evaluation before it was trained on
  measured = results and {name: results[name] for name in MEASURED if name in results}
  return TrainedModel(config, class_names, jax.device_get(params), selection, measured)


def _load_exported(folder: pathlib.Path) -> TrainedModel:
  path, where = folder / "model.safetensors", folder / "model.json"
  about = files.read_json(where)
  if not isinstance(about, dict) or about.get("format") != FORMAT:
    raise UserError(f"{where}: its format is not {FORMAT}, the one that rmam_jax {__version__} reads")
  for field, kind in (("config", dict), ("class_names", list), ("digest", str)):
    if not isinstance(about.get(field), kind):
      raise UserError(f"{where}: the field {field} is missing or not of the right kind")
  class_names = tuple(about["class_names"])
  if not class_names or not all(isinstance(name, str) for name in class_names):
    raise UserError(f"{where}: class_names must be a list of names")
  written = f"{where}, which version {about.get('version')} wrote"
  config = from_fields(about["config"], written)
  try:
    like = param_shapes(config, len(class_names))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{written}: its config describes no model of rmam_jax {__version__} ({error})") from error
  shapes = {name: leaf.shape for name, leaf in tensors.flatten(like).items()}
  if not path.exists():
    raise UserError(f"{path} is missing beside {where.name}")
  with tensors.open_safetensors(path) as (entries, _):
    tensors.check_shapes(entries, shapes, path)
    arrays = tensors.read(entries, shapes, path)
  wanted = about.pop("digest")
  if tensors.digest(arrays, about) != wanted:
    raise UserError(f"{path} does not have the digest that {where.name} states: one of them was changed or damaged")
  params = tensors.unflatten(like, arrays)
  return TrainedModel(config, class_names, params, about.get("selection"), about.get("results"))


def param_shapes(config: ml_collections.ConfigDict, num_classes: int) -> Any:
  """The tree of stage two's parameters as shapes; takes no memory."""
  model = stages.build_model(config, "stage_two", num_classes)
  return jax.eval_shape(lambda key: step_lib.init_params(model, key, config.data.crop_size), jax.random.key(0))
