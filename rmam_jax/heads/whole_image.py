"""A control: the whole image as one region through the same kind of layers, and its answer as that of one region."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmam_jax.heads.spec import HeadSpec
from rmam_jax.ops import attention, spatial_transformer
from rmam_jax.ops.attention import Attention


def one_region(scores: jax.Array, features: jax.Array, memory: Any = ()) -> Attention:
  """A control's scores [B, L] and features [B, F] as those of one region, the whole image."""
  theta = jnp.asarray(spatial_transformer.WHOLE_IMAGE, scores.dtype)
  theta = jnp.broadcast_to(theta, (1, scores.shape[0], 4))
  features = features.astype(scores.dtype)[None]
  return Attention(scores[None], theta, features, features, features, memory)


class WholeImage(nn.Module):
  """The whole image sampled as one region, two dense layers, no recurrence.

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
    return one_region(nn.Dense(self.num_classes, name="zs")(z), z)


def _build(model: Any, num_classes: int) -> WholeImage:
  return WholeImage(
    num_classes,
    region_size=tuple(model.region_size),
    pool=model.region_pool,
    align_corners=model.align_corners,
    x_width=model.x_width,
    z_width=model.z_width,
  )


SPEC = HeadSpec("whole_image", _build, looks=False)
