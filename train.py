"""Trains a recogniser on image-level labels, evaluates it and draws where it looked.

    python train.py                                    digit scenes, made on the spot
    python train.py --config=configs/voc.py --config.weights=FILE --workdir=runs/voc
    python train.py --config.model.num_regions=8 --workdir=runs/k8
    python train.py --coordinator=host0:7654 --num_processes=2 --process_id=0      and 1 on the other machine

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
_PROFILE = flags.DEFINE_string("profile", None, "Folder for a trace of ten training steps, see docs/scaling.md.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of the first process, where several train together; or auto: ask the cluster."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many they are.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
_HEARTBEAT_SECONDS = flags.DEFINE_integer(
  "heartbeat_seconds", 60, "A process not heard of for so long is taken for dead, and all others end.", lower_bound=1
)


def main(argv: list[str]) -> None:
  from rmam_jax import command, processes, run

  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  config = _CONFIG.value
  workdir = _WORKDIR.value or run.default_workdir(config)
  command.keep_compiled()
  together = processes.joined(
    _COORDINATOR.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
    heartbeat_seconds=_HEARTBEAT_SECONDS.value,
  )
  with command.speaking(), together:
    run.train_and_evaluate(
      config, pathlib.Path(workdir), profile_folder=_PROFILE.value and pathlib.Path(_PROFILE.value)
    )


if __name__ == "__main__":
  app.run(main)
