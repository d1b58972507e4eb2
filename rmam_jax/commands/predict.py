"""Says which labels images have, how sure it is and where it looked: a line of JSON for each image.

    python predict.py photo.jpg                                      # by the shipped recognizer of VOC's 20 classes
    python predict.py --workdir=digits-easy docs/scene.png           # by the shipped recognizer of digit scenes
    python predict.py --workdir=runs/voc photo.jpg more/ 'a/*.png'   # files, folders with all below them, patterns
    python predict.py --format=csv --out=found.csv --regions --pictures=drawn more/

Boxes are (left, top, right, bottom) in pixels of the original image. If a file cannot be read, stderr names it, the
others go on, and the exit status is 1.
"""

import os
import pathlib
import sys

from absl import flags

from rmam_jax import commands
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError

_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of a finished train.py run, or an exported model; hf:OWNER/NAME[@REVISION] of the Hugging Face hub; or a shipped"
  " one: photographs, digits-easy; by default photographs.",
)
_FORMAT = flags.DEFINE_enum("format", "jsonl", ["jsonl", "csv"], "JSON lines, or CSV with a header.")
_OUT = flags.DEFINE_string("out", None, "File to write; by default stdout.")
_REGIONS = flags.DEFINE_bool("regions", False, "Write all K regions of each image, not only those that won a label.")
_PICTURES = flags.DEFINE_string("pictures", None, "Folder to draw each image into, with its regions and labels.")
_TOP = flags.DEFINE_integer("top", None, "At most so many labels an image; 0 is no limit.", lower_bound=0)
_THRESHOLD = flags.DEFINE_float(
  "threshold",
  None,
  "Least probability of a label; by default the thresholds chosen in training. Where none were chosen: 0.5, or, for a"
  " recognizer trained with the softmax loss, its evaluation.top_k likeliest labels.",
  lower_bound=0,
  upper_bound=1,
)
_THRESHOLDS = flags.DEFINE_string(
  "thresholds", None, "JSON file of a threshold for each class, as the gallery copies them; in place of --threshold."
)
_VIEWS = flags.DEFINE_enum(
  "views",
  "centre",
  ["centre", "two", "five", "ten"],
  "What is seen of an image: its centre, as in training; that and its mirror image; all of it, in five windows; in ten,"
  " those of the image and of its mirror image.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images in one pass through the network.", lower_bound=1)


def main(argv: list[str]) -> None:
  from rmam_jax.inference import predict_files, predictor

  if len(argv) < 2:
    sys.exit("error: name an image, a folder or a pattern")
  commands.keep_compiled()
  with commands.reported_errors(interrupted="what was written before is whole"):
    threshold = _THRESHOLD.value
    if _THRESHOLDS.value is not None:
      if threshold is not None:
        raise UserError("--threshold and --thresholds exclude each other: leave one out")
      threshold = files.read_json(pathlib.Path(_THRESHOLDS.value))
      if not isinstance(threshold, dict):
        raise UserError(f'{_THRESHOLDS.value} must hold an object of a threshold for each class: {{"cat": 0.5}}')
    limits = {"top": _TOP.value, "threshold": threshold, "views": _VIEWS.value}
    recognizer = predictor.load(_WORKDIR.value, **limits, batch_size=_BATCH_SIZE.value)
    out, folder = (flag.value and pathlib.Path(flag.value) for flag in (_OUT, _PICTURES))
    options = {"format": _FORMAT.value, "out": out, "with_regions": _REGIONS.value, "picture_folder": folder}
    try:
      failed = predict_files.predict_files(recognizer, argv[1:], **options)
    except BrokenPipeError:  # the reader has seen enough
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      failed = 0
  sys.exit(1 if failed else 0)
