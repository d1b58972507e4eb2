"""Every field of a configuration, with the paper's value where the paper gives one. Other files change a few."""

from collections.abc import Sequence

import ml_collections

SCALES = ("512", "640")  # the paper's N
POOLS = ("mean_pool", "max_pool", "score_map")
RLSD = ("rlsd", "rlsd_ft_rpn")  # reconstructed; the second's localiser learns from the data set's own boxes
HEADS = ("recurrent", "saliency", "rarl", *RLSD, "fixed_grid", "proposals", "whole_image", *POOLS)

# DenseCap's anchors: width and height in pixels of an image whose longer side has 720.
ANCHORS = (
  *((45, 90), (90, 45), (64, 64), (90, 180), (180, 90), (128, 128)),
  *((181, 362), (362, 181), (256, 256), (362, 724), (724, 362), (512, 512)),
)
ANCHOR_IMAGE = 720

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


def parse(variant: str, file: str, *choices: Sequence[str]) -> list[str]:
  """`A:B` -> one of each list of choices, in any order; what is left out is the first of its list."""
  names = [name for name in variant.split(":") if name]
  found = []
  for each in choices:
    chosen = [name for name in names if name in each]
    if len(chosen) > 1:
      raise ValueError(f"{file}: only one of {', '.join(chosen)} can be")
    found += chosen or [each[0]]
  unknown = [name for name in names if name not in found]
  if unknown:
    raise ValueError(f"{file}: {unknown[0]!r} is none of {', '.join(name for each in choices for name in each)}")
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
  if head in RLSD:  # its scores are log-odds; the number of regions is reconstructed
    config.loss.classification = "sigmoid"
    config.model.num_regions = 20
    config.model.localizer.anchors = tuple(
      tuple(round(side * config.data.image_size / ANCHOR_IMAGE, 1) for side in anchor) for anchor in ANCHORS
    )
  return config


def thin(config: ml_collections.ConfigDict) -> None:
  """Makes the network one that learns from random weights, on small images, without a GPU."""
  config.weights = "none"
  model = config.model
  model.stages = ((16,), (32,), (64, 64))
  model.region_size = (5, 5)
  model.region_pool = 1
  model.x_width = model.lstm_width = model.z_width = 128
  for stage, rate in ((config.stage_one, 3e-3), (config.stage_two, THIN_RATES.get(model.head, 2e-3))):
    stage.learning_rate = rate
    stage.schedule = "cosine"
    stage.warmup_steps = 50
  if model.head in RLSD:
    config.localizer.learning_rate = 1e-3
    config.localizer.schedule = "cosine"
    config.localizer.warmup_steps = 50


def get_config() -> ml_collections.ConfigDict:
  """The fields that all configurations share, locked: an unknown field is refused."""
  config = ml_collections.ConfigDict()
  config.seed = 0

  # What the backbone begins with: a file or folder (README, "ImageNet weights"); "none": random weights; "": to be given.
  # The run puts the preprocessing that belongs to it into model.pixel_mean and model.pixel_std, whatever they were.
  config.weights = "none"
  config.weights_digest = ""  # which file it was; filled in by the run

  config.data = ml_collections.ConfigDict()
  config.data.name = "voc/2007"  # see rmam_jax/data/splits.py; or "custom", your own images
  config.data.root = ""  # folder of prepared data; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
  config.data.train = "train"  # TFDS splits, or parts of them (rmam_jax/data/splits.py); of "custom", manifests
  config.data.validation = "validation"  # for every choice; empty: nothing is chosen
  config.data.test = "test"
  config.data.final_train = ""  # if given, a second phase trains on it what the first has chosen; see run.py
  config.data.images = ""  # of "custom": the folder that images are named relative to; empty: the manifest's
  config.data.classes = ()  # of "custom": the classes in order; empty: the training labels, sorted
  config.data.difficult = "ignore"  # labels that are neither: left out (VOC's rule), or "negative" or "positive"
  config.data.expected = ()  # pairs (split, its number of annotated images), checked
  config.data.proposals = ""  # for the head "proposals": "jittered" or "selective_search" (rmam_jax/data/proposals.py)
  config.data.num_proposals = 5  # as many as model.num_regions
  config.data.corrupt = "error"  # an image that cannot be read; or "skip": listed, replaced in training, not counted
  config.data.image_size = 512  # N: images are resized to N x N
  config.data.crop_size = 448  # N - 64
  config.data.flip = True  # mirror half of the training images
  config.data.threads = 2  # that read ahead
  config.data.workers = 0  # processes that read, each with so many threads; 0: none but the trainer's own

  model = config.model = ml_collections.ConfigDict()
  model.stages = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # VGG-16
  model.dtype = "float32"  # of the backbone; or "bfloat16"
  model.pixel_mean = (123.68, 116.779, 103.939)  # red, green, blue in 0..255
  model.pixel_std = (1.0, 1.0, 1.0)
  model.head = "recurrent"  # or another of HEADS
  model.num_regions = 5  # K
  model.region_size = (7, 7)
  model.region_pool = 2  # samples per side for each of the region's cells, max-pooled
  model.align_corners = True
  model.x_width = 4096
  model.lstm_width = 4096
  model.z_width = 4096
  model.squash_cell = False  # h = o * tanh(c) instead of the printed h = o * c
  model.forget_bias = 0.0
  model.recurrent = ml_collections.ConfigDict()  # the paper's rule, Eq. 5
  model.recurrent.bias = (1.0, 1.0, 0.0, 0.0)  # the first M: the identity
  model.recurrent.weight_scale = 0.01  # variance, relative to Xavier's
  model.recurrent.anchored = False  # M corrects the centre and the anchor points, which the paper only draws it to
  model.saliency = ml_collections.ConfigDict()  # see rmam_jax/ops/next_region.py
  model.saliency.scale = 0.3
  model.saliency.inhibition = 1.2
  model.saliency.peak_width = 0.2
  model.fixed_grid = ml_collections.ConfigDict()
  model.fixed_grid.scale = 0.5
  model.score_map = ml_collections.ConfigDict()
  model.score_map.places = 1  # whose mean is a class's score; about as many as the smallest object has cells

  model.rarl = (
    ml_collections.ConfigDict()
  )  # a sister system, reconstructed: see rmam_jax/ops/rarl.py and docs/systems.md
  model.rarl.steps = 5  # T, reconstructed
  model.rarl.sizes = (80 / 512, 160 / 512, 240 / 512)  # sides of square regions, shares of the image's; reconstructed
  model.rarl.aspects = (2.0, 1.0, 0.5)  # width over height, at a size's area; reconstructed
  model.rarl.deviation = 0.2  # of a centre around its mean in training, in half images; reconstructed
  model.rarl.policy_scale = 0.01  # variance of the policy's first weights, relative to Xavier's; reconstructed
  model.rlsd = ml_collections.ConfigDict()  # see rmam_jax/ops/rlsd.py; all of it reconstructed
  model.rlsd.steps = 10  # labels that are read off an image's regions, END among them, at most
  model.rlsd.order = ()  # of the classes, by number: which is read first; empty: as they are numbered
  model.localizer = ml_collections.ConfigDict()  # finds RLSD's regions; see rmam_jax/ops/rpn.py. As in DenseCap
  model.localizer.anchors = ANCHORS  # (width, height) in pixels of the images
  model.localizer.width = 256  # filters of its 3x3 convolution
  model.localizer.overlap = 0.7  # IoU above which of two regions only the surer one is kept

  loss = config.loss = ml_collections.ConfigDict()
  loss.classification = "euclidean"  # Eq. 7-8; or "sigmoid"
  loss.localization_weight = 0.1  # gamma
  loss.scale_weight = 1.0
  loss.anchor_weight = 0.01  # lambda_1
  loss.positive_weight = 0.1  # lambda_2
  loss.max_scale = 0.5  # alpha
  loss.min_scale = 0.1  # beta
  loss.rarl = ml_collections.ConfigDict()  # of the head "rarl", in place of the localization terms
  loss.rarl.policy_weight = 1.0  # of the expected reward; reconstructed
  loss.rarl.baseline = "learned"  # or "batch", the other images' mean reward; reconstructed
  loss.rarl.baseline_weight = 1.0  # of the learned baseline's squared error; reconstructed

  config.batch_size = 16
  config.accumulate = 1  # parts of a batch, in turn, where memory is short; the same but for what RARL and RLSD sample
  config.remat = False  # or the backward pass computes each stage of the backbone again: less memory, a third more work
  config.epoch_size = 0  # records in an epoch; 0: as many as the training split has

  # Before the two stages the head's localiser, if it has one, is trained; then it is frozen.
  localizer = config.localizer = _schedule()
  localizer.data = ""  # the data set whose boxes it learns; empty: the run's own, data.train and data.validation
  localizer.train = "train"  # splits of another data set
  localizer.validation = "validation"  # empty: the last epoch counts
  localizer.epoch_size = 0  # as above, of these records
  localizer.num_boxes = 64  # of an image at most
  localizer.positive = 0.7  # IoU of an anchor that stands for a box; the best one of each does, too
  localizer.negative = 0.3  # IoU below which an anchor stands for nothing
  localizer.samples = 256  # anchors of an image that are learned from, at most half of them positive
  localizer.box_weight = 1.0  # of the offsets' loss beside the confidence's; reconstructed

  # Stage one fine-tunes the backbone under a control's head; stage two trains all of it with Eq. 14.
  config.stage_one = _stage()
  config.stage_one.head = "mean_pool"
  config.stage_two = _stage()

  # Heads to train beside, one after the other: both stages, as many steps on the same batches, for comparison.
  config.controls = ()
  config.controls_rate = 0.0  # of their stage two; 0: stage_two.learning_rate, as the run's

  # These may be changed after training: python eval.py --workdir=DIR --evaluation.FIELD=VALUE
  evaluation = config.evaluation = ml_collections.ConfigDict()
  evaluation.batch_size = 16  # images; a multiple of the usual numbers of devices
  evaluation.views = "ten"  # the paper's, cut from the feature map; or "five", or "centre", cropped from the image
  evaluation.mirror = "image"  # of the ten: "image" runs the backbone on the mirrored image too, "map" mirrors the map
  evaluation.feature = "z"  # what feeds the SVMs; or "h", "x"
  evaluation.ap_method = "all_point"  # or "interpolated", "eleven_point"
  evaluation.top_k = 3  # labels an image for CP ... OF1
  evaluation.svm_solver = "newton"  # all classes at once; or "liblinear", scikit-learn's; empty: no SVMs
  evaluation.svm_images = 0  # training images for the SVMs; 0: all of them
  evaluation.svm_normalize = True  # features scaled to length 1
  evaluation.svm_c = (0.01, 0.1, 1.0, 10.0)  # the one of highest mAP on the validation split is taken
  evaluation.thresholds = "per_class"  # chosen on the validation split; or "global"
  evaluation.pictures = 24
  return config.lock()


def _schedule() -> ml_collections.ConfigDict:
  stage = ml_collections.ConfigDict()
  stage.epochs = 45  # 0 leaves stage one out
  stage.learning_rate = 1e-5
  stage.schedule = "step"  # or "cosine"
  stage.warmup_steps = 0
  stage.stop_epoch = 0  # ends the stage after so many epochs of its schedule; 0: after all
  stage.drop_epoch = 30  # of "step": from here on the rate is divided by ten
  stage.beta_1 = 0.9  # Adam
  stage.beta_2 = 0.999
  return stage


def _stage() -> ml_collections.ConfigDict:
  stage = _schedule()
  stage.classification = ""  # empty: loss.classification
  stage.auxiliary_weight = 0.0  # in stage two, of stage one's head, kept as a dense auxiliary loss; the paper has none
  return stage
