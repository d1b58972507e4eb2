"""Keras' older HDF5 layout: a group for each layer, named by the file's `layer_names`, its tensors by `weight_names`."""

import contextlib
import math
import mmap
import pathlib
from collections.abc import Iterator

from rmam_jax.weights.tensors import Entry

_ROLES = ("kernel", "bias")
_MOST_BYTES = 1 << 20  # of a list of names
_HEAP = b"GCOL\x01\0\0\0"  # what a global heap begins with: its signature and version


@contextlib.contextmanager
def open_h5(path: pathlib.Path) -> Iterator[dict[str, Entry]]:
  """The tensors "LAYER/kernel" and "LAYER/bias", read on demand while the file is open.

  Raises:
    ValueError: the file is not of this layout, is truncated, or is not plain: links, data in other files and
      compression are refused, and what a tensor claims to hold must lie in the file. h5py tells of damage by errors
      of many other kinds.
  """
  import h5py

  _check_heaps(path)
  with h5py.File(path, "r") as file:
    layers, entries = _names(file, "layer_names"), {}
    for layer in layers:
      group = _follow(file, layer, h5py.Group)
      weights = _names(group, "weight_names")
      if len(weights) not in (0, len(_ROLES)):
        raise ValueError(f"layer {layer} has {len(weights)} tensors, not a kernel and a bias")
      for role, name in zip(_ROLES, weights, strict=False):
        entries[f"{layer}/{role}"] = _entry(_follow(group, name, h5py.Dataset), f"{layer}/{role}")
    if extra := sorted(set(file) - set(layers)):
      raise ValueError(f"{extra[0]} is not among its layer_names")
    yield entries


def _check_heaps(path: pathlib.Path) -> None:
  """Walks the heaps where HDF5 keeps texts: where an object takes no room, HDF5 itself loops for ever."""
  with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:

    def number(place: int, size: int = 8) -> int:
      return int.from_bytes(content[place : place + size], "little")

    start = content.find(_HEAP)
    while start >= 0:
      end, place = start + number(start + 8), start + 16
      while place + 16 <= end <= len(content):
        index, size = number(place, 2), number(place + 8)
        place += ((16 + (size + 7) // 8 * 8) % 2**64 if index else size) or 2**64
      if place > end or end > len(content):
        raise ValueError(f"damaged: its heap at {start} is not as long as it says")
      start = content.find(_HEAP, start + 1)


def _names(group, attribute: str) -> list[str]:
  if attribute not in group.attrs:
    raise ValueError(
      f"{group.name} has no {attribute}: not the layout of the files that Keras publishes (a .weights.h5 of Keras 3 has"
      " another)"
    )
  stored = group.attrs.get_id(attribute)
  if math.prod(stored.shape or ()) * stored.get_type().get_size() > _MOST_BYTES:
    raise ValueError(f"{attribute} of {group.name} claims more than {_MOST_BYTES:,} bytes")
  names = [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs[attribute]]
  if len(set(names)) != len(names):
    raise ValueError(f"{group.name} names something twice in {attribute}")
  return names


def _follow(group, name: str, kind: type):
  """The object below a group, by hard links only: others lead out of the file or in circles."""
  import h5py

  found, where = group, f"{group.name.rstrip('/')}/{name}"
  for part in filter(None, name.split("/")):
    link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
    if link is None:
      raise ValueError(f"{where} is missing")
    if not isinstance(link, h5py.HardLink):
      raise ValueError(f"refused: {where} is a link")
    found = found[part]
  if not isinstance(found, kind):
    raise ValueError(f"{where} is no {kind.__name__.lower()}")
  return found


def _entry(dataset, name: str) -> Entry:
  if dataset.is_virtual or dataset.external:
    raise ValueError(f"refused: {name} keeps its values in another file")
  if dataset.id.get_create_plist().get_nfilters():
    raise ValueError(f"refused: {name} is compressed or filtered, which Keras' files are not")
  if dataset.shape is None or dataset.id.get_storage_size() != dataset.nbytes:
    raise ValueError(f"{name} {dataset.shape} claims values that the file does not hold")
  return Entry(dataset.shape, dataset.dtype.name, lambda: dataset[()])
