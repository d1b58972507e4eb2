"""The classes of own images: which there are, whether labels look as they were meant, and labels as classes."""

import difflib
import functools
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rmam_jax.data import tables
from rmam_jax.data.annotations import clean_name
from rmam_jax.data.entries import Entries
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError

SHOWN = 5  # names in a message
_ROW = re.compile(r"\.(csv|tsv|txt|jsonl):\d+$|\.jsonl?\[\d+\]$", re.IGNORECASE)  # the place of a row or an object


class Classes(NamedTuple):
  """The classes of a run, and how the labels in a manifest become them."""

  names: tuple[str, ...]
  others: bool = False  # whether labels that are no class are left out, and those that look like one taken for it
  separator: str = ""  # `data.separator`: once it is named, no label is thought to be several


def chosen(given: Sequence[str]) -> tuple[str, ...]:
  """`data.classes`: names, or the file that holds one in each line.

  Raises UserError: one is named twice, or what looks like a file is none.
  """
  names = tuple(map(str, given))  # a flag gives numbers where they are numbers
  if len(names) == 1:  # as a flag gives them
    path = files.named(names[0])
    in_folder = "/" in names[0]
    if (path.suffix or in_folder) and os.path.isfile(path):
      names = tables.decode(path)[0].splitlines()
    elif path.suffix == ".txt" or (in_folder and (path.suffix or path.is_absolute()) and "," not in names[0]):
      raise UserError(f"data.classes names the file {path}, which is not there: it holds a name in each line")
    else:
      names = names[0].split(",")
  names = tuple(filter(None, map(clean_name, names)))
  if doubled := sorted({name for name in names if names.count(name) > 1}):
    raise UserError(f"data.classes names {', '.join(doubled)} more than once")
  return names


def _alike(name: str) -> str:
  """A name without capitals, blanks, dashes and forms of letters: names that agree in it look alike."""
  return re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFKC", name).casefold())


def look_alike(names: Iterable[str]) -> list[list[str]]:
  """The groups of different names that look alike."""
  groups: dict[str, list[str]] = {}
  for name in sorted(set(names)):
    groups.setdefault(_alike(name), []).append(name)
  return [group for group in groups.values() if len(group) > 1]


def look_joined(names: Iterable[str]) -> list[tuple[str, str]]:
  """Names that look like several with a separator between them, and the separator.

  All of their parts are names as well; or there is a comma between some that recur. Of names with blanks they look so if
  the same words stand in two orders, or if there are at least twice as many names as words that they are made of.
  """
  known = set(names)
  found = []
  for separator in ("|", ",", ";", "/", " "):
    split = {name: [part.strip() for part in name.split(separator)] for name in known if separator in name}
    counts = Counter(part for parts in split.values() for part in parts)
    orders = Counter(tuple(sorted(parts)) for parts in split.values())
    few = len(split) >= 2 * len(counts)
    for name, parts in sorted(split.items()):
      shared = all(part in known for part in parts) or (separator in "|,;" and any(counts[part] > 1 for part in parts))
      shared = shared or (separator == " " and (few or orders[tuple(sorted(parts))] > 1))
      if len(parts) > 1 and all(parts) and shared:
        found.append((name, separator))
  return found


def of_labels(entries: Entries, manifest: str, *, separator: str) -> Classes:
  """The labels of a training manifest, sorted; `separator` is `data.separator`.

  Raises UserError: some look alike, or like several with a separator between them.
  """
  names = {name for said in entries.kinds for name in (*said.labels, *said.ignore, *said.classes)}
  if groups := look_alike(names):
    raise UserError(
      f"the labels {' and '.join(map(repr, groups[0]))} of {manifest} differ in capitals, blanks or dashes alone"
      f"{_more(len(groups), 'such groups')}: write them alike, or name the classes as which all are read, one a line in a"
      " file: --config.data.classes=FILE.txt"
    )
  if not separator and _in_rows(entries) and (joined := look_joined(names)):
    raise UserError(_told(joined, f" of {manifest}"))
  return Classes(tuple(sorted(names)), separator=separator)


def _in_rows(entries: Entries) -> bool:
  """Whether labels stand in a row of their own, where several may be written as one; elsewhere names are whole."""
  return bool(entries) and not entries[0].classes and bool(_ROW.search(entries[0].place))


def _told(joined: Sequence[tuple[str, str]], where: str) -> str:
  """What is wrong with labels that look joined, and what to do."""
  name, found = joined[0]
  return (
    f"the label {name!r}{where} looks like several{_more(len(joined), 'such labels')}: name what separates them,"
    f" --config.data.separator={found!r}, or, if it is one name, --config.data.separator={',' if found == '|' else '|'!r}"
  )


def _more(count: int, what: str) -> str:
  return f" (one of {count:,} {what})" if count > 1 else ""


def apply(entries: Entries, classes: Classes) -> tuple[Entries, list[str], list[str]]:
  """Entries whose labels are all among the classes, with the problems and notes of labels that are not."""
  known, alike = set(classes.names), {_alike(name): name for name in classes.names} if classes.others else {}
  left_out: Counter[str] = Counter()
  taken: Counter[tuple[str, str]] = Counter()
  found, problems = Entries(folder=entries.folder), []

  @functools.cache
  def resolve(name: str) -> str | None:
    return name if name in known else alike.get(_alike(name))

  @functools.cache
  def nearest(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name, classes.names, 1)), None)

  if all({*said.labels, *said.ignore} <= known and not {*said.labels} & {*said.ignore} for said in entries.kinds):
    return entries, [], []
  for entry in entries:
    names = {*entry.labels, *entry.ignore}
    if not names <= known:
      strange = sorted(name for name in names if resolve(name) is None)
      taken.update((name, resolve(name)) for name in names - known if resolve(name) is not None)
      left_out.update(strange)
      if strange and not classes.others:
        near = nearest(strange[0])
        hint = f"; did you mean {near!r}?" if near else f"; the classes are {_some(classes.names)}"
        problems.append(f"{entry.place}: unknown label {_some(strange)}{hint}")
      labels, ignore = (tuple(dict.fromkeys(filter(None, map(resolve, each)))) for each in (entry.labels, entry.ignore))
      kept = [(box, resolve(name)) for box, name in zip(entry.boxes, entry.box_labels, strict=True) if resolve(name)]
      boxes, box_labels = zip(*kept, strict=True) if kept else ((), ())
      entry = entry._replace(labels=labels, ignore=ignore, boxes=boxes, box_labels=box_labels)
    if both := sorted({*entry.labels} & {*entry.ignore}):
      problems.append(f"{entry.place}: {', '.join(both)} is both a label and to be ignored")
    found.append(entry)
  notes = [f"{count:,} images: the label {one!r} is taken for {other!r}" for (one, other), count in taken.items()]
  if left_out and not classes.separator and _in_rows(entries):
    folded, wanted = {_alike(name): name for name in left_out}, set(map(_alike, classes.names))
    pairs = look_joined({*folded, *wanted}) + list(itertools.product(folded, ";,|"))  # of one name the last one counts
    joined = {
      folded[name]: separator
      for name, separator in pairs
      if name in folded and wanted & set(map(str.strip, name.split(separator)))
    }
    if joined := sorted(joined.items()):  # labels that are left out, although they hold a class
      place = next(entry.place for entry in entries if joined[0][0] in (*entry.labels, *entry.ignore))
      problems.append(f"{place}: {_told(joined, '')}")
  if left_out and classes.others:
    counts = (f"{name} ({count:,} images)" for name, count in left_out.most_common(SHOWN))
    more = f" and {len(left_out) - SHOWN:,} more" if len(left_out) > SHOWN else ""
    notes.append(f"labels that data.classes does not name are left out: {', '.join(counts)}{more}")
    seen = {name for said in found.kinds for name in said.labels}
    near = ((name, difflib.get_close_matches(name, left_out, 1, 0.8)) for name in classes.names if name not in seen)
    notes += [
      f"data.classes names {name!r}, which no image has; is {other[0]!r} meant, which is left out?"
      for name, other in near
      if other
    ]
  return found, problems, notes


def _some(names: Sequence[str]) -> str:
  more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
  return f"{', '.join(itertools.islice(names, SHOWN))}{more}"
