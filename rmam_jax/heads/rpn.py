"""The region proposal network that finds the regions which RLSD reads: a backbone of its own and DenseCap's layer."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax import backbones
from rmam_jax.ops import rpn
from rmam_jax.runtime.errors import UserError


class Proposed(NamedTuple):
  """What the layer says of a batch and what it is to learn from. N anchor boxes."""

  scores: jax.Array  # [B, N, 2], of nothing and of an object
  offsets: jax.Array  # [B, N, 4]; see `ops.rpn`
  anchors: jax.Array  # [N, 4]
  boxes: jax.Array | None  # [B, n, 4] as they came
  noise: jax.Array | None  # [B, N], uniform, of the generator "look"


class RegionProposalNetwork(nn.Module):
  """From pixels to K regions in which something is."""

  backbone: nn.Module  # normalised images -> feature map
  anchor_sizes: Sequence[tuple[float, float]]  # k of (width, height) in pixels of the images
  stride: int  # pixels between neighbouring cells of the map
  num_regions: int  # K
  width: int = 256  # filters of the layer's 3x3 convolution
  overlap: float = 0.7  # IoU above which of two regions only the surer one is kept
  pixel_mean: Sequence[float] = (0.0, 0.0, 0.0)  # of red, green and blue in 0..255
  pixel_std: Sequence[float] = (1.0, 1.0, 1.0)
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    convolution = functools.partial(nn.Conv, dtype=self.dtype)
    self.filters = convolution(self.width, (3, 3), kernel_init=nn.initializers.he_normal())
    self.scores = convolution(2 * len(self.anchor_sizes), (1, 1))
    self.offsets = convolution(4 * len(self.anchor_sizes), (1, 1), kernel_init=nn.initializers.zeros)

  def __call__(self, images: jax.Array, boxes: jax.Array | None = None, *, train: bool = False) -> Proposed:
    """For training: images [B, height, width, 3] of 0..255, and boxes [B, n, 4] as in `ops.rpn`.

    `train` is whether its backbone trains; see `backbones.BackboneSpec`.
    """
    scores, offsets, anchors = self._layer(self.feature_map(images, train=train))
    noise = jax.random.uniform(self.make_rng("look"), scores.shape[:2]) if self.has_rng("look") else None
    return Proposed(scores, offsets, anchors, boxes, noise)

  def feature_map(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Images as above -> [B, H, W, C]."""
    return self.backbone(backbones.normalize(images, self.pixel_mean, self.pixel_std), train=train)

  def propose(self, feature_map: jax.Array) -> jax.Array:
    """The map, or a window of it, [B, H, W, C] -> regions [B, K, 4] as shares of what it shows, the surest first."""
    scores, offsets, anchors = self._layer(feature_map)
    find = functools.partial(rpn.propose, count=self.num_regions, overlap=self.overlap)
    return jax.vmap(find, in_axes=(0, 0, None))(scores, offsets, anchors)[0]

  def regions(self, images: jax.Array) -> jax.Array:
    """Images as above -> regions [B, K, 4] as above."""
    return self.propose(self.feature_map(images))

  def _layer(self, feature_map: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    batch, height, width, _ = feature_map.shape
    hidden = nn.relu(self.filters(feature_map))
    scores = self.scores(hidden).astype(jnp.float32).reshape(batch, -1, 2)
    offsets = self.offsets(hidden).astype(jnp.float32).reshape(batch, -1, 4)
    return scores, offsets, jnp.asarray(rpn.anchor_boxes((height, width), self.anchor_sizes, self.stride))


def build(model: Any, *, remat: bool = False) -> RegionProposalNetwork:
  """The network that a configuration's `model` section describes; raises UserError for a field that cannot be."""
  section = model.rpn
  if model.num_regions < 1:
    raise UserError(f"model.num_regions must be at least 1, got {model.num_regions}")
  if not section.anchor_sizes or np.shape(section.anchor_sizes)[1:] != (2,) or np.min(section.anchor_sizes) <= 0:
    raise UserError(f"model.rpn.anchor_sizes must be pairs (width, height) of pixels, got {section.anchor_sizes}")
  if not 0 <= section.overlap <= 1:
    raise UserError(f"model.rpn.overlap must be an IoU in [0, 1], got {section.overlap}")
  return RegionProposalNetwork(
    backbone=backbones.build(model, remat=remat),
    anchor_sizes=tuple(map(tuple, section.anchor_sizes)),
    stride=backbones.stride(model),
    num_regions=model.num_regions,
    width=section.width,
    overlap=section.overlap,
    pixel_mean=tuple(model.pixel_mean),
    pixel_std=tuple(model.pixel_std),
    dtype=jnp.dtype(model.dtype),
  )
