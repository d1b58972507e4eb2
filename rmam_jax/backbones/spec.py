"""What a backbone says of itself, and how published files of weights name its tensors."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

# Of red, green and blue in 0..255, as most networks in torch were trained.
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
FC6_REGION = (7, 7)  # cells of the map that fc6, the first dense layer of a published set, reads


class Place(NamedTuple):
  """Where one of our tensors comes from."""

  source: str
  shape: tuple[int, ...]  # there
  convert: Callable[[np.ndarray], np.ndarray] = lambda array: array


def from_oihw(kernel: np.ndarray) -> np.ndarray:
  """torch's order of a convolution's kernel -> HWIO."""
  return kernel.transpose(2, 3, 1, 0)


def normed_places(ours: str, shape: tuple[int, int, int, int], convolution: str, norm: str) -> dict[str, Place]:
  """A convolution with batch normalisation of a set published in torch.

  From our layer and the shape of its kernel, HWIO, and the set's names of the two -> our five tensors.
  """
  height, width, channels, out = shape
  statistics = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
  kernel = Place(f"{convolution}.weight", (out, channels, height, width), from_oihw)
  others = {f"{ours}/{our}": Place(f"{norm}.{their}", (out,)) for our, their in statistics.items()}
  return {f"{ours}/kernel": kernel, **others}


def convolution_places(ours: str, theirs: str, shape: tuple[int, int, int, int]) -> Iterator[tuple[str, Place]]:
  """A convolution with a bias of a set published in torch; `shape` is our kernel's, HWIO."""
  height, width, channels, out = shape
  yield f"{ours}/kernel", Place(f"{theirs}.weight", (out, channels, height, width), from_oihw)
  yield f"{ours}/bias", Place(f"{theirs}.bias", (out,))


def dense_places(ours: str, theirs: str, channels: int, out: int) -> Iterator[tuple[str, Place]]:
  """A dense layer of a set published in torch."""
  yield f"{ours}/kernel", Place(f"{theirs}.weight", (out, channels), np.transpose)
  yield f"{ours}/bias", Place(f"{theirs}.bias", (out,))


def norm_places(ours: str, theirs: str, width: int) -> Iterator[tuple[str, Place]]:
  """A layer normalisation of a set published in torch."""
  yield f"{ours}/scale", Place(f"{theirs}.weight", (width,))
  yield f"{ours}/bias", Place(f"{theirs}.bias", (width,))


class Layout(NamedTuple):
  """A published set of weights."""

  title: str  # as people know it
  # By our names: LAYER/kernel and LAYER/bias, and where the set has them fc6/kernel [h*w*C, out] and fc6/bias.
  places: Mapping[str, Place]
  # Tensors of the set that are not taken, with their shapes: most are its classifier. A file may lack them, or have a
  # classifier of its own instead.
  unused: Mapping[str, tuple[int, ...]]
  pixel_mean: tuple[float, float, float]  # that it was trained with, of red, green, blue in 0..255
  pixel_std: tuple[float, float, float]
  checksum: str = ""  # "md5:..." or "sha256:..." of the published file
  # Where other tools keep or publish the file, best first: "torch:FILE" and "keras:FILE" (in their caches),
  # "package:DISTRIBUTION/PATH" (inside an installed package), "hf:OWNER/REPO/FILE" (the Hugging Face hub).
  sources: tuple[str, ...] = ()

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Every tensor of the set, by its own name."""
    return {place.source: place.shape for place in self.places.values()} | dict(self.unused)


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
  """A network from normalised images [B, height, width, 3] to a feature map [B, H, W, C].

  Its module is called with the images and, as `train`, whether it trains. What it learns then without a gradient it puts
  in the collection "statistics", by the paths of the parameters in whose place they go. If it has an attribute
  `axis_name`, that is set under `jax.pmap`.
  """

  name: str  # what `model.backbone` says
  # The `model` section of a configuration, and `remat`, whether the backward pass computes its blocks again -> the
  # module, whose input may have any size that its stride divides.
  build: Callable[..., nn.Module]
  stride: Callable[[Any], int]  # the `model` section -> pixels between neighbouring cells of the map
  rounds_up: bool = False  # whether the pixels beyond the last whole cell make one more, or are not seen
  # Its own sections of the configuration, by their dotted names.
  defaults: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  layouts: Sequence[Layout] = ()  # published sets of weights that fill it
  published: str = ""  # in words, the files that users can get
  # Networks whose files are taken for its own: what to say of each, and the names of its tensors.
  lookalikes: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
