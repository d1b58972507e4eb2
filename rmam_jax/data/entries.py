"""A million entries in little memory: what many have in common is kept once, numbers lie in arrays."""

import array
import re
from collections.abc import Iterable, Iterator, KeysView, Sequence
from typing import NamedTuple

from rmam_jax.data.annotations import Entry

_NUMBERED = re.compile(r"(.*[:\[ ])(0|[1-9][0-9]{0,17})(\]?)", re.DOTALL)  # a place that ends with a line or an index


class Said(NamedTuple):
  """What an entry says and many others say too; see `Entry`."""

  labels: tuple[str, ...]
  ignore: tuple[str, ...]
  size: tuple[float, float]
  classes: tuple[str, ...]
  part: str


class Entries(Sequence[Entry]):
  """Entries in order, to which more can be appended. Boxes are rounded to float32, as records have them.

  Attributes:
    folder: that the images lie below, with a slash at its end; empty as long as that is not known.
    ids: of the N entries.
    said: what each says, N objects, shared by those that say the same.
    edges: float32 [4 * M], the sides of all M boxes, one entry's after the other's.
    box_labels: of the M boxes.
    ends: [N], where the boxes of each entry end among the M.
  """

  def __init__(self, entries: Iterable[Entry] = (), folder: str = ""):
    self.folder = folder
    self.ids: list[str] = []
    self.said: list[Said] = []
    self.edges, self.box_labels, self.ends = array.array("f"), [], array.array("q")
    self._places: list[tuple[str, str]] = []  # what stands before and behind the number in each place
    self._numbers = array.array("q")  # -1 where there is none
    self._shared: dict[tuple, tuple] = {}
    self._kinds: dict[Said, Said] = {}
    for entry in entries:
      self.append(entry)

  def append(self, entry: Entry) -> None:
    """Adds an entry at the end."""
    said = Said(entry.labels, entry.ignore, entry.size, entry.classes, entry.part)
    before, number, behind = match.groups() if (match := _NUMBERED.fullmatch(entry.place)) else (entry.place, -1, "")
    self.ids.append(entry.id)
    self.said.append(self._kinds.setdefault(said, said))
    self._places.append(self._shared.setdefault((before, behind), (before, behind)))
    self._numbers.append(int(number))
    for box in entry.boxes:
      self.edges.extend(box)
    self.box_labels += entry.box_labels
    self.ends.append(len(self.box_labels))

  @property
  def kinds(self) -> KeysView[Said]:
    """All that is said, each once."""
    return self._kinds.keys()

  def place(self, position: int) -> str:
    """Where the entry at this position, from 0, stands in its manifest; see `Entry`."""
    (before, behind), number = self._places[position], self._numbers[position]
    return before if number < 0 else f"{before}{number}{behind}"

  def __len__(self) -> int:
    return len(self.ids)

  def __getitem__(self, position: int) -> Entry:
    if not -len(self) <= position < len(self):
      raise IndexError(position)
    position %= len(self)
    name, said = self.ids[position], self.said[position]
    start, end = self.ends[position - 1] if position else 0, self.ends[position]
    edges = self.edges[4 * start : 4 * end]
    return Entry(
      self.place(position),
      name,
      said.labels,
      said.ignore,
      tuple(tuple(edges[at : at + 4]) for at in range(0, len(edges), 4)) if end > start else (),
      tuple(self.box_labels[start:end]) if end > start else (),
      said.size,
      said.classes,
      said.part,
      f"{self.folder}{name}" if self.folder else "",
    )

  def __iter__(self) -> Iterator[Entry]:
    return map(self.__getitem__, range(len(self)))
