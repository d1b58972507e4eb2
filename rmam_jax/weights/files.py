"""One file of weights, whatever its format, in the inner form; converted ones are kept in the user's cache."""

import contextlib
import hashlib
import json
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rmam_jax import backbones
from rmam_jax.backbones.spec import BackboneSpec, Layout, Place
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError
from rmam_jax.weights import h5, pth, tensors
from rmam_jax.weights.tensors import Entry

RECOGNIZER = "rmam_jax model"  # how the format of an exported model begins
FORMAT = "rmam_jax weights 1"  # of the safetensors files that are written here
_WRAPPINGS = ("module", "_orig_mod", "model", "backbone")  # what tools put before a network's own names
_COUNTER = "num_batches_tracked"  # of batch normalisation, int64: no weight


class Identified(NamedTuple):
  """A file's tensors, as those of a published set."""

  layout: Layout
  places: dict[str, Place]  # of those that are taken, by our names: all of the layout, or all but fc6
  entries: dict[str, Entry]  # by the layout's names
  title: str  # the layout's, and how the file differs from the published one


class Weights(NamedTuple):
  """A backbone's first parameters in the inner form."""

  title: str  # where they come from, and how that differs from what was published
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
    if metadata.get("format", "").startswith(RECOGNIZER):
      raise UserError(f"{path} is part of a recognizer: give the folder that holds it with its model.json")
    layout, places, entries, title = identify(entries, path)
    arrays = tensors.read(entries, [place.source for place in places.values()], path)
  converted = {name: np.ascontiguousarray(place.convert(arrays[place.source])) for name, place in places.items()}
  weights = Weights(title, converted, layout.pixel_mean, layout.pixel_std, sha256)
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


def is_published(path: pathlib.Path, layout: Layout) -> bool:
  """Whether a file has the checksum of the published one; where none is known, no file has it."""
  kind, _, digits = layout.checksum.partition(":")
  return bool(digits) and checksum(path, kind) == digits


def identify(
  entries: Mapping[str, Entry], path: pathlib.Path, specs: Collection[BackboneSpec] | None = None
) -> Identified:
  """The published set, of all backbones or of `specs`, whose names and shapes are nearest to those of a file.

  Prefixes such as "module." are taken off, and what lies beside them is left. The set's classifier may be absent, or
  the user's own. Counters of batch normalisation are passed over.

  Raises UserError: names the file and the first tensor that is missing, misshapen or not expected; or the network that
  the file is of, where that is known and has no backbone here.
  """
  prefix, named, spec, layout = _nearest(entries, path, specs or backbones.SPECS.values())
  fc6 = {place.source: place.shape for ours, place in layout.places.items() if _is_fc6(ours)}
  optional = {**layout.unused, **fc6}
  needed = {name: shape for name, shape in layout.shapes.items() if name not in optional}
  tops = {_top(name) for each in spec.layouts for name in each.shapes} - set(map(_top, needed))
  left = [
    name
    for name, entry in named.items()
    if (entry.shape != tuple(optional[name]) if name in optional else name not in needed and _top(name) in tops)
  ]
  kept = {name: entry for name, entry in named.items() if name not in left}
  tensors.check_shapes(kept, needed | {name: optional[name] for name in kept if name in optional}, path)
  places = {ours: place for ours, place in layout.places.items() if not _is_fc6(ours) or fc6.keys() <= kept.keys()}
  title, beside = layout.title, [name for name in entries if not name.startswith(prefix)]
  if own := [*beside, *(prefix + name for name in left)]:
    title += f"; its own {own[0]} {entries[own[0]].shape}{_more(own)} not taken"
  if absent := [name for name in optional if name not in named and not name.endswith(_COUNTER)]:
    title += f"; {absent[0]}{_more(absent)} absent"
  return Identified(layout, places, kept, title)


def _nearest(
  entries: Mapping[str, Entry], path: pathlib.Path, specs: Collection[BackboneSpec]
) -> tuple[str, dict[str, Entry], BackboneSpec, Layout]:
  """The prefix that the file has before its names, its tensors without it, and the backbone and layout they are of."""
  found, others = [], []
  for prefix in _prefixes(entries):
    named = {name[len(prefix) :]: entry for name, entry in entries.items() if name.startswith(prefix)}
    named = {name: entry for name, entry in named.items() if not name.endswith(_COUNTER)}
    for spec in specs:
      for layout in spec.layouts:
        misshapen = sum(named[name].shape != tuple(shape) for name, shape in layout.shapes.items() if name in named)
        found.append(((len(named.keys() ^ layout.shapes.keys()), misshapen), prefix, named, spec, layout))
      others += [(len(named.keys() ^ names), what) for what, names in spec.lookalikes.items()]
  nearest, *_ = min(found, key=lambda each: each[0])
  alike = [each[1:] for each in found if each[0] == nearest]
  if len(alike) > 1:  # a network that was published twice
    alike = [each for each in alike if is_published(path, each[-1])] or alike
  if others and min(others)[0] < nearest[0]:
    raise UserError(f"{path}: this is {min(others)[1]}")
  _, named, _, layout = alike[0]
  if 2 * len(named.keys() & layout.shapes.keys()) < len(layout.shapes):
    known = ", ".join(spec.name for spec in specs if spec.layouts)
    raise UserError(f"{path} holds no published weights of {known}: its first tensors are {', '.join([*entries][:3])}")
  return alike[0]


def _prefixes(names: Collection[str]) -> list[str]:
  """What may stand before a network's own names: at each level the wrapping that most have, e.g. "", "module."."""
  found = [""]
  while len(found) <= len(_WRAPPINGS):
    counts = {
      longer: sum(name.startswith(longer) for name in names)
      for longer in (f"{found[-1]}{word}." for word in _WRAPPINGS)
    }
    longer = max(counts, key=counts.get)
    if not counts[longer]:
      break
    found.append(longer)
  return found


def _top(name: str) -> str:
  """The first part of a tensor's name, of torch's or Keras'."""
  return re.split("[./]", name)[0]


def _is_fc6(ours: str) -> bool:
  return ours.startswith("fc6/")


def _more(names: Sequence[str]) -> str:
  """What follows the first of these names."""
  return f" and {len(names) - 1} more are" if names[1:] else " is"
