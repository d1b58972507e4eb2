"""A pickle read as data.

A pickle is a program for a small stack machine, and Python's own machine calls what it is told to. This one knows only
the instructions that a state dict is made of, imports nothing and calls nothing: a call becomes a `Call`, a reference a
`Global`, and every name has to be on the list.
"""

import pickletools
from collections.abc import Collection
from typing import Any, BinaryIO, NamedTuple

from rmam_jax.runtime.errors import UserError


class Global(NamedTuple):
  name: str  # "module.attribute"


class Call(NamedTuple):
  name: str
  arguments: tuple


class Persistent(NamedTuple):
  """What lies outside the pickle, by the identifier that stands for it."""

  id: Any


class _Bounded:
  """A file that refuses to read further than `limit` bytes, however much a pickle claims to hold."""

  def __init__(self, file: BinaryIO, limit: int):
    self._file, self._left = file, limit

  def read(self, count: int) -> bytes:
    self._take(count)
    return self._file.read(count)

  def readline(self) -> bytes:
    line = self._file.readline(self._left + 1)
    self._take(len(line))
    return line

  def _take(self, count: int) -> None:
    if count > self._left:
      raise UserError("its pickle is larger than one of a state dict can be")
    self._left -= count


_MARK = object()
_PLAIN = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "BINFLOAT"}
_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read(file: BinaryIO, allowed: Collection[str], limit: int = 1 << 24) -> Any:
  """Reads one pickle from where the file stands and leaves it behind the last byte of it.

  Args:
    file: binary.
    allowed: the names that may be referred to, as "module.attribute".
    limit: bytes.

  Raises:
    UserError: it is no pickle, refers to another name, or holds an instruction that no state dict needs.
  """
  try:
    return _run(_Bounded(file, limit), allowed)
  except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
    raise UserError(f"its pickle is malformed ({error!r})") from error


def _run(file: _Bounded, allowed: Collection[str]) -> Any:
  stack: list[Any] = []
  memo: dict[int, Any] = {}

  def pop_to_mark() -> list[Any]:
    values = []
    while (value := stack.pop()) is not _MARK:
      values.append(value)
    return values[::-1]

  def set_items(pairs: list[Any]) -> None:
    stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

  for opcode, value, _ in pickletools.genops(file):
    name = opcode.name
    if name in _PLAIN:
      stack.append(value)
    elif name in _FIXED:
      stack.append(_FIXED[name])
    elif name == "GLOBAL":
      reference = value.replace(" ", ".", 1)
      if reference not in allowed:
        raise UserError(f"its pickle refers to {reference}, which no state dict does; nothing of it was run")
      stack.append(Global(reference))
    elif name == "MARK":
      stack.append(_MARK)
    elif name in ("EMPTY_DICT", "EMPTY_LIST"):
      stack.append({} if name == "EMPTY_DICT" else [])
    elif name == "TUPLE":
      stack.append(tuple(pop_to_mark()))
    elif name in _TUPLES:
      values = stack[-_TUPLES[name] :]
      del stack[-_TUPLES[name] :]
      stack.append(tuple(values))
    elif name == "APPEND":
      last = stack.pop()
      stack[-1].append(last)
    elif name == "APPENDS":
      values = pop_to_mark()
      stack[-1].extend(values)
    elif name == "SETITEM":
      pair = stack[-2:]
      del stack[-2:]
      set_items(pair)
    elif name == "SETITEMS":
      set_items(pop_to_mark())
    elif name == "REDUCE":
      arguments, function = stack.pop(), stack.pop()
      stack.append(_call(function, arguments))
    elif name == "BUILD":
      stack.pop()  # attributes of an object, e.g. the version of each layer: nothing here needs them
    elif name == "BINPERSID":
      stack.append(Persistent(stack.pop()))
    elif name in ("BINPUT", "LONG_BINPUT"):
      memo[value] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
      stack.append(memo[value])
    elif name == "STOP":
      return stack.pop()
    elif name != "PROTO":
      raise UserError(f"its pickle has the instruction {name}, which no state dict needs; nothing of it was run")
  raise UserError("its pickle does not end")


def _call(function: Any, arguments: Any) -> Any:
  """A dictionary for `OrderedDict`, so that items can be set; a `Call` for the rest."""
  if not isinstance(function, Global) or not isinstance(arguments, tuple):
    raise UserError("its pickle calls what is no function")
  if function.name == "collections.OrderedDict":
    return dict(*arguments)
  return Call(function.name, arguments)
