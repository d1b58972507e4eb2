"""State dicts of torch without torch, in both layouts: the zip of torch 1.6 and later, and the one before it.

A state dict is a pickle that refers to raw storages. The pickle is read as data (`pickles`); tensors are read by
position, after their shape, their place in the storage and the storage's size have been checked against the file.
"""

import contextlib
import functools
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rmam_jax.weights import pickles
from rmam_jax.weights.tensors import Entry

_LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # what the older layout begins with, after two bytes
_TYPES = {"torch.FloatStorage": "<f4", "torch.DoubleStorage": "<f8", "torch.HalfStorage": "<f2"}
# Counters of batch normalisation, and the states of random numbers: to be named, not refused as unknown.
_TYPES |= {"torch.LongStorage": "<i8", "torch.ByteStorage": "u1"}
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter")
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
# What else people save beside a state dict: options, numbers of numpy, the milestones of a schedule. They too are read as
# data and made nothing of.
_BESIDE = ("argparse.Namespace", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
_BESIDE += ("collections.Counter", "torch.device", "__builtin__.set")
_ALLOWED = frozenset({"collections.OrderedDict", *_PARAMETERS, *_TENSORS, *_TYPES, *_BESIDE, "_codecs.encode"})
_WRAPPINGS = ("state_dict", "model_state_dict", "model")  # the entries of a checkpoint that hold the state dict
_MOST_SIDES = 64  # of a tensor, as of torch's and numpy's
_BIG_ENDIAN = "its byte order is not little-endian: save it again on a common machine"


class _Storage(NamedTuple):
  """Raw numbers in the file."""

  key: str
  size: int  # in elements
  dtype: np.dtype

  @property
  def bytes(self) -> int:
    return self.size * self.dtype.itemsize


class _Tensor(NamedTuple):
  """A part of a storage; its place there in bytes."""

  storage: _Storage
  shape: tuple[int, ...]
  offset: int
  strides: tuple[int, ...]

  def entry(self, read: Callable[[], bytes]) -> Entry:
    dtype, at = self.storage.dtype, (self.offset, self.strides)
    return Entry(self.shape, dtype.name, lambda: np.ndarray(self.shape, dtype, read(), *at))


@contextlib.contextmanager
def open_pth(path: pathlib.Path) -> Iterator[dict[str, Entry]]:
  """The tensors of a state dict, read on demand while the file is open.

  Raises:
    ValueError: the file is no whole state dict, or refers to anything that a state dict does not; nothing is run.
      `zipfile` has other errors for damage.
  """
  with path.open("rb") as file:
    first = file.read(2 + len(_LEGACY))
    if first.startswith(b"PK\x03\x04"):
      yield _open_zip(file)
    elif first[2:] == _LEGACY:
      yield _open_legacy(file)
    else:
      raise ValueError("not a state dict of torch, or truncated: fetch it again")


def _open_zip(file: BinaryIO) -> dict[str, Entry]:
  archive = zipfile.ZipFile(file)
  members = {member.filename: member for member in archive.infolist()}
  if len(members) != len(archive.infolist()):
    raise ValueError("refused: two members of its zip have the same name")
  pickled = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
  if len(pickled) != 1:
    raise ValueError("its zip holds no data.pkl: it is not a state dict of torch")
  root, end = pickled[0].removesuffix("data.pkl"), os.fstat(file.fileno()).st_size
  for member in members.values():
    if member.header_offset + member.file_size > end:
      raise ValueError(f"{member.filename} claims more bytes than the file has")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
      raise ValueError(f"refused: {member.filename} is compressed, which torch never does")
  if root + "byteorder" in members and archive.read(root + "byteorder") != b"little":
    raise ValueError(_BIG_ENDIAN)
  with archive.open(pickled[0]) as stream:
    tensors = _tensors(pickles.read(stream, _ALLOWED))
  for name, tensor in tensors.items():
    storage = tensor.storage
    member = members.get(f"{root}data/{storage.key}")
    if member is None or member.file_size != storage.bytes:
      found = "missing" if member is None else f"of {member.file_size} bytes, not {storage.bytes}"
      raise ValueError(f"the storage {storage.key} of {name} is {found}")
  return {name: t.entry(functools.partial(archive.read, f"{root}data/{t.storage.key}")) for name, t in tensors.items()}


def _open_legacy(file: BinaryIO) -> dict[str, Entry]:
  """From behind the first of five pickles: the protocol's version, the system, the state dict, its storages' keys."""
  _, system, state, keys = (pickles.read(file, _ALLOWED) for _ in range(4))
  if not isinstance(system, dict) or system.get("little_endian") is not True:
    raise ValueError(_BIG_ENDIAN)
  tensors, storages, places = _tensors(state), {}, {}
  for name, storage in [*((name, tensor.storage) for name, tensor in tensors.items()), *_storages(state)]:
    if storages.setdefault(storage.key, storage).bytes != storage.bytes:
      raise ValueError(f"{name} disagrees with earlier tensors on the size of storage {storage.key}")
  if (
    not isinstance(keys, list)
    or not all(isinstance(key, (str, int)) for key in keys)
    or set(map(str, keys)) != set(storages)
  ):
    raise ValueError("its list of storages does not match its tensors")
  for key in map(str, keys):
    header, wanted = file.read(8), storages[key].bytes
    places[key] = file.tell()
    if len(header) < 8 or places[key] + wanted > os.fstat(file.fileno()).st_size:
      raise ValueError(f"truncated in storage {key}: fetch it again")
    if int.from_bytes(header, "little") != storages[key].size:
      raise ValueError(f"storage {key} has another size than its tensors say")
    file.seek(wanted, os.SEEK_CUR)

  def read(storage: _Storage) -> bytes:
    file.seek(places[storage.key])
    return file.read(storage.bytes)

  return {name: tensor.entry(functools.partial(read, tensor.storage)) for name, tensor in tensors.items()}


def _tensors(checkpoint: Any) -> dict[str, _Tensor]:
  """What a state dict says of its tensors, each of which lies within the storage that it says it has.

  A checkpoint holds its state dict under one of `_WRAPPINGS`, perhaps one within the other.
  """
  state = checkpoint
  for _ in _WRAPPINGS:
    inner = [state[name] for name in _WRAPPINGS if isinstance(state.get(name), dict)] if isinstance(state, dict) else []
    state = inner[0] if inner else state
  if not isinstance(state, dict) or not state:
    raise ValueError("its pickle holds no state dict")
  return {name: _tensor(name, value) for name, value in state.items()}


def _storages(checkpoint: Any) -> Iterator[tuple[str, _Storage]]:
  """All storages that a checkpoint refers to, an optimizer's too; with what to call them."""
  waiting, seen = [checkpoint], set()
  while waiting:
    value = waiting.pop()
    if id(value) in seen:
      continue
    seen.add(id(value))
    match value:
      case pickles.Persistent():
        yield "another tensor", _storage("another tensor", value)
      case pickles.Call(_, arguments):
        waiting.append(arguments)
      case dict():
        waiting += [*value.keys(), *value.values()]
      case list() | tuple():
        waiting += value


def _storage(name: str, value: Any) -> _Storage:
  match value:  # as torch writes it, with its device at the end
    case pickles.Persistent(("storage", pickles.Global(kind), str(key), _, size, *rest)) if kind in _TYPES and rest in (
      [],
      [None],
    ):
      if type(size) is not int or size < 0:
        raise ValueError(f"{name} has no proper shape")
      return _Storage(key, size, np.dtype(_TYPES[kind]))
    case _:
      raise ValueError(f"{name} refers to no storage of torch")


def _tensor(name: Any, value: Any) -> _Tensor:
  if isinstance(value, pickles.Call) and value.name in _PARAMETERS and value.arguments:
    value = value.arguments[0]  # the tensor of a parameter
  match name, value:
    case str(), pickles.Call(function, (stored, offset, shape, strides, *_)) if function in _TENSORS:
      storage = _storage(name, stored)
    case _:
      raise ValueError(
        f"its state dict has an entry that is not a tensor, {str(name)[:80]!r}: save model.state_dict() alone"
      )
  placed = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= _MOST_SIDES
  if not placed or any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
    raise ValueError(f"{name} has no proper shape")
  last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
  if 0 in shape or last >= storage.size:
    raise ValueError(f"{name} {shape} reaches past its storage of {storage.size} elements")
  item = storage.dtype.itemsize
  return _Tensor(storage, shape, offset * item, tuple(stride * item for stride in strides))
