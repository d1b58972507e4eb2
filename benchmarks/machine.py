"""What benchmarks have in common: flags, what they ran on, how they take times, tables in Markdown."""

import argparse
import contextlib
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping


def make_parser(doc: str, repeats: int = 0) -> argparse.ArgumentParser:
  """Shows the module's docstring as it stands; has `--repeats` if that has a default."""
  parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
  if repeats:
    parser.add_argument("--repeats", type=int, default=repeats)
  return parser


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


def describe_device(*packages: str) -> str:
  """The same with JAX's first device before it and the number of torch's threads behind it, if torch is among them."""
  import jax

  described = f"{jax.devices()[0].device_kind}; {describe('jax', *packages)}"
  if "torch" in packages:
    import torch

    described += f"; {torch.get_num_threads()} threads of torch"
  return described


def finish(program: Callable, *inputs) -> None:
  """Runs a JAX program and waits for its result."""
  import jax

  jax.block_until_ready(program(*inputs))


def medians(
  sides: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
  """Median seconds of each side over so many turns, so that a disturbance meets them all.

  Each does its work twice in a turn and waits for the result. The second time counts: the first pays for what the side
  before it left in the caches and for its threads, which may still be spinning.
  """
  taken: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(repeats):
    for name, work in sides.items():
      work()
      started = clock()
      work()
      taken[name].append(clock() - started)
  return {name: statistics.median(times) for name, times in taken.items()}


def milliseconds(seconds: float) -> str:
  """With three digits: 1,234 and 28.3 and 0.104."""
  ms = 1e3 * seconds
  return f"{ms:,.{max(2 - math.floor(math.log10(ms)), 0)}f}"


def row(*cells: object) -> str:
  """A line of a Markdown table."""
  return f"| {' | '.join(map(str, cells))} |"


def header(*cells: str) -> str:
  """The first two lines of one."""
  return row(*cells) + "\n|" + "-|" * len(cells)
