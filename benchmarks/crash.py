"""Kills training many times, each time in another moment, and compares where the run that goes on ends.

    python -m benchmarks.crash --kills=50          half of them at a random time, half in a random operation on a file

Each kill is a SIGKILL to a `train.py` that began from nothing: it prepares digit scenes, trains two stages, evaluates.
The same command then runs to its end, and its parameters, moments, metrics, choices, features, machines, scores and
results are compared, bit for bit, with those of a run that was left alone; only times may differ. Exits with 1 if any
differs. Programs compiled by JAX are kept between the runs; all of it is in a temporary folder.
"""

import argparse
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
import tqdm

from benchmarks import machine

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = (
  "--config=configs/digits.py:tiny:mean_pool",
  "--config.epoch_size=64",
  "--config.stage_one.epochs=2",
  "--config.stage_two.epochs=2",
  "--config.evaluation.batch_size=20",
  "--config.evaluation.svm_images=60",
  "--config.evaluation.pictures=2",
)
# Runs train.py and counts what it does to files below a folder; kills itself, as SIGKILL does, in a given one of them.
DRIVER = """
import os, runpy, signal, sys
number, folder = int(sys.argv[1]), sys.argv[2]
sys.argv[:3] = ["train.py"]
events, seen = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}, 0

def count(event, arguments):
  global seen
  if event in events and str(arguments[0]).startswith(folder):
    seen += 1
    if seen == number:
      os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
try:
  runpy.run_path("train.py", run_name="__main__")
finally:
  print("operations:", seen)
"""


def train(folder: pathlib.Path, cache: pathlib.Path, *, operation: int = 0, seconds: float | None = None) -> int | None:
  """Prepares, trains and evaluates below a folder, or goes on there.

  Args:
    folder: gets `data` and `run`.
    cache: of compiled programs.
    operation: kill it in this one of its operations on files, from 1; 0 does not.
    seconds: kill it after so long; None does not.

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
  places = (f"--config.data.root={folder / 'data'}", f"--workdir={folder / 'run'}")
  command = [sys.executable, "-c", DRIVER, str(operation), str(folder), *FLAGS, *places]
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
    raise RuntimeError(f"train.py ended with {process.returncode}: {said[-2000:]}")
  return int(said.rsplit("operations:", 1)[1])


def _arrays(path: pathlib.Path) -> str:
  with np.load(path, allow_pickle=False) as stored:
    parts = [f"{name} {stored[name].dtype} {stored[name].shape}".encode() + stored[name].tobytes() for name in stored]
  return hashlib.sha256(b"".join(parts)).hexdigest()


def outcome(folder: pathlib.Path) -> dict[str, Any]:
  """All that a run leaves, without times and places, by the file's name."""
  run, found = folder / "run", {}
  for path in sorted(run.glob("checkpoints/*/*/*/digests/metadata")):  # every leaf's SHA-256
    found[str(path.relative_to(run))] = json.loads(path.read_text())["arrays"]
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  found["metrics.jsonl"] = [line | {"seconds": 0} for line in lines]
  results = json.loads((run / "results.json").read_text())
  results["config"]["data"]["root"] = results["wall_seconds"] = ""
  found |= {"results.json": results, "choices.json": (run / "choices.json").read_text()}
  for path in (*sorted(run.glob("*.npz")), *sorted(run.glob("features/*/*.npz"))):
    found[str(path.relative_to(run))] = _arrays(path)
  found["files"] = sorted(
    str(path.relative_to(folder))
    for path in folder.rglob("*")
    if "tensorboard" not in path.parts and "arrays" not in path.parts  # named by the time; by what writes them
  )
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  print(machine.describe("jax", "orbax-checkpoint", "grain"))
  rng = np.random.default_rng(arguments.seed)
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    train(root / "first", root / "cache")  # compiles
    started = time.monotonic()
    operations = train(root / "whole", root / "cache")
    seconds, wanted = time.monotonic() - started, outcome(root / "whole")
    same = finished = 0
    for number in tqdm.trange(arguments.kills, unit=" kills"):
      folder = root / str(number)
      if number % 2:
        moment = {"operation": int(rng.integers(1, operations + 1))}
      else:
        moment = {"seconds": float(rng.uniform(0, seconds))}
      if train(folder, root / "cache", **moment) is not None:
        finished += 1
      train(folder, root / "cache")
      found = outcome(folder)
      differing = sorted(key for key in wanted | found if wanted.get(key) != found.get(key))
      same += not differing
      if differing:
        tqdm.tqdm.write(f"{moment}: differs in {', '.join(differing)}")
  print(
    f"{arguments.kills} kills of a run of {seconds:.0f} s and {operations} operations on files, seed {arguments.seed}:"
    f" {same} ended identical, {arguments.kills - same} did not ({finished} had ended before they were killed)"
  )
  sys.exit(int(same < arguments.kills))


if __name__ == "__main__":
  main()
