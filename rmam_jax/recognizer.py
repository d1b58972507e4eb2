"""A backbone, a head and, beside it, an optional auxiliary head; and how a configuration names them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmam_jax import backbones, heads
from rmam_jax.heads import rpn as rpn_lib
from rmam_jax.heads import spec
from rmam_jax.ops.attention import Attention
from rmam_jax.runtime.errors import UserError


class Recognition(NamedTuple):
  attention: Attention
  auxiliary: Attention | None


class Recognizer(nn.Module):
  """From pixels to the scores of every region.

  Attributes:
    backbone: normalised images -> feature map.
    head: feature map -> `Attention`.
    auxiliary: a second head beside it, or None. Its loss keeps the backbone learning densely.
    guide: what the head is given to look by; see `heads.spec.HeadSpec`.
    rpn: finds regions for the head, on a feature map of its own; it is trained before, and no gradient reaches it.
    pixel_mean, pixel_std: of red, green and blue in 0..255.
  """

  backbone: nn.Module
  head: nn.Module
  auxiliary: nn.Module | None = None
  guide: str = ""
  rpn: rpn_lib.RegionProposalNetwork | None = None
  pixel_mean: Sequence[float] = (0.0, 0.0, 0.0)
  pixel_std: Sequence[float] = (1.0, 1.0, 1.0)

  def __call__(self, images: jax.Array, boxes: jax.Array | None = None) -> Recognition:
    """Images to scores.

    Args:
      images: [B, height, width, 3] of 0..255, red green blue, uint8 or float.
      boxes: [B, K, 4] of (top, left, bottom, right) as shares of the image, for a head that is guided by them.
    """
    return self.recognize(self.feature_map(images), boxes)

  def feature_map(self, images: jax.Array) -> jax.Array:
    """Images as above -> f_I [B, H, W, C]; with a region proposal network [B, H, W, 2C], its own map after f_I."""
    feature_map = self.backbone(backbones.normalize(images, self.pixel_mean, self.pixel_std))
    if self.rpn is None:
      return feature_map
    return jnp.concatenate([feature_map, jax.lax.stop_gradient(self.rpn.feature_map(images))], axis=-1)

  def recognize(self, feature_map: jax.Array, boxes: jax.Array | None = None) -> Recognition:
    """What `feature_map` gives, or a window of it, and boxes as above -> scores."""
    rpn_map = None
    if self.rpn is not None:
      feature_map, rpn_map = jnp.split(feature_map, 2, axis=-1)
    auxiliary = None if self.auxiliary is None else self.auxiliary(feature_map)
    guide = {}
    if self.guide == spec.DENSE_SCORES:
      guide["dense_scores"] = auxiliary.memory
    elif self.guide == spec.BOXES:
      batch, _, _, _ = feature_map.shape  # without boxes, as in initialisation, the whole image
      guide["boxes"] = jnp.broadcast_to(jnp.asarray([0.0, 0, 1, 1]), (batch, 1, 4)) if boxes is None else boxes
    elif self.guide == spec.RPN:
      guide["boxes"] = jax.lax.stop_gradient(self.rpn.propose(rpn_map))
    return Recognition(self.head(feature_map, **guide), auxiliary)


def build(model: Any, num_classes: int, *, head: str, auxiliary: str = "", remat: bool = False) -> Recognizer:
  """The recognizer that a configuration's `model` section describes.

  Args:
    model: see `rmam_jax.config`.
    num_classes: L.
    head: a name from `heads.SPECS`.
    auxiliary: another, or "" for none.
    remat: whether the backward pass computes the backbone's blocks again, instead of keeping what is inside.

  Raises:
    UserError: a head that does not exist or lacks its guide, or K < 1.
  """
  main, beside = heads.get(head, "head"), heads.get(auxiliary, "auxiliary") if auxiliary else None
  if main.guide == spec.DENSE_SCORES and not (beside and beside.gives_dense_scores):
    able = ", ".join(name for name, each in heads.SPECS.items() if each.gives_dense_scores)
    raise UserError(
      f"head {head!r} looks by the dense scores of an auxiliary {able!r} (stage_one.head), got {auxiliary!r}"
    )
  if model.num_regions < 1:
    raise UserError(f"model.num_regions must be at least 1, got {model.num_regions}")
  return Recognizer(
    backbone=backbones.build(model, remat=remat),
    head=main.build(model, num_classes),
    auxiliary=beside.build(model, num_classes) if beside else None,
    guide=main.guide,
    rpn=rpn_lib.build(model) if main.guide == spec.RPN else None,
    pixel_mean=tuple(model.pixel_mean),
    pixel_std=tuple(model.pixel_std),
  )
