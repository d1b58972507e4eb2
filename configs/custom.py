"""Your own images, with labels in a table, JSON lines, COCO's, VOC's, Label Studio's or CVAT's files.

    rmam-jax validate --config=configs/custom.py --config.data.train=all.csv --config.data.split=0.8,0.1,0.1
    python train.py --config=configs/custom.py --config.data.train=all.csv --config.data.split=0.8,0.1,0.1
        --config.weights=FILE --workdir=runs/mine

Three lists are named by `data.train`, `data.validation` and `data.test`. FILE holds ImageNet weights (docs/weights.md),
or is the workdir of an earlier run. docs/data.md says what manifests may look like. `configs/custom.py:640` takes
larger images, `configs/custom.py:512:recurrent` the paper's rule; a head after the scale chooses it, the default being
the saliency rule. Nothing is known of the score on your images. The time is that of configs/voc.py, by the number of
images; --config.stage_one.epochs and --config.stage_two.epochs shorten it. `configs/custom.py:thin` is a small network
on images of 144 pixels that begins with random weights: a first try without a GPU.
"""

from configs import common

SCALES = common.SCALES
_NEEDS_BOXES = ("rlsd_ft_rpn", "proposals")  # which own images lack
HEADS = ("saliency", *(head for head in common.HEADS if head not in ("saliency", *_NEEDS_BOXES)))


def get_config(variant: str = ""):
  """The configuration of `SCALE:HEAD`, either of which may be left out: 512, saliency."""
  scale, head = common.parse(variant, "configs/custom.py", (*SCALES, "thin"), HEADS)
  config = common.paper_config("144" if scale == "thin" else scale, head)
  if scale == "thin":
    common.thin(config)
    config.data.crop_size = 128
    config.model.pixel_mean = (120.0, 120.0, 120.0)
    config.model.pixel_std = (60.0, 60.0, 60.0)
    config.stage_one.epochs = config.stage_two.epochs = 20
  config.data.name = "custom"
  config.data.train = config.data.validation = config.data.test = ""  # to be given
  if config.model.head == "rlsd":
    config.rpn.data, config.rpn.epochs, config.rpn.drop_epoch = "coco/2014", 6, 4
  return config
