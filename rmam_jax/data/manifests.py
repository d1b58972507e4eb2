"""Your own images: a manifest says which labels each file has. It may be

  NAME.csv, .tsv, .txt   columns of images and labels (cat|dog), or of images and, for each class, 0 or 1
  NAME.jsonl             {"image": "a.jpg", "labels": ["cat"]} in each line; Hugging Face's metadata.jsonl
  NAME.json              as COCO has it; a list of such objects; or Label Studio's export
  NAME.xml               CVAT's export "for images"
  FOLDER                 XML files as VOC has them, in FOLDER/Annotations or anywhere in it; or a folder that holds one of
                         `KNOWN_FILES`
  MANIFEST:NAME          of a table, the rows whose column `split` is NAME; of a folder as VOC has it, the images that
                         FOLDER/ImageSets/Main/NAME.txt lists; with `data.split`, a part: train, validation or test

Images are named relative to `data.images` or, where that is empty, to the first of some folders that has them: the
manifest's, its `images`, one called as the manifest. They lie below it. Rows of one image are joined. Ignored labels are
neither present nor absent (`data.difficult`): the column or field `ignore`, -1, VOC's classes that appear only as
difficult, COCO's annotations with `"ignore": 1`. Images without any label are negatives. Boxes are never trained on.
"""

import functools
import hashlib
import itertools
import os
import pathlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmam_jax.data import annotations, tables
from rmam_jax.data import classes as class_lib
from rmam_jax.data import images as image_lib
from rmam_jax.data.annotations import Entry, Found, Note
from rmam_jax.data.classes import Classes
from rmam_jax.data.entries import Entries
from rmam_jax.data.image_files import ImageFiles, Paths, tabulate
from rmam_jax.data.partition import PARTS, partition
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError, os_errors

SHOWN = 5  # problems in an error
# In a folder that is named as a manifest: Roboflow's and Hugging Face's.
KNOWN_FILES = ("_classes.csv", "_annotations.coco.json", "metadata.csv", "metadata.jsonl")
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".xml")
_TRIED = 50  # images by which the folder of images is found


class Missing(str):
  """A problem: an image's file is not there, which `data.corrupt` "skip" forgives."""

  __slots__ = ()


class Parsed(NamedTuple):
  """What a manifest says, and what is wrong with it and worth knowing of it, by places."""

  entries: Entries
  problems: tuple[str, ...]
  notes: tuple[str, ...]
  folder: str  # that images are named relative to


class _Reading(NamedTuple):
  """All of a `data` section that changes what a manifest says."""

  images: str
  split: tuple[float, ...]
  options: tables.Options


def parse(manifest: str, data: Any) -> Parsed:
  """Everything that a manifest says, read as a `data` section tells. A file that has not changed is read once a process.

  Raises UserError: there is no such manifest, it has no known form, or it cannot be read.
  """
  if not manifest:
    raise UserError(
      "data.train, data.validation and data.test must name a manifest each: --config.data.train=train.csv; or data.train"
      " names one and data.split=0.8,0.1,0.1 makes the three of it. `rmam-jax init FOLDER` looks for them and writes a"
      " configuration"
    )
  path, part = files.named(manifest), ""
  if not path.exists():
    whole, _, part = manifest.rpartition(":")
    path = files.named(whole)
    if not whole or not path.exists():
      raise UserError(f"there is no manifest {manifest}")
  columns = tuple(annotations.clean_name(name) for name in data.columns.split(",") if name.strip())
  options = tables.Options(columns, data.separator, class_lib.chosen(data.classes))
  field = next((field for field in ("train", "validation", "test") if data[field] == manifest), "train")
  images = _images_of(data, field)
  try:
    shares = tuple(map(float, data.split))
  except ValueError as error:
    raise UserError(f"data.split must be shares, as in 0.8,0.1,0.1; got {tuple(data.split)}") from error
  with os_errors(f"cannot read {path}"):
    return _parse(path, part, _Reading(images, shares, options), _state(path))


def _images_of(data: Any, field: str) -> str:
  """`data.images`, or of three folders with commas between them that of a field."""
  folders = data.images.split(",")
  if len(folders) == 1 or files.named(data.images).exists():
    return data.images
  if len(folders) != 3:
    raise UserError(
      f"data.images must be a folder, or three with commas: for train, validation, test; got {data.images!r}"
    )
  return folders[("train", "validation", "test").index(field)].strip()


def _state(path: pathlib.Path) -> tuple[tuple[str, int, int], ...]:
  """Names, sizes and times of the files that a manifest is made of: they differ where it has changed."""
  found = [path]
  if path.is_dir():
    found = [*_xml_files(path), *path.glob("ImageSets/Main/*.txt"), *map(path.joinpath, KNOWN_FILES)]
  states = ((each, each.stat()) for each in found if each.exists())
  return tuple((str(each), state.st_size, state.st_mtime_ns) for each, state in states)


def _xml_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The XML files of a VOC-style folder: in its Annotations, or anywhere below it. Hidden files are none."""
  for name in ("Annotations", "annotations"):
    if (folder / name).is_dir():
      found = files.below(folder / name)
      break
  else:
    found = files.below(folder)
  return sorted(each for each in found if each.suffix.lower() == ".xml" and not each.name.startswith("."))


@functools.lru_cache(maxsize=8)
def _read_whole(path: pathlib.Path, listed: str, images: str, options: tables.Options, state: object) -> Parsed:
  """All of a manifest's images, or those that a list or a column of its own names."""
  file = path
  if path.is_dir():
    file = next((path / name for name in KNOWN_FILES if (path / name).is_file()), None)
    file = None if (path / "Annotations").is_dir() else file
  if file:
    entries, *told = _read_file(file, options, state)
    problems, notes = map(list, told)
    entries, wrong = _of_part(file, entries, listed)
    problems += wrong
  else:
    entries, problems, notes = _gathered(_voc(path, listed))
  folders, former = _image_folder(path, images, entries.ids)
  if former:
    notes.append(
      f"{path}: there is no folder {former}, which all images are said to lie in: they are in {folders.base}"
    )
  located = _locate(entries, folders, former, problems, notes)
  joined = _join(path, located, folders.below, notes)
  missing = [place for place, each in enumerate(problems) if isinstance(each, Missing)]
  if missing and len(missing) == len(entries):
    told = f"{path}: none of its images lies below {folders.base}: name their folder with --config.data.images=DIR"
    problems.insert(missing[0], Missing(told))
  if not joined and not problems:
    problems.append(f"{path}: it names no image")
  return Parsed(joined, tuple(problems), tuple(notes), folders.base)


@functools.lru_cache(maxsize=8)
def _parse(path: pathlib.Path, part: str, reading: _Reading, state: object) -> Parsed:
  if not reading.split or not part:
    return _read_whole(path, part, reading.images, reading.options, state)
  parsed = _read_whole(path, "", reading.images, reading.options, state)
  if part not in PARTS[: len(reading.split)]:
    raise UserError(f"data.split makes {', '.join(PARTS[: len(reading.split)])} of {path}, not {part!r}")
  places = np.flatnonzero(_partition(path, reading, state) == PARTS.index(part)).tolist()
  return parsed._replace(entries=Entries(map(parsed.entries.__getitem__, places), parsed.entries.folder))


@functools.lru_cache(maxsize=1)
def _partition(path: pathlib.Path, reading: _Reading, state: object) -> np.ndarray:
  """Which part each of a manifest's images goes to."""
  entries = _read_whole(path, "", reading.images, reading.options, state).entries
  return partition([said.labels for said in entries.said], entries.ids, reading.split)


def _gathered(found: Found) -> tuple[Entries, list[str], list[str]]:
  """The entries, problems and notes of a reader."""
  entries, problems, notes = Entries(), [], []
  for each in found:
    if isinstance(each, Entry):
      entries.append(each)
    elif isinstance(each, Note):
      notes.append(str(each))
    else:
      problems.append(each)
  return entries, problems, notes


@functools.lru_cache(maxsize=1)  # the next split may be another part of it
def _read_file(path: pathlib.Path, options: tables.Options, state: object) -> tuple[Entries, list[str], list[str]]:
  """All that one file says, whatever the part."""
  del state
  return _gathered(_rows_of(path, options))


def _of_part(path: pathlib.Path, entries: Entries, part: str) -> tuple[Entries, list[str]]:
  """The entries of a part, or all of them if none is named, and what is wrong with its name."""
  parts = {said.part for said in entries.kinds}
  if not part or not entries:
    return entries, [SeveralSplits(path, parts)] if len(parts) > 1 else []
  if part not in parts:
    holds = f"its column {tables.SPLIT!r} holds {', '.join(map(repr, sorted(parts)))}, not {part!r}"
    return Entries(), [f"{path}: {holds if any(parts) else f'it has no column {tables.SPLIT!r} to choose {part!r} by'}"]
  return (entries if len(parts) == 1 else Entries(entry for entry in entries if entry.part == part)), []


class SeveralSplits(str):
  """A problem: a table holds the rows of several splits, `splits`, and none is named."""

  splits: tuple[str, ...]

  def __new__(cls, path: pathlib.Path, splits: Iterable[str]):
    splits = tuple(sorted(splits))
    told = f"{path}: its column {tables.SPLIT!r} holds {', '.join(map(repr, splits))}"
    first = next(filter(None, splits))
    made = super().__new__(cls, f"{told}: name one of them, e.g. --config.data.train={path.name}:{first}")
    made.splits = splits
    return made


def _rows_of(path: pathlib.Path, options: tables.Options) -> Found:
  suffix = path.suffix.lower()
  if suffix not in SUFFIXES:
    yield f"{path}: a manifest is a folder or one of {', '.join(SUFFIXES)}"
    return
  if suffix in (".csv", ".tsv", ".txt"):
    yield from tables.read_csv(path, options)
    return
  if suffix == ".xml":
    yield from tables.read_cvat(path)
    return
  if suffix == ".jsonl" and not tables.is_list(path):
    yield from tables.read_lines(path, options)
    return
  try:
    content = annotations.read_json(path)
  except UserError as error:
    yield str(error)
    return
  if isinstance(content, list):
    rows = ((f"{path}[{number}]", row) for number, row in enumerate(content))
    yield from tables.read_rows(path, rows, options)
  else:
    yield from annotations.read_coco(path, content)


def _voc(folder: pathlib.Path, listed: str) -> Found:
  paths = _xml_files(folder)
  if not paths:
    other = next(
      (each for each in sorted(folder.glob("*")) + sorted(folder.glob("*/*.json")) if each.suffix in SUFFIXES), ""
    )
    hint = f"; is {other} the manifest?" if other else ""
    yield f"{folder} is no VOC-style folder: it holds no XML file, and none of {', '.join(KNOWN_FILES)}{hint}"
    return
  if listed:
    listing = folder / "ImageSets" / "Main" / f"{listed}.txt"
    if not listing.is_file():
      there = sorted(path.stem for path in listing.parent.glob("*.txt"))
      yield f"{listing}: missing; there is {', '.join(there) or 'no list'}"
      return
    text, notes = tables.decode(listing)
    yield from notes
    by_stem: dict[str, list[pathlib.Path]] = {}
    for path in paths:
      by_stem.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
    listed_paths: dict[pathlib.Path, None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
      if not (name := _listed_name(line, by_stem)):
        continue
      if name not in by_stem:
        yield f"{listing}:{number}: there is no annotation {name}.xml"
      elif len(by_stem[name]) > 1:
        yield f"{listing}:{number}: there are {' and '.join(map(str, by_stem[name]))}: give them different names"
      else:
        listed_paths[by_stem[name][0]] = None
    paths = list(listed_paths)
    if not paths:
      yield f"{listing}: it names no image"
  for path in paths:
    yield from annotations.read_voc(path)


def _listed_name(line: str, known: Any) -> str:
  """The name of an image in a line of a VOC list: quoted or not, with an ending or not, with a class's mark or not."""
  name = unicodedata.normalize("NFC", line.strip().strip("\"'"))
  without_mark = re.sub(r"\s+(-1|0|1)$", "", name)
  tried = [each for whole in (name, without_mark) for each in (whole, os.path.splitext(whole)[0])]
  return next((each for each in tried if each in known), without_mark)


def _image_folder(path: pathlib.Path, images: str, names: Sequence[str]) -> tuple["_Folders", str]:
  """The folder that images are named relative to: `images` or, of some beside the manifest, the one that has most.

  Where none has any of them, their names may begin with a folder that is not there any more, as `C:/photos/` or
  `/content/images/`: what all of them begin with is left out as far as it must be, and is the second result.
  """
  if images:
    tried = [files.named(images)]
  elif path.is_dir():
    tried = [path / name for name in ("JPEGImages", "images", "Images", "img", "")]
  else:
    stem = re.sub(r"^(instances|person_keypoints|captions|image_info)_", "", path.stem)
    own, above = path.parent, path.absolute().parent.parent
    tried = [own, own / "images", own / stem, above / stem, above / "images" / stem, above / "images", above]
  there = [_Folders(os.path.abspath(each)) for each in tried if each.is_dir() or images]
  some = list(map(_plain_path, names[:: max(len(names) // _TRIED, 1)]))

  def count(folders: _Folders, former: str) -> int:
    if former and os.path.isdir(os.path.join(folders.below, former)):
      return 0
    inside = (folders.inside(name[len(former) :]) for name in some)
    return sum(name is not None and folders.find(name) is not None for name in inside)

  best = max(there, key=lambda folders: count(folders, ""))
  if names and not count(best, ""):
    first, last = min(map(_plain_path, names)), max(map(_plain_path, names))
    shared = "".join(
      one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    )
    if "://" not in shared and not shared.startswith(tables.UPLOADED):
      for slash in re.finditer("/", shared):
        former = shared[: slash.end()]
        if count(other := max(there, key=lambda folders, former=former: count(folders, former)), former):
          return other, former
  return best, ""


class _Folders:
  """The names of files below a folder, each of whose folders is listed once."""

  def __init__(self, base: str):
    self.base, self.below = base, os.path.join(base, "")
    self._names: dict[str, frozenset[str]] = {}
    self._plain: dict[str, dict[str, list[str]]] = {}  # without capitals and, of images, without ending

  def inside(self, name: str) -> str | None:
    """A name or a whole path relative to the folder; None if it lies outside. Links are not resolved."""
    path = os.path.normpath(os.path.join(self.below, name))
    return path[len(self.below) :] if path.startswith(self.below) else None

  def find(self, name: str) -> str | None:
    """The path of the file of this name, or of the one that differs in capitals or has an ending; None if none does."""
    folder, _, wanted = f"{self.below}{name}".rpartition("/")
    if folder not in self._names:
      self._names[folder] = frozenset(os.listdir(folder) if os.path.isdir(folder) else ())
    if wanted in self._names[folder]:
      return f"{folder}/{wanted}"
    if folder not in self._plain:
      self._plain[folder] = {}
      for each in self._names[folder]:
        whole = _folded(each)
        stem, ending = os.path.splitext(whole)
        for plain in (whole, stem) if ending in image_lib.SUFFIXES else (whole,):
          self._plain[folder].setdefault(plain, []).append(each)
    found = self._plain[folder].get(_folded(wanted), ())
    return f"{folder}/{found[0]}" if len(found) == 1 else None


def _folded(name: str) -> str:
  return unicodedata.normalize("NFC", name).casefold()


def _plain_path(name: str) -> str:
  return name.strip().replace("\\", "/")


def _candidates(entry: Entry, name: str, relative: str, base: str, shared: bool) -> Iterator[str]:
  """What an image may be called: as it is said; after its XML file, whose tools keep old names; as before an upload.

  If several XML files say the same (`shared`), as those of changed copies do, it is called after its own where it can be.
  """
  if not shared:
    yield relative
  if entry.place.lower().endswith(".xml"):
    folder, own = os.path.split(os.path.abspath(entry.place))
    stem, beside = os.path.splitext(own)[0], os.path.relpath(folder, base)
    inside = [] if beside.startswith(os.pardir) else [os.path.normpath(f"{beside}/{each}") for each in (name, stem)]
    yield from (*(inside[1:] if shared else ()), stem, *inside)
  if name.startswith(tables.UPLOADED):
    uploaded = name.rsplit("/", 1)[-1]
    yield from (uploaded, uploaded.partition("-")[2])
  yield relative


def _locate(entries: Entries, folders: _Folders, former: str, problems: list[str], notes: list[str]) -> Iterator[Entry]:
  """Entries by the names of their images below the folder; those that lie nowhere there are named among the problems."""
  base, below = folders.base, folders.below
  of_xml = bool(entries) and entries[0].place.lower().endswith(".xml")
  shared = {name for name, count in Counter(entries.ids).items() if count > 1} if of_xml else set()
  for entry in entries:
    name = _plain_path(entry.id).removeprefix(former)
    if "://" in name:
      problems.append(f"{entry.place}: {name} is an address: download the images first, and name their files")
      continue
    own = name.removeprefix("/") if name.startswith(tables.UPLOADED) else name
    relative = folders.inside(own)
    if relative is None:
      remedy = "name that folder with --config.data.images=DIR"
      problems.append(f"{entry.place}: image {entry.id!r} lies outside {base}: {remedy}")
      continue
    image = f"{below}{relative}"
    candidates = _candidates(entry, name, relative, base, entry.id in shared)
    found = next(filter(None, map(folders.find, candidates)), None)
    if found is None:
      problems.append(Missing(f"{entry.place}: there is no image {image}"))
      found = image.replace("\0", r"\0")  # which the name of no file holds
    elif found != image and os.path.splitext(found)[0] != image:
      notes.append(f"{entry.place}: {os.path.basename(found)} is taken for {os.path.basename(image)}")
    name = found[len(below) :].encode(errors="backslashreplace").decode()
    if name != found[len(below) :]:
      problems.append(f"{entry.place}: the name of {name} is not UTF-8, as in zips of another system: rename the file")
    yield entry if name == entry.id else entry._replace(id=name)


def _join(path: pathlib.Path, entries: Iterable[Entry], below: str, notes: list[str]) -> Entries:
  """One entry for each image, with all that its rows say."""
  found, seen = Entries(folder=below), set()
  others: dict[str, list[Entry]] = {}  # of images with several rows, all but the first
  for entry in entries:
    if entry.id in seen:
      others.setdefault(entry.id, []).append(entry)
    else:
      seen.add(entry.id)
      found.append(entry)
  if not others:
    return found
  first = os.path.basename(min(others))
  notes.append(f"{path}: the rows of an image are joined where it has several: images {len(others):,}, first {first}")
  return Entries((_with_rows(entry, others.get(entry.id, ())) for entry in found), below)


def _with_rows(entry: Entry, others: Sequence[Entry]) -> Entry:
  def all_of(field: str) -> Iterator:
    return itertools.chain.from_iterable(getattr(row, field) for row in (entry, *others))

  return entry._replace(
    **{field: tuple(dict.fromkeys(all_of(field))) for field in ("labels", "ignore")},
    **{field: tuple(all_of(field)) for field in ("boxes", "box_labels")},
  )


def classes_of(data: Any, fixed: Sequence[str] = ()) -> Classes:
  """The classes: `fixed` ones, or `data.classes`, or the labels of the training manifest, sorted.

  Raises UserError: the training labels look as if they were read wrongly.
  """
  if chosen := class_lib.chosen(data.classes):
    return Classes(tuple(fixed) or chosen, others=True, separator=data.separator)
  if fixed:
    return Classes(tuple(fixed), separator=data.separator)
  return class_lib.of_labels(parse(data.train, data).entries, data.train, separator=data.separator)


def open_manifest(manifest: str, data: Any, name: str, class_names: Sequence[str] = ()) -> ImageFiles:
  """The records of a manifest, called `name`, with the classes of `class_names` or of a `data` section.

  Raises UserError: the first problems.
  """
  parsed = parse(manifest, data)
  classes = classes_of(data, class_names)
  entries, unknown, notes = class_lib.apply(parsed.entries, classes)
  missing = [each for each in parsed.problems if isinstance(each, Missing)]
  problems = [each for each in parsed.problems if not isinstance(each, Missing)] + unknown
  problems += missing if data.corrupt == "error" else []
  if problems:
    more = f" and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    remedy = "`rmam-jax validate` with the same --config flags lists all."
    raise UserError(f"{'; '.join(problems[:SHOWN])}{more}. {remedy}")
  table = tabulate(entries, classes.names)
  made_by = hashlib.sha256(repr(classes.names).encode())
  for array in table:
    made_by.update(np.ascontiguousarray(array).view(np.uint8))
  origin = f"{manifest}, images in {parsed.folder}"
  return ImageFiles(
    name,
    origin,
    classes.names,
    table,
    Paths([(entries.folder, table.ids)]),
    made_by.hexdigest(),
    (*parsed.notes, *notes),
  )
