"""How good the labels and the places are (Sec. 5.1, Eq. 15). numpy only.

Letters: N images, L classes, K regions. Labels are 0 or 1; `ignore` [N, L] marks labels that are neither. A class
without positives has no average precision: it is nan, and left out of the mean.
"""

from typing import NamedTuple

import numpy as np

AP_METHODS = ("all_point", "interpolated", "eleven_point")


def average_precision(scores: np.ndarray, labels: np.ndarray, method: str = "all_point") -> float:
  """Average precision of one class.

  Args:
    scores: [N], higher is surer. Equal scores count as one threshold, as in scikit-learn.
    labels: [N] of 0 and 1.
    method: "all_point", the mean of the precision at each positive (scikit-learn's); "interpolated", with the
      precision made non-increasing first (VOC from 2010); "eleven_point", the mean of the interpolated precision at
      recalls 0, 0.1, ... 1 (VOC 2007).

  Returns:
    In [0, 1], or nan without positives.
  """
  if method not in AP_METHODS:
    raise ValueError(f"method must be one of {', '.join(AP_METHODS)}, got {method!r}")
  scores, labels = np.asarray(scores), np.asarray(labels)
  if not np.isfinite(scores).all():
    raise ValueError("scores must be finite")
  positives = int(labels.sum())
  if positives == 0:
    return float("nan")
  order = np.argsort(-scores, kind="stable")
  true = np.cumsum(labels[order])
  last_of_equals = np.append(np.diff(scores[order]) != 0, True)
  true = true[last_of_equals]
  precision = true / (np.flatnonzero(last_of_equals) + 1)
  if method == "all_point":
    return float(np.diff(true, prepend=0) @ precision / positives)
  ceiling = np.maximum.accumulate(precision[::-1])[::-1]
  if method == "interpolated":
    return float(np.diff(true, prepend=0) @ ceiling / positives)
  # The first point whose recall reaches tenth / 10, in whole numbers; 1.0 is always reached.
  first = [np.argmax(10 * true >= tenth * positives) for tenth in range(11)]
  return float(ceiling[first].mean())


def average_precisions(
  scores: np.ndarray, labels: np.ndarray, *, ignore: np.ndarray | None = None, method: str = "all_point"
) -> np.ndarray:
  """The average precision of each class: [N, L], [N, L] -> [L]. Ignored labels are left out of their class."""
  kept = np.ones(np.shape(labels), bool) if ignore is None else ~np.asarray(ignore, bool)
  return np.array(
    [average_precision(scores[kept[:, c], c], labels[kept[:, c], c], method) for c in range(labels.shape[1])]
  )


def mean_average_precision(precisions: np.ndarray) -> float:
  """The mean over the classes that have positives; nan where none has."""
  defined = precisions[~np.isnan(precisions)]
  return float(defined.mean()) if defined.size else float("nan")


def top_k_labels(scores: np.ndarray, k: int, threshold: float | None = None) -> np.ndarray:
  """The k highest classes of each image, those that reach `threshold` only: [N, L] -> bool [N, L]."""
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  chosen = np.zeros(scores.shape, bool)
  np.put_along_axis(chosen, order, True, axis=1)
  return chosen if threshold is None else chosen & (scores >= threshold)


def precision_recall_f1(
  predicted: np.ndarray, labels: np.ndarray, *, ignore: np.ndarray | None = None
) -> dict[str, float]:
  """Overall and per-class precision, recall and F1 (Eq. 15).

  A class that is never predicted has precision 0; one without positives has recall 0; F1 is 0 where both are. CF1 is
  the harmonic mean of CP and CR, as printed.

  Args:
    predicted: bool [N, L].
    labels: [N, L] of 0 and 1.
    ignore: [N, L]; left out of every count.

  Returns:
    CP, CR, CF1, OP, OR, OF1, in [0, 1].
  """
  kept = np.ones(labels.shape, bool) if ignore is None else ~np.asarray(ignore, bool)
  predicted, actual = np.asarray(predicted, bool) & kept, np.asarray(labels, bool) & kept
  correct_L, predicted_L, actual_L = ((predicted & actual).sum(0), predicted.sum(0), actual.sum(0))
  cp = float((correct_L / np.maximum(predicted_L, 1)).mean())
  cr = float((correct_L / np.maximum(actual_L, 1)).mean())
  op = float(correct_L.sum() / max(predicted_L.sum(), 1))
  or_ = float(correct_L.sum() / max(actual_L.sum(), 1))

  def f1(precision, recall):
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

  return {"CP": cp, "CR": cr, "CF1": f1(cp, cr), "OP": op, "OR": or_, "OF1": f1(op, or_)}


class Localization(NamedTuple):
  """How well the centres of the regions sit on the objects; shares in [0, 1], nan where there is nothing to count."""

  r_precision: float  # of the first n regions of an image with n objects, those whose centre is inside some object
  coverage: float  # of the objects, those that contain some region's centre
  pointing: float  # of the (image, present label) pairs, those whose winning region is centred in a box of the label


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """[K, 2] of (x, y), [n, 4] of (top, left, bottom, right) -> bool [K, n]; the edges count as inside."""
  x, y = points[:, :1], points[:, 1:]
  return (boxes[:, 0] <= y) & (y <= boxes[:, 2]) & (boxes[:, 1] <= x) & (x <= boxes[:, 3])


def _share(part: float, whole: float) -> float:
  return float(part / whole) if whole else float("nan")


def localization(
  centres: np.ndarray, winners: np.ndarray, boxes: list[np.ndarray], box_classes: list[np.ndarray]
) -> Localization:
  """Scores the regions' centres against boxes that were never trained on. Images without boxes do not count.

  Args:
    centres: [N, K, 2] of (x, y), in the boxes' units, in the order of looking.
    winners: int [N, L], the region that won Eq. 6 for each class.
    boxes: N arrays [n, 4] of (top, left, bottom, right).
    box_classes: N arrays [n] of class indices.
  """
  on_object = looks = covered = objects = pointed = pairs = 0
  for points, winner, box, classes in zip(centres, winners, boxes, box_classes, strict=True):
    if not len(box):
      continue
    inside = _inside(points, box)
    first = inside[: len(box)]
    on_object += first.any(axis=1).sum()
    looks += len(first)
    covered += inside.any(axis=0).sum()
    objects += len(box)
    present = np.unique(classes)
    pointed += sum(inside[winner[c], classes == c].any() for c in present)
    pairs += len(present)
  return Localization(_share(on_object, looks), _share(covered, objects), _share(pointed, pairs))


def _area_shares(boxes: np.ndarray, size: tuple[float, float]) -> np.ndarray:
  """The share of the image that lies in each box [n], clipped to the image."""
  height, width = size
  tall = np.clip(boxes[:, 2], 0, height) - np.clip(boxes[:, 0], 0, height)
  wide = np.clip(boxes[:, 3], 0, width) - np.clip(boxes[:, 1], 0, width)
  return tall * wide / (height * width)


def chance_localization(
  num_regions: int,
  boxes: list[np.ndarray],
  box_classes: list[np.ndarray],
  sizes: list[tuple[float, float]],
  *,
  samples: int = 1024,
  seed: int = 0,
) -> Localization:
  """What `localization` expects of K centres drawn uniformly over the image, in place of the regions.

  Coverage is exact; the other two need the area of unions of boxes, estimated from `samples` points an image.

  Args:
    num_regions: K.
    boxes, box_classes: as in `localization`.
    sizes: N of (height, width), in the boxes' units.
    samples: points an image.
    seed: of the points.
  """
  unit = np.random.default_rng(seed).random((samples, 2))
  on_object = looks = covered = objects = pointed = pairs = 0.0
  for box, classes, (height, width) in zip(boxes, box_classes, sizes, strict=True):
    if not len(box):
      continue
    inside = _inside(unit * (width, height), box)
    count = min(len(box), num_regions)
    on_object += count * inside.any(axis=1).mean()
    looks += count
    covered += (1 - (1 - _area_shares(box, (height, width))) ** num_regions).sum()
    objects += len(box)
    present = np.unique(classes)
    pointed += sum(inside[:, classes == c].any(axis=1).mean() for c in present)
    pairs += len(present)
  return Localization(_share(on_object, looks), _share(covered, objects), _share(pointed, pairs))
