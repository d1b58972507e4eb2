"""Cells: the trainings that tables are made of, each in a folder that is named by all that it depends on.

A finished cell is never trained again; one that was stopped goes on. Cells with the same stage one or region proposal
network take it over from the first that has finished. Two processes can share the work of one folder: each skips
the cell that the other is working on.
"""

import contextlib
import hashlib
import importlib.util
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import filelock
import ml_collections

import rmam_jax
from rmam_jax import heads
from rmam_jax.data.splits import open_split
from rmam_jax.evaluation import scores as scores_lib
from rmam_jax.reproduction import tables
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import checkpoints, evaluate, initial_weights, pipeline, stages, workdir
from rmam_jax.training import rpn as rpn_training

# Fields that tell cells apart, so that nobody can set them for all cells.
RESERVED = ("seed", "controls", "model.head", "evaluation.views", "data.proposals", "data.num_proposals")
PARTS_FILE = "parts.json"  # in a cell's folder


class Cell(NamedTuple):
  """One training."""

  name: str  # of the spec
  config: ml_collections.ConfigDict
  digest: str  # of all that it depends on
  parts: Mapping[str, str]  # of all that a part depends on which cells can share: "stage_one", "rpn"

  @property
  def label(self) -> str:
    return f"{self.name}, seed {self.config.seed}, rate {self.config.stage_two.learning_rate:g}"

  def folder(self, root: pathlib.Path) -> pathlib.Path:
    return root / "cells" / f"{self.name}-{self.config.seed}-{self.digest[:10]}"


class Maker:
  """Makes cells from a configuration file, PATH or PATH:VARIANT, and the fields that are set for all cells.

  The file has SCALES, the names of two scales, and a `get_config` that takes VARIANT, a scale and a head with colons
  between. It may have CONTROLS, the heads of that table, and CLASS_GROUPS, by title the classes whose mAP is printed
  beside that of all. UserError: there is no such file, it has no two scales, VARIANT names one of them or a head, or a
  field cannot be set for all cells.
  """

  def __init__(self, config: str, changes: Mapping[str, Any]):
    path, _, self._variant = config.partition(":")
    if not pathlib.Path(path).is_file():
      raise UserError(f"there is no configuration {path}")
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    self._file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(self._file)
    if len(getattr(self._file, "SCALES", ())) != 2:
      raise UserError(f"{path} names no SCALES: tables need a configuration with two, as configs/digits.py has")
    if taken := sorted({*self._file.SCALES, *heads.SPECS}.intersection(self._variant.split(":"))):
      raise UserError(f"{config}: leave out {', '.join(taken)}: the tables have both scales and their own heads")
    self.controls: Sequence[str] = getattr(self._file, "CONTROLS", tables.CONTROLS)
    self.class_groups: Mapping[str, Sequence[str]] = getattr(self._file, "CLASS_GROUPS", {})
    if reserved := [field for field in RESERVED if field in changes]:
      raise UserError(f"--config.{reserved[0]} cannot be set for all cells: they differ in it")
    self._changes = changes
    self._data: dict[str, list[str]] = {}
    self._weights: dict[tuple[str, str], ml_collections.ConfigDict] = {}

  def cell(self, name: str, seed: int, rate: float | None = None) -> Cell:
    """The cell of a spec, with `rate` in stage two or, if None, the configuration's.

    UserError: a field is set for all cells that makes this one what it is; or weights are not given, not there, or do
    not fit.
    """
    spec = tables.SPECS[name]
    head = heads.get(spec.head)
    if clash := sorted(set(spec.changes) & set(self._changes)):
      raise UserError(f"--config.{clash[0]} cannot be set for all cells: the tables' {name} has its own value")
    config = self._file.get_config(":".join(filter(None, [self._variant, self._file.SCALES[spec.scale], spec.head])))
    if spec.changes:  # they are stage two's: stage one is that of all rows
      config.stage_one.classification = stages.classification_of(config, "stage_one")
    config.update_from_flattened_dict({**spec.changes, **self._changes})
    if head.guide != heads.BOXES:
      config.data.edge_model = ""
    else:
      config.data.num_proposals = config.model.num_regions
      config.data.proposals = "edge_boxes" if config.data.edge_model else config.data.proposals
    config.seed, config.controls, config.controls_rate, config.evaluation.pictures = seed, (), 0.0, 0
    if rate is not None:
      config.stage_two.learning_rate = rate
    if config.weights != initial_weights.NONE:
      named = config.weights, config.model.backbone
      if named not in self._weights:
        self._weights[named], _ = initial_weights.resolve(config)
      resolved = self._weights[named]
      config.weights_digest = resolved.weights_digest
      config.model.pixel_mean, config.model.pixel_std = resolved.model.pixel_mean, resolved.model.pixel_std
    fields, about = _fields(config), [rmam_jax.__version__, workdir.FORMAT, *self._digest_data(config.data)]
    parts = {"stage_one": _digest([*about, *_of_stage_one(config, fields)])}
    if head.guide == heads.RPN:
      about += self._digest_data(rpn_training.config_of(config).data)
      of_head = [f"{section}." for section in head.defaults if rpn_training.NAME not in section]
      parts[rpn_training.NAME] = _digest([*about, _without(fields, *_AFTER_STAGE_ONE, "stage_one.", "loss.", *of_head)])
    return Cell(name, config, _digest([*about, fields]), parts)

  def _digest_data(self, data: ml_collections.ConfigDict) -> list[str]:
    """Of each split."""
    data = without_proposals(data)
    if (key := data.to_json()) not in self._data:
      splits = filter(None, (data.train, data.validation, data.test, data.final_train))
      self._data[key] = [open_split(data, split).digest() for split in splits]
    return self._data[key]


def without_proposals(data: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The `data` section for questions that need no proposals: making them can take hours."""
  data = data.copy_and_resolve_references()
  data.proposals = ""
  return data


def _fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """All fields that can change what a cell finds; the evaluation's too, which a run may change when it goes on."""
  fields = workdir.flatten(json.loads(config.to_json()))
  evaluation = {name: value for name, value in fields.items() if name.startswith("evaluation.")}
  return workdir.determining(fields, config) | evaluation


def _without(fields: Mapping[str, Any], *prefixes: str) -> dict[str, Any]:
  return {name: value for name, value in fields.items() if not name.startswith(prefixes)}


def _digest(content: Any) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_AFTER_STAGE_ONE = ("stage_two.", "evaluation.", "controls", "model.head")  # what stage one does not see
_OF_REGIONS = (
  *("localization_weight", "constrain_first", "anchor_weight", "scale_weight", "positive_weight", "max_scale"),
  "min_scale",
)


def _of_stage_one(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> list[Any]:
  """All that stage one depends on."""
  seen = _without(fields, *_AFTER_STAGE_ONE)
  if not heads.get(config.stage_one.head).looks:  # it has no regions to constrain
    unused = ("data.proposals", "data.num_proposals", "data.edge_model")
    unused += ("accumulate",) if config.model.freeze_norm else ()
    unused += heads.unused_sections([config.stage_one.head])
    seen = _without(seen, *unused, *(f"loss.{name}" for name in _OF_REGIONS))
  default = seen.pop("loss.classification")
  return [seen.pop("stage_one.classification") or default, seen]


def _take_over_parts(cell: Cell, root: pathlib.Path) -> None:
  """Copies the stage one and the region proposal network that finished cells share with a cell that has not begun."""
  folder = cell.folder(root)
  if any((phase / "config.json").exists() for phase in (folder, folder / "choose")):
    return
  folder.mkdir(parents=True, exist_ok=True)
  for path in sorted((root / "cells").glob(f"*/{PARTS_FILE}")):
    if path.with_name("results.json").exists():
      theirs = files.read_json(path)
      for part in (part for part, digest in cell.parts.items() if theirs.get(part) == digest):
        for phase in ("choose", ""):
          checkpoints.take_over(part, path.parent / phase, folder / phase)


@contextlib.contextmanager
def holding(cell: Cell, root: pathlib.Path) -> Iterator[bool]:
  """Yields whether this process has the cell to itself within the block. A process that dies frees its cell."""
  path = cell.folder(root).with_suffix(".lock")  # the workdir's own says that it is being trained
  path.parent.mkdir(parents=True, exist_ok=True)
  lock = filelock.FileLock(path)
  with contextlib.suppress(filelock.Timeout):
    lock.acquire(blocking=False)
  try:
    yield lock.is_locked
  finally:
    lock.release()


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
  evaluate.evaluate(folder, {"views": views})
  draft = place.with_name(views + ".draft")
  shutil.rmtree(draft, ignore_errors=True)
  draft.mkdir(parents=True)
  for name in ("results.json", scores_lib.FILE):
    shutil.copyfile(folder / name, draft / name)
  draft.rename(place)


def load(cell: Cell, root: pathlib.Path, views: str) -> tuple[dict[str, Any], scores_lib.Scores]:
  """What `measure` left: results.json, and the scores of the test split."""
  place = _place(cell, root, views)
  return files.read_json(place / "results.json"), scores_lib.load(place)


def validation_map(cell: Cell, root: pathlib.Path) -> float:
  """mAP on the validation split at the best epoch of stage two, by which learning rates are chosen."""
  folder = cell.folder(root)
  folder = folder / "choose" if (folder / "choose").exists() else folder  # of two phases, the one that chooses
  best = files.read_json(folder / "results.json")["best_epoch"]
  lines = workdir.read_lines(folder / "metrics.jsonl")
  return next(line["validation_mAP"] for line in lines if (line["stage"], line["epoch"]) == ("stage_two", best))
