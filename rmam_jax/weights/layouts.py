"""The published sets of VGG-16: what each tensor is called, how it lies, and the preprocessing it was trained with."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from rmam_jax.backbones import vgg

FC6_REGION = (7, 7)  # cells of pool5 that fc6 reads


class Place(NamedTuple):
  """Where a tensor of the inner form comes from."""

  source: str
  shape: tuple[int, ...]  # there
  convert: Callable[[np.ndarray], np.ndarray]


class Layout(NamedTuple):
  """A published set.

  Attributes:
    title: as people know it.
    places: the inner form's tensors, block1_conv1/kernel ... and, where the set has them, fc6/kernel and fc6/bias.
    unused: tensors of the set that are checked and not taken, with their shapes.
    pixel_mean, pixel_std: of red, green, blue in 0..255.
    checksums: "md5:..." or "sha256:..." of the published file.
  """

  title: str
  places: Mapping[str, Place]
  unused: Mapping[str, tuple[int, ...]]
  pixel_mean: tuple[float, float, float]
  pixel_std: tuple[float, float, float]
  checksums: tuple[str, ...]

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Every tensor of the set, by its own name."""
    return {place.source: place.shape for place in self.places.values()} | dict(self.unused)


def convolutions(stages) -> dict[str, tuple[int, ...]]:
  """The kernels of a VGG, HWIO, by layer and in order."""
  layers, channels = {}, 3
  for block, widths in enumerate(stages, start=1):
    for layer, width in enumerate(widths, start=1):
      layers[f"block{block}_conv{layer}"] = (3, 3, channels, width)
      channels = width
  return layers


def stages_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
  """The stages of a VGG from the shapes of its kernels; the inverse of `convolutions`."""
  blocks: dict[int, list[int]] = {}
  for name, shape in shapes.items():
    found = re.fullmatch(r"block(\d+)_conv\d+/kernel", name)
    if found and shape:
      blocks.setdefault(int(found[1]), []).append(shape[-1])
  return tuple(tuple(blocks[block]) for block in sorted(blocks))


def _same(array: np.ndarray) -> np.ndarray:
  return array


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


_VGG16 = convolutions(vgg.VGG16_STAGES)
_DEEP, _WIDE, _CLASSES = 7 * 7 * 512, 4096, 1000
_KERAS_MEAN = (123.68, 116.779, 103.939)
_TORCH_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_TORCH_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def _keras() -> dict[str, Place]:
  places = {}
  for name, shape in _VGG16.items():
    places[f"{name}/kernel"] = Place(f"{name}/kernel", shape, from_bgr if name == "block1_conv1" else _same)
    places[f"{name}/bias"] = Place(f"{name}/bias", shape[-1:], _same)
  return places


def _torch() -> dict[str, Place]:
  places, index = {}, 0
  for block, widths in enumerate(vgg.VGG16_STAGES, start=1):
    for layer in range(1, len(widths) + 1):
      name = f"block{block}_conv{layer}"
      height, width, channels, out = _VGG16[name]
      places[f"{name}/kernel"] = Place(f"features.{index}.weight", (out, channels, height, width), from_oihw)
      places[f"{name}/bias"] = Place(f"features.{index}.bias", (out,), _same)
      index += 2  # a ReLU follows
    index += 1  # a pool
  return places


LAYOUTS = (
  Layout(
    "Keras' VGG-16 without its top (Caffe's weights)",
    _keras(),
    {},
    _KERAS_MEAN,
    (1.0, 1.0, 1.0),
    ("md5:6d6bbae143d832006294945121d1f1fc",),
  ),
  Layout(
    "Keras' VGG-16 (Caffe's weights)",
    _keras()
    | {
      "fc6/kernel": Place("fc1/kernel", (_DEEP, _WIDE), _same),
      "fc6/bias": Place("fc1/bias", (_WIDE,), _same),
    },
    {
      "fc2/kernel": (_WIDE, _WIDE),
      "fc2/bias": (_WIDE,),
      "predictions/kernel": (_WIDE, _CLASSES),
      "predictions/bias": (_CLASSES,),
    },
    _KERAS_MEAN,
    (1.0, 1.0, 1.0),
    ("md5:64373286793e3c8b2b4e3219cbf3544b",),
  ),
  Layout(
    "torchvision's VGG-16",
    _torch()
    | {
      "fc6/kernel": Place("classifier.0.weight", (_WIDE, _DEEP), from_chw_rows),
      "fc6/bias": Place("classifier.0.bias", (_WIDE,), _same),
    },
    {
      "classifier.3.weight": (_WIDE, _WIDE),
      "classifier.3.bias": (_WIDE,),
      "classifier.6.weight": (_CLASSES, _WIDE),
      "classifier.6.bias": (_CLASSES,),
    },
    _TORCH_MEAN,
    _TORCH_STD,
    ("sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",),
  ),
  Layout(
    "torchvision's VGG-16, convolutions only",
    _torch(),
    {},
    _TORCH_MEAN,
    _TORCH_STD,
    (),
  ),
  Layout(
    "torchvision's VGG-16 as timm names it (vgg16.tv_in1k)",
    _torch()
    | {
      "fc6/kernel": Place("pre_logits.fc1.weight", (_WIDE, 512, *FC6_REGION), from_chw_rows),
      "fc6/bias": Place("pre_logits.fc1.bias", (_WIDE,), _same),
    },
    {
      "pre_logits.fc2.weight": (_WIDE, _WIDE, 1, 1),
      "pre_logits.fc2.bias": (_WIDE,),
      "head.fc.weight": (_CLASSES, _WIDE),
      "head.fc.bias": (_CLASSES,),
    },
    _TORCH_MEAN,
    _TORCH_STD,
    ("sha256:57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",),
  ),
)


def recognise(names) -> Layout:
  """The published set whose names are nearest to these; `tensors.check_shapes` then says what differs."""
  names = set(names)
  return min(LAYOUTS, key=lambda layout: len(names ^ set(layout.shapes)))
