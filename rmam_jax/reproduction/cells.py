"""Cells: the trainings that tables are made of, each in a folder that is named by all that it depends on.

A finished cell is never trained again; one that was stopped goes on. Cells whose stage one or region proposal network is the same take
it over from the first that has finished. Two processes share the work of one folder: a cell that another process holds is left to it.
"""

import contextlib
import fcntl
import hashlib
import json
import pathlib
import shutil
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

import rmam_jax
from rmam_jax import heads
from rmam_jax.data.splits import open_split
from rmam_jax.evaluation import scores as scores_lib
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import checkpoints, initial_weights, pipeline, stages, workdir
from rmam_jax.training import rpn as rpn_training

# The paper's losses, where a data set's configuration takes others: Eq. 7-8 and Eq. 10-14, nothing beside.
PRINTED: Mapping[str, Any] = types.MappingProxyType(
  {
    "loss.classification": "euclidean",
    "loss.localization_weight": 0.1,
    "loss.anchor_weight": 0.01,
    "loss.scale_weight": 1.0,
    "loss.positive_weight": 0.1,
    "stage_two.auxiliary_weight": 0.0,
  }
)


class Spec(NamedTuple):
  """What a row of a table trains: a head at one of the two scales, and fields that differ from its configuration."""

  head: str
  scale: int = 0
  changes: Mapping[str, Any] = types.MappingProxyType({})
  tuned_as: str = ""  # the spec whose learning rate it takes over; empty: its own


def _rmam(scale: int = 0, **changes: Any) -> Spec:
  fields = {f"loss.{name}": value for name, value in changes.items()}
  return Spec("recurrent", scale, {**PRINTED, **fields}, "rmam" if scale or changes else "")


SPECS: Mapping[str, Spec] = {
  "rmam": _rmam(),
  "rmam-large": _rmam(scale=1),
  "rmam-null": _rmam(localization_weight=0.0),
  "rmam-S+P": _rmam(anchor_weight=0.0),
  "rmam-A+S": _rmam(positive_weight=0.0),
  "rmam-A+P": _rmam(scale_weight=0.0),
  "proposals": Spec("proposals", 0, {**PRINTED, "loss.localization_weight": 0.0}, "rmam"),
  **{
    head: Spec(head)
    for head in (
      *("saliency", "recurrent", "rarl", "rlsd", "rlsd_ft_rpn"),
      *("fixed_grid", "whole_image", "score_map", "max_pool", "mean_pool"),
    )
  },
}

# What is the cells' own, so that nobody can set it for all of them.
RESERVED = (
  "seed",
  "controls",
  "model.head",
  "evaluation.views",
  "data.proposals",
  "data.num_proposals",
)

PARTS_FILE = "parts.json"  # in a cell's folder


class Cell(NamedTuple):
  """One training.

  Attributes:
    name: of the spec.
    config: the training's.
    digest: of all that it depends on.
    parts: of all that a part depends on which cells can share: "stage_one", "rpn".
  """

  name: str
  config: ml_collections.ConfigDict
  digest: str
  parts: Mapping[str, str]

  @property
  def label(self) -> str:
    return f"{self.name}, seed {self.config.seed}, rate {self.config.stage_two.learning_rate:g}"

  def folder(self, root: pathlib.Path) -> pathlib.Path:
    return root / "cells" / f"{self.name}-{self.config.seed}-{self.digest[:10]}"


class Maker:
  """Makes cells from a configuration file.

  Attributes:
    get_config: the file's; it takes SETTING:SCALE:HEAD in any order.
    scales: the names of its two scales.
    variant: what the user wrote behind the file's name.
    changes: fields that the user set for all cells.

  Raises:
    UserError: one of them is the cells' own.
  """

  def __init__(
    self,
    get_config: Callable[[str], ml_collections.ConfigDict],
    scales: Sequence[str],
    variant: str = "",
    changes: Mapping[str, Any] = types.MappingProxyType({}),
  ):
    self.get_config, self.scales, self.variant, self.changes = get_config, scales, variant, changes
    self._data: dict[str, list[str]] = {}
    self._weights: dict[str, Mapping[str, Any]] = {}
    if reserved := [field for field in RESERVED if field in changes]:
      raise UserError(f"--config.{reserved[0]} cannot be set for all cells: they differ in it")

  def cell(self, name: str, seed: int, rate: float | None = None) -> Cell:
    """The cell of a spec.

    Args:
      name: of `SPECS`.
      seed: the run's.
      rate: of stage two; None: the configuration's.

    Raises:
      UserError: a field is set for all cells that makes this one what it is; or no weights are given, or do not fit.
      UserError: the weights are not there.
    """
    spec = SPECS[name]
    if clash := sorted(set(spec.changes) & set(self.changes)):
      raise UserError(f"--config.{clash[0]} cannot be set for all cells: the tables' {name} has its own value")
    config = self.get_config(":".join(filter(None, [self.variant, self.scales[spec.scale], spec.head])))
    if spec.changes:  # they are stage two's: stage one is that of all rows
      config.stage_one.classification = stages.classification_of(config, "stage_one")
    config.update_from_flattened_dict({**spec.changes, **self.changes})
    if spec.head == "proposals":
      config.data.num_proposals = config.model.num_regions
    config.seed, config.controls, config.controls_rate, config.evaluation.pictures = seed, (), 0.0, 0
    if rate is not None:
      config.stage_two.learning_rate = rate
    self._resolve_weights(config)
    fields, about = _fields(config), [rmam_jax.__version__, workdir.FORMAT, *self._digest_data(config.data)]
    parts = {"stage_one": _digest([*about, *_of_stage_one(config, fields)])}
    if heads.get(config.model.head).guide == heads.RPN:
      about += self._digest_data(rpn_training.config_of(config).data)
      parts[rpn_training.NAME] = _digest([*about, _of_rpn(fields)])
    return Cell(name, config, _digest([*about, fields]), parts)

  def _resolve_weights(self, config: ml_collections.ConfigDict) -> None:
    if config.weights == initial_weights.NONE:
      return
    if config.weights not in self._weights:
      resolved, _ = initial_weights.resolve(config)
      self._weights[config.weights] = {
        "weights_digest": resolved.weights_digest,
        "model.pixel_mean": resolved.model.pixel_mean,
        "model.pixel_std": resolved.model.pixel_std,
      }
    config.update_from_flattened_dict(self._weights[config.weights])

  def _digest_data(self, data: ml_collections.ConfigDict) -> list[str]:
    """Of each split; proposals, which may be long in the making, are told by their fields."""
    data = data.copy_and_resolve_references()
    data.proposals = ""
    key = data.to_json()
    if key not in self._data:
      splits = filter(None, (data.train, data.validation, data.test, data.final_train))
      self._data[key] = [open_split(data, split).digest() for split in splits]
    return self._data[key]


def _fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """All that can change what a run finds."""
  return workdir.determining(workdir.flatten(json.loads(config.to_json())), config)


def _digest(content: Any) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# What stage one does not see: a pooling head in it has no regions to constrain.
_AFTER_STAGE_ONE = ("stage_two.", "evaluation.", "controls", "model.head")
_OF_REGIONS = ("localization_weight", "anchor_weight", "scale_weight", "positive_weight", "max_scale", "min_scale")


def _of_stage_one(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> list[Any]:
  """All that stage one depends on."""
  left_out = _AFTER_STAGE_ONE
  if not heads.get(config.stage_one.head).looks:
    left_out += ("data.proposals", "data.num_proposals", *(f"loss.{name}" for name in _OF_REGIONS))
    left_out += ("accumulate", *heads.unused_sections([config.stage_one.head]))
  seen = {field: value for field, value in fields.items() if not field.startswith(left_out)}
  kind = seen.pop("stage_one.classification") or seen["loss.classification"]
  seen.pop("loss.classification")
  return [kind, seen]


def _of_rpn(fields: Mapping[str, Any]) -> dict[str, Any]:
  """All that a region proposal network depends on."""
  left_out = (*_AFTER_STAGE_ONE, "stage_one.", "loss.", "model.rlsd.")
  return {field: value for field, value in fields.items() if not field.startswith(left_out)}


def _take_over_parts(cell: Cell, root: pathlib.Path) -> None:
  """Gives a cell that has not begun the stage one and the region proposal network of finished cells, where they are the same."""
  folder = cell.folder(root)
  if any((phase / "config.json").exists() for phase in (folder, folder / "choose")):
    return
  folder.mkdir(parents=True, exist_ok=True)
  for other in sorted((root / "cells").iterdir()):
    if not (other / "results.json").exists() or not (other / PARTS_FILE).exists():
      continue
    theirs = files.read_json(other / PARTS_FILE)
    for part in (part for part, digest in cell.parts.items() if theirs.get(part) == digest):
      for phase in ("choose", ""):
        checkpoints.take_over(part, other / phase, folder / phase)


@contextlib.contextmanager
def holding(cell: Cell, root: pathlib.Path) -> Iterator[bool]:
  """Within, the cell is this process's, if no other holds it: yields which. A dead holder frees it."""
  path = cell.folder(root).with_suffix(".lock")  # the workdir's own says that it is being trained
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
      return
    yield True


class Measured(NamedTuple):
  """What a finished cell answered from one kind of views."""

  results: dict[str, Any]  # results.json
  scores: scores_lib.Scores  # of the test split


def _place(cell: Cell, root: pathlib.Path, views: str) -> pathlib.Path:
  return cell.folder(root) / "measured" / views


def is_measured(cell: Cell, root: pathlib.Path, views: str) -> bool:
  """Whether a cell has been trained and evaluated from these views."""
  return _place(cell, root, views).is_dir()


def measure(cell: Cell, root: pathlib.Path, views: str) -> None:
  """Trains a cell, as far as it is not trained yet, and evaluates it from these views."""
  folder, place = cell.folder(root), _place(cell, root, views)
  if not (folder / "results.json").exists():
    _take_over_parts(cell, root)
    files.write_json(folder / PARTS_FILE, cell.parts)
    pipeline.train_and_evaluate(cell.config, folder)
  pipeline.evaluate(folder, {"views": views})
  draft = place.with_name(views + ".draft")
  shutil.rmtree(draft, ignore_errors=True)
  draft.mkdir(parents=True)
  for name in ("results.json", scores_lib.FILE):
    shutil.copyfile(folder / name, draft / name)
  draft.rename(place)


def load(cell: Cell, root: pathlib.Path, views: str) -> Measured:
  """What `measure` left."""
  place = _place(cell, root, views)
  return Measured(files.read_json(place / "results.json"), scores_lib.load(place))


def validation_map(cell: Cell, root: pathlib.Path) -> float:
  """mAP on the validation split at the best epoch of stage two, by which learning rates are chosen."""
  folder = cell.folder(root)
  chosen = folder / "choose" if (folder / "choose").exists() else folder  # of two phases, the one that chooses
  best = files.read_json(chosen / "results.json")["best_epoch"]
  lines = workdir.read_lines(chosen / "metrics.jsonl")
  return next(line["validation_mAP"] for line in lines if (line["stage"], line["epoch"]) == ("stage_two", best))
