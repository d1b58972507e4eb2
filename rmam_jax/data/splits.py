"""How each data set's stored examples become records, and the splits that hold them."""

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from rmam_jax.data import manifests
from rmam_jax.data import proposals as proposals_lib
from rmam_jax.data.digits import scenes
from rmam_jax.data.proposals import Propose
from rmam_jax.data.record import Index, Record, multi_hot, resolve_difficult
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError, check_name, os_errors

SAMPLED = 64  # so many stored records, with their images, tell a split from others in its digest
_PART = re.compile(r"(?P<whole>.+):(?P<part>rest|held)-(?P<count>\d+)")
_FIELDS = ("train", "validation", "test", "final_train")  # of `data`, which name splits

# Where each data set is stored below the data root.
DATA_SETS = {
  **{f"digits/{setting}": f"digits/{setting}/1.0.0" for setting in scenes.SETTINGS},
  "voc/2007": "voc/2007/5.0.0",
  "coco/2014": "coco/2014_trainval/1.1.0",
}


def adapt(example: Mapping[str, Any], num_classes: int) -> Record:
  """A stored example, its image not decoded, as a record.

  Every object counts, and COCO's counts include images with nothing but a crowd; but in VOC a class that appears only as
  `difficult` is neither present nor absent (the devkit's rule).
  """
  name, objects = example["image/filename"], example["objects"]
  marked = multi_hot(example.get("labels", objects["label"]), num_classes)
  labels = multi_hot(example["labels_no_difficult"], num_classes) if "labels_no_difficult" in example else marked
  return Record(
    name.decode() if isinstance(name, bytes) else str(name),
    example["image"],
    labels,
    (marked == 1) & (labels == 0),
    np.asarray(objects["bbox"], np.float32).reshape(-1, 4),
    np.asarray(objects["label"], np.int32),
  )


def data_root(root: str = "") -> pathlib.Path:
  """The folder of prepared data: `root`, or TFDS_DATA_DIR, or ~/tensorflow_datasets as TFDS has it."""
  return pathlib.Path(root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def is_prepared(name: str, folder: pathlib.Path) -> bool:
  """Whether a data set is in its folder; UserError if the folder lacks the file that preparing writes last."""
  if (folder / "dataset_info.json").exists():
    return True
  if folder.exists():
    raise UserError(f"{folder} holds no dataset_info.json, so it is not whole. {_remedy(name, folder)}")
  return False


def _remedy(name: str, folder: pathlib.Path) -> str:
  command = "the same command" if name.startswith("digits/") else f"rmam-jax prepare {name}"
  return f"Remove {folder}: {command} makes it again."


def prepare(name: str, root: str = "") -> pathlib.Path:
  """The folder of a prepared data set, one of `DATA_SETS`; digit scenes are drawn if they are not there yet.

  Raises UserError: the name is unknown, the data set has to be prepared first, only a part of it is there, or the
  folder cannot be written.
  """
  check_name("data.name", name, (*DATA_SETS, "custom"))
  base = data_root(root)
  folder = base / DATA_SETS[name]
  if is_prepared(name, folder):
    return folder
  if not name.startswith("digits/"):
    raise UserError(
      f"{name} is not prepared: {folder} holds no dataset_info.json. Prepare it with: rmam-jax prepare {name}"
      f" --archives=DIR --data_root={base} (DIR holds the official archives; without it they are downloaded), or name"
      " the folder of data prepared before with --config.data.root=DIR."
    )
  from rmam_jax.data.digits import builder

  remedy = "Free or open it, or name another folder with --config.data.root=DIR."
  with os_errors(f"cannot write {name} below {base}", remedy):
    builder.prepare(name.removeprefix("digits/"), base)
  return folder


def _open_builder(folder: pathlib.Path, remedy: str):
  """The TFDS builder of prepared data; UserError if its description is damaged or it is not stored as array_record."""
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(folder)
    label = builder.info.features["objects"].feature["label"]
  except Exception as error:  # whatever a damaged description leads to
    raise UserError(f"{folder}: its description is damaged ({error}). {remedy}") from error
  if (kind := builder.info.file_format.value) != "array_record":
    raise UserError(f"{folder} is stored as {kind}, not as array_record: convert it by TFDS's convert_format")
  names = folder / "objects-label.labels.txt"  # without it TFDS names the classes by numbers
  if not names.exists() or len(label.names) != label.num_classes:
    raise UserError(f"{names} is missing or does not name {label.num_classes} classes. {remedy}")
  return builder


def _check_shards(instructions: Sequence[Any], remedy: str) -> None:
  """Each file of a split must hold as many records as the description promises; UserError names one that does not."""
  from array_record.python import array_record_module

  for path, wanted in {each.filename: each.examples_in_shard for each in instructions}.items():
    try:
      reader = array_record_module.ArrayRecordReader(str(path))
      found = reader.num_records()
      reader.close()
    except RuntimeError as error:
      raise UserError(f"{path}, of {wanted} records, cannot be read ({error}). {remedy}") from error
    if found != wanted:
      raise UserError(f"{path} holds {found} records, not {wanted}. {remedy}")


class _Stored:
  """The records of a TFDS split in array_record format, by position, read from disk each time."""

  def __init__(self, name: str, split: str, root: str):
    import tensorflow_datasets as tfds

    self.name = f"{name} {split}"
    folder = prepare(name, root)
    self._remedy = _remedy(name, folder)
    builder = _open_builder(folder, self._remedy)
    self.class_names = tuple(builder.info.features["objects"].feature["label"].names)
    try:
      instructions = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
      raise UserError(f"{name} has no split {split!r} ({error})") from error
    self._examples = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    _check_shards(instructions, self._remedy)
    stem = re.sub("[^a-z0-9]+", "-", split)
    self.proposals_path = folder / f"rmam-proposals-{stem}.npz"
    self.made_by = hashlib.sha256((folder / "dataset_info.json").read_bytes() + split.encode()).hexdigest()
    self.index = self._kept_index(folder / f"rmam-index-{stem}.npz")

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, position: int) -> Record:
    """Raises UserError if the record is damaged: each is stored with a checksum."""
    try:
      example = self._examples[position]
    except RuntimeError as error:
      raise UserError(f"record {position} of {self.name} is damaged ({error}). {self._remedy}") from error
    return adapt(example, len(self.class_names))

  def digest(self, positions: np.ndarray) -> str:
    """Of the description, and of the whole content of up to `SAMPLED` of the records at these positions."""
    digest = hashlib.sha256(self.made_by.encode())
    for place in np.unique(np.linspace(0, len(positions) - 1, SAMPLED).astype(int)):
      record = self[int(positions[place])]
      digest.update(record.id.encode() + record.image + record.boxes.tobytes() + record.box_classes.tobytes())
    return digest.hexdigest()

  def _kept_index(self, path: pathlib.Path) -> Index:
    """The index in this file or, where there is none, it is damaged or other data made it, from reading every record."""
    with contextlib.suppress(OSError, UserError, KeyError):
      stored = files.read_npz(path, "")
      if str(stored["made_by"]) == self.made_by and len(stored["ids"]) == len(self):
        return Index(*(stored[field] for field in Index._fields))
    records = (self[position] for position in range(len(self)))
    title = f"reading the labels of {self.name}"
    rows = [
      (record.id, record.labels, record.ignore, len(record.boxes) > 0)
      for record in tqdm.tqdm(records, title, len(self), disable=len(self) <= 5_000, leave=False)
    ]
    index = Index(*map(np.array, zip(*rows, strict=True)))
    with contextlib.suppress(UserError):  # where nothing may be written the next run reads the records again
      files.write_npz(path, {"made_by": np.array(self.made_by), **index._asdict()}, compressed=True)
    return index


def held_out(ids: Sequence[str], count: int) -> np.ndarray:
  """The `count` records whose ids have the smallest sha256: bool [N]. The same whatever the order."""
  if not 0 < count < len(ids):
    raise UserError(f"{count} of {len(ids)} records cannot be held out")
  order = np.argsort([hashlib.sha256(str(each).encode()).hexdigest() for each in ids])
  return np.isin(np.arange(len(ids)), order[:count])


class Split:
  """Records of one split, by position. Those without a positive label are left out and counted.

  Attributes:
    name: "voc/2007 train"; of own images "custom train", by the field of `data` that names the manifest.
    class_names: the L classes in order.
    dropped: how many records had no positive label.
  """

  def __init__(
    self,
    name: str,
    source: Any,
    positions: np.ndarray,
    difficult: str,
    propose: Propose | None = None,
    proposed_by: str = "",
  ):
    """The records at some positions of a source; UserError if none has a positive label.

    The source has `class_names`, an `index` of its records, a `Record` for each position, and a `digest` of the images
    and boxes at given positions. See `resolve_difficult`, `proposals.make` and `proposals.made_by` for the others.
    """
    self.name, self.class_names = name, source.class_names
    self._source, self._difficult, self._propose, self._proposed_by = source, difficult, propose, proposed_by
    labels, _ = resolve_difficult(source.index.labels[positions], source.index.ignore[positions], difficult)
    self._positions = positions[labels.any(axis=1)]
    self.dropped = len(positions) - len(self._positions)
    if not len(self._positions):
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

  def blank(self, index: int) -> Record:
    """Takes the place of a record that cannot be read: its id, no image, no box, and all labels to be ignored."""
    name, labels = self._source.index.ids[self._positions[index]], np.zeros(len(self.class_names), np.float32)
    record = Record(str(name), b"", labels, labels == 0, np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    return record._replace(proposals=np.zeros_like(self._propose(record))) if self._propose else record

  def digest(self) -> str:
    """Of all that the records hold, wherever they lie, of proposals the file that they are made by; images and boxes
    enter as the source's digest."""
    index, positions = self._source.index, self._positions
    digest = hashlib.sha256(f"{self.class_names} {self._difficult} {self._source.digest(positions)}".encode())
    digest.update(self._proposed_by.encode())
    digest.update("\n".join(index.ids[positions].tolist()).encode())
    for marks in (index.labels, index.ignore):
      digest.update(np.ascontiguousarray(marks[positions]).tobytes())
    return digest.hexdigest()


def open_split(data: Any, split: str, limit: int = 0) -> Split:
  """A split as the `data` section of a configuration describes it, or the first `limit` records of it.

  For `custom` data the split is a manifest; for stored data a TFDS split such as "train" or "train+validation", or a part
  of one: "train:held-4000" is the 4,000 records whose ids have the smallest hash, "train:rest-4000" all others.

  Raises:
    UserError: the data set or split is unknown, has to be prepared first, is damaged, or has another number of annotated
      images than `data.expected` says; or a manifest that has problems.
  """
  if data.name == "custom":
    if data.proposals:
      raise UserError("data.proposals is there for prepared data sets, not for custom images")
    field = next((field for field in _FIELDS if data[field] == split), pathlib.Path(split).name)
    source = manifests.Manifest(split, data)
    positions = np.arange(len(source.index.ids))[: limit or None]
    return Split(f"custom {field}", source, positions, data.difficult)
  part = _PART.fullmatch(split)
  whole = part["whole"] if part else split
  source = _Stored(data.name, whole, data.root)
  annotated = source.index.annotated
  expected, found = dict(data.expected).get(whole, 0), int(annotated.sum())
  if expected and found != expected:
    raise UserError(
      f"{source.name} has {found:,} annotated images where data.expected has {expected:,}: prepare it again from the"
      " official archives, or set the field"
    )
  positions = np.arange(len(annotated))
  if part:
    held = held_out(source.index.ids[annotated], int(part["count"]))
    positions = np.flatnonzero(annotated)[held == (part["part"] == "held")]
  propose = proposals_lib.make(data.proposals, data.num_proposals, source, data.edge_model)
  by = proposals_lib.made_by(data.proposals, data.edge_model)
  return Split(f"{data.name} {split}", source, positions[: limit or None], data.difficult, propose, by)
