"""A backbone, a head and, beside it, an optional auxiliary head; and how a configuration names them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmam_jax import backbones, heads
from rmam_jax.heads import rpn as rpn_lib
from rmam_jax.ops.attention import Attention
from rmam_jax.ops.boxes import WHOLE_IMAGE
from rmam_jax.runtime.errors import UserError, check_name

IMAGE = "image"
MAP_NORMS = ("", IMAGE)  # of `model.map_norm`
TINY = 1e-12  # a mean square below which a map counts as zeros


def image_scaled(feature_map: jax.Array) -> jax.Array:
  """Each map [B, H, W, C] divided by the root mean square of its mean over all places, whatever the backbone's range.

  So the means of all images have the same length, as the features of SVMs do. A map of zeros stays one.
  """
  mean = feature_map.mean(axis=(1, 2), keepdims=True, dtype=jnp.float32)
  square = jnp.square(mean).mean(axis=-1, keepdims=True)
  return feature_map * jax.lax.rsqrt(square + TINY).astype(feature_map.dtype)


class Recognition(NamedTuple):
  attention: Attention
  auxiliary: Attention | None


class Recognizer(nn.Module):
  """From pixels to scores.

  Attributes:
    backbone: normalised images -> feature map.
    head: feature map -> `Attention`.
    auxiliary: a second head beside it, or None. Its loss keeps the backbone learning densely.
    guide: what the head is given beside the map; see `heads.spec.HeadSpec`.
    rpn: proposes regions to the head, from a feature map of its own. It is trained before, and no gradient reaches it.
    pixel_mean, pixel_std: of red, green and blue in 0..255.
    map_norm: "image": the heads see the backbone's map scaled by `image_scaled`; "": as it is.
  """

  backbone: nn.Module
  head: nn.Module
  auxiliary: nn.Module | None = None
  guide: str = ""
  rpn: rpn_lib.RegionProposalNetwork | None = None
  pixel_mean: Sequence[float] = (0.0, 0.0, 0.0)
  pixel_std: Sequence[float] = (1.0, 1.0, 1.0)
  map_norm: str = ""

  def __call__(self, images: jax.Array, boxes: jax.Array | None = None, *, train: bool = False) -> Recognition:
    """Images to scores.

    Args:
      images: [B, height, width, 3] of 0..255, red green blue, uint8 or float.
      boxes: [B, K, 4] of (top, left, bottom, right) as shares of the image, for a head that is guided by boxes.
      train: whether the backbone trains; see `backbones.BackboneSpec`.
    """
    return self.recognize(self.feature_map(images, train=train), boxes)

  def feature_map(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Images as above -> f_I [B, H, W, C]; with a region proposal network [B, H, W, 2C], its own map after f_I."""
    feature_map = self.backbone(backbones.normalize(images, self.pixel_mean, self.pixel_std), train=train)
    if self.rpn is None:
      return feature_map
    return jnp.concatenate([feature_map, jax.lax.stop_gradient(self.rpn.feature_map(images))], axis=-1)

  def recognize(self, feature_map: jax.Array, boxes: jax.Array | None = None) -> Recognition:
    """The map that `feature_map` returns, a window of it or a stored one, and boxes as above -> scores."""
    guide = {}
    if feature_map.dtype == jnp.float16:  # as maps are stored
      feature_map = feature_map.astype(jnp.float32)
    if self.guide == heads.RPN:
      feature_map, rpn_map = jnp.split(feature_map, 2, axis=-1)
      guide["boxes"] = jax.lax.stop_gradient(self.rpn.propose(rpn_map))
    if self.map_norm == IMAGE:
      feature_map = image_scaled(feature_map)
    auxiliary = None if self.auxiliary is None else self.auxiliary(feature_map)
    if self.guide == heads.DENSE_SCORES:
      guide["dense_scores"] = auxiliary.memory
    elif self.guide == heads.BOXES:
      whole_image = jnp.broadcast_to(jnp.asarray(WHOLE_IMAGE), (feature_map.shape[0], 1, 4))
      guide["boxes"] = whole_image if boxes is None else boxes  # in initialisation there are none
    return Recognition(self.head(feature_map, **guide), auxiliary)


def build(model: Any, num_classes: int, *, head: str, auxiliary: str = "", remat: bool = False) -> Recognizer:
  """The recognizer that a configuration's `model` section describes.

  Args:
    model: see `rmam_jax.config`.
    num_classes: L.
    head: a name from `heads.SPECS`.
    auxiliary: another, or "" for none.
    remat: whether the backward pass computes the backbone's blocks again, which saves memory.

  Raises:
    UserError: a head that does not exist or lacks its guide, an auxiliary that would need one, K < 1, or a field that
      the head refuses.
  """
  main = heads.get(head, "head")
  beside = heads.get(auxiliary, "auxiliary") if auxiliary else None
  if main.guide == heads.DENSE_SCORES and not (beside and beside.gives_dense_scores):
    able = ", ".join(name for name, each in heads.SPECS.items() if each.gives_dense_scores)
    raise UserError(
      f"head {head!r} looks by the dense scores of an auxiliary {able!r} (stage_one.head), got {auxiliary!r}"
    )
  if beside and beside.guide:
    raise UserError(
      f"head {auxiliary!r} needs more than the map and cannot stand beside {head!r}: set stage_two.auxiliary_weight to 0,"
      " or name another stage_one.head"
    )
  check_name("model.map_norm", model.map_norm, MAP_NORMS)
  if model.num_regions < 1:
    raise UserError(f"model.num_regions must be at least 1, got {model.num_regions}")
  return Recognizer(
    backbone=backbones.build(model, remat=remat),
    head=main.build(model, num_classes),
    auxiliary=beside.build(model, num_classes) if beside else None,
    guide=main.guide,
    rpn=rpn_lib.build(model) if main.guide == heads.RPN else None,
    pixel_mean=tuple(model.pixel_mean),
    pixel_std=tuple(model.pixel_std),
    map_norm=model.map_norm,
  )
