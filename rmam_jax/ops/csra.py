"""Class-specific residual attention: Zhu, Wu: "Residual Attention: A Simple but Effective Method for Multi-Label
Recognition" (ICCV 2021)."""

import jax
import jax.numpy as jnp

TINY = 1e-12  # a mean whose length is below it counts as zeros


def attention(scores: jax.Array, temperature: float) -> jax.Array:
  """How much of each class every place shows, float [B, H, W, L] -> the same: the softmax over the places."""
  return jax.nn.softmax(temperature * scores, axis=(1, 2))


def csra(scores: jax.Array, weight: float, temperature: float) -> jax.Array:
  """An image's scores from those of its places: their mean, and what the places that show a class add to it.

  Args:
    scores: float [B, H, W, L], linear in the features of a place.
    weight: lambda of the residual; 0: the mean alone.
    temperature: T of the softmax over places by which the residual's mean is weighted; 0: the residual is the mean once
      more; large: the maximum.

  Returns:
    [B, L].
  """
  attended = jnp.einsum("bhwl,bhwl->bl", attention(scores, temperature), scores, precision="highest")
  return scores.mean(axis=(1, 2)) + weight * attended


def class_features(feature_map: jax.Array, weights: jax.Array) -> jax.Array:
  """What each class's SVM may read: the map's mean, and its mean weighted for the class, both of length 1, summed.

  The residual feature of the paper, f = g + lambda a, with lambda such that both have the same length.

  Args:
    feature_map: [B, H, W, C].
    weights: of every place for each class, [B, H, W, L]; their sum over the places is 1.

  Returns:
    [B, L, C].
  """
  mean = feature_map.mean(axis=(1, 2), dtype=weights.dtype)[:, None]
  attended = jnp.einsum("bhwl,bhwc->blc", weights, feature_map, precision="highest")
  return sum(each * jax.lax.rsqrt(jnp.square(each).sum(axis=-1, keepdims=True) + TINY) for each in (mean, attended))
