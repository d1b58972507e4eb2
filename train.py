"""Trains a recogniser on image-level labels, evaluates it and draws where it looked.

    python train.py                                    digit scenes, made on the spot
    python train.py --config=configs/voc.py --workdir=runs/voc
    python train.py --config.model.num_regions=8 --workdir=runs/k8

The same command again goes on where it stopped. configs/common.py lists every field with its meaning.
"""

import pathlib

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/digits.py", "Configuration; any field can be set with --config.FIELD=VALUE."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder for checkpoints, metrics, results and pictures; by default runs/DATA-HEAD."
)


def main(argv: list[str]) -> None:
  from rmam_jax import command, run

  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  config = _CONFIG.value
  workdir = _WORKDIR.value or run.default_workdir(config)
  command.keep_compiled()
  with command.speaking():
    run.train_and_evaluate(config, pathlib.Path(workdir))


if __name__ == "__main__":
  app.run(main)
