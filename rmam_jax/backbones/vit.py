"""The vision transformer (Dosovitskiy et al., 2020) of DINOv2 (Oquab et al., 2023); the map is its last patch tokens."""

import functools
from collections.abc import Iterator
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
from rmam_jax.runtime.errors import UserError


class Network(NamedTuple):
  """What makes a network of this family."""

  patch: int  # side of a patch in pixels
  width: int  # of a token
  blocks: int
  heads: int
  grid: int  # patches a side that its position embedding was trained with; for others it is resized

  @property
  def maps(self) -> dict[int, float]:
    """The map by its stride, with its RMS on photographs, which nobody measured."""
    return {self.patch: 1.0}


class Block(nn.Module):
  heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Tokens [B, T, C] -> [B, T, C]."""
    width, dense = x.shape[-1], functools.partial(nn.Dense, dtype=self.dtype)
    ones = functools.partial(self.param, init_fn=nn.initializers.ones, shape=(width,))
    norm = functools.partial(layers.layer_norm, self.dtype)
    qkv = dense(3 * width, name="qkv")(norm(name="norm1")(x))
    q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, self.heads, width // self.heads), 2, 0)
    y = dense(width, name="merge")(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
    x = x + y * ones("layer_scale1").astype(self.dtype)
    y = nn.gelu(dense(4 * width, name="expand")(norm(name="norm2")(x)), approximate=False)
    y = dense(width, name="project")(y)
    return x + y * ones("layer_scale2").astype(self.dtype)


class VisionTransformer(nn.Module):
  """All of the network, up to the norm behind its last block."""

  network: Network
  maps: layers.Maps  # the only one there is
  dtype: jnp.dtype = jnp.float32  # of the computation; parameters are float32
  remat: bool = False  # whether the backward pass computes each block again from its input, which saves memory

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """[B, height, width, 3], normalised -> f_I [B, H, W, C]; raises UserError for a side that is not of whole patches."""
    net = self.network
    if any(side % net.patch for side in images.shape[1:3]):
      raise UserError(
        f"its patches have {net.patch} x {net.patch} pixels, and images of {images.shape[1]} x {images.shape[2]} are not"
        " made of whole ones: set data.crop_size and data.image_size to multiples"
      )
    x = layers.patches(net.width, net.patch, self.dtype, name="embed")(images)
    init, (height, width) = nn.initializers.truncated_normal(0.02), x.shape[1:3]
    first = self.param("class_token", init, (net.width,))
    positions = self.param("positions", init, (1 + net.grid**2, net.width))  # of the class token, then row by row
    grid = positions[1:].reshape(net.grid, net.grid, -1)
    if (height, width) != (net.grid, net.grid):
      grid = jax.image.resize(grid, (height, width, net.width), "cubic")
    x = (x + grid.astype(self.dtype)).reshape(x.shape[0], -1, net.width)
    first = jnp.broadcast_to((first + positions[0]).astype(self.dtype), (x.shape[0], 1, net.width))
    x = jnp.concatenate([first, x], axis=1)
    kind = nn.remat(Block) if self.remat else Block
    for block in range(1, net.blocks + 1):
      x = kind(net.heads, self.dtype, name=f"block{block}")(x)
    x = layers.layer_norm(self.dtype, name="norm")(x)[:, 1:]
    return self.maps.fuse({net.patch: x.reshape(x.shape[0], height, width, net.width)})


def _places(net: Network) -> Iterator[tuple[str, Place]]:
  yield "class_token", Place("cls_token", (1, 1, net.width), np.ravel)
  yield "positions", Place("pos_embed", (1, 1 + net.grid**2, net.width), lambda array: array[0])
  yield from convolution_places("embed", "patch_embed.proj", (net.patch, net.patch, 3, net.width))
  yield from norm_places("norm", "norm", net.width)
  for block in range(net.blocks):
    ours, theirs = f"block{block + 1}", f"blocks.{block}"
    for part in (1, 2):
      yield f"{ours}/layer_scale{part}", Place(f"{theirs}.ls{part}.gamma", (net.width,))
      yield from norm_places(f"{ours}/norm{part}", f"{theirs}.norm{part}", net.width)
    yield from dense_places(f"{ours}/qkv", f"{theirs}.attn.qkv", net.width, 3 * net.width)
    yield from dense_places(f"{ours}/merge", f"{theirs}.attn.proj", net.width, net.width)
    yield from dense_places(f"{ours}/expand", f"{theirs}.mlp.fc1", net.width, 4 * net.width)
    yield from dense_places(f"{ours}/project", f"{theirs}.mlp.fc2", 4 * net.width, net.width)


def _layout(title: str, source: str, **unused: tuple[int, ...]) -> Layout:
  return Layout(title, dict(_places(SMALL)), unused, IMAGENET_MEAN, IMAGENET_STD, sources=(source,))


def _spec(name: str, network: Network, **options: Any) -> BackboneSpec:
  def build(model: Any, remat: bool = False) -> VisionTransformer:
    return VisionTransformer(network, layers.Maps.named(model.maps, network.maps), jnp.dtype(model.dtype), remat)

  return BackboneSpec(name, build=build, stride=lambda model: network.patch, **options)


SMALL = Network(patch=14, width=384, blocks=12, heads=6, grid=37)
LAYOUTS = (
  _layout("DINOv2's ViT-S/14", "torch:dinov2_vits14_pretrain.pth", mask_token=(1, 384)),
  _layout("timm's ViT-S/14 of DINOv2", "hf:timm/vit_small_patch14_dinov2.lvd142m/model.safetensors"),
)
_PUBLISHED = "dinov2_vits14_pretrain.pth of DINOv2, the safetensors file of timm/vit_small_patch14_dinov2.lvd142m"
SPECS = (
  _spec("vit_small_dinov2", SMALL, layouts=LAYOUTS, published=_PUBLISHED),
  _spec("vit_thin", Network(patch=4, width=8, blocks=2, heads=2, grid=4)),
)
