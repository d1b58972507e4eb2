"""How long a plan will take: by the cells that are finished, or by counting."""

import functools
import json
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

from rmam_jax import heads
from rmam_jax.data.splits import Split, open_split
from rmam_jax.reproduction import cells
from rmam_jax.reproduction.plan import Plan, work
from rmam_jax.training import rpn as rpn_training
from rmam_jax.training import stages
from rmam_jax.training import step as step_lib

SHARE = 0.25  # of the rate of a matrix product, that a training reaches where none has been measured


@functools.cache
def _matmul_rate() -> float:
  """Floating-point operations a second of a matrix product on this machine's devices."""
  side = 2_048
  matrix = jnp.ones((side, side))
  product = jax.jit(lambda a: a @ a)
  product(matrix).block_until_ready()
  started, times = time.monotonic(), 0
  while time.monotonic() - started < 0.5:
    product(matrix).block_until_ready()
    times += 1
  return times * 2 * side**3 / (time.monotonic() - started) * jax.device_count()


def _operations(config: ml_collections.ConfigDict) -> float:
  """Of a whole training: its stages, twice if it has two phases, and its region proposal network."""
  data = config.data.copy_and_resolve_references()
  data.proposals = ""  # which may be long in the making
  train = open_split(data, data.train)
  total = _count_stages(config, train)
  if config.data.final_train:  # at most as long
    total += _count_stages(config, open_split(data, data.final_train))
  if heads.get(config.model.head).guide == heads.RPN:
    own = rpn_training.config_of(config)
    boxed = open_split(own.data, own.data.train)
    total += _count(own, stages.build_rpn(own, len(boxed)), len(boxed.class_names))
  return total


def _count_stages(config: ml_collections.ConfigDict, train: Split) -> float:
  classes = len(train.class_names)
  return sum(
    _count(config, stages.build(config, name, num_classes=classes, num_records=len(train)), classes)
    for name in stages.NAMES
  )


def _count(config: ml_collections.ConfigDict, stage: stages.Stage, classes: int) -> float:
  """By the compiler's count of one step, in which the looks, a loop, count once."""
  size, batch = config.data.crop_size, config.batch_size
  state = jax.eval_shape(lambda: step_lib.init_state(stage.model, stage.optimizer, jax.random.key(0), size))
  example = {
    "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
    "labels": jax.ShapeDtypeStruct((batch, classes), jnp.float32),
    "ignore": jax.ShapeDtypeStruct((batch, classes), bool),
    "mask": jax.ShapeDtypeStruct((batch,), jnp.float32),
  }
  if config.data.proposals:
    example["proposals"] = jax.ShapeDtypeStruct((batch, config.data.num_proposals, 4), jnp.float32)
  step = jax.jit(step_lib.make_train_step(stage.model, stage.optimizer, stage.objective))
  return step.lower(state, example).cost_analysis()["flops"] * stage.steps


def _seconds_known(plan: Plan) -> Mapping[str, float]:
  """Wall seconds of the specs that have a finished cell, of both its phases if it has two."""
  found = {}
  for cell, _ in work(plan):
    folder = cell.folder(plan.root)
    if (folder / "results.json").exists():
      paths = [path for path in (folder / "choose" / "results.json", folder / "results.json") if path.exists()]
      found[cell.name] = sum(json.loads(path.read_text())["wall_seconds"] for path in paths)
  return found


def describe(plan: Plan) -> str:
  """A line for each cell that is left with the time that it is expected to take, and their sum."""
  known = _seconds_known(plan)
  lines, total = [], 0.0
  pending: dict[str, tuple[cells.Cell, list[str]]] = {}
  for cell, views in work(plan):
    if not cells.is_measured(cell, plan.root, views):
      pending.setdefault(str(cell.folder(plan.root)), (cell, []))[1].append(views)
  for folder, (cell, views) in pending.items():
    if (cell.folder(plan.root) / "results.json").exists():
      seconds, source = 0.0, "trained already"
    elif cell.name in known:
      seconds, source = known[cell.name], "as another seed took"
    else:
      counted = _operations(cell.config)
      seconds, source = counted / (SHARE * _matmul_rate()), f"{counted / 1e12:,.1f} TFLOP counted"
    total += seconds
    lines.append(f"  {seconds / 60:7.1f} min  {cell.label}: {', '.join(views)} ({source}) {folder}")
  unchosen = "; trials come first, the other seeds follow from them" if plan.rates else ""
  lines.append(f"{len(pending)} cells are left, about {total / 60:,.0f} minutes{unchosen}")
  return "\n".join(lines)
