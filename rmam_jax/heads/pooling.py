"""Controls that pool the map: the mean or the maximum of its features, or the highest of the scores at every place."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmam_jax.heads.attending import check_prior
from rmam_jax.heads.spec import HeadSpec
from rmam_jax.heads.whole_image import one_region, score_layer
from rmam_jax.ops.attention import Attention


class Pooled(nn.Module):
  """The map's mean or maximum over all places, then linear."""

  num_classes: int
  reduce: Callable[..., jax.Array] = jnp.mean  # or `jnp.max`
  prior: float = 0.0  # see `attention.init_attention`

  @nn.compact
  def __call__(self, feature_map: jax.Array) -> Attention:
    features = self.reduce(feature_map.astype(jnp.float32), axis=(1, 2))
    return one_region(score_layer(self.num_classes, self.prior, "scores")(features), features)


class ScoreMap(nn.Module):
  """Linear scores at every place, pooled over the highest of them; also the guide of `ops.next_region.saliency`.

  With one place it is the maximum (Oquab et al., CVPR 2015). The mean of about as many places as the smallest object
  has cells (as in WELDON, Durand et al., CVPR 2016, without its lowest ones) makes the scores high all over an object
  and so centred on it; a maximum is as well served by any one cell that sees the object, and drifts to its edge.
  """

  num_classes: int
  places: int = 1  # how many of the highest, for each class
  bias: float = -2.0  # the first score; negative, since most places show no object of most classes
  prior: float = 0.0  # see `attention.init_attention`

  @nn.compact
  def __call__(self, feature_map: jax.Array) -> Attention:
    """[B, H, W, C] -> one region; its memory holds the dense scores, [B, H, W, L]."""
    feature_map = feature_map.astype(jnp.float32)
    bias = nn.initializers.constant(self.bias)
    dense_scores = score_layer(self.num_classes, self.prior, "scores", bias_init=bias)(feature_map)
    every_BLP = dense_scores.reshape(feature_map.shape[0], -1, self.num_classes).swapaxes(1, 2)
    highest, _ = jax.lax.top_k(every_BLP, min(self.places, every_BLP.shape[-1]))
    return one_region(highest.mean(axis=-1), feature_map.max(axis=(1, 2)), dense_scores)


def _build_pooled(reduce: Callable[..., jax.Array], model: Any, num_classes: int) -> Pooled:
  check_prior(model)
  return Pooled(num_classes, reduce, model.prior)


def _build_score_map(model: Any, num_classes: int) -> ScoreMap:
  check_prior(model)
  return ScoreMap(num_classes, places=model.score_map.places, prior=model.prior)


SPECS = (
  HeadSpec("mean_pool", functools.partial(_build_pooled, jnp.mean), looks=False),
  HeadSpec("max_pool", functools.partial(_build_pooled, jnp.max), looks=False),
  HeadSpec(
    "score_map",
    _build_score_map,
    looks=False,
    gives_dense_scores=True,
    defaults={"model.score_map": {"places": 1}},  # about as many as the smallest object has cells
  ),
)
