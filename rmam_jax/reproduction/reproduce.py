"""What `reproduce.py` calls: plan, work, and write tables.md and its picture from the measurements."""

import datetime
import pathlib
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import filelock
import jax
import numpy as np

import rmam_jax
from rmam_jax import heads
from rmam_jax.data import proposals
from rmam_jax.evaluation import metrics, report
from rmam_jax.reproduction import plan, tables
from rmam_jax.reproduction.cells import Maker
from rmam_jax.reproduction.measuring import Measurements, measure_by_regions, milliseconds_per_image
from rmam_jax.reproduction.tables import Row, Table
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError


def _percent(values: Sequence[float | None]) -> str:
  """The mean, and over several seeds the standard deviation, in %."""
  if any(value is None or np.isnan(value) for value in values):
    return "-"
  mean = f"{100 * np.mean(values):.1f}"
  return f"{mean} ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _section(title: str, text: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """A heading, a paragraph if there is one, and a table, as lines of Markdown."""
  lines = [f"| {' | '.join(header)} |", "|-" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
  return [f"### {title}\n", *([f"{text}\n"] if text else []), *lines, ""]


def _paper_table(found: Measurements, number: str, table: Table) -> list[str]:
  measured = {row.label: [found.figures(row, seed) for seed in found.plan.seeds] for row in table.rows}
  first = measured[table.rows[0].label][0]
  figures = [name for figure in table.figures for name in (first["AP"] if figure == "AP" else [figure])]
  rows = []
  for row in table.rows:
    ours = [[{**each, **each["AP"]}[figure] for each in measured[row.label]] for figure in figures]
    rows.append([row.label, "ours", *map(_percent, ours)])
    printed = [row.paper.get(figure) for figure in figures]
    if any(each is not None for each in printed):
      rows.append(["", f"paper, {table.data}", *("-" if each is None else f"{each:.1f}" for each in printed)])
    if tables.PAPER_DATA[table.data] == found.config["data"]["name"]:
      pairs = zip(ours, printed, strict=True)
      differences = ("-" if theirs is None else f"{100 * np.mean(mine) - theirs:+.1f}" for mine, theirs in pairs)
      rows.append(["", "difference", *differences])
  by = {found.plan.cell(name, 0).config.data.proposals for row in table.rows for name in row.cells} - {""}
  text = "".join(f"Object proposals: {proposals.KINDS[kind]}." for kind in by)
  return _section(f"Table {number}: {table.title}", text, ["", "", *figures], rows)


def _mean_columns(found: Measurements) -> list[str]:
  """The titles of the columns of mean average precision."""
  groups = [*(f"mAP {title}" for title in found.plan.maker.class_groups), "mAP"]
  return [*groups, *(f"{title}, SVMs" for title in groups)]


def _head(found: Measurements, row: Row, *more: str) -> list[str]:
  groups = found.plan.maker.class_groups.values()
  precisions = []
  for prefix in ("", "svm_"):
    precisions += [_percent(found.group_map(row, f"{prefix}AP", classes)) for classes in groups]
    precisions.append(_percent(found.results(row, f"{prefix}mAP")))
  figures = [_percent(found.results(row, name)) for name in metrics.REGION_METRICS]
  return [
    f"`{row.label}`",
    *precisions,
    *figures,
    *more,
    f"{found.plan.cell(row.label, 0).config.stage_two.learning_rate:g}",
  ]


def _bounds(found: Measurements, row: Row, label: str, prefix: str) -> list[str]:
  """What regions that know nothing of the image would reach."""
  nothing = ["-"] * 2 * (1 + len(found.plan.maker.class_groups))
  return [label, *nothing, *(_percent(found.results(row, f"{prefix}_{name}")) for name in metrics.REGION_METRICS)]


def _controls(found: Measurements, table: Table) -> list[str]:
  first = table.rows[0]
  rows = [
    *(_head(found, row) for row in table.rows),
    *([*_bounds(found, first, text, prefix.removesuffix("_")), ""] for prefix, text in report.BASELINES.items()),
  ]
  text = (
    "Every head on the same backbone and batches, for as many steps, with the losses and stage one of its"
    " configuration; the centre view; the network's own scores and the SVMs'."
  )
  return _section("What the paper lacks", text, ["head", *_mean_columns(found), *metrics.REGION_METRICS, "rate"], rows)


def _systems(found: Measurements, table: Table) -> list[str]:
  rows = []
  for row in table.rows:
    milliseconds = f"{np.mean(found.measured_once(row.label, milliseconds_per_image)):.2f}"
    rows.append(_head(found, row, milliseconds))
    if heads.get(row.label).looks:
      rows.append([*_bounds(found, row, "its regions anywhere", "chance"), "", ""])
  text = (
    "RMAM by two rules, `saliency` and the paper's `recurrent`, the reconstructed sister systems and two controls"
    " (docs/systems.md), with the same backbone, batches and number of steps, each with the losses and stage one of its"
    " configuration. ms: of the network alone for one image, the centre view, in batches, on the machine above."
  )
  return _section(
    "The sister systems", text, ["head", *_mean_columns(found), *metrics.REGION_METRICS, "ms", "rate"], rows
  )


def _trials(found: Measurements) -> list[str]:
  rows = [[f"`{name}`", *(f"{100 * each:.1f}" for each in values)] for name, values in found.trials().items()]
  text = "Validation mAP of each learning rate of stage two, seed 0; the highest was taken."
  return _section("Trials", text, ["head", *(f"rate {rate:g}" for rate in found.plan.rates)], rows) if rows else []


def _orderings(found: Measurements) -> list[str]:
  rows = []
  for ordering in tables.orderings(found.chosen, found.plan.maker.controls):
    intervals = [found.interval(ordering, kind) for kind in ("svm", "network")]
    point = "{:+.1f} [{:+.1f}, {:+.1f}] {}"
    rows.append([ordering.claim, *(point.format(*(100 * np.array(each)), each.verdict) for each in intervals)])
  text = (
    "Differences in mAP in points, the mean over the seeds, with the 95 % interval of a paired bootstrap over the test"
    " images (2,000 resamples; all-point AP): `holds` above zero, `reversed` below, else `open`."
  )
  return _section("Which orderings hold", text, ["", "SVMs", "network"], rows) if rows else []


def _draw_by_regions(path: pathlib.Path, by_name: Mapping[str, list[dict[str, list[float]]]], trained: int) -> None:
  """The mean over the seeds, and their range, of mAP and coverage of 1, 2, ... regions."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.4), layout="constrained")
  axes = figure.subplots(1, 2)
  for field, axis in zip(("mAP", "coverage"), axes, strict=True):
    for name, seeds in by_name.items():
      values = 100 * np.array([seed[field] for seed in seeds])
      numbers = np.arange(1, values.shape[1] + 1)
      (line,) = axis.plot(numbers, values.mean(axis=0), marker="o", label=name)
      axis.fill_between(numbers, values.min(axis=0), values.max(axis=0), alpha=0.2, color=line.get_color())
    axis.axvline(trained, color="grey", linestyle=":")
    axis.set(xlabel=f"looks K (trained with {trained})", ylabel=f"{field}, %", xticks=numbers)
  axes[0].legend()
  with files.whole_file(path) as draft:
    figure.savefig(draft, dpi=110, format="png")


def _write(root: pathlib.Path, found: Measurements, command: str) -> None:
  """Writes ROOT/tables.md and ROOT/looks.png; `command`, which makes the same tables, stands in it."""
  config, section = found.config, found.config["evaluation"]
  data = config["data"]["name"]
  every = tables.tables(data, found.plan.maker.controls)
  lines = [
    f"# Tables on {data}\n\n    {command}\n",
    f"{datetime.date.today().isoformat()}, rmam_jax {rmam_jax.__version__}, jax {jax.__version__}, {jax.device_count()}"
    f" {jax.devices()[0].device_kind} device(s), {platform.processor() or platform.machine()},"
    f" Python {platform.python_version()}; {len(found.plan.seeds)} seed(s), mean ± standard deviation, in %.\n",
    f"{found.first['test_images']} test images; AP is `{section['ap_method']}`; CP ... OF1 by top 3 labels of"
    f' positive margin. Tables 1 to 6 measure one-vs-rest SVMs on the features `{section["feature"]}`; "RMAM" there has'
    " the paper's rule (Eq. 5) and losses (Eq. 7-14) on this data set's backbone and stage one. Best epoch by"
    f" validation loss, {config['stage_one']['epochs']} and {config['stage_two']['epochs']} epochs of the two stages, batch"
    f" {config['batch_size']}, nothing chosen on the test images.\n",
  ]
  for number in found.chosen:
    table = every[number]
    ours = {"controls": _controls, "systems": _systems}.get(number)
    lines += ours(found, table) if ours else _paper_table(found, number, table)
  lines += _orderings(found) + _trials(found)
  looking = [name for name in tables.BY_REGIONS if name in found.plan.maker.controls]
  boxes = "controls" in found.chosen and found.results(every["controls"].rows[0], "coverage")[0] is not None
  if looking and boxes:
    by_name = {name: found.measured_once(name, measure_by_regions) for name in looking}
    _draw_by_regions(root / "looks.png", by_name, config["model"]["num_regions"])
    lines += [
      "### More looks\n",
      "![mAP and coverage against the number of looks](looks.png)\n",
      "The first K looks of the trained recognizers at the test images, the network's own scores; the band is the"
      " seeds' range.\n",
    ]
  files.write_text(root / "tables.md", "\n".join(lines))


def reproduce(
  config: str,
  changes: Mapping[str, Any],
  *,
  out: pathlib.Path | None,
  tables_chosen: Sequence[str] | None,
  seeds: int,
  rates: Sequence[float],
  dry_run: bool,
) -> None:
  """Trains and measures what tables need and writes OUT/tables.md; see `rmam_jax.commands.reproduce`."""
  maker = Maker(config, changes)
  data = maker.cell("rmam", 0).config.data.name
  root = out or pathlib.Path("runs", f"tables-{data}".replace("/", "-"))
  chosen = list(dict.fromkeys(tables_chosen or tables.TABLES))
  if root.exists() and not root.is_dir():
    raise UserError(f"--out={root} is a file: name a folder")
  todo = plan.make(maker, root, chosen, seeds, rates)
  if dry_run:
    print(plan.describe(todo))
    return
  plan.run(todo)
  command = [f"python reproduce.py --config={config} --tables={','.join(chosen)} --seeds={seeds}"]
  command += [f"--rates={','.join(f'{rate:g}' for rate in rates)}"] if rates else []
  command += [shlex.quote(f"--config.{field}={value}") for field, value in changes.items()]
  with filelock.FileLock(root / "tables.lock"):  # of two that share the work, one after the other times and writes
    _write(root, Measurements(todo, chosen), " ".join(command))
  print(f"wrote {root / 'tables.md'}")
