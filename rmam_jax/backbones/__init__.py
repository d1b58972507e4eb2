"""Networks from pixels to a feature map: one file a family, one `BackboneSpec` a network, found by its name."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmam_jax.backbones import convnext, efficientnet, mobilenet, resnet, vgg, vit
from rmam_jax.backbones.spec import BackboneSpec
from rmam_jax.runtime.errors import check_name

SPECS: dict[str, BackboneSpec] = {
  spec.name: spec for family in (vgg, efficientnet, mobilenet, resnet, convnext, vit) for spec in family.SPECS
}


def register(spec: BackboneSpec) -> None:
  """Makes a backbone known under its name."""
  SPECS[spec.name] = spec


def get(name: str) -> BackboneSpec:
  """The backbone of this name; raises UserError if there is none."""
  check_name("model.backbone", name, SPECS)
  return SPECS[name]


def build(model: Any, *, remat: bool = False) -> nn.Module:
  """The backbone of a configuration's `model` section; raises UserError for an unknown name or type of numbers."""
  check_name("model.dtype", model.dtype, ("float32", "bfloat16", "float16"))
  return get(model.backbone).build(model, remat=remat)


def stride(model: Any) -> int:
  """Pixels between neighbouring cells of the feature map."""
  return get(model.backbone).stride(model)


def cells(model: Any, side: int) -> int:
  """Cells of the feature map along a side of so many pixels."""
  return -(-side // stride(model)) if get(model.backbone).rounds_up else side // stride(model)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """Images [B, height, width, 3] of 0..255, uint8 or float -> float32, by the mean and deviation of each channel."""
  return (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)
