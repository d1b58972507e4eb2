"""The VGG family (Simonyan and Zisserman, 2014), up to the last convolution's ReLU: conv5_3 of VGG-16."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax.backbones.spec import FC6_REGION, BackboneSpec, Layout, Place

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
  """Blocks of 3x3 convolutions with ReLU, a 2x2 max-pool between blocks and none after the last.

  Attributes:
    blocks: the width of each convolution, block by block. The feature map's stride is 2 ** (len(blocks) - 1).
    dtype: of the computation; parameters are float32.
    remat: whether the backward pass computes each block again from its input, instead of keeping what is inside.
  """

  blocks: Sequence[Sequence[int]] = BLOCKS["vgg16"]
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """[B, height, width, 3], normalised -> f_I [B, H, W, C], not negative."""
    x = images.astype(self.dtype)
    for number in range(1, len(self.blocks) + 1):
      run = functools.partial(VGG._block, number=number)
      x = (nn.remat(run) if self.remat else run)(self, x)
    return x

  def _block(self, x: jax.Array, *, number: int) -> jax.Array:
    if number > 1:
      x = max_pool(x)
    for layer, width in enumerate(self.blocks[number - 1], start=1):
      name = f"block{number}_conv{layer}"
      init = nn.initializers.he_normal()
      x = nn.relu(nn.Conv(width, (3, 3), dtype=self.dtype, kernel_init=init, name=name)(x))
    return x


def convolutions(blocks: Sequence[Sequence[int]]) -> dict[str, tuple[int, ...]]:
  """The shapes of the kernels, HWIO, by layer and in order."""
  layers, channels = {}, 3
  for number, widths in enumerate(blocks, start=1):
    for layer, width in enumerate(widths, start=1):
      layers[f"block{number}_conv{layer}"] = (3, 3, channels, width)
      channels = width
  return layers


def from_bgr(kernel: np.ndarray) -> np.ndarray:
  """The first kernel of a network that takes blue, green, red, HWIO -> of one that takes red, green, blue."""
  return kernel[:, :, ::-1]


def from_oihw(kernel: np.ndarray) -> np.ndarray:
  """torch's order of a convolution's kernel -> HWIO."""
  return kernel.transpose(2, 3, 1, 0)


def from_chw_rows(kernel: np.ndarray, region: tuple[int, int] = FC6_REGION) -> np.ndarray:
  """A dense layer of torch [out, C*h*w] (or, as a convolution, [out, C, h, w]) -> [h*w*C, out], as `W_fx` flattens."""
  out = kernel.shape[0]
  return kernel.reshape(out, -1, *region).transpose(2, 3, 1, 0).reshape(-1, out)


_VGG16 = convolutions(BLOCKS["vgg16"])
_DEEP, _WIDE, _CLASSES = 7 * 7 * 512, 4096, 1000
_KERAS = (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)
_TORCH = (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)


def _keras() -> dict[str, Place]:
  places = {}
  for name, shape in _VGG16.items():
    convert = [from_bgr] if name == "block1_conv1" else []
    places[f"{name}/kernel"] = Place(f"{name}/kernel", shape, *convert)
    places[f"{name}/bias"] = Place(f"{name}/bias", shape[-1:])
  return places


def _torch() -> dict[str, Place]:
  places, index, before = {}, 0, "1"
  for name, (height, width, channels, out) in _VGG16.items():
    number = name.removeprefix("block").split("_")[0]
    index += number != before  # a pool
    places[f"{name}/kernel"] = Place(f"features.{index}.weight", (out, channels, height, width), from_oihw)
    places[f"{name}/bias"] = Place(f"features.{index}.bias", (out,))
    index, before = index + 2, number  # a ReLU follows
  return places


def _fc6(kernel: Place, bias: str) -> dict[str, Place]:
  return {"fc6/kernel": kernel, "fc6/bias": Place(bias, (_WIDE,))}


LAYOUTS = (
  Layout(
    "Keras' VGG-16 without its top (Caffe's weights)", _keras(), {}, *_KERAS, ("md5:6d6bbae143d832006294945121d1f1fc",)
  ),
  Layout(
    "Keras' VGG-16 (Caffe's weights)",
    _keras() | _fc6(Place("fc1/kernel", (_DEEP, _WIDE)), "fc1/bias"),
    {
      **{"fc2/kernel": (_WIDE, _WIDE), "fc2/bias": (_WIDE,)},
      **{"predictions/kernel": (_WIDE, _CLASSES), "predictions/bias": (_CLASSES,)},
    },
    *_KERAS,
    ("md5:64373286793e3c8b2b4e3219cbf3544b",),
  ),
  Layout(
    "torchvision's VGG-16",
    _torch() | _fc6(Place("classifier.0.weight", (_WIDE, _DEEP), from_chw_rows), "classifier.0.bias"),
    {
      **{"classifier.3.weight": (_WIDE, _WIDE), "classifier.3.bias": (_WIDE,)},
      **{"classifier.6.weight": (_CLASSES, _WIDE), "classifier.6.bias": (_CLASSES,)},
    },
    *_TORCH,
    ("sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",),
  ),
  Layout("torchvision's VGG-16, convolutions only", _torch(), {}, *_TORCH),
  Layout(
    "torchvision's VGG-16 as timm names it (vgg16.tv_in1k)",
    _torch() | _fc6(Place("pre_logits.fc1.weight", (_WIDE, 512, *FC6_REGION), from_chw_rows), "pre_logits.fc1.bias"),
    {
      **{"pre_logits.fc2.weight": (_WIDE, _WIDE, 1, 1), "pre_logits.fc2.bias": (_WIDE,)},
      **{"head.fc.weight": (_CLASSES, _WIDE), "head.fc.bias": (_CLASSES,)},
    },
    *_TORCH,
    ("sha256:57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",),
  ),
)

_PUBLISHED = (
  "vgg16_weights_tf_dim_ordering_tf_kernels.h5 of Keras, which the paper's weights are, with fc6 (or _notop.h5 without),"
  " or vgg16-397923af.pth of torchvision"
)


def _spec(name: str, **options: Any) -> BackboneSpec:
  def blocks(model: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, model.vgg.blocks)) or BLOCKS[name]

  return BackboneSpec(
    name,
    build=lambda model, remat=False: VGG(blocks(model), jnp.dtype(model.dtype), remat),
    stride=lambda model: 2 ** (len(blocks(model)) - 1),
    defaults={"model.vgg": {"blocks": ()}},  # the widths of its convolutions, block by block; empty: the name's
    **options,
  )


SPECS = (_spec("vgg16", layouts=LAYOUTS, published=_PUBLISHED), _spec("vgg_thin"))
