"""How certain a difference in mAP is: the paired bootstrap over test images.

Letters: N images, L classes, R resamples, S runs (seeds).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2_000
_AT_ONCE = 4_000_000  # numbers in one array


class Interval(NamedTuple):
  """A difference in mAP, in [-1, 1], and the middle 95 % of its resamples."""

  difference: float
  low: float
  high: float

  @property
  def verdict(self) -> str:
    """ "holds" where the interval lies above zero, "reversed" below, else "open"."""
    return "holds" if self.low > 0 else "reversed" if self.high < 0 else "open"


def resample_counts(images: int, resamples: int = RESAMPLES) -> np.ndarray:
  """How often each image is drawn in each resample of as many images: int [R, N]."""
  return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), resamples)


def weighted_average_precisions(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """All-point average precision of one class, [R], each image counted as often as a resample drew it, weights [R, N].

  Equal scores count as one threshold. It is nan where a resample drew no positive.
  """
  order = np.argsort(-scores, kind="stable")
  last_of_equals = np.append(np.diff(scores[order]) != 0, True)
  end = np.flatnonzero(last_of_equals)[np.cumsum(last_of_equals) - last_of_equals]  # of each image's group of equals
  found = []
  for part in np.array_split(weights[:, order], max(weights.size // _AT_ONCE, 1)):
    positive = part * labels[order]
    true, drawn = positive.cumsum(axis=1)[:, end], part.cumsum(axis=1)[:, end]
    gained = (positive * np.divide(true, drawn, out=np.zeros(true.shape), where=drawn > 0)).sum(axis=1)
    total = positive.sum(axis=1)
    found.append(np.divide(gained, total, out=np.full(len(part), np.nan), where=total > 0))
  return np.concatenate(found)


def resampled_maps(scores: np.ndarray, labels: np.ndarray, ignore: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """The mAP of each resample over the classes with a drawn positive: three [N, L], weights [R, N] -> [R]."""
  classes = range(scores.shape[1])
  every = [weighted_average_precisions(scores[:, c], labels[:, c], weights * ~ignore[:, c]) for c in classes]
  return np.nanmean(every, axis=0)


def paired_interval(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Interval:
  """The difference of two methods, the mean over their runs; every run sees the same resamples.

  Each method is S arrays [R + 1] of mAPs: of the images as they are, then of the resamples. The interval says what
  other test images would change, but not what other seeds would: the spread between seeds is printed beside it.
  """
  difference = np.mean(first, axis=0) - np.mean(second, axis=0)
  low, high = np.percentile(difference[1:], [2.5, 97.5])
  return Interval(float(difference[0]), float(low), float(high))
