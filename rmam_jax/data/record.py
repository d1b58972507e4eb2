"""The one record type, the index of a split's records, and what `difficult` labels count as."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from rmam_jax.runtime.errors import check_name


class Record(NamedTuple):
  """One image and what is known of it. L is the number of classes, n of objects."""

  id: str  # of own images the path relative to the folder that images are named relative to, with forward slashes
  image: bytes  # as encoded in its file
  labels: np.ndarray  # float32 [L], 1 where the class is present
  ignore: np.ndarray  # bool [L], where the label is neither present nor absent; never where it is 1
  boxes: np.ndarray  # float32 [n, 4] of (top, left, bottom, right) as shares of the image; for measuring only
  box_classes: np.ndarray  # int32 [n]
  proposals: np.ndarray = np.zeros((0, 4), np.float32)  # [K, 4] as the boxes, where `data.proposals` asks for them
  path: str = ""  # of the image's own file, for errors; empty where many images are stored in one file


class Index(NamedTuple):
  """What is known of N records without reading their images. L classes."""

  ids: np.ndarray  # str [N]
  labels: np.ndarray  # float32 [N, L]
  ignore: np.ndarray  # bool [N, L]
  annotated: np.ndarray  # bool [N], whether anything is marked in the image, difficult or not


class Source(Protocol):
  """Where records come from, by position: prepared data, a folder, a manifest."""

  name: str  # of the data set and its split, for messages
  origin: str  # where they are read from
  class_names: tuple[str, ...]  # the L classes in order
  index: Index
  made_by: str  # a digest that changes with what the records are made from
  notes: Sequence[str]  # what is worth knowing of them
  paths: Sequence[str]  # of the images' files, by position; none where many are stored in one file
  proposals_path: pathlib.Path  # where proposals of all of them may be kept

  def __len__(self) -> int: ...

  def __getitem__(self, position: int) -> Record: ...

  def digest(self, positions: np.ndarray) -> str:
    """Of the images and boxes at these positions."""


def multi_hot(classes: Sequence[int], num_classes: int) -> np.ndarray:
  """Class indices -> float32 [L]."""
  labels = np.zeros(num_classes, np.float32)
  labels[np.asarray(classes, int)] = 1
  return labels


def resolve_difficult(labels: np.ndarray, ignore: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
  """What labels that are neither present nor absent count as: labels and ignore [..., L] under "ignore", "negative" or "positive"."""
  check_name("data.difficult", rule, ("ignore", "negative", "positive"))
  if rule == "ignore":
    return labels, ignore
  return np.where(ignore, np.float32(rule == "positive"), labels), np.zeros_like(ignore)
