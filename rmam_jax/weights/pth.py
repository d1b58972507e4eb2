"""State dicts of torch without torch, in both layouts: the zip of torch 1.6 and later, and the one before it.

A state dict is a pickle that refers to raw storages. The pickle is read as data (`pickles`); tensors are read by
position, after their shape, their place in the storage and the storage's size have been checked against the file.
"""

import contextlib
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rmam_jax.runtime.errors import UserError
from rmam_jax.weights import pickles
from rmam_jax.weights.tensors import Entry

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_TYPES = {f"torch.{name}Storage": dtype for name, dtype in {"Float": "<f4", "Double": "<f8", "Half": "<f2"}.items()}
_LONGS = {"torch.LongStorage": "<i8"}  # counters of batch normalisation: to be named, not refused as unknown
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter")
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_ALLOWED = frozenset({"collections.OrderedDict", *_PARAMETERS, *_TENSORS, *_TYPES, *_LONGS})


class _Storage(NamedTuple):
  key: str
  dtype: np.dtype
  size: int  # in elements


@contextlib.contextmanager
def open_pth(path: pathlib.Path) -> Iterator[dict[str, Entry]]:
  """The tensors of a state dict, read on demand while the file is open.

  Raises:
    UserError: the file is no whole state dict, or refers to anything that a state dict does not; nothing is run.
  """
  with path.open("rb") as file:
    try:
      zipped = file.read(4) == b"PK\x03\x04"
      file.seek(0)
      yield (_open_zip if zipped else _open_legacy)(file)
    except (zipfile.BadZipFile, RuntimeError, struct.error) as error:  # RuntimeErrors: encryption, newer versions
      raise UserError(f"{path} is no whole zip of torch ({error}): truncated or damaged, fetch it again") from error
    except _Wrong as error:
      raise UserError(f"{path}: {error}") from error


class _Wrong(UserError):
  """Of this file; its path is still to be put before it."""


def _pickle(file: BinaryIO) -> Any:
  try:
    return pickles.read(file, _ALLOWED)
  except ValueError as error:
    raise _Wrong(f"refused: {error}") from error


def _open_zip(file: BinaryIO) -> dict[str, Entry]:
  archive = zipfile.ZipFile(file)
  members = {member.filename: member for member in archive.infolist()}
  if len(members) != len(archive.infolist()):
    raise _Wrong("refused: two members of its zip have the same name")
  pickled = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
  if len(pickled) != 1:
    raise _Wrong("its zip holds no data.pkl: no state dict of torch")
  root = pickled[0].removesuffix("data.pkl")
  end = os.fstat(file.fileno()).st_size
  for member in members.values():
    if member.header_offset + member.file_size > end:
      raise _Wrong(f"{member.filename} claims more bytes than the file has")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
      raise _Wrong(f"refused: {member.filename} is compressed, which torch never does")
  if root + "byteorder" in members and archive.read(root + "byteorder") != b"little":
    raise _Wrong("its byte order is not little-endian: save it again on a common machine")
  with archive.open(pickled[0]) as stream:
    state = _pickle(stream)

  def read(storage: _Storage) -> bytes:
    name = f"{root}data/{storage.key}"
    if name not in members:
      raise _Wrong(f"storage {storage.key} is missing")
    wanted = storage.size * storage.dtype.itemsize
    if members[name].file_size != wanted:
      raise _Wrong(f"storage {storage.key} has {members[name].file_size} bytes, not {wanted}")
    return archive.read(name)

  return _entries(state, read)


def _open_legacy(file: BinaryIO) -> dict[str, Entry]:
  try:
    magic = pickles.read(file, ())
  except ValueError:
    magic = None
  if magic != _LEGACY_MAGIC:
    raise _Wrong("no state dict of torch in either layout, or truncated; fetch it again")
  _pickle(file)  # the protocol's version
  system = _pickle(file)
  if not isinstance(system, dict) or system.get("little_endian") is not True:
    raise _Wrong("its byte order is not little-endian: save it again on a common machine")
  state, keys = _pickle(file), _pickle(file)
  storages = {
    storage.key: storage for _, tensor in _items(state) for storage in [_storage(_unwrap(tensor).arguments[0])]
  }
  if not isinstance(keys, list) or set(map(str, keys)) != set(storages):
    raise _Wrong("its list of storages is not that of its tensors")
  end, places = os.fstat(file.fileno()).st_size, {}
  for key in map(str, keys):
    header = file.read(8)
    wanted = storages[key].size * storages[key].dtype.itemsize
    if len(header) < 8 or file.tell() + wanted > end:
      raise _Wrong(f"truncated in storage {key}: fetch it again")
    if struct.unpack("<q", header)[0] != storages[key].size:
      raise _Wrong(f"storage {key} has another size than its tensors say")
    places[key] = file.tell()
    file.seek(wanted, os.SEEK_CUR)

  def read(storage: _Storage) -> bytes:
    file.seek(places[storage.key])
    return file.read(storage.size * storage.dtype.itemsize)

  return _entries(state, read)


def _items(state: Any):
  if not isinstance(state, dict) or not state:
    raise _Wrong("its pickle holds no state dict")
  return state.items()


def _unwrap(value: Any) -> pickles.Call:
  """A tensor's call, taken out of the parameter around it."""
  while isinstance(value, pickles.Call) and value.name in _PARAMETERS and value.arguments:
    value = value.arguments[0]
  if not isinstance(value, pickles.Call) or value.name not in _TENSORS or len(value.arguments) < 4:
    raise _Wrong("its state dict holds what is no tensor: save model.state_dict() alone")
  return value


def _natural(value: Any) -> bool:
  return type(value) is int and value >= 0


def _storage(value: Any) -> _Storage:
  """('storage', type, key, device, size in elements[, None]), as torch writes it."""
  found = value.id if isinstance(value, pickles.Persistent) else ()
  if (
    not isinstance(found, tuple) or len(found) not in (5, 6) or found[0] != "storage" or found[5:] not in ((), (None,))
  ):
    raise _Wrong("a tensor refers to no storage of torch")
  kind, key, size = found[1], found[2], found[4]
  dtype = (_TYPES | _LONGS).get(kind.name if isinstance(kind, pickles.Global) else "")
  if dtype is None or not isinstance(key, str) or not _natural(size):
    raise _Wrong("a tensor refers to no storage of torch")
  return _Storage(key, np.dtype(dtype), size)


def _entries(state: Any, read: Callable[[_Storage], bytes]) -> dict[str, Entry]:
  entries = {}
  for name, value in _items(state):
    if not isinstance(name, str):
      raise _Wrong("a tensor's name is no text")
    where, offset, shape, strides = _unwrap(value).arguments[:4]
    storage = _storage(where)
    numbers_fit = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    if not numbers_fit or not all(map(_natural, (offset, *shape, *strides))):
      raise _Wrong(f"{name} has no proper shape")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if 0 in shape or last >= storage.size:
      raise _Wrong(f"{name} {shape} reaches past its storage of {storage.size} elements")
    entries[name] = Entry(shape, storage.dtype.name, _reader(read, storage, offset, shape, strides))
  return entries


def _reader(read, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
  def tensor() -> np.ndarray:
    elements = np.frombuffer(read(storage), storage.dtype)[offset:]
    steps = [stride * storage.dtype.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(elements, shape, steps, writeable=False)

  return tensor
