"""Evaluates the best epoch of a trained workdir again: writes its results.json and pictures/ and prints the summary.

python eval.py --workdir=runs/digits-easy-saliency
"""

import pathlib

from absl import app, flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished train.py run.", required=True)


def main(argv: list[str]) -> None:
  from rmam_jax import command, run

  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  with command.speaking():
    run.evaluate_and_print(pathlib.Path(_WORKDIR.value))


if __name__ == "__main__":
  app.run(main)
