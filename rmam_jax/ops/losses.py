"""What is minimised (Sec. 4, Eq. 7-14).

Letters: B batch, K regions, L classes. Labels are 0 or 1, or shares between them, as those of mixed images are: every
loss of single classes is linear in its label. `ignore` [B, L] marks labels that are neither (VOC's `difficult`): they
take no part. `example_mask` [B] is 1 for real examples and 0 for padding: every mean over the batch is the sum over
real examples divided by their number. `class_weights` [L] multiply all that a class costs, present or absent; None: 1.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmam_jax.ops import spatial_transformer
from rmam_jax.ops.attention import max_pool_scores

# The constants of Sec. 4.2 and Eq. 13-14.
MAX_SCALE = 0.5  # alpha
MIN_SCALE = 0.1  # beta
ANCHOR_WEIGHT = 0.01  # lambda_1
POSITIVE_WEIGHT = 0.1  # lambda_2
LOCALIZATION_WEIGHT = 0.1  # gamma


def batch_mean(per_example: jax.Array, example_mask: jax.Array | None) -> jax.Array:
  """[..., B] -> [...]: the mean over the real examples; 0 where there are none."""
  if example_mask is None:
    return per_example.mean(axis=-1)
  mask = example_mask.astype(per_example.dtype)
  return (per_example * mask).sum(axis=-1) / jnp.maximum(mask.sum(), 1)


def _check_labels(scores, labels):
  if scores.ndim != 2 or scores.shape != labels.shape:
    raise ValueError(f"scores and labels must both have shape [B, L], got {list(scores.shape)}, {list(labels.shape)}")
  if not isinstance(labels, jax.core.Tracer) and not ((np.asarray(labels) >= 0) & (np.asarray(labels) <= 1)).all():
    raise ValueError("labels must lie between 0 and 1")  # traced values cannot be read: check batches before the step


def classification_loss(
  scores: jax.Array,
  labels: jax.Array,
  *,
  ignore: jax.Array | None = None,
  example_mask: jax.Array | None = None,
  class_weights: Sequence[float] | None = None,
) -> jax.Array:
  """The Euclidean loss of Eq. 8 between the softmax of the pooled scores (Eq. 7) and labels / |labels|_1.

  Args:
    scores: [B, L], of Eq. 6.
    labels: [B, L] from 0 to 1. A row of zeros, but for what is ignored, has no target: its loss is 0.
    ignore: [B, L]; classes left out of the softmax, the target and the sum.
    example_mask: [B].
    class_weights: [L], of the squares in the sum.

  Returns:
    A scalar: summed over classes, mean over examples; in [0, 2] without weights.

  Raises:
    ValueError: shapes that differ, or labels that are not in [0, 1] (outside jit).
  """
  _check_labels(scores, labels)
  labels = jnp.asarray(labels, scores.dtype)
  kept = None if ignore is None else ~jnp.asarray(ignore, bool)
  labels = labels if kept is None else labels * kept
  total = labels.sum(axis=-1, keepdims=True)
  target = labels / jnp.where(total > 0, total, 1)
  probability = jax.nn.softmax(scores, axis=-1, where=kept)
  has_target = labels.any(axis=-1)
  squares = _weighted((probability - target) ** 2, class_weights)
  return batch_mean(jnp.where(has_target, squares.sum(axis=-1), 0), example_mask)


def _weighted(terms: jax.Array, class_weights: Sequence[float] | None) -> jax.Array:
  return terms if class_weights is None else terms * jnp.asarray(class_weights, terms.dtype)


def _reduced(terms, ignore, example_mask, class_weights):
  """Terms of each class [B, L] -> a scalar: summed over the classes that are not ignored, the mean over examples."""
  terms = _weighted(terms, class_weights)
  if ignore is not None:
    terms = jnp.where(jnp.asarray(ignore, bool), 0, terms)
  return batch_mean(terms.sum(axis=-1), example_mask)


def sigmoid_loss(
  scores: jax.Array,
  labels: jax.Array,
  *,
  ignore: jax.Array | None = None,
  example_mask: jax.Array | None = None,
  class_weights: Sequence[float] | None = None,
) -> jax.Array:
  """Binary cross-entropy of each class by itself, in place of Eq. 8. Arguments and reduction as there."""
  _check_labels(scores, labels)
  terms = optax.sigmoid_binary_cross_entropy(scores, jnp.asarray(labels, scores.dtype))
  return _reduced(terms, ignore, example_mask, class_weights)


def focal_loss(
  scores: jax.Array,
  labels: jax.Array,
  *,
  gamma: float = 2.0,
  alpha: float = 0.25,
  ignore: jax.Array | None = None,
  example_mask: jax.Array | None = None,
  class_weights: Sequence[float] | None = None,
) -> jax.Array:
  """Cross-entropy that counts less where the network is right (Lin et al., ICCV 2017, Eq. 4-5), in place of Eq. 8.

  A class costs -alpha (1 - p)^gamma log p where it is present and -(1 - alpha) p^gamma log(1 - p) where it is absent, p
  the sigmoid of its score. The other arguments and the reduction are those of `classification_loss`.

  Args:
    gamma: >= 0; with 0 it is cross-entropy, but for alpha.
    alpha: the weight of present classes, in [0, 1]; a negative one leaves both weights out.
  """
  _check_labels(scores, labels)
  labels = jnp.asarray(labels, scores.dtype)
  log_p, log_not_p = jax.nn.log_sigmoid(scores), jax.nn.log_sigmoid(-scores)
  present, absent = -jnp.exp(gamma * log_not_p) * log_p, -jnp.exp(gamma * log_p) * log_not_p
  if alpha >= 0:
    present, absent = alpha * present, (1 - alpha) * absent
  return _reduced(labels * present + (1 - labels) * absent, ignore, example_mask, class_weights)


def asymmetric_loss(
  scores: jax.Array,
  labels: jax.Array,
  *,
  gamma_neg: float = 4.0,
  gamma_pos: float = 0.0,
  clip: float = 0.05,
  ignore: jax.Array | None = None,
  example_mask: jax.Array | None = None,
  class_weights: Sequence[float] | None = None,
) -> jax.Array:
  """The asymmetric loss (Ridnik et al., ICCV 2021, Eq. 4-7), in place of Eq. 8: easy absent classes count less.

  A class costs -(1 - p)^gamma_pos log p where it is present, p the sigmoid of its score, and -q^gamma_neg log(1 - q)
  where it is absent, q = max(p - clip, 0). The gradient flows through all of it. The other arguments and the reduction
  are those of `classification_loss`.

  Args:
    gamma_neg, gamma_pos: >= 0.
    clip: probabilities of absent classes up to it cost nothing; in [0, 1].
  """
  _check_labels(scores, labels)
  labels = jnp.asarray(labels, scores.dtype)
  log_p, log_not_p = jax.nn.log_sigmoid(scores), jax.nn.log_sigmoid(-scores)
  present = -jnp.exp(gamma_pos * log_not_p) * log_p
  if clip:
    costs = jnp.exp(log_p) > clip
    q = jnp.where(costs, jnp.exp(log_p) - clip, 0.5)  # any, where it costs nothing: no power of 0 is differentiated
    absent = jnp.where(costs, -(q**gamma_neg) * jnp.log(jnp.exp(log_not_p) + clip), 0)
  else:
    absent = -jnp.exp(gamma_neg * log_p) * log_not_p
  return _reduced(labels * present + (1 - labels) * absent, ignore, example_mask, class_weights)


CLASSIFICATION_LOSSES = {
  "euclidean": classification_loss,
  "sigmoid": sigmoid_loss,
  "asymmetric": asymmetric_loss,
  "focal": focal_loss,
}
SIGMOIDS = ("sigmoid", "asymmetric", "focal")  # of these the score of a class is the log-odds of its probability


def softmax_log_odds(scores: jax.Array) -> jax.Array:
  """log(p / (1 - p)) of the softmax p of scores, [..., L] -> [..., L]; the largest finite number where L = 1.

  Eq. 7 fixes an image's scores only up to a constant, which these lack: they rank images as p does, without its ties
  at 0 and 1.
  """
  scores = jnp.asarray(scores)
  highest = jax.nn.one_hot(scores.argmax(axis=-1), scores.shape[-1], dtype=bool)
  others = jax.nn.logsumexp(jnp.where(highest, -jnp.inf, scores), axis=-1, keepdims=True)
  log_p = jax.nn.log_softmax(scores)
  # Of the highest class 1 - p is known from the others alone: from p it would be lost in rounding.
  return jnp.where(
    highest, scores - jnp.maximum(others, jnp.finfo(scores.dtype).min), log_p - jnp.log1p(-jnp.exp(log_p))
  )


# What each loss takes for the probability of a class, and its log-odds: [..., L] -> [..., L].
PROBABILITIES = {"euclidean": jax.nn.softmax, **dict.fromkeys(SIGMOIDS, jax.nn.sigmoid)}
LOG_ODDS = {"euclidean": softmax_log_odds, **dict.fromkeys(SIGMOIDS, lambda scores: scores)}
# What a temperature for these probabilities is fitted by: of the sigmoids cross-entropy alone is lowest at the truth.
CALIBRATION_LOSSES = {"euclidean": classification_loss, **dict.fromkeys(SIGMOIDS, sigmoid_loss)}


def anchor_loss(thetas: jax.Array) -> jax.Array:
  """l_A (Eq. 9): the regions 2..K are drawn to their anchor points. [K, B, 4] -> [K-1, B]."""
  anchors = jnp.asarray(spatial_transformer.anchor_points(thetas.shape[0]), thetas.dtype)
  return 0.5 * ((thetas[1:, :, 2:] - anchors[:, None]) ** 2).sum(axis=-1)


def scale_loss(thetas: jax.Array, *, max_scale: float = MAX_SCALE) -> jax.Array:
  """l_S (Eq. 10-11): scales above alpha cost their excess squared. [K, B, 4] -> [K, B]."""
  return (jnp.maximum(jnp.abs(thetas[..., :2]) - max_scale, 0) ** 2).sum(axis=-1)


def positive_loss(thetas: jax.Array, *, min_scale: float = MIN_SCALE) -> jax.Array:
  """l_P (Eq. 12): scales below beta cost what they lack, so that no region is mirrored. [K, B, 4] -> [K, B]."""
  return jnp.maximum(0, min_scale - thetas[..., :2]).sum(axis=-1)


def localization_loss(
  thetas: jax.Array,
  *,
  constrain_first: bool = True,
  scale_weight: float = 1.0,
  anchor_weight: float = ANCHOR_WEIGHT,
  positive_weight: float = POSITIVE_WEIGHT,
  max_scale: float = MAX_SCALE,
  min_scale: float = MIN_SCALE,
  example_mask: jax.Array | None = None,
) -> jax.Array:
  """L_loc = l_S + lambda_1 l_A + lambda_2 l_P (Eq. 13).

  The paper writes no sum over k: here each term is summed over the regions (the anchor term over 2..K) and the mean
  is taken over the batch: a scalar.

  Args:
    thetas: [K, B, 4], the regions 1..K.
    constrain_first: whether l_S and l_P hold for region 1, too. "For the first iteration, adding no constraint" (Sec.
      4.2) may mean that it has no anchor, or no constraint at all.
    scale_weight, anchor_weight, positive_weight: of the three terms; 0 leaves one out (Table 4).
    max_scale, min_scale: alpha and beta.
    example_mask: [B].
  """
  if thetas.ndim != 3 or thetas.shape[-1] != 4:
    raise ValueError(f"thetas must have shape [K, B, 4], got {list(thetas.shape)}")
  constrained = thetas if constrain_first else thetas[1:]
  l_s = scale_loss(constrained, max_scale=max_scale).sum(axis=0)
  l_a = anchor_loss(thetas).sum(axis=0)
  l_p = positive_loss(constrained, min_scale=min_scale).sum(axis=0)
  return batch_mean(scale_weight * l_s + anchor_weight * l_a + positive_weight * l_p, example_mask)


def joint_loss(
  scores: jax.Array,
  thetas: jax.Array,
  labels: jax.Array,
  *,
  localization_weight: float = LOCALIZATION_WEIGHT,
  classification=classification_loss,
  ignore: jax.Array | None = None,
  example_mask: jax.Array | None = None,
  **localization,
) -> jax.Array:
  """L = L_cls + gamma L_loc (Eq. 14), a scalar, the scores pooled by Eq. 6.

  Args:
    scores: [K, B, L], of every region.
    thetas: [K, B, 4].
    labels: [B, L] from 0 to 1.
    localization_weight: gamma.
    classification: `classification_loss` (Eq. 7-8) or another of `CLASSIFICATION_LOSSES`.
    ignore, example_mask: as in `classification_loss`.
    **localization: weights and thresholds for `localization_loss`.
  """
  l_cls = classification(max_pool_scores(scores), labels, ignore=ignore, example_mask=example_mask)
  l_loc = localization_loss(thetas, example_mask=example_mask, **localization)
  return l_cls + localization_weight * l_loc
