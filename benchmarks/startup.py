"""How long `python train.py` takes to its first training step, with and without compiled programs of a run before.

    python -m benchmarks.startup
    python -m benchmarks.startup --repeats=5 -- --config=configs/digits.py:hard

The command itself is run, until its progress bar shows a second step, which it does when the first is done, and is then
interrupted. `cold` begins with an empty cache of compiled programs, `warm` with what the run before left there.
"""

import os
import pathlib
import pty
import re
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import termios
import time

from benchmarks import machine

ROOT = pathlib.Path(__file__).parent.parent


def seconds_to_first_step(cache: str, options: list[str]) -> float:
  """Starts the command in an empty workdir and stops it after its first step."""
  with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()
    command = [sys.executable, "train.py", f"--workdir={folder}/run", *options]
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    screen, terminal = pty.openpty()  # a file would get no bar, but a line a minute
    termios.tcsetwinsize(terminal, (24, 120))
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=terminal, stdout=subprocess.DEVNULL)
    said = b""
    while not re.search(rb"[ |]([2-9]|\d\d+)/\d+ \[", said):
      if not select.select([screen], [], [], 1)[0]:
        if process.poll() is not None:
          sys.exit(f"error: {command} ended before its first step: {said.decode()}")
        continue
      said += os.read(screen, 4096)
    taken = time.perf_counter() - started
    process.send_signal(signal.SIGINT)
    process.wait()
    os.close(terminal)
    os.close(screen)
  return taken


def main() -> None:
  parser = machine.make_parser(__doc__, repeats=3)
  parser.add_argument("options", nargs="*", help="of train.py, after --")
  arguments = parser.parse_args()
  taken = {"cold": [], "warm": []}
  with tempfile.TemporaryDirectory() as cache:
    seconds_to_first_step(cache, arguments.options)  # prepares the data set where it is not there
  for _ in range(arguments.repeats):
    with tempfile.TemporaryDirectory() as cache:
      for side in taken.values():
        side.append(seconds_to_first_step(cache, arguments.options))
  print(f"{machine.describe('jax', 'flax', 'optax')}. Seconds, {arguments.repeats} runs each.\n")
  print(machine.header("python train.py, to its first step", "median", "least", "most"))
  for name, side in taken.items():
    print(machine.row(name, *(f"{value:.1f}" for value in (statistics.median(side), min(side), max(side)))))


if __name__ == "__main__":
  main()
