"""PASCAL VOC and MS-COCO as they lie on disk once their archives are extracted.

  VOCdevkit/VOC2007/{Annotations,ImageSets/Main,JPEGImages}       voc/2007; VOC2012 beside it: voc/2012, voc/2007+2012
  coco/{annotations/instances_train2014.json,train2014,val2014}   coco/2014; with 2017 in these names: coco/2017

"photographs" is 5,582 images of VOC 2007 and 2012 that the lists in `photographs/` name, split by photograph.

The labels that are read from the annotations are kept in the user's cache folder, under a digest of what they were made
from: lists, and the names, sizes and times of the annotation files.
"""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rmam_jax.data import annotations
from rmam_jax.data.annotations import Entry, Note
from rmam_jax.data.entries import Entries
from rmam_jax.data.image_files import ImageFiles, Paths, Table, concatenate, keep, read_kept, tabulate
from rmam_jax.runtime import progress
from rmam_jax.runtime.errors import UserError, os_errors

VOC_CLASSES = (
  *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
  *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC_YEARS = {"voc/2007": ("2007",), "voc/2012": ("2012",), "voc/2007+2012": ("2007", "2012")}
PHOTOGRAPHS = "photographs"
COCO_YEARS = {"coco/2014": "2014", "coco/2017": "2017"}
DATA_SETS = (*VOC_YEARS, *COCO_YEARS, PHOTOGRAPHS)
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # by their names here, as the official lists are named
LISTS = pathlib.Path(__file__).parent / PHOTOGRAPHS
_VOC_PARTS = ("Annotations", "ImageSets/Main", "JPEGImages")
_SLOW = 5_000  # files, from which on a bar shows how far their reading is


def wanted(name: str) -> str:
  """What the folder that `data.root` names has to hold for this data set, in words."""
  if name in COCO_YEARS:
    return f"annotations/instances_train{COCO_YEARS[name]}.json"
  return " and ".join(f"VOC{year}" for year in _years(name))


def find(name: str, root: pathlib.Path) -> tuple[pathlib.Path, ...]:
  """The folders of a data set of `DATA_SETS`, `root` itself or below it; none where there are none.

  Raises UserError: a folder is there and lacks a part.
  """
  if name in COCO_YEARS:
    folder = next((each for each in (root, root / "coco") if (each / "annotations").is_dir()), None)
    return (folder,) if folder and _instances(folder, name, "train").is_file() else ()
  if name == PHOTOGRAPHS and (root / "Annotations").is_dir() and not root.name.startswith("VOC20"):
    return (_checked(root, ("Annotations", "JPEGImages")),)  # the images of both years in one folder
  found = [_voc_folder(root, year) for year in _years(name)]
  return tuple(_checked(folder, _VOC_PARTS) for folder in found) if all(found) else ()


def _years(name: str) -> tuple[str, ...]:
  return VOC_YEARS.get(name, ("2007", "2012"))


def _voc_folder(root: pathlib.Path, year: str) -> pathlib.Path | None:
  """VOC2007 in `root`, in its VOCdevkit, beside it, or `root` itself."""
  name = f"VOC{year}"
  places = [root / name, root / "VOCdevkit" / name]
  if (root / "JPEGImages").is_dir():
    places += [root.parent / name] if root.name.startswith("VOC20") else [root]
  return next((place for place in places if place.is_dir()), None)


def _checked(folder: pathlib.Path, parts: Iterable[str]) -> pathlib.Path:
  for part in parts:
    if not (folder / part).is_dir():
      raise UserError(f"{folder} is no whole VOC folder: it has no folder {part}. Extract the official archives again.")
  return folder


def open_source(name: str, split: str, folders: Sequence[pathlib.Path]) -> ImageFiles:
  """The records of "train", "validation", "test" or several of them joined by +, from the folders that `find` gave.

  Raises UserError: an unknown split; a list, annotations or images are missing; an annotation cannot be read.
  """
  parts = split.split("+")
  if unknown := [part for part in parts if part not in SPLITS]:
    raise UserError(f"{name} has no split {unknown[0]!r}: it has {', '.join(SPLITS)}, and several of them joined by +")
  read = _coco if name in COCO_YEARS else _voc
  with os_errors(f"cannot read {name} in {folders[0]}"):
    found = [each for part in parts for each in read(name, part, folders)]
  if len({each.class_names for each in found}) > 1:
    raise UserError(f"{name}: the annotations of {split} do not name the same classes in the same order")
  made_by = hashlib.sha256(" ".join(each.made_by for each in found).encode()).hexdigest()
  return ImageFiles(
    f"{name} {split}",
    " and ".join(map(str, folders)),
    found[0].class_names,
    concatenate([each.table for each in found]),
    Paths([(os.path.join(each.images, ""), each.table.ids) for each in found]),
    made_by,
    [note for each in found for note in each.notes],
  )


class _Part(NamedTuple):
  """What one list, or one file, of a folder says."""

  class_names: tuple[str, ...]
  table: Table
  images: pathlib.Path  # the folder of the images, named by the table's ids
  made_by: str
  notes: tuple[str, ...]


_Read = Callable[[], tuple[Iterable[Entry | str], tuple[str, ...]]]  # () -> what was read, and the names of the classes
_remembered: dict[str, tuple[tuple[str, ...], Table, tuple[str, ...]]] = {}  # of this process, by `made_by`


def _part(made_from: Iterable[object], images: pathlib.Path, read: _Read) -> _Part:
  """What `read` gives, or what it gave for the same before, in this process or another."""
  made_by = hashlib.sha256("\n".join(map(str, (1, *made_from))).encode(errors="surrogateescape")).hexdigest()
  if made_by not in _remembered:
    if (kept := read_kept(made_by)) is None:
      kept = _arrays(*read())
      keep(made_by, kept)
    names, notes = (tuple(kept[field].tolist()) for field in ("class_names", "notes"))
    _remembered[made_by] = names, Table(*(kept[field] for field in Table._fields)), notes
  names, table, notes = _remembered[made_by]
  _check_files(images, table.ids.tolist(), "images")
  return _Part(names, table, images, made_by, notes)


def _arrays(found: Iterable[Entry | str], class_names: Sequence[str]) -> dict[str, np.ndarray]:
  """What was read, as it is kept in a file; UserError if something is wrong with it."""
  entries, notes = Entries(), []
  for each in found:
    problem = each if isinstance(each, str) and not isinstance(each, Note) else ""
    if isinstance(each, Entry) and (unknown := {*each.labels, *each.ignore} - {*class_names}):
      problem = f"{each.place}: {min(unknown)!r} is no class of this data set"
    if problem:
      raise UserError(f"{problem}. Extract the official archives again.")
    (notes if isinstance(each, Note) else entries).append(each)
  names, notes = np.array(list(class_names)), np.array(notes, str)
  return {"class_names": names, "notes": notes, **tabulate(entries, class_names)._asdict()}


def _check_files(folder: pathlib.Path, names: Sequence[str], what: str) -> None:
  there = set(os.listdir(folder)) if folder.is_dir() else set()
  if missing := [name for name in names if name not in there]:
    raise UserError(
      f"{folder} lacks {len(missing):,} of the {len(names):,} {what} that are listed, the first {missing[0]}. Extract"
      " the official archives again, or name another folder with --config.data.root=DIR."
    )


def _voc(name: str, split: str, folders: Sequence[pathlib.Path]) -> Iterator[_Part]:
  if name != PHOTOGRAPHS and split == "test":
    folders = folders[:1]  # the labels of VOC 2012's were never published
  for folder in folders:
    listing = (LISTS if name == PHOTOGRAPHS else folder / "ImageSets" / "Main") / f"{SPLITS[split]}.txt"
    if not listing.is_file():
      why = "its labels were never published" if folder.name == "VOC2012" and split == "test" else "extract its archive"
      raise UserError(f"{listing} is missing, so there is no {split} split of {name}: {why}")
    stems = [line.split()[0] for line in listing.read_text("utf-8-sig").splitlines() if line.strip()]
    if name == PHOTOGRAPHS and len(folders) > 1:
      stems = [stem for stem in stems if ("_" in stem) == (folder.name == "VOC2012")]
    yield _voc_part(folder, stems)


def _voc_part(folder: pathlib.Path, stems: Sequence[str]) -> _Part:
  place = folder / "Annotations"
  _check_files(place, [f"{stem}.xml" for stem in stems], "annotations")
  with os.scandir(place) as entries:
    known = {entry.name: entry.stat() for entry in entries}
  states = [known[f"{stem}.xml"] for stem in stems]
  made_from = ["voc", place, *((s, x.st_size, x.st_mtime_ns) for s, x in zip(stems, states, strict=True))]

  def read() -> tuple[Iterable[Entry | str], tuple[str, ...]]:
    shown = progress.bar(stems, f"reading {place}", unit=" files", disable=len(stems) <= _SLOW, leave=False)
    found = (each for stem in shown for each in annotations.read_voc(place / f"{stem}.xml", f"{stem}.jpg"))
    return found, VOC_CLASSES

  return _part(made_from, folder / "JPEGImages", read)


def _instances(folder: pathlib.Path, name: str, split: str) -> pathlib.Path:
  return folder / "annotations" / f"instances_{SPLITS[split]}{COCO_YEARS[name]}.json"


def _coco(name: str, split: str, folders: Sequence[pathlib.Path]) -> Iterator[_Part]:
  (folder,) = folders
  path, part = _instances(folder, name, split), f"{SPLITS[split]}{COCO_YEARS[name]}"
  if not path.is_file():
    why = "its labels were never published" if split == "test" else "extract the official archives"
    raise UserError(f"{path} is missing, so there is no {split} split of {name}: {why}")
  state = path.stat()
  places = (folder / part, folder / "images" / part)

  def read() -> tuple[Iterable[Entry | str], tuple[str, ...]]:
    content = annotations.read_json(path)
    found = annotations.read_coco(path, content)
    return found, annotations.coco_classes(content) if annotations.is_coco(content) else ()

  images = next((each for each in places if each.is_dir()), places[0])
  yield _part(["coco", path, state.st_size, state.st_mtime_ns], images, read)
