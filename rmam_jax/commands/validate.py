"""Checks every line and every file of your own images before training, and says what they hold.

    rmam-jax validate --config=configs/custom.py --config.data.train=train.csv ...

Lists what stops training, with its place, and what is worth knowing; then images, classes and labels by split. The exit
status is 1 if something stops training.
"""

import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from rmam_jax import commands
from rmam_jax.data import splits
from rmam_jax.data.validation import validate

_CONFIG = config_flags.DEFINE_config_file(
  "config", commands.find_config("configs/custom.py"), "Configuration that names the manifests."
)
_SHOW = flags.DEFINE_integer("show", 5, "How many messages of one kind are printed; 0: all.", lower_bound=0)


def _print(lines: Sequence[str], mark: str) -> None:
  """Lines, those of one kind together: which say the same after their place but for names and numbers."""
  kinds: dict[str, list[str]] = {}
  for line in lines:
    kinds.setdefault(re.sub(r"\d|'.*?'|\S*[/\\]\S*|label .*?(?=;|$)", "", line.partition(": ")[2]), []).append(line)
  for alike in kinds.values():
    print("\n".join(f"{mark}{line}" for line in alike[: _SHOW.value or None]))
    if _SHOW.value and len(alike) > _SHOW.value:
      print(f"{mark}and {len(alike) - _SHOW.value:,} more of this kind: --show=0 prints all")


def main(argv: list[str]) -> None:
  commands.no_arguments(argv)
  with commands.reported_errors():
    data = _CONFIG.value.data
    data.update(splits.resolved(data))
    report = validate(data)
  _print(report.notes, "note: ")
  _print(report.problems, "")
  if report.summary:
    print(f"\n{report.summary}\n")
  print(f"{len(report.problems):,} problems that stop training" if report.problems else "nothing stops training")
  sys.exit(bool(report.problems))
