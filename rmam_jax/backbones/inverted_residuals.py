"""The network that MobileNetV2 (Sandler et al., 2018) began: thin maps, and inside a block a wide depthwise convolution."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmam_jax.backbones import layers
from rmam_jax.backbones.spec import BackboneSpec, Place, normed_places


class Stage(NamedTuple):
  """Blocks one after the other; the first has the stride."""

  blocks: int
  size: int  # of the depthwise kernels
  stride: int
  expansion: int  # of the channels inside a block; 1: it has no first convolution
  width: int  # of its map


class Network(NamedTuple):
  """What makes a network of this kind."""

  stem: int  # filters of the first convolution
  stages: Sequence[Stage]
  head: int  # filters of the last convolution, which is 1x1
  same: bool  # see `layers.pads`
  norm: layers.Norm
  rms: Sequence[float] = ()  # of each map on photographs, with the published weights

  @property
  def maps(self) -> dict[int, float]:
    """The maps by their strides, with their RMS: the last of each size, and in place of the smallest the head's."""
    halvings = 1 + sum(stage.stride > 1 for stage in self.stages)
    return dict(zip((2 ** (n + 1) for n in range(halvings)), self.rms or (1.0,) * halvings, strict=True))

  def convolutions(self) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Each normalised layer by its path, in order, with the shape of its kernel, HWIO."""
    yield "stem", (3, 3, 3, self.stem)
    width = self.stem
    for number, stage in enumerate(self.stages, 1):
      for block in range(1, stage.blocks + 1):
        path, inner = f"stage{number}_block{block}", width * stage.expansion
        if stage.expansion > 1:
          yield f"{path}/expand", (1, 1, width, inner)
        yield f"{path}/depthwise", (stage.size, stage.size, 1, inner)
        yield f"{path}/project", (1, 1, inner, stage.width)
        width = stage.width
    yield "head", (1, 1, width, self.head)

  def places(self, names: Iterable[tuple[str, str]]) -> dict[str, Place]:
    """Where a set published in torch has our tensors, by its names of each convolution and its normalisation, in order."""
    pairs = zip(self.convolutions(), names, strict=True)
    return {k: v for (ours, shape), theirs in pairs for k, v in normed_places(ours, shape, *theirs).items()}


def timm_names(network: Network) -> Iterator[tuple[str, str]]:
  """Each convolution and its normalisation in timm."""
  yield "conv_stem", "bn1"
  for number, stage in enumerate(network.stages):
    layers = ("conv_pw", "conv_dw", "conv_pwl") if stage.expansion > 1 else ("conv_dw", "conv_pw")
    for block in range(stage.blocks):
      path = f"blocks.{number}.{block}"
      yield from ((f"{path}.{layer}", f"{path}.bn{index}") for index, layer in enumerate(layers, 1))
  yield "conv_head", "bn2"


class InvertedResidual(nn.Module):
  stage: Stage
  stride: int
  normed: Any  # makes a normalised layer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    inner, y = x.shape[-1] * self.stage.expansion, x
    if self.stage.expansion > 1:
      y = self.normed(inner, activation=layers.relu6, name="expand")(y)
    wide = {"size": self.stage.size, "stride": self.stride, "depthwise": True, "activation": layers.relu6}
    y = self.normed(inner, **wide, name="depthwise")(y)
    y = self.normed(self.stage.width, name="project")(y)
    return x + y if x.shape == y.shape else y


class InvertedResiduals(nn.Module):
  """A network of `Network`, up to its head's map."""

  network: Network
  maps: layers.Maps  # those that are taken
  dtype: jnp.dtype = jnp.float32  # of the computation; parameters are float32
  remat: bool = False  # whether the backward pass computes each block again from its input, which saves memory
  freeze_norm: bool = True
  axis_name: str | None = None  # see `layers.Norm`

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """[B, height, width, 3], normalised -> f_I [B, H, W, C]; of the head's map, each value is in [0, 6]."""
    net, stride, found = self.network, 2, {}
    norm = net.norm._replace(frozen=self.freeze_norm, axis_name=self.axis_name)
    normed = functools.partial(layers.Normed, same=net.same, norm=norm, train=train, dtype=self.dtype)
    kind = nn.remat(InvertedResidual) if self.remat else InvertedResidual
    x = normed(net.stem, 3, 2, activation=layers.relu6, name="stem")(images)
    for number, stage in enumerate(net.stages, 1):
      if stage.stride > 1:
        found[stride] = x
        if stride == self.maps.strides[-1]:
          return self.maps.fuse(found)
        stride *= stage.stride
      for block in range(1, stage.blocks + 1):
        x = kind(stage, stage.stride if block == 1 else 1, normed, name=f"stage{number}_block{block}")(x)
    found[stride] = normed(net.head, activation=layers.relu6, name="head")(x)
    return self.maps.fuse(found)


def spec(name: str, network: Network, **options: Any) -> BackboneSpec:
  """The spec of a network of this kind; the options are those of `BackboneSpec`."""

  def maps(model: Any) -> layers.Maps:
    return layers.Maps.named(model.maps, network.maps)

  return BackboneSpec(
    name,
    build=lambda model, remat=False: InvertedResiduals(
      network, maps(model), jnp.dtype(model.dtype), remat, model.freeze_norm
    ),
    stride=lambda model: maps(model).strides[0],
    rounds_up=True,
    **options,
  )
