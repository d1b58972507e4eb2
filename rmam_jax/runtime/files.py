"""Files that are whole or not there, and errors that name them."""

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

GO_ON = "What is there stays: free or open the folder and run the same command again."


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes beside the file and renames, so that no reader ever sees half of it.

  Raises:
    OSError: names the file.
  """
  draft = path.with_name(path.name + ".draft")
  try:
    draft.write_text(text)
    draft.replace(path)
  except OSError as error:  # a full disk's names no file
    raise OSError(f"cannot write {path}: {error.strerror or error}. {GO_ON}") from error


def write_json(path: pathlib.Path, value: Any) -> None:
  """A value as JSON; see `write_text`."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
  """A JSON file's value.

  Raises:
    ValueError: names the file.
  """
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is not JSON ({error})") from error


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
  """Writes beside the file and renames, so that no reader ever sees half of it.

  Args:
    path: of the .npz.
    arrays: by name.
    compressed: smaller and slower.

  Raises:
    OSError: names the file.
  """
  draft = path.with_name(path.name + ".draft")
  try:
    with draft.open("wb") as file:
      (np.savez_compressed if compressed else np.savez)(file, **arrays)
    draft.replace(path)
  except OSError as error:  # a full disk's names no file
    raise OSError(f"cannot write {path}: {error.strerror or error}. {GO_ON}") from error


def read_npz(path: pathlib.Path, remedy: str) -> dict[str, np.ndarray]:
  """The arrays of an .npz; no pickle is read.

  Args:
    path: of the file.
    remedy: what to do where it is damaged.

  Raises:
    ValueError: it is damaged; names the file.
    FileNotFoundError: it is not there.
  """
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
      return dict(stored)
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
