"""The VGG family (Simonyan and Zisserman, 2014), up to the last convolution's ReLU: conv5_3 of VGG-16."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax.backbones import layers
from rmam_jax.backbones.spec import FC6_REGION, IMAGENET_MEAN, IMAGENET_STD, BackboneSpec, Layout, Place, from_oihw

# The width of each 3x3 convolution, block by block.
BLOCKS = {
  "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
  "vgg_thin": ((16,), (32,), (64, 64)),
}


def max_pool(x: jax.Array) -> jax.Array:
  """2x2 max-pooling with stride 2: [B, H, W, C] -> [B, H // 2, W // 2, C].

  The greatest of four shifted slices, whose gradient is several times faster on CPU than that of a window reduction.
  """
  height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
  rows = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
  return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


class VGG(nn.Module):
  """Blocks of 3x3 convolutions with ReLU, a 2x2 max-pool between blocks and none after the last."""

  blocks: Sequence[Sequence[int]] = BLOCKS["vgg16"]  # widths; the last map's stride is 2 ** (len(blocks) - 1)
  dtype: jnp.dtype = jnp.float32  # of the computation; parameters are float32
  remat: bool = False  # whether the backward pass computes each block again from its input, which saves memory
  maps: layers.Maps | None = None  # those that are taken; None: the last

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """[B, height, width, 3], normalised -> f_I [B, H, W, C], not negative."""
    x, found, maps = images.astype(self.dtype), {}, self.maps or layers.Maps((2 ** (len(self.blocks) - 1),))
    for number in range(1, len(self.blocks) + 1):
      run = functools.partial(VGG._block, number=number)
      x = (nn.remat(run) if self.remat else run)(self, x)
      found[2 ** (number - 1)] = x
      if 2 ** (number - 1) == maps.strides[-1]:
        break
    return maps.fuse(found)

  def _block(self, x: jax.Array, *, number: int) -> jax.Array:
    if number > 1:
      x = max_pool(x)
    for layer, width in enumerate(self.blocks[number - 1], start=1):
      init, name = nn.initializers.he_normal(), f"block{number}_conv{layer}"
      x = nn.relu(nn.Conv(width, (3, 3), dtype=self.dtype, kernel_init=init, name=name)(x))
    return x


def convolutions(blocks: Sequence[Sequence[int]]) -> dict[str, tuple[int, ...]]:
  """The shapes of the kernels, HWIO, by layer and in order."""
  names = [f"block{n}_conv{layer}" for n, widths in enumerate(blocks, 1) for layer in range(1, len(widths) + 1)]
  widths = [3, *itertools.chain(*blocks)]
  return {name: (3, 3, *pair) for name, pair in zip(names, itertools.pairwise(widths), strict=True)}


def from_bgr(kernel: np.ndarray) -> np.ndarray:
  """The first kernel of a network that takes blue, green, red, HWIO -> of one that takes red, green, blue."""
  return kernel[:, :, ::-1]


def from_chw_rows(kernel: np.ndarray, region: tuple[int, int] = FC6_REGION) -> np.ndarray:
  """A dense layer of torch [out, C*h*w] (or, as a convolution, [out, C, h, w]) -> [h*w*C, out], as `W_fx` flattens."""
  out = kernel.shape[0]
  return kernel.reshape(out, -1, *region).transpose(2, 3, 1, 0).reshape(-1, out)


_VGG16 = convolutions(BLOCKS["vgg16"])
_KERAS = [(name, name, shape, from_bgr if name == "block1_conv1" else np.asarray) for name, shape in _VGG16.items()]
# How many convolutions each block of the published networks has.
_DEPTHS = {"VGG-11": (1, 1, 2, 2, 2), "VGG-13": (2, 2, 2, 2, 2), "VGG-16": (2, 2, 3, 3, 3), "VGG-19": (2, 2, 4, 4, 4)}


def _indices(title: str, layers: int = 2) -> list[int]:
  """Of the convolutions among torchvision's `features`: each has `layers` with its ReLU, and each block ends in a pool."""
  depths = _DEPTHS[title]
  return [layers * (sum(depths[:block]) + n) + block for block, depth in enumerate(depths) for n in range(depth)]


_TORCH = [
  (name, f"features.{index}", (out, channels, height, width), from_oihw)
  for index, (name, (height, width, channels, out)) in zip(_indices("VGG-16"), _VGG16.items(), strict=True)
]


def _layout(
  title: str, checksum: str, sources: Sequence[str], convolutions: list[tuple], *dense: tuple[str, tuple[int, ...]]
) -> Layout:
  """A published set: `_KERAS` or `_TORCH`, and dense layers with the shapes of their kernels; the first is fc6."""
  if convolutions is _KERAS:
    kernel, bias, out, from_fc6 = "/kernel", "/bias", -1, np.asarray
    mean, std = (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)
  else:
    kernel, bias, out, from_fc6 = ".weight", ".bias", 0, from_chw_rows
    mean, std = IMAGENET_MEAN, IMAGENET_STD
  places, unused = {}, {}
  for ours, theirs, shape, convert in (*convolutions, *(("fc6", *layer, from_fc6) for layer in dense[:1])):
    places[f"{ours}/kernel"] = Place(theirs + kernel, shape, convert)
    places[f"{ours}/bias"] = Place(theirs + bias, (shape[out],))
  for theirs, shape in dense[1:]:
    unused |= {theirs + kernel: shape, theirs + bias: (shape[out],)}
  return Layout(title, places, unused, mean, std, checksum, tuple(sources))


# Best first: those with fc6, and of these the one whose network the paper began with.
LAYOUTS = (
  _layout(
    *("Keras' VGG-16 (Caffe's weights)", "md5:64373286793e3c8b2b4e3219cbf3544b"),
    *(["keras:vgg16_weights_tf_dim_ordering_tf_kernels.h5"], _KERAS),
    *(("fc1", (25_088, 4096)), ("fc2", (4096, 4096)), ("predictions", (4096, 1000))),
  ),
  _layout(
    *("torchvision's VGG-16", "sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"),
    *(["torch:vgg16-397923af.pth"], _TORCH),
    *(("classifier.0", (4096, 25_088)), ("classifier.3", (4096, 4096)), ("classifier.6", (1000, 4096))),
  ),
  _layout(
    "torchvision's VGG-16 as timm names it (vgg16.tv_in1k)",
    "sha256:57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",
    *(["hf:timm/vgg16.tv_in1k/model.safetensors"], _TORCH),
    *(("pre_logits.fc1", (4096, 512, *FC6_REGION)), ("pre_logits.fc2", (4096, 4096, 1, 1)), ("head.fc", (1000, 4096))),
  ),
  _layout(
    *("Keras' VGG-16 without its top (Caffe's weights)", "md5:6d6bbae143d832006294945121d1f1fc"),
    *(["keras:vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"], _KERAS),
  ),
  _layout("torchvision's VGG-16, convolutions only", "", [], _TORCH),
)


def _lookalikes() -> dict[str, frozenset[str]]:
  """The other published networks of the family by torchvision's names, and Keras' VGG-19."""
  found = {}
  for title in _DEPTHS:
    plain = {f"features.{index}.{role}" for index in _indices(title) for role in ("weight", "bias")}
    if title != "VGG-16":
      found[f"{title}; model.backbone=vgg16 is VGG-16"] = frozenset(plain)
    roles = [(0, ("weight", "bias")), (1, ("weight", "bias", "running_mean", "running_var"))]
    found[f"{title} with batch normalisation; model.backbone=vgg16 has none"] = frozenset(
      f"features.{index + after}.{role}" for index in _indices(title, 3) for after, each in roles for role in each
    )
  deeper = [*_VGG16, *(f"block{number}_conv4" for number in (3, 4, 5))]
  found["Keras' VGG-19; model.backbone=vgg16 is VGG-16"] = frozenset(
    f"{layer}/{role}" for layer in deeper for role in ("kernel", "bias")
  )
  return found


_PUBLISHED = (
  "vgg16_weights_tf_dim_ordering_tf_kernels.h5 of Keras, which the paper's weights are, with fc6 (or _notop.h5 without),"
  " vgg16-397923af.pth of torchvision"
)


_RMS = (1.24, 2.23, 3.28, 1.60, 0.74)  # of each block's map on photographs, with torchvision's convolutions


def _spec(name: str, rms: Sequence[float] = (), **options: Any) -> BackboneSpec:
  def blocks(model: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, model.vgg.blocks)) or BLOCKS[name]

  def maps(model: Any) -> layers.Maps:
    given = blocks(model)
    return layers.Maps.named(
      model.maps, {2**n: rms[n] if rms and given == BLOCKS[name] else 1.0 for n in range(len(given))}
    )

  return BackboneSpec(
    name,
    build=lambda model, remat=False: VGG(blocks(model), jnp.dtype(model.dtype), remat, maps(model)),
    stride=lambda model: maps(model).strides[0],
    defaults={"model.vgg": {"blocks": ()}},  # the widths of its convolutions, block by block; empty: the name's
    **options,
  )


SPECS = (
  _spec("vgg16", layouts=LAYOUTS, published=_PUBLISHED, lookalikes=_lookalikes(), rms=_RMS),
  _spec("vgg_thin"),
)
