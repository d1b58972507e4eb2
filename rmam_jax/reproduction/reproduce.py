"""What `reproduce.py` calls: plan, work, write."""

import datetime
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import filelock

from rmam_jax.reproduction import cells, expected, measuring, plan, tables, writing
from rmam_jax.runtime.errors import UserError


def load_maker(config: str, changes: Mapping[str, Any]) -> cells.Maker:
  """Cells made by a configuration file.

  Args:
    config: PATH or PATH:VARIANT.
    changes: fields set for all cells.

  Raises:
    UserError: there is no such file.
    UserError: it offers no two scales.
  """
  path, _, variant = config.partition(":")
  if not pathlib.Path(path).is_file():
    raise UserError(f"there is no configuration {path}")
  spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if len(getattr(module, "SCALES", ())) != 2:
    raise UserError(f"{path} names no SCALES: tables need a configuration with two, as configs/digits.py has")
  return cells.Maker(module.get_config, module.SCALES, variant, changes)


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
  """Trains and measures what tables need and writes OUT/tables.md; see `reproduce.py`.

  Args:
    config: PATH or PATH:VARIANT of the configuration.
    changes: fields set for all cells.
    out: the folder of all results; None: runs/tables-DATA.
    tables_chosen: of `tables.TABLES`; None: all.
    seeds: how many.
    rates: learning rates to try for every head.
    dry_run: only print the plan.

  Raises:
    UserError: with what to do about it.
  """
  maker = load_maker(config, changes)
  data = maker.cell("rmam", 0).config.data.name
  root = out or pathlib.Path("runs", f"tables-{data}".replace("/", "-"))
  chosen = list(dict.fromkeys(tables_chosen or tables.TABLES))
  if root.exists() and not root.is_dir():
    raise UserError(f"--out={root} is a file: name a folder")
  todo = plan.make(maker, root, chosen, seeds, rates)
  if dry_run:
    print(expected.describe(todo))
    return
  plan.run(todo)
  command = writing.command_line(config, changes, chosen, seeds, rates)
  with filelock.FileLock(root / "tables.lock"):  # of two that share the work, one after the other times and writes
    writing.write(root, measuring.Measurements(todo, chosen), command=command, day=datetime.date.today())
  print(f"wrote {root / 'tables.md'}")
