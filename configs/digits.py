"""Digit scenes made on the spot: the whole system in minutes, without a download.

python train.py                                               # the saliency rule on `easy`
python train.py --config=configs/digits.py:recurrent          # the paper's rule
python train.py --config=configs/digits.py:rarl               # a sister system, docs/systems.md
python train.py --config=configs/digits.py:rlsd               # another; rlsd_ft_rpn with the scenes' own boxes
python train.py --config=configs/digits.py:mean_pool          # a control; also max_pool, score_map, whole_image, fixed_grid
python train.py --config=configs/digits.py:hard               # harder scenes; also hard:mean_pool, ...
python train.py --config=configs/digits.py:long --workdir=runs/long      # three times as many steps of stage two
python train.py --config=configs/digits.py:1.25x --workdir=runs/larger   # larger images

Expected of the default on two cores of an EPYC: about five minutes with the mean-pool control, 1.1 GB; test mAP 0.980,
coverage 0.996 (means of three seeds); mean pool 0.95; `long` 0.990. docs/results/README.md has the other heads.
"""

from configs import common

SETTINGS = ("easy", "hard", "tiny")
SCALES = ("1x", "1.25x")  # of the images, as 512 and 640 are in the paper
LENGTHS = ("short", "long")  # "long": three times as many steps of stage two
HEADS = ("saliency", *(head for head in common.HEADS if head != "saliency"))


def get_config(variant: str = ""):
  """The configuration of `SETTING:SCALE:LENGTH:HEAD`, each of which may be left out: easy, 1x, short, saliency."""
  setting, scale, length, head = common.parse(variant, "configs/digits.py", SETTINGS, SCALES, LENGTHS, HEADS)
  config = common.get_config()
  config.data.name = f"digits/{setting}"
  config.data.crop_size = (96 if setting == "hard" else 64) * (5 if scale == "1.25x" else 4) // 4
  config.data.image_size = config.data.crop_size + 8
  config.data.flip = False  # a mirrored digit is another sign

  model = config.model
  model.head = head
  common.thin(config)
  model.pixel_mean = (90.0, 90.0, 90.0)
  model.pixel_std = (64.0, 64.0, 64.0)
  model.num_regions = 8 if setting == "hard" else 6
  model.saliency.scale = 0.18 if setting == "hard" else 0.3
  model.rarl.sizes = (0.2, 0.35) if setting == "hard" else (0.3, 0.5)
  model.score_map.places = 8 if setting == "hard" else 12

  config.loss.classification = "sigmoid"
  config.loss.anchor_weight = 0.0
  config.batch_size = 16
  config.epoch_size = 6_400  # 400 steps
  config.stage_one.epochs = 3
  config.stage_two.epochs = 12 if length == "long" else 4
  config.stage_one.head = "score_map"
  config.stage_two.auxiliary_weight = 1.0
  config.evaluation.batch_size = 48
  config.evaluation.views = "centre"  # digits stay whole in it
  config.evaluation.svm_images = 3_000
  config.evaluation.svm_c = (1.0,)
  if head in common.RLSD:
    model.rlsd.steps = 7 if setting == "hard" else 5  # all labels of a scene, and END
    sides = (10, 13, 16, 20) if setting == "hard" else (12, 15, 19, 24)
    model.rpn.anchor_sizes = tuple(
      (side * config.data.crop_size / (96 if setting == "hard" else 64),) * 2 for side in sides
    )
    model.rpn.width = 64
    model.rpn.overlap = 0.3  # digits do not lie on each other, and a few regions have to do
    config.rpn.data = f"digits/source_{setting}" if head == "rlsd" else ""
    config.rpn.epochs = 2
    config.rpn.epoch_size = 6_400
    config.rpn.num_boxes = 8
  if head == "proposals":
    config.data.proposals, config.data.num_proposals = "jittered", model.num_regions
  if head == "saliency":
    config.controls, config.controls_rate = ("mean_pool",), common.THIN_RATES["mean_pool"]
  if head in common.POOLS:  # the control goes on by itself, for as long
    config.stage_one.head = head
    config.stage_two.auxiliary_weight = 0.0
  return config
