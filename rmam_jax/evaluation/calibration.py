"""From scores to probabilities and labels: a temperature and thresholds, chosen on one split; reliability, on another.

Letters: N images, L classes. Scores are [N, L], labels [N, L] of 0 and 1, and `ignore` is bool [N, L]: it marks labels
that are neither present nor absent.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from rmam_jax.evaluation import metrics
from rmam_jax.ops import losses
from rmam_jax.runtime.errors import UserError, check_name

RULES = ("per_class", "global")
_LOG_RANGE = (-5.0, 5.0)  # of the temperature


def probabilities(scores: np.ndarray, kind: str, temperature: float = 1.0) -> np.ndarray:
  """Scores [..., L], divided by a temperature, as probabilities by the link of the loss they were trained with."""
  return np.asarray(losses.PROBABILITIES[kind](scores / temperature))


def log_odds(scores: np.ndarray, kind: str) -> np.ndarray:
  """Scores [..., L] as log-odds of those probabilities: what ranks images for a class, and what thresholds are on.

  Scores of a sigmoid are log-odds as they are. Eq. 7 fixes scores only up to a constant for each image, so that they
  rank its classes and not the images: see `losses.softmax_log_odds`.
  """
  return np.asarray(losses.LOG_ODDS[kind](scores))


def fit_temperature(scores: np.ndarray, labels: np.ndarray, ignore: np.ndarray, kind: str) -> float:
  """The temperature T under which scores / T have the lowest loss of `losses.CALIBRATION_LOSSES` (Guo et al., 2017)."""
  scores = scores.astype(np.float32)

  def loss(log_temperature):
    scaled = scores / np.float32(np.exp(log_temperature))
    return float(losses.CALIBRATION_LOSSES[kind](scaled, labels, ignore=ignore))

  found = optimize.minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-3})
  return float(np.exp(found.x))


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
  """The threshold of highest F1, half-way to the next lower score, the highest if equal; infinite without positives."""
  if not labels.any():
    return float("inf")
  true, taken = metrics.by_threshold(scores, labels)
  last = taken[(2 * true / (taken + labels.sum())).argmax()] - 1
  return float(np.sort(scores)[::-1][last : last + 2].mean(dtype=np.float64))


def fit_thresholds(scores: np.ndarray, labels: np.ndarray, ignore: np.ndarray, rule: str) -> np.ndarray:
  """Thresholds [L] on log-odds, the scores given here.

  By the rule "global" one for all, of highest OF1; by "per_class" each of highest F1.
  A class without positives takes the global one.
  """
  check_name("evaluation.thresholds", rule, RULES)
  kept = ~ignore
  everywhere = best_threshold(scores[kept], labels[kept])
  if rule == "global":
    return np.full(labels.shape[1], everywhere)
  found = [best_threshold(scores[kept[:, c], c], labels[kept[:, c], c]) for c in range(labels.shape[1])]
  return np.where(np.isfinite(found), found, everywhere)


class Reliability(NamedTuple):
  """Probabilities in bins of equal width, from 0 to 1."""

  counts: np.ndarray  # int [bins]
  confidence: np.ndarray  # [bins], the mean probability; nan in an empty bin
  frequency: np.ndarray  # [bins], the share of labels that are present; nan in an empty bin

  @property
  def expected_error(self) -> float:
    """The expected calibration error: |confidence - frequency|, its mean over the labels, nan without any."""
    filled = self.counts > 0
    gaps = np.abs(self.confidence - self.frequency)[filled]
    return float(np.average(gaps, weights=self.counts[filled])) if filled.any() else float("nan")


def reliability(probability: np.ndarray, labels: np.ndarray, ignore: np.ndarray, bins: int = 15) -> Reliability:
  """How often labels of each probability [N, L] are present, all classes together."""
  probability, present = probability[~ignore].astype(np.float64), labels[~ignore]
  index = np.minimum((probability * bins).astype(int), bins - 1)
  counts, sums, hits = (np.bincount(index, weights, minlength=bins) for weights in (None, probability, present))
  divisor = np.where(counts > 0, counts, np.nan)
  return Reliability(counts, sums / divisor, hits / divisor)


class Thresholds(NamedTuple):
  """Which labels an image is given: those that pass all three limits."""

  kind: str  # the classification loss that the scores were trained with
  temperature: float
  scores_from: float | np.ndarray  # the lowest log-odds, without temperature; a number or [L]
  probabilities_from: float | np.ndarray  # the lowest probability; a number or [L]
  top: int  # how many labels at most, the highest; 0 is no limit

  def probabilities(self, scores: np.ndarray) -> np.ndarray:
    """[..., L] -> float [..., L] in [0, 1]."""
    return probabilities(scores, self.kind, self.temperature)

  def log_odds(self, scores: np.ndarray) -> np.ndarray:
    """[..., L] -> float [..., L], without temperature."""
    return log_odds(scores, self.kind)

  def as_probabilities(self, num_classes: int) -> np.ndarray | None:
    """The probability [L] from which on each label is given; None where others of the image decide, too.

    That is so for a limit of labels, and for a softmax's probabilities with a temperature, which do not follow from
    log-odds without.
    """
    sigmoid = self.kind in losses.SIGMOIDS
    if self.top or not (sigmoid or self.temperature == 1):
      return None
    scores_from = np.broadcast_to(np.float32(self.scores_from), num_classes)
    limits = np.asarray(self.probabilities(scores_from) if sigmoid else special.expit(scores_from))
    return np.maximum(limits, np.float32(self.probabilities_from))

  def chosen(self, scores: np.ndarray) -> np.ndarray:
    """[N, L] -> bool [N, L]."""
    high = (self.log_odds(scores) >= self.scores_from) & (self.probabilities(scores) >= self.probabilities_from)
    return high & metrics.top_k_labels(scores, self.top or scores.shape[1])


def make_thresholds(
  kind: str,
  selection: Mapping[str, Any],
  *,
  top_k: int,
  top: int | None = None,
  threshold: float | np.ndarray | None = None,
) -> Thresholds:
  """The thresholds for scores that were trained with the classification loss `kind`.

  A probability `threshold` that is given, one for all or [L], comes first; then the `thresholds` [L] of the selection,
  if it has them; then, for a sigmoid, one half. A softmax shares out 1 among the labels of an image, so that none is
  high by itself: without a threshold the `top_k` highest labels are given. An image is given at most `top` labels; 0 is
  no limit. Raises a UserError for a negative `top`, and for a `threshold` that is no probability.
  """
  if top is not None and top < 0:
    raise UserError(f"top must be 0 (no limit) or more, got {top}")
  for each in () if threshold is None else np.ravel(threshold):
    if not 0 <= each <= 1:
      raise UserError(f"threshold must be a probability between 0 and 1, got {each}")
  scores_from: float | np.ndarray = -np.inf
  if threshold is None and "thresholds" in selection:
    scores_from = np.asarray(selection["thresholds"])
  elif threshold is None and kind in losses.SIGMOIDS:
    threshold = 0.5
  elif threshold is None and top is None:
    top = top_k
  probabilities_from = 0.0 if threshold is None else threshold
  return Thresholds(kind, float(selection.get("temperature", 1.0)), scores_from, probabilities_from, top or 0)
