"""How good the labels and the places are (Sec. 5.1, Eq. 15). numpy only.

Letters: N images, L classes, K regions. Labels are 0 or 1; `ignore` [N, L] marks labels that are neither. A class
without positives has no average precision: it is nan, and left out of the mean.
"""

from typing import Any, NamedTuple

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


def top_k_labels(scores: np.ndarray, k: int) -> np.ndarray:
  """The k highest classes of each image, the first of equals: [N, L] -> bool [N, L]."""
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  chosen = np.zeros(scores.shape, bool)
  np.put_along_axis(chosen, order, True, axis=1)
  return chosen


def _f1(precision, recall):
  total = precision + recall
  return np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0.0)


class Counts(NamedTuple):
  """What precision, recall and F1 are made of (Eq. 15), by class: int [L]."""

  correct: np.ndarray  # predicted and there
  predicted: np.ndarray
  actual: np.ndarray


def count(predicted: np.ndarray, labels: np.ndarray, *, ignore: np.ndarray | None = None) -> Counts:
  """Counts predictions, bool [N, L], against labels [N, L]; ignored labels are left out of every count."""
  kept = np.ones(labels.shape, bool) if ignore is None else ~np.asarray(ignore, bool)
  predicted, actual = np.asarray(predicted, bool) & kept, np.asarray(labels, bool) & kept
  return Counts((predicted & actual).sum(0), predicted.sum(0), actual.sum(0))


def precision_recall_f1(
  predicted: np.ndarray, labels: np.ndarray, *, ignore: np.ndarray | None = None
) -> dict[str, float]:
  """Overall and per-class precision, recall and F1 (Eq. 15).

  A class that is never predicted has precision 0; one without positives has recall 0; F1 is 0 where both are. All
  classes count, as in the paper and in others' code; `count` tells which they are.

  Args:
    predicted: bool [N, L].
    labels: [N, L] of 0 and 1.
    ignore: [N, L]; left out of every count.

  Returns:
    CP, CR, CF1, OP, OR, OF1 and macro_F1, in [0, 1]. CF1 is the harmonic mean of CP and CR, as printed; macro_F1 the
    mean of the classes' F1, which some print as CF1.
  """
  correct, predicted, actual = count(predicted, labels, ignore=ignore)
  precision_L, recall_L = correct / np.maximum(predicted, 1), correct / np.maximum(actual, 1)
  cp, cr = precision_L.mean(), recall_L.mean()
  op = correct.sum() / max(predicted.sum(), 1)
  or_ = correct.sum() / max(actual.sum(), 1)
  found = {"CP": cp, "CR": cr, "CF1": _f1(cp, cr), "OP": op, "OR": or_, "OF1": _f1(op, or_)}
  found["macro_F1"] = _f1(precision_L, recall_L).mean()
  return {name: float(value) for name, value in found.items()}


class Protocol(NamedTuple):
  """A way of measuring: the same scores give other figures under another, by up to several points."""

  scores: str  # "network", or "svm": which scores it measures
  ap_method: str  # see `average_precision`
  ap_difficult: str  # in average precision, ignored labels are left out ("ignore") or count as "negative" or "positive"
  f1_difficult: str  # the same in CP ... OF1
  top_k: int  # labels an image at most; 0: as many as reach the threshold
  threshold: float  # of a label's score; of the network's, a logit
  strict: bool  # the score must exceed the threshold, not only reach it
  class_f1: str  # which of `precision_recall_f1`'s is called CF1: "CF1" or "macro_F1"


def logit(probability: float) -> float:
  """The score whose sigmoid is this probability."""
  return float(np.log(probability / (1 - probability)))


_NONE = float("-inf")

# What each prints. Others' code takes the network's scores as logits, whatever it was trained with. `difficult` occurs
# in VOC only: for codes written for COCO it is what their labels would hold.
PROTOCOLS: dict[str, Protocol] = {
  "paper": Protocol("svm", "eleven_point", "ignore", "ignore", 3, 0.0, True, "CF1"),
  "paper-top3": Protocol("svm", "eleven_point", "ignore", "ignore", 3, _NONE, False, "CF1"),
  "ml-gcn": Protocol("network", "all_point", "ignore", "negative", 0, 0.0, False, "CF1"),
  "ml-gcn-top3": Protocol("network", "all_point", "ignore", "negative", 3, 0.0, False, "CF1"),
  "mcar": Protocol("network", "all_point", "ignore", "negative", 0, logit(0.6), False, "CF1"),
  "csra": Protocol("network", "all_point", "ignore", "ignore", 0, 0.0, False, "CF1"),
  "asl": Protocol("network", "all_point", "negative", "negative", 0, logit(0.8), True, "macro_F1"),
  "ml-decoder": Protocol("network", "all_point", "negative", "negative", 0, logit(0.75), True, "macro_F1"),
  "q2l": Protocol("network", "interpolated", "negative", "negative", 0, 0.0, False, "CF1"),
}


def resolve_difficult(labels: np.ndarray, ignore: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
  """Labels and ignore [N, L] under "ignore", "negative" or "positive", what ignored labels count as."""
  if rule == "ignore":
    return labels, ignore
  if rule not in ("negative", "positive"):
    raise ValueError(f"difficult must be ignore, negative or positive, got {rule!r}")
  return np.where(ignore, float(rule == "positive"), labels), np.zeros_like(ignore)


def measure(protocol: Protocol, scores: np.ndarray, labels: np.ndarray, ignore: np.ndarray) -> dict[str, Any]:
  """All figures of a protocol.

  Args:
    protocol: one of `PROTOCOLS`, or another.
    scores: [N, L]: the network's or the SVMs', as the protocol says.
    labels: [N, L] of 0 and 1.
    ignore: bool [N, L], labels that are neither.

  Returns:
    mAP, CP, CR, CF1, OP, OR, OF1, shares in [0, 1]; "AP" [L], nan where undefined; and the classes, by index, that
    have no average precision ("undefined"), and that are never predicted ("never_predicted").
  """
  ap_labels, ap_ignore = resolve_difficult(labels, ignore, protocol.ap_difficult)
  precisions = average_precisions(scores, ap_labels, ignore=ap_ignore, method=protocol.ap_method)
  predicted = scores > protocol.threshold if protocol.strict else scores >= protocol.threshold
  if protocol.top_k:
    predicted &= top_k_labels(scores, protocol.top_k)
  f1_labels, f1_ignore = resolve_difficult(labels, ignore, protocol.f1_difficult)
  found = precision_recall_f1(predicted, f1_labels, ignore=f1_ignore)
  counts = count(predicted, f1_labels, ignore=f1_ignore)
  return {
    "mAP": mean_average_precision(precisions),
    **{name: found[name] for name in ("CP", "CR", "CF1", "OP", "OR", "OF1")},
    "CF1": found[protocol.class_f1],
    "AP": precisions,
    "undefined": np.flatnonzero(np.isnan(precisions)).tolist(),
    "never_predicted": np.flatnonzero(counts.predicted == 0).tolist(),
  }


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
