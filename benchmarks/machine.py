"""What a benchmark ran on, and how it takes its times."""

import contextlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping


def describe(*packages: str) -> str:
  """The processor, its cores and the versions of Python and of these packages, which are installed."""
  processor = platform.processor() or platform.machine()
  # Only Linux has the file, and not every processor there a name.
  with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
    processor = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
  distributions = importlib.metadata.packages_distributions()  # tensorflow may be tensorflow-cpu
  names = [distributions.get(package, [package])[0] for package in packages]
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
  return f"{processor}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}, {versions}"


def medians(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
  """Median seconds of each side, in turns, so that a disturbance meets them all.

  Each works twice in a turn and the second time counts: the first pays for what the side before it left in the caches
  and for its threads, which may still be spinning.

  Args:
    sides: each does its work whole: a JAX program waits for its result.
    repeats: turns.
  """
  taken: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(repeats):
    for name, work in sides.items():
      work()
      started = time.perf_counter()
      work()
      taken[name].append(time.perf_counter() - started)
  return {name: statistics.median(times) for name, times in taken.items()}


def row(*cells: object) -> str:
  """A line of a Markdown table."""
  return f"| {' | '.join(map(str, cells))} |"


def header(*cells: str) -> str:
  """The first two lines of one."""
  return row(*cells) + "\n|" + "-|" * len(cells)
