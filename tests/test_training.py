"""The train step on one device, on two, by jit and by pmap; the loop that is stopped and goes on."""

import functools
import gzip
import json
import os
import re
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits, voc
from rmam_jax import heads, recognizer
from rmam_jax.data import batches
from rmam_jax.ops import attention
from rmam_jax.runtime import files
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import checkpoints, evaluate, loop, pipeline, stages, workdir
from rmam_jax.training import step as step_lib


def tiny_config(data_root, **changes):
  config = digits.get_config("tiny")
  config.data.root = str(data_root)
  config.model.vgg.blocks = ((4,), (8,))
  config.model.x_width = config.model.lstm_width = config.model.z_width = 16
  config.model.num_regions = 3
  config.batch_size = 16
  config.epoch_size = 32
  config.stage_one.epochs = 2
  config.stage_two.epochs = 3
  config.evaluation.batch_size = 20
  config.evaluation.svm_images = 60
  config.evaluation.pictures = 2
  config.validation_pictures = 0
  config.update_from_flattened_dict(changes)
  return config


def small_step(**options):
  config = digits.get_config("tiny")
  config.model.vgg.blocks = ((4,), (8,))
  config.model.x_width = config.model.lstm_width = config.model.z_width = 16
  model = recognizer.build(config.model, 4, head="saliency", auxiliary="score_map")
  optimizer = optax.sgd(0.1)  # plain, so that differences are not hidden by Adam's scaling
  objective = step_lib.Objective("sigmoid", auxiliary_weight=1.0)
  state = jax.jit(functools.partial(step_lib.init_state, model, optimizer, size=24))(jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (8, 24, 24, 3), np.uint8),
    "labels": np.eye(4, dtype=np.float32)[rng.integers(0, 4, 8)],
    "ignore": np.zeros((8, 4), bool),
    "mask": np.ones(8, np.float32),
  }
  return step_lib.make_train_step(model, optimizer, objective, **options), state, batch


def assert_trees_close(one, other, atol):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, atol=atol)


def test_two_devices_by_jit_and_by_pmap_agree_with_one():
  train_step, state, batch = small_step()
  wanted, wanted_metrics = jax.jit(train_step)(state, batch)

  two = mesh_lib.make_mesh()
  assert two.size == 2
  sharded = jax.device_put(batch, mesh_lib.by_example(two))
  by_jit, jit_metrics = jax.jit(train_step)(jax.device_put(state, mesh_lib.replicated(two)), sharded)
  assert_trees_close(by_jit, wanted, 1e-6)

  pmapped, _, _ = small_step(axis_name="data")
  halves = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), batch)
  twice = jax.tree.map(lambda x: jnp.stack([x, x]), state)
  by_pmap, pmap_metrics = jax.pmap(pmapped, axis_name="data")(twice, halves)
  for device in range(2):
    assert_trees_close(jax.tree.map(lambda x, d=device: x[d], by_pmap), wanted, 1e-6)
  assert_trees_close(jit_metrics, wanted_metrics, 1e-5)
  assert_trees_close(jax.tree.map(lambda x: x[0], pmap_metrics), wanted_metrics, 1e-5)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), wanted.params, state.params)
  assert min(jax.tree.leaves(moved["backbone"])) > 1e-5  # or agreeing would prove nothing


def test_the_step_has_the_shapes_it_had_under_jit():
  train_step, state, batch = small_step()
  shapes, _ = jax.eval_shape(train_step, state, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


def test_the_paper_s_model_has_its_parameters_and_its_step_its_shapes():
  config = voc.get_config()
  stage = stages.build(config, "stage_two", num_classes=20, num_records=5011)
  init = functools.partial(step_lib.init_state, stage.model, stage.optimizer, size=448)
  state = jax.eval_shape(init, jax.random.key(0))
  # VGG-16's 13 convolutions; W_fx; the LSTM's gates; W_hz, W_zs and W_zm; each with its bias.
  wanted = 14_714_688 + (25_088 + 1) * 4096 + (2 * 4096 + 1) * 4 * 4096 + (4096 + 1) * (4096 + 20 + 4)
  assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == wanted == 268_592_984
  batch = {
    "image": jax.ShapeDtypeStruct((16, 448, 448, 3), jnp.uint8),
    "labels": jax.ShapeDtypeStruct((16, 20), jnp.float32),
    "ignore": jax.ShapeDtypeStruct((16, 20), jnp.bool_),
    "mask": jax.ShapeDtypeStruct((16,), jnp.float32),
  }
  after, metrics = jax.eval_shape(step_lib.make_train_step(stage.model, stage.optimizer, stage.objective), state, batch)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  assert set(metrics) == {"loss", "classification", "localization", "gradient_norm"}


def test_the_loss_falls_on_one_batch():
  train_step, state, batch = small_step()
  train_step = jax.jit(train_step)
  first = None
  for _ in range(20):
    state, metrics = train_step(state, batch)
    first = first or float(metrics["loss"])
  assert float(metrics["loss"]) < 0.8 * first
  assert {"loss", "classification", "localization", "auxiliary", "gradient_norm"} == set(metrics)


def test_padding_in_a_batch_changes_no_update():
  train_step, state, batch = small_step()
  train_step = jax.jit(train_step)
  padded = {name: np.concatenate([x, np.zeros_like(x[:2])]) for name, x in batch.items()}
  assert_trees_close(train_step(state, padded)[0].params, train_step(state, batch)[0].params, 1e-6)


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_the_whole():
  train_step, state, batch = small_step()
  batch["mask"][-3:] = 0  # so that the parts have unequal numbers of real examples
  as_for_users = {"xla_backend_optimization_level": 3}  # whose sums are closer together than those of quick compiling
  if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:
    as_for_users["xla_cpu_use_fusion_emitters"] = True
  wanted, wanted_metrics = jax.jit(train_step, compiler_options=as_for_users)(state, batch)
  in_parts, _, _ = small_step(accumulate=4)
  for one in (batch, jax.device_put(batch, mesh_lib.by_example(mesh_lib.make_mesh()))):
    found, metrics = jax.jit(in_parts, compiler_options=as_for_users)(state, one)
    assert_trees_close(found, wanted, 1e-6)
    assert_trees_close(metrics, wanted_metrics, 1e-5)


class Sampling(nn.Module):
  """A head that looks at a random place in training, and has a loss of its own."""

  @nn.compact
  def __call__(self, feature_map):
    batch = len(feature_map)
    places = jnp.zeros((1, batch, 4))
    if self.has_rng("look"):
      places = jax.random.normal(self.make_rng("look"), places.shape)
    z = feature_map.mean(axis=(1, 2))[None]
    return attention.Attention(nn.Dense(4)(z), places, z, z, z, places)


def sampling_step(**options):
  config = digits.get_config("tiny")
  config.model.vgg.blocks = ((4,), (8,))
  model = recognizer.build(config.model, 4, head="mean_pool").clone(head=Sampling())

  def head_loss(attention, labels, ignore, mask):
    places = attention.memory[0, :, 0]
    loss = (((attention.scores[0] - labels) * places[:, None]) ** 2).sum(axis=1) @ mask / mask.sum()
    return loss, {"place": places @ mask / mask.sum(), "first": places[0]}

  _, state, batch = small_step()
  state = step_lib.init_state(model, optax.sgd(0.1), jax.random.key(0), 24)
  return (
    step_lib.make_train_step(model, optax.sgd(0.1), step_lib.Objective(head_loss=head_loss), **options),
    state,
    batch,
  )


@pytest.mark.slow
def test_a_head_samples_by_seed_and_step_and_has_its_own_loss():
  train_step, state, batch = sampling_step()
  wanted, metrics = jax.jit(train_step)(state, batch)
  assert set(metrics) == {"loss", "place", "first", "gradient_norm"}
  again, _ = jax.jit(train_step)(state, batch)
  assert_trees_close(again, wanted, 0)
  sharded = jax.device_put(batch, mesh_lib.by_example(mesh_lib.make_mesh()))
  on_two, metrics_on_two = jax.jit(train_step)(state, sharded)
  assert_trees_close((on_two, metrics_on_two), (wanted, metrics), 1e-5)

  def on_devices(count):  # each has the same examples
    copies = jax.tree.map(lambda x: jnp.stack([x] * count), (state, batch))
    pmapped = jax.pmap(sampling_step(axis_name="data")[0], axis_name="data", devices=jax.devices()[:count])
    return pmapped(*copies)[1]["first"][0]

  places = [
    metrics["first"],
    sampling_step(seed=1)[0](state, batch)[1]["first"],
    train_step(state._replace(step=jnp.int32(1)), batch)[1]["first"],
    sampling_step(accumulate=2)[0](state, batch)[1]["first"],  # the mean of two parts' noise
    on_devices(1),
  ]
  assert len({round(float(place), 5) for place in places}) == 5
  assert abs(float(on_devices(2)) - float(on_devices(1))) > 1e-3  # the mean of two devices' noise


def test_computing_stages_again_changes_nothing_and_keeps_less(data_root):
  found = []
  for remat in (False, True):
    stage = stages.build(tiny_config(data_root, remat=remat), "stage_one", num_classes=10, num_records=160)
    state = jax.jit(functools.partial(step_lib.init_state, stage.model, optax.sgd(0.1), size=64))(jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {
      "image": rng.integers(0, 256, (16, 64, 64, 3), np.uint8),
      "labels": np.ones((16, 10), np.float32),
      "ignore": np.zeros((16, 10), bool),
      "mask": np.ones(16, np.float32),
    }
    train_step = step_lib.make_train_step(stage.model, optax.sgd(0.1), stage.objective)
    again = str(jax.make_jaxpr(train_step)(state, batch)).count("remat")
    found.append((jax.jit(train_step)(state, batch)[0], again))
  (plain, none), (computed_again, some) = found
  assert (none, some > 0) == (0, True)
  assert_trees_close(plain, computed_again, 1e-6)


def test_bfloat16_is_for_the_backbone_s_computation_only():
  config = digits.get_config("tiny")
  config.model.dtype = "bfloat16"
  model = recognizer.build(config.model, 4, head="saliency", auxiliary="score_map")
  params = jax.eval_shape(lambda: step_lib.init_params(model, jax.random.key(0), 64))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)
  feature_map = jax.eval_shape(lambda p, x: model.apply({"params": p}, x, method="feature_map"), params, images)
  assert feature_map.dtype == jnp.bfloat16
  recognition = jax.eval_shape(lambda p, x: model.apply({"params": p}, x), params, images)
  attention = recognition.attention
  for array in (attention.scores, attention.thetas, attention.h, attention.z, recognition.auxiliary.scores):
    assert array.dtype == jnp.float32
  labels, ignore, mask = jnp.zeros((2, 4)), jnp.zeros((2, 4), bool), jnp.ones(2)
  loss, _ = jax.eval_shape(lambda r: step_lib.Objective("sigmoid")(r, labels, ignore, mask), recognition)
  assert loss.dtype == jnp.float32


def test_schedules_by_hand():
  paper = step_lib.learning_rate_schedule("step", peak=1e-5, steps=45, drop_at=30)
  np.testing.assert_allclose([paper(0), paper(29), paper(30), paper(44)], [1e-5, 1e-5, 1e-6, 1e-6], rtol=1e-5)
  warm = step_lib.learning_rate_schedule("step", peak=1.0, steps=45, warmup_steps=10, drop_at=30)
  np.testing.assert_allclose([warm(0), warm(5), warm(10), warm(29), warm(30)], [0, 0.5, 1, 1, 0.1], rtol=1e-5)
  cosine = step_lib.learning_rate_schedule("cosine", peak=1.0, steps=100)
  np.testing.assert_allclose([cosine(0), cosine(50), cosine(100)], [1, 0.51, 0.02], rtol=1e-5)
  with pytest.raises(UserError, match="schedule must be 'step' or 'cosine', got 'linear'"):
    step_lib.learning_rate_schedule("linear", peak=1.0, steps=1)


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory):
  """A workdir whose run went through in one piece."""
  folder = tmp_path_factory.mktemp("run") / "whole"
  pipeline.train_and_evaluate(tiny_config(data_root), folder)
  return folder


def lines(folder):
  found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def best_params(config, folder):
  _, params, _ = checkpoints.load_best(config, folder, 10, mesh_lib.make_mesh())
  return params


def test_a_run_leaves_what_it_promises(finished):
  results = json.loads((finished / "results.json").read_text())
  promised = {"mAP", "AP", "CP", "CR", "CF1", "OP", "OR", "OF1", "svm_mAP", "r_precision", "coverage", "pointing"}
  promised |= {f"{control}_{name}" for control in ("chance", "fixed_grid") for name in ("r_precision", "coverage")}
  promised |= {
    "chance_pointing",
    "centred_iou_50",
    "whole_coverage",
    "config",
    "seed",
    "version",
    "wall_seconds",
    "auxiliary_mAP",
  }
  assert promised <= results.keys()
  assert list(results["AP"]) == [str(digit) for digit in range(10)]
  assert results["test_images"] == 40
  assert results["svm_images"] == 60
  assert all(0 <= results[name] <= 1 for name in ("mAP", "svm_mAP", "r_precision", "coverage", "pointing"))
  assert len(list((finished / "pictures").glob("*.png"))) == 3  # two images and the overview
  assert list((finished / "tensorboard" / "stage_two").iterdir())
  log = lines(finished)
  assert [(line["stage"], line["epoch"]) for line in log] == [
    *(("stage_one", epoch) for epoch in (1, 2)),
    *(("stage_two", epoch) for epoch in (1, 2, 3)),
  ]
  assert all(np.isfinite(line["validation_loss"]) for line in log)


def test_the_best_epoch_is_the_one_of_lowest_validation_loss(data_root, tmp_path, monkeypatch):
  config, seen = tiny_config(data_root, **{"stage_one.epochs": 0}), []

  def validate(trainer, stage, forward, params, maps):
    seen.append(jax.device_get(params))
    return {"validation_loss": (0.9, 0.5, 0.7)[len(seen) - 1], "validation_mAP": 0.0}

  monkeypatch.setattr(loop._Trainer, "validate", validate)
  found = loop.train(config, tmp_path / "run")
  assert_trees_close(found, seen[1], 0)
  assert checkpoints.load_best(config, tmp_path / "run", 10, mesh_lib.make_mesh())[2]["best_epoch"] == 2
  assert_trees_close(best_params(config, tmp_path / "run"), seen[1], 0)


def test_evaluating_again_gives_the_same_and_what_is_asked_for_beside(finished, tmp_path):
  before = json.loads((finished / "results.json").read_text())
  page, figures = tmp_path / "page.html", tmp_path / "figures"
  after = evaluate.evaluate_and_print(finished, gallery_page=page, gallery_images=7, figure_folder=figures)
  assert {k: v for k, v in after.items() if k != "wall_seconds"} == {
    k: v for k, v in before.items() if k != "wall_seconds"
  }
  text = page.read_text()
  assert text.count('<figure class="card">') == 7
  assert "40 images, of which the first 7 are shown" in text
  assert text.count("<rect ") == 7 * tiny_config("").model.num_regions
  assert f"{100 * after['coverage']:.1f}" in text
  assert sorted(path.name for path in figures.iterdir()) == ["figure_1.png", "figure_5.png"]
  for paths, flag in (({"gallery_page": page}, "--gallery"), ({"figure_folder": figures}, "--figures")):
    with pytest.raises(UserError, match=f"exists: remove it or name another with {flag}"):
      evaluate.evaluate_and_print(finished, **paths)
  for paths, flag in (
    ({"gallery_page": page.parent / "no" / "g.html"}, "--gallery"),
    ({"figure_folder": page / "f"}, "--figures"),
  ):
    with pytest.raises(UserError, match=f"is no folder: make it or name another with {flag}=OUT"):
      evaluate.evaluate(finished, **paths)
  assert not list(page.parent.glob("*.draft"))


@pytest.mark.parametrize("stop", [("stage_one", 1), ("stage_two", 2)])
def test_a_run_that_was_stopped_ends_where_an_uninterrupted_one_does(finished, data_root, tmp_path, monkeypatch, stop):
  folder, config = tmp_path / "stopped", tiny_config(data_root)
  validate = loop._Trainer.validate

  def interrupt(trainer, stage, forward, params, maps):
    interrupt.epochs += stage.name == stop[0]
    if interrupt.epochs > stop[1]:
      raise KeyboardInterrupt
    return validate(trainer, stage, forward, params, maps)

  interrupt.epochs = 0
  monkeypatch.setattr(loop._Trainer, "validate", interrupt)
  with pytest.raises(KeyboardInterrupt):
    loop.train(config, folder)
  monkeypatch.setattr(loop._Trainer, "validate", validate)
  assert len(lines(folder)) == stop[1] + 2 * (stop[0] == "stage_two")
  # A line beyond the checkpoint, as a kill between the two would leave it.
  with (folder / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"stage": stop[0], "step": 99, "epoch": 99}) + "\n")
  loop.train(config, folder)
  assert lines(folder) == lines(finished)
  one, other = best_params(config, folder), best_params(config, finished)
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), one, other))


def test_stage_two_begins_with_what_stage_one_learned(finished, data_root, monkeypatch):
  config = tiny_config(data_root)
  stage = stages.build(config, "stage_two", num_classes=10, num_records=160)
  fresh = step_lib.init_params(stage.model, jax.random.key(5), 64)
  one = stages.build(config, "stage_one", num_classes=10, num_records=160)
  trained = step_lib.init_params(one.model, jax.random.key(6), 64)
  taken = stages.take_over(fresh, trained, "auxiliary")
  assert taken["backbone"] is trained["backbone"]
  assert taken["auxiliary"] is trained["head"]
  assert taken["head"] is fresh["head"]
  with pytest.raises(ValueError, match="stage one's auxiliary does not fit"):
    stages.take_over({**fresh, "auxiliary": {}}, trained, "auxiliary")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["recurrent", "mean_pool"])
def test_other_heads_run_to_the_end(head, data_root, tmp_path):
  config = digits.get_config(f"tiny:{head}")
  small = tiny_config(data_root)
  config.model.update({"vgg": {"blocks": small.model.vgg.blocks}, "x_width": 16, "lstm_width": 16, "z_width": 16})
  config.update_from_flattened_dict(
    {"data.root": str(data_root), "epoch_size": 32, "batch_size": 16, "stage_one.epochs": 1, "stage_two.epochs": 1}
  )
  results = pipeline.train_and_evaluate(config, tmp_path / head)
  assert ("coverage" in results) == heads.get(head).looks
  assert ("auxiliary_mAP" in results) == (head == "recurrent")


@pytest.mark.slow
def test_stage_one_can_be_left_out_and_the_rest_traced(data_root, tmp_path):
  config = tiny_config(data_root, **{"stage_one.epochs": 0, "stage_two.epochs": 1, "epoch_size": 80})
  loop.train(config, tmp_path / "run", profile_folder=tmp_path / "trace")
  (trace,) = (tmp_path / "trace").rglob("*.trace.json.gz")  # of two steps, which the run's end cut short
  events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
  steps = [event for event in events if event.get("name") == "train" and "dur" in event]
  inputs = [event for event in events if event.get("name") == "input" and "dur" in event]
  assert len(steps) == len(inputs) == 2
  assert [line["stage"] for line in lines(tmp_path / "run")] == ["stage_two"]


def test_the_step_compiles_once_per_stage(data_root, tmp_path, caplog):
  with jax.log_compiles():
    loop.train(tiny_config(data_root), tmp_path / "run")
  compiled = [r.message for r in caplog.records if r.message.startswith("Compiling jit(train_step)")]
  assert len(compiled) == 2


def test_a_workdir_of_another_configuration_is_refused(finished, data_root):
  other = tiny_config(data_root, **{"model.num_regions": 4, "seed": 7})
  with pytest.raises(UserError, match=r"model\.num_regions \(3 there, 4 now\); seed \(0 there, 7 now\)"):
    loop.train(other, finished)


def test_fields_that_change_nothing_learned_may_differ_and_count_from_then_on(finished, data_root):
  harmless = {"data.threads": 7, "accumulate": 2, "remat": True, "loss.rarl.policy_weight": 3.0, "data.corrupt": "skip"}
  changed = tiny_config(data_root, **harmless, **{"evaluation.top_k": 2, "evaluation.pictures": 0})
  before = (finished / "config.json").read_text()
  workdir.claim(finished, changed, [str(digit) for digit in range(10)], {})
  assert workdir.read_config(finished) == changed
  (finished / "config.json").write_text(before)


def test_a_workdir_of_before_a_field_takes_its_default(finished, data_root):
  path = finished / "config.json"
  before = path.read_text()
  fields = json.loads(before)
  del fields["model"]["saliency"]["peak_width"], fields["rpn"], fields["evaluation"]["top_k"]
  path.write_text(json.dumps(fields))
  assert workdir.read_config(finished) == tiny_config(data_root)
  workdir.check(finished, tiny_config(data_root))
  with pytest.raises(UserError, match=r"it differs in model\.saliency\.peak_width \(0\.2 there, 0\.3 now\)"):
    workdir.check(finished, tiny_config(data_root, **{"model.saliency.peak_width": 0.3}))
  path.write_text(json.dumps({**fields, "modul": 1}))
  with pytest.raises(UserError, match=r"config\.json: rmam_jax .* knows no field modul"):
    workdir.read_config(finished)
  path.write_text(before)


def test_a_workdir_that_cannot_be_used_is_named(tmp_path, data_root):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match=r"cannot use .*file/run as workdir.*--workdir=DIR"):
    loop.train(tiny_config(data_root), tmp_path / "file" / "run")
  with pytest.raises(UserError, match=r"holds no config\.json"):
    evaluate.evaluate(tmp_path)


def test_a_full_disk_is_refused_before_training(tmp_path, data_root, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
  with pytest.raises(UserError, match=r"has 0 MB free and the checkpoints need \d+ MB"):
    loop.train(tiny_config(data_root), tmp_path / "run")
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
  # In a process of its own: Orbax leaves coroutines behind when a write fails.
  code = f"""
import pathlib, resource
import jax.numpy as jnp, numpy as np
from rmam_jax.training import checkpoints, step as step_lib

saved = checkpoints.StageCheckpoints(pathlib.Path({str(tmp_path)!r}))

def state(number):
  values = np.random.default_rng(number).normal(size=100_000).astype(np.float32)
  return step_lib.TrainState(jnp.int32(number), {{"w": jnp.asarray(values)}}, ())

saved.save_last(state(1), {{"best_loss": 0.5}})
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))  # as full a disk as a test can have
try:
  saved.save_last(state(2), {{}})
except ValueError as error:
  print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
restored, progress = saved.restore_last(state(0))
print("restored", int(restored.step), progress, bool((restored.params["w"] == state(1).params["w"]).all()))
"""
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
  assert f"cannot write a checkpoint below {tmp_path}/last: " in found
  assert "is untouched: free or open the folder and run the same command again" in found
  assert "restored 1 {'best_loss': 0.5} True" in found


def test_a_workdir_of_another_version_says_so(finished, tmp_path):
  other = workdir.read_config(finished)
  with other.unlocked():
    other.model.z_width = 17
  with pytest.raises(
    ValueError, match=r"best/6 is of another model: head/.* is float32\[16\] there and float32\[17\] in the config"
  ):
    checkpoints.load_best(other, finished, 10, mesh_lib.make_mesh())
  config = json.loads((finished / "config.json").read_text())
  files.write_json(tmp_path / "config.json", config | {"format": 1})
  with pytest.raises(UserError, match=r"config.json is of format 1, of another version of rmam_jax.*train again into"):
    evaluate.evaluate(tmp_path)


def test_a_folder_of_other_classes_is_refused_and_stays_as_it_is(tmp_path, data_root):
  folder, names = tmp_path / "run", [str(digit) for digit in range(10)]
  workdir.claim(folder, tiny_config(data_root), names, {})
  workdir.claim(folder, tiny_config(data_root), names, {})  # its own
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  with pytest.raises(UserError, match=r"classes\.json names other classes than digits/tiny has now"):
    workdir.claim(folder, tiny_config(data_root), names[::-1], {})
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_without_stage_two_says_so(tmp_path, data_root):
  workdir.claim(tmp_path / "run", tiny_config(data_root), [str(digit) for digit in range(10)], {})
  with pytest.raises(UserError, match="holds no checkpoint of stage two"):
    evaluate.evaluate(tmp_path / "run")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model.num_regions": 0}, r"model\.num_regions must be at least 1, got 0"),
    (
      {"loss.classification": "hinge"},
      "classification must be one of euclidean, sigmoid, asymmetric, focal, got 'hinge'",
    ),
    ({"batch_size": 5}, "batch_size 5 and .* must be multiples of the 2 devices"),
    ({"accumulate": 3}, "accumulate must be at least 1 and cut batch_size 16 into equal parts, .*2 devices, got 3"),
    ({"batch_size": 1000}, "batch_size must be between 1 and the 160 records, got 1000"),
    ({"stage_two.schedule": "linear"}, "schedule must be"),
    ({"stage_two.epochs": 0}, r"stage_two\.epochs must be at least 1, got 0"),
  ],
)
def test_impossible_configurations_are_refused(changes, message, data_root, tmp_path):
  with pytest.raises(UserError, match=message):
    loop.train(tiny_config(data_root, **changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_step_that_is_not_finite_changes_nothing():
  train_step, state, batch = small_step()
  train_step = jax.jit(train_step)
  state, _ = train_step(state, batch)
  broken = batch | {"labels": np.where(np.arange(8)[:, None] == 3, np.float32(np.inf), batch["labels"])}
  after, metrics = train_step(state, broken)
  assert not np.isfinite(metrics["loss"])
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), after, state))
  # A loss that is finite and has no finite gradient: a score of 1e25, squared, in float32.
  far = state._replace(params=jax.tree.map(lambda x: x * 1e12, state.params))
  after, metrics = train_step(far, batch)
  assert np.isfinite(metrics["loss"])
  assert not np.isfinite(metrics["gradient_norm"])
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), after, far))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(data_root, tmp_path, monkeypatch):
  config, folder, train_batches = tiny_config(data_root), tmp_path / "run", batches.train_batches
  seen = []

  def broken_batches(*arguments, **options):
    for batch in train_batches(*arguments, **options):
      seen.append(batch["ids"])
      if len(seen) == 3:  # of stage one: the first step of its second epoch
        batch["mask"] = np.full_like(batch["mask"], np.nan)
      yield batch

  monkeypatch.setattr(batches, "train_batches", broken_batches)
  with pytest.raises(UserError) as raised:
    loop.train(config, folder)
  assert re.search(
    r"^stage_one, step 3: classification, gradient_norm, loss not finite, with the records ", str(raised.value)
  )
  assert ", ".join(seen[2]) in str(raised.value)
  assert len(set(seen[2])) == 16
  assert [line["step"] for line in lines(folder)] == [2]
  monkeypatch.setattr(batches, "train_batches", train_batches)
  loop.train(config, folder)
  assert [line["step"] for line in lines(folder)] == [2, 4, 2, 4, 6]


@pytest.mark.parametrize(
  ("head", "counts"), [("saliency", False), ("rarl", True), ("rlsd", True), ("rlsd_ft_rpn", True)]
)
def test_parts_of_a_batch_count_for_heads_that_sample(head, counts):
  config = digits.get_config(f"tiny:{head}")

  def determines():
    return "accumulate" in workdir.determining(workdir.flatten(json.loads(config.to_json())), config)

  assert determines() == counts
  config.model.freeze_norm = False  # each part has a mean and a variance of its own
  assert determines()
