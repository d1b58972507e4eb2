"""Your own images, with labels in a CSV, JSONL or COCO-style JSON file, or a VOC-style folder of XML files.

    FLAGS="--config=configs/custom.py --config.data.train=train.csv --config.data.validation=val.csv
           --config.data.test=test.csv"
    python -m rmam_jax.data.validate $FLAGS                                     checks every line and every image
    python train.py $FLAGS --config.weights=FILE --workdir=runs/mine
    python train.py $FLAGS --config.weights=runs/voc-512 --workdir=runs/mine    begins with a model trained here

FILE holds ImageNet weights; the README says where to get them, and how manifests look. `configs/custom.py:640` takes
larger images, `configs/custom.py:512:recurrent` the paper's rule; a head after the scale chooses it, the default being
the saliency localiser. Nothing is known of the score on your images. The time is that of configs/voc.py, by the number
of images; --config.stage_one.epochs and --config.stage_two.epochs shorten it.
"""

from configs import common

SCALES = common.SCALES
HEADS = ("saliency", *(head for head in common.HEADS if head != "saliency"))


def get_config(variant: str = ""):
  """The configuration of `SCALE:HEAD`, either of which may be left out: 512, saliency."""
  config = common.paper_config(*common.parse(variant, "configs/custom.py", SCALES, HEADS))
  config.data.name = "custom"
  config.data.train = config.data.validation = config.data.test = ""  # to be given
  if config.model.head in common.RLSD:
    config.localizer.data, config.localizer.epochs, config.localizer.drop_epoch = "coco/2014", 6, 4
  return config
