"""What `reproduce.py` calls: plan, work, write."""

import datetime
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import filelock

from rmam_jax.reproduction import measuring, plan, tables, writing
from rmam_jax.reproduction.cells import Maker
from rmam_jax.runtime.errors import UserError


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

  Raises:
    UserError: with what to do about it.
  """
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
    found = measuring.Measurements(todo, chosen)
    writing.write(root, found, command=" ".join(command), day=datetime.date.today())
  print(f"wrote {root / 'tables.md'}")
