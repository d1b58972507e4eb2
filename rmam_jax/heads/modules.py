"""What turns a feature map into scores: the paper's module, its sisters, and the controls that every attention result needs.

Each head maps f_I [B, H, W, C] to an `Attention`. A control is a head of one region, the whole image.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax.ops import attention, rarl, rlsd, spatial_transformer
from rmam_jax.ops.attention import Attention


class _Regions(nn.Module):
  """What all heads have that look at regions and remember.

  Attributes:
    num_classes: L.
    region_size, pool, squash_cell, align_corners: as in `attention.attend`.
    x_width, lstm_width, z_width, forget_bias: as in `attention.init_attention`.
  """

  num_classes: int
  region_size: Sequence[int] = (7, 7)
  pool: int = 1
  squash_cell: bool = False
  align_corners: bool = True
  x_width: int = 4096
  lstm_width: int = 4096
  z_width: int = 4096
  forget_bias: float = 0.0

  def _parameters(self, init: Callable[..., Any], feature_map: jax.Array) -> Any:
    """The head's one parameter tree, by an initialiser that takes a key and what `attention.init_attention` does."""
    return self.param(
      "attention",
      lambda key: init(
        key,
        channels=feature_map.shape[-1],
        num_classes=self.num_classes,
        region_size=tuple(self.region_size),
        x_width=self.x_width,
        lstm_width=self.lstm_width,
        z_width=self.z_width,
        forget_bias=self.forget_bias,
      ),
    )

  def _looking(self) -> dict[str, Any]:
    """Keyword arguments of the function that looks."""
    return {
      "region_size": tuple(self.region_size),
      "pool": self.pool,
      "squash_cell": self.squash_cell,
      "align_corners": self.align_corners,
    }


class RMAM(_Regions, kw_only=True):
  """Holds the parameters of `attention.attend`.

  Attributes:
    num_regions: K.
    next_region: the rule, with all but its parameters, the map and the dense scores filled in.
    init_next_region: the rule's initialiser.
  """

  num_regions: int
  next_region: attention.NextRegion
  init_next_region: Callable[..., Any]

  @nn.compact
  def __call__(self, feature_map: jax.Array, **guide: jax.Array) -> Attention:
    """[B, H, W, C] -> K regions; `guide` is what a rule reads beside the map, e.g. `dense_scores` [B, H, W, L]."""
    init = functools.partial(attention.init_attention, init_next_region=self.init_next_region)
    return attention.attend(
      self._parameters(init, feature_map),
      feature_map,
      num_regions=self.num_regions,
      next_region=functools.partial(self.next_region, **guide),
      **self._looking(),
    )


class RARL(_Regions, kw_only=True):
  """Holds the parameters of `rarl.attend`; samples where it looks if it is given the generator "look".

  Attributes:
    steps, shapes, deviation: as in `rarl.attend`; the shapes as a tuple of pairs.
    policy_scale: as in `rarl.init_attention`.
  """

  steps: int
  shapes: Sequence[tuple[float, float]]
  deviation: float
  policy_scale: float = 0.01

  @nn.compact
  def __call__(self, feature_map: jax.Array) -> Attention:
    """[B, H, W, C] -> T * k regions; their memory is a `rarl.Rollout`."""
    init = functools.partial(rarl.init_attention, policy_scale=self.policy_scale)
    return rarl.attend(
      self._parameters(init, feature_map),
      feature_map,
      steps=self.steps,
      shapes=np.asarray(self.shapes, np.float32),
      deviation=self.deviation,
      key=self.make_rng("look") if self.has_rng("look") else None,
      **self._looking(),
    )


class RLSD(_Regions, kw_only=True):
  """Holds the parameters of `rlsd.recognize`.

  Attributes:
    steps: labels that are read at most.
  """

  steps: int

  @nn.compact
  def __call__(self, feature_map: jax.Array, *, boxes: jax.Array) -> Attention:
    """[B, H, W, C] and boxes [B, K, 4] of (top, left, bottom, right) as shares of what it shows -> K regions."""
    params = self._parameters(rlsd.init, feature_map)
    return rlsd.recognize(params, feature_map, boxes, steps=self.steps, **self._looking())


def _one_region(scores: jax.Array, features: jax.Array, memory: Any = ()) -> Attention:
  """A control's answer: [B, L] and [B, F] as those of one region, the whole image."""
  batch = scores.shape[0]
  theta = jnp.broadcast_to(jnp.asarray(spatial_transformer.WHOLE_IMAGE, scores.dtype), (1, batch, 4))
  features = features.astype(scores.dtype)[None]
  return Attention(scores[None], theta, features, features, features, memory)


class Pooled(nn.Module):
  """Control: the map's mean or maximum over all places, then linear.

  Attributes:
    num_classes: L.
    reduce: `jnp.mean` or `jnp.max`.
  """

  num_classes: int
  reduce: Callable[..., jax.Array] = jnp.mean

  @nn.compact
  def __call__(self, feature_map: jax.Array) -> Attention:
    features = self.reduce(feature_map.astype(jnp.float32), axis=(1, 2))
    return _one_region(nn.Dense(self.num_classes, name="scores")(features), features)


class ScoreMap(nn.Module):
  """Control, and the guide of `update_rules.saliency`: linear scores at every place, pooled over the highest of them.

  With one place it is the maximum (Oquab et al., CVPR 2015). The mean of about as many places as the smallest object
  has cells (as in WELDON, Durand et al., CVPR 2016, without its lowest ones) makes the scores high all over an object
  and so centred on it; a maximum is as well served by any one cell that sees the object, and drifts to its edge.

  Attributes:
    num_classes: L.
    places: how many of the highest, for each class.
    bias: the first score; negative, since most places show no object of most classes.
  """

  num_classes: int
  places: int = 1
  bias: float = -2.0

  @nn.compact
  def __call__(self, feature_map: jax.Array) -> Attention:
    """[B, H, W, C] -> one region; its memory holds the dense scores, [B, H, W, L]."""
    feature_map = feature_map.astype(jnp.float32)
    bias = nn.initializers.constant(self.bias)
    dense_scores = nn.Dense(self.num_classes, bias_init=bias, name="scores")(feature_map)
    every_BLP = dense_scores.reshape(len(feature_map), -1, self.num_classes).swapaxes(1, 2)
    highest, _ = jax.lax.top_k(every_BLP, min(self.places, every_BLP.shape[-1]))
    return _one_region(highest.mean(axis=-1), feature_map.max(axis=(1, 2)), dense_scores)


class WholeImage(nn.Module):
  """Control: the whole image sampled as one region, two dense layers, no recurrence.

  Attributes:
    num_classes: L.
    region_size, pool, align_corners: as in `attend`.
    x_width, z_width: of the two layers.
  """

  num_classes: int
  region_size: Sequence[int] = (7, 7)
  pool: int = 1
  align_corners: bool = True
  x_width: int = 4096
  z_width: int = 4096

  @nn.compact
  def __call__(self, feature_map: jax.Array) -> Attention:
    theta = jnp.broadcast_to(jnp.asarray(spatial_transformer.WHOLE_IMAGE), (feature_map.shape[0], 4))
    region = attention.region_features(
      feature_map, theta, tuple(self.region_size), pool=self.pool, align_corners=self.align_corners
    )
    x = nn.relu(nn.Dense(self.x_width, name="fx")(region.astype(jnp.float32)))
    z = nn.relu(nn.Dense(self.z_width, name="xz")(x))
    return _one_region(nn.Dense(self.num_classes, name="zs")(z), z)
