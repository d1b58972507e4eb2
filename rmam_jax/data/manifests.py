"""Your own images: a manifest says which labels each file has.

A manifest is one of

  NAME.csv        a header `image,labels` and, if wanted, `ignore`; labels are separated by |
  NAME.jsonl      a line {"image": "a.jpg", "labels": ["cat"], "ignore": []} for each image; `ignore` may be left out
  NAME.json       as COCO has it: `images`, `annotations`, `categories`
  FOLDER          as VOC has it: FOLDER/Annotations/*.xml, FOLDER/JPEGImages; FOLDER:NAME takes the images that
                  FOLDER/ImageSets/Main/NAME.txt lists

Images are named relative to the manifest's folder, VOC's FOLDER/JPEGImages, or `data.images`, and lie below it. Ignored
labels are neither present nor absent (`data.difficult`); in a VOC folder they are those of classes that appear only as
difficult, in COCO's form only in annotations with `"ignore": 1`. Boxes, of COCO and VOC manifests, are never trained on.
"""

import csv
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmam_jax.data.record import Record, multi_hot
from rmam_jax.runtime.errors import UserError

SEPARATOR = "|"
SHOWN = 5  # problems in an error


class Entry(NamedTuple):
  """What a manifest says of one image."""

  place: str  # file and line, or file and field
  image: pathlib.Path
  labels: tuple[str, ...]
  ignore: tuple[str, ...] = ()
  boxes: tuple[tuple[float, ...], ...] = ()  # (top, left, bottom, right) as shares of the image
  box_labels: tuple[str, ...] = ()


class Problem(NamedTuple):
  place: str
  text: str

  def __str__(self) -> str:
    return f"{self.place}: {self.text}"


def parse(manifest: str, images: str = "") -> tuple[list[Entry], list[Problem]]:
  """Everything that a manifest says, and everything that is wrong with it.

  Args:
    manifest: see the module's docstring.
    images: the folder that images are named relative to; empty: the manifest's own.

  Raises:
    UserError: there is no such manifest, or it has no known form.
  """
  path, read = _reader(manifest)
  base = pathlib.Path(images).expanduser() if images else path.parent if path.is_file() else path / "JPEGImages"
  entries, problems = [], []
  for found in read():
    if isinstance(found, Entry):
      found = _located(found, base)
    (entries if isinstance(found, Entry) else problems).append(found)
  if not entries and not problems:
    problems.append(Problem(str(path), "it names no image"))
  return entries, problems


def _reader(manifest: str) -> tuple[pathlib.Path, Callable[[], Iterable[Entry | Problem]]]:
  if not manifest:
    raise UserError(
      "data.train, data.validation and data.test must name a manifest each: --config.data.train=train.csv"
    )
  path = pathlib.Path(manifest).expanduser()
  folder, _, listed = manifest.rpartition(":")
  if not path.exists() and folder and pathlib.Path(folder).expanduser().is_dir():
    path = pathlib.Path(folder).expanduser()
  elif not path.exists():
    raise UserError(f"there is no manifest {manifest}")
  else:
    listed = ""
  if path.is_dir():
    if not (path / "Annotations").is_dir():
      raise UserError(f"{path} is no VOC-style folder: it has no folder Annotations")
    return path, lambda: _voc(path, listed)
  if path.suffix not in _READERS:
    raise UserError(f"{path}: a manifest is a folder or one of {', '.join(_READERS)}")
  return path, lambda: _READERS[path.suffix](path)


def _located(entry: Entry, base: pathlib.Path) -> Entry | Problem:
  """The entry with its image's whole path, which must not leave the folder."""
  base = pathlib.Path(os.path.abspath(base))
  path = pathlib.Path(os.path.normpath(base / entry.image))  # links below the folder may lead anywhere
  if not path.is_relative_to(base):
    return Problem(
      entry.place, f"image {entry.image} lies outside {base}: name that folder with --config.data.images=DIR"
    )
  return entry._replace(image=path)


def _names(value: Any) -> tuple[str, ...] | None:
  """A list of names, or None if it is none."""
  if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
    return None
  return tuple(value)


def _csv(path: pathlib.Path) -> Iterator[Entry | Problem]:
  with path.open(newline="", encoding="utf-8-sig") as file:
    rows = csv.reader(file, strict=True)
    try:
      header = next(rows, [])
      if header[:2] != ["image", "labels"] or header[2:] not in ([], ["ignore"]):
        yield Problem(f"{path}:1", f"the header must be image,labels or image,labels,ignore, got {','.join(header)}")
        return
      for row in rows:
        place = f"{path}:{rows.line_num}"
        if not row:
          continue
        if len(row) != len(header):
          yield Problem(place, f"{len(row)} fields where the header has {len(header)}")
          continue
        lists = [tuple(name.strip() for name in field.split(SEPARATOR) if name.strip()) for field in row[1:]]
        yield Entry(place, pathlib.Path(row[0]), *lists)
    except (csv.Error, UnicodeDecodeError) as error:
      yield Problem(f"{path}:{rows.line_num}", f"no CSV in UTF-8 ({error})")


def _jsonl(path: pathlib.Path) -> Iterator[Entry | Problem]:
  for number, line in enumerate(path.read_bytes().splitlines(), start=1):
    place = f"{path}:{number}"
    if not line.strip():
      continue
    try:
      value = json.loads(line)
    except ValueError as error:
      yield Problem(place, f"no JSON ({error})")
      continue
    if not isinstance(value, dict) or not isinstance(value.get("image"), str):
      yield Problem(place, 'must be an object with "image" and "labels"')
      continue
    unknown = sorted(set(value) - {"image", "labels", "ignore"})
    labels, ignore = _names(value.get("labels")), _names(value.get("ignore", []))
    if unknown:
      yield Problem(place, f"unknown field {', '.join(unknown)}")
    elif labels is None or ignore is None:
      yield Problem(place, '"labels" and "ignore" must be lists of names')
    else:
      yield Entry(place, pathlib.Path(value["image"]), labels, ignore)


def _coco(path: pathlib.Path) -> Iterator[Entry | Problem]:
  try:
    content = json.loads(path.read_bytes())
    images: dict[Any, dict[str, Any]] = {}
    doubled = []
    for number, image in enumerate(content["images"]):
      if images.setdefault(image["id"], image) is not image:
        doubled.append(Problem(f"{path} images[{number}]", f"id {image['id']} is that of an image before it"))
    categories = {category["id"]: str(category["name"]) for category in content["categories"]}
    found: dict[Any, list[tuple[str, tuple[float, ...]]]] = {image: [] for image in images}
    counted: dict[Any, set[str]] = {image: set() for image in images}
    annotations = list(content["annotations"])
  except (ValueError, KeyError, TypeError) as error:
    yield Problem(str(path), f"not as COCO has it: images, annotations and categories with ids ({error!r})")
    return
  if doubled:  # whose annotations are whose cannot be known
    yield from doubled
    return
  for number, annotation in enumerate(annotations):
    place = f"{path} annotations[{number}]"
    try:
      image, name = images[annotation["image_id"]], categories[annotation["category_id"]]
      left, top, width, height = map(float, annotation["bbox"])
      tall, wide = float(image["height"]), float(image["width"])
      if not all(map(math.isfinite, (left, top, width, height))):
        raise UserError(f"bbox {annotation['bbox']}")
      found[image["id"]].append((name, (top / tall, left / wide, (top + height) / tall, (left + width) / wide)))
      if not annotation.get("ignore"):
        counted[image["id"]].add(name)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
      yield Problem(
        place, f"image_id, category_id, bbox or the image's width and height are missing or wrong ({error!r})"
      )
  for number, image in enumerate(content["images"]):
    place = f"{path} images[{number}]"
    if not isinstance(image.get("file_name"), str):
      yield Problem(place, "file_name is missing")
      continue
    names, boxes = zip(*found[image["id"]], strict=True) if found[image["id"]] else ((), ())
    present = counted[image["id"]]
    ignored = sorted(set(names) - present)
    yield Entry(place, pathlib.Path(image["file_name"]), tuple(sorted(present)), tuple(ignored), boxes, names)


def _voc(folder: pathlib.Path, listed: str) -> Iterator[Entry | Problem]:
  from defusedxml import ElementTree

  paths = sorted((folder / "Annotations").glob("*.xml"))
  if listed:
    listing = folder / "ImageSets" / "Main" / f"{listed}.txt"
    if not listing.is_file():
      yield Problem(str(listing), "missing")
      return
    try:
      names = [line.split()[0] for line in listing.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
      yield Problem(str(listing), f"no text in UTF-8 ({error})")
      return
    paths = [folder / "Annotations" / f"{name}.xml" for name in names]
  for path in paths:
    try:
      root = ElementTree.parse(path).getroot()
      wide, tall = (float(root.findtext(f"size/{side}")) for side in ("width", "height"))
      names, difficult, boxes = [], [], []
      for thing in root.findall("object"):
        left, top, right, bottom = (
          float(thing.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        names.append(thing.findtext("name").strip())
        difficult.append(thing.findtext("difficult", "0").strip() == "1")
        boxes.append((top / tall, left / wide, bottom / tall, right / wide))
      image = root.findtext("filename").strip()
    except FileNotFoundError:
      yield Problem(str(path), "missing")
      continue
    except (ElementTree.ParseError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
      yield Problem(str(path), f"not as VOC has it: filename, size and object with name and bndbox ({error!r})")
      continue
    present = {name for name, hard in zip(names, difficult, strict=True) if not hard}
    yield Entry(
      str(path),
      pathlib.Path(image),
      tuple(sorted(present)),
      tuple(sorted(set(names) - present)),
      tuple(boxes),
      tuple(names),
    )


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".json": _coco}


def class_names(data: Any, train: Sequence[Entry]) -> tuple[str, ...]:
  """`data.classes`, or the labels of the training manifest, sorted.

  Raises:
    UserError: `data.classes` names one twice.
  """
  if doubled := sorted({name for name in data.classes if list(data.classes).count(name) > 1}):
    raise UserError(f"data.classes names {', '.join(doubled)} more than once")
  return tuple(data.classes) or tuple(sorted({name for entry in train for name in (*entry.labels, *entry.ignore)}))


def unknown_labels(entries: Iterable[Entry], names: Sequence[str]) -> list[Problem]:
  """Labels that are no class, and labels that are both present and ignored."""
  known = set(names)
  problems = []
  for entry in entries:
    strange = sorted({*entry.labels, *entry.ignore, *entry.box_labels} - known)
    if strange:
      problems.append(Problem(entry.place, f"unknown label {', '.join(strange)}; the classes are {', '.join(names)}"))
    both = sorted({*entry.labels} & {*entry.ignore})
    if both:
      problems.append(Problem(entry.place, f"{', '.join(both)} is both a label and to be ignored"))
  return problems


class Manifest:
  """The records of a manifest, by position; images are read from their files each time."""

  def __init__(self, entries: Sequence[Entry], names: Sequence[str]):
    self.class_names = tuple(names)
    self._entries = entries
    self._index = {name: number for number, name in enumerate(names)}

  def __len__(self) -> int:
    return len(self._entries)

  def _marks(self, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    labels, ignore = (
      multi_hot([self._index[name] for name in names], len(self._index)) for names in (entry.labels, entry.ignore)
    )
    return labels, ignore == 1

  def __getitem__(self, position: int) -> Record:
    """Raises UserError if the image's file cannot be read."""
    entry = self._entries[position]
    return Record(
      str(entry.image),
      entry.image.read_bytes(),
      *self._marks(entry),
      np.array(entry.boxes, np.float32).reshape(-1, 4),
      np.array([self._index[name] for name in entry.box_labels], np.int32),
    )

  def digest(self, positions: np.ndarray) -> str:
    """Of the boxes at these positions, and of the images by the sizes of their files."""
    digest = hashlib.sha256()
    for entry in (self._entries[position] for position in positions):
      size = entry.image.stat().st_size if entry.image.exists() else "missing"
      digest.update(f"{size} {entry.boxes} {entry.box_labels}\n".encode())
    return digest.hexdigest()

  def index(self) -> tuple[list, list, list, list]:
    """Ids, labels, ignored labels and whether anything is marked, of every record."""
    marks = [self._marks(entry) for entry in self._entries]
    labels, ignore = zip(*marks, strict=True)
    annotated = [bool(a.any() or b.any()) for a, b in marks]
    return [str(entry.image) for entry in self._entries], list(labels), list(ignore), annotated


def open_manifest(manifest: str, data: Any) -> Manifest:
  """The records of a manifest.

  Args:
    manifest: see the module's docstring.
    data: the `data` section of a configuration.

  Raises:
    UserError: there is no such manifest.
    UserError: it has problems; the first few are named.
  """
  entries, problems = parse(manifest, data.images)
  train = entries if manifest == data.train else parse(data.train, data.images)[0]
  names = class_names(data, train)
  problems += unknown_labels(entries, names)
  if problems:
    listed = "; ".join(map(str, problems[:SHOWN]))
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise UserError(f"{listed}{more}. `python -m rmam_jax.data.validate` with the same --config flags lists all.")
  return Manifest(entries, names)
