"""Prepared data: records that TFDS stores as array_record, and the digit scenes that are drawn where they are missing."""

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import filelock
import numpy as np

from rmam_jax.data.digits import scenes
from rmam_jax.data.record import Index, Record, multi_hot
from rmam_jax.runtime import files, progress
from rmam_jax.runtime.errors import UserError, os_errors

SAMPLED = 64  # so many stored records, with their images, tell a split from others in its digest

# Where each data set is stored below the data root.
DATA_SETS = {
  **{f"digits/{setting}": f"digits/{setting}/1.0.0" for setting in scenes.SETTINGS},
  "voc/2007": "voc/2007/5.0.0",
  "voc/2012": "voc/2012/5.0.0",
  "coco/2014": "coco/2014_trainval/1.1.0",
  "coco/2017": "coco/2017/1.1.0",
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
  return files.named(root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


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


def build(builder, **options) -> None:
  """Prepares what a TFDS builder describes, unless it is there, with the options of its `download_and_prepare`.

  Removes what a killed process left half made, and waits for a process that is preparing it.
  """
  folder = pathlib.Path(builder.data_dir).parent
  folder.mkdir(parents=True, exist_ok=True)
  with filelock.FileLock(folder / "lock"):  # or another process's half would be removed
    for half_made in folder.glob("incomplete.*"):
      shutil.rmtree(half_made)
    builder.download_and_prepare(**options)


def find(name: str, root: str = "") -> pathlib.Path | None:
  """The folder of a data set of `DATA_SETS` if it is prepared; digit scenes are drawn if they are not there yet.

  Raises UserError: only a part of it is there, or the folder cannot be written.
  """
  base = data_root(root)
  folder = base / DATA_SETS[name]
  if is_prepared(name, folder):
    return folder
  if not name.startswith("digits/"):
    return None
  from rmam_jax.data.digits import builder

  remedy = "Free or open it, or name another folder with --config.data.root=DIR."
  with os_errors(f"cannot write {name} below {base}", remedy):
    build(builder.make_builder(name.removeprefix("digits/"), base))
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


class Stored:
  """The records of a TFDS split in array_record format, by position, read from disk each time."""

  def __init__(self, name: str, split: str, folder: pathlib.Path):
    import tensorflow_datasets as tfds

    self.name, self.origin, self.notes = f"{name} {split}", f"{folder}, prepared by TFDS", ()
    self.paths = ()
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
      for record in progress.bar(records, title, len(self), disable=len(self) <= 5_000, leave=False)
    ]
    index = Index(*map(np.array, zip(*rows, strict=True)))
    with contextlib.suppress(UserError):  # where nothing may be written the next run reads the records again
      files.write_npz(path, {"made_by": np.array(self.made_by), **index._asdict()}, compressed=True)
    return index
