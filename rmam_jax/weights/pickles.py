"""A pickle read as data.

A pickle is a program for a small stack machine, and Python's own machine calls what it is told to. This one knows only
the instructions that a checkpoint is made of, imports nothing and calls nothing: a call becomes a `Call`, a reference a
`Global`, and every name has to be on the list.
"""

import pickletools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

MOST_BYTES = 1 << 24  # of one pickle, whatever it claims to hold; a state dict's names and shapes take far less


class Global(NamedTuple):
  name: str  # "module.attribute"


class Call(NamedTuple):
  name: str
  arguments: tuple


class Persistent(NamedTuple):
  id: Any  # stands for what lies outside the pickle


_PLAIN = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "BINFLOAT"}
_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# How many values these take from the stack; None: all down to the mark.
_TAKE = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_TAKE |= {"APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None}


def read(file: BinaryIO, allowed: Collection[str]) -> Any:
  """Reads one pickle from where the file stands and leaves it behind the last byte of it.

  Args:
    file: can seek.
    allowed: the names that the pickle may refer to, as "module.attribute".

  Raises:
    ValueError: it is no whole pickle, refers to another name, or holds an instruction that no state dict needs.
  """
  start = file.tell()
  try:
    value, size = _run(file.read(MOST_BYTES), allowed)
  except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(
      f"refused: its pickle is not one of a state dict ({error}); nothing of it was run. Save model.state_dict() alone"
    ) from error
  file.seek(start + size)
  return value


def _run(content: bytes, allowed: Collection[str]) -> tuple[Any, int]:
  """The value of the pickle that `content` begins with, and its size in bytes."""
  stacks: list[list[Any]] = [[]]  # each mark begins another
  memo: dict[int, Any] = {}
  for opcode, value, place in pickletools.genops(content):
    name, stack = opcode.name, stacks[-1]
    if name in _PLAIN:
      stack.append(value)
    elif name in _FIXED:
      stack.append(_FIXED[name])
    elif name in ("EMPTY_DICT", "EMPTY_LIST"):
      stack.append({} if name == "EMPTY_DICT" else [])
    elif name == "MARK":
      stacks.append([])
    elif name in _TAKE:
      taken = stacks.pop() if _TAKE[name] is None else [stack.pop() for _ in range(_TAKE[name])][::-1]
      if name.startswith("TUPLE"):
        stacks[-1].append(tuple(taken))
      elif name.startswith("APPEND"):
        stacks[-1][-1].extend(taken)
      else:
        stacks[-1][-1].update(_items(zip(taken[::2], taken[1::2], strict=True)))
    elif name == "GLOBAL":
      stack.append(Global(value.replace(" ", ".", 1)))
      if stack[-1].name not in allowed:
        raise ValueError(f"it refers to {stack[-1].name}")
    elif name in ("REDUCE", "NEWOBJ"):
      arguments, function = stack.pop(), stack.pop()
      if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise ValueError("it calls what is no function")
      if function.name == "collections.OrderedDict":  # a dictionary instead, so that items can be set
        stack.append(_dictionary(*arguments))
      else:
        stack.append(Call(function.name, arguments))
    elif name == "BUILD":
      stack.pop()  # attributes of an object, e.g. the version of each layer: nothing here needs them
    elif name == "BINPERSID":
      stack.append(Persistent(stack.pop()))
    elif name in ("BINPUT", "LONG_BINPUT"):
      memo[value] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
      stack.append(memo[value])
    elif name == "STOP":
      return stack.pop(), place + 1
    elif name != "PROTO":
      raise ValueError(f"it has the instruction {name}")
  raise ValueError("it does not end")


def _dictionary(pairs: Sequence[Sequence] = ()) -> dict[Any, Any]:
  """Of nothing or, as Python 2 wrote an ordered one, a list of pairs; emptied, lest a small file make many of a long one."""
  made = dict(_items(pairs))
  if pairs:
    pairs.clear()
  return made


def _items(pairs: Iterable[Sequence]) -> Iterator[Sequence]:
  """Pairs of key and value; a tuple as key could hold itself so often that to hash it takes for ever."""
  for key, value in pairs:
    if not isinstance(key, (str, int, float, type(None))):
      raise ValueError("a dictionary has a key that is neither a text nor a number")
    yield key, value
