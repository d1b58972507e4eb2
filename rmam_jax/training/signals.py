"""Ctrl-C and SIGTERM wait until a step is finished and saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Deferred:
  """Within, a first signal is only noted, and acts at the end; a second one acts at once. Inactive, it does nothing.

  Attributes:
    asked: the signal that came, or None. After one: finish the step, save it, and leave.
  """

  def __init__(self, *, active: bool = True):
    self.asked: int | None = None
    self._active = active and threading.current_thread() is threading.main_thread()
    self._before: dict[int, Any] = {}

  def __enter__(self) -> "Deferred":
    if self._active:
      before = {number: signal.getsignal(number) for number in SIGNALS}
      # One that is ignored, as under nohup, stays so.
      self._before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
      for number in self._before:
        signal.signal(number, self._note)
    return self

  def __exit__(self, kind, error, traceback) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    if self.asked and error is None:
      signal.raise_signal(self.asked)
      raise KeyboardInterrupt  # whatever the handler did

  @contextlib.contextmanager
  def suspended(self) -> Iterator[None]:
    """Within, signals act at once; one that was noted before acts at the beginning."""
    self.__exit__(None, None, None)
    try:
      yield
    finally:
      self.__enter__()

  def _note(self, number: int, _) -> None:
    first, self.asked = self.asked is None, number
    if not first:
      self.__exit__(None, None, None)
