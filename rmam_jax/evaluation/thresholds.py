"""From scores to probabilities, and from scores to the labels that an image is given."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rmam_jax.evaluation import calibration, metrics
from rmam_jax.runtime.errors import UserError


class Thresholds(NamedTuple):
  """Which labels an image is given: those that pass all three limits. N images, L classes."""

  classification: str  # the loss that the scores were trained by; its link makes them probabilities
  temperature: float  # scores are divided by it first
  scores_from: float | np.ndarray  # the lowest score; a number or [L]
  probabilities_from: float  # the lowest probability
  top: int  # how many labels at most, the highest; 0 is no limit

  def probabilities(self, scores: np.ndarray) -> np.ndarray:
    """[..., L] -> float [..., L] in [0, 1]."""
    return calibration.probabilities(scores, self.classification, self.temperature)

  def chosen(self, scores: np.ndarray) -> np.ndarray:
    """[N, L] -> bool [N, L]."""
    high = (scores >= self.scores_from) & (self.probabilities(scores) >= self.probabilities_from)
    return high & metrics.top_k_labels(scores, self.top or scores.shape[1])


def make_thresholds(
  classification: str,
  selection: Mapping[str, Any],
  *,
  top_k: int,
  top: int | None = None,
  threshold: float | None = None,
) -> Thresholds:
  """The thresholds of a trained recognizer.

  A `threshold` that is given comes first; then those chosen on validation images; then, for a sigmoid, one half. A
  softmax shares out 1 among the labels of an image, so that no probability is high by itself: without a threshold its
  `top_k` highest labels are given.

  `classification` is the loss that the scores were trained with. `selection` is what was chosen on validation images:
  `temperature` and `thresholds` [L] on the scores, or neither. `top_k` is `evaluation.top_k`. An image is given at most
  `top` labels; 0 is no limit. Raises a UserError for a negative `top`, and for a `threshold` that is no probability.
  """
  if top is not None and top < 0:
    raise UserError(f"top must be 0 (no limit) or more, got {top}")
  if threshold is not None and not 0 <= threshold <= 1:
    raise UserError(f"threshold must be a probability between 0 and 1, got {threshold}")
  scores_from: float | np.ndarray = -np.inf
  if threshold is None and "thresholds" in selection:
    scores_from = np.asarray(selection["thresholds"])
  elif threshold is None and classification == "sigmoid":
    threshold = 0.5
  elif threshold is None and top is None:
    top = top_k
  return Thresholds(classification, float(selection.get("temperature", 1.0)), scores_from, threshold or 0.0, top or 0)
