"""PASCAL VOC 2007 as the paper trains on it: VGG-16, its own update rule (Eq. 5) and loss (Eq. 7-14), two phases.

    python train.py --config=configs/voc.py --config.data.root=VOCdevkit --config.weights=FILE --workdir=runs/voc-512
    python train.py --config=configs/voc.py:640 ... --workdir=runs/voc-640      # N = 640
    python eval.py --workdir=runs/voc-512,runs/voc-640                          # both scales
    python train.py --config=configs/voc.py:512:saliency ...                    # another head
    python train.py --config=configs/voc.py:512:rlsd ...                        # its boxes from COCO

VOCdevkit is the folder that holds VOC2007, as the official archives are extracted; what `rmam-jax prepare voc/2007` has
prepared can stand in its place. FILE holds ImageNet weights; docs/weights.md says where to get them. The first phase, in
WORKDIR/choose, trains on `train` and chooses epochs, C and thresholds on `validation`; the second carries them to both
together and is evaluated on `test`.

The paper, mAP with ten views and SVMs: 91.3 at 512, 91.3 at 640, 91.9 for both. It does not say which average precision
that is; here it is the 11-point one of VOC 2007's devkit. None of these has been reproduced: neither the data nor the
weights could be had.

By counting, VGG-16 forward and backward on a crop of 448 is 0.37 TFLOP, and both phases at most 680,000 crops: a quarter
of an EFLOP, a day at a sustained 3 TFLOP/s; 1.65 times that at 640. Nothing for a CPU. Parameters and Adam's moments take
3.2 GB, in memory and in each checkpoint; a workdir holds up to twelve gigabytes a phase. By counting, a step keeps 9.1 GB
more at 512 and 15.0 at 640; --config.remat=True leaves 1.7 and 2.7, --config.accumulate=4 a quarter.
"""

from configs import common

SCALES = common.SCALES


def get_config(variant: str = ""):
  """The configuration of `SCALE:HEAD`, either of which may be left out: 512, recurrent."""
  config = common.paper_config(*common.parse(variant, "configs/voc.py", SCALES, common.HEADS))
  config.data.name = "voc/2007"
  config.data.final_train = "train+validation"
  config.data.expected = (("train", 2_501), ("validation", 2_510), ("train+validation", 5_011), ("test", 4_952))
  config.evaluation.ap_method = "eleven_point"
  config.model.xavier = "fan_in"  # the paper's Caffe
  if config.model.head == "rlsd":  # COCO's boxes teach where, reconstructed; those of VOC are not looked at
    config.rpn.data, config.rpn.epochs = "coco/2014", 6
  return config
