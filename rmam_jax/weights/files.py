"""One file of weights, whatever its format, in the inner form; converted ones are kept in the user's cache."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from rmam_jax import backbones
from rmam_jax.backbones.spec import Layout
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError
from rmam_jax.weights import h5, pth, tensors
from rmam_jax.weights.tensors import Entry

FORMAT = "rmam_jax weights 1"  # of the safetensors files that are written here
_COUNTER = ".num_batches_tracked"  # of torch's batch normalisation: only some files have it, and nothing needs it


class Weights(NamedTuple):
  """A backbone's first parameters in the inner form."""

  title: str  # where they come from
  # block1_conv1/kernel (HWIO, for red green blue), block1_conv1/bias, ...; fc6/kernel [h*w*C, out] and fc6/bias where the
  # set has them. All float32.
  tensors: dict[str, np.ndarray]
  pixel_mean: tuple[float, ...]  # of red, green, blue in 0..255
  pixel_std: tuple[float, ...]
  digest: str  # SHA-256 of the file that was published or given, before any conversion


def _cached_path(sha256: str) -> pathlib.Path:
  return files.cache_folder() / f"{sha256}.safetensors"


def checksum(path: pathlib.Path, kind: str = "sha256") -> str:
  """A file's checksum in hexadecimal digits."""
  try:
    with path.open("rb") as file:
      return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def open_weights(path: pathlib.Path) -> Iterator[tuple[dict[str, Entry], dict[str, str]]]:
  """The tensors of a file by their own names, unread, and its metadata; the first bytes tell the format.

  A `UserError` names the file if it is damaged or of no known format.
  """
  with contextlib.ExitStack() as stack:
    with tensors.reported_damage(path):
      with path.open("rb") as file:
        first = file.read(9)
      if first[8:] == b"{":
        opened = stack.enter_context(tensors.open_safetensors(path))
      else:
        opener = h5.open_h5 if first.startswith(b"\x89HDF\r\n\x1a\n") else pth.open_pth
        opened = stack.enter_context(opener(path)), {}
    yield opened


def read(path: pathlib.Path) -> Weights:
  """A file of weights, converted unless it is of the inner form already or its conversion is in the cache.

  Raises UserError: it cannot be read; names the file and the tensor that is missing, unexpected, misshapen, not
  finite or truncated.
  """
  sha256 = checksum(path)
  if found := read_cached(sha256):
    return found
  with open_weights(path) as (entries, metadata):
    if metadata.get("format") == FORMAT:
      return _inner(entries, metadata, path)
    layout = recognize(entries, path)
    arrays = tensors.read(entries, [place.source for place in layout.places.values()], path)
  converted = {name: np.ascontiguousarray(place.convert(arrays[place.source])) for name, place in layout.places.items()}
  weights = Weights(layout.title, converted, layout.pixel_mean, layout.pixel_std, sha256)
  try:
    files.cache_folder().mkdir(parents=True, exist_ok=True)
    write(_cached_path(sha256), weights)
  except (OSError, UserError) as error:
    print(f"the conversion of {path} is not kept: {error}")
  return weights


def read_cached(sha256: str) -> Weights | None:
  """The conversion of a file of this SHA-256, checked, or None; a damaged one is removed."""
  path = _cached_path(sha256)
  if not path.exists():
    return None
  try:
    with tensors.open_safetensors(path) as (entries, metadata):
      found = _inner(entries, metadata, path)
    if found.digest != sha256:
      raise UserError(f"{path} is the conversion of another file")
  except UserError as error:
    print(f"made again: {error}")
    path.unlink()
    return None
  return found


def write(path: pathlib.Path, weights: Weights) -> None:
  """Writes the inner form as safetensors; `read` takes it back. A `UserError` names the file that cannot be written."""
  metadata = {"format": FORMAT, "title": weights.title, "source_sha256": weights.digest}
  metadata |= {"pixel_mean": json.dumps(weights.pixel_mean), "pixel_std": json.dumps(weights.pixel_std)}
  metadata["digest"] = tensors.digest(weights.tensors, metadata)
  tensors.write_safetensors(path, weights.tensors, metadata)


def _inner(entries: Mapping[str, Entry], metadata: Mapping[str, str], path: pathlib.Path) -> Weights:
  """What `write` wrote, checked against its digest."""
  try:
    title, source, wanted = (metadata[field] for field in ("title", "source_sha256", "digest"))
    mean, std = (tuple(map(float, json.loads(metadata[field]))) for field in ("pixel_mean", "pixel_std"))
  except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
    raise UserError(f"{path}: its metadata are not whole ({error!r})") from error
  if len(mean) != 3 or len(std) != 3 or not np.isfinite([mean, std]).all() or min(std) <= 0:
    raise UserError(f"{path}: pixel_mean and pixel_std must be three numbers each, pixel_std above 0")
  arrays = tensors.read(entries, entries, path)
  if tensors.digest(arrays, {name: text for name, text in metadata.items() if name != "digest"}) != wanted:
    raise UserError(f"{path} does not have the digest that it states: it was changed or damaged")
  return Weights(title, arrays, mean, std, source)


def recognize(entries: Mapping[str, Entry], path: pathlib.Path) -> Layout:
  """The published set whose names are nearest to those of a file, and then its shapes; checked.

  Raises UserError: names the file and the first tensor that is missing, not expected there, or of another shape.
  """
  entries = {name: entry for name, entry in entries.items() if not name.endswith(_COUNTER)}
  layouts = (layout for spec in backbones.SPECS.values() for layout in spec.layouts)

  def distance(layout: Layout) -> tuple[int, int]:
    shapes = layout.shapes
    return len(set(entries) ^ set(shapes)), sum(entries[name].shape != shapes.get(name) for name in entries)

  nearest = min(layouts, key=distance)
  tensors.check_shapes(entries, nearest.shapes, path)
  return nearest
