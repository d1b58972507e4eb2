"""Faults, made to happen: a run that is killed, locked out or fed what is damaged goes on or says what to do."""

import os
import socket
import subprocess
import sys

import pytest

from rmam_jax.training import workdir

HOLD = """
import pathlib, sys
from rmam_jax.training import workdir
with workdir.locked(pathlib.Path(sys.argv[1])):
  (pathlib.Path(sys.argv[1]) / "config.json").touch()
  print("locked", flush=True)
  sys.stdin.read()
"""


def test_a_second_job_is_refused_and_told_who_holds_the_folder_until_the_holder_dies(tmp_path):
  folder = tmp_path / "run"
  command = [sys.executable, "-c", HOLD, str(folder)]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
    assert holder.stdout.readline() == "locked\n"
    wanted = (
      f"{folder} is being trained by process {holder.pid} on {socket.gethostname()}: wait for it, stop it, or name"
    )
    with pytest.raises(OSError, match=wanted), workdir.locked(folder):
      pass
    holder.kill()
    holder.wait()
    with workdir.locked(folder):
      assert (folder / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_leaves_no_folder_behind_in_which_nothing_was_done(tmp_path):
  with pytest.raises(ZeroDivisionError), workdir.locked(tmp_path / "run"):
    raise ZeroDivisionError
  assert not (tmp_path / "run").exists()
