"""5,582 photographs of PASCAL VOC, 20 classes: a benchmark of heads and backbones in minutes, without a GPU.

    python train.py --config=configs/photographs.py --config.data.root=VOCdevkit
    python train.py --config=configs/photographs.py:vgg16:recurrent ...        # another backbone, another head
    python train.py --config=configs/photographs.py:320 ...                    # smaller images: half the time for the maps
    python train.py --config=configs/photographs.py:tuned ...                  # the backbone is trained, too: an hour
    python reproduce.py --config=configs/photographs.py --config.data.root=VOCdevkit --tables=controls --seeds=3

VOCdevkit holds VOC2007 and VOC2012, as they are extracted; lists in the package name the photographs (docs/data.md). The
weights are found by name (docs/weights.md). docs/photographs.md explains the recipes, docs/results/photographs.md has
the results.

Expected of the default, `two_stream` on the maps of EfficientNet-Lite0, on two cores: about ten minutes for the
maps, 5.7 GB in ~/.cache/rmam_jax, which every further head takes from there; then a minute or two a head.
"""

from configs import common

SCALES = ("448", "320")
HEADS = ("two_stream", *(head for head in common.HEADS if head not in ("two_stream", "proposals", *common.RLSD)))
CONTROLS = (
  "two_stream",
  "saliency",
  "recurrent",
  "fixed_grid",
  "whole_image",
  "csra",
  "score_map",
  "max_pool",
  "mean_pool",
)
_NINE = ("cat", "dog", "person", "car", "horse", "train", "sheep", "cow", "bus")  # 113 to 777 test images of each
_SIX = ("chair", "sofa", "pottedplant", "tvmonitor", "motorbike", "bottle")  # 25 to 68; of the five others next to none
CLASS_GROUPS = {"of 9": _NINE, "of 15": (*_NINE, *_SIX)}


def get_config(variant: str = ""):
  """The configuration of `BACKBONE:RECIPE:SCALE:HEAD`, each of which may be left out: the first of each list."""
  choices = common.BACKBONES, common.RECIPES, SCALES, HEADS
  backbone, recipe, scale, head = common.parse(variant, "configs/photographs.py", *choices)
  config = common.photograph_config(backbone, recipe, int(scale), head)
  config.data.name = "photographs"
  config.data.expected = (("train", 2_366), ("validation", 416), ("test", 2_800))
  return config
