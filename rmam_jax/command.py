"""What the commands have in common: one sentence for an error, silence from the libraries, compiled programs kept."""

import contextlib
import sys

from absl import logging

KEPT_BYTES = 2**30
KEPT_SECONDS = 0.1  # what compiles faster is compiled again
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


def keep_compiled() -> None:
  """Keeps compiled programs in the user's cache folder, up to a gigabyte, so that the next command need not compile.

  A folder that the user has given JAX, JAX_COMPILATION_CACHE_DIR, stands; JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
  """
  import jax

  from rmam_jax.weights import files

  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(files.cache_folder() / "jit"))
    jax.config.update("jax_compilation_cache_max_size", KEPT_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_SECONDS)
