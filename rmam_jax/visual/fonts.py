"""Text that can be read in a picture, in whatever language: letters that the usual font lacks come from another font."""

import functools
import sys

# Fonts of matplotlib's that hold a box for every letter, or signs at places of their own.
_NO_LETTERS = ("Last Resort", "STIXNonUnicode", "STIXSize")


@functools.cache
def _in_file(path: str) -> frozenset[int]:
  """The letters that a font's file can draw; none for one that cannot be read, or holds pictures of one size."""
  from matplotlib.ft2font import FT2Font

  try:
    font = FT2Font(path)
  except (OSError, RuntimeError):
    return frozenset()
  return frozenset(font.get_charmap()) if font.scalable else frozenset()


@functools.cache
def _usual() -> frozenset[int]:
  """The letters of the font that pictures have, which has them upright and bold."""
  from matplotlib import font_manager

  kinds = (font_manager.FontProperties(weight=weight) for weight in ("normal", "bold"))
  return frozenset.intersection(*(_in_file(font_manager.findfont(kind)) for kind in kinds))


@functools.cache
def _families() -> dict[str, tuple[str, ...]]:
  """The files of each upright family on this machine: those with a bold font first, and without serifs."""
  from matplotlib import font_manager

  files: dict[str, list[str]] = {}
  bold = set()
  for entry in font_manager.fontManager.ttflist:
    if entry.style == "normal" and not entry.name.startswith(_NO_LETTERS):
      files.setdefault(entry.name, []).append(entry.fname)
      if entry.weight == 700:
        bold.add(entry.name)
  names = sorted(files, key=lambda name: (name not in bold, "sans" not in name.casefold(), name))
  return {name: tuple(files[name]) for name in names}


@functools.cache
def _family_with(letter: str) -> str | None:
  """The first family all of whose fonts have a letter; None if none has it."""
  found = (name for name, files in _families().items() if all(ord(letter) in _in_file(path) for path in files))
  return next(found, None)


@functools.cache
def _tell() -> None:
  """Once: the next calls find the first one's result."""
  print(
    "note: no font of this machine has some of the letters: pictures show their numbers in Unicode, as [732B]; with a font"
    " that has them, e.g. Noto Sans CJK, they show the letters",
    file=sys.stderr,
  )


def _number(letter: str) -> str:
  return f"[{ord(letter):X}]"


def fit(text: str) -> tuple[str, list[str]]:
  """A text as it can be drawn and the families of fonts for it, matplotlib's `family`.

  A letter that no font of the machine has becomes its number in Unicode, in brackets; stderr says so once.
  """
  import matplotlib

  families = list(matplotlib.rcParams["font.family"])
  shown = []
  for letter in text:
    if ord(letter) in _usual() or letter.isspace() or not letter.isprintable():
      shown.append(letter)
    elif (family := _family_with(letter)) is not None:
      families += [family] if family not in families else []
      shown.append(letter)
    else:
      _tell()
      shown.append(_number(letter))
  return "".join(shown), families
