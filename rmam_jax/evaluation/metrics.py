"""How good the labels and the regions are (Sec. 5.1, Eq. 15). numpy only.

Letters: N images, L classes, K regions. Labels are 0 or 1; `ignore` [N, L] marks labels that are neither. A class
without positives has no average precision: it is nan, and left out of the mean.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from rmam_jax.data.record import resolve_difficult
from rmam_jax.ops.boxes import box_iou, clip_boxes

F1_NAMES = ("CP", "CR", "CF1", "OP", "OR", "OF1")
AP_METHODS = ("all_point", "interpolated", "eleven_point")


def _checked(
  scores: Any, labels: Any, ignore: Any, dims: int, what: str = "scores"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The three as arrays of one shape: numbers, 0 or 1, bool (False where `ignore` is None).

  Raises ValueError: their shapes, kinds or values are others; says which.
  """
  scores, labels = np.asarray(scores), np.asarray(labels)
  marks = np.zeros(labels.shape, bool) if ignore is None else np.asarray(ignore)
  shapes = {what: scores.shape, "labels": labels.shape, "ignore": marks.shape}
  if len(set(shapes.values())) > 1 or scores.ndim != dims:
    found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise ValueError(
      f"{what}, labels and ignore must have the same shape, {'[N]' if dims == 1 else '[N, L]'}; got {found}"
    )
  if scores.dtype.kind not in "fiub":
    raise ValueError(f"{what} must be numbers, got {scores.dtype}")
  for name, array in (("labels", labels), ("ignore", marks)):
    if array.dtype.kind not in "fiub" or not np.isin(array, (0, 1)).all():
      wrong = array.dtype if array.dtype.kind not in "fiub" else array[~np.isin(array, (0, 1))][0]
      raise ValueError(f"{name} must be 0 or 1, got {wrong}")
  if not np.isfinite(scores).all():
    raise ValueError(f"{what} must be finite")
  kind = np.promote_types(labels.dtype, np.float32) if labels.dtype.kind == "f" else np.float32  # float16 cannot count
  return _negatable(scores), labels.astype(kind, copy=False), marks.astype(bool)


def _negatable(scores: Any) -> np.ndarray:
  """An array of numbers with a sign."""
  scores = np.asarray(scores)
  return scores if scores.dtype.kind == "f" else scores.astype(float)


def average_precision(scores: np.ndarray, labels: np.ndarray, method: str = "all_point") -> float:
  """Average precision of one class, in [0, 1], or nan without positives: scores [N], labels [N].

  Equal scores count as one threshold. The methods: "all_point", the mean of the precision at each positive, as in
  scikit-learn; "interpolated", with the precision made non-increasing first (VOC from 2010); "eleven_point", the mean
  of the interpolated precision at recalls 0, 0.1, ... 1 (VOC 2007).
  """
  if method not in AP_METHODS:
    raise ValueError(f"method must be one of {', '.join(AP_METHODS)}, got {method!r}")
  scores, labels, _ = _checked(scores, labels, None, 1)
  positives = int(labels.sum())
  if positives == 0:
    return float("nan")
  true, taken = by_threshold(scores, labels)
  precision = true / taken
  if method != "all_point":
    precision = np.maximum.accumulate(precision[::-1])[::-1]
  if method == "eleven_point":
    # The first point whose recall reaches tenth / 10, in whole numbers; 1.0 is always reached.
    first = [np.argmax(10 * true >= tenth * positives) for tenth in range(11)]
    return float(precision[first].mean())
  return float(np.diff(true, prepend=0) @ precision / positives)


def by_threshold(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """How many are right, and how many are taken, from each of T distinct scores up, the highest first: [T], [T]."""
  order = np.argsort(-scores, kind="stable")
  taken = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) + 1
  return np.cumsum(labels[order])[taken - 1], taken


def precision_recall_curve(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Recall and precision of one class at each distinct score, the highest first, both empty without positives."""
  scores, labels, _ = _checked(scores, labels, None, 1)
  if not labels.sum():
    return np.zeros(0), np.zeros(0)
  true, taken = by_threshold(scores, labels)
  return true / labels.sum(), true / taken


def average_precisions(
  scores: np.ndarray, labels: np.ndarray, *, ignore: np.ndarray | None = None, method: str = "all_point"
) -> np.ndarray:
  """The average precision of each class: [N, L], [N, L] -> [L]. Ignored labels are left out of their class."""
  scores, labels, ignore = _checked(scores, labels, ignore, 2)
  kept = ~ignore
  classes = range(labels.shape[1])
  return np.array([average_precision(scores[kept[:, c], c], labels[kept[:, c], c], method) for c in classes])


def mean_average_precision(precisions: np.ndarray) -> float:
  """The mean over the classes that have positives; nan where none has."""
  precisions = np.asarray(precisions, float)
  defined = precisions[~np.isnan(precisions)]
  return float(defined.mean()) if defined.size else float("nan")


def top_k_labels(scores: np.ndarray, k: int) -> np.ndarray:
  """The k highest classes of each image, the first of equals: [N, L] -> bool [N, L]."""
  return np.argsort(-_negatable(scores), axis=1, kind="stable").argsort(axis=1) < k


def _f1(precision, recall):
  total = precision + recall
  return np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0.0)


def never_predicted(predicted: np.ndarray, ignore: np.ndarray) -> list[int]:
  """The classes that no image is given, of predictions bool [N, L]; ignored labels do not count."""
  return np.flatnonzero(~(predicted & ~ignore).any(axis=0)).tolist()


def precision_recall_f1(
  predicted: np.ndarray, labels: np.ndarray, *, ignore: np.ndarray | None = None
) -> dict[str, float]:
  """Overall and per-class precision, recall and F1 (Eq. 15) of predictions, bool [N, L], against labels [N, L].

  Ignored labels are left out of every count. A class that is never predicted has precision 0; one without positives has
  recall 0; F1 is 0 where both are. All classes count, as in the paper and in others' code. CF1 is the harmonic mean of
  CP and CR, as printed; macro_F1 is the mean of the classes' F1, which some print as CF1. All are in [0, 1].
  """
  predicted, labels, ignore = _checked(predicted, labels, ignore, 2, "predicted")
  if not np.isin(predicted, (0, 1)).all():
    raise ValueError("predicted must be bool, or 0 or 1: compare scores with a threshold first")
  predicted, actual = (predicted == 1) & ~ignore, (labels == 1) & ~ignore
  correct, predicted, actual = (marks.sum(axis=0) for marks in (predicted & actual, predicted, actual))
  precision_L, recall_L = correct / np.maximum(predicted, 1), correct / np.maximum(actual, 1)
  cp, cr = precision_L.mean(), recall_L.mean()
  op, or_ = (correct.sum() / max(whole.sum(), 1) for whole in (predicted, actual))
  macro_f1 = _f1(precision_L, recall_L).mean()
  found = {"CP": cp, "CR": cr, "CF1": _f1(cp, cr), "OP": op, "OR": or_, "OF1": _f1(op, or_), "macro_F1": macro_f1}
  return {name: float(value) for name, value in found.items()}


class Protocol(NamedTuple):
  """A way of measuring: the same scores give other figures under another, by up to several points."""

  scores: str  # "network", or "svm": which scores it measures
  ap_method: str  # see `average_precision`; empty: that of the data set's configuration, as the paper does not say
  ap_difficult: str  # in average precision, ignored labels are left out ("ignore") or count as "negative" or "positive"
  f1_difficult: str  # the same in CP ... OF1
  top_k: int  # labels an image at most; 0: as many as reach the threshold
  threshold: float  # of a label's score; of the network's, log-odds
  strict: bool  # the score must exceed the threshold, not only reach it
  class_f1: str  # which of `precision_recall_f1`'s is called CF1: "CF1" or "macro_F1"


def logit(probability: float) -> float:
  """The score whose sigmoid is this probability."""
  return float(np.log(probability / (1 - probability)))


# What each prints. The network's scores are log-odds, a softmax's too, for others' logits. `difficult` occurs
# in VOC only: for codes written for COCO it is what their labels would hold.
PROTOCOLS: dict[str, Protocol] = {
  "paper": Protocol("svm", "", "ignore", "ignore", 3, 0.0, True, "CF1"),
  "paper-top3": Protocol("svm", "", "ignore", "ignore", 3, -np.inf, False, "CF1"),
  "ml-gcn": Protocol("network", "all_point", "ignore", "negative", 0, 0.0, False, "CF1"),
  "ml-gcn-top3": Protocol("network", "all_point", "ignore", "negative", 3, 0.0, False, "CF1"),
  "mcar": Protocol("network", "all_point", "ignore", "negative", 0, logit(0.6), False, "CF1"),
  "csra": Protocol("network", "all_point", "ignore", "ignore", 0, 0.0, False, "CF1"),
  "asl": Protocol("network", "all_point", "negative", "negative", 0, logit(0.8), True, "macro_F1"),
  "ml-decoder": Protocol("network", "all_point", "negative", "negative", 0, logit(0.75), True, "macro_F1"),
  "q2l": Protocol("network", "interpolated", "negative", "negative", 0, 0.0, False, "CF1"),
}


def measure(protocol: Protocol, scores: np.ndarray, labels: np.ndarray, ignore: np.ndarray) -> dict[str, Any]:
  """All figures of a protocol: scores [N, L], the network's or the SVMs' as it says, labels [N, L], ignore [N, L].

  Returns mAP and `F1_NAMES`, shares in [0, 1]; "AP" [L], nan where undefined; and, by index, the classes without
  average precision ("undefined") and those that no image is given ("never_predicted").
  """
  ap_labels, ap_ignore = resolve_difficult(labels, ignore, protocol.ap_difficult)
  precisions = average_precisions(scores, ap_labels, ignore=ap_ignore, method=protocol.ap_method)
  predicted = scores > protocol.threshold if protocol.strict else scores >= protocol.threshold
  if protocol.top_k:
    predicted &= top_k_labels(scores, protocol.top_k)
  f1_labels, f1_ignore = resolve_difficult(labels, ignore, protocol.f1_difficult)
  found = precision_recall_f1(predicted, f1_labels, ignore=f1_ignore)
  return {
    "mAP": mean_average_precision(precisions),
    **{name: found[name] for name in F1_NAMES},
    "CF1": found[protocol.class_f1],
    "AP": precisions,
    "undefined": np.flatnonzero(np.isnan(precisions)).tolist(),
    "never_predicted": never_predicted(predicted, f1_ignore),
  }


# How well the regions sit on the objects and fit them: shares in [0, 1], nan where there is nothing to count.
REGION_METRICS = {
  "r_precision": "of the first n regions of an image with n objects, those centred on some object",
  "coverage": "of the objects, those that hold some region's centre",
  "pointing": "of the present labels, those whose winning region is centred on an object of the label",
  "iou_30": "of the present labels, those whose winning region has IoU ≥ 0.3 with an object of the label",
  "iou_50": "of the present labels, those whose winning region has IoU ≥ 0.5 with an object of the label",
  "redundancy": "mean IoU of two regions of an image (low is good)",
  "astray": "of the regions, those mirrored or centred outside the image (low is good)",
}
RegionMetrics = NamedTuple("RegionMetrics", [(name, float) for name in REGION_METRICS])


def _measure_regions(placed: Iterable[tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]]) -> RegionMetrics:
  """Counts over images: regions [S, K, 4] of S trials, winners [L], boxes [n, 4], their classes [n]."""
  sums = {name: np.zeros(2) for name in REGION_METRICS}  # each share's part and whole
  for regions, winner, box, classes in placed:
    if not len(box):
      continue
    trials, count = regions.shape[:2]
    centres = (regions[..., :2] + regions[..., 2:]) / 2
    mirrored = (regions[..., :2] > regions[..., 2:]).any(axis=-1)
    sums["astray"] += (mirrored | ((centres < 0) | (centres > 1)).any(axis=-1)).sum(), trials * count
    upright = clip_boxes(regions)
    sums["redundancy"] += np.triu(box_iou(upright, upright), 1).sum(), trials * count * (count - 1) / 2

    # [S, K, n]. An edge counts as inside: whole pixels as shares are not exact, and a grid's points fall on edges.
    points, rounding = centres[..., None, :], 1e-6
    inside = ((box[:, :2] - rounding <= points) & (points <= box[:, 2:] + rounding)).all(axis=-1)
    first = inside[:, : len(box)]
    sums["r_precision"] += first.any(axis=-1).sum(), trials * first.shape[1]
    sums["coverage"] += inside.any(axis=1).sum(), trials * len(box)
    fit = box_iou(upright, box)
    for label in np.unique(classes):
      chosen = slice(None) if winner is None else slice(winner[label], winner[label] + 1)
      best = fit[:, chosen][..., classes == label].max(axis=(1, 2))
      sums["pointing"] += inside[:, chosen][..., classes == label].any(axis=(1, 2)).sum(), trials
      sums["iou_30"] += (best >= 0.3).sum(), trials
      sums["iou_50"] += (best >= 0.5).sum(), trials
  return RegionMetrics(**{name: float(part / whole) if whole else float("nan") for name, (part, whole) in sums.items()})


def region_metrics(regions: np.ndarray, winners: np.ndarray | None, *objects: list[np.ndarray]) -> RegionMetrics:
  """Measures regions [N, K, 4] against the objects: N arrays of boxes [n, 4], and N of their classes [n].

  Regions, in the order of looking, and boxes are (top, left, bottom, right) as shares of the image; a mirrored region
  has its top below its bottom or its left to the right of its right, and overlaps are those of the part inside the
  image. Winners, int [N, L], are the regions that won Eq. 6 for each class; None lets any region win, which gives the
  most that a choice among them could reach. Images without boxes do not count.
  """
  every = [None] * len(regions) if winners is None else winners
  return _measure_regions(zip(np.asarray(regions)[:, None], every, *objects, strict=True))


def chance_region_metrics(
  regions: np.ndarray, winners: np.ndarray, *objects: list[np.ndarray], samples: int = 64, seed: int = 0
) -> RegionMetrics:
  """`region_metrics` of the same regions, upright, at `samples` random places for each image, uniform over it."""
  rng = np.random.default_rng(seed)

  def moved():
    for each, *rest in zip(np.asarray(regions), winners, *objects, strict=True):
      half = np.abs(each[:, 2:] - each[:, :2]) / 2
      centres = rng.random((samples, len(each), 2))
      yield np.concatenate([centres - half, centres + half], axis=-1), *rest

  return _measure_regions(moved())
