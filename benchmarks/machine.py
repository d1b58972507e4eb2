"""What a benchmark ran on."""

import contextlib
import importlib.metadata
import os
import platform


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
