"""Rows that say which labels an image has: CSV in its dialects, lists of JSON objects, what Label Studio and CVAT export.

As in `annotations`, a reader yields an `Entry` for each row, a `Note` for what is worth knowing, a plain str for what is
wrong.
"""

import ast
import csv
import functools
import json
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from rmam_jax.data.annotations import Entry, Found, Note, Object, clean_name, describe, parse_xml, to_number
from rmam_jax.data.images import SUFFIXES
from rmam_jax.runtime.errors import UserError

BAR = "|"  # separates labels unless `data.separator` says otherwise
# What columns and fields are called in the files of well-known tools, without capitals and underscores.
IMAGE = ("image", "file name", "filename", "file", "path", "filepath", "file path", "image path", "image name")
IMAGE += ("image index", "img", "name")
LABELS = ("labels", "label", "tags", "tag", "classes", "class", "categories", "category", "finding labels", "choices")
LABELS += ("choice", "objects")
IGNORE, SPLIT = "ignore", "split"
# How Label Studio names images, which its exports do not hold, and texts that its JSON-MIN says of each.
UPLOADED, LOCAL = "/data/upload/", "/data/local-files/?d="
_OF_TASKS = ("annotator", "created at", "updated at")
_CHUNK = 1 << 20  # characters that are read at a time
_NOTHING = ("", "nan", "none", "null")  # whole fields that say that there is no label
_FLAGS = ("0", "0.0", "false", "1", "1.0", "true")
_ONE_HOT = {"": 0, "0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1, "-1": -1, "-1.0": -1}
_MARKS = re.compile(r"[\[(]\s*[01](\.0?)?((,\s*|\s+)[01](\.0?)?){2,}\s*[\])]")  # a 0 or 1 for each class
_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})$", re.IGNORECASE)


class Options(NamedTuple):
  """What the `data` section says about how rows are read."""

  columns: tuple[str, ...] = ()  # names of the image's column, the labels' and the one of labels to ignore
  separator: str = ""  # of labels; empty: a bar
  classes: tuple[str, ...] = ()  # which columns of 0 and 1 are classes; empty: all


def open_text(path: pathlib.Path) -> tuple[TextIO, list[Note]]:
  """A file of text: in UTF-8 or UTF-16 with a mark, else UTF-8, else Windows-1252, which is noted. Line ends stay.

  Raises UserError: it begins as UTF-16 and is not.
  """
  with path.open("rb") as file:
    encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
  try:
    with path.open(encoding=encoding, newline="") as file:
      while file.read(_CHUNK):
        pass
  except UnicodeError as error:
    if encoding == "utf-16":
      raise UserError(f"{path}: begins as a text in UTF-16, and is none ({error})") from error
    note = Note(f"{path}: not in UTF-8; it is read as Windows-1252: save it as UTF-8 if letters look wrong")
    return path.open(encoding="cp1252", errors="replace", newline=""), [note]
  return path.open(encoding=encoding, newline=""), []


def is_list(path: pathlib.Path) -> bool:
  """Whether a file of JSON lines is one list after all."""
  file, _ = open_text(path)
  with file:
    return next((line for line in file if line.strip()), "").lstrip().startswith("[")


def decode(path: pathlib.Path) -> tuple[str, list[Note]]:
  """The text of a file that `open_text` opens."""
  file, notes = open_text(path)
  with file:
    return file.read(), notes


def _plain(name: str) -> str:
  return clean_name(name).casefold().replace("_", " ").replace("-", " ")


def labels_of(value: Any, separator: str) -> tuple[str, ...]:
  """The labels in a field: a list, an object with a list, or a text that holds a list or names with separators.

  Without a `separator` a text is divided at bars and what stands in a list is one name; a separator divides both.

  Raises ValueError: it is none of these, or a label holds what cannot be printed.
  """
  return _labels_in(value, separator) if isinstance(value, str) else _listed_labels(value, separator)


@functools.lru_cache(maxsize=65_536)
def _labels_in(text: str, separator: str) -> tuple[str, ...]:
  text = text.strip()
  if text.startswith(("[", "{", "(")):
    try:
      return _listed_labels(json.loads(text), separator)
    except json.JSONDecodeError:
      return _listed_labels(ast.literal_eval(text), separator)  # only literals: nothing in it runs
  if text.casefold() in _NOTHING:
    return ()
  return _listed_labels(text, separator or BAR)


def _listed_labels(value: Any, separator: str) -> tuple[str, ...]:
  if isinstance(value, Mapping):  # {"choices": ["cat"]}, or {"bbox": [[1, 2, 3, 4]], "categories": ["cat"]}
    fields = [each for name, each in value.items() if _plain(str(name)) in LABELS]
    if value and not fields:
      raise ValueError("no field of labels")
    value = fields[0] if fields else None
  values = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
  values = [each for each in values if each == each]  # without NaN
  if not all(isinstance(each, (str, int, float)) and not isinstance(each, bool) for each in values):
    raise ValueError("no list of names")
  if separator:
    values = [part for each in values for part in str(each).split(separator if separator.strip() else None)]
  names = tuple(dict.fromkeys(filter(None, map(clean_name, values))))
  if not all(map(str.isprintable, names)):
    raise ValueError("a name holds characters that cannot be printed")
  return names


class _Columns(NamedTuple):
  """Where in a row what stands."""

  image: int
  labels: int | None  # None: columns of 0 and 1
  ignore: int | None
  split: int | None
  classes: tuple[str, ...]  # of columns of 0 and 1
  marks: tuple[int, ...]  # where these stand
  unused: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def _find_columns(header: tuple[str, ...], options: Options) -> _Columns:
  """Raises UserError, which names the columns that there are."""
  plain = {}
  for number, name in enumerate(header):
    if clean_name(name):
      plain.setdefault(_plain(name), number)

  def place(given: int, known: Iterable[str]) -> int | None:
    if len(options.columns) <= given:
      return next((plain[name] for name in known if name in plain), None)
    if _plain(options.columns[given]) not in plain:
      raise UserError(f"data.columns names {options.columns[given]!r}; the columns are {_listed(header)}")
    return plain[_plain(options.columns[given])]

  image = place(0, IMAGE)
  if image is None:
    raise UserError(
      f"no column is known as that of the images; the columns are {_listed(header)}. Name them:"
      " --config.data.columns=IMAGE,LABELS"
    )
  labels = None if len(options.columns) == 1 else place(1, LABELS)
  ignore, split = place(2, (IGNORE,)), plain.get(SPLIT)
  if labels is not None:
    used = {image, labels, ignore, split}
    unused = tuple(clean_name(name) for number, name in enumerate(header) if number not in used and clean_name(name))
    return _Columns(image, labels, ignore, split, (), (), unused)
  chosen = {_plain(name) for name in options.classes} or {*plain} - {IGNORE}
  rest = {
    number: clean_name(name) for number, name in enumerate(header) if number not in (image, split) and name.strip()
  }
  classes = {number: name for number, name in rest.items() if _plain(name) in chosen}
  if not classes:
    raise UserError(
      f"no column is known as that of the labels; the columns are {_listed(header)}. Name them:"
      " --config.data.columns=IMAGE,LABELS"
    )
  unused = tuple(name for number, name in rest.items() if number not in classes)
  return _Columns(image, None, None, split, tuple(classes.values()), tuple(classes), unused)


def _listed(names: Iterable[str]) -> str:
  return ", ".join(repr(name) for name in names)


def read_csv(path: pathlib.Path, options: Options) -> Found:
  """The rows of a table whose first row names its columns.

  Fields are separated by what the first row has most of: commas, semicolons or tabs.
  """
  file, notes = open_text(path)
  yield from notes
  with file:
    yield from _read_table(path, file, options)


def _read_table(path: pathlib.Path, file: TextIO, options: Options) -> Found:
  first = next((line for line in file if line.strip()), "")
  file.seek(0)
  delimiter = max(",;\t", key=first.count)
  rows = csv.reader(file, strict=True, delimiter=delimiter, skipinitialspace=True)
  columns, width, before = None, 0, 0
  try:
    for row in rows:
      place, before, written = f"{path}:{before + 1}", rows.line_num, len(row)
      while len(row) > width and not row[-1].strip():
        row.pop()
      if not any(field.strip() for field in row) or (columns is None and row == ["sep="]):  # Excel's first line
        continue
      if columns is None:
        width = len(row)
        if _SUFFIX.search(row[0].strip()) and width <= 2 <= written:
          width = 2
          yield Note(f"{place}: no header; the first column is taken for the images, the second for their labels")
          columns = _Columns(0, 1, None, None, (), (), ())
        else:
          try:
            columns = _find_columns(tuple(row), options)
          except UserError as error:
            yield f"{place}: {error}"
            return
          if columns.unused:
            yield Note(f"{place}: columns that are not read: {_listed(columns.unused)}")
          continue
      if len(row) < width - 1 or len(row) > width:
        yield f"{place}: {len(row)} fields where the header has {width}: {_listed(row)}"
        continue
      row += [""] * (width - len(row))
      yield from _read_row(place, row, columns, options)
  except csv.Error as error:
    yield f"{path}:{before + 1}: not valid CSV ({error})"
  if columns is None:
    yield f"{path}: an empty file; its first row must name columns, e.g. image,labels"


def _read_row(place: str, row: Sequence[str], columns: _Columns, options: Options) -> Found:
  image = row[columns.image].strip()
  if not image:
    yield f"{place}: the image has no name"
    return
  part = "" if columns.split is None else clean_name(row[columns.split])
  if columns.labels is not None:
    fields = {"labels": row[columns.labels], "ignore": "" if columns.ignore is None else row[columns.ignore]}
    yield from _entry(place, image, fields, part, options)
    return
  marks = [_ONE_HOT.get(row[number].strip().casefold()) for number in columns.marks]
  if None in marks:
    wrong = marks.index(None)
    yield (
      f"{place}: the column {columns.classes[wrong]!r} holds {row[columns.marks[wrong]]!r}; columns of classes hold 0 and 1,"
      " or -1 for neither. If other columns are the classes name them: --config.data.classes=cat,dog; if one column holds"
      " the labels: --config.data.columns=IMAGE,LABELS"
    )
    return
  known = list(zip(columns.classes, marks, strict=True))
  present, neither = (tuple(name for name, mark in known if mark == wanted) for wanted in (1, -1))
  yield Entry(place, image, present, neither, classes=columns.classes, part=part)


def _entry(place: str, image: str, fields: Mapping[str, Any], part: str, options: Options) -> Found:
  """An entry of labels and labels to ignore that are still as they stand in the file."""
  found = {}
  for name, value in fields.items():
    if value is None or value == "":
      found[name] = ()
      continue
    text = "" if isinstance(value, Mapping) else str(value).strip()
    if _MARKS.fullmatch(text):
      yield f"{place}: {name} holds 0 and 1, {_short(value)}: write names, or a column for each class under its name"
      return
    if name == IGNORE and text.casefold() in _FLAGS:
      yield (
        f"{place}: {name} must name labels that are neither present nor absent, got {_short(value)}: leave the row out,"
        f" or call the column something else; a label of that name is written as a list, {json.dumps([text])}"
      )
      return
    try:
      found[name] = labels_of(value, options.separator)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
      wanted = f"names that can be printed, separated by {options.separator or BAR!r}, or a list of them"
      yield f"{place}: {name} must be {wanted}, got {_short(value)}"
      return
  yield Entry(place, image, **found, part=part)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} stands there twice")
  return found


def read_lines(path: pathlib.Path, options: Options) -> Found:
  """JSON lines: an object for each image."""

  def objects(file: TextIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
      if line.strip():
        try:
          yield f"{path}:{number}", json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
          yield f"{path}:{number}", error

  file, notes = open_text(path)
  yield from notes
  with file:
    yield from read_rows(path, objects(file), options)


def read_rows(path: pathlib.Path, rows: Iterable[tuple[str, Any]], options: Options) -> Found:
  """Objects, with the place of each, that name an image and its labels; or Label Studio's tasks.

  An exception in place of an object says why there is none.
  """
  unused: dict[str, None] = {}
  for place, row in rows:
    if isinstance(row, Exception):
      yield f"{place}: not valid JSON ({row})"
    elif not isinstance(row, Mapping):
      yield f'{place}: must be an object with "image" and "labels", got {_short(row)}'
    elif _is_task(row):
      try:
        yield from list(_read_task(place, row, options, unused))
      except (AttributeError, KeyError, TypeError) as error:
        yield f"{place}: not as Label Studio exports a task ({error!r})"
    else:
      try:
        columns = _find_columns(tuple(row), options)
      except UserError as error:
        yield f"{place}: {error}"
        continue
      fields = list(row.values())
      image = fields[columns.image]
      if columns.labels is None:
        yield (
          f"{place}: no field is known as that of the labels; the fields are {_listed(row)}. Name them:"
          " --config.data.columns=IMAGE,LABELS"
        )
        continue
      if not isinstance(image, str) or not image.strip():
        yield f"{place}: {list(row)[columns.image]!r} must be the name of an image, got {_short(image)}"
        continue
      part = "" if columns.split is None or fields[columns.split] is None else clean_name(fields[columns.split])
      unused |= dict.fromkeys(columns.unused)
      ignored = None if columns.ignore is None else fields[columns.ignore]
      yield from _entry(place, image.strip(), {"labels": fields[columns.labels], "ignore": ignored}, part, options)
  if unused:
    yield Note(f"{path}: fields that are not read: {_listed(unused)}")


def _short(value: Any) -> str:
  return f"{value!r:.40}"


def _is_task(row: Mapping[str, Any]) -> bool:
  """Whether this is a task of Label Studio, exported as JSON or as its short form, JSON-MIN."""
  if isinstance(row.get("data"), Mapping) and "annotations" in row:
    return True
  image = row.get("image")
  return isinstance(image, str) and image.startswith((UPLOADED, LOCAL)) and "id" in row


def _read_task(place: str, task: Mapping[str, Any], options: Options, unused: dict[str, None]) -> Found:
  data = task["data"] if "annotations" in task else task
  image = next((value for value in data.values() if isinstance(value, str) and _SUFFIX.search(value.strip())), "")
  if not image:
    yield f"{place}: the task names no image"
    return
  if "annotations" in task:
    done = [each for each in task["annotations"] if not each.get("was_cancelled")]
    if not done:
      yield Note(f"{place}: {image} has not been annotated: left out")
      return
    if len(done) > 1:
      yield Note(f"{place}: {image} has {len(done)} annotations: the first is taken")
    values = [each.get("value") or {} for each in done[0].get("result") or []]
  else:  # fields of the user's own naming: regions, an object with choices, or a text, which is one choice or a remark
    named = options.columns[1:2]
    values, texts, told = [], {}, False
    for name, value in task.items():
      known = _plain(name) in (tuple(map(_plain, named)) or LABELS)
      for each in value if isinstance(value, list) else [value]:
        each = {"choices": [each]} if known and isinstance(each, str) else each
        if isinstance(each, Mapping) and (known or not named):
          values.append(each)
          told = told or (known and "choices" in each)
        elif isinstance(each, str) and each.strip() and not _SUFFIX.search(each) and _plain(name) not in _OF_TASKS:
          texts[name] = None
    if texts and not named and not told:
      yield (
        f"{place}: whether {_listed(texts)} is a label or a remark cannot be told: name the field of the labels,"
        " --config.data.columns=image,LABELS, or export as JSON, which tells"
      )
      return
    unused |= texts
  objects = [
    Object(clean_name(name), _percent(value))
    for value in values
    for kind, names in value.items()
    if (kind == "choices" or kind.endswith("labels")) and isinstance(names, list)
    for name in names
    if clean_name(name)
  ]
  if image.startswith(LOCAL):
    image = urllib.parse.unquote(image.removeprefix(LOCAL))
  yield from describe(place, image, (100, 100), objects)


def _percent(value: Mapping[str, Any]) -> tuple[float, ...] | None:
  """The edges of a region whose place is given in percent of the image; None without one, or if it is turned."""
  try:
    left, top, width, height = (float(value[name]) for name in ("x", "y", "width", "height"))
  except (KeyError, TypeError, ValueError):
    return None
  return None if value.get("rotation") else (top, left, top + height, left + width)


def read_cvat(path: pathlib.Path) -> Found:
  """CVAT's own XML, "CVAT for images": <image name width height> with <tag label>, <box label xtl ytl xbr ybr>, ..."""
  try:
    root = parse_xml(path)
  except UserError as error:
    yield str(error)
    return
  if root.tag != "annotations":
    yield f"{path}: not as CVAT exports images: its root is <{root.tag}>, not <annotations>"
    return
  for number, image in enumerate(root.iter("image")):
    place = f"{path} image {number}"
    objects = []
    for each in image:
      if not (name := clean_name(each.get("label", ""))):
        yield f"{place}: <{each.tag}> has no label"
        continue
      edges = None
      if each.tag == "box" and not each.get("rotation"):
        edges = tuple(to_number(each.get(edge)) for edge in ("ytl", "xtl", "ybr", "xbr"))
      objects.append(Object(name, edges))
    if not image.get("name"):
      yield f"{place}: the image has no name"
      continue
    size = to_number(image.get("width")), to_number(image.get("height"))
    yield from describe(place, image.get("name"), size, objects)
