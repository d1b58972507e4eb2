"""A backbone, a head and, beside it, an optional auxiliary head; and how a configuration names them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmam_jax import rarl, update_rules
from rmam_jax.attention import Attention
from rmam_jax.models import heads, vgg


class Recognition(NamedTuple):
  attention: Attention
  auxiliary: Attention | None


class Recognizer(nn.Module):
  """From pixels to the scores of every region.

  Attributes:
    backbone: normalised images -> feature map.
    head: feature map -> `Attention`.
    auxiliary: a second head beside it, or None. Its loss keeps the backbone learning densely.
    guide: what the head is given to look by: "dense_scores" of the auxiliary head, "boxes" that come with the images, or
      "" for nothing.
    pixel_mean, pixel_std: of red, green and blue in 0..255.
  """

  backbone: nn.Module
  head: nn.Module
  auxiliary: nn.Module | None = None
  guide: str = ""
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
    """Images as above -> f_I [B, H, W, C]."""
    pixels = (images.astype(jnp.float32) - jnp.asarray(self.pixel_mean)) / jnp.asarray(self.pixel_std)
    return self.backbone(pixels)

  def recognize(self, feature_map: jax.Array, boxes: jax.Array | None = None) -> Recognition:
    """f_I, or a window of it, and boxes as above -> scores."""
    auxiliary = None if self.auxiliary is None else self.auxiliary(feature_map)
    guide = {}
    if self.guide == "dense_scores":
      guide["dense_scores"] = auxiliary.memory
    elif self.guide == "boxes":
      batch, _, _, _ = feature_map.shape  # without boxes, as in initialisation, the whole image
      guide["boxes"] = jnp.broadcast_to(jnp.asarray([0.0, 0, 1, 1]), (batch, 1, 4)) if boxes is None else boxes
    return Recognition(self.head(feature_map, **guide), auxiliary)


class HeadLoss(Protocol):
  """A head's own loss, in place of Eq. 14.

  Its attention, labels [B, L], ignore [B, L] and mask [B] -> the loss, a mean over the real examples, and its terms by
  name, which become metrics. What it needs beside scores and thetas is in `Attention.memory`.
  """

  def __call__(
    self, attention: Attention, labels: jax.Array, ignore: jax.Array, mask: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]: ...


class Rule(NamedTuple):
  """A way of looking, as the configuration gives it: the rule and its initialiser."""

  next_region: Callable[..., Any]
  init: Callable[..., Any]


# From the `model` section of a configuration to the rule that it names.
RULES: Mapping[str, Callable[[Any], Rule]] = {
  "recurrent": lambda model: Rule(
    functools.partial(
      update_rules.recurrent,
      origins=update_rules.grid_thetas(model.num_regions)[:, 2:] if model.recurrent.anchored else None,
    ),
    functools.partial(
      update_rules.init_recurrent,
      bias=tuple(model.recurrent.bias),
      weight_scale=model.recurrent.weight_scale,
    ),
  ),
  "saliency": lambda model: Rule(
    functools.partial(
      update_rules.saliency,
      scale=model.saliency.scale,
      inhibition=model.saliency.inhibition,
      peak_width=model.saliency.peak_width,
      align_corners=model.align_corners,
    ),
    update_rules.no_parameters,
  ),
  "proposals": lambda model: Rule(
    functools.partial(update_rules.proposals, align_corners=model.align_corners), update_rules.no_parameters
  ),
  "fixed_grid": lambda model: Rule(
    functools.partial(update_rules.fixed_grid, num_regions=model.num_regions, scale=model.fixed_grid.scale),
    update_rules.no_parameters,
  ),
}


def _rmam(model: Any, num_classes: int, rule: str) -> heads.RMAM:
  next_region, init = RULES[rule](model)
  return heads.RMAM(
    num_classes=num_classes,
    num_regions=model.num_regions,
    next_region=next_region,
    init_next_region=init,
    region_size=tuple(model.region_size),
    pool=model.region_pool,
    squash_cell=model.squash_cell,
    align_corners=model.align_corners,
    x_width=model.x_width,
    lstm_width=model.lstm_width,
    z_width=model.z_width,
    forget_bias=model.forget_bias,
  )


def _rarl(model: Any, num_classes: int) -> heads.RARL:
  section = model.rarl
  for field, allowed in (
    ("steps", section.steps >= 1),
    ("sizes", len(section.sizes) and min(section.sizes) > 0),
    ("aspects", len(section.aspects) and min(section.aspects) > 0),
    ("deviation", section.deviation > 0),
  ):
    if not allowed:
      raise ValueError(f"model.rarl.{field} must be positive, got {section[field]}")
  return heads.RARL(
    num_classes=num_classes,
    steps=section.steps,
    shapes=tuple(map(tuple, rarl.region_shapes(section.sizes, section.aspects).tolist())),
    deviation=section.deviation,
    policy_scale=section.policy_scale,
    region_size=tuple(model.region_size),
    pool=model.region_pool,
    squash_cell=model.squash_cell,
    align_corners=model.align_corners,
    x_width=model.x_width,
    lstm_width=model.lstm_width,
    z_width=model.z_width,
    forget_bias=model.forget_bias,
  )


def _rarl_loss(config: Any, classification: str) -> HeadLoss:
  section = config.loss.rarl
  if section.baseline not in rarl.BASELINES:
    raise ValueError(f"loss.rarl.baseline must be one of {', '.join(rarl.BASELINES)}, got {section.baseline!r}")
  return functools.partial(
    rarl.loss,
    deviation=config.model.rarl.deviation,
    classification=classification,
    policy_weight=section.policy_weight,
    baseline=section.baseline,
    baseline_weight=section.baseline_weight,
  )


def _whole_image(model: Any, num_classes: int) -> heads.WholeImage:
  return heads.WholeImage(
    num_classes=num_classes,
    region_size=tuple(model.region_size),
    pool=model.region_pool,
    align_corners=model.align_corners,
    x_width=model.x_width,
    z_width=model.z_width,
  )


# The controls, which see the whole image as one region.
CONTROLS: Mapping[str, Callable[[Any, int], nn.Module]] = {
  "whole_image": _whole_image,
  "mean_pool": lambda model, num_classes: heads.Pooled(num_classes, jnp.mean),
  "max_pool": lambda model, num_classes: heads.Pooled(num_classes, jnp.max),
  "score_map": lambda model, num_classes: heads.ScoreMap(num_classes, places=model.score_map.places),
}

# From the `model` section and the number of classes to the head that it names. In training a head may sample where it
# looks, from the generator "look"; it does so only where `self.has_rng("look")`.
HEADS: Mapping[str, Callable[[Any, int], nn.Module]] = {
  **{rule: functools.partial(_rmam, rule=rule) for rule in RULES},
  "rarl": _rarl,
  **CONTROLS,
}


# From the configuration and the name of the classification loss to the loss of a head that has its own.
LOSSES: Mapping[str, Callable[[Any, str], HeadLoss]] = {"rarl": _rarl_loss}

# What heads are given to look by; see `Recognizer.guide`.
GUIDES: Mapping[str, str] = {"saliency": "dense_scores", "proposals": "boxes"}


def needs_scores(head: str) -> bool:
  """Whether a head looks by the dense scores of an auxiliary head."""
  return GUIDES.get(head) == "dense_scores"


def looks(head: str) -> bool:
  """Whether a head of this name looks at K regions; the others are controls that see the whole image."""
  return head not in CONTROLS


def stride(model: Any) -> int:
  """Pixels between neighbouring cells of the feature map."""
  return 2 ** (len(model.stages) - 1)


def build(model: Any, num_classes: int, *, head: str, auxiliary: str = "") -> Recognizer:
  """The recogniser that a configuration's `model` section describes.

  Args:
    model: see `configs/common.py`.
    num_classes: L.
    head: a name from `HEADS`.
    auxiliary: another, or "" for none.

  Raises:
    ValueError: a head that does not exist or lacks its guide, or K < 1.
  """
  for field, name in (("head", head), ("auxiliary", auxiliary or head)):
    if name not in HEADS:
      raise ValueError(f"{field} must be one of {', '.join(sorted(HEADS))}, got {name!r}")
  if needs_scores(head) and auxiliary != "score_map":
    raise ValueError(
      f"head {head!r} looks by the dense scores of an auxiliary 'score_map' (stage_one.head), got {auxiliary!r}"
    )
  if model.num_regions < 1:
    raise ValueError(f"model.num_regions must be at least 1, got {model.num_regions}")
  return Recognizer(
    backbone=vgg.VGG(stages=tuple(map(tuple, model.stages)), dtype=jnp.dtype(model.dtype)),
    head=HEADS[head](model, num_classes),
    auxiliary=HEADS[auxiliary](model, num_classes) if auxiliary else None,
    guide=GUIDES.get(head, ""),
    pixel_mean=tuple(model.pixel_mean),
    pixel_std=tuple(model.pixel_std),
  )
