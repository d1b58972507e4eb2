"""Checks every line and every file of your own images before training, and lists all problems with their place.

    rmam-jax validate --config=configs/custom.py --config.data.train=train.csv ...

The exit status is 1 if there are any.
"""

import sys

from ml_collections import config_flags

from rmam_jax import commands
from rmam_jax.data.manifests import validate

_CONFIG = config_flags.DEFINE_config_file(
  "config", commands.find_config("configs/custom.py"), "Configuration that names the manifests."
)


def main(argv: list[str]) -> None:
  commands.no_arguments(argv)
  with commands.reported_errors():
    problems = validate(_CONFIG.value.data)
  for problem in problems:
    print(problem)
  print(f"{len(problems)} problems" if problems else "no problem found")
  sys.exit(bool(problems))
