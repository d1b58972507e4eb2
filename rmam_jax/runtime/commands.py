"""What the commands have in common: a sentence for an error, a status for each signal, compiled programs kept, flags."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import flags, logging

from rmam_jax.runtime import processes
from rmam_jax.runtime.errors import UserError

KEPT_BYTES = 2**30
KEPT_SECONDS = 0.1  # what compiles faster is compiled again
# Exit statuses, as shells have them.
INTERRUPTED = 130  # Ctrl-C
TERMINATED = 143  # SIGTERM


class Terminated(KeyboardInterrupt):
  """SIGTERM; otherwise as Ctrl-C."""


def _terminate(*_) -> NoReturn:
  raise Terminated


@contextlib.contextmanager
def reported_errors(*, interrupted: str = "the same command goes on from there") -> Iterator[None]:
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
  except UserError as error:
    if verbose:
      raise
    sys.exit(f"error: {error}")
  except KeyboardInterrupt as error:
    terminated = isinstance(error, Terminated)
    print(f"{'terminated' if terminated else 'interrupted'}: {interrupted}", file=sys.stderr)
    sys.exit(TERMINATED if terminated else INTERRUPTED)
  finally:
    signal.signal(signal.SIGTERM, before)


def define_processes() -> Callable[[], contextlib.AbstractContextManager[None]]:
  """Defines the flags of several processes that work as one.

  Returns:
    What, called once the flags are parsed, gives `processes.joined` their values.
  """
  coordinator = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first process, where several work together; or auto: ask the cluster."
  )
  num_processes = flags.DEFINE_integer("num_processes", None, "How many they are.", lower_bound=1)
  process_id = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
  heartbeat_seconds = flags.DEFINE_integer(
    "heartbeat_seconds", 60, "A process not heard of for so long is taken for dead, and all others end.", lower_bound=1
  )
  return lambda: processes.joined(
    coordinator.value,
    num_processes=num_processes.value,
    process_id=process_id.value,
    heartbeat_seconds=heartbeat_seconds.value,
  )


def keep_compiled() -> None:
  """Keeps compiled programs in the user's cache folder, up to a gigabyte, so that the next command need not compile.

  A folder that the user has given JAX, JAX_COMPILATION_CACHE_DIR, stands; JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
  """
  import jax

  from rmam_jax.weights import files as weight_files

  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(weight_files.cache_folder() / "jit"))
    jax.config.update("jax_compilation_cache_max_size", KEPT_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_SECONDS)
