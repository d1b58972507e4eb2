"""MS-COCO 2014 as the paper trains on it: VGG-16, its own update rule (Eq. 5) and loss (Eq. 7-14).

    python train.py --config=configs/coco.py --config.data.root=coco --config.weights=FILE --workdir=runs/coco-512
    python train.py --config=configs/coco.py:640 ... --workdir=runs/coco-640                # N = 640
    python eval.py --workdir=runs/coco-512,runs/coco-640 --protocol=paper                   # both scales
    python train.py --config=configs/coco.py:512:saliency ...                               # another head
    python train.py --config=configs/coco.py:512:rlsd ...                                   # its boxes from VOC

coco is the folder that holds annotations/, train2014/ and val2014/, as the official archives are extracted; what
`rmam-jax prepare coco/2014` has prepared can stand in its place. FILE holds ImageNet weights; docs/weights.md says where
to get them. Trains on the 82,081 labelled images of `train2014` less 4,000, the smallest by a hash of their names, on
which epoch, C and thresholds are chosen; the SVMs are then fitted to all of them. Evaluated on the 40,137 of `val2014`.

The paper, ten views and SVMs: mAP 72.2 at 512, 72.3 at 640, 73.4 for both; top 3, both scales: CF1 67.4, OF1 72.0. None
of these has been reproduced: neither the data nor the weights could be had.

By counting (see configs/voc.py) the two stages are 7 million crops, 2.6 EFLOP at 512: ten days at a sustained 3 TFLOP/s,
hours on a pod. The features for the SVMs take 1.3 GB of the host's memory and their solver 3.6; what the devices need is
in configs/voc.py.
"""

from configs import common

SCALES = common.SCALES


def get_config(variant: str = ""):
  """The configuration of `SCALE:HEAD`, either of which may be left out: 512, recurrent."""
  config = common.paper_config(*common.parse(variant, "configs/coco.py", SCALES, common.HEADS))
  config.data.name = "coco/2014"
  config.data.train, config.data.validation, config.data.test = "train:rest-4000", "train:held-4000", "validation"
  config.data.expected = (("train", 82_081), ("validation", 40_137))
  config.data.workers = 8
  config.model.xavier = "fan_in"  # the paper's Caffe
  config.evaluation.svm_images = 0
  config.evaluation.svm_refit = True  # on all 82,081 images, as the paper's
  if config.model.head == "rlsd":  # VOC's boxes teach where, reconstructed; those of COCO are not looked at
    config.rpn.data, config.rpn.train, config.rpn.validation = "voc/2007", "train+validation", "test"
  return config
