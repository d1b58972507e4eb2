"""From finished cells to the figures of the tables: by row and seed, and how sure each ordering is.

mAP and coverage by the number of regions, and the time for an image, are measured here and kept in the cell's folder.
"""

import functools
import pathlib
import timeit
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from rmam_jax import heads
from rmam_jax.data.splits import open_split
from rmam_jax.evaluation import bootstrap, calibration, metrics, stored_maps
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import scores as scores_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.recognizer import Recognizer
from rmam_jax.reproduction import cells, tables
from rmam_jax.reproduction.plan import Plan
from rmam_jax.reproduction.tables import Ordering, Row
from rmam_jax.runtime import files
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.training import checkpoints, stages, workdir

MOST_REGIONS = 10  # that a recognizer is tried with, whatever K it was trained with
_TIMED = 15  # batches; their median counts


class Measurements:
  """Everything that the chosen tables say, from a plan whose cells are all measured.

  `first` is results.json of the first row at the first seed, which stands for all where they agree, `config` its configuration.
  """

  def __init__(self, plan: Plan, chosen: Sequence[str]):
    self.plan, self.chosen = plan, chosen
    self._cell = functools.cache(lambda name, views, seed: cells.load(plan.cell(name, seed), plan.root, views))
    row = tables.tables(controls=plan.maker.controls)[chosen[0]].rows[0]
    self.first, self._first_scores = self._cell(row.cells[0], row.views, plan.seeds[0])
    self.config: dict[str, Any] = self.first["config"]
    self._maps = functools.cache(self._resample)

  @functools.cached_property
  def _draws(self) -> np.ndarray:
    images = len(self._first_scores.labels)
    return np.concatenate([np.ones((1, images), int), bootstrap.resample_counts(images)])

  def _resample(self, names: tuple[str, ...], views: str, seed: int, kind: str) -> np.ndarray:
    scores = self._scores(names, views, seed)
    return bootstrap.resampled_maps(getattr(scores, kind), scores.labels, scores.ignore, self._draws)

  def _scores(self, names: Sequence[str], views: str, seed: int) -> scores_lib.Scores:
    """One cell's, or the mean of two."""
    runs = {name: self._cell(name, views, seed)[1] for name in names}
    return scores_lib.fuse(runs) if len(runs) > 1 else runs[names[0]]

  def figures(self, row: Row, seed: int) -> dict[str, Any]:
    """mAP, AP by class and CP ... OF1 of the SVMs' margins: the paper's protocol, AP by the configuration's method."""
    scores = self._scores(row.cells, row.views, seed)
    rules = metrics.PROTOCOLS["paper"]._replace(ap_method=self.config["evaluation"]["ap_method"])
    found = metrics.measure(rules, scores.svm, scores.labels, scores.ignore)
    return {**found, "AP": dict(zip(scores.class_names.tolist(), found["AP"], strict=True))}

  def results(self, row: Row, figure: str) -> list[float | None]:
    """A figure of results.json for each seed; None where it is not there."""
    (name,) = row.cells
    return [self._cell(name, row.views, seed)[0].get(figure) for seed in self.plan.seeds]

  def group_map(self, row: Row, kind: str, classes: Sequence[str]) -> list[float]:
    """Mean average precision over some classes, for each seed; `kind` is "AP", the network's, or "svm_AP"."""
    found = self.results(row, kind)
    return [float(np.mean([ap for name in classes if (ap := by_class[name]) is not None])) for by_class in found]

  def interval(self, ordering: Ordering, kind: str) -> bootstrap.Interval:
    """How much better the better one is by the scores of `kind`, "svm" or "network"."""
    rows = (ordering.better, ordering.worse)
    maps = ([self._maps(row.cells, row.views, seed, kind) for seed in self.plan.seeds] for row in rows)
    return bootstrap.paired_interval(*maps)

  def measured_once(self, name: str, measure: Callable[[pathlib.Path], Any]) -> list[Any]:
    """What a function of `KEPT` finds in a cell's folder and its file there keeps, for each seed of a spec."""
    paths = [self.plan.cell(name, seed).folder(self.plan.root) / KEPT[measure] for seed in self.plan.seeds]
    for path in paths:
      if not path.exists():
        files.write_json(path, measure(path.parent))
    return [files.read_json(path) for path in paths]

  def trials(self) -> dict[str, list[float]]:
    """Validation mAP of each rate tried, by spec."""
    names = [name for name in self.plan.views if not tables.SPECS[name].tuned_as] if self.plan.rates else []
    return {name: [cells.validation_map(cell, self.plan.root) for cell in self.plan.trials(name)] for name in names}


def _load(folder: pathlib.Path, config: ml_collections.ConfigDict) -> tuple[Recognizer, outputs_lib.Forward, Any]:
  """A finished recognizer, its program for the centre view, and its parameters."""
  mesh = mesh_lib.make_mesh()
  model, params, _ = checkpoints.load_best(config, folder, len(workdir.read_class_names(folder)), mesh)
  return model, outputs_lib.make_forward(model, mesh), params


def measure_by_regions(folder: pathlib.Path) -> dict[str, list[float]]:
  """mAP (Eq. 6) and coverage of the first 1, 2, ... regions, up to `MOST_REGIONS` or what the head allows; centre views."""
  config = workdir.read_config(folder)
  kind = stages.classification_of(config, "stage_two")
  most = heads.get(config.model.head).most_regions(config.model) or MOST_REGIONS
  with config.unlocked():
    config.model.num_regions = most
  test = open_split(config.data, config.data.test or config.data.validation)
  model, forward, params = _load(folder, config)
  maps = None
  if not config.stage_two.backbone_rate:
    shown = {"config": config, "mesh": mesh_lib.make_mesh(), "views": forward.views}
    maps = stored_maps.of_split(model, params, test, **shown)
  options = {"data": config.data, "batch_size": config.evaluation.batch_size, "maps": maps}
  found = outputs_lib.compute_outputs(forward, params, test, **options)
  boxes = views_lib.region_boxes(found.thetas, config).transpose(1, 0, 2)
  figures = {"mAP": [], "coverage": []}
  for k in range(1, most + 1):
    scores = calibration.log_odds(found.region_scores[:k].max(axis=0), kind)
    every = metrics.average_precisions(scores, found.labels, ignore=found.ignore, method=config.evaluation.ap_method)
    figures["mAP"].append(metrics.mean_average_precision(every))
    figures["coverage"].append(metrics.region_metrics(boxes[:, :k], None, *found.objects()).coverage)
  return figures


def milliseconds_per_image(folder: pathlib.Path) -> float:
  """Wall time of a workdir's network alone: centre views in batches of `evaluation.batch_size`, decoded beforehand."""
  config = workdir.read_config(folder)
  forward, params = _load(folder, config)
  batch, side = config.evaluation.batch_size, config.data.crop_size
  images = jax.device_put(np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8), forward.sharding)
  jax.block_until_ready(forward(params, images))  # compiled here
  seconds = timeit.repeat(lambda: jax.block_until_ready(forward(params, images)), number=1, repeat=_TIMED)
  return 1_000 * float(np.median(seconds)) / batch


KEPT = {measure_by_regions: "looks.json", milliseconds_per_image: "speed.json"}  # in a cell's folder
