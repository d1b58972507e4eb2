"""ResNet (He et al., 2015) with bottlenecks, the stride in their 3x3 convolution, as torchvision and timm have it."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmam_jax.backbones import layers
from rmam_jax.backbones.spec import IMAGENET_MEAN, IMAGENET_STD, BackboneSpec, Layout, normed_places


class Network(NamedTuple):
  """What makes a network of this family."""

  blocks: Sequence[int]  # of each stage; the first keeps the stem's size, the others halve it
  width: int = 64  # of the stem and inside the first stage's blocks; it doubles from stage to stage
  expansion: int = 4  # of a block's output

  @property
  def maps(self) -> dict[int, float]:
    """The maps by their strides, with their RMS on photographs, which nobody measured."""
    return {2 ** (n + 2): 1.0 for n in range(len(self.blocks))}

  def convolutions(self) -> Iterator[tuple[str, str, str, tuple[int, int, int, int]]]:
    """Each normalised layer by its path, the published names of its convolution and norm, and its kernel's shape."""
    yield "stem", "conv1", "bn1", (7, 7, 3, self.width)
    channels = self.width
    for stage, blocks in enumerate(self.blocks, 1):
      inner = self.width * 2 ** (stage - 1)
      out = inner * self.expansion
      for block in range(blocks):
        ours, theirs = f"stage{stage}_block{block + 1}", f"layer{stage}.{block}"
        shapes = ((1, 1, channels, inner), (3, 3, inner, inner), (1, 1, inner, out))
        for layer, shape in enumerate(shapes, 1):
          yield f"{ours}/conv{layer}", f"{theirs}.conv{layer}", f"{theirs}.bn{layer}", shape
        if block == 0:
          yield f"{ours}/shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1", (1, 1, channels, out)
        channels = out


class Bottleneck(nn.Module):
  inner: int
  out: int
  stride: int
  first: bool  # of its stage: the shortcut is a convolution
  normed: Any  # makes a normalised layer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.normed(self.inner, activation=nn.relu, name="conv1")(x)
    y = self.normed(self.inner, 3, self.stride, activation=nn.relu, name="conv2")(y)
    y = self.normed(self.out, name="conv3")(y)
    if self.first:
      x = self.normed(self.out, 1, self.stride, name="shortcut")(x)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """The network up to its last block."""

  network: Network
  maps: layers.Maps  # those that are taken
  dtype: jnp.dtype = jnp.float32  # of the computation; parameters are float32
  remat: bool = False  # whether the backward pass computes each block again from its input, which saves memory
  freeze_norm: bool = True
  axis_name: str | None = None  # see `layers.Norm`

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """[B, height, width, 3], normalised -> f_I [B, H, W, C], not negative."""
    net, found = self.network, {}
    norm = layers.Norm(frozen=self.freeze_norm, axis_name=self.axis_name)
    normed = functools.partial(layers.Normed, norm=norm, train=train, dtype=self.dtype)
    kind = nn.remat(Bottleneck) if self.remat else Bottleneck
    x = max_pool(normed(net.width, 7, 2, activation=nn.relu, name="stem")(images))
    for stage, blocks in enumerate(net.blocks, 1):
      inner = net.width * 2 ** (stage - 1)
      for block in range(1, blocks + 1):
        stride, name = 2 if stage > 1 and block == 1 else 1, f"stage{stage}_block{block}"
        x = kind(inner, inner * net.expansion, stride, block == 1, normed, name=name)(x)
      found[2 ** (stage + 1)] = x
      if 2 ** (stage + 1) == self.maps.strides[-1]:
        break
    return self.maps.fuse(found)


def max_pool(x: jax.Array) -> jax.Array:
  """3x3 max-pooling with stride 2 and one cell around it: [B, H, W, C], not negative -> [B, ceil(H / 2), ceil(W / 2), C].

  The greatest of shifted slices, whose gradient is several times faster on CPU than that of a window reduction.
  """
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  height, width = (side - 2 for side in x.shape[1:3])
  rows = functools.reduce(jnp.maximum, (x[:, row : row + height : 2] for row in range(3)))
  return functools.reduce(jnp.maximum, (rows[:, :, column : column + width : 2] for column in range(3)))


def _spec(name: str, network: Network, **options: Any) -> BackboneSpec:
  def maps(model: Any) -> layers.Maps:
    return layers.Maps.named(model.maps, network.maps)

  return BackboneSpec(
    name,
    build=lambda model, remat=False: ResNet(network, maps(model), jnp.dtype(model.dtype), remat, model.freeze_norm),
    stride=lambda model: maps(model).strides[0],
    rounds_up=True,
    **options,
  )


def _published(depth: int, network: Network, files: Sequence[str]) -> BackboneSpec:
  """The spec of a published network; `files` are torchvision's, the newest first."""
  places = {}
  for ours, convolution, norm, shape in network.convolutions():
    places |= normed_places(ours, shape, convolution, norm)
  layout = Layout(
    title=f"torchvision's or timm's ResNet-{depth}",
    places=places,
    unused={"fc.weight": (1000, network.width * 32), "fc.bias": (1000,)},
    pixel_mean=IMAGENET_MEAN,
    pixel_std=IMAGENET_STD,
    sources=(*(f"torch:{file}" for file in files), f"hf:timm/resnet{depth}.a1_in1k/model.safetensors"),
  )
  words = f"{' or '.join(files)} of torchvision, the safetensors file of timm/resnet{depth}.a1_in1k"
  return _spec(f"resnet{depth}", network, layouts=(layout,), published=words)


SPECS = (
  _published(50, Network((3, 4, 6, 3)), ("resnet50-11ad3fa6.pth", "resnet50-0676ba61.pth")),
  _published(101, Network((3, 4, 23, 3)), ("resnet101-cd907fc2.pth", "resnet101-63fe2227.pth")),
  _spec("resnet_thin", Network((1, 2, 1), 4, 2)),
)
