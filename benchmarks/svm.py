"""All one-vs-rest SVMs by rmam_jax's Newton solver against scikit-learn's LinearSVC (LIBLINEAR).

    python -m benchmarks.svm                  # VOC 2007's size: 5,011 x 4,096 features, 20 classes
    python -m benchmarks.svm --size=coco      # MS-COCO's: 82,081 x 4,096, 80 classes; up to 6 GB for ours
    python -m benchmarks.svm --size=coco --sides=newton,liblinear-1

Each side runs in a process of its own, which reports its time and its peak memory; LinearSVC is given a sample of the
classes where the whole would take long, and its time extrapolated: its classes are independent. Its tolerance is its
default. The features are made up: rectified, half of them zero, rows of length 1, as region features are.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from benchmarks import machine

SIZES = {"small": (1_000, 256, 6), "voc": (5_011, 4_096, 20), "coco": (82_081, 4_096, 80)}
SAMPLES = {"small": 6, "voc": 20, "coco": 2}  # classes that LinearSVC is given
SIDES = ("newton", "liblinear-1", "liblinear-2")


def make_problem(size: str) -> tuple[np.ndarray, np.ndarray]:
  """Features float32 [N, F] and labels bool [N, L], classes from frequent to rare."""
  images, width, classes = SIZES[size]
  rng = np.random.default_rng(0)
  labels = rng.random((images, classes), np.float32) < np.geomspace(0.3, 0.005, classes)
  patterns = rng.standard_normal((classes, width), np.float32) * 0.5
  features = np.empty((images, width), np.float32)
  for start in range(0, images, 4_096):
    rows = slice(start, min(start + 4_096, images))
    noise = rng.standard_normal((rows.stop - start, width), np.float32)
    block = np.maximum(labels[rows].astype(np.float32) @ patterns + noise, 0)
    features[rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
  return features, labels


def cpu_seconds() -> float:
  """What this process and its ended children have had of the processor."""
  every = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(usage.ru_utime + usage.ru_stime for usage in every)


def run_side(side: str, size: str) -> dict:
  """Fits one side in this process."""
  features, labels = make_problem(size)
  if side == "newton":
    from rmam_jax.evaluation import svm

    before, cpu_before = time.perf_counter(), cpu_seconds()
    (machines,) = svm.fit(features, labels, [1.0])
    weights, classes = machines.weights, labels.shape[1]
  else:
    from joblib.externals.loky import get_reusable_executor
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import LinearSVC

    classes, jobs = SAMPLES[size], int(side.split("-")[1])
    chosen = np.linspace(0, labels.shape[1] - 1, classes).astype(int)
    before, cpu_before = time.perf_counter(), cpu_seconds()
    model = OneVsRestClassifier(LinearSVC(dual="auto", random_state=0), n_jobs=jobs)
    model.fit(features, labels[:, chosen].astype(int))
    weights = np.stack([machine.coef_[0] for machine in model.estimators_])
  seconds = time.perf_counter() - before
  if side == "liblinear-2":
    get_reusable_executor().shutdown(wait=True)  # only children that have ended are counted below
  # ru_maxrss is in KiB; of the children, the largest one's: with two, they are equal.
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  peak += (side == "liblinear-2") * 2 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  cpu = cpu_seconds() - cpu_before
  found = {"seconds": seconds, "cpu": cpu, "classes": classes, "gigabytes": peak * 1024 / 1e9}
  return found | {"weights": weights.tolist()}


def report(size: str, found: dict[str, dict]) -> None:
  """Prints the table; ratios are to the side that comes first."""
  images, width, classes = SIZES[size]
  print(
    f"{images:,} x {width:,} features, {classes} classes, C = 1. {machine.describe('jax', 'scikit-learn', 'numpy')}."
  )
  print("\n" + machine.header("", "all classes, s", "ratio", "CPU, s", "peak memory, GB", "classes fitted"))
  first = None
  for side, result in found.items():
    share = result["classes"] / classes
    whole = result["seconds"] / share
    first = first or whole
    name = "Newton, all classes at once" if side == "newton" else f"LinearSVC, n_jobs={side[-1]}"
    fitted = f"{result['classes']} in {result['seconds']:,.1f} s"
    used = (f"{whole / first:.1f}", f"{result['cpu'] / share:,.0f}", f"{result['gigabytes']:.1f}")
    print(machine.row(name, f"{whole:,.1f}{', extrapolated' if share < 1 else ''}", *used, fitted))
  if {"newton", "liblinear-1"} <= found.keys():
    ours, theirs = (np.array(found[side]["weights"]) for side in ("newton", "liblinear-1"))
    ours = ours[np.linspace(0, classes - 1, len(theirs)).astype(int)]
    print(f"\nLargest difference of a weight: {np.abs(ours - theirs).max() / np.abs(ours).max():.0e} of the largest.")


def main() -> None:
  parser = machine.make_parser(__doc__)
  parser.add_argument("--size", choices=SIZES, default="voc")
  parser.add_argument("--sides", default=",".join(SIDES), help=f"of {', '.join(SIDES)}; the first is the ratios' base")
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # this process is one side
  arguments = parser.parse_args()
  if arguments.side:
    print(json.dumps(run_side(arguments.side, arguments.size)))
    return
  found = {}
  for side in arguments.sides.split(","):
    print(f"{side} ...", file=sys.stderr)
    command = [sys.executable, "-m", "benchmarks.svm", f"--size={arguments.size}", f"--side={side}"]
    found[side] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
  report(arguments.size, found)


if __name__ == "__main__":
  main()
