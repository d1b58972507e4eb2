"""Checks every line and every file of your own images before training, and lists all problems with their place.

    rmam-jax validate --config=configs/custom.py --config.data.train=train.csv ...

The exit status is 1 if there are any.
"""

import pathlib
import sys

from absl import app
from ml_collections import config_flags

from rmam_jax.data.validate import validate
from rmam_jax.runtime import commands

sys.path.insert(0, str(pathlib.Path.cwd()))  # a configuration imports others beside it
_CONFIG = config_flags.DEFINE_config_file("config", "configs/custom.py", "Configuration that names the manifests.")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  with commands.reported_errors():
    problems = validate(_CONFIG.value.data)
  for problem in problems:
    print(problem)
  print(f"{len(problems)} problems" if problems else "no problem found")
  sys.exit(bool(problems))
