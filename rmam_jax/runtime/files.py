"""Files that are whole or not there, and errors that name them."""

import contextlib
import io
import json
import os
import pathlib
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from rmam_jax.runtime.errors import UserError, os_errors

GO_ON = "Nothing that was there is lost: free or open the folder and run the same command again."


def named(path: str | os.PathLike) -> pathlib.Path:
  """A path as a user gives it: `~` is the home; `~draft.jpg`, of no user's, is a file's name."""
  return pathlib.Path(os.path.expanduser(path))


def user_cache() -> pathlib.Path:
  """$XDG_CACHE_HOME, or ~/.cache."""
  return named(os.environ.get("XDG_CACHE_HOME") or "~/.cache")


def cache_folder() -> pathlib.Path:
  """$XDG_CACHE_HOME/rmam_jax, or ~/.cache/rmam_jax."""
  return user_cache() / "rmam_jax"


def below(folder: pathlib.Path, on_error: Callable[[OSError], None] | None = None) -> list[pathlib.Path]:
  """All files below a folder, sorted; folders behind links as well, each once. `on_error` is told of unreadable folders."""
  found, seen = [], set()
  for root, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
    if (real := os.path.realpath(root)) in seen:
      folders.clear()
      continue
    seen.add(real)
    folders.sort()
    found += [pathlib.Path(root, name) for name in names]
  return sorted(found)


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A draft beside `path` to write into; at the end it takes its place, so that no reader ever sees half of it.

  Two writers have a draft each. Where one fails nothing is left of its own.
  Raises UserError: it cannot be written; names the file, which a full disk's error does not.
  """
  draft = path.with_name(f".{uuid.uuid4().hex}.draft")
  with os_errors(f"cannot write {path}", GO_ON):
    try:
      yield draft
      draft.replace(path)
    finally:
      draft.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """See `whole_file`."""
  with whole_file(path) as draft:
    draft.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, value: Any) -> None:
  """A value as JSON; see `whole_file`."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
  """A JSON file's value; raises UserError, which names the file, where it is none or cannot be read."""
  try:
    with os_errors(f"cannot read {path}"):
      return json.loads(path.read_text("utf-8"))
  except UserError:
    raise
  except ValueError as error:
    raise UserError(f"{path} is not JSON ({error})") from error


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
  """Arrays by name as .npz, compressed or not; see `whole_file`."""
  with whole_file(path) as draft, draft.open("wb") as file:
    (np.savez_compressed if compressed else np.savez)(file, **arrays)


def read_npz(path: pathlib.Path, remedy: str) -> dict[str, np.ndarray]:
  """The arrays of an .npz; no pickle is read. Raises UserError, with the remedy, where the file is damaged.

  Each is read whole before numpy sees it, since a checksum is compared at the end alone: of a shape that a flipped bit made
  smaller, `np.load` never comes there.
  """
  with path.open("rb") as file:
    try:
      with zipfile.ZipFile(file) as archive:
        if any(member.comment for member in archive.infolist()):  # which would hide the member behind it
          raise zipfile.BadZipFile("a member has a comment")
        return {
          name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
          for name in archive.namelist()
        }
    except Exception as error:  # zipfile, zlib, numpy and what parses its headers have one each
      raise UserError(f"{path} is damaged ({error}): {remedy}") from error
