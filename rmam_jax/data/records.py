"""The one record type, and how each data set's stored examples become it."""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rmam_jax.data import digits


class Record(NamedTuple):
  """One image and what is known of it. L is the number of classes, n of objects."""

  id: str
  image: bytes  # as encoded in its file
  labels: np.ndarray  # float32 [L], 1 where the class is present
  ignore: np.ndarray  # bool [L], where the label is neither; never where it is 1
  boxes: np.ndarray  # float32 [n, 4] of (top, left, bottom, right) as shares of the image; for measuring only
  box_classes: np.ndarray  # int32 [n]


class Adapter(Protocol):
  """From a stored example to a record, without its image being decoded."""

  def __call__(self, example: Mapping[str, Any], num_classes: int) -> Record: ...


def multi_hot(classes: Sequence[int], num_classes: int) -> np.ndarray:
  """Class indices -> float32 [L]."""
  labels = np.zeros(num_classes, np.float32)
  labels[np.asarray(classes, int)] = 1
  return labels


def _objects(example) -> tuple[np.ndarray, np.ndarray]:
  objects = example["objects"]
  boxes = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
  return boxes, np.asarray(objects["label"], np.int32)


def _name(example) -> str:
  name = example["image/filename"]
  return name.decode() if isinstance(name, bytes) else str(name)


def adapt_digits(example: Mapping[str, Any], num_classes: int) -> Record:
  """Digit scenes: every object counts."""
  boxes, classes = _objects(example)
  labels = multi_hot(example["labels"], num_classes)
  return Record(_name(example), example["image"], labels, np.zeros(num_classes, bool), boxes, classes)


def adapt_voc(example: Mapping[str, Any], num_classes: int) -> Record:
  """VOC: a class that appears only as `difficult` is ignored (the devkit's rule)."""
  boxes, classes = _objects(example)
  labels = multi_hot(example["labels_no_difficult"], num_classes)
  ignore = (multi_hot(example["labels"], num_classes) == 1) & (labels == 0)
  return Record(_name(example), example["image"], labels, ignore, boxes, classes)


class DataSet(NamedTuple):
  """Where a data set is stored, how its examples read and how it is made."""

  directory: str  # below the data root
  adapter: Adapter
  label_feature: str  # whose ClassLabel names the classes


DATA_SETS: dict[str, DataSet] = {
  **{f"digits/{setting}": DataSet(f"digits/{setting}/1.0.0", adapt_digits, "labels") for setting in digits.SETTINGS},
  "voc/2007": DataSet("voc/2007/5.0.0", adapt_voc, "labels"),
}


def data_root(root: str = "") -> pathlib.Path:
  """The folder of prepared data: `root`, or TFDS_DATA_DIR, or ~/tensorflow_datasets as TFDS has it."""
  return pathlib.Path(root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepare(name: str, root: str = "") -> pathlib.Path:
  """Makes a data set if it is not there yet and can be made here.

  Args:
    name: one of `DATA_SETS`.
    root: see `data_root`.

  Returns:
    The folder of the prepared data set.

  Raises:
    ValueError: an unknown name.
    FileNotFoundError: a data set that has to be prepared elsewhere first.
    OSError: the folder cannot be written.
  """
  if name not in DATA_SETS:
    raise ValueError(f"data.name must be one of {', '.join(DATA_SETS)}, got {name!r}")
  folder = data_root(root) / DATA_SETS[name].directory
  if (folder / "dataset_info.json").exists():
    return folder
  family, setting = name.split("/")
  if family != "digits":
    raise FileNotFoundError(
      f"{name} is not prepared: {folder} holds no dataset_info.json. Prepare it with TFDS in array_record format"
      f" (pip install tensorflow; tfds build {family} --config={setting} --file_format=array_record"
      f" --data_dir={data_root(root)}), or name another folder with --config.data.root=DIR."
    )
  from rmam_jax.data import digits_builder

  try:
    digits_builder.prepare(setting, data_root(root))
  except OSError as error:
    raise OSError(
      f"cannot write {name} below {data_root(root)}: {error.strerror or error}. Free or open it, or name another folder"
      " with --config.data.root=DIR."
    ) from error
  return folder


class Split:
  """Records of one split, by position. Those without a positive label are dropped and counted.

  Attributes:
    name: the data set's and the split's.
    class_names: the L classes in order.
    dropped: how many records had no positive label.
  """

  def __init__(self, name: str, split: str, root: str = "", *, limit: int = 0):
    """Opens a split, prepared if it can be prepared here.

    Args:
      name: one of `DATA_SETS`.
      split: in TFDS's syntax, e.g. "train" or "train+validation".
      root: see `data_root`.
      limit: take the first so many records only; 0 takes all.
    """
    import tensorflow_datasets as tfds

    data_set = DATA_SETS[name]
    builder = tfds.builder_from_directory(prepare(name, root))
    self.name = f"{name} {split}"
    self.class_names = tuple(builder.info.features[data_set.label_feature].feature.names)
    self._adapt = functools.partial(data_set.adapter, num_classes=len(self.class_names))
    self._examples = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    count = min(limit or len(self._examples), len(self._examples))
    labelled = [i for i in range(count) if self._adapt(self._examples[i]).labels.any()]
    if not labelled:
      raise ValueError(f"{self.name}: no record has a positive label")
    self._positions = np.array(labelled)
    self.dropped = count - len(labelled)

  def __len__(self) -> int:
    return len(self._positions)

  def __getitem__(self, index: int) -> Record:
    return self._adapt(self._examples[int(self._positions[index])])


@functools.cache
def open_split(name: str, split: str, root: str = "", limit: int = 0) -> Split:
  """A `Split`, opened once in a process: finding the records with labels reads all of them."""
  return Split(name, split, root, limit=limit)
