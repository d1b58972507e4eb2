"""How each data set's stored examples become records, and the splits that hold them."""

import hashlib
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rmam_jax.data import manifests
from rmam_jax.data import proposals as proposals_lib
from rmam_jax.data.digits import scenes
from rmam_jax.data.record import Record, multi_hot
from rmam_jax.evaluation import metrics
from rmam_jax.runtime.errors import UserError


class Adapter(Protocol):
  """From a stored example to a record, without its image being decoded."""

  def __call__(self, example: Mapping[str, Any], num_classes: int) -> Record: ...


def _objects(example) -> tuple[np.ndarray, np.ndarray]:
  objects = example["objects"]
  boxes = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
  return boxes, np.asarray(objects["label"], np.int32)


def _name(example) -> str:
  name = example["image/filename"]
  return name.decode() if isinstance(name, bytes) else str(name)


def adapt_objects(example: Mapping[str, Any], num_classes: int) -> Record:
  """Every object counts: digit scenes, and COCO, whose counts include images with nothing but a crowd."""
  boxes, classes = _objects(example)
  labels = multi_hot(classes, num_classes)
  return Record(_name(example), example["image"], labels, np.zeros(num_classes, bool), boxes, classes)


def adapt_voc(example: Mapping[str, Any], num_classes: int) -> Record:
  """VOC: a class that appears only as `difficult` is neither present nor absent (the devkit's rule)."""
  boxes, classes = _objects(example)
  labels = multi_hot(example["labels_no_difficult"], num_classes)
  ignore = (multi_hot(example["labels"], num_classes) == 1) & (labels == 0)
  return Record(_name(example), example["image"], labels, ignore, boxes, classes)


class DataSet(NamedTuple):
  """Where a data set is stored and how its examples read."""

  directory: str  # below the data root
  adapter: Adapter


DATA_SETS: dict[str, DataSet] = {
  **{f"digits/{setting}": DataSet(f"digits/{setting}/1.0.0", adapt_objects) for setting in scenes.SETTINGS},
  "voc/2007": DataSet("voc/2007/5.0.0", adapt_voc),
  "coco/2014": DataSet("coco/2014_trainval/1.1.0", adapt_objects),
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
    UserError: an unknown name.
    UserError: a data set that has to be prepared elsewhere first, or of which something is left only.
    UserError: the folder cannot be written.
  """
  if name not in DATA_SETS:
    raise UserError(f"data.name must be one of {', '.join(DATA_SETS)} or custom, got {name!r}")
  folder = data_root(root) / DATA_SETS[name].directory
  if (folder / "dataset_info.json").exists():
    return folder
  refuse_remains(name, folder)
  family, setting = name.split("/")
  if family != "digits":
    raise UserError(
      f"{name} is not prepared: {folder} holds no dataset_info.json. Prepare it with: python -m rmam_jax.data.prepare"
      f" {name} --archives=DIR --data_root={data_root(root)} (DIR holds the official archives; without it they are"
      " downloaded), or name the folder of data prepared before with --config.data.root=DIR."
    )
  from rmam_jax.data.digits import builder

  try:
    builder.prepare(setting, data_root(root))
  except OSError as error:
    raise UserError(
      f"cannot write {name} below {data_root(root)}: {error.strerror or error}. Free or open it, or name another folder"
      " with --config.data.root=DIR."
    ) from error
  return folder


def refuse_remains(name: str, folder: pathlib.Path) -> None:
  """Refuses a folder of prepared data without the file that preparing writes last."""
  if folder.exists():
    raise UserError(f"{folder} holds no dataset_info.json, so it is not whole. {_remedy(name, folder)}")


def _remedy(name: str, folder: pathlib.Path) -> str:
  command = "the same command" if name.startswith("digits/") else f"python -m rmam_jax.data.prepare {name}"
  return f"Remove {folder}: {command} makes it again."


def _open_builder(name: str, folder: pathlib.Path):
  """The TFDS builder of prepared data, as far as it can be judged without reading the records.

  Raises:
    UserError: its description is damaged, or it is not stored as array_record.
  """
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(folder)
    label = builder.info.features["objects"].feature["label"]
  except Exception as error:  # whatever a damaged description leads to
    raise UserError(f"{folder}: its description is damaged ({error}). {_remedy(name, folder)}") from error
  kind = builder.info.file_format.value
  if kind != "array_record":
    raise UserError(f"{folder} is stored as {kind}, and array_record is what is read here. {_remedy(name, folder)}")
  names = folder / "objects-label.labels.txt"  # without it TFDS names the classes by numbers
  if not names.exists() or len(label.names) != label.num_classes:
    raise UserError(f"{names} is missing or does not name {label.num_classes} classes. {_remedy(name, folder)}")
  return builder


def _check_shards(name: str, folder: pathlib.Path, instructions: Sequence[Any]) -> None:
  """Compares the records of each file of a split with what the description promises.

  Raises:
    UserError: a file is missing, empty, truncated or holds another number of records; names it.
  """
  from array_record.python import array_record_module

  for path, wanted in {each.filename: each.examples_in_shard for each in instructions}.items():
    try:
      reader = array_record_module.ArrayRecordReader(str(path))
      found = reader.num_records()
      reader.close()
    except RuntimeError as error:
      raise UserError(f"{path}, of {wanted} records, cannot be read ({error}). {_remedy(name, folder)}") from error
    if found != wanted:
      raise UserError(f"{path} holds {found} records, not {wanted}. {_remedy(name, folder)}")


SAMPLED = 64  # stored records whose images stand for those of a split


class _Stored:
  """The records of a TFDS split in array_record format, by position, read from disk each time."""

  def __init__(self, name: str, split: str, root: str):
    import tensorflow_datasets as tfds

    data_set = DATA_SETS[name]
    folder = prepare(name, root)
    builder = _open_builder(name, folder)
    self.class_names = tuple(builder.info.features["objects"].feature["label"].names)
    self._adapter = data_set.adapter
    try:
      instructions = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
      raise UserError(f"{name} has no split {split!r} ({error})") from error
    self._examples = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    _check_shards(name, folder, instructions)
    self._place = f"{name} {split}"
    self._remedy = _remedy(name, folder)
    self.index_path = folder / f"rmam-index-{re.sub('[^a-z0-9]+', '-', split)}.npz"
    self.made_by = hashlib.sha256((folder / "dataset_info.json").read_bytes() + split.encode()).hexdigest()

  def __len__(self) -> int:
    return len(self._examples)

  def digest(self, positions: np.ndarray) -> str:
    """Of what lies there: its description, and the whole content of up to `SAMPLED` of these records."""
    digest = hashlib.sha256(self.made_by.encode())
    for place in np.unique(np.linspace(0, len(positions) - 1, SAMPLED).astype(int)):
      record = self[int(positions[place])]
      digest.update(record.id.encode() + record.image + record.boxes.tobytes() + record.box_classes.tobytes())
    return digest.hexdigest()

  def __getitem__(self, position: int) -> Record:
    """Raises UserError if the record is damaged: each is stored with a checksum."""
    try:
      example = self._examples[position]
    except RuntimeError as error:
      raise UserError(f"record {position} of {self._place} is damaged ({error}). {self._remedy}") from error
    return self._adapter(example, len(self.class_names))


class Index(NamedTuple):
  """What a split needs to know of all its records without reading their images. N records, L classes."""

  ids: np.ndarray  # str [N]
  labels: np.ndarray  # float32 [N, L]
  ignore: np.ndarray  # bool [N, L]
  annotated: np.ndarray  # bool [N], whether anything is marked in the image, difficult or not


def _read_index(source: _Stored) -> Index | None:
  """The index beside the data, unless there is none, it is damaged, or other data made it."""
  try:
    with source.index_path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
      if str(stored["made_by"]) != source.made_by or len(stored["ids"]) != len(source):
        return None
      return Index(*(stored[field] for field in Index._fields))
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None


def _index(source: _Stored, name: str) -> Index:
  """From the file beside the data, or by reading all of them once and leaving such a file if the folder allows."""
  if (found := _read_index(source)) is not None:
    return found
  import tqdm

  shown = len(source) > 5_000
  records = (source[i] for i in range(len(source)))
  rows = [
    (record.id, record.labels, record.ignore, len(record.boxes) > 0)
    for record in tqdm.tqdm(records, f"reading the labels of {name}", len(source), disable=not shown, leave=False)
  ]
  index = Index(*map(np.array, zip(*rows, strict=True)))
  draft = source.index_path.with_name(f"{source.index_path.name}.{os.getpid()}.draft")
  try:
    with draft.open("wb") as file:
      np.savez_compressed(file, made_by=source.made_by, **index._asdict())
    draft.replace(source.index_path)
  except OSError:
    draft.unlink(missing_ok=True)  # the data lie where nothing may be written: the next run reads them again
  return index


def held_out(ids: Sequence[str], count: int) -> np.ndarray:
  """The `count` records whose ids have the smallest sha256: bool [N]. The same whatever the order."""
  if not 0 < count < len(ids):
    raise UserError(f"{count} of {len(ids)} records cannot be held out")
  order = np.argsort([hashlib.sha256(str(each).encode()).hexdigest() for each in ids])
  chosen = np.zeros(len(ids), bool)
  chosen[order[:count]] = True
  return chosen


class Split:
  """Records of one split, by position. Those without a positive label are dropped and counted.

  Attributes:
    name: the data set's and the split's.
    class_names: the L classes in order.
    dropped: how many records had no positive label.
  """

  def __init__(
    self,
    name: str,
    source: Any,
    index: Index,
    *,
    difficult: str = "ignore",
    keep: np.ndarray | None = None,
    limit: int = 0,
    propose: Callable[[Record], np.ndarray] | None = None,
    num_proposals: int = 0,
  ):
    """Makes a split of what is stored.

    Args:
      name: for people.
      source: `class_names`, a `Record` for each position, and a `digest` of the images and boxes at some.
      index: of the source.
      difficult: see `metrics.resolve_difficult`.
      keep: bool [N]; the records that belong to the split; None: all.
      limit: take the first so many of them only; 0 takes all.
      propose: from `proposals.make`.
      num_proposals: that it makes.

    Raises:
      UserError: no record has a positive label.
    """
    self.name = name
    self.class_names = source.class_names
    self._source, self._index, self._difficult = source, index, difficult
    self._propose, self._num_proposals = propose, num_proposals if propose else 0
    positions = np.arange(len(index.ids)) if keep is None else np.flatnonzero(keep)
    positions = positions[: limit or None]
    labels, _ = metrics.resolve_difficult(index.labels[positions], index.ignore[positions], difficult)
    self._positions = positions[labels.any(axis=1)]
    self.dropped = len(positions) - len(self._positions)
    if not len(self._positions):
      raise UserError(f"{name}: no record has a positive label")

  def __len__(self) -> int:
    return len(self._positions)

  def digest(self) -> str:
    """Of all that the records hold: classes, and the ids and labels of all; images and boxes as the source tells them
    from others. Proposals are not in it.
    """
    digest = hashlib.sha256(f"{self.class_names} {self._difficult} {self._source.digest(self._positions)}".encode())
    digest.update("\n".join(self._index.ids[self._positions].tolist()).encode())
    for marks in (self._index.labels, self._index.ignore):
      digest.update(np.ascontiguousarray(marks[self._positions]).tobytes())
    return digest.hexdigest()

  def blank(self, index: int) -> Record:
    """What stands for a record that cannot be read: its id, and all labels to be ignored."""
    classes = len(self.class_names)
    return Record(
      str(self._index.ids[self._positions[index]]),
      b"",
      np.zeros(classes, np.float32),
      np.ones(classes, bool),
      np.zeros((0, 4), np.float32),
      np.zeros(0, np.int32),
      np.zeros((self._num_proposals, 4), np.float32),
    )

  def __getitem__(self, index: int) -> Record:
    record = self._source[int(self._positions[index])]
    labels, ignore = metrics.resolve_difficult(record.labels, record.ignore, self._difficult)
    record = record._replace(labels=labels, ignore=ignore)
    return record._replace(proposals=self._propose(record)) if self._propose else record


_PART = re.compile(r"(?P<whole>.+):(?P<part>rest|held)-(?P<count>\d+)")
_OPEN: dict[str, Split] = {}


def open_split(data: Any, split: str, limit: int = 0) -> Split:
  """A split as a configuration describes it, opened once in a process.

  Args:
    data: the `data` section of a configuration.
    split: for stored data a TFDS split such as "train" or "train+validation", or a part of one: "train:held-4000" is
      the 4,000 records whose ids have the smallest hash, "train:rest-4000" all others; for `custom` data a manifest.
    limit: take the first so many records only; 0 takes all.

  Raises:
    UserError: an unknown data set or split; another number of annotated images than `data.expected` has for it; or
      prepared data that are damaged.
    UserError: a data set that has to be prepared first.
  """
  key = json.dumps([json.loads(data.to_json()), split, limit])
  if key not in _OPEN:
    _OPEN[key] = _open(data, split, limit)
  return _OPEN[key]


def _open(data: Any, split: str, limit: int) -> Split:
  name = f"{data.name} {split}"
  if data.name == "custom":
    if data.proposals:
      raise UserError("data.proposals is there for prepared data sets, not for custom images")
    source = manifests.open_manifest(split, data)
    index = Index(*(np.array(column) for column in source.index()))
    return Split(name, source, index, difficult=data.difficult, limit=limit)
  part = _PART.fullmatch(split)
  whole = part["whole"] if part else split
  source = _Stored(data.name, whole, data.root)
  index = _index(source, f"{data.name} {whole}")
  expected, found = dict(data.expected).get(whole, 0), int(index.annotated.sum())
  if expected and found != expected:
    raise UserError(
      f"{data.name} {whole} has {found:,} annotated images where data.expected has {expected:,}: prepare it again from"
      " the official archives, or set the field"
    )
  keep = None
  if part:
    keep = index.annotated.copy()
    chosen = held_out(index.ids[index.annotated], int(part["count"]))
    keep[index.annotated] = chosen if part["part"] == "held" else ~chosen
  beside = source.index_path.with_name(source.index_path.name.replace("index", "proposals"))
  propose = proposals_lib.make(data.proposals, data.num_proposals, source, beside, source.made_by)
  return Split(
    name,
    source,
    index,
    difficult=data.difficult,
    keep=keep,
    limit=limit,
    propose=propose,
    num_proposals=data.num_proposals,
  )
