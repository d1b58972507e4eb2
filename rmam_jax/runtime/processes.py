"""Several processes as one run: each holds the devices of its machine and reads its share of every batch.

All of them run the same program on the same workdir, which lies where all can see it. The first process alone writes
metrics, results and pictures; Orbax writes checkpoints from all. In a single process everything here does nothing.

If one process is lost, all others end: at once, with a sentence and status 1, where a collective operation notices it;
else after the heartbeat's time, with the message of JAX's coordination service that another task died.
"""

import contextlib
import faulthandler
import os
import re
import sys
from collections.abc import Iterator

import jax

from rmam_jax.runtime.errors import UserError

# What JAX says when another process is at fault.
_LOST = re.compile(r"gloo|nccl|heartbeat|coordination|UNAVAILABLE|DEADLINE_EXCEEDED", re.IGNORECASE)


def is_first() -> bool:
  """Whether this is the process that writes and prints."""
  return jax.process_index() == 0


def wait_for_all(place: str) -> None:
  """Goes on once all processes are at this place."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(place)


@contextlib.contextmanager
def first_before_others(place: str) -> Iterator[None]:
  """The first process goes through the block alone, then the others, who find there what it has made."""
  if not is_first():
    wait_for_all(place)
  yield
  if is_first():
    wait_for_all(place)


def _why_lost(error: BaseException | None) -> str | None:
  """The first line of what JAX says of a lost process, in an error or one of its causes; else None."""
  while error is not None:
    text = str(error)
    if _LOST.search(text) and isinstance(error, (jax.errors.JaxRuntimeError, ValueError)):
      return text.splitlines()[0]
    error = error.__cause__ or error.__context__
  return None


@contextlib.contextmanager
def joined(
  coordinator: str | None, *, num_processes: int | None, process_id: int | None, heartbeat_seconds: int
) -> Iterator[None]:
  """Within, this process is one of a run; to be entered before anything asks JAX for a device.

  Args:
    coordinator: HOST:PORT of the first process, where it listens; "auto" to ask the cluster's environment (Slurm, Open
      MPI, Kubernetes, Cloud TPU); None for a run of this process alone.
    num_processes, process_id: their number, and which of them, from 0, this is; None to ask the environment, which
      must say, or a UserError is raised.
    heartbeat_seconds: a process that has not been heard of for so long is taken for dead, and all others end.
  """
  if coordinator is None:
    if num_processes is not None or process_id is not None:
      raise UserError("--num_processes and --process_id need --coordinator=HOST:PORT")
    yield
    return
  faulthandler.disable()  # absl's; a list of threads below its message says nothing about a process elsewhere
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  limits = {f"{kind}_timeout_seconds": heartbeat_seconds for kind in ("heartbeat", "shutdown")}
  address = None if coordinator == "auto" else coordinator
  try:
    jax.distributed.initialize(address, num_processes, process_id, **limits)
  except ValueError as error:
    raise UserError(
      f"cannot join the run at --coordinator={coordinator} ({error}): give --num_processes and --process_id too"
    ) from error
  try:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if is_first() else nowhere):
      yield
      wait_for_all("end")
  except Exception as error:
    reason = _why_lost(error)
    if reason is None:
      raise
    why = f"another process of the run has ended or cannot be reached ({reason})"
    remedy = "Start all of them again, or fewer: the run goes on from its last epoch."
    print(f"error: {why}. {remedy}", file=sys.stderr, flush=True)
    os._exit(1)  # the usual way out waits for the process that is gone
