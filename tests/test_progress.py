"""Progress: a bar for a person who looks on, lines for a file."""

import io
import itertools
import sys

import pytest
import tqdm.std

from rmam_jax.runtime import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def log(monkeypatch, capsys):
  """What a stderr that is a file holds; by the clock every look at it takes a second."""
  clock = itertools.count(1_000)
  monkeypatch.setattr(tqdm.std, "time", lambda: float(next(clock)))
  return lambda: capsys.readouterr().err


def test_a_file_gets_a_line_a_minute_and_one_at_the_end(log):
  assert list(progress.bar(range(1_000), "reading", unit=" images")) == list(range(1_000))
  text = log()
  lines = text.splitlines()
  assert 14 <= len(lines) <= 18  # 1,000 seconds and those of looking at the clock
  assert "\r" not in text
  assert all(line.startswith("reading:") for line in lines)
  assert ["1000/1000" in line for line in lines] == [False] * (len(lines) - 1) + [True]


def test_what_takes_seconds_is_one_line(log):
  with progress.bar(None, "images", 30, leave=False) as bar:
    for _ in range(3):
      bar.update(10)
  (line,) = log().splitlines()
  assert "30/30" in line


def test_what_is_written_beside_it_is_not_repeated_with_bars(log):
  with progress.bar(None, "steps", 100) as bar:
    for step in range(100):
      bar.update()
      if step % 10 == 0:
        bar.write(f"epoch {step}", file=sys.stderr)
  lines = log().splitlines()
  assert sum(line.startswith("epoch") for line in lines) == 10
  assert 2 <= sum(line.startswith("steps") for line in lines) <= 3


def test_what_was_stopped_says_how_far_it_came_and_a_hidden_bar_says_nothing(log):
  stopped = iter(progress.bar(range(100), "steps"))
  for _ in range(8):
    next(stopped)
  stopped.close()  # as an exception closes it
  assert "7/100" in log()
  list(progress.bar(range(500), disable=True))
  assert log() == ""


def test_a_terminal_has_a_bar(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  list(progress.bar(range(3), "reading"))
  assert "\rreading: 100%" in terminal.getvalue()
