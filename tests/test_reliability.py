"""Faults, made to happen: a run that is killed, locked out or fed what is damaged goes on or says what to do."""

import gc
import itertools
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import best_params, lines, tiny_config

from benchmarks import crash
from rmam_jax import commands
from rmam_jax.data import batches, stored
from rmam_jax.data.splits import open_split
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import checkpoints, evaluate, loop, workdir, writers
from rmam_jax.training import step as step_lib
from rmam_jax.weights import tensors

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
    with pytest.raises(UserError, match=wanted), workdir.locked(folder):
      pass
    holder.kill()
    holder.wait()
    with workdir.locked(folder):
      assert (folder / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_leaves_no_folder_behind_in_which_nothing_was_done(tmp_path):
  with pytest.raises(ZeroDivisionError), workdir.locked(tmp_path / "run"):
    raise ZeroDivisionError
  assert not (tmp_path / "run").exists()


def small_config(data_root):
  """Two stages of two epochs of four steps, quickly compiled."""
  config = tiny_config(data_root, epoch_size=64)
  config.model.head = config.stage_one.head = "mean_pool"
  config.stage_two.auxiliary_weight = 0.0
  config.stage_one.epochs = config.stage_two.epochs = 2
  config.controls = ()
  return config


@pytest.fixture(scope="module")
def whole(data_root, tmp_path_factory):
  """A workdir that was trained in one piece."""
  folder = tmp_path_factory.mktemp("whole") / "run"
  loop.train(small_config(data_root), folder)
  return folder


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_that_fills_up_is_named_and_costs_nothing(tmp_path, monkeypatch):
  log = writers.JsonLines(tmp_path, "stage_one", 0)
  tensors.write_safetensors(tmp_path / "model.safetensors", {"a": np.zeros(3)}, {})
  files.write_json(tmp_path / "results.json", {"mAP": 0.5})
  assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "results.json").stat().st_mode
  name = uuid.uuid4()
  monkeypatch.setattr(files.uuid, "uuid4", lambda: name)
  for file, full, write in (
    ("metrics.jsonl", "metrics.jsonl", lambda path: log.write_scalars(4, {"loss": 1.0})),
    ("results.json", f".{name.hex}.draft", lambda path: files.write_json(path, {})),
    ("scores.npz", f".{name.hex}.draft", lambda path: files.write_npz(path, {"scores": np.zeros(10_000)})),
    ("model.safetensors", f".{name.hex}.draft", lambda path: tensors.write_safetensors(path, {"a": np.ones(3)}, {})),
  ):
    (tmp_path / full).symlink_to("/dev/full")
    with pytest.raises(
      UserError, match=f"cannot write {tmp_path}/{file}: No space left on device. Nothing that was there is lost"
    ):
      write(tmp_path / file)
  assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "results.json", "model.safetensors"}
  assert files.read_json(tmp_path / "results.json") == {"mAP": 0.5}


def test_of_two_writers_of_one_file_each_has_a_draft_of_its_own(tmp_path):
  path = tmp_path / "results.json"
  with files.whole_file(path) as slow:
    slow.write_text("slow")
    files.write_text(path, "quick, é")
    assert path.read_bytes() == "quick, é".encode()
  assert path.read_text() == "slow"
  assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_vanishes_is_named(tmp_path):
  log = writers.JsonLines(tmp_path, "stage_one", 0)
  shutil.rmtree(tmp_path)
  with pytest.raises(
    UserError, match=f"cannot write {tmp_path}/metrics.jsonl: No such file or directory. Nothing that was there"
  ):
    log.write_scalars(4, {"loss": 1.0})
  log.close()


def signal_at(monkeypatch, number, name, call):
  """The process gets a signal when a function of the data or of the trainer is called for the `call`th time."""
  owner, calls = {"train_batches": batches, "validate": loop._Trainer}[name], []
  original = getattr(owner, name)

  def counted(*arguments, **options):
    calls.append(1)
    if len(calls) == call:
      os.kill(os.getpid(), number)
    return original(*arguments, **options)

  def counted_batches(*arguments, **options):
    for batch in original(*arguments, **options):
      calls.append(1)
      if len(calls) == call:
        os.kill(os.getpid(), number)
      yield batch

  monkeypatch.setattr(owner, name, counted_batches if name == "train_batches" else counted)


@pytest.fixture
def heeding():
  """Both signals act as in a terminal; what a shell starts in the background ignores SIGINT."""
  before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
  signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  yield
  for number, how in before.items():
    signal.signal(number, how)


@pytest.mark.usefixtures("heeding")
def test_a_run_that_is_told_to_stop_finishes_its_step_and_goes_on_exactly_there(
  whole, data_root, tmp_path, monkeypatch, capsys
):
  folder, config = tmp_path / "run", small_config(data_root)
  last = folder / "checkpoints"
  for number, status, place, call, wanted in (
    (signal.SIGTERM, 143, "train_batches", 3, "stage_one/last/3"),  # within an epoch
    (signal.SIGINT, 130, "train_batches", 1, "stage_one/last/4"),  # at its last step
    (signal.SIGINT, 130, "validate", 2, "stage_one/last/8"),
    (signal.SIGTERM, 143, "train_batches", 6, "stage_two/last/6"),
  ):
    with monkeypatch.context() as patched:
      signal_at(patched, number, place, call)
      with pytest.raises(SystemExit) as left, commands.reported_errors():
        loop.train(config, folder)
    assert left.value.code == status
    assert "the same command goes on from there" in capsys.readouterr().err
    assert (last / wanted).is_dir()
    assert not (last / wanted).with_name(str(int(wanted[-1]) + 1)).exists()
  loop.train(config, folder)
  assert lines(folder) == lines(whole)
  assert same(best_params(config, folder), best_params(config, whole))


@pytest.mark.slow
def test_a_run_that_is_killed_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path):
  whole, killed, cache = tmp_path / "whole", tmp_path / "killed", tmp_path / "cache"
  operations = crash.run("train", whole, cache)
  for operation in (25, 60, 150):  # preparing the scenes; saving the best of stage one, and the last state of stage two
    assert crash.run("train", killed, cache, operation=operation) is None
    assert operations > operation
  crash.run("train", killed, cache)
  wanted, found = crash.outcome(whole), crash.outcome(killed)
  assert found.keys() == wanted.keys()
  assert len([name for name in wanted if name.startswith("run/checkpoints/")]) == 6  # two last, one best of each stage
  for name in wanted:
    assert found[name] == wanted[name], name
  results = json.loads((whole / "run" / "results.json").read_text())
  with workdir.locked(whole / "run"):  # as while it is being trained
    assert evaluate.evaluate(whole / "run")["AP"] == results["AP"]


def state(number, dtype=jnp.float32):
  values = np.random.default_rng(number).normal(size=(64, 64))
  return step_lib.TrainState(jnp.int32(number), {"one": jnp.asarray(values, dtype), "two": jnp.asarray(values[0])}, ())


@pytest.fixture
def saved(tmp_path):
  """Checkpoints of two steps, 1 and 2, and one of the best."""
  found = checkpoints.StageCheckpoints(tmp_path, writing=True)
  for number in (1, 2):
    found.save_last(state(number), {"epoch": number})
  found.save_best(2, state(2).params, {"epoch": 2})
  found.wait()
  yield found
  found.close()


def same(one, other):
  return jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), one, other))


def largest(folder):
  return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path, place=0.5):
  content = bytearray(path.read_bytes())
  content[int(len(content) * place)] ^= 1
  path.write_bytes(content)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
  "a flipped bit": lambda folder: flip(largest(folder / "arrays")),
  "a truncated file": lambda folder: cut(largest(folder / "arrays")),
  "arrays cannot be read": lambda folder: shutil.rmtree(folder / "arrays"),
  "progress cannot be read": lambda folder: shutil.rmtree(folder / "progress"),
  "digests cannot be read": lambda folder: shutil.rmtree(folder / "digests"),
  "progress does not have its digest": lambda folder: change_progress(folder),
}


def change_progress(folder):
  path = folder / "progress" / "metadata"
  assert json.loads(path.read_text()) == {"epoch": 2}
  path.write_text(json.dumps({"epoch": 3}))


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken_with_a_notice(damage, saved, tmp_path, capsys):
  assert same(saved.restore_last(state(0))[0], state(2))
  DAMAGES[damage](tmp_path / "last" / "2")
  restored, progress = saved.restore_last(state(0))
  assert same(restored, state(1))
  assert progress == {"epoch": 1}
  notice = capsys.readouterr().out
  assert notice.startswith(f"{tmp_path}/last/2 is damaged: ")
  assert notice.endswith(". Going on from the state before it.\n")
  if damage.startswith("a "):
    assert "/one does not have its digest" in notice or "arrays cannot be read" in notice
  else:
    assert damage in notice
  DAMAGES[damage](tmp_path / "best" / "2")
  with pytest.raises(UserError, match=f"best/2 is damaged: .* Remove {tmp_path}: the command that trained it trains"):
    saved.restore_best(state(0).params)
  saved.save_last(state(2), {"epoch": 2})  # the epoch done again
  assert same(saved.restore_last(state(0))[0], state(2))
  for number in (1, 2):
    flip(largest(tmp_path / "last" / str(number) / "arrays"))
  with pytest.raises(UserError, match=f"last/1 is damaged: .* Remove {tmp_path}"):
    saved.restore_last(state(0))
  gc.collect()  # Orbax leaves coroutines behind; they warn here and not in a later test


def test_a_stage_that_another_run_has_finished_is_taken_over_once(tmp_path):
  source, folder = tmp_path / "source", tmp_path / "run"
  (source / "checkpoints" / "stage_one").mkdir(parents=True)
  (source / "checkpoints" / "stage_one" / "file").write_text("theirs")
  (folder / "draft").mkdir(parents=True)  # of a copy that was killed
  theirs = [{"stage": "rpn", "step": 9}, {"stage": "stage_one", "step": 2}]
  own = [{"stage": "rpn", "step": 1}, {"stage": "stage_one", "step": 1}, {"stage": "stage_two", "step": 1}]
  workdir.write_lines(source / "metrics.jsonl", theirs)
  workdir.write_lines(folder / "metrics.jsonl", own)  # whose stage one was begun, and its checkpoints removed
  checkpoints.take_over("stage_two", source, folder)  # it has none
  assert workdir.read_lines(folder / "metrics.jsonl") == own
  checkpoints.take_over("stage_one", source, folder)
  assert (folder / "checkpoints" / "stage_one" / "file").read_text() == "theirs"
  assert not (folder / "draft").exists()
  taken = [own[0], own[2], theirs[1]]
  assert workdir.read_lines(folder / "metrics.jsonl") == taken
  (source / "checkpoints" / "stage_one" / "file").write_text("later")
  checkpoints.take_over("stage_one", source, folder)  # this workdir has begun it
  assert (folder / "checkpoints" / "stage_one" / "file").read_text() == "theirs"
  assert workdir.read_lines(folder / "metrics.jsonl") == taken


def test_another_type_in_a_checkpoint_is_named_and_not_cast(saved):
  with pytest.raises(
    ValueError, match=r"is of another model: params/one is float32\[64,64\] there and float16\[64,64\] in the config"
  ):
    saved.restore_last(state(0, jnp.float16))


def test_two_last_states_are_kept_and_what_a_killed_save_left_is_removed(saved, tmp_path):
  saved.save_last(state(3), {})
  saved.wait()
  assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["2", "3"]
  (tmp_path / "last" / "4.orbax-checkpoint-tmp").mkdir()
  again = checkpoints.StageCheckpoints(tmp_path, writing=True)
  again.save_last(state(5), {})
  again.close()
  assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["3", "5"]


@pytest.fixture
def held(tmp_path, monkeypatch):
  """A writer's checkpoints, the event that its thread waits for before each save, and the saves that it has begun."""
  written, begun, go = checkpoints.StageCheckpoints(tmp_path, writing=True), [], threading.Event()
  save = written._save

  def when_told(name, step, *others):
    begun.append((name, step))
    assert go.wait(60)
    save(name, step, *others)

  monkeypatch.setattr(written, "_save", when_told)
  yield written, go, begun
  go.set()
  written.close()


def test_training_goes_on_while_what_it_was_is_written(held, tmp_path):
  written, go, begun = held
  before, progress = state(2), {"epoch": 2}
  written.save_best(2, before.params, progress)
  written.save_last(before, progress)
  wanted = jax.tree.map(np.array, before)
  progress["epoch"] = 3
  step = jax.jit(lambda old: jax.tree.map(lambda leaf: leaf + 1, old), donate_argnums=0)
  for _ in range(3):
    before = step(before)  # in the memory that it had
  assert begun == [("best", 2)]
  assert not list((tmp_path / "best").iterdir())
  go.set()
  restored, found = written.restore_last(state(0))
  assert same(restored, wanted)
  assert found == {"epoch": 2}
  assert same(written.restore_best(state(0).params)[0], wanted.params)
  assert begun == [("best", 2), ("last", 2)]


def test_no_more_checkpoints_wait_than_those_of_an_epoch(held):
  written, go, begun = held
  go.set()
  for number in range(1, 5):
    written.save_best(number, state(number).params, {})
    written.save_last(state(number), {})
    assert len(written._begun) <= 2  # each a copy on the host
  written.wait()
  assert begun == [(name, number) for number in range(1, 5) for name in ("best", "last")]


def test_what_the_thread_could_not_write_stops_training(tmp_path, monkeypatch):
  written = checkpoints.StageCheckpoints(tmp_path, writing=True)

  def full(*arguments, **options):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(written._managers["last"], "save", full)
  written.save_last(state(1), {})
  with pytest.raises(UserError, match=f"cannot write a checkpoint below {tmp_path}/last: .*No space left on device"):
    written.close()


@pytest.fixture
def reading(data_root):
  """Starts `worker_faults` and waits for its first batch; gives the process and the line about that batch."""
  processes = []

  def start(*arguments):
    command = [sys.executable, "-m", "tests.worker_faults", str(data_root), *arguments]
    processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0))
    return processes[-1], processes[-1].stdout.readline()

  yield start
  for process in processes:
    process.kill()
    process.communicate()


def children(process):
  tasks = pathlib.Path("/proc", str(process.pid), "task").glob("*/children")
  return [int(pid) for task in tasks for pid in task.read_text().split()]


def shared_memory(*pids):
  maps = [pathlib.Path("/proc", str(pid), "maps").read_text() for pid in pids]
  return {pathlib.Path(line.split()[-1]) for text in maps for line in text.splitlines() if "/dev/shm/psm" in line}


def wait_for_end(pid_files):
  for file in pid_files:
    assert select.select([file], [], [], 60)[0], "a process is left behind"
    os.close(file)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
def test_workers_and_shared_memory_end_with_a_trainer_that_is_killed(reading):
  process, _ = reading()
  pids = children(process)
  assert len(pids) == 3  # and Python's own that removes shared memory
  memory = shared_memory(process.pid, *pids)
  assert memory
  files = [os.pidfd_open(pid) for pid in pids]
  process.kill()
  wait_for_end(files)
  assert not [path for path in memory if path.exists()]


@pytest.mark.slow
@linux
def test_a_worker_that_is_killed_stops_training_with_the_cause(reading):
  process, _ = reading()
  workers = [pid for pid in children(process) if b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()]
  assert len(workers) == 2
  os.kill(workers[1], signal.SIGKILL)
  said = process.communicate(timeout=60)[1].decode()
  assert process.returncode == 1
  assert "error: reading digits/tiny train failed: Worker process was terminated unexpectedly with exit code -9" in said
  assert "lower data.workers and run the same command again" in said


@pytest.mark.slow
def test_what_a_worker_raises_stops_training_and_no_batch_is_lost_or_doubled_before(reading, data_root):
  process, first = reading("7")
  out, said = process.communicate(timeout=60)
  assert process.returncode == 1
  assert "error: digits/tiny train [7], train_" in said.decode()
  config = small_config(data_root)
  split = open_split(config.data, "train")
  sound = batches.train_batches(split, batch_size=16, image_size=72, crop_size=64, flip=True, seed=3)
  read = (first + out).decode().splitlines()
  assert read
  wanted = [list(batch["ids"]) for batch in itertools.islice(sound, len(read) + 1)]
  assert read == [" ".join([str(number), *ids]) for number, ids in enumerate(wanted[:-1])]
  assert split[7].id in wanted[-1]


SHARD = "digits-train.array_record-00000-of-00001"
OTHER_DATA = {
  "a missing shard": (
    lambda folder: (folder / SHARD).unlink(),
    rf"{SHARD}, of 160 records, cannot be read .*No such file",
  ),
  "an empty shard": (lambda folder: (folder / SHARD).write_bytes(b""), rf"{SHARD}, of 160 records, cannot be read"),
  "a truncated shard": (lambda folder: cut(folder / SHARD), rf"{SHARD}, of 160 records, cannot be read"),
  "another shard": (
    lambda folder: shutil.copyfile(folder / SHARD.replace("train", "test"), folder / SHARD),
    rf"{SHARD} holds 40 records, not 160",
  ),
  "a damaged record": (lambda folder: flip(folder / SHARD, 0.3), r"record \d+ of digits/tiny train is damaged"),
  "no dataset_info.json": (
    lambda folder: (folder / "dataset_info.json").unlink(),
    r"holds no dataset_info\.json, so it is not whole",
  ),
  "half a dataset_info.json": (lambda folder: cut(folder / "dataset_info.json"), "its description is damaged"),
  "no names of classes": (
    lambda folder: (folder / "objects-label.labels.txt").unlink(),
    r"objects-label\.labels\.txt is missing or does not name 10 classes",
  ),
  "tfrecord": (
    lambda folder: (folder / "dataset_info.json").write_text(
      (folder / "dataset_info.json").read_text().replace("array_record", "tfrecord")
    ),
    "is stored as tfrecord, not as array_record: convert it by TFDS's convert_format",
  ),
}


@pytest.mark.parametrize("damage", OTHER_DATA)
def test_prepared_data_that_are_not_whole_are_found_on_opening(damage, data_root, tmp_path):
  folder = tmp_path / "digits" / "tiny" / "1.0.0"
  shutil.copytree(data_root / "digits" / "tiny" / "1.0.0", folder, ignore=shutil.ignore_patterns("rmam-index-*"))
  data = tiny_config(tmp_path).data
  spoil, words = OTHER_DATA[damage]
  spoil(folder)
  remedy = "$" if damage == "tfrecord" else f".* Remove {folder}: the same command makes it again"
  with pytest.raises(UserError, match=words + remedy):
    open_split(data, "train")
  shutil.rmtree(folder)  # as it says
  (folder.parent / "incomplete.ABC_1.0.0").mkdir()
  assert len(open_split(data, "train")) == 160
  assert not list(folder.parent.glob("incomplete.*"))


def test_what_one_process_is_preparing_is_locked_against_another(tmp_path):
  lock = tmp_path / "tiny" / "lock"

  class Builder:
    data_dir = str(tmp_path / "tiny" / "1.0.0")

    def download_and_prepare(self, **options):
      assert options == {"download_dir": "downloads"}
      with pytest.raises(filelock.Timeout), filelock.FileLock(lock, timeout=0):
        pytest.fail("the other process came in")
      pathlib.Path(self.data_dir).mkdir()

  stored.build(Builder(), download_dir="downloads")
  with filelock.FileLock(lock, timeout=0):  # free again
    assert pathlib.Path(Builder.data_dir).is_dir()


def test_a_damaged_record_is_named_where_its_labels_are_known_already(data_root, tmp_path):
  folder = tmp_path / "digits" / "tiny" / "1.0.0"
  shutil.copytree(data_root / "digits" / "tiny" / "1.0.0", folder)
  data = tiny_config(tmp_path).data
  open_split(data, "train")
  flip(folder / SHARD, 0.3)
  split = open_split(tiny_config(tmp_path, **{"data.threads": 1}).data, "train")
  stream = batches.train_batches(split, batch_size=16, image_size=72, crop_size=64, flip=False, seed=0)
  with pytest.raises(UserError, match=r"record \d+ of digits/tiny train is damaged"):
    list(itertools.islice(stream, 10))


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_of_which_a_bit_was_flipped_are_refused_by_name_or_whole(compressed, tmp_path):
  arrays = {"ids": np.array([f"{number:03}.jpg" for number in range(30)]), "labels": np.eye(30, 4, dtype=np.float32)}
  path = tmp_path / "table.npz"
  files.write_npz(path, arrays, compressed=compressed)
  whole, errors = path.read_bytes(), []
  for place in np.random.default_rng(0).integers(8 * len(whole), size=1_000).tolist():
    content = bytearray(whole)
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    try:
      found = files.read_npz(path, "make it again")
    except UserError as error:
      errors.append(str(error))
    else:
      assert found.keys() == arrays.keys()
      for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
  assert len(errors) > 600
  assert all(each.startswith(f"{path} is damaged (") and each.endswith("): make it again") for each in errors)
  with pytest.raises(FileNotFoundError):
    files.read_npz(tmp_path / "none.npz", "")


@pytest.mark.slow
def test_damaged_files_of_every_kind_are_refused_or_read_and_nothing_else():
  """In a process of its own, which a library may bring down."""
  found = subprocess.run(
    [sys.executable, "-m", "benchmarks.fuzz", "--mutations=600", "--seed=1"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.returncode == 0, found.stdout + found.stderr[-2000:]
  assert "; 0 failures" in found.stdout
  assert (
    len([line for line in found.stdout.splitlines() if line.startswith(("png", "jsonl", "keras", "checkpoint"))]) > 5
  )
