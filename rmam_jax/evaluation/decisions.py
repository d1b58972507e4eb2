"""From scores to probabilities, and from probabilities to the labels that an image is given."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rmam_jax import losses, metrics


class Decision(NamedTuple):
  """How labels are chosen. L is the number of classes.

  Attributes:
    classification: the loss that the scores were trained by; its link makes them probabilities.
    temperature: scores are divided by it first.
    threshold: a label is given from this probability on; a number or [L].
    top: of these, the so many highest; 0 is no limit.
  """

  classification: str
  temperature: float
  threshold: float | np.ndarray
  top: int

  def probabilities(self, scores: np.ndarray) -> np.ndarray:
    """[..., L] -> float [..., L] in [0, 1]."""
    return np.asarray(losses.PROBABILITIES[self.classification](np.asarray(scores) / self.temperature))

  def chosen(self, probabilities: np.ndarray) -> np.ndarray:
    """[N, L] -> bool [N, L]."""
    return metrics.top_k_labels(probabilities, self.top or probabilities.shape[1], np.asarray(self.threshold))


def decide(
  config: Any, choices: Mapping[str, Any], *, top: int | None = None, threshold: float | None = None
) -> Decision:
  """The decision of a trained recogniser.

  Without a threshold, calibrated or given, a sigmoid's is 0.5; a softmax shares out 1 among all labels of an image, so
  that no probability is high by itself: its `evaluation.top_k` highest labels are given.

  Args:
    config: the configuration.
    choices: what was chosen on validation images: `temperature` and `thresholds` where there are any.
    top, threshold: in their place.

  Raises:
    ValueError: a negative `top`, or a threshold that is no probability.
  """
  if top is not None and top < 0:
    raise ValueError(f"top must be 0 (no limit) or more, got {top}")
  if threshold is not None and not 0 <= threshold <= 1:
    raise ValueError(f"threshold must be a probability between 0 and 1, got {threshold}")
  classification = config.stage_two.classification or config.loss.classification
  if threshold is None and "thresholds" in choices:
    threshold = np.asarray(choices["thresholds"])
  elif threshold is None and classification == "sigmoid":
    threshold = 0.5
  if top is None:
    top = config.evaluation.top_k if threshold is None else 0
  return Decision(classification, float(choices.get("temperature", 1.0)), 0.0 if threshold is None else threshold, top)
