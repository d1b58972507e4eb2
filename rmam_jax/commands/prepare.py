"""Prepares VOC 2007 or MS-COCO 2014 by their TFDS builders, in array_record format; needs the extra `prepare`.

    rmam-jax prepare voc/2007 --archives=DIR     # from the official archives in DIR, without network
    rmam-jax prepare coco/2014                   # downloads them first

The same command again goes on where it was stopped: archives that were verified and unpacked are used again, a
half-made data set is removed.
"""

import sys

from absl import flags

from rmam_jax import commands
from rmam_jax.data.prepare import ARCHIVES, prepare

_ARCHIVES = flags.DEFINE_string("archives", "", "Folder with the official archives; by default they are downloaded.")
_DATA_ROOT = flags.DEFINE_string(
  "data_root", "", "Folder of prepared data; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."
)


def main(argv: list[str]) -> None:
  if len(argv) != 2:
    sys.exit(f"error: name one data set: {' or '.join(ARCHIVES)}")
  with commands.reported_errors():
    print(f"prepared {prepare(argv[1], root=_DATA_ROOT.value, archives=_ARCHIVES.value)}")
