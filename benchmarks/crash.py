"""Kills training many times, each time in another moment, and compares where the run that goes on ends.

    python -m benchmarks.crash --kills=50          # half of them at a random time, half in a random operation on a file
    python -m benchmarks.crash --kills=20 --program=reproduce

Each kill is a SIGKILL to a program that began from nothing. `train.py` prepares digit scenes, trains two stages and
evaluates; `reproduce.py` does so for the two cells of Table 6 and writes it. The same command then runs to its end, and
all that it leaves is compared, bit for bit, with what an undisturbed run leaves: parameters, moments, metrics,
selection, features, SVMs, scores, results and tables; only times may differ. Exits with 1 if any differs. All of it,
compiled programs too, is in a temporary folder.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import machine
from rmam_jax.runtime import progress

ROOT = pathlib.Path(__file__).parent.parent
SHORT = (
  "--config.epoch_size=64",
  "--config.stage_one.epochs=2",
  "--config.stage_two.epochs=2",
  "--config.evaluation.batch_size=20",
  "--config.evaluation.svm_images=60",
)
PROGRAMS = {
  "train": ("train.py", "--config=configs/digits.py:tiny:mean_pool", *SHORT, "--config.evaluation.pictures=2"),
  "reproduce": ("reproduce.py", "--config=configs/digits.py:tiny", *SHORT, "--tables=6"),
}
OUTPUT = {"train": "--workdir", "reproduce": "--out"}
# Runs a program and counts what it does to files below a folder; kills itself, as SIGKILL does, in a given one of them.
DRIVER = """
import os, runpy, signal, sys
number, folder = int(sys.argv[1]), sys.argv[2]
del sys.argv[:3]
events, seen = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}, 0

def count(event, arguments):
  global seen
  if event in events and str(arguments[0]).startswith(folder):
    seen += 1
    if seen == number:
      os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
try:
  runpy.run_path(sys.argv[0], run_name="__main__")
finally:
  print("operations:", seen)
"""


def run(
  program: str, folder: pathlib.Path, cache: pathlib.Path, *, operation: int = 0, seconds: float | None = None
) -> int | None:
  """Does all that a program of `PROGRAMS` has to do in `folder`, or goes on there; `cache` is for compiled programs.

  Kills it in this one of its operations on files, from 1, or after so many seconds, if either is given.

  Returns:
    The number of operations on files, or None if it was killed.

  Raises:
    RuntimeError: it failed; holds its last words.
  """
  environment = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": str(ROOT),
  }
  places = (f"--config.data.root={folder / 'data'}", f"{OUTPUT[program]}={folder / 'run'}")
  command = [sys.executable, "-c", DRIVER, str(operation), str(folder), *PROGRAMS[program], *places]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
  with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
    try:
      said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
      process.kill()
      said, _ = process.communicate()
  if process.returncode == -9:
    return None
  if process.returncode:
    raise RuntimeError(f"{program}.py ended with {process.returncode}: {said[-2000:]}")
  return int(said.rsplit("operations:", 1)[1])


def _arrays(path: pathlib.Path) -> str:
  with np.load(path, allow_pickle=False) as stored:
    arrays = dict(stored)
  parts = [f"{name} {array.dtype} {array.shape}".encode() + array.tobytes() for name, array in arrays.items()]
  return hashlib.sha256(b"".join(parts)).hexdigest()


def _results(path: pathlib.Path) -> dict[str, Any]:
  results = json.loads(path.read_text())
  results["config"]["data"]["root"] = results["origin"] = results["wall_seconds"] = ""
  return results


def outcome(folder: pathlib.Path) -> dict[str, Any]:
  """All that a program leaves, without times and places, by the file's name."""
  found = {}
  readers = {
    "checkpoints/*/*/*/digests/metadata": lambda path: json.loads(path.read_text())["arrays"],  # every leaf's SHA-256
    "metrics.jsonl": lambda path: [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()],
    "results.json": _results,
    "selection.json": pathlib.Path.read_text,
    "tables.md": lambda path: path.read_text().replace(str(folder), ""),
    "*.npz": _arrays,
  }
  for pattern, read in readers.items():
    found |= {str(path.relative_to(folder)): read(path) for path in folder.glob(f"run/**/{pattern}")}
  found["files"] = sorted(
    str(path.relative_to(folder))
    for path in folder.rglob("*")
    if "tensorboard" not in path.parts and "arrays" not in path.parts  # named by the time; by what writes them
  )
  return found


def main() -> None:
  parser = machine.make_parser(__doc__)
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--program", choices=list(PROGRAMS), default="train")
  arguments = parser.parse_args()
  print(machine.describe("jax", "orbax-checkpoint", "grain"))
  rng, program = np.random.default_rng(arguments.seed), arguments.program
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    run(program, root / "first", root / "cache")  # compiles
    started = time.monotonic()
    operations = run(program, root / "whole", root / "cache")
    seconds, wanted = time.monotonic() - started, outcome(root / "whole")
    same = finished = 0
    bar = progress.bar(range(arguments.kills), unit=" kills")
    for number in bar:
      folder = root / str(number)
      at_operation = {"operation": int(rng.integers(1, operations + 1))} if number % 2 else {}
      moment = at_operation or {"seconds": float(rng.uniform(0, seconds))}
      finished += run(program, folder, root / "cache", **moment) is not None
      run(program, folder, root / "cache")
      found = outcome(folder)
      differing = sorted(key for key in wanted | found if wanted.get(key) != found.get(key))
      same += not differing
      if differing:
        bar.write(f"{moment}: differs in {', '.join(differing)}")
  print(
    f"{arguments.kills} kills of {program}.py, a run of {seconds:.0f} s and {operations} operations on files, seed"
    f" {arguments.seed}: {same} ended identical, {arguments.kills - same} did not ({finished} had ended before they"
    " were killed)"
  )
  sys.exit(int(same < arguments.kills))


if __name__ == "__main__":
  main()
