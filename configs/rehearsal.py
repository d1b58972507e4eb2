"""The paper's system and its tables on photographs of PASCAL VOC, on a backbone that is not trained: an hour without a GPU.

    python reproduce.py --config=configs/rehearsal.py --config.data.root=VOCdevkit --tables=1,4,6,controls
    python train.py --config=configs/rehearsal.py:vgg16:320 --config.data.root=VOCdevkit

The data and the frozen maps are those of configs/photographs.py (docs/photographs.md). All else is the paper's as far as
such maps allow: both phases and stages, both losses, Eq. 5 and Eq. 14, two scales, random windows and mirror images,
ten views, SVMs, fusion. What differs is in docs/results/paper_on_photographs.md, with the results.
Table 3 beside them (`--tables=3`) takes the extra `proposals` and 18 minutes more.

Expected of both scales in ten views, by SVMs: 54.4 mAP of all 20 classes, most of them rare.
"""

from configs import common, photographs

BACKBONES = tuple(name for name in common.BACKBONES if name != "vit_small_dinov2")  # whose patches fit no crop here
SCALES = ("320", "448")
CLASS_GROUPS = photographs.CLASS_GROUPS
CONTROLS = ("rmam", "fixed_grid", "whole_image", "mean_pool")


def get_config(variant: str = ""):
  """The configuration of `BACKBONE:SCALE:HEAD`, each of which may be left out: the first of each list."""
  heads = ("recurrent", *(head for head in common.HEADS if head not in ("recurrent", *common.RLSD)))
  backbone, scale, head = common.parse(variant, "configs/rehearsal.py", BACKBONES, SCALES, heads)
  config = common.paper_config(scale, head)
  recipe = common.photograph_config(backbone, "frozen", int(scale), head)
  config.weights = recipe.weights
  for field in ("backbone", "map_norm", "region_size", "x_width", "lstm_width", "z_width"):
    config.model[field] = recipe.model[field]
  for name in ("stage_one", "stage_two"):
    stage, found = config[name], recipe[name]
    for field in ("backbone_rate", "schedule", "warmup_steps", "clip_norm", "epochs", "learning_rate"):
      stage[field] = found[field]
  config.stage_one.epochs = config.stage_one.epochs or 3
  config.batch_size = config.evaluation.batch_size = recipe.batch_size
  config.evaluation.thresholds = recipe.evaluation.thresholds
  config.evaluation.svm_c = recipe.evaluation.svm_c
  config.data.name = "photographs"
  config.data.final_train = "train+validation"
  config.data.expected = (("train", 2_366), ("validation", 416), ("train+validation", 2_782), ("test", 2_800))
  return config
