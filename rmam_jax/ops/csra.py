"""Class-specific residual attention: Zhu, Wu: "Residual Attention: A Simple but Effective Method for Multi-Label
Recognition" (ICCV 2021)."""

import jax
import jax.numpy as jnp


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
  places = scores.reshape(scores.shape[0], -1, scores.shape[-1])  # not len(scores), which may have no number
  attention = jax.nn.softmax(temperature * places, axis=1)
  return places.mean(axis=1) + weight * jnp.einsum("bpl,bpl->bl", attention, places, precision="highest")
