"""The folder of a run: whose configuration it belongs to, its metrics, its files."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from rmam_jax import config as config_lib
from rmam_jax import heads
from rmam_jax.data.splits import FIELDS
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError, os_errors
from rmam_jax.version import __version__

FORMAT = 8  # of a workdir; a new field of the configuration takes its default, and needs no other format
# Fields that change nothing that is learned: a run may go on with other values of them. `weights` says only where the
# weights lie; which they are, `weights_digest` says.
FREE_FIELDS = (
  *("data.root", "data.images", "data.corrupt", "data.threads", "data.workers", "remat", "weights"),
  *("writers", "validation_pictures"),
)
OTHER_FOLDER = "Name another folder with --workdir=DIR"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """A nested configuration's values by their dotted names."""
  flat = {}
  for name, value in config.items():
    flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
  return flat


def determining(fields: Mapping[str, Any], config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Of `config`'s values `fields` by their dotted names, those that can change what a run learns.

  Left out are `FREE_FIELDS`, `evaluation`, `accumulate` unless a head samples or parts of a batch are normalised each by
  itself, the sections of heads that the run does not train, so that a new head changes nothing for the others, and where
  the user's own data lie: their digests say what they are.
  """
  used = {config.model.head, *filter(None, [config.stage_one.head]), *config.controls}
  left_out = ("evaluation.", *heads.unused_sections(used))
  by_parts = not config.model.freeze_norm or any(heads.get(name).samples for name in used)
  free = FREE_FIELDS if by_parts else ("accumulate", *FREE_FIELDS)
  found = {name: value for name, value in fields.items() if name not in free and not name.startswith(left_out)}
  own = [f"data.{field}" for field in FIELDS] if config.data.name == "custom" else []
  return found | {name: bool(found[name]) for name in own}


def _usable(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
  return os_errors(f"cannot use {folder} as workdir", f"{OTHER_FOLDER}.")


def check(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Refuses a folder that belongs to another configuration, by a UserError with the fields that differ."""
  with _usable(folder):
    if not (folder / "config.json").exists():
      return
  theirs, mine = (determining(flatten(json.loads(each.to_json())), config) for each in (read_config(folder), config))
  differing = [
    f"{name} ({theirs.get(name, 'absent')} there, {mine.get(name, 'absent')} now)"
    for name in sorted(mine | theirs)
    if (name in mine, mine.get(name)) != (name in theirs, theirs.get(name))
  ]
  if differing:
    raise UserError(
      f"{folder} belongs to another configuration; it differs in {'; '.join(differing)}. {OTHER_FOLDER}, or go on with"
      " the same configuration."
    )


def claim(
  folder: pathlib.Path, config: ml_collections.ConfigDict, class_names: Sequence[str], records: Mapping[str, str]
) -> None:
  """Makes the folder and writes into it the configuration, the names of the classes and the digests of the data.

  `records` are the digests of the splits that the run trains on or chooses by, by their names. What is already there
  must agree, but for fields that change nothing learned, which are replaced. Raises a UserError as `check`, and for
  data that have changed since the run began.
  """
  check(folder, config)
  classes, data = folder / "classes.json", folder / "data.json"
  if classes.exists() and read_class_names(folder) != tuple(class_names):
    raise UserError(f"{classes} names other classes than {config.data.name} has now. {OTHER_FOLDER}.")
  theirs = files.read_json(data) if data.exists() else {}
  if changed := [name for name, digest in records.items() if theirs.get(name, digest) != digest]:
    raise UserError(
      f"{folder} began with other records of {' and '.join(changed)}: labels, images or boxes have changed since."
      f" {OTHER_FOLDER}, or bring the data back."
    )
  with _usable(folder):
    folder.mkdir(parents=True, exist_ok=True)
  files.write_json(folder / "config.json", {"format": FORMAT, **json.loads(config.to_json())})
  files.write_json(classes, list(class_names))
  if not data.exists():
    files.write_json(data, dict(records))


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Within, no other process trains in this folder; raises a UserError that names the one that does.

  The folder is made, and removed if nothing but the lock is in it afterwards. The operating system frees the lock when
  its holder ends, however it ends.
  """
  path = folder / "lock"
  with _usable(folder):
    folder.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
  with file:
    with os_errors(f"cannot lock {path}", "Name a folder on another disk with --workdir=DIR."):
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise UserError(
          f"{folder} is being trained by {holder}: wait for it, stop it, or name another folder with --workdir=DIR"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    try:
      yield
    finally:
      if folder.is_dir() and not any(other.name != path.name for other in folder.iterdir()):
        path.unlink()
        folder.rmdir()


def read_config(folder: pathlib.Path) -> ml_collections.ConfigDict:
  """The configuration that a workdir belongs to; fields that it did not know yet have their defaults.

  Raises a UserError if the folder holds none, or if it is not JSON, or of another format.
  """
  path = folder / "config.json"
  if not path.exists():
    raise UserError(f"{folder} holds no config.json: it is no workdir of train.py")
  content = files.read_json(path)
  if (found := content.pop("format", 1)) != FORMAT:
    raise UserError(
      f"{path} is of format {found}, of another version of rmam_jax, and this one, {__version__}, reads format"
      f" {FORMAT}: train again into another folder, or use the version that made it"
    )
  return config_lib.from_fields(content, str(path))


def read_class_names(folder: pathlib.Path) -> tuple[str, ...]:
  """The classes of a workdir, in the order of its scores; raises UserError without a list of them."""
  path = folder / "classes.json"
  if not path.exists():
    raise UserError(f"{folder} holds no classes.json: the command that trained it, once more, writes it")
  return tuple(files.read_json(path))


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The JSON lines of a log, if it is there, but for a last one that was cut short; UserError if it is damaged."""
  whole, _, _ = (path.read_text() if path.exists() else "").rpartition("\n")
  try:
    lines = [json.loads(line) for line in whole.splitlines()]
    if any(field not in line for line in lines for field in ("stage", "step")):
      raise KeyError("stage or step")
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(f"{path} is damaged ({error!r}): mend or remove the line, or remove the file") from error
  return lines


def write_lines(path: pathlib.Path, lines: Iterable[Mapping[str, Any]]) -> None:
  """A log as JSON lines."""
  files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def keep_until(path: pathlib.Path, stage: str, step: int) -> None:
  """Drops a stage's lines after a step from a log, if it is there: those of a run that goes on from this step."""
  if path.exists():
    write_lines(path, [line for line in read_lines(path) if line["stage"] != stage or line["step"] <= step])
