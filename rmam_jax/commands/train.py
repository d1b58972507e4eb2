"""Trains a recognizer on image-level labels, evaluates it and draws where it looked.

    python train.py                                    # digit scenes, made on the spot
    python train.py --config=configs/voc.py --config.data.root=VOCdevkit --config.weights=FILE --workdir=runs/voc
    python train.py --config.model.num_regions=8 --workdir=runs/k8
    python train.py --coordinator=host0:7654 --num_processes=2 --process_id=0      # and 1 on the other machine

The same command again goes on where it stopped. rmam_jax/config.py lists every field with its meaning.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from rmam_jax import commands

_CONFIG = config_flags.DEFINE_config_file(
  "config", commands.find_config("configs/digits.py"), "Configuration; any field can be set with --config.FIELD=VALUE."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder for checkpoints, metrics, results and pictures; by default runs/DATA-HEAD."
)
_PROFILE = flags.DEFINE_string("profile", None, "Folder for a trace of ten training steps, see docs/scaling.md.")
_joined = commands.define_processes()


def main(argv: list[str]) -> None:
  from rmam_jax.training import pipeline

  commands.no_arguments(argv)
  config = _CONFIG.value
  folder = pathlib.Path(_WORKDIR.value or pipeline.default_workdir(config))
  commands.keep_compiled()
  with commands.reported_errors(), _joined():
    pipeline.train_and_evaluate(config, folder, profile_folder=_PROFILE.value and pathlib.Path(_PROFILE.value))
