"""A trace of a few training steps, for TensorBoard's profiler or https://ui.perfetto.dev."""

import contextlib
import pathlib
from collections.abc import Iterator

import jax

SKIPPED = 3  # steps that compile and warm up
TRACED = 10


class Trace:
  """Writes a trace of the `TRACED` steps after the first `SKIPPED` to a folder, or none without a folder."""

  def __init__(self, folder: pathlib.Path | None):
    self._folder = folder
    self._steps = 0
    self._running = False

  @contextlib.contextmanager
  def step(self) -> Iterator[None]:
    """One step: its input and its computation."""
    if self._folder is not None and self._steps == SKIPPED:
      jax.profiler.start_trace(self._folder)
      self._running = True
    with jax.profiler.StepTraceAnnotation("train", step_num=self._steps):
      yield
    self._steps += 1
    if self._steps == SKIPPED + TRACED:
      self.close()

  def close(self) -> None:
    """Ends a trace that the steps have not ended."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
      print(f"wrote a trace of {self._steps - SKIPPED} steps to {self._folder}")
