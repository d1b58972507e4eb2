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
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from rmam_jax.data.images import decode_image
from rmam_jax.data.record import Index, Record, multi_hot
from rmam_jax.runtime.errors import UserError

SHOWN = 5  # problems in an error


class Entry(NamedTuple):
  """What a manifest says of one image."""

  place: str  # file and line, or file and field
  id: str  # the image's path relative to the folder that images are named relative to, with forward slashes
  labels: tuple[str, ...]
  ignore: tuple[str, ...] = ()
  boxes: tuple[tuple[float, ...], ...] = ()  # (top, left, bottom, right) as shares of the image
  box_labels: tuple[str, ...] = ()
  image: pathlib.Path = pathlib.Path()  # where the image lies; filled in by `parse`


def parse(manifest: str, images: str = "") -> tuple[list[Entry], list[str]]:
  """Everything that a manifest says, and the problems that it has, by their places; `images` is `data.images`.

  Raises UserError: there is no such manifest, it has no known form, or it cannot be read.
  """
  if not manifest:
    raise UserError(
      "data.train, data.validation and data.test must name a manifest each: --config.data.train=train.csv"
    )
  path, listed = pathlib.Path(manifest).expanduser(), ""
  if not path.exists():
    folder, _, listed = manifest.rpartition(":")
    path = pathlib.Path(folder).expanduser()
    if not folder or not path.is_dir():
      raise UserError(f"there is no manifest {manifest}")
  if path.is_dir():
    if not (path / "Annotations").is_dir():
      raise UserError(f"{path} is no VOC-style folder: it has no folder Annotations")
    read, folder = _voc(path, listed), path / "JPEGImages"
  elif path.suffix in _READERS:
    read, folder = _READERS[path.suffix](path), path.parent
  else:
    raise UserError(f"{path}: a manifest is a folder or one of {', '.join(_READERS)}")
  base = pathlib.Path(os.path.abspath(pathlib.Path(images).expanduser() if images else folder))
  entries, problems = [], []
  try:
    for found in read:
      if isinstance(found, str):
        problems.append(found)
        continue
      image = pathlib.Path(os.path.normpath(base / found.id))  # not resolved: links below the folder may lead anywhere
      if image.is_relative_to(base):
        entries.append(found._replace(id=image.relative_to(base).as_posix(), image=image))
      else:
        remedy = "name that folder with --config.data.images=DIR"
        problems.append(f"{found.place}: image {found.id} lies outside {base}: {remedy}")
  except OSError as error:
    raise UserError(f"cannot read {error.filename or path} ({error.strerror or error})") from error
  return entries, problems if entries or problems else [f"{path}: it names no image"]


def _csv(path: pathlib.Path) -> Iterator[Entry | str]:
  with path.open(newline="", encoding="utf-8-sig") as file:
    rows = csv.reader(file, strict=True)
    try:
      header = next(rows, [])
      if header not in (["image", "labels"], ["image", "labels", "ignore"]):
        yield f"{path}:1: the header must be image,labels or image,labels,ignore, got {','.join(header)}"
        return
      for row in filter(None, rows):
        place = f"{path}:{rows.line_num}"
        if len(row) == len(header):
          lists = [tuple(name.strip() for name in field.split("|") if name.strip()) for field in row[1:]]
          yield Entry(place, row[0], *lists)
        else:
          yield f"{place}: {len(row)} fields where the header has {len(header)}"
    except (csv.Error, UnicodeDecodeError) as error:
      yield f"{path}:{rows.line_num}: not valid CSV in UTF-8 ({error})"


def _jsonl(path: pathlib.Path) -> Iterator[Entry | str]:
  for number, line in enumerate(path.read_bytes().splitlines(), start=1):
    if not line.strip():
      continue
    place = f"{path}:{number}"
    try:
      value = json.loads(line)
    except ValueError as error:
      yield f"{place}: not valid JSON ({error})"
      continue
    if not isinstance(value, dict) or not isinstance(value.get("image"), str):
      yield f'{place}: must be an object with "image" and "labels"'
      continue
    lists = [value.get("labels"), value.get("ignore", [])]
    if unknown := sorted(set(value) - {"image", "labels", "ignore"}):
      yield f"{place}: unknown field {', '.join(unknown)}"
    elif all(isinstance(names, list) and all(isinstance(name, str) and name for name in names) for names in lists):
      yield Entry(place, value["image"], *map(tuple, lists))
    else:
      yield f'{place}: "labels" and "ignore" must be lists of names'


def _boxed(place: str, image: str, objects: Sequence[tuple[str, tuple, bool]]) -> Entry:
  """An image with objects, (name, box, whether it counts) each; a class of which none counts is ignored."""
  present = {name for name, _, counts in objects if counts}
  ignored = {name for name, _, _ in objects} - present
  names, boxes, _ = zip(*objects, strict=True) if objects else ((), (), ())
  return Entry(place, image, tuple(sorted(present)), tuple(sorted(ignored)), boxes, names)


def _coco(path: pathlib.Path) -> Iterator[Entry | str]:
  try:
    content = json.loads(path.read_bytes())
    images: dict[Any, dict[str, Any]] = {}
    doubled = [
      f"{path} images[{number}]: id {image['id']} is a duplicate: an image before it has it"
      for number, image in enumerate(content["images"])
      if images.setdefault(image["id"], image) is not image
    ]
    categories = {category["id"]: str(category["name"]) for category in content["categories"]}
    annotations = list(content["annotations"])
  except (ValueError, KeyError, TypeError) as error:
    yield f"{path}: not as COCO has it: images, annotations and categories with ids ({error!r})"
    return
  if doubled:  # nobody can know whose annotations are whose
    yield from doubled
    return
  objects: dict[Any, list[tuple[str, tuple, bool]]] = {image: [] for image in images}
  for number, annotation in enumerate(annotations):
    try:
      image, name = images[annotation["image_id"]], categories[annotation["category_id"]]
      left, top, width, height = map(float, annotation["bbox"])
      tall, wide = float(image["height"]), float(image["width"])
      if not all(map(math.isfinite, (left, top, width, height))):
        raise ValueError(f"bbox {annotation['bbox']}")
      box = (top / tall, left / wide, (top + height) / tall, (left + width) / wide)
      objects[image["id"]].append((name, box, not annotation.get("ignore")))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
      wrong = "image_id, category_id, bbox or the image's width and height are missing or wrong"
      yield f"{path} annotations[{number}]: {wrong} ({error!r})"
  for number, image in enumerate(images.values()):
    place = f"{path} images[{number}]"
    if isinstance(image.get("file_name"), str):
      yield _boxed(place, image["file_name"], objects[image["id"]])
    else:
      yield f"{place}: file_name is missing"


def _voc(folder: pathlib.Path, listed: str) -> Iterator[Entry | str]:
  from defusedxml import ElementTree

  paths = sorted((folder / "Annotations").glob("*.xml"))
  if listed:
    listing = folder / "ImageSets" / "Main" / f"{listed}.txt"
    try:
      lines = listing.read_text("utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError) as error:
      yield f"{listing}: {'missing' if isinstance(error, OSError) else f'no text in UTF-8 ({error})'}"
      return
    paths = [folder / "Annotations" / f"{line.split()[0]}.xml" for line in lines if line.strip()]
  for path in paths:
    try:
      root = ElementTree.parse(path).getroot()
      wide, tall = (float(root.findtext(f"size/{side}")) for side in ("width", "height"))
      objects = []
      for thing in root.findall("object"):
        edges = [float(thing.findtext(f"bndbox/{edge}")) for edge in ("ymin", "xmin", "ymax", "xmax")]
        box = tuple(edge / side for edge, side in zip(edges, (tall, wide, tall, wide), strict=True))
        objects.append((thing.findtext("name").strip(), box, thing.findtext("difficult", "0").strip() != "1"))
      yield _boxed(str(path), root.findtext("filename").strip(), objects)
    except FileNotFoundError:
      yield f"{path}: missing"
    except (ElementTree.ParseError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
      yield f"{path}: not as VOC has it: filename, size and object with name and bndbox ({error!r})"


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".json": _coco}


def _class_names(data: Any, train: Sequence[Entry]) -> tuple[str, ...]:
  """`data.classes`, or the labels of the training manifest, sorted; UserError if `data.classes` names one twice."""
  if doubled := sorted({name for name in data.classes if list(data.classes).count(name) > 1}):
    raise UserError(f"data.classes names {', '.join(doubled)} more than once")
  return tuple(data.classes) or tuple(sorted({name for entry in train for name in (*entry.labels, *entry.ignore)}))


def _unknown_labels(entries: Iterable[Entry], names: Sequence[str]) -> Iterator[str]:
  """Labels that are no class, and labels that are both present and ignored."""
  for entry in entries:
    if strange := sorted({*entry.labels, *entry.ignore, *entry.box_labels} - set(names)):
      yield f"{entry.place}: unknown label {', '.join(strange)}; the classes are {', '.join(names)}"
    if both := sorted({*entry.labels} & {*entry.ignore}):
      yield f"{entry.place}: {', '.join(both)} is both a label and to be ignored"


class Manifest:
  """The records of a manifest, by position; an image is read from its file each time that its record is asked for."""

  def __init__(self, manifest: str, data: Any):
    """Takes the classes of a configuration's `data` section; UserError names the first problems."""
    self._entries, problems = parse(manifest, data.images)
    train = self._entries if data.classes or manifest == data.train else parse(data.train, data.images)[0]
    self.class_names = _class_names(data, train)
    problems += _unknown_labels(self._entries, self.class_names)
    if problems:
      more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
      remedy = "`rmam-jax validate` with the same --config flags lists all."
      raise UserError(f"{'; '.join(problems[:SHOWN])}{more}. {remedy}")
    self._numbers = {name: number for number, name in enumerate(self.class_names)}
    labels, ignore = (
      np.stack([multi_hot(self._classes(getattr(entry, field)), len(self._numbers)) for entry in self._entries])
      for field in ("labels", "ignore")
    )
    ids = np.array([entry.id for entry in self._entries])
    self.index = Index(ids, labels, ignore == 1, (labels + ignore).any(axis=1))

  def _classes(self, names: Iterable[str]) -> list[int]:
    return [self._numbers[name] for name in names]

  def __getitem__(self, position: int) -> Record:
    """Raises OSError if the image's file cannot be read."""
    entry = self._entries[position]
    boxes, classes = (
      np.array(entry.boxes, np.float32).reshape(-1, 4),
      np.array(self._classes(entry.box_labels), np.int32),
    )
    known = self.index.labels[position], self.index.ignore[position], boxes, classes
    return Record(entry.id, entry.image.read_bytes(), *known, path=str(entry.image))

  def digest(self, positions: np.ndarray) -> str:
    """Of the boxes at these positions, and of the images by the sizes of their files."""
    digest = hashlib.sha256()
    for entry in (self._entries[position] for position in positions):
      size = entry.image.stat().st_size if entry.image.exists() else "missing"
      digest.update(f"{size} {entry.boxes} {entry.box_labels}\n".encode())
    return digest.hexdigest()


def validate(data: Any) -> list[str]:
  """All problems, each with its place, of the manifests that a `data` section names and of every image in them.

  Raises UserError: the data are not your own images; or a manifest that is not there or has no known form.
  """
  if data.name != "custom":
    raise UserError(f"validate checks your own images, data.name = 'custom', got {data.name!r}")
  named = {split: data[split] for split in ("train", "validation", "test") if data[split] or split == "train"}
  parsed = {manifest: parse(manifest, data.images) for manifest in dict.fromkeys(named.values())}
  names = _class_names(data, parsed[data.train][0])
  problems: list[str] = []
  owners: dict[str, tuple[str, Entry]] = {}  # of each content's sha256, which split and entry had it first
  for split, manifest in named.items():
    entries, found = parsed[manifest]
    problems += [*found, *_unknown_labels(entries, names)]
    problems += [f"{entry.place}: no label" for entry in entries if not entry.labels and not entry.ignore]
    present = {name for entry in entries for name in entry.labels}
    problems += [f"{manifest}: class {name} has no image" for name in names if name not in present]
    problems += _check_images(split, entries, owners)
  return problems


def _check_images(split: str, entries: Sequence[Entry], owners: dict[str, tuple[str, Entry]]) -> Iterator[str]:
  """Images that cannot be read, and those whose content occurs twice, in one split or in two; adds to the owners."""
  for entry in tqdm.tqdm(entries, f"images of {split}", unit=" images", leave=False):
    try:
      content = entry.image.read_bytes()
      decode_image(content, str(entry.image))
    except OSError as error:
      yield f"{entry.place}: cannot read {entry.image} ({error.strerror or error})"
      continue
    except UserError as error:
      yield f"{entry.place}: {error}"
    owner, first = owners.setdefault(hashlib.sha256(content).hexdigest(), (split, entry))
    if first is not entry or owner != split:
      where = "" if owner == split else f", of the {owner} split: nothing may be in two"
      yield f"{entry.place}: {entry.image} has the same content as {first.place}{where}"
