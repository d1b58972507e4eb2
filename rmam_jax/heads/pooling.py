"""Controls that pool the map: the mean or the maximum of its features, or the scores at every place."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmam_jax.heads.attending import check_prior
from rmam_jax.heads.spec import HeadSpec
from rmam_jax.heads.whole_image import one_region, score_layer
from rmam_jax.ops import csra
from rmam_jax.ops.attention import Attention, Params, init_scores
from rmam_jax.runtime.errors import UserError


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


class ResidualAttention(nn.Module):
  """Linear scores at every place, pooled by class-specific residual attention; see `ops.csra`.

  The memory holds `csra.class_features`, [B, L, C].
  """

  num_classes: int
  weight: float
  temperature: float
  prior: float = 0.0  # see `attention.init_attention`

  @nn.compact
  def __call__(self, feature_map: jax.Array) -> Attention:
    feature_map = feature_map.astype(jnp.float32)
    layer = self.param("scores", self._init, feature_map.shape[-1])
    places = feature_map @ layer["kernel"]
    scores = csra.csra(places, self.weight, self.temperature) + layer["bias"]
    by_class = csra.class_features(feature_map, csra.attention(places, self.temperature))
    return one_region(scores, feature_map.mean(axis=(1, 2)), by_class)

  def _init(self, key: jax.Array, channels: int) -> Params:
    if self.prior:
      return init_scores(channels, self.num_classes, self.prior)
    shape = (channels, self.num_classes)
    return {"kernel": nn.initializers.lecun_normal()(key, shape), "bias": jnp.zeros(self.num_classes)}


def _build_pooled(reduce: Callable[..., jax.Array], model: Any, num_classes: int) -> Pooled:
  check_prior(model)
  return Pooled(num_classes, reduce, model.prior)


def _build_score_map(model: Any, num_classes: int) -> ScoreMap:
  check_prior(model)
  if model.score_map.places < 1:
    raise UserError(f"model.score_map.places must be at least 1, got {model.score_map.places}")
  return ScoreMap(num_classes, places=model.score_map.places, prior=model.prior)


def csra_options(model: Any) -> dict[str, float]:
  """The arguments of `ops.csra` that a configuration's `model` section has; UserError for one that is out of range."""
  for field, value in model.csra.items():
    if value < 0:
      raise UserError(f"model.csra.{field} must be 0 or more, got {value}")
  return dict(model.csra)


def _build_csra(model: Any, num_classes: int) -> ResidualAttention:
  check_prior(model)
  return ResidualAttention(num_classes, prior=model.prior, **csra_options(model))


# Lambda and T; of `two_stream`'s dense score, too.
CSRA_FIELDS = {"model.csra": {"weight": 0.3, "temperature": 5.0}}

SPECS = (
  HeadSpec("mean_pool", functools.partial(_build_pooled, jnp.mean), looks=False),
  HeadSpec("max_pool", functools.partial(_build_pooled, jnp.max), looks=False),
  HeadSpec(
    "csra",
    _build_csra,
    looks=False,
    class_features=lambda attention: attention.memory,
    defaults=CSRA_FIELDS,
  ),
  HeadSpec(
    "score_map",
    _build_score_map,
    looks=False,
    gives_dense_scores=True,
    defaults={"model.score_map": {"places": 1}},  # about as many as the smallest object has cells
  ),
)
