"""The splits of every data set: which source its records come from, and which of them it has."""

import hashlib
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmam_jax.data import folders, manifests, stored
from rmam_jax.data import proposals as proposals_lib
from rmam_jax.data.classes import chosen
from rmam_jax.data.partition import PARTS
from rmam_jax.data.prepare import ARCHIVES
from rmam_jax.data.proposals import Propose
from rmam_jax.data.record import Record, Source, resolve_difficult
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError, check_name

_PART = re.compile(r"(?P<whole>.+):(?P<part>rest|held)-(?P<count>\d+)")
_CHUNK = 65_536  # ids that are joined at a time
FIELDS = ("train", "validation", "test", "final_train")  # of `data`, which name splits
DISJOINT = (("train", "validation"), ("train", "test"), ("validation", "test"), ("final_train", "test"))
DATA_SETS = tuple(dict.fromkeys((*stored.DATA_SETS, *folders.DATA_SETS)))


def open_source(name: str, split: str, root: str = "") -> Source:
  """The records of a whole split of one of `DATA_SETS`: as TFDS has prepared them or, where it has not, from its folder.

  `root` is `data.root`. Raises UserError: the name or the split is unknown, the data are not there, or not whole.
  """
  check_name("data.name", name, (*DATA_SETS, "custom"))
  prepared = stored.find(name, root) if name in stored.DATA_SETS else None
  if prepared:
    return stored.Stored(name, split, prepared)
  base = stored.data_root(root)
  if name in folders.DATA_SETS and (found := folders.find(name, base)):
    return folders.open_source(name, split, found)
  remedy = (
    f"Name the folder that holds them, or data that TFDS has prepared, with --config.data.root=DIR; {base} does not"
  )
  if name in ARCHIVES:
    remedy += (
      f". Or: rmam-jax prepare {name} --archives=DIR --data_root={base} prepares them (DIR"
      " holds the official archives; without it they are downloaded)"
    )
  raise UserError(f"{name} is read from {folders.wanted(name)}, extracted from the official archives. {remedy}.")


def held_out(ids: Sequence[str], count: int) -> np.ndarray:
  """The `count` records whose ids have the smallest sha256: bool [N]. The same whatever the order."""
  if not 0 < count < len(ids):
    raise UserError(f"{count} of {len(ids)} records cannot be held out")
  order = np.argsort([hashlib.sha256(str(each).encode()).hexdigest() for each in ids])
  return np.isin(np.arange(len(ids)), order[:count])


class Split:
  """Records of one split, by position. Those without a positive label are left out and counted, but of own images.

  Attributes:
    name: "voc/2007 train"; of own images "custom train", by the field of `data` that names the manifest.
    origin: where its records are read from.
    notes: what is worth knowing of its annotations.
    class_names: the L classes in order.
    dropped: how many records had no positive label.
  """

  def __init__(
    self,
    name: str,
    source: Source,
    positions: np.ndarray,
    difficult: str,
    propose: Propose | None = None,
    proposed_by: str = "",
    *,
    negatives: bool = False,
  ):
    """The records at some positions of a source; UserError if none has a positive label.

    `negatives` keeps those without one: images of none of the classes. See `resolve_difficult`, `proposals.make` and
    `proposals.made_by` for the other arguments.
    """
    self.name, self.class_names = name, source.class_names
    self.origin, self.notes = source.origin, source.notes
    self._source, self._difficult, self._propose, self._proposed_by = source, difficult, propose, proposed_by
    labels, _ = resolve_difficult(source.index.labels[positions], source.index.ignore[positions], difficult)
    positive = labels.any(axis=1)
    self._positions = positions if negatives else positions[positive]
    self.dropped = len(positions) - len(self._positions)
    if not positive.any():
      raise UserError(f"{name}: no record has a positive label")

  def __len__(self) -> int:
    return len(self._positions)

  def __getitem__(self, index: int) -> Record:
    """Raises UserError if the record, or its image's file, cannot be read."""
    try:
      record = self._source[int(self._positions[index])]
    except OSError as error:
      raise UserError(f"{self.name} [{index}]: cannot read {error.filename} ({error.strerror or error})") from error
    labels, ignore = resolve_difficult(record.labels, record.ignore, self._difficult)
    record = record._replace(labels=labels, ignore=ignore)
    return record._replace(proposals=self._propose(record)) if self._propose else record

  def without_image(self, index: int) -> Record:
    """The record's id and labels as `[]` gives them, from memory, without image and box; with proposals as `[]` gives it."""
    if self._propose:
      return self[index]
    known, position = self._source.index, self._positions[index]
    labels, ignore = resolve_difficult(known.labels[position], known.ignore[position], self._difficult)
    return self.blank(index)._replace(labels=labels, ignore=ignore)

  def blank(self, index: int) -> Record:
    """Takes the place of a record that cannot be read: its id, no image, no box, and all labels to be ignored."""
    name, labels = self._source.index.ids[self._positions[index]], np.zeros(len(self.class_names), np.float32)
    record = Record(str(name), b"", labels, labels == 0, np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    return record._replace(proposals=np.zeros_like(self._propose(record))) if self._propose else record

  def positives(self) -> np.ndarray:
    """How many of its records show each class, int [L]; from memory."""
    index, positions = self._source.index, self._positions
    labels, _ = resolve_difficult(index.labels[positions], index.ignore[positions], self._difficult)
    return (labels > 0).sum(axis=0)

  def listed(self) -> list[tuple[str, list[str]]]:
    """The id of each record and the names of its labels, without reading images."""
    ids, labels = (array[self._positions] for array in (self._source.index.ids, self._source.index.labels))
    return [
      (str(name), [self.class_names[c] for c in np.flatnonzero(row)]) for name, row in zip(ids, labels, strict=True)
    ]

  def images(self) -> set[str]:
    """What tells its images from those of other splits of the same data: the paths of their files, or their ids."""
    mine = np.isin(np.arange(len(self._source)), self._positions)
    return set(itertools.compress(self._source.paths or self._source.index.ids.tolist(), mine.tolist()))

  def digest(self) -> str:
    """Of all that the records hold, wherever they lie, of proposals the file that they are made by; images and boxes
    enter as the source's digest."""
    index, positions = self._source.index, self._positions
    digest = hashlib.sha256(f"{self.class_names} {self._difficult} {self._source.digest(positions)}".encode())
    digest.update(self._proposed_by.encode())
    for start in range(0, len(positions), _CHUNK):
      digest.update(b"\n" * (start > 0) + "\n".join(index.ids[positions[start : start + _CHUNK]].tolist()).encode())
    for marks in (index.labels, index.ignore):
      digest.update(np.ascontiguousarray(marks[positions]).tobytes())
    return digest.hexdigest()


def _some(names: Sequence[str]) -> str:
  return f"{len(names)}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def resolved(data: Any) -> dict[str, Any]:
  """The fields of a `data` section that a run takes other values of: classes that a file names, parts of `data.train`.

  Raises UserError: `data.split` makes the parts, and something else names them too, or the data are not one's own.
  """
  classes = {"classes": chosen(data.classes)} if data.classes else {}
  if not data.split or data.validation == f"{data.train.removesuffix(f':{PARTS[0]}')}:{PARTS[1]}":
    return classes
  if data.name != "custom" or data.validation or data.test or data.final_train:
    raise UserError(
      "data.split makes validation and test of data.train, a manifest of your own images: leave data.validation, data.test"
      " and data.final_train empty, or data.split"
    )
  return classes | {name: f"{data.train}:{name}" for name in PARTS[: len(data.split)]}


def moved(data: Any, root: str) -> dict[str, Any]:
  """The fields of a `data` section whose data lie in the folder `root` by now.

  Of own images each manifest, and `data.images`, is found there by as much of the end of its old path as is there.
  Raises UserError: one of them is not.
  """
  if data.name != "custom":
    return {"root": root}
  base = files.named(root)

  def place(old: str) -> str:
    parts = [part for part in pathlib.PurePath(old).parts if part != "/"]
    for start in range(len(parts) + 1):
      new = str(base.joinpath(*parts[start:]))
      if start == len(parts):  # the folder itself, under its old name, is meant
        name, colon, part = parts[-1].partition(":")
        if name != base.absolute().name:
          break
        new += colon + part
      whole = new.rpartition(":")[0]
      if pathlib.Path(new).exists() or (whole and pathlib.Path(whole).exists()):
        return new
    raise UserError(
      f"--data_root={root} holds no {parts[-1]}, which was {old}: name the folder that holds all of the data"
    )

  fields = {field: place(data[field]) for field in FIELDS if data[field]}
  return fields | ({"images": ",".join(map(place, data.images.split(",")))} if data.images else {})


def check_disjoint(opened: Mapping[str, Split]) -> None:
  """Raises UserError if two of the splits, by the fields of `data` that name them, share an image.

  What is trained on tells nothing about other images, and neither does what was chosen on.
  """
  for one, other in DISJOINT:
    if one in opened and other in opened and (shared := opened[one].images() & opened[other].images()):
      raise UserError(
        f"{opened[one].name} and {opened[other].name} share {len(shared):,} of {len(opened[other]):,} images, the first"
        f" {min(shared)}: an image may be in one alone. Without a test split of its own leave data.test empty: the figures"
        " are then those of validation; one list is divided by data.split=0.8,0.1,0.1"
      )


def open_split(data: Any, split: str, limit: int = 0, class_names: Sequence[str] = ()) -> Split:
  """A split as the `data` section of a configuration describes it, or the first `limit` records of it.

  For `custom` data the split is a manifest; for all other data a split such as "train" or "train+validation", or a part of
  one: "train:held-4000" is the 4,000 records whose ids have the smallest hash, "train:rest-4000" all others.
  `class_names`, if given, are those that a model was trained with: the split's must be these.

  Raises:
    UserError: the data set or split is unknown, has to be prepared first, is damaged, or has another number of annotated
      images than `data.expected` says; other classes; or a manifest that has problems.
  """
  if data.name == "custom":
    if data.proposals:
      raise UserError("data.proposals is there for prepared data sets, not for custom images")
    field = next((field for field in FIELDS if data[field] == split), pathlib.Path(split).name)
    source = manifests.open_manifest(split, data, f"custom {field}", class_names)
    return Split(source.name, source, np.arange(len(source))[: limit or None], data.difficult, negatives=True)
  part = _PART.fullmatch(split)
  whole = part["whole"] if part else split
  source = open_source(data.name, whole, data.root)
  if class_names and tuple(class_names) != source.class_names:
    raise UserError(f"{source.name} has the classes {_some(source.class_names)}; the model has {_some(class_names)}")
  annotated = source.index.annotated
  expected, found = dict(data.expected).get(whole, 0), int(annotated.sum())
  if expected and found != expected:
    raise UserError(
      f"{source.name} has {found:,} annotated images where data.expected has {expected:,}: read it again"
      f" from the official archives ({source.origin} is not whole), or set the field"
    )
  positions = np.arange(len(annotated))
  if part:
    held = held_out(source.index.ids[annotated], int(part["count"]))
    positions = np.flatnonzero(annotated)[held == (part["part"] == "held")]
  propose = proposals_lib.make(data.proposals, data.num_proposals, source, data.edge_model, data.corrupt)
  by = proposals_lib.made_by(data.proposals, data.edge_model)
  return Split(f"{data.name} {split}", source, positions[: limit or None], data.difficult, propose, by)
