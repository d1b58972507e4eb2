"""Ctrl-C and SIGTERM wait until a step is finished and saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Deferred:
  """Within, a first signal is only noted, and acts at the end; a second one acts at once."""

  def __init__(self, *, active: bool = True):
    """Args: active: False leaves the signals as they are."""
    self._active = active and threading.current_thread() is threading.main_thread()
    self._noted: int | None = None
    self._before: dict[int, Any] = {}

  @property
  def asked(self) -> bool:
    """Whether there was a signal: finish the step, save it, and leave."""
    return self._noted is not None

  def __enter__(self) -> "Deferred":
    if self._active:
      before = {number: signal.getsignal(number) for number in SIGNALS}
      # One that is ignored, as under nohup, stays so.
      self._before = {number: how for number, how in before.items() if how is not signal.SIG_IGN}
      for number in self._before:
        signal.signal(number, self._note)
    return self

  def __exit__(self, kind, error, traceback) -> None:
    self._restore()
    if error is None:
      self._act()

  @contextlib.contextmanager
  def suspended(self) -> Iterator[None]:
    """Within, signals act at once, one that was noted before at the beginning."""
    self._restore()
    self._act()
    try:
      yield
    finally:
      self.__enter__()

  def _note(self, number: int, _) -> None:
    if self.asked:
      self._restore()
      signal.raise_signal(number)
    self._noted = number

  def _restore(self) -> None:
    for number, how in self._before.items():
      signal.signal(number, how)

  def _act(self) -> None:
    if self._noted is not None:
      signal.raise_signal(self._noted)
      raise KeyboardInterrupt  # whatever the handler did
