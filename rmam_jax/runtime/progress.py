"""Progress of what takes long: a bar in a terminal or a notebook, and a line every minute in a log file."""

import contextlib
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import tqdm

SECONDS = 60  # between two lines


class _Lines(tqdm.tqdm):
  """A bar each of whose states is a line of its own; the last is written when it is closed."""

  def __init__(self, *arguments: Any, **options: Any):
    # `miniters` of 1 leaves nothing to tqdm's own monitor, `delay` writes no line before the first minute.
    options |= {"mininterval": SECONDS, "maxinterval": SECONDS, "miniters": 1, "delay": SECONDS, "dynamic_ncols": False}
    super().__init__(*arguments, **options)
    self._said = None

  def display(self, msg: str | None = None, pos: int | None = None) -> bool:
    del pos
    if not self.disable and self.n != self._said:
      print(msg or self, file=self.fp, flush=True)
      self._said = self.n
    return True

  def close(self) -> None:
    if not getattr(self, "disable", True):
      self.display()
      self.delay = math.inf  # nothing to take away
    super().close()

  def clear(self, *_, **__) -> None:
    """A line stands."""

  @classmethod
  @contextlib.contextmanager
  def external_write_mode(cls, file: Any = None, nolock: bool = False) -> Iterator[None]:
    """What `write` goes through: there is no bar to be taken away before, nor to be shown again."""
    del file, nolock
    yield


def bar(items: Iterable[Any] | None = None, title: str | None = None, total: int | None = None, **options: Any) -> Any:
  """`tqdm.tqdm`, for items or, without them, to be updated; where stderr is a file a line every minute and at the end.

  Args:
    items: given back one by one.
    title: stands before the figures.
    total: how many there are, where `items` do not say.
    **options: of `tqdm.tqdm`: unit, initial, leave, disable.
  """
  seen = sys.stderr.isatty() or "ipykernel" in sys.modules
  return (tqdm.tqdm if seen else _Lines)(items, title, total, **options)
