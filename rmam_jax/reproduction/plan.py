"""What tables need, in order, and what has been chosen and measured so far."""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rmam_jax.reproduction import cells, tables
from rmam_jax.reproduction.cells import Cell, Maker
from rmam_jax.runtime.errors import UserError

_WAIT = 5.0  # seconds between looks at a cell that another process holds


class Plan(NamedTuple):
  """What is to be done: trials first, which choose each spec's rate, then every seed."""

  maker: Maker
  root: pathlib.Path
  views: Mapping[str, Sequence[str]]  # of each spec
  seeds: Sequence[int]
  rates: Sequence[float]  # tried on the first seed; none: the configuration's

  def trials(self, name: str) -> list[Cell]:
    """The cells among which a spec's learning rate is chosen."""
    tuned = cells.SPECS[name].tuned_as or name
    return [self.maker.cell(tuned, self.seeds[0], rate) for rate in self.rates]

  def best_trial(self, name: str) -> Cell | None:
    """The trial of highest validation mAP, the first of equals; None without trials."""
    return max(self.trials(name), key=lambda cell: cells.validation_map(cell, self.root), default=None)

  def cell(self, name: str, seed: int) -> Cell:
    """A spec's cell at its chosen rate."""
    best = self.best_trial(name)
    return self.maker.cell(name, seed, best and best.config.stage_two.learning_rate)


def make(maker: Maker, root: pathlib.Path, chosen: Sequence[str], seeds: int, rates: Sequence[float]) -> Plan:
  """The plan for some tables.

  Args:
    maker: of the cells.
    root: the folder of all results.
    chosen: of `tables.TABLES`.
    seeds: how many: 0, 1, ...
    rates: learning rates of stage two to try for every head.

  Raises:
    UserError: no such table, or the configuration has no SVMs, which the tables measure.
  """
  every = tables.tables()
  unknown = [name for name in chosen if name not in every]
  if unknown:
    raise UserError(f"--tables must be some of {', '.join(every)}, got {unknown[0]!r}")
  views: dict[str, list[str]] = {}
  for name in chosen:
    for row in every[name].rows:
      for cell in row.cells:
        views.setdefault(cell, [])
        if row.views not in views[cell]:
          views[cell].append(row.views)
  if not maker.cell(next(iter(views)), 0).config.evaluation.svm_solver:
    raise UserError("the tables measure SVMs: evaluation.svm_solver must not be empty")
  for name in list(views):
    if rates and (tuned := cells.SPECS[name].tuned_as):
      views.setdefault(tuned, [tables.SINGLE])
  return Plan(maker, root, views, range(seeds), rates)


def work(plan: Plan) -> list[tuple[Cell, str]]:
  """Every cell and its views, as far as the choice among the trials is known; trials that are not finished stand alone."""
  found: dict[tuple[str, str], tuple[Cell, str]] = {}
  for seed in plan.seeds:
    for name, views in plan.views.items():
      trials = plan.trials(name)
      todo = [(trial, tables.SINGLE) for trial in trials]
      if all(cells.is_measured(trial, plan.root, tables.SINGLE) for trial in trials):
        todo += [(plan.cell(name, seed), view) for view in views]
      found |= {(str(cell.folder(plan.root)), view): (cell, view) for cell, view in todo}
  return list(found.values())


def run(plan: Plan) -> None:
  """Does all that is left; cells that another process holds are waited for at the end."""
  while True:
    left = [(cell, view) for cell, view in work(plan) if not cells.is_measured(cell, plan.root, view)]
    if not left:
      return
    moved = False
    for cell, view in left:
      with cells.holding(cell, plan.root) as mine:
        if mine and not cells.is_measured(cell, plan.root, view):
          print(f"\n{cell.label}, {view}: the first of {len(left)} left")
          cells.measure(cell, plan.root, view)
        moved |= mine
      if mine:
        break  # what is left is counted anew, with the choices that this one allows
    if not moved:
      time.sleep(_WAIT)
