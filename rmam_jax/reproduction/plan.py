"""What tables need, in order: what of it is measured, what is left and how long that will take."""

import functools
import time
import timeit
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from rmam_jax import heads
from rmam_jax.data.splits import open_split
from rmam_jax.reproduction import cells, tables
from rmam_jax.reproduction.cells import Cell, Maker
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import rpn as rpn_training
from rmam_jax.training import stages
from rmam_jax.training import step as step_lib

_WAIT = 5.0  # seconds until a cell that another process holds is tried again
_SHARE = 0.25  # of the speed of a matrix product, which a training is expected to reach


class Plan(NamedTuple):
  """What is to be done: trials first, which choose each spec's rate, then every seed."""

  maker: Maker
  root: Path
  views: Mapping[str, Collection[str]]  # of each spec
  seeds: Sequence[int]
  rates: Sequence[float]  # tried on the first seed; none: the configuration's

  def trials(self, name: str) -> list[Cell]:
    """The cells among which a spec's learning rate is chosen."""
    tuned = tables.SPECS[name].tuned_as or name
    return [self.maker.cell(tuned, self.seeds[0], rate) for rate in self.rates]

  def cell(self, name: str, seed: int) -> Cell:
    """A spec's cell at the rate of the trial of highest validation mAP, the first of equals."""
    best = max(self.trials(name), key=lambda cell: cells.validation_map(cell, self.root), default=None)
    return self.maker.cell(name, seed, best and best.config.stage_two.learning_rate)


def make(maker: Maker, root: Path, chosen: Sequence[str], seeds: int, rates: Sequence[float]) -> Plan:
  """The plan for the chosen of `tables.TABLES`, with the seeds 0, 1, ... and rates of stage two to try for every head.

  UserError: no such table, or the configuration has no SVMs, which the tables measure.
  """
  every = tables.tables(controls=maker.controls)
  if unknown := [name for name in chosen if name not in every]:
    raise UserError(f"--tables must be some of {', '.join(every)}, got {unknown[0]!r}")
  views: dict[str, dict[str, None]] = {}  # the inner one an ordered set
  for row in (row for name in chosen for row in every[name].rows):
    for name in row.cells:
      views.setdefault(name, {})[row.views] = None
  if not maker.cell(next(iter(views)), 0).config.evaluation.svm_solver:
    raise UserError("the tables measure SVMs: evaluation.svm_solver must not be empty")
  for name in list(views):
    if rates and (tuned := tables.SPECS[name].tuned_as):
      views.setdefault(tuned, {tables.SINGLE: None})
  return Plan(maker, root, views, range(seeds), rates)


def work(plan: Plan) -> list[tuple[Cell, str]]:
  """Every cell with the views it is measured from. Of a spec whose trials are not finished, the trials alone."""
  found: dict[tuple[str, str], tuple[Cell, str]] = {}
  for seed in plan.seeds:
    for name, views in plan.views.items():
      trials = plan.trials(name)
      todo = [(trial, tables.SINGLE) for trial in trials]
      if all(cells.is_measured(trial, plan.root, tables.SINGLE) for trial in trials):
        todo += [(plan.cell(name, seed), view) for view in views]
      found |= {(str(cell.folder(plan.root)), view): (cell, view) for cell, view in todo}
  return list(found.values())


def left(plan: Plan) -> list[tuple[Cell, str]]:
  """The part of `work` that is not measured."""
  return [(cell, view) for cell, view in work(plan) if not cells.is_measured(cell, plan.root, view)]


def run(plan: Plan) -> None:
  """Does all that is left; waits at the end for the cells that another process holds."""
  while todo := left(plan):
    for cell, view in todo:
      with cells.holding(cell, plan.root) as mine:
        if mine and not cells.is_measured(cell, plan.root, view):
          print(f"\n{cell.label}, {view}: the first of {len(todo)} left")
          cells.measure(cell, plan.root, view)
      if mine:
        break  # what is left is listed anew, with the rates that this one allows to choose
    else:
      time.sleep(_WAIT)


def describe(plan: Plan) -> str:
  """A line for each cell that is left with the time that it is expected to take, and their sum."""
  pending: dict[Path, tuple[Cell, list[str]]] = {}
  for cell, view in left(plan):
    pending.setdefault(cell.folder(plan.root), (cell, []))[1].append(view)
  known = {}  # wall seconds of the specs that have a finished cell, of both its phases if it has two
  for cell, _ in work(plan):
    paths = [cell.folder(plan.root) / phase / "results.json" for phase in ("", "choose")]
    if paths[0].exists():
      known[cell.name] = sum(files.read_json(path)["wall_seconds"] for path in paths if path.exists())
  lines, total = [], 0.0
  for folder, (cell, views) in pending.items():
    if (folder / "results.json").exists():
      seconds, source = 0.0, "trained already"
    elif cell.name in known:
      seconds, source = known[cell.name], "as another seed took"
    else:
      operations = count_operations(cell.config)
      seconds, source = operations / (_SHARE * _matmul_speed()), f"{operations / 1e12:,.3g} TFLOP counted"
    total += seconds
    lines.append(f"  {seconds / 60:7.1f} min  {cell.label}: {', '.join(views)} ({source}) {folder}")
  unchosen = "; trials come first, the other seeds follow from them" if plan.rates else ""
  return "\n".join([*lines, f"{len(pending)} cells are left, about {total / 60:,.0f} minutes{unchosen}"])


@functools.cache
def _matmul_speed() -> float:
  """Floating-point operations a second in a matrix product on this machine's devices."""
  side, times = 2_048, 5
  matrix = jnp.ones((side, side))
  product = jax.jit(lambda a: a @ a)
  product(matrix).block_until_ready()
  seconds = timeit.timeit(lambda: product(matrix).block_until_ready(), number=times)
  return times * 2 * side**3 / seconds * jax.device_count()


def count_operations(config: ml_collections.ConfigDict) -> float:
  """Of a whole training: its stages, twice if it has two phases, and its region proposal network.

  Not those of stored feature maps, which are computed once for many trainings.
  """
  data, total = cells.without_proposals(config.data), 0.0
  for split in filter(None, (data.train, data.final_train)):
    train = open_split(data, split)
    for stage in stages.build_all(config, train):
      total += _count(config, stage, len(train.class_names))
  if heads.get(config.model.head).guide == heads.RPN:
    own = rpn_training.config_of(config)
    boxed = open_split(own.data, own.data.train)
    total += _count(own, stages.build_rpn(own, len(boxed)), len(boxed.class_names))
  return total


def _count(config: ml_collections.ConfigDict, stage: stages.Stage, classes: int) -> float:
  """By the compiler's count of one step, which counts the body of a loop, and so the regions, once."""
  size, batch = config.data.crop_size, config.batch_size
  state = jax.eval_shape(lambda: step_lib.init_state(stage.model, stage.optimizer, jax.random.key(0), size))
  array = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  images = array((batch, size, size, 3), dtype=jnp.uint8)
  if stage.frozen:
    feature_map = functools.partial(stage.model.apply, method="feature_map")
    images = jax.eval_shape(feature_map, {"params": state.params}, images)
  example = {
    "feature_map" if stage.frozen else "image": images,
    "labels": array((batch, classes)),
    "ignore": array((batch, classes), dtype=bool),
    "mask": array((batch,)),
  }
  if config.data.proposals:
    example["proposals"] = array((batch, config.data.num_proposals, 4))
  step = jax.jit(step_lib.make_train_step(stage.model, stage.optimizer, stage.objective))
  return step.lower(state, example).cost_analysis()["flops"] * stage.steps
