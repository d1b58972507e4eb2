"""Metric writers: what TensorBoard and W&B read of a run is what happened, once, also after a run that was stopped."""

import io
import json
import struct
import sys

import numpy as np
import pytest
from PIL import Image
from test_training import lines, tiny_config

from rmam_jax.runtime.errors import UserError
from rmam_jax.training import checkpoints, loop, writers


def test_the_lines_lose_none_and_double_none(tmp_path):
  path = tmp_path / "metrics.jsonl"
  sound = [{"stage": "stage_one", "step": number} for number in (4, 8)]
  path.write_text("".join(json.dumps(line) + "\n" for line in sound) + '{"stage": "stage_two", "st')  # cut short
  writers.JsonLines(tmp_path, "stage_two", 0).close()
  assert [json.loads(line) for line in path.read_text().splitlines()] == sound
  log = writers.JsonLines(tmp_path, "stage_one", 4)
  assert [json.loads(line) for line in path.read_text().splitlines()] == sound[:1]
  log.write_scalars(6, {"loss": 0.5})
  assert json.loads(path.read_text().splitlines()[-1]) == {"stage": "stage_one", "step": 6, "loss": 0.5}
  path.write_text("no JSON\n")
  with pytest.raises(UserError, match=f"{path} is damaged .* mend or remove the line"):
    writers.JsonLines(tmp_path, "stage_one", 4)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ("jsonl,tensorbord", "writers must be one of jsonl, tensorboard, wandb, got 'tensorbord'; did you mean"),
    ("tensorboard", "writers must name jsonl, which evaluation reads, .* set it to jsonl,tensorboard"),
    ("", "writers must be one of"),
    ("jsonl,wandb", r"writers names wandb, which pip install 'rmam_jax\[wandb\]' brings"),
  ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(data_root, tmp_path, monkeypatch, given, message):
  monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
  with pytest.raises(UserError, match=message):
    loop.train(tiny_config(data_root, writers=given), tmp_path / "run")
  with pytest.raises(UserError, match="validation_pictures must be 0 or more, got -1"):
    loop.train(tiny_config(data_root, validation_pictures=-1), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def crash_at(monkeypatch, call):
  """The process ends just before the last state is saved for the `call`th time: all was written of this epoch."""
  save, calls = checkpoints.StageCheckpoints.save_last, []

  def save_last(*arguments):
    calls.append(None)
    if len(calls) == call:
      raise ZeroDivisionError
    save(*arguments)

  monkeypatch.setattr(checkpoints.StageCheckpoints, "save_last", save_last)


@pytest.mark.slow
@pytest.mark.oracle
def test_tensorboard_reads_every_epoch_once_and_the_pictures_of_the_best(data_root, tmp_path, monkeypatch):
  accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
  folder, config = tmp_path / "run", tiny_config(data_root, **{"stage_one.epochs": 1, "validation_pictures": 2})
  with monkeypatch.context() as patched:
    crash_at(patched, 3)  # of stage two's second epoch
    with pytest.raises(ZeroDivisionError):
      loop.train(config, folder)
  loop.train(config, folder)
  log = [line for line in lines(folder) if line["stage"] == "stage_two"]
  found = accumulators.EventAccumulator(str(folder / "tensorboard" / "stage_two"), {"images": 0}).Reload()
  for name in ("loss", "validation_loss", "validation_mAP"):
    seen = [(event.step, event.value) for event in found.Scalars(name)]
    np.testing.assert_allclose(seen, [(line["step"], line[name]) for line in log], rtol=1e-6)
  losses = [line["validation_loss"] for line in log]
  better = [line["step"] for index, line in enumerate(log) if line["validation_loss"] == min(losses[: index + 1])]
  assert found.Tags()["images"] == ["validation/1", "validation/2"]
  for tag in found.Tags()["images"]:
    assert [event.step for event in found.Images(tag)] == better
  with Image.open(io.BytesIO(found.Images("validation/1")[0].encoded_image_string)) as image:
    assert image.size == (640, 460)
    assert (np.asarray(image.convert("RGB")) == (0xE6, 0x9F, 0x00)).all(axis=-1).any()  # the first region's colour
  one = accumulators.EventAccumulator(str(folder / "tensorboard" / "stage_one")).Reload()
  assert one.Tags()["images"] == []  # a head that does not look
  fields = one.summary_metadata["_hparams_/session_start_info"].plugin_data.content
  assert b"model.num_regions" in fields


def records(path):
  """The records of a .wandb file: LevelDB's log of protocol buffers, after a header of 7 bytes."""
  from wandb.proto import wandb_internal_pb2

  content, place, parts = path.read_bytes(), 7, b""
  while place < len(content):
    left = 32768 - place % 32768
    if left < 7:  # the rest of a block, of zeros
      place += left
      continue
    _, size, kind = struct.unpack("<IHB", content[place : place + 7])
    parts += content[place + 7 : place + 7 + size]
    place += 7 + size
    if kind in (1, 4):  # whole, or the last part
      record = wandb_internal_pb2.Record.FromString(parts)
      parts = b""
      yield record


@pytest.mark.oracle
def test_wandb_gets_each_stage_as_one_run_that_goes_on_as_itself(tmp_path, monkeypatch):
  wandb = pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  for stage, steps in (("stage_one", (2, 4)), ("stage_two", (2,)), ("stage_two", (4,))):  # the last goes on
    log = writers.open_writers("jsonl,wandb", tmp_path, stage, steps[0] - 2)
    log.write_hparams({"model.num_regions": 5})
    for step in steps:
      log.write_scalars(step, {"loss": 1 / step})
      log.write_images(step, {"validation": np.full((2, 20, 30, 3), step, np.uint8)})
    log.close()
    if stage == "stage_two":
      wandb.teardown()  # as at the end of a process: W&B's own has written everything when it ends
  runs, seen = [], []
  for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
    for record in records(path):
      if record.HasField("run"):
        runs.append((record.run.job_type, record.run.run_id, record.run.run_group, record.run.project))
      elif record.HasField("history"):
        values = {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        seen.append((runs[-1][0], values["_step"], values["loss"], values["validation.count"]))
  known = {stage: (tmp_path / "wandb" / f"{stage}.id").read_text() for stage in ("stage_one", "stage_two")}
  wanted = [(stage, known[stage], str(tmp_path), "rmam_jax") for stage in ("stage_one", "stage_two", "stage_two")]
  assert sorted(runs) == wanted
  assert sorted(seen) == [(stage, step, 1 / step, 2) for stage in known for step in (2, 4)]


@pytest.mark.oracle
def test_why_wandb_begins_no_run_is_said_in_one_line(tmp_path, monkeypatch):
  wandb = pytest.importorskip("wandb")

  def init(**_):
    raise wandb.errors.UsageError("No API key configured.")

  monkeypatch.setattr(wandb, "init", init)
  with pytest.raises(UserError, match=r"W&B begins no run \(No API key configured.\): .* set WANDB_MODE=offline, or"):
    writers.open_writers("jsonl,wandb", tmp_path, "stage_one", 0)
