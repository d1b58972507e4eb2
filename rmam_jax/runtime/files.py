"""Files that are whole or not there, and errors that name them."""

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmam_jax.runtime.errors import UserError

GO_ON = "What is there stays: free or open the folder and run the same command again."


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes beside the file and renames, so that no reader ever sees half of it.

  Raises:
    UserError: names the file.
  """
  draft = path.with_name(path.name + ".draft")
  try:
    draft.write_text(text)
    draft.replace(path)
  except OSError as error:  # a full disk's names no file
    raise UserError(f"cannot write {path}: {error.strerror or error}. {GO_ON}") from error


def write_json(path: pathlib.Path, value: Any) -> None:
  """A value as JSON; see `write_text`."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
  """A JSON file's value.

  Raises:
    UserError: names the file.
  """
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path} is not JSON ({error})") from error


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
  """Writes beside the file and renames, so that no reader ever sees half of it.

  Args:
    path: of the .npz.
    arrays: by name.
    compressed: smaller and slower.

  Raises:
    UserError: names the file.
  """
  draft = path.with_name(path.name + ".draft")
  try:
    with draft.open("wb") as file:
      (np.savez_compressed if compressed else np.savez)(file, **arrays)
    draft.replace(path)
  except OSError as error:  # a full disk's names no file
    raise UserError(f"cannot write {path}: {error.strerror or error}. {GO_ON}") from error


def read_npz(path: pathlib.Path, remedy: str) -> dict[str, np.ndarray]:
  """The arrays of an .npz; no pickle is read.

  Args:
    path: of the file.
    remedy: what to do where it is damaged.

  Raises:
    UserError: it is damaged; names the file.
    UserError: it is not there.
  """
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
      return dict(stored)
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path} is damaged ({error}): {remedy}") from error
