"""PASCAL VOC 2007 as the paper trains on it: VGG-16, its own update rule (Eq. 5) and loss (Eq. 7-14).

    python train.py --config=configs/voc.py --config.weights=FILE --workdir=runs/voc-512        N = 512; the paper: 91.3
    python train.py --config=configs/voc.py:640 --config.weights=FILE --workdir=runs/voc-640    N = 640; 91.3 (ten views)

The data have to be prepared with TFDS first; `train.py` says how. FILE holds ImageNet weights: see the README. Trains on
`train`, choosing the epoch on `validation`: expect neither the paper's figures nor a CPU to do.
"""

from configs import common

SCALES = ("512", "640")


def get_config(scale: str = "512"):
  """The configuration at one of the paper's two scales."""
  if scale not in SCALES:
    raise ValueError(f"configs/voc.py: the scale must be {' or '.join(SCALES)}, got {scale!r}")
  config = common.get_config()
  config.weights = ""  # to be given
  config.data.image_size = int(scale)
  config.data.crop_size = int(scale) - 64
  config.evaluation.ap_method = "eleven_point"
  config.stage_two.auxiliary_weight = 0.0  # the paper has none
  return config
