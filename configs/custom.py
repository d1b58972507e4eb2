"""Your own images, with labels in a table, JSON lines, COCO's, VOC's, Label Studio's or CVAT's files.

    FLAGS="--config=configs/custom.py --config.data.train=all.csv --config.data.split=0.8,0.1,0.1"
    rmam-jax validate $FLAGS                                                         # checks every line and every image
    python train.py $FLAGS --workdir=runs/mine
    python train.py $FLAGS --config.weights=runs/photographs --workdir=runs/mine     # begins with a model trained here

`rmam-jax init FOLDER` writes a configuration of your own that begins with this one and needs none of these flags.
Three lists are named by `data.train`, `data.validation` and `data.test`. docs/data.md says what manifests may look like,
docs/weights.md where the weights come from. The default trains heads on the maps of EfficientNet-Lite0, which are
computed once, on a laptop in minutes. Other recipes, backbones, heads and sizes:

    configs/custom.py:tuned                   then trains the backbone, too: for thousands of images, or a GPU
    configs/custom.py:resnet50:448            another backbone, larger images
    configs/custom.py:paper:512:recurrent     the paper's network, rule and schedule, on VGG-16
    configs/custom.py:thin                    a small network that begins with random weights: needs no file
"""

from configs import common

BACKBONES = (*common.BACKBONES, "thin")
SCALES = ("320", "448", *common.SCALES)
_NEEDS_BOXES = ("rlsd_ft_rpn", "proposals")  # which own images lack
HEADS = ("two_stream", *(head for head in common.HEADS if head not in ("two_stream", *_NEEDS_BOXES)))


def get_config(variant: str = ""):
  """The configuration of `BACKBONE:RECIPE:SCALE:HEAD`, each of which may be left out: the first of each list."""
  choices = BACKBONES, (*common.RECIPES, "paper"), SCALES, HEADS
  backbone, recipe, scale, head = common.parse(variant, "configs/custom.py", *choices)
  if backbone == "thin":
    config = common.paper_config("144", head)
    common.thin(config)
    config.data.crop_size = 128
    config.model.pixel_mean = (120.0, 120.0, 120.0)
    config.model.pixel_std = (60.0, 60.0, 60.0)
    config.stage_one.epochs = config.stage_two.epochs = 20
  elif recipe == "paper" or head in common.RLSD:
    config = common.paper_config(scale if scale in common.SCALES else common.SCALES[0], head)
    config.weights = "imagenet"
  else:
    config = common.photograph_config(backbone, recipe, int(scale), head)
  config.data.name = "custom"
  config.data.train = config.data.validation = config.data.test = ""  # to be given
  if config.model.head == "rlsd":
    config.rpn.data, config.rpn.epochs = "coco/2014", 6
  return config
