"""What annotation files say of images: VOC's XML and COCO's JSON, read by one parser each, whoever asks.

A reader yields an `Entry` for each image, a `Note` for what is worth knowing, and a plain str for what is wrong. Labels
need neither boxes nor sizes: what has no usable box keeps its label.
"""

import functools
import json
import math
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rmam_jax.runtime.errors import UserError


class Note(str):
  """What is worth knowing of an annotation and stops nothing; names its place, as problems do."""

  __slots__ = ()


class Entry(NamedTuple):
  """What is said of one image."""

  place: str  # file and line, or file and field
  id: str  # the image's path relative to the folder that images are named relative to, with forward slashes
  labels: tuple[str, ...]
  ignore: tuple[str, ...] = ()  # labels that are neither present nor absent
  boxes: tuple[tuple[float, ...], ...] = ()  # (top, left, bottom, right) as shares of the image
  box_labels: tuple[str, ...] = ()
  size: tuple[float, float] = (0, 0)  # (width, height) in pixels as stated; (0, 0) where none is
  classes: tuple[str, ...] = ()  # all that the file asks about in this image, where it says so: columns of 0 and 1
  part: str = ""  # what the file says of it in a column or field `split`
  image: str = ""  # where the image lies


Found = Iterator[Entry | str]  # a str is a problem, unless it is a Note


class Object(NamedTuple):
  """One thing in an image."""

  name: str
  edges: tuple[float, ...] | None  # (top, left, bottom, right) in pixels
  counts: bool = True  # or it is difficult


def clean_name(text: Any) -> str:
  """A label without blanks around it, with single blanks in it, in Unicode's composed form (NFC)."""
  return _clean(str(text))


@functools.lru_cache(maxsize=65_536)
def _clean(text: str) -> str:
  return unicodedata.normalize("NFC", " ".join(text.split()))


def describe(place: str, image: str, size: Sequence[float], objects: Sequence[Object]) -> Iterator[Entry | Note]:
  """An image with objects. A class of which none counts is ignored; boxes that cannot be are left out and named."""
  present = {each.name for each in objects if each.counts}
  ignored = {each.name for each in objects} - present
  wide, tall = size if all(math.isfinite(side) and side > 0 for side in size) else (0, 0)
  boxes, names = [], []
  for each in objects:
    if each.edges is None:
      continue
    top, left, bottom, right = each.edges
    if not all(map(math.isfinite, each.edges)) or top >= bottom or left >= right:
      what = "is no box of finite numbers with an area: left out"
    elif not wide:
      yield Note(f"{place}: no size of the image is stated, so its boxes are left out")
      break
    elif top >= tall or left >= wide or bottom <= 0 or right <= 0:
      what = f"lies outside the image of {wide:g} x {tall:g}: left out"
    else:
      what = ""
      if min(top, left) < -1 or bottom > tall + 1 or right > wide + 1:
        what = f"leaves the image of {wide:g} x {tall:g}: cut off at its border"
        top, left, bottom, right = max(top, 0), max(left, 0), min(bottom, tall), min(right, wide)
      boxes.append((top / tall, left / wide, bottom / tall, right / wide))
      names.append(each.name)
    if what:
      yield Note(f"{place}: the box of {each.name}, (top, left, bottom, right) = {_numbers(each.edges)}, {what}")
  yield Entry(place, image, tuple(sorted(present)), tuple(sorted(ignored)), tuple(boxes), tuple(names), (wide, tall))


def _numbers(edges: Sequence[float]) -> str:
  return f"({', '.join(f'{edge:g}' for edge in edges)})"


def parse_xml(path: pathlib.Path) -> Any:
  """The root of an XML file in the encoding that it declares, or UTF-8; where that fails, in Windows-1252."""
  from defusedxml import ElementTree

  content = path.read_bytes()
  if not content.strip():
    raise UserError(f"{path}: an empty file")
  try:
    try:
      return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
      if type(error).__module__.startswith("defusedxml"):
        raise
      declared = re.match(rb"<\?xml[^>]*?encoding=[\"']([\w-]+)[\"'][^>]*\?>", content)
      body = content[declared.end() if declared else 0 :]
      try:
        text = body.decode(declared[1].decode() if declared else "cp1252")
      except UnicodeDecodeError:
        text = body.decode("cp1252")
      return ElementTree.fromstring(text)
  except (ElementTree.ParseError, ValueError, LookupError) as error:
    raise UserError(f"{path}: no XML that can be read ({error or type(error).__name__})") from error


def to_number(text: str | None) -> float:
  """A number in XML; NaN where there is none."""
  try:
    return float(text or "nan")
  except ValueError:
    return math.nan


def read_voc(path: pathlib.Path, image: str = "") -> Found:
  """The one image of an XML file as VOC has it; its name is `image`, or what the file says, or that of the file."""
  try:
    root = parse_xml(path)
  except FileNotFoundError:
    yield f"{path}: missing"
    return
  except UserError as error:
    yield str(error)
    return
  if root.tag != "annotation":
    yield f"{path}: not as VOC has it: its root is <{root.tag}>, not <annotation>"
    return
  objects = []
  for number, thing in enumerate(root.findall("object")):
    if not (name := clean_name(thing.findtext("name") or "")):
      yield f"{path}: object {number} has no name: give it one, or remove it"
      continue
    edges = None
    if thing.find("bndbox") is not None:
      edges = tuple(to_number(thing.findtext(f"bndbox/{edge}")) for edge in ("ymin", "xmin", "ymax", "xmax"))
    difficult = (thing.findtext("difficult") or "0").strip().lower() in ("1", "true")
    objects.append(Object(name, edges, not difficult))
  size = tuple(to_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
  name = re.sub(
    r"^(/|[A-Za-z]:[\\/]).*[\\/]", "", (root.findtext("filename") or "").strip()
  )  # a path of another machine
  yield from describe(str(path), image or name or path.stem, size, objects)


def _keyed(path: pathlib.Path, content: Any, field: str) -> tuple[dict[str, Any], list[str]]:
  """The objects of a COCO list by their ids as text, and what is wrong with them."""
  found: dict[str, Any] = {}
  wrong = []
  for number, each in enumerate(content[field]):
    place = f"{path} {field}[{number}]"
    key = each.get("id") if isinstance(each, Mapping) else None
    if isinstance(key, bool) or not isinstance(key, (int, str)):
      wrong.append(f"{place}: id is missing, or neither a number nor a text")
    elif found.setdefault(str(key), each) is not each:
      wrong.append(f"{place}: id {key} is a duplicate: one before it has it")
  return found, wrong


def read_json(path: pathlib.Path) -> Any:
  """A JSON file in any of JSON's encodings, with or without a byte-order mark; UserError says where it is none.

  Of COCO's fields those of `UNREAD`, which are most of a file, are forgotten as soon as they have been parsed.
  """
  with path.open("rb") as file:
    encoding = json.detect_encoding(file.read(4))
  try:
    with path.open(encoding=encoding, newline="") as file:
      return json.loads(file.read(), object_pairs_hook=_without_outlines)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: not valid JSON, or cut short ({error})") from error


UNREAD = frozenset(("segmentation", "keypoints"))


def _without_outlines(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  return {name: value for name, value in pairs if name not in UNREAD}


def is_coco(content: Any) -> bool:
  return isinstance(content, Mapping) and all(isinstance(content.get(field), list) for field in COCO_LISTS)


COCO_LISTS = ("images", "annotations", "categories")


def coco_classes(content: Mapping[str, Any]) -> tuple[str, ...]:
  """The names of the categories in the file's order."""
  named = (each for each in content["categories"] if isinstance(each, Mapping) and "name" in each)
  return tuple(dict.fromkeys(clean_name(each["name"]) for each in named))


def read_coco(path: pathlib.Path, content: Any) -> Found:
  """The images of a file as COCO has it, in its order; `content` is what `read_json` gave."""
  if not is_coco(content):
    has = f"it has {', '.join(map(str, content)) or 'nothing'}" if isinstance(content, Mapping) else "it is no object"
    yield f"{path}: not as COCO has it, an object with the lists {', '.join(COCO_LISTS)}: {has}"
    return
  images, wrong_images = _keyed(path, content, "images")
  categories, wrong_categories = _keyed(path, content, "categories")
  if wrong_images or wrong_categories:  # nobody can know whose annotations are whose
    yield from (*wrong_images, *wrong_categories)
    return
  names: dict[str, str] = {}
  for key, each in categories.items():
    if each.get("name") is None or not clean_name(each["name"]) or not clean_name(each["name"]).isprintable():
      yield f"{path} categories: the category with id {key} has no name that can be printed"
      continue
    names[key] = clean_name(each["name"])
    if list(names.values()).count(names[key]) > 1:
      yield Note(f"{path} categories: more than one is named {names[key]!r}; they count as one class")
  objects: dict[str, list[Object]] = {key: [] for key in images}
  for number, each in enumerate(content["annotations"]):
    if not isinstance(each, Mapping):
      yield f"{path} annotations[{number}]: no object"
      continue
    image, category = str(each.get("image_id")), str(each.get("category_id"))
    if image not in images:
      yield f"{path} annotations[{number}]: image_id {image} is the id of no image"
    elif category not in names:
      if category not in categories:
        yield f"{path} annotations[{number}]: category_id {category} is the id of no category"
    else:
      ignored = bool(mark := each.get("ignore")) and str(mark).strip().lower() not in ("0", "false", "")
      objects[image].append(Object(names[category], _edges(each.get("bbox")), not ignored))
  for number, (key, each) in enumerate(images.items()):
    place = f"{path} images[{number}]"
    if isinstance(each.get("file_name"), str) and each["file_name"].strip():
      yield from describe(place, each["file_name"], _size(each), objects[key])
    else:
      yield f"{place}: file_name is missing"


def _edges(bbox: Any) -> tuple[float, ...] | None:
  """COCO's (left, top, width, height) as (top, left, bottom, right); None where there is none."""
  if not bbox:
    return None
  try:
    left, top, width, height = map(float, bbox)
  except (TypeError, ValueError, OverflowError):
    return (math.nan,) * 4
  return top, left, top + height, left + width


def _size(image: Mapping[str, Any]) -> tuple[float, float]:
  try:
    return float(image["width"]), float(image["height"])
  except (KeyError, TypeError, ValueError, OverflowError):
    return 0, 0
