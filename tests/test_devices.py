"""One result on any devices: eight against one, pmap against jit, two processes against one, other platforms."""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import eight_devices
import jax
import jax.export
import numpy as np
import optax
import pytest
from test_files import SPLITS, thin_config, write_csv
from test_training import assert_trees_close, tiny_config

from configs import voc
from examples import pmap_training
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.training import checkpoints, evaluate, loop, pipeline, stages, workdir
from rmam_jax.training import step as step_lib

ROOT = pathlib.Path(__file__).parent.parent


def start(*arguments, devices=1, **options):
  environment = {
    **os.environ,
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "PYTHONPATH": str(ROOT),
  }
  return subprocess.Popen(
    [sys.executable, *map(str, arguments)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **options,
  )


def end(process, timeout=240):
  said, _ = process.communicate(timeout=timeout)
  return process.returncode, said


@pytest.mark.slow
def test_eight_devices_agree_with_one(data_root, tmp_path, monkeypatch):
  one = mesh_lib.make_mesh(jax.devices()[:1])
  state = jax.device_put(eight_devices.fresh_state(eight_devices.tiny(data_root)), mesh_lib.replicated(one))
  checkpoints.StageCheckpoints(tmp_path / "one").save_last(state, {"saved on": 1})
  eight = start(
    "-m", "tests.eight_devices", tmp_path / "eight.npz", data_root, tmp_path / "one", tmp_path / "eight", devices=8
  )
  monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
  wanted = eight_devices.measure(one, data_root)
  status, said = end(eight)
  assert status == 0, said

  found = np.load(tmp_path / "eight.npz")
  assert set(found) == set(wanted)
  for name, value in wanted.items():
    tolerance = 1e-6 if name[0].isdigit() else 1e-5  # losses and gradients; answers and machines
    np.testing.assert_allclose(found[name], value, atol=tolerance * max(1, np.abs(value).max()), err_msg=name)
  assert (
    abs(wanted["16 loss"] - wanted["13 loss"]) > 1e-3
  )  # the three examples that the mask takes out were not nothing
  saved = checkpoints.StageCheckpoints(tmp_path / "eight")
  restored, progress = saved.restore_last(checkpoints.abstract(state, mesh_lib.replicated(one)))
  saved.close()
  assert progress == {"saved on": 8}
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), restored, state))


@pytest.mark.slow
def test_the_example_under_pmap_ends_where_jit_does(data_root):
  config = eight_devices.tiny(data_root)
  model, _, objective = eight_devices.parts(config)
  optimizer = optax.sgd(0.01)  # Adam divides by small gradients, and makes rounding larger than what is compared here
  state = eight_devices.fresh_state(config)
  state = state._replace(opt_state=optimizer.init(state.params))
  stream = [eight_devices.batch_of(eight_devices.BATCH)] * 3
  found, losses = pmap_training.train(model, optimizer, objective, state, stream)

  train_step = jax.jit(step_lib.make_train_step(model, optimizer, objective))
  wanted = state
  for batch, loss in zip(stream, losses, strict=True):
    wanted, metrics = train_step(wanted, batch)
    np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-5)
  assert_trees_close(found, wanted, 1e-5)
  assert int(found.step) == 3


def free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def two_processes(config, folder):
  """`train.py` twice over loopback, on one workdir."""
  path = folder.parent / "config.py"
  path.write_text(
    f"import json, ml_collections\ndef get_config(): return ml_collections.ConfigDict(json.loads({config.to_json()!r}))\n"
  )
  return twice("train.py", f"--config={path}", f"--workdir={folder}")


def twice(program, *flags):
  port = free_port()
  return [
    start(
      program,
      *flags,
      f"--coordinator=127.0.0.1:{port}",
      "--num_processes=2",
      f"--process_id={index}",
      "--heartbeat_seconds=20",
    )
    for index in range(2)
  ]


def log_of(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_log(found, wanted):
  for one, other in zip(found, wanted, strict=True):
    assert one.keys() == other.keys()
    for name in one.keys() - {"seconds", "stage"}:
      np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)


def small_config(data_root):
  return tiny_config(
    data_root, **{"stage_one.epochs": 0, "stage_two.epochs": 3, "controls": (), "validation_pictures": 2}
  )


@pytest.fixture(scope="module")
def alone(data_root, tmp_path_factory):
  """The workdir of one process."""
  folder = tmp_path_factory.mktemp("one") / "run"
  pipeline.train_and_evaluate(small_config(data_root), folder)
  return folder


@pytest.mark.slow
def test_two_processes_agree_with_one_and_only_the_first_speaks(alone, data_root, tmp_path):
  processes = two_processes(small_config(data_root), tmp_path / "two")
  (first, said), (second, nothing) = map(end, processes)
  assert (first, second) == (0, 0), said + nothing
  assert "wrote" in said
  assert [line for line in nothing.splitlines() if not line.startswith("[Gloo]")] == []
  assert_same_log(log_of(tmp_path / "two"), log_of(alone))
  found, wanted = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "two", alone))
  np.testing.assert_allclose(found["mAP"], wanted["mAP"], atol=1e-3)
  np.testing.assert_allclose(found["svm_mAP"], wanted["svm_mAP"], atol=1e-3)
  assert len(list((tmp_path / "two" / "pictures").iterdir())) == 3
  (first, said), (second, nothing) = map(
    end, twice("eval.py", f"--workdir={tmp_path / 'two'}", "--evaluation.feature=h")
  )
  assert (first, second) == (0, 0), said + nothing
  assert "wrote" in said
  assert [line for line in nothing.splitlines() if not line.startswith("[Gloo]")] == []
  wanted = evaluate.evaluate(alone, {"feature": "h"})
  found = json.loads((tmp_path / "two" / "results.json").read_text())
  assert found["svm_feature"] == "h"
  np.testing.assert_allclose(found["svm_mAP"], wanted["svm_mAP"], atol=1e-3)


@pytest.mark.slow
def test_two_processes_name_every_image_that_was_replaced_once(tmp_path):
  paths = [write_csv(tmp_path, split) for split in SPLITS]
  config = thin_config(paths, corrupt="skip", flip=False)
  config.evaluation.batch_size = 4
  for path in sorted(tmp_path.glob("train*.png"))[:3]:
    path.write_bytes(b"no image")
  loop.train(config, tmp_path / "one")
  (first, said), (second, nothing) = map(end, two_processes(config, tmp_path / "two"))
  assert (first, second) == (0, 0), said + nothing
  mine, theirs, wanted = (
    [(line["stage"], line["step"], line["reason"]) for line in workdir.read_lines(tmp_path / name)]
    for name in ("two/skipped.jsonl", "two/skipped-1.jsonl", "one/skipped.jsonl")
  )
  assert mine
  assert theirs
  assert sorted(mine + theirs) == sorted(wanted)


@pytest.mark.slow
def test_a_lost_process_ends_the_run_which_goes_on_with_one(alone, data_root, tmp_path):
  config = small_config(data_root)
  first, second = two_processes(config, tmp_path / "two")
  for line in first.stdout:
    if "epoch 1/3" in line:
      break
  second.send_signal(signal.SIGKILL)
  second.communicate()
  status, said = end(first, timeout=60)
  assert status == 1, said
  assert "error: another process of the run has ended or cannot be reached" in said
  assert len(log_of(tmp_path / "two")) < 3
  loop.train(config, tmp_path / "two")
  assert_same_log(log_of(tmp_path / "two"), log_of(alone))


def test_processes_without_a_coordinator_are_refused():
  status, said = end(start("train.py", "--num_processes=2"))
  assert status == 1
  assert said.strip().splitlines()[-1] == "error: --num_processes and --process_id need --coordinator=HOST:PORT"


@pytest.mark.parametrize(
  ("platform", "head"), [("cuda", "recurrent"), *(("tpu", head) for head in ("recurrent", "saliency", "rarl", "rlsd"))]
)
def test_the_paper_s_train_step_lowers_for_what_is_not_here(platform, head):
  config = voc.get_config(f"512:{head}")
  config.model.dtype = "bfloat16"
  stage = stages.build(config, "stage_two", num_classes=20, num_records=5011)
  state = jax.eval_shape(
    functools.partial(step_lib.init_state, stage.model, stage.optimizer, size=448), jax.random.key(0)
  )
  batch = {
    "image": jax.ShapeDtypeStruct((16, 448, 448, 3), np.uint8),
    "labels": jax.ShapeDtypeStruct((16, 20), np.float32),
    "ignore": jax.ShapeDtypeStruct((16, 20), np.bool_),
    "mask": jax.ShapeDtypeStruct((16,), np.float32),
  }
  train_step = jax.jit(step_lib.make_train_step(stage.model, stage.optimizer, stage.objective), donate_argnums=0)
  exported = jax.export.export(train_step, platforms=[platform])(state, batch)
  assert exported.platforms == (platform,)
  assert "stablehlo.convolution" in exported.mlir_module()
