"""From finished cells to the figures of the tables: by row and seed, and how sure each ordering is."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmam_jax.evaluation import bootstrap, metrics
from rmam_jax.evaluation import scores as scores_lib
from rmam_jax.reproduction import cells, looks, speed, tables
from rmam_jax.reproduction.plan import Plan
from rmam_jax.reproduction.tables import Ordering, Row
from rmam_jax.runtime import files

LOOKS_FILE, SPEED_FILE = "looks.json", "speed.json"


class Measurements:
  """Everything that the chosen tables say, read from disk where it is first asked for.

  Attributes:
    plan: whose cells are all measured.
    chosen: of `tables.TABLES`.
  """

  def __init__(self, plan: Plan, chosen: Sequence[str]):
    self.plan, self.chosen = plan, chosen
    self._measured: dict[tuple[str, str, int], cells.Measured] = {}
    self._resampled: dict[tuple[Row, int, str], np.ndarray] = {}

  def cell(self, name: str, views: str, seed: int) -> cells.Measured:
    """A finished cell."""
    key = (name, views, seed)
    if key not in self._measured:
      self._measured[key] = cells.load(self.plan.cell(name, seed), self.plan.root, views)
    return self._measured[key]

  def scores(self, row: Row, seed: int) -> scores_lib.Scores:
    """A row's scores: one cell's, or the mean of two."""
    runs = {cell: self.cell(cell, row.views, seed).scores for cell in row.cells}
    return scores_lib.fuse(runs) if len(runs) > 1 else next(iter(runs.values()))

  def figures(self, row: Row, seed: int) -> dict[str, Any]:
    """mAP, AP by class and CP ... OF1 of the SVMs' margins: the paper's protocol, AP by the configuration's method."""
    scores = self.scores(row, seed)
    config = self.cell(row.cells[0], row.views, seed).results["config"]
    rules = metrics.PROTOCOLS["paper"]._replace(ap_method=config["evaluation"]["ap_method"])
    found = metrics.measure(rules, scores.svm, scores.labels, scores.ignore)
    return {**found, "AP": dict(zip(scores.class_names.tolist(), found["AP"], strict=True))}

  def results(self, row: Row, figure: str) -> list[float | None]:
    """A figure of results.json for each seed; None where it is not there."""
    (cell,) = row.cells
    return [self.cell(cell, row.views, seed).results.get(figure) for seed in self.plan.seeds]

  @functools.cached_property
  def _draws(self) -> np.ndarray:
    row = tables.tables()[self.chosen[0]].rows[0]
    images = len(self.scores(row, self.plan.seeds[0]).labels)
    return np.concatenate([np.ones((1, images), int), bootstrap.resample_counts(images)])

  def _maps(self, row: Row, seed: int, kind: str) -> np.ndarray:
    key = (row.label + "/".join(row.cells) + row.views, seed, kind)
    if key not in self._resampled:
      scores = self.scores(row, seed)
      self._resampled[key] = bootstrap.resampled_maps(getattr(scores, kind), scores.labels, scores.ignore, self._draws)
    return self._resampled[key]

  def interval(self, ordering: Ordering, kind: str) -> bootstrap.Interval:
    """How much better the better one is.

    Args:
      ordering: of `tables.orderings`.
      kind: "svm" or "network": whose scores.
    """
    first, second = (
      [self._maps(row, seed, kind) for seed in self.plan.seeds] for row in (ordering.better, ordering.worse)
    )
    return bootstrap.paired_interval(first, second)

  def looks(self, name: str) -> list[looks.ByLooks]:
    """Figures by the number of looks for each seed; measured once."""
    found = []
    for seed in self.plan.seeds:
      folder = self.plan.cell(name, seed).folder(self.plan.root)
      path = folder / LOOKS_FILE
      if not path.exists():
        files.write_json(path, looks.by_looks(folder)._asdict())
      found.append(looks.ByLooks(**files.read_json(path)))
    return found

  def milliseconds(self, row: Row) -> list[float]:
    """Time per image for each seed, see `speed`; measured once."""
    found = []
    for seed in self.plan.seeds:
      folder = self.plan.cell(row.cells[0], seed).folder(self.plan.root)
      path = folder / SPEED_FILE
      if not path.exists():
        files.write_json(path, speed.milliseconds_per_image(folder))
      found.append(files.read_json(path))
    return found

  @property
  def data(self) -> str:
    """The data set's name."""
    return self._config["data"]["name"]

  @property
  def num_regions(self) -> int:
    """K."""
    return self._config["model"]["num_regions"]

  @property
  def _config(self) -> dict[str, Any]:
    row = tables.tables()[self.chosen[0]].rows[0]
    return self.cell(row.cells[0], row.views, self.plan.seeds[0]).results["config"]

  def has_boxes(self) -> bool:
    """Whether the test images have boxes to measure places against."""
    row = tables.tables()["controls"].rows[0]
    return self.results(row, "coverage")[0] is not None

  def protocol(self) -> list[str]:
    """In words, for all figures."""
    section, row = self._config["evaluation"], tables.tables()[self.chosen[0]].rows[0]
    results = self.cell(row.cells[0], row.views, self.plan.seeds[0]).results
    stages = [self._config[stage] for stage in ("stage_one", "stage_two")]
    steps = [stage["epochs"] for stage in stages]
    return [
      f"{results['test_images']} test images; AP is `{section['ap_method']}`; CP ... OF1 by top 3 labels of positive margin."
      f' Tables 1 to 6 measure one-vs-rest SVMs on the features `{section["feature"]}`; "RMAM" there has the paper\'s rule'
      f" (Eq. 5) and losses (Eq. 7-14) on this data set's backbone and stage one. Best epoch by validation loss,"
      f" {steps[0]} and {steps[1]} epochs of the two stages, batch {self._config['batch_size']}, nothing chosen on the test"
      " images.",
    ]

  def trials(self) -> dict[str, list[float]]:
    """Validation mAP of each rate tried, by spec."""
    tried = {name: self.plan.trials(name) for name in self.plan.views if not cells.SPECS[name].tuned_as}
    return {
      name: [cells.validation_map(cell, self.plan.root) for cell in trials] for name, trials in tried.items() if trials
    }
