"""How the commands speak: one sentence for an error, silence from the libraries, an exit status for each signal."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from absl import logging

# Exit statuses, as shells have them.
INTERRUPTED = 130  # Ctrl-C
TERMINATED = 143  # SIGTERM


class Terminated(KeyboardInterrupt):
  """SIGTERM; otherwise as Ctrl-C."""


def _terminate(*_) -> NoReturn:
  raise Terminated


@contextlib.contextmanager
def speaking(*, interrupted: str = "the same command goes on from there") -> Iterator[None]:
  """Within, an expected error ends the process with its sentence and status 1; `--verbosity=1` adds the traceback.

  Ctrl-C and SIGTERM end it with `INTERRUPTED` and `TERMINATED`; training finishes its step and saves it first.

  Args:
    interrupted: what to say after Ctrl-C and SIGTERM.
  """
  verbose = logging.get_verbosity() >= logging.DEBUG
  if not verbose:
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
  before = signal.signal(signal.SIGTERM, _terminate)
  try:
    yield
  except (OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
    if verbose:
      raise
    sys.exit(f"error: {error}")
  except KeyboardInterrupt as error:
    terminated = isinstance(error, Terminated)
    print(f"{'terminated' if terminated else 'interrupted'}: {interrupted}", file=sys.stderr)
    sys.exit(TERMINATED if terminated else INTERRUPTED)
  finally:
    signal.signal(signal.SIGTERM, before)
