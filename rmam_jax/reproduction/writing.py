"""tables.md and its pictures, from measurements."""

import datetime
import pathlib
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import rmam_jax
from rmam_jax import heads
from rmam_jax.evaluation.bootstrap import Interval
from rmam_jax.reproduction import looks, tables
from rmam_jax.reproduction.measuring import Measurements
from rmam_jax.reproduction.tables import Row, Table

_LOCALIZATION = ("r_precision", "coverage", "pointing", "iou_30", "iou_50", "redundancy", "astray")


def command_line(
  config: str, changes: Mapping[str, Any], chosen: Sequence[str], seeds: int, rates: Sequence[float]
) -> str:
  """The command that makes the same tables."""
  parts = [f"python reproduce.py --config={config} --tables={','.join(chosen)} --seeds={seeds}"]
  parts += [f"--rates={','.join(f'{rate:g}' for rate in rates)}"] if rates else []
  return " ".join([*parts, *(shlex.quote(f"--config.{field}={value}") for field, value in changes.items())])


def _percent(values: Sequence[float | None]) -> str:
  """The mean, and over several seeds the standard deviation, in %."""
  if any(value is None or np.isnan(value) for value in values):
    return "-"
  mean = f"{100 * np.mean(values):.1f}"
  return f"{mean} ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  return [f"| {' | '.join(header)} |", "|-" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _paper_table(found: Measurements, number: str, table: Table) -> list[str]:
  measured = {row.label: [found.figures(row, seed) for seed in found.plan.seeds] for row in table.rows}
  first = measured[table.rows[0].label][0]
  figures = [name for figure in table.figures for name in (first["AP"] if figure == "AP" else [figure])]
  same = tables.PAPER_DATA[table.data] == found.data

  rows = []
  for row in table.rows:
    ours = [[{**each, **each["AP"]}[figure] for each in measured[row.label]] for figure in figures]
    rows.append([row.label, "ours", *map(_percent, ours)])
    printed = [row.paper.get(figure) for figure in figures]
    if any(each is not None for each in printed):
      rows.append(["", f"paper, {table.data}", *("-" if each is None else f"{each:.1f}" for each in printed)])
    if same:
      differences = [
        "-" if theirs is None else f"{100 * np.mean(mine) - theirs:+.1f}"
        for mine, theirs in zip(ours, printed, strict=True)
      ]
      rows.append(["", "difference", *differences])
  return [f"### Table {number}: {table.title}", "", *_markdown(["", "", *figures], rows), ""]


def _head(found: Measurements, row: Row) -> list[str]:
  (cell,) = row.cells
  where = [_percent(found.results(row, name)) for name in _LOCALIZATION]
  return [f"`{cell}`", *(_percent(found.results(row, name)) for name in ("mAP", "svm_mAP")), *where]


def _rate(found: Measurements, row: Row) -> str:
  return f"{found.plan.cell(row.cells[0], 0).config.stage_two.learning_rate:g}"


def _bounds(found: Measurements, row: Row, label: str, prefix: str) -> list[str]:
  """What the regions of a row would reach at random places, or a grid."""
  return [label, "-", "-", *(_percent(found.results(row, f"{prefix}_{name}")) for name in _LOCALIZATION)]


def _controls(found: Measurements, table: Table) -> list[str]:
  (saliency,) = [row for row in table.rows if row.cells == ("saliency",)]
  rows = [[*_head(found, row), _rate(found, row)] for row in table.rows]
  rows.append([*_bounds(found, saliency, "chance: `saliency`'s regions anywhere", "chance"), ""])
  rows.append([*_bounds(found, saliency, "a grid with the best choice among its regions", "fixed_grid"), ""])
  return [
    "### What the paper lacks",
    "",
    "Every head on the same backbone and batches, for as many steps, with the losses and stage one of its configuration;"
    " the centre view; the network's own scores and the SVMs'.",
    "",
    *_markdown(["head", "mAP", "mAP, SVMs", *_LOCALIZATION, "rate"], rows),
    "",
  ]


def _systems(found: Measurements, table: Table) -> list[str]:
  rows = []
  for row in table.rows:
    milliseconds = found.milliseconds(row)
    rows.append([*_head(found, row), f"{np.mean(milliseconds):.2f}", _rate(found, row)])
    if heads.get(row.label).looks:
      rows.append([*_bounds(found, row, "its regions anywhere", "chance"), "", ""])
  return [
    "### The sister systems",
    "",
    "RMAM by two rules, `saliency` and the paper's `recurrent`, the reconstructed sister systems and two controls"
    " (docs/systems.md), with the same backbone, batches and number of steps, each with the losses and stage one of its"
    " configuration. ms: of the network alone for one image, the centre view, in batches, on the machine above.",
    "",
    *_markdown(["head", "mAP", "mAP, SVMs", *_LOCALIZATION, "ms", "rate"], rows),
    "",
  ]


_OURS = {"controls": _controls, "systems": _systems}


def _trials(found: Measurements) -> list[str]:
  rows = [[f"`{name}`", *(f"{100 * each:.1f}" for each in values)] for name, values in found.trials().items()]
  if not rows:
    return []
  header = ["head", *(f"rate {rate:g}" for rate in found.plan.rates)]
  return [
    "### Trials",
    "",
    "Validation mAP of each learning rate of stage two, seed 0; the highest was taken.",
    "",
    *_markdown(header, rows),
    "",
  ]


def _points(interval: Interval) -> str:
  return f"{100 * interval.difference:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}] {interval.verdict}"


def _orderings(found: Measurements) -> list[str]:
  rows = [
    [ordering.claim, *(_points(found.interval(ordering, kind)) for kind in ("svm", "network"))]
    for ordering in tables.orderings(found.chosen)
  ]
  if not rows:
    return []
  return [
    "### Which orderings hold",
    "",
    "Differences in mAP in points, the mean over the seeds, with the 95 % interval of a paired bootstrap over the test"
    " images (2,000 resamples; all-point AP): `holds` above zero, `reversed` below, else `open`.",
    "",
    *_markdown(["", "SVMs", "network"], rows),
    "",
  ]


def _draw_looks(path: pathlib.Path, by_name: Mapping[str, list[looks.ByLooks]], trained: int) -> None:
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
  for field, axis in zip(looks.ByLooks._fields, axes, strict=True):
    for name, seeds in by_name.items():
      values = 100 * np.array([getattr(seed, field) for seed in seeds])
      numbers = np.arange(1, values.shape[1] + 1)
      (line,) = axis.plot(numbers, values.mean(axis=0), marker="o", label=name)
      axis.fill_between(numbers, values.min(axis=0), values.max(axis=0), alpha=0.2, color=line.get_color())
    axis.axvline(trained, color="grey", linestyle=":")
    axis.set(xlabel=f"looks K (trained with {trained})", ylabel=f"{field}, %", xticks=numbers)
  axes[0].legend()
  draft = path.with_name("draft.png")
  figure.savefig(draft, dpi=110)
  plt.close(figure)
  draft.replace(path)


def write(root: pathlib.Path, found: Measurements, *, command: str, day: datetime.date) -> None:
  """ROOT/tables.md and ROOT/looks.png.

  Args:
    root: the folder of all results.
    found: what was measured.
    command: that makes the same tables.
    day: written beside it.
  """
  every = tables.tables(found.data)
  lines = [
    f"# Tables on {found.data}",
    "",
    f"    {command}",
    "",
    f"{day.isoformat()}, rmam_jax {rmam_jax.__version__}, jax {jax.__version__}, {jax.device_count()}"
    f" {jax.devices()[0].device_kind} device(s), {platform.processor() or platform.machine()},"
    f" Python {platform.python_version()}; {len(found.plan.seeds)} seed(s), mean ± standard deviation, in %.",
    "",
    *found.protocol(),
    "",
  ]
  for number in found.chosen:
    table = every[number]
    if number in _OURS:
      lines += _OURS[number](found, table)
    else:
      lines += _paper_table(found, number, table)
  lines += _orderings(found) + _trials(found)
  if "controls" in found.chosen and found.has_boxes():
    by_name = {name: found.looks(name) for name in ("saliency", "recurrent")}
    _draw_looks(root / "looks.png", by_name, found.num_regions)
    lines += [
      "### More looks",
      "",
      "![mAP and coverage against the number of looks](looks.png)",
      "",
      "The first K looks of the trained recognisers at the test images, the network's own scores; the band is the seeds'"
      " range.",
      "",
    ]
  draft = root / "tables.draft"
  draft.write_text("\n".join(lines))
  draft.replace(root / "tables.md")
