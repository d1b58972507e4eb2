"""A control: the whole image as one region through the same kind of layers."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmam_jax.heads import attending
from rmam_jax.heads.spec import HeadSpec
from rmam_jax.ops import attention, spatial_transformer
from rmam_jax.ops.attention import Attention


def one_region(scores: jax.Array, features: jax.Array, memory: Any = ()) -> Attention:
  """A control's scores [B, L] and features [B, F] as those of one region, the whole image."""
  theta = jnp.broadcast_to(jnp.asarray(spatial_transformer.WHOLE_IMAGE, scores.dtype), (1, scores.shape[0], 4))
  features = features.astype(scores.dtype)[None]
  return Attention(scores[None], theta, features, features, features, memory)


def score_layer(num_classes: int, prior: float, name: str, **options: Any) -> nn.Dense:
  """A linear layer of scores that begins as `attention.init_scores`, or, without a prior, as the options say."""
  if prior:
    bias = nn.initializers.constant(jax.scipy.special.logit(prior))
    options = {"kernel_init": nn.initializers.zeros, "bias_init": bias}
  return nn.Dense(num_classes, name=name, **options)


class WholeImage(nn.Module):
  """The whole image sampled as one region, two dense layers, no recurrence."""

  num_classes: int
  sample: Callable[..., jax.Array]  # feature map and theta -> features, as `attention.region_features`
  x_width: int
  z_width: int
  prior: float = 0.0  # see `attention.init_attention`

  @nn.compact
  def __call__(self, feature_map: jax.Array) -> Attention:
    theta = jnp.broadcast_to(jnp.asarray(spatial_transformer.WHOLE_IMAGE), (feature_map.shape[0], 4))
    region = self.sample(feature_map, theta).astype(jnp.float32)
    x = nn.relu(nn.Dense(self.x_width, name="fx")(region))
    z = nn.relu(nn.Dense(self.z_width, name="xz")(x))
    return one_region(score_layer(self.num_classes, self.prior, "zs")(z), z)


def _build(model: Any, num_classes: int) -> WholeImage:
  sample = functools.partial(attention.region_features, **attending.sampling(model))
  attending.check_prior(model)
  return WholeImage(num_classes, sample, model.x_width, model.z_width, model.prior)


SPEC = HeadSpec("whole_image", _build, looks=False)
