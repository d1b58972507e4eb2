"""How the commands speak: one sentence for an error, silence from the libraries."""

import contextlib
import sys

from absl import logging

INTERRUPTED = 130  # the exit status of Ctrl-C, as shells have it


@contextlib.contextmanager
def speaking(*, interrupted: str = "the same command goes on from the last epoch"):
  """Within, an expected error ends the process with its sentence and status 1; `--verbosity=1` adds the traceback.

  Args:
    interrupted: what to say after Ctrl-C.
  """
  verbose = logging.get_verbosity() >= logging.DEBUG
  if not verbose:
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
  try:
    yield
  except (OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
    if verbose:
      raise
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    print(f"interrupted: {interrupted}", file=sys.stderr)
    sys.exit(INTERRUPTED)
