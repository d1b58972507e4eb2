"""Every field of a configuration, with the paper's value where the paper gives one. `configs/` changes a few.

The fields of each backbone and head are in its own file below `backbones/` and `heads/`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import ml_collections

from rmam_jax import backbones, heads
from rmam_jax.runtime.errors import UserError
from rmam_jax.version import __version__


def get_config() -> ml_collections.ConfigDict:
  """The fields that all configurations share, locked: an unknown field is refused."""
  config = ml_collections.ConfigDict()
  config.seed = 0

  # What the backbone begins with: "imagenet", "hf:OWNER/REPO[/FILE]", a file or folder (docs/weights.md); "none": random
  # weights; "": to be given. The run sets model.pixel_mean and model.pixel_std to the preprocessing that belongs to it.
  config.weights = "none"
  config.weights_digest = ""  # which file it was; filled in by the run

  config.data = ml_collections.ConfigDict()
  config.data.name = "voc/2007"  # see rmam_jax/data/splits.py; or "custom", your own images
  config.data.root = (
    ""  # folder of VOC2007 and so on, or of prepared data; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
  )
  config.data.train = "train"  # splits, or parts of them (rmam_jax/data/splits.py); of "custom", manifests
  config.data.validation = "validation"  # for every choice; empty: nothing is chosen
  config.data.test = "test"
  config.data.final_train = ""  # if given, a second phase trains on it what the first has chosen; training/pipeline.py
  # Of "custom" alone, your own images (rmam_jax/data/manifests.py):
  config.data.images = (
    ""  # the folder that images are named relative to, or three with commas; empty: near the manifest
  )
  config.data.columns = ""  # names of a table's columns: "IMAGE,LABELS", or "IMAGE" beside columns of 0 and 1
  config.data.separator = ""  # of labels in a table; empty: |
  config.data.classes = ()  # the classes in order, or a file that names them; empty: the training labels, sorted
  config.data.split = ()  # shares, as (0.8, 0.1, 0.1), that make train, validation and test of data.train
  # Of all data sets:
  config.data.difficult = "ignore"  # labels that are neither: left out (VOC's rule), or "negative" or "positive"
  config.data.expected = ()  # pairs (split, its number of annotated images), checked
  config.data.proposals = ""  # for heads that look at proposals: one of `KINDS` of data/proposals.py
  config.data.edge_model = ""  # of "edge_boxes": OpenCV's file of a structured forest (docs/reproduce.md)
  config.data.num_proposals = 5  # as many as model.num_regions
  config.data.corrupt = "error"  # an image that cannot be read; or "skip": listed, replaced in training, not counted
  config.data.image_size = 512  # N: images are resized to N x N
  config.data.crop_size = 448  # N - 64
  config.data.flip = True  # mirror half of the training images
  config.data.augmentation = ml_collections.ConfigDict(  # of training images; see `data.augmentation.Augmentation`
    {"crop_scale": (), "crop_aspect": 4 / 3, "jitter": 0.0, "randaugment": 0, "magnitude": 0.3, "cutout": 0.0}
  )
  config.data.threads = 2  # that read ahead
  config.data.workers = 0  # processes that read, each with so many threads; 0: none but the trainer's own

  model = config.model = ml_collections.ConfigDict()
  model.backbone = "vgg16"  # or another of `backbones.SPECS`
  model.maps = ""  # which of its maps: "" the last, "8", "16", "32" that of this stride, "fused" the last two as one
  model.freeze_norm = True  # keeps batch normalisation's mean and variance; or they are the batch's (of 16 and more)
  model.dtype = "float32"  # of the backbone; or "bfloat16"
  model.map_norm = ""  # "image": each feature map is scaled so that its mean has unit root mean square; the paper: ""
  model.pixel_mean = (123.68, 116.779, 103.939)  # red, green, blue in 0..255
  model.pixel_std = (1.0, 1.0, 1.0)
  model.head = "recurrent"  # or another of `heads.SPECS`
  model.num_regions = 5  # K
  model.region_size = (7, 7)
  model.region_pool = 2  # samples per side for each of the region's cells, max-pooled
  model.align_corners = True
  model.x_width = 4096
  model.lstm_width = 4096
  model.z_width = 4096
  model.squash_cell = False  # h = o * tanh(c) instead of the printed h = o * c
  model.forget_bias = 0.0
  model.prior = 0.0  # the probability of a class that score layers begin with, their weights at 0; 0: Xavier, no bias
  model.xavier = "fan_avg"  # by which fan new layers' weights are scaled: Glorot's mean of both; or "fan_in", Caffe's

  loss = config.loss = ml_collections.ConfigDict()
  loss.classification = "euclidean"  # Eq. 7-8; or "sigmoid", "asymmetric", "focal": docs/training.md
  loss.class_weights = ()  # one number a class, in their order; or "balanced", by how rare they are in data.train
  loss.max_class_weight = 10.0  # of balanced ones
  loss.label_smoothing = 0.0  # of "sigmoid": this share of every label becomes a half
  loss.asymmetric = ml_collections.ConfigDict(  # see `ops.losses.asymmetric_loss`
    {"gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.05}
  )
  loss.focal = ml_collections.ConfigDict({"gamma": 2.0, "alpha": 0.25})  # see `ops.losses.focal_loss`
  loss.localization_weight = 0.1  # gamma
  loss.constrain_first = True  # whether l_S and l_P hold for region 1, which has no anchor
  loss.scale_weight = 1.0
  loss.anchor_weight = 0.01  # lambda_1
  loss.positive_weight = 0.1  # lambda_2
  loss.max_scale = 0.5  # alpha
  loss.min_scale = 0.1  # beta

  config.batch_size = 16
  config.accumulate = 1  # parts of a batch, in turn, where memory is short; the same but for heads that sample
  config.remat = False  # or the backward pass computes each block of the backbone again: less memory, a third more work
  config.epoch_size = 0  # records in an epoch; 0: as many as the training split has

  # Stage one fine-tunes the backbone under a control's head; stage two trains all of it with Eq. 14.
  for name in ("stage_one", "stage_two"):
    stage = config[name] = _schedule()
    stage.classification = ""  # empty: loss.classification
    stage.mixup = 0.0  # images are mixed in pairs, by shares from the Beta(mixup, mixup) distribution; 0: none are
    stage.auxiliary_weight = (
      0.0  # in stage two, of stage one's head, kept as a dense auxiliary loss; the paper has none
    )
  config.stage_one.head = "mean_pool"

  # Where metrics go (docs/training.md): "jsonl", which evaluation reads, and "tensorboard", "wandb", with commas.
  config.writers = "jsonl,tensorboard"
  config.validation_pictures = (
    4  # validation images drawn with their regions at each best epoch, for the last two; 0: none
  )

  # Heads to train beside, one after the other: both stages, as many steps on the same batches, for comparison.
  config.controls = ()
  config.controls_rate = 0.0  # of their stage two; 0: stage_two.learning_rate, as the run's

  # These may be changed after training: python eval.py --workdir=DIR --evaluation.FIELD=VALUE
  evaluation = config.evaluation = ml_collections.ConfigDict()
  evaluation.batch_size = 16  # images; a multiple of the usual numbers of devices
  # The paper's "ten", cut from the feature map; or "five"; or "centre", cropped from the image, or "two", that and its
  # mirror.
  evaluation.views = "ten"
  evaluation.mirror = (
    "image"  # of ten and two: "image" runs the backbone on the mirrored image too, "map" mirrors the map
  )
  # What feeds the SVMs: "z", "h" or "x" of the regions; or "class", of each class its own, of heads that have them.
  evaluation.feature = "z"
  evaluation.ap_method = "all_point"  # or "interpolated", "eleven_point"
  evaluation.top_k = 3  # labels an image for CP ... OF1
  evaluation.svm_solver = "newton"  # all classes at once; or "liblinear", scikit-learn's; empty: no SVMs
  evaluation.svm_images = 0  # training images for the SVMs; 0: all of them
  evaluation.svm_normalize = True  # features scaled to length 1
  evaluation.svm_c = (0.01, 0.1, 1.0, 10.0)  # the one of highest mAP on the validation split is taken
  evaluation.svm_refit = False  # once C is chosen, fit to the validation images too, where data.test is another split
  evaluation.thresholds = "per_class"  # chosen on the validation split; or "global"
  evaluation.pictures = 24

  for spec in (*backbones.SPECS.values(), *heads.SPECS.values()):
    for name, fields in spec.defaults.items():
      *path, last = name.split(".")
      schedule = {} if path else _schedule()  # a section without a dot in its name is a training
      functools.reduce(getattr, path, config)[last] = ml_collections.ConfigDict({**schedule, **fields})
  return config.lock()


def from_fields(content: Mapping[str, Any], where: str) -> ml_collections.ConfigDict:
  """The configuration that a JSON file holds, locked; lists become tuples, and missing fields take their defaults.

  Raises:
    UserError: this version does not know a field, or its value is of a wrong type; names it and `where`, the file.
  """
  config = get_config()

  def frozen(value: Any) -> Any:
    return tuple(map(frozen, value)) if isinstance(value, list) else value

  def fill(section: ml_collections.ConfigDict, fields: Mapping[str, Any], prefix: str) -> None:
    for name, value in fields.items():
      if name not in section:
        raise UserError(f"{where}: rmam_jax {__version__} knows no field {prefix}{name}")
      kind = type(section[name])
      if kind is ml_collections.ConfigDict and isinstance(value, dict):
        fill(section[name], value, f"{prefix}{name}.")
      elif type(value) not in {float: (float, int), tuple: (list, tuple)}.get(kind, (kind,)):
        raise UserError(f"{where}: {prefix}{name} must be of type {kind.__name__}, got {value!r}")
      else:
        section[name] = frozen(value)

  fill(config, content, "")
  return config


def _schedule() -> ml_collections.ConfigDict:
  """The fields of every training."""
  stage = ml_collections.ConfigDict()
  stage.epochs = 45  # 0 leaves stage one out
  stage.learning_rate = 1e-5
  stage.schedule = "step"  # or "cosine"
  stage.warmup_steps = 0
  stage.stop_epoch = 0  # ends the stage after so many epochs of its schedule; 0: after all
  stage.drop_share = 2 / 3  # of "step": after this share of the epochs the rate is divided by ten
  stage.backbone_rate = 1.0  # the backbone's rate is the learning rate times this; 0: frozen, its maps computed once
  stage.beta_1, stage.beta_2 = 0.9, 0.999  # of Adam
  # Times the sum of the squares of the new layers' matrices, not the backbone's, is added to the loss, though not to the
  # one that is shown; its gradient is not clipped.
  stage.l2 = 0.0
  stage.moments = "float32"  # Adam's, as they are kept; or "bfloat16": half the memory (docs/training.md)
  stage.weight_decay = 0.0  # of AdamW, of tensors of two and more dimensions; 0: Adam
  stage.clip_norm = 0.0  # the greatest global norm of a gradient, which is scaled down to it; 0: any
  stage.ema = 0.0  # decay of a moving average of the weights, which is validated and kept in their place; 0: none
  stage.patience = 0  # ends the stage after so many epochs without a lower validation loss; 0: never
  return stage
