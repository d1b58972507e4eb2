"""ConvNeXt (Liu et al., 2022): depthwise 7x7 convolutions, layer normalisation, up to the last block."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax.backbones import layers
from rmam_jax.backbones.spec import (
  IMAGENET_MEAN,
  IMAGENET_STD,
  BackboneSpec,
  Layout,
  Place,
  convolution_places,
  dense_places,
  norm_places,
)


class Network(NamedTuple):
  """What makes a network of this family."""

  blocks: Sequence[int]  # of each stage; a stage but the first begins by halving its map
  widths: Sequence[int]  # of each stage's map

  @property
  def maps(self) -> dict[int, float]:
    """The maps by their strides, with their RMS on photographs, which nobody measured."""
    return {2 ** (n + 2): 1.0 for n in range(len(self.blocks))}


class Block(nn.Module):
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width, dense = x.shape[-1], functools.partial(nn.Dense, dtype=self.dtype)
    y = Depthwise(self.dtype, name="depthwise")(x)
    y = layers.layer_norm(self.dtype, name="norm")(y)
    y = nn.gelu(dense(4 * width, name="expand")(y), approximate=False)
    y = dense(width, name="project")(y)
    return x + y * self.param("layer_scale", nn.initializers.constant(1e-6), (width,)).astype(self.dtype)


class Depthwise(nn.Module):
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param("kernel", nn.initializers.truncated_normal(0.02), (7, 7, 1, x.shape[-1]))
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    return layers.convolve_depthwise(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


class ConvNeXt(nn.Module):
  """The network up to its last block; the norm behind the mean of the published one is not in it."""

  network: Network
  maps: layers.Maps  # those that are taken
  dtype: jnp.dtype = jnp.float32  # of the computation; parameters are float32
  remat: bool = False  # whether the backward pass computes each block again from its input, which saves memory

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """[B, height, width, 3], normalised -> f_I [B, H, W, C]; pixels beyond the last whole cell are not seen."""
    net, found = self.network, {}
    norm = functools.partial(layers.layer_norm, self.dtype)
    kind = nn.remat(Block) if self.remat else Block
    x = norm(name="stem_norm")(layers.patches(net.widths[0], 4, self.dtype, name="stem")(images))
    for stage, (blocks, width) in enumerate(zip(net.blocks, net.widths, strict=True), 1):
      if stage > 1:
        x = norm(name=f"stage{stage}_norm")(x)
        x = layers.patches(width, 2, self.dtype, name=f"stage{stage}_halve")(x)
      for block in range(1, blocks + 1):
        x = kind(self.dtype, name=f"stage{stage}_block{block}")(x)
      found[2 ** (stage + 1)] = x
      if 2 ** (stage + 1) == self.maps.strides[-1]:
        break
    return self.maps.fuse(found)


class _Names(NamedTuple):
  """How a set names its tensors; the stages count from 0."""

  stem: tuple[str, str]  # convolution and norm
  halve: Callable[[int], tuple[str, str]]  # a stage -> norm and convolution
  block: Callable[[int, int], str]  # a stage and a block
  layers: tuple[str, str, str, str, str]  # layer scale, depthwise, norm, expand, project
  layer_scale: Callable[[int], tuple[int, ...]]  # its shape
  head: tuple[str, str]  # norm and classifier


_TORCHVISION = _Names(
  stem=("features.0.0", "features.0.1"),
  halve=lambda stage: (f"features.{2 * stage}.0", f"features.{2 * stage}.1"),
  block=lambda stage, block: f"features.{2 * stage + 1}.{block}.",
  layers=("layer_scale", "block.0", "block.2", "block.3", "block.5"),
  layer_scale=lambda width: (width, 1, 1),
  head=("classifier.0", "classifier.2"),
)
_TIMM = _Names(
  stem=("stem.0", "stem.1"),
  halve=lambda stage: (f"stages.{stage}.downsample.0", f"stages.{stage}.downsample.1"),
  block=lambda stage, block: f"stages.{stage}.blocks.{block}.",
  layers=("gamma", "conv_dw", "norm", "mlp.fc1", "mlp.fc2"),
  layer_scale=lambda width: (width,),
  head=("head.norm", "head.fc"),
)


def _places(net: Network, names: _Names) -> Iterator[tuple[str, Place]]:
  yield from convolution_places("stem", names.stem[0], (4, 4, 3, net.widths[0]))
  yield from norm_places("stem_norm", names.stem[1], net.widths[0])
  for stage, (blocks, width) in enumerate(zip(net.blocks, net.widths, strict=True)):
    if stage:
      norm, convolution = names.halve(stage)
      yield from norm_places(f"stage{stage + 1}_norm", norm, net.widths[stage - 1])
      yield from convolution_places(f"stage{stage + 1}_halve", convolution, (2, 2, net.widths[stage - 1], width))
    for block in range(blocks):
      ours, theirs = f"stage{stage + 1}_block{block + 1}", names.block(stage, block)
      scale, depthwise, norm, expand, project = (theirs + layer for layer in names.layers)
      yield f"{ours}/layer_scale", Place(scale, names.layer_scale(width), np.ravel)
      yield from convolution_places(f"{ours}/depthwise", depthwise, (7, 7, 1, width))
      yield from norm_places(f"{ours}/norm", norm, width)
      yield from dense_places(f"{ours}/expand", expand, width, 4 * width)
      yield from dense_places(f"{ours}/project", project, 4 * width, width)


def _layout(title: str, names: _Names, source: str) -> Layout:
  (norm, classifier), width = names.head, TINY.widths[-1]
  unused = {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
  unused |= {f"{classifier}.weight": (1000, width), f"{classifier}.bias": (1000,)}
  return Layout(title, dict(_places(TINY, names)), unused, IMAGENET_MEAN, IMAGENET_STD, sources=(source,))


def _spec(name: str, network: Network, **options: Any) -> BackboneSpec:
  def maps(model: Any) -> layers.Maps:
    return layers.Maps.named(model.maps, network.maps)

  return BackboneSpec(
    name,
    build=lambda model, remat=False: ConvNeXt(network, maps(model), jnp.dtype(model.dtype), remat),
    stride=lambda model: maps(model).strides[0],
    **options,
  )


TINY = Network((3, 3, 9, 3), (96, 192, 384, 768))
LAYOUTS = (
  _layout("torchvision's ConvNeXt-Tiny", _TORCHVISION, "torch:convnext_tiny-983f1562.pth"),
  _layout("timm's ConvNeXt-Tiny", _TIMM, "hf:timm/convnext_tiny.in12k_ft_in1k/model.safetensors"),
)
_PUBLISHED = "convnext_tiny-983f1562.pth of torchvision, the safetensors file of timm/convnext_tiny.in12k_ft_in1k"
SPECS = (
  _spec("convnext_tiny", TINY, layouts=LAYOUTS, published=_PUBLISHED),
  _spec("convnext_thin", Network((1, 1, 1), (4, 6, 8))),
)
