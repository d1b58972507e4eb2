"""All that only a GPU can show, in one go and one Markdown file.

    python -m benchmarks.gpu OUT.md
    python -m benchmarks.gpu OUT.md --small           # the same programs at small sizes: shows on a CPU that they run
    python -m benchmarks.gpu OUT.md --only=sampler,scan

Needs jax with CUDA, flax, optax, torch, scikit-learn, Pillow, ml_collections and tqdm; no network. Each part is a program
of its own, the most important first. What has not begun when the time is over is left out and named; what has, is
ended, and what it has printed stays. Exits with 1 if a part fails. Beside it, for as long as one likes:
`python -m benchmarks.rehearsal --dtype=bfloat16`.
"""

import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks import machine

ROOT = pathlib.Path(__file__).parent.parent


class Part(NamedTuple):
  name: str
  module: str
  flags: str
  small: str


PARTS = (
  Part("step", "train_step", "--dtype=bfloat16 --batches=16,64", "--small --peers=eager --repeats=1"),
  Part("views", "efficiency", "--heads=recurrent --repeats=5", "--heads=recurrent --scales=512 --width=64 --repeats=1"),
  Part("step-float32", "train_step", "--peers=compiled --no-parts", "--small --peers= --no-parts --repeats=1"),
  Part("sampler", "sampler", "", "--sizes=2x8x8x16:5 --repeats=1"),
  Part(
    "scan",
    "scan",
    "--dtype=bfloat16 --map=28x28x512 --width=4096 --looks=5,10 --batches=1,16",
    "--map=8x8x8 --width=16 --looks=2 --batches=1 --repeats=1",
  ),
  Part("checkpoint", "checkpoint", "--millions=268 --repeats=1", "--millions=1 --repeats=1"),
  Part("ten-views", "ten_view", "--dtype=bfloat16 --batch=4", "--width=64 --repeats=1"),
)


def run(part: Part, small: bool, seconds: float) -> tuple[str, str]:
  """What a part prints, as Markdown, and why it failed or was ended, or ""."""
  command = [f"benchmarks.{part.module}", *(part.small if small else part.flags).split()]
  environment = os.environ | {
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # torch shares the device
  }
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  with subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, **pipes) as process:
    try:
      (said, complained), status = process.communicate(timeout=seconds), ""
    except subprocess.TimeoutExpired:
      process.kill()
      (said, complained), status = process.communicate(), "ended, as the time was over"
  if process.returncode and not status:
    status = f"failed: {(complained.strip().splitlines() or ['without a word'])[-1]}"
  note = f"\n\n**{status}**" if status else ""
  return f"## {part.name}\n\n    python -m {' '.join(command)}\n\n{said.strip()}{note}\n", status


def main() -> None:
  parser = machine.make_parser(__doc__)
  parser.add_argument("out", type=pathlib.Path, help="a new file")
  parser.add_argument("--minutes", type=float, default=10, help="for all of it")
  parser.add_argument("--only", help=f"some of {', '.join(part.name for part in PARTS)}")
  parser.add_argument("--small", action="store_true")
  arguments = parser.parse_args()
  wanted = arguments.only.split(",") if arguments.only else [part.name for part in PARTS]
  if unknown := sorted({*wanted} - {part.name for part in PARTS}):
    parser.error(f"--only must be some of {', '.join(part.name for part in PARTS)}, got {unknown[0]!r}")
  end, problems = time.monotonic() + 60 * arguments.minutes, []
  with arguments.out.open("x") as file:
    for part in PARTS:
      if part.name not in wanted:
        continue
      if (left := end - time.monotonic()) <= 0:
        problems.append(f"{part.name}: left out, as the time was over")
        continue
      print(f"+ {part.name}", file=sys.stderr)
      text, problem = run(part, arguments.small, left)
      print(text, file=file, flush=True)
      problems += [f"{part.name}: {problem}"] if problem else []
    print("\n".join(problems), file=file)
  if problems:
    sys.exit("\n".join(problems))


if __name__ == "__main__":
  main()
