"""A backbone, a head and, beside it, an optional auxiliary head; and how a configuration names them."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax.backbones import vgg
from rmam_jax.heads import modules
from rmam_jax.heads.rpn import Localizer
from rmam_jax.ops import next_region, rarl, rlsd
from rmam_jax.ops.attention import Attention


class Recognition(NamedTuple):
  attention: Attention
  auxiliary: Attention | None


class Recognizer(nn.Module):
  """From pixels to the scores of every region.

  Attributes:
    backbone: normalised images -> feature map.
    head: feature map -> `Attention`.
    auxiliary: a second head beside it, or None. Its loss keeps the backbone learning densely.
    guide: what the head is given to look by: "dense_scores" of the auxiliary head, "boxes" that come with the images,
      "localizer" for those that the localiser finds, or "" for nothing.
    localizer: finds them, on a feature map of its own; it is trained before, and no gradient reaches it.
    pixel_mean, pixel_std: of red, green and blue in 0..255.
  """

  backbone: nn.Module
  head: nn.Module
  auxiliary: nn.Module | None = None
  guide: str = ""
  localizer: Localizer | None = None
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
    """Images as above -> f_I [B, H, W, C]; with a localiser [B, H, W, 2C], its own map after f_I."""
    feature_map = self.backbone(vgg.normalize(images, self.pixel_mean, self.pixel_std))
    if self.localizer is None:
      return feature_map
    return jnp.concatenate([feature_map, jax.lax.stop_gradient(self.localizer.feature_map(images))], axis=-1)

  def recognize(self, feature_map: jax.Array, boxes: jax.Array | None = None) -> Recognition:
    """What `feature_map` gives, or a window of it, and boxes as above -> scores."""
    localizer_map = None
    if self.localizer is not None:
      feature_map, localizer_map = jnp.split(feature_map, 2, axis=-1)
    auxiliary = None if self.auxiliary is None else self.auxiliary(feature_map)
    guide = {}
    if self.guide == "dense_scores":
      guide["dense_scores"] = auxiliary.memory
    elif self.guide == "boxes":
      batch, _, _, _ = feature_map.shape  # without boxes, as in initialisation, the whole image
      guide["boxes"] = jnp.broadcast_to(jnp.asarray([0.0, 0, 1, 1]), (batch, 1, 4)) if boxes is None else boxes
    elif self.guide == "localizer":
      guide["boxes"] = jax.lax.stop_gradient(self.localizer.propose(localizer_map))
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
      next_region.recurrent,
      origins=next_region.grid_thetas(model.num_regions)[:, 2:] if model.recurrent.anchored else None,
    ),
    functools.partial(
      next_region.init_recurrent,
      bias=tuple(model.recurrent.bias),
      weight_scale=model.recurrent.weight_scale,
    ),
  ),
  "saliency": lambda model: Rule(
    functools.partial(
      next_region.saliency,
      scale=model.saliency.scale,
      inhibition=model.saliency.inhibition,
      peak_width=model.saliency.peak_width,
      align_corners=model.align_corners,
    ),
    next_region.no_parameters,
  ),
  "proposals": lambda model: Rule(
    functools.partial(next_region.proposals, align_corners=model.align_corners), next_region.no_parameters
  ),
  "fixed_grid": lambda model: Rule(
    functools.partial(next_region.fixed_grid, num_regions=model.num_regions, scale=model.fixed_grid.scale),
    next_region.no_parameters,
  ),
}


def _regions(model: Any) -> dict[str, Any]:
  """What all heads take that look at regions and remember."""
  return {
    "region_size": tuple(model.region_size),
    "pool": model.region_pool,
    "squash_cell": model.squash_cell,
    "align_corners": model.align_corners,
    "x_width": model.x_width,
    "lstm_width": model.lstm_width,
    "z_width": model.z_width,
    "forget_bias": model.forget_bias,
  }


def _rmam(model: Any, num_classes: int, rule: str) -> modules.RMAM:
  next_region, init = RULES[rule](model)
  return modules.RMAM(
    num_classes=num_classes,
    num_regions=model.num_regions,
    next_region=next_region,
    init_next_region=init,
    **_regions(model),
  )


def _rarl(model: Any, num_classes: int) -> modules.RARL:
  section = model.rarl
  for field, allowed in (
    ("steps", section.steps >= 1),
    ("sizes", len(section.sizes) and min(section.sizes) > 0),
    ("aspects", len(section.aspects) and min(section.aspects) > 0),
    ("deviation", section.deviation > 0),
  ):
    if not allowed:
      raise ValueError(f"model.rarl.{field} must be positive, got {section[field]}")
  return modules.RARL(
    num_classes=num_classes,
    steps=section.steps,
    shapes=tuple(map(tuple, rarl.region_shapes(section.sizes, section.aspects).tolist())),
    deviation=section.deviation,
    policy_scale=section.policy_scale,
    **_regions(model),
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


def _rlsd_loss(config: Any, classification: str) -> HeadLoss:
  del classification
  model = config.model
  return rlsd.make_loss(steps=model.rlsd.steps, order=tuple(model.rlsd.order), squash_cell=model.squash_cell)


def _whole_image(model: Any, num_classes: int) -> modules.WholeImage:
  return modules.WholeImage(
    num_classes=num_classes,
    region_size=tuple(model.region_size),
    pool=model.region_pool,
    align_corners=model.align_corners,
    x_width=model.x_width,
    z_width=model.z_width,
  )


def _rlsd(model: Any, num_classes: int) -> modules.RLSD:
  steps, order = model.rlsd.steps, tuple(model.rlsd.order)
  if steps < 1:
    raise ValueError(f"model.rlsd.steps must be at least 1, got {steps}")
  if order and sorted(order) != list(range(num_classes)):
    raise ValueError(f"model.rlsd.order must hold each of the {num_classes} classes' numbers once, got {order}")
  return modules.RLSD(
    num_classes=num_classes,
    steps=steps,
    **_regions(model),
  )


# The controls, which see the whole image as one region.
CONTROLS: Mapping[str, Callable[[Any, int], nn.Module]] = {
  "whole_image": _whole_image,
  "mean_pool": lambda model, num_classes: modules.Pooled(num_classes, jnp.mean),
  "max_pool": lambda model, num_classes: modules.Pooled(num_classes, jnp.max),
  "score_map": lambda model, num_classes: modules.ScoreMap(num_classes, places=model.score_map.places),
}

# From the `model` section and the number of classes to the head that it names. In training a head may sample where it
# looks, from the generator "look"; it does so only where `self.has_rng("look")`.
HEADS: Mapping[str, Callable[[Any, int], nn.Module]] = {
  **{rule: functools.partial(_rmam, rule=rule) for rule in RULES},
  "rarl": _rarl,
  "rlsd": _rlsd,
  "rlsd_ft_rpn": _rlsd,  # its localiser learns from the data set's own boxes (`config.localizer.data`)
  **CONTROLS,
}


# From the configuration and the name of the classification loss to the loss of a head that has its own.
LOSSES: Mapping[str, Callable[[Any, str], HeadLoss]] = {
  "rarl": _rarl_loss,
  "rlsd": _rlsd_loss,
  "rlsd_ft_rpn": _rlsd_loss,
}

# Heads that sample in training, where they look or which anchors their localiser learns from: what a batch teaches them
# depends on how it is cut into parts.
SAMPLING = ("rarl", "rlsd", "rlsd_ft_rpn")

# The sections of the configuration that only these heads read.
SECTIONS: Mapping[str, Sequence[str]] = {
  "rarl": ("model.rarl.", "loss.rarl."),
  "rlsd": ("model.rlsd.", "model.localizer.", "localizer."),
  "rlsd_ft_rpn": ("model.rlsd.", "model.localizer.", "localizer."),
}


def unused_sections(heads: Iterable[str]) -> tuple[str, ...]:
  """Of `SECTIONS`, those that none of these heads reads."""
  used = {section for head in heads for section in SECTIONS.get(head, ())}
  return tuple(sorted({section for sections in SECTIONS.values() for section in sections} - used))


# What heads are given to look by; see `Recognizer.guide`.
GUIDES: Mapping[str, str] = {
  "saliency": "dense_scores",
  "proposals": "boxes",
  "rlsd": "localizer",
  "rlsd_ft_rpn": "localizer",
}


def needs_scores(head: str) -> bool:
  """Whether a head looks by the dense scores of an auxiliary head."""
  return GUIDES.get(head) == "dense_scores"


def needs_localizer(head: str) -> bool:
  """Whether a head looks at the regions that a localiser finds."""
  return GUIDES.get(head) == "localizer"


def looks(head: str) -> bool:
  """Whether a head of this name looks at K regions; the others are controls that see the whole image."""
  return head not in CONTROLS


def stride(model: Any) -> int:
  """Pixels between neighbouring cells of the feature map."""
  return 2 ** (len(model.stages) - 1)


def _backbone(model: Any) -> vgg.VGG:
  return vgg.VGG(stages=tuple(map(tuple, model.stages)), dtype=jnp.dtype(model.dtype))


def build_localizer(model: Any) -> Localizer:
  """The localiser that a configuration's `model` section describes.

  Raises:
    ValueError: K < 1, no anchors, or an overlap that is none.
  """
  section = model.localizer
  if model.num_regions < 1:
    raise ValueError(f"model.num_regions must be at least 1, got {model.num_regions}")
  if not section.anchors or np.shape(section.anchors)[1:] != (2,) or np.min(section.anchors) <= 0:
    raise ValueError(f"model.localizer.anchors must be pairs (width, height) of pixels, got {section.anchors}")
  if not 0 <= section.overlap <= 1:
    raise ValueError(f"model.localizer.overlap must be an IoU in [0, 1], got {section.overlap}")
  return Localizer(
    backbone=_backbone(model),
    anchors=tuple(map(tuple, section.anchors)),
    stride=stride(model),
    num_regions=model.num_regions,
    width=section.width,
    overlap=section.overlap,
    pixel_mean=tuple(model.pixel_mean),
    pixel_std=tuple(model.pixel_std),
    dtype=jnp.dtype(model.dtype),
  )


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
    backbone=_backbone(model),
    head=HEADS[head](model, num_classes),
    auxiliary=HEADS[auxiliary](model, num_classes) if auxiliary else None,
    guide=GUIDES.get(head, ""),
    localizer=build_localizer(model) if needs_localizer(head) else None,
    pixel_mean=tuple(model.pixel_mean),
    pixel_std=tuple(model.pixel_std),
  )
