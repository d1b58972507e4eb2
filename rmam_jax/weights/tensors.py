"""Named tensors: trees as flat names, their digest, and safetensors files by safetensors' own library."""

import contextlib
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError

DTYPES = {"F16": "float16", "F32": "float32", "F64": "float64"}  # that are read here, as safetensors names them


class Entry(NamedTuple):
  """A tensor that has not been read yet."""

  shape: tuple[int, ...]
  dtype: str  # numpy's name where it has one
  read: Callable[[], np.ndarray]


def flatten(tree: Any) -> dict[str, Any]:
  """A tree -> its leaves by path, e.g. "backbone/block1_conv1/kernel"."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(like: Any, tensors: Mapping[str, Any]) -> Any:
  """The inverse of `flatten` for a tree of the structure of `like`."""
  return jax.tree.unflatten(jax.tree.structure(like), [tensors[name] for name in flatten(like)])


def digest(tensors: Mapping[str, np.ndarray], about: Mapping[str, Any] | None = None) -> str:
  """SHA-256 over names, types, shapes and values, in the order of the names; and over what is said of them, as JSON."""
  total = hashlib.sha256()
  for name in sorted(tensors):
    array = np.ascontiguousarray(tensors[name])
    total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
    total.update(array.reshape(-1).view(np.uint8))
  if about is not None:
    total.update(json.dumps(about, sort_keys=True).encode())
  return total.hexdigest()


def check_shapes(entries: Mapping[str, Entry], wanted: Mapping[str, tuple[int, ...]], path: pathlib.Path) -> None:
  """Every tensor by name and shape, before any is read.

  Raises UserError: names the file and the first tensor that is missing, that nobody asked for, or of another shape.
  """
  for name, shape in wanted.items():
    if name not in entries:
      raise UserError(f"{path}: {name} {tuple(shape)} is missing")
    if entries[name].shape != tuple(shape):
      raise UserError(f"{path}: {name} has the shape {entries[name].shape}, not {tuple(shape)}")
  if extra := sorted(set(entries) - set(wanted)):
    raise UserError(f"{path}: {extra[0]} {entries[extra[0]].shape} is not expected there")


@contextlib.contextmanager
def reported_damage(path: pathlib.Path) -> Iterator[None]:
  """Within, whatever is wrong with a file becomes a `UserError` that names it; libraries raise errors of many kinds."""
  try:
    yield
  except UserError:
    raise
  except ValueError as error:
    raise UserError(f"{path}: {error}") from error
  except Exception as error:
    raise UserError(f"{path} is damaged or cut short ({error}): fetch it again") from error


def read(entries: Mapping[str, Entry], names: Iterable[str], path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of these names as finite float32. Raises UserError: names the file and the tensor."""
  found = {}
  for name in names:
    if entries[name].dtype not in DTYPES.values():
      raise UserError(f"{path}: {name} is of type {entries[name].dtype}, not one of {', '.join(DTYPES.values())}")
    with reported_damage(path):
      found[name] = np.asarray(entries[name].read(), np.float32)
    if not np.isfinite(found[name]).all():
      raise UserError(f"{path}: {name} holds values that are not finite")
  return found


@contextlib.contextmanager
def open_safetensors(path: pathlib.Path) -> Iterator[tuple[dict[str, Entry], dict[str, str]]]:
  """The tensors of a safetensors file, read on demand while it is open, and its metadata.

  Raises UserError: the file is none or is truncated (the library checks every offset against the file's size).
  """
  import safetensors

  with reported_damage(path):
    file = safetensors.safe_open(path, "np")
  with file:
    entries = {}
    for name in file.keys():  # noqa: SIM118 -- no mapping
      piece = file.get_slice(name)
      dtype, read_one = piece.get_dtype(), functools.partial(file.get_tensor, name)
      entries[name] = Entry(tuple(piece.get_shape()), DTYPES.get(dtype, dtype), read_one)
    yield entries, file.metadata() or {}


def write_safetensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
  """Tensors by name as safetensors; see `runtime.files.whole_file`."""
  import safetensors.numpy

  arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
  with files.whole_file(path) as draft:
    draft.write_bytes(safetensors.numpy.save(arrays, metadata))  # `save_file` makes one that its owner alone may read
