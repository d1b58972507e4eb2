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
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tqdm

from rmam_jax.data import annotations
from rmam_jax.data.annotations import Entry, Note
from rmam_jax.data.image_files import ImageFiles, tabulate
from rmam_jax.data.images import decode_image
from rmam_jax.runtime.errors import UserError, os_errors

SHOWN = 5  # problems in an error


class Parsed(NamedTuple):
  """What a manifest says, and what is wrong with it and worth knowing of it, by places."""

  entries: tuple[Entry, ...]
  problems: tuple[str, ...]
  notes: tuple[str, ...]


def parse(manifest: str, images: str = "") -> Parsed:
  """Everything that a manifest says; `images` is `data.images`. A file that has not changed is read once a process.

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
  with os_errors(f"cannot read {path}"):
    return _parse(path, listed, images, _state(path))


def _state(path: pathlib.Path) -> tuple[tuple[str, int, int], ...]:
  """Names, sizes and times of the files that a manifest is made of: they differ where it has changed."""
  folders = (path / "Annotations", path / "ImageSets" / "Main") if path.is_dir() else ()
  found = [each for folder in folders if folder.is_dir() for each in os.scandir(folder)] or [path]
  return tuple(sorted((str(each), state.st_size, state.st_mtime_ns) for each in found for state in [each.stat()]))


@functools.lru_cache(maxsize=8)
def _parse(path: pathlib.Path, listed: str, images: str, state: object) -> Parsed:
  del state
  if path.is_dir():
    if not (path / "Annotations").is_dir():
      raise UserError(f"{path} is no VOC-style folder: it has no folder Annotations")
    read, folder = _voc(path, listed), path / "JPEGImages"
  elif path.suffix in _READERS:
    read, folder = _READERS[path.suffix](path), path.parent
  else:
    raise UserError(f"{path}: a manifest is a folder or one of {', '.join(_READERS)}")
  base = pathlib.Path(os.path.abspath(pathlib.Path(images).expanduser() if images else folder))
  entries, problems, notes = [], [], []
  for found in read:
    if isinstance(found, str):
      (notes if isinstance(found, Note) else problems).append(str(found))
      continue
    image = pathlib.Path(os.path.normpath(base / found.id))  # not resolved: links below the folder may lead anywhere
    if image.is_relative_to(base):
      entries.append(found._replace(id=image.relative_to(base).as_posix(), image=image))
    else:
      remedy = "name that folder with --config.data.images=DIR"
      problems.append(f"{found.place}: image {found.id} lies outside {base}: {remedy}")
  if not entries and not problems:
    problems.append(f"{path}: it names no image")
  return Parsed(tuple(entries), tuple(problems), tuple(notes))


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


def _coco(path: pathlib.Path) -> Iterator[Entry | str]:
  try:
    content = annotations.read_json(path)
  except UserError as error:
    yield str(error)
    return
  yield from annotations.read_coco(path, content)


def _voc(folder: pathlib.Path, listed: str) -> Iterator[Entry | str]:
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
    yield from annotations.read_voc(path)


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


def open_manifest(manifest: str, data: Any, name: str) -> ImageFiles:
  """The records of a manifest, called `name`, with the classes of a configuration's `data` section.

  Raises UserError: the first problems.
  """
  parsed = parse(manifest, data.images)
  train = parsed if data.classes or manifest == data.train else parse(data.train, data.images)
  class_names = _class_names(data, train.entries)
  if problems := [*parsed.problems, *_unknown_labels(parsed.entries, class_names)]:
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    remedy = "`rmam-jax validate` with the same --config flags lists all."
    raise UserError(f"{'; '.join(problems[:SHOWN])}{more}. {remedy}")
  made_by = hashlib.sha256(repr((parsed.entries, class_names)).encode()).hexdigest()
  table, paths = tabulate(parsed.entries, class_names), [str(entry.image) for entry in parsed.entries]
  return ImageFiles(name, manifest, class_names, table, paths, made_by, parsed.notes)


def validate(data: Any) -> list[str]:
  """All problems, each with its place, of the manifests that a `data` section names and of every image in them.

  Raises UserError: the data are not your own images; or a manifest that is not there or has no known form.
  """
  if data.name != "custom":
    raise UserError(f"validate checks your own images, data.name = 'custom', got {data.name!r}")
  named = {split: data[split] for split in ("train", "validation", "test") if data[split] or split == "train"}
  parsed = {manifest: parse(manifest, data.images) for manifest in dict.fromkeys(named.values())}
  names = _class_names(data, parsed[data.train].entries)
  problems: list[str] = []
  owners: dict[str, tuple[str, Entry]] = {}  # of each content's sha256, which split and entry had it first
  for split, manifest in named.items():
    entries, found, _ = parsed[manifest]
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
