"""The one record type."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Record(NamedTuple):
  """One image and what is known of it. L is the number of classes, n of objects."""

  id: str
  image: bytes  # as encoded in its file
  labels: np.ndarray  # float32 [L], 1 where the class is present
  ignore: np.ndarray  # bool [L], where the label is neither; never where it is 1
  boxes: np.ndarray  # float32 [n, 4] of (top, left, bottom, right) as shares of the image; for measuring only
  box_classes: np.ndarray  # int32 [n]
  proposals: np.ndarray = np.zeros((0, 4), np.float32)  # [K, 4] as the boxes, where `data.proposals` asks for them


def multi_hot(classes: Sequence[int], num_classes: int) -> np.ndarray:
  """Class indices -> float32 [L]."""
  labels = np.zeros(num_classes, np.float32)
  labels[np.asarray(classes, int)] = 1
  return labels
