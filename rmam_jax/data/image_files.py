"""Records whose images are files: what folders as VOC and COCO have them and manifests become."""

import bisect
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rmam_jax.data.entries import Entries
from rmam_jax.data.images import upright_boxes
from rmam_jax.data.record import Index, Record
from rmam_jax.runtime import files

UNCOMPRESSED = (".bmp", ".tif", ".tiff")  # files whose size says nothing of what they show
PART = 4_096  # bytes from the middle of such a file that tell it from others


class Table(NamedTuple):
  """What is known of N images without opening them, as arrays that can be kept in a file. L classes, n boxes in all."""

  ids: np.ndarray  # str [N]
  labels: np.ndarray  # float32 [N, L]
  ignore: np.ndarray  # bool [N, L]
  sizes: np.ndarray  # float32 [N, 2] of (width, height) as the annotation states it, 0 where it does not
  boxes: np.ndarray  # float32 [n, 4] of (top, left, bottom, right) as shares of their image
  box_classes: np.ndarray  # int32 [n]
  ends: np.ndarray  # int64 [N], where in these each image's boxes end


def tabulate(entries: Entries, class_names: Sequence[str]) -> Table:
  """Entries, all of whose labels are among the L classes, as arrays."""
  numbers, count = {name: number for number, name in enumerate(class_names)}, len(entries)
  labels, ignore = (np.zeros((count, len(numbers)), kind) for kind in (np.float32, bool))
  for marks, field in ((labels, "labels"), (ignore, "ignore")):
    named = [getattr(said, field) for said in entries.said]
    rows = np.repeat(np.arange(count), np.fromiter(map(len, named), int, count))
    marks[rows, [numbers[name] for names in named for name in names]] = 1
  return Table(
    np.array(entries.ids),
    labels,
    ignore,
    np.fromiter((side for said in entries.said for side in said.size), np.float32).reshape(-1, 2),
    np.array(entries.edges, np.float32).reshape(-1, 4),
    np.fromiter(map(numbers.__getitem__, entries.box_labels), np.int32),
    np.array(entries.ends, np.int64),
  )


def concatenate(tables: Sequence[Table]) -> Table:
  """The images of several tables of the same classes, one table after the other."""
  offsets = np.cumsum([0, *(len(table.boxes) for table in tables[:-1])])
  moved = [table._replace(ends=table.ends + offset) for table, offset in zip(tables, offsets, strict=True)]
  return Table(*map(np.concatenate, zip(*moved, strict=True)))


class Paths(Sequence[str]):
  """The paths of images' files, put together of folder and id when one is asked for."""

  def __init__(self, parts: Sequence[tuple[str, np.ndarray]]):
    """Of the images of each part, one part's after the other's: a folder with a slash at its end, and ids [n]."""
    self._parts, self._ends = parts, np.cumsum([len(ids) for _, ids in parts]).tolist()

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, position: int) -> str:
    part = bisect.bisect_right(self._ends, position)
    folder, ids = self._parts[part]
    return f"{folder}{ids[position - self._ends[part]]}"  # counted from the part's end

  def __iter__(self) -> Iterator[str]:
    return (f"{folder}{name}" for folder, ids in self._parts for name in ids.tolist())


class ImageFiles:
  """A source of records, by position; an image is read from its file each time that its record is asked for.

  Attributes:
    name: of the data set and its split, for messages.
    origin: where they were read from.
    class_names, index: see `record.Source`.
    paths: of the images' files, [N].
    made_by: a digest of what the table was made from.
    notes: what is worth knowing of the annotations.
  """

  def __init__(
    self,
    name: str,
    origin: str,
    class_names: Iterable[str],
    table: Table,
    paths: Sequence[str],
    made_by: str,
    notes: Iterable[str] = (),
  ):
    """The images of a table, whose files are at `paths`, [N]."""
    self.name, self.origin, self.class_names, self.made_by, self.notes = (
      name,
      origin,
      tuple(class_names),
      made_by,
      tuple(notes),
    )
    self._table, self.paths = table, paths
    self.index = Index(table.ids, table.labels, table.ignore, table.labels.any(axis=1) | table.ignore.any(axis=1))

  @property
  def proposals_path(self) -> pathlib.Path:
    return kept_folder() / f"proposals-{self.made_by[:16]}.npz"

  def __len__(self) -> int:
    return len(self.paths)

  def _boxes(self, position: int) -> slice:
    return slice(self._table.ends[position - 1] if position else 0, self._table.ends[position])

  def __getitem__(self, position: int) -> Record:
    """Raises OSError if the image's file cannot be read."""
    table, where, path = self._table, self._boxes(position), self.paths[position]
    image = pathlib.Path(path).read_bytes()
    return Record(
      str(table.ids[position]),
      image,
      table.labels[position],
      table.ignore[position],
      upright_boxes(table.boxes[where], table.sizes[position], image),
      table.box_classes[where],
      path=path,
    )

  def digest(self, positions: np.ndarray) -> str:
    """Of the boxes at these positions, and of the images by the sizes of their files and, where that says nothing, a part."""
    digest = hashlib.sha256()
    for position in map(int, positions):
      try:
        size = os.stat(self.paths[position]).st_size
        if self.paths[position].lower().endswith(UNCOMPRESSED):
          with open(self.paths[position], "rb") as file:
            file.seek(size // 2)
            digest.update(file.read(PART))
      except OSError:
        size = "missing"
      where = self._boxes(position)
      digest.update(f"{size} {len(self._table.boxes[where])} ".encode())
      digest.update(self._table.boxes[where].tobytes() + self._table.box_classes[where].tobytes())
    return digest.hexdigest()


def kept_folder() -> pathlib.Path:
  """Where tables, and proposals, of data that may lie in a folder that nobody may write to are kept."""
  return files.cache_folder() / "data"


def read_kept(made_by: str) -> Mapping[str, np.ndarray] | None:
  """The arrays kept under this digest of what they were made from; None where there are none, or damaged ones."""
  try:
    return files.read_npz(kept_folder() / f"table-{made_by[:16]}.npz", "")
  except (OSError, ValueError, KeyError):
    return None


def keep(made_by: str, arrays: Mapping[str, np.ndarray]) -> None:
  """Keeps them, where that can be done; where it cannot the next run reads the annotations again."""
  try:
    kept_folder().mkdir(parents=True, exist_ok=True)
    files.write_npz(kept_folder() / f"table-{made_by[:16]}.npz", arrays, compressed=True)
  except (OSError, ValueError):
    return
