"""How far a score can be believed: a temperature and thresholds, chosen on one split, and reliability, measured on another.

Letters: N images, L classes. Everywhere scores are [N, L], labels [N, L] of 0 and 1, and `ignore` is bool [N, L]: it
marks labels that are neither present nor absent.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize

from rmam_jax.ops import losses
from rmam_jax.runtime.errors import check_name

RULES = ("per_class", "global")
_LOG_RANGE = (-5.0, 5.0)  # of the temperature


def probabilities(scores: np.ndarray, kind: str, temperature: float = 1.0) -> np.ndarray:
  """The probabilities [N, L] that scores stand for under the loss they were trained with, divided by a temperature."""
  return np.asarray(losses.PROBABILITIES[kind](scores / temperature))


def fit_temperature(scores: np.ndarray, labels: np.ndarray, ignore: np.ndarray, kind: str) -> float:
  """The temperature T under which scores / T have the lowest loss `kind`, of `losses` (Guo et al., 2017).

  That is the likelihood for "sigmoid", and a Brier score for "euclidean", Eq. 7-8.
  """
  scores = scores.astype(np.float32)

  def loss(log_temperature):
    scaled = scores / np.float32(np.exp(log_temperature))
    return float(losses.CLASSIFICATION_LOSSES[kind](scaled, labels, ignore=ignore))

  found = optimize.minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-3})
  return float(np.exp(found.x))


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
  """The threshold of highest F1 for scores [n] against labels [n]: half-way down to the next lower score.

  Of equals the highest. Without positives no threshold is better than another: infinite, which predicts nothing.
  """
  positives = labels.sum()
  if not positives:
    return float("inf")
  order = np.argsort(-scores, kind="stable")
  ranked = scores[order].astype(np.float64)
  last_of_equals = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
  f1 = 2 * np.cumsum(labels[order])[last_of_equals] / (last_of_equals + 1 + positives)
  last = last_of_equals[f1.argmax()]
  return float(ranked[last : last + 2].mean())


def fit_thresholds(scores: np.ndarray, labels: np.ndarray, ignore: np.ndarray, rule: str) -> np.ndarray:
  """Thresholds [L] on the scores.

  By the rule "global" it is one threshold, of highest OF1. By "per_class" it is each class's own, of highest F1; a class
  without positives takes the global one.
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
