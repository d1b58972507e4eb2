"""What configurations have in common: how a variant is named, natural images as the paper has them, a thin network."""

from collections.abc import Sequence

import ml_collections

from rmam_jax import backbones, heads
from rmam_jax.config import get_config
from rmam_jax.heads.rlsd import ANCHOR_SIZES
from rmam_jax.runtime.errors import UserError

ANCHOR_IMAGE = 720  # pixels of the longer side of the images that `ANCHOR_SIZES` are for
SCALES = ("512", "640")  # the paper's N
POOLS = ("mean_pool", "max_pool", "csra", "score_map")
RLSD = (
  "rlsd",
  "rlsd_ft_rpn",
)  # reconstructed; the second's region proposal network learns from the data set's own boxes
HEADS = tuple(heads.SPECS)

# Stage two's learning rate of the thin network, the best of those tried on digit scenes (docs/results/digits.md); 2e-3
# for the others. The rival of the paper's rule in Table 3 shares its rate.
THIN_RATES = {
  "recurrent": 6e-4,
  "proposals": 6e-4,
  "score_map": 6e-3,
  "max_pool": 6e-3,
  "mean_pool": 1.8e-2,
  "whole_image": 6e-3,
}


# Those with published weights, the first of them first.
BACKBONES = tuple(
  dict.fromkeys(["efficientnet_lite0", *(spec.name for spec in backbones.SPECS.values() if spec.layouts)])
)
RECIPES = ("frozen", "tuned")  # of `photograph_config`
# Stage two's learning rate and `l2` on photographs: those found for `two_stream` and a linear layer (docs/two_stream.md),
# which the other pools share; 5e-4 and 0 for other heads.
PHOTOGRAPH_RATES = dict.fromkeys(("two_stream", *POOLS), 2e-3)
PHOTOGRAPH_L2 = dict.fromkeys(("two_stream", *POOLS), 1e-2)


def parse(variant: str, file: str, *choices: Sequence[str]) -> list[str]:
  """`A:B` -> one of each list of choices, in any order; what is left out is the first of its list."""
  names = [name for name in variant.split(":") if name]
  found = []
  for each in choices:
    chosen = [name for name in names if name in each]
    if len(chosen) > 1:
      raise UserError(f"{file}: only one of {', '.join(chosen)} can be chosen")
    found += chosen or [each[0]]
  unknown = [name for name in names if name not in found]
  if unknown:
    raise UserError(f"{file}: {unknown[0]!r} is none of {', '.join(name for each in choices for name in each)}")
  return found


def paper_config(scale: str, head: str) -> ml_collections.ConfigDict:
  """Natural images as the paper has them: one of its scales, ImageNet weights; and a head that need not be the paper's.

  For `recurrent` all is as printed. `saliency` is trained as it was found best on digit scenes: sigmoid loss, dense
  scores of stage one's head beside it. A pooling control goes on from stage one by itself.
  """
  config = get_config()
  config.weights = ""  # to be given
  config.data.image_size = int(scale)
  config.data.crop_size = int(scale) - 64
  config.model.head = head
  if head in POOLS:
    config.stage_one.head = head
  if head == "proposals":
    config.data.proposals, config.data.num_proposals = "selective_search", config.model.num_regions
    config.evaluation.views = "centre"  # which the boxes are known in
  if head == "saliency":
    config.loss.classification = "sigmoid"
    config.loss.anchor_weight = 0.0
    config.stage_one.head = "score_map"
    config.stage_two.auxiliary_weight = 1.0
    config.model.score_map.places = 9
  if head == "two_stream":  # its scores are log-odds
    config.loss.classification = "sigmoid"
  if head in RLSD:  # its scores are log-odds; the number of regions is reconstructed
    config.loss.classification = "sigmoid"
    config.model.num_regions = 20
    config.model.rpn.anchor_sizes = tuple(
      tuple(round(side * config.data.image_size / ANCHOR_IMAGE, 1) for side in anchor) for anchor in ANCHOR_SIZES
    )
  return config


def photograph_config(backbone: str, recipe: str, size: int, head: str) -> ml_collections.ConfigDict:
  """Photographs by the recipe that was found on them (docs/results/photographs.md), which is not the paper's.

  "frozen": heads on the maps of published weights, which are computed once and kept. "tuned": first the same, then the
  backbone too, at a tenth of the head's rate. Every head has the sigmoid loss.
  """
  config = get_config()
  config.weights = "imagenet"
  data, model, one, two = config.data, config.model, config.stage_one, config.stage_two
  data.image_size = data.crop_size = size
  model.backbone, model.head, model.map_norm = backbone, head, "image"
  model.region_size, model.x_width, model.lstm_width, model.z_width = (3, 3), 512, 512, 512
  model.prior = 0.05
  config.loss.classification = "sigmoid"
  config.batch_size = config.evaluation.batch_size = 32
  for stage in (one, two):
    stage.schedule, stage.warmup_steps, stage.clip_norm, stage.backbone_rate = "cosine", 50, 1.0, 0.0
  one.head = "score_map" if heads.get(head).guide == heads.DENSE_SCORES else "mean_pool"
  one.epochs, one.learning_rate, one.l2 = 3, PHOTOGRAPH_RATES[one.head], PHOTOGRAPH_L2[one.head]
  two.l2 = PHOTOGRAPH_L2.get(head, 0.0)
  two.epochs, two.learning_rate, two.auxiliary_weight = 10, PHOTOGRAPH_RATES.get(head, 5e-4), 1.0
  if head in (*POOLS, "two_stream"):  # nothing goes before it, and its dense score is its own
    one.head, one.epochs, two.auxiliary_weight = head, 0, 0.0
  if head == "saliency":
    config.loss.anchor_weight = 0.0
  if head == "recurrent":  # regions begin as those of `fixed_grid` and move a tenth as fast
    model.recurrent.anchored, model.recurrent.bias, model.recurrent.gain = True, (0.5, 0.5, 0.0, 0.0), 0.1
  if recipe == "tuned":
    data.augmentation.crop_scale = (0.5, 1.0)  # crops of so much of an image's area; evaluation sees all of it
    if heads.get(head).guide != heads.DENSE_SCORES:  # else it begins beside the head that guides it
      one.head, one.epochs, one.learning_rate, one.l2 = head, two.epochs, two.learning_rate, two.l2
      two.auxiliary_weight = 0.0
    two.epochs, two.learning_rate, two.backbone_rate = 6, two.learning_rate / 2, 0.1
  config.evaluation.views = "two"
  config.evaluation.thresholds = "global"  # a class of a few validation images allows no threshold of its own
  config.evaluation.svm_c = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
  return config


def thin(config: ml_collections.ConfigDict) -> None:
  """Makes the network one that learns from random weights, on small images, without a GPU."""
  config.weights = "none"
  model = config.model
  model.backbone = "vgg_thin"
  model.region_size = (5, 5)
  model.region_pool = 1
  model.x_width = model.lstm_width = model.z_width = 128
  for stage, rate in ((config.stage_one, 3e-3), (config.stage_two, THIN_RATES.get(model.head, 2e-3))):
    stage.learning_rate = rate
    stage.schedule = "cosine"
    stage.warmup_steps = 50
  if model.head in RLSD:
    config.rpn.learning_rate = 1e-3
    config.rpn.schedule = "cosine"
    config.rpn.warmup_steps = 50
