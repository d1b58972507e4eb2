"""What a benchmark ran on."""

import importlib.metadata
import os
import platform


def describe(*packages: str) -> str:
  """The processor, its cores and the versions of Python and of these packages."""
  processor = platform.processor() or platform.machine()
  try:
    with open("/proc/cpuinfo") as file:
      processor = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
  except (OSError, StopIteration):
    pass  # not Linux, or a processor without a name
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
  return f"{processor}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}, {versions}"
