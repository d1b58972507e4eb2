"""Evaluates the best epoch of a trained workdir: writes its results.json and pictures/ and prints the summary.

    python eval.py --workdir=runs/digits-easy-saliency
    python eval.py --workdir=runs/voc-512 --evaluation.views=five       # any field of the configuration's `evaluation`
    python eval.py --workdir=runs/voc-512 --protocol=all                # what others' code makes of the saved scores
    python eval.py --workdir=runs/voc-512,runs/voc-640                  # two scales fused, by every protocol
    python eval.py --workdir=runs/mine --test=new.csv                   # another test set, of the same classes
    python eval.py --workdir=runs/mine --data_root=/mnt/cats            # data that have moved since
    python eval.py --workdir=runs/voc-512 --gallery=gallery.html --figures=figures
    python eval.py --workdir=runs/coco-512 --coordinator=host0:7654 --num_processes=2 --process_id=0   # 1 on the other

Features and scores stay in the workdir: what has not changed is not computed again.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from rmam_jax import commands
from rmam_jax.config import get_config

_WORKDIR = flags.DEFINE_list("workdir", None, "Folder of a finished train.py run, or several to fuse.", required=True)
config_flags.DEFINE_config_dict(
  "evaluation", get_config().evaluation, "Changes to the evaluation: --evaluation.FIELD=VALUE."
)
_PROTOCOL = flags.DEFINE_list(
  "protocol", None, "Print these protocols, or all, from saved scores; rmam_jax/evaluation/metrics.py lists them."
)
_FUSION = flags.DEFINE_string("fusion", "mean", "How the scores of several workdirs become one: mean, max or rank.")
_TEST = flags.DEFINE_string(
  "test",
  "",
  "Another test set of the same classes, a manifest or a split; its results go to WORKDIR/tests/NAME, and nothing is"
  " chosen or fitted on it.",
)
_DATA_ROOT = flags.DEFINE_string(
  "data_root", "", "Folder that the data lie in by now; with --test of own images, that of its images."
)
_GALLERY = flags.DEFINE_string("gallery", None, "HTML file to write: one page with images, labels, regions and curves.")
_GALLERY_IMAGES = flags.DEFINE_integer(
  "gallery_images", 1000, "Show the first so many test images there; 0 shows all.", lower_bound=0
)
_FIGURES = flags.DEFINE_string("figures", None, "Folder to make, with figures like the paper's 1 and 5.")
_joined = commands.define_processes()


def main(argv: list[str]) -> None:
  from rmam_jax.training import evaluate

  commands.no_arguments(argv)
  folders = list(map(pathlib.Path, _WORKDIR.value))
  if (_PROTOCOL.value or len(folders) > 1) and (_GALLERY.value or _FIGURES.value):
    sys.exit("error: --gallery and --figures show one --workdir and no --protocol")
  changes = config_flags.get_override_values(flags.FLAGS["evaluation"])
  page, figures = (flag.value and pathlib.Path(flag.value) for flag in (_GALLERY, _FIGURES))
  shown = {"gallery_page": page, "gallery_images": _GALLERY_IMAGES.value, "figure_folder": figures}
  data = {"test": _TEST.value, "data_root": _DATA_ROOT.value}
  commands.keep_compiled()
  with commands.reported_errors(), _joined():
    if _PROTOCOL.value or len(folders) > 1:
      names = [name for name in _PROTOCOL.value or () if name != "all"]
      evaluate.print_protocols(folders, names, fusion=_FUSION.value, changes=changes, **data)
    else:
      evaluate.evaluate_and_print(folders[0], changes, **data, **shown)
