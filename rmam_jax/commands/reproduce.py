"""The paper's tables by one command, ours beside theirs, with the controls that it lacks.

    python reproduce.py                                             # digit scenes, one seed: half an hour on two cores
    python reproduce.py --config=configs/digits.py:hard --seeds=3 --tables=4,6,controls
    python reproduce.py --config=configs/voc.py --config.data.root=VOCdevkit --config.weights=FILE --dry-run

Trains and evaluates what the tables need, each cell once, in OUT/cells/, and writes OUT/tables.md with its pictures.
The same command again goes on where it stopped; with more seeds or tables it makes only the cells that are missing. Two
processes started in one folder share the work.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from rmam_jax import commands


def _is_positive(text: str) -> bool:
  try:
    return 0 < float(text) < float("inf")
  except ValueError:
    return False


_CONFIG = config_flags.DEFINE_config_file(
  "config", commands.find_config("configs/digits.py"), "Configuration; --config.FIELD=VALUE sets a field for all cells."
)
_TABLES = flags.DEFINE_list("tables", None, "Which: 1 to 6, controls, systems; by default all.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "How many seeds: 0, 1, ...", lower_bound=1)
_RATES = flags.DEFINE_list(
  "rates", [], "Learning rates of stage two to try for every head on the first seed; by default the configuration's."
)
flags.register_validator(
  "rates", lambda rates: all(map(_is_positive, rates)), "must be positive numbers with commas between them"
)
_OUT = flags.DEFINE_string("out", None, "Folder of all results; by default runs/tables-DATA.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be done and the time that it is expected to take.")
flags.DEFINE_alias("dry-run", "dry_run")


def main(argv: list[str]) -> None:
  from rmam_jax.reproduction import reproduce

  commands.no_arguments(argv)
  commands.keep_compiled()
  config, out = flags.FLAGS["config"], _OUT.value and pathlib.Path(_OUT.value)
  options = {"tables_chosen": _TABLES.value, "seeds": _SEEDS.value, "rates": list(map(float, _RATES.value))}
  with commands.reported_errors(interrupted="the same command goes on with the cell that it was at"):
    file, changes = config_flags.get_config_filename(config), config_flags.get_override_values(config)
    reproduce.reproduce(file, changes, out=out, dry_run=_DRY_RUN.value, **options)
