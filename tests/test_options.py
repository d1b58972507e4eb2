"""What a training may have beside: weighted and smoothed labels, mixed images, averaged weights, an early end."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import assert_trees_close, best_params, lines, small_step, tiny_config

import rmam_jax
from configs import digits
from rmam_jax import heads
from rmam_jax.data.splits import open_split
from rmam_jax.evaluation import calibration
from rmam_jax.ops import attention, losses, two_stream
from rmam_jax.recognizer import Recognition
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import checkpoints, exported, loop, stages
from rmam_jax.training import step as step_lib

COUNTS = {"num_classes": 10, "num_records": 160, "positives": [5] * 10}


def stage_two(head="recurrent", **changes):
  config = digits.get_config(f"tiny:{head}")
  config.update_from_flattened_dict(changes)
  return stages.build(config, "stage_two", **COUNTS)


def recognition_of(scores):
  whole_image = jnp.tile(jnp.array([1.0, 1, 0, 0]), (1, len(scores), 1))
  found = attention.Attention(scores[None], whole_image, scores[None], scores[None], scores[None], ())
  return Recognition(found, None)


def test_balanced_weights_by_hand():
  config = digits.get_config("tiny")
  for balanced in (("balanced",), "balanced"):
    fields = {"class_weights": balanced, "max_class_weight": 4.0}
    # The mean is 6: a class of 3 counts twice, one of 1 six times, but at most four; one without any as it is.
    found = stages.class_weights(type(config)({**config.loss, **fields}), 5, [12, 3, 1, 0, 14])
    np.testing.assert_allclose(found, [0.5, 2, 4, 1, 6 / 14])


def test_balanced_weights_come_from_the_training_labels(data_root):
  config = tiny_config(data_root, **{"loss.class_weights": ("balanced",)})
  train = open_split(config.data, "train")
  counts = sum(train[index].labels for index in range(len(train)))
  np.testing.assert_array_equal(train.positives(), counts)
  one, two = stages.build_all(config, train)
  for stage in (one, two):
    np.testing.assert_allclose(stage.objective.options["class_weights"], counts.mean() / counts, rtol=1e-6)


def test_the_objective_has_the_loss_s_options():
  scores = jnp.asarray(np.random.default_rng(0).normal(size=(4, 10)), jnp.float32)
  labels, ignore, mask = jnp.eye(4, 10), jnp.zeros((4, 10), bool), jnp.ones(4)
  weights = tuple(range(1, 11))
  fields = {"loss.classification": "asymmetric", "loss.asymmetric.gamma_neg": 3.0, "loss.class_weights": weights}
  objective = stage_two("mean_pool", **fields).objective
  loss, terms = objective(recognition_of(scores), labels, ignore, mask)
  wanted = losses.asymmetric_loss(scores, labels, gamma_neg=3.0, class_weights=weights)
  np.testing.assert_allclose([loss, terms["classification"]], [wanted] * 2, rtol=1e-6)
  assert abs(float(wanted) - float(losses.asymmetric_loss(scores, labels))) > 0.1


def test_smoothed_labels_by_hand():
  objective = stage_two("mean_pool", **{"loss.label_smoothing": 0.2}).objective
  # sigmoid(log 3) = 3/4: the label 1 becomes 0.9; sigmoid(0) = 1/2, whatever the label.
  scores, labels = jnp.array([[np.log(3.0), 0.0]]), jnp.array([[1.0, 0.0]])
  loss, _ = objective(recognition_of(scores), labels, jnp.zeros((1, 2), bool), jnp.ones(1))
  np.testing.assert_allclose(loss, -0.9 * np.log(3 / 4) - 0.1 * np.log(1 / 4) - np.log(1 / 2), rtol=1e-6)
  # What chooses the best epoch is the loss of the labels as they are.
  np.testing.assert_allclose(objective.classification_loss(scores, labels), -np.log(3 / 8), rtol=1e-6)


def test_two_streams_learn_by_any_loss_of_log_odds():
  rng = np.random.default_rng(0)
  branches = jnp.asarray(rng.normal(size=(3, 3, 10)), jnp.float32)  # regions, dense, attended
  memory = two_stream.Branches(*branches, weights=None, cells=None, features=None)
  found = recognition_of(branches[0]).attention._replace(memory=memory)
  labels, ignore, mask = jnp.eye(3, 10), jnp.zeros((3, 10), bool), jnp.ones(3)
  for kind in losses.SIGMOIDS:
    objective = stage_two("two_stream", **{"loss.classification": kind, "loss.class_weights": (2.0,) * 10}).objective
    loss, _ = objective.head_loss(found, labels, ignore, mask)
    plain = losses.CLASSIFICATION_LOSSES[kind]
    np.testing.assert_allclose(loss, 2 * sum(plain(each, labels) for each in branches), rtol=1e-5)


@pytest.mark.parametrize("kind", ["asymmetric", "focal"])
def test_scores_of_these_losses_are_calibrated_as_a_sigmoid_s(kind):
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(400, 3)).astype(np.float32) * 4
  labels = (rng.random((400, 3)) < 1 / (1 + np.exp(-scores / 2))).astype(np.float32)  # half as sure as they look
  temperature = calibration.fit_temperature(scores, labels, labels > 1, kind)
  assert temperature == calibration.fit_temperature(scores, labels, labels > 1, "sigmoid")
  assert 1.7 < temperature < 2.4
  thresholds = calibration.make_thresholds(kind, {}, top_k=1)
  np.testing.assert_array_equal(thresholds.chosen(scores), scores >= 0)


@pytest.mark.parametrize(
  ("head", "changes", "message"),
  [
    ("rlsd", {"loss.classification": "focal"}, "head 'rlsd' learns label sequences .* got 'focal'"),
    ("rlsd", {"loss.class_weights": (2.0,) * 10}, r"leave loss\.class_weights empty"),
    ("rlsd", {"loss.label_smoothing": 0.1}, r"label_smoothing is 0\.1, but the loss of head 'rlsd' needs labels that"),
    (
      "rarl",
      {"stage_two.mixup": 0.2},
      r"stage_two\.mixup is 0\.2, but the loss of head 'rarl' needs labels that are 0",
    ),
    ("two_stream", {"loss.classification": "euclidean"}, "'two_stream' learns log-odds: set loss.classification"),
    (
      "mean_pool",
      {"loss.classification": "euclidean", "loss.label_smoothing": 0.1},
      "that of stage_two is 'euclidean'",
    ),
    ("mean_pool", {"loss.label_smoothing": 1.0}, r"label_smoothing must be a share, .* got 1\.0"),
    (
      "mean_pool",
      {"loss.class_weights": (1.0, 2.0)},
      r"a positive number for each of the 10 classes, got \(1\.0, 2\.0",
    ),
    ("mean_pool", {"loss.class_weights": (0.0,) * 10}, "a positive number for each of the 10 classes"),
    ("mean_pool", {"loss.class_weights": ("rare",)}, r"must be 'balanced' or .*got \('rare',\)"),
    (
      "mean_pool",
      {"loss.class_weights": ("balanced",), "loss.max_class_weight": 0.0},
      r"max_class_weight must be above 0, got 0\.0",
    ),
    (
      "mean_pool",
      {"loss.classification": "asymmetric", "loss.asymmetric.clip": 2.0},
      r"loss\.asymmetric\.clip must be in \[0, 1\], got 2\.0",
    ),
    (
      "mean_pool",
      {"loss.classification": "focal", "loss.focal.gamma": -1.0},
      r"loss\.focal\.gamma must be in \[0, inf\], got -1\.0",
    ),
    ("mean_pool", {"stage_two.mixup": -1.0}, r"stage_two\.mixup must be 0 or more"),
    ("mean_pool", {"stage_two.ema": 1.0}, r"stage_two\.ema must be the decay of an average, .* got 1\.0"),
    ("mean_pool", {"stage_two.patience": -1}, r"stage_two\.patience must be 0 or more, got -1"),
    ("mean_pool", {"data.augmentation.jitter": 2.0}, r"data\.augmentation\.jitter must be in \[0, 1\], got 2\.0"),
    (
      "mean_pool",
      {"data.augmentation.cutout": 0.5, "stage_one.backbone_rate": 0.0, "stage_two.backbone_rate": 0.0},
      r"data\.augmentation changes images, but with backbone_rate 0 every stage learns from stored feature maps",
    ),
  ],
)
def test_what_has_no_meaning_is_refused(head, changes, message):
  with pytest.raises(UserError, match=message):
    stage_two(head, **changes)


def test_mixup_is_not_for_heads_that_look_at_boxes_of_single_images(data_root):
  config = tiny_config(data_root, **{"model.head": "proposals", "stage_two.mixup": 0.2, "stage_one.head": "mean_pool"})
  config.data.proposals, config.data.num_proposals, config.evaluation.views = "jittered", 3, "centre"
  with pytest.raises(UserError, match="'proposals' looks at boxes of single images: set it to 0"):
    stages.build(config, "stage_two", **COUNTS)


def test_mixing_by_hand(monkeypatch):
  monkeypatch.setattr(jax.random, "beta", lambda key, a, b: jnp.float32(0.75))
  batch = {
    "image": np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1) * np.ones((1, 2, 2, 3), np.uint8) * 40,
    "labels": np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32),
    "ignore": np.array([[0, 0], [0, 0], [0, 0], [0, 0]], bool),
    "mask": np.array([1, 1, 1, 0], np.float32),
  }
  batch["ignore"][1, 0] = True
  found = step_lib.mix(batch, jax.random.key(0), 0.2)
  # The first one's neighbour is padding.
  np.testing.assert_allclose(found["image"][:3, 0, 0, 0], [0, 0.75 * 40, 0.75 * 80 + 0.25 * 40])
  np.testing.assert_allclose(found["labels"][:3], [[1, 0], [0.25, 0.75], [0.75, 1]])
  np.testing.assert_array_equal(found["ignore"][:3], [[0, 0], [1, 0], [1, 0]])
  np.testing.assert_array_equal(found["mask"], batch["mask"])
  maps = {name: array for name, array in batch.items() if name != "image"} | {
    "feature_map": batch["image"].astype(np.float16)
  }
  np.testing.assert_array_equal(step_lib.mix(maps, jax.random.key(0), 0.2)["feature_map"], found["image"])


@pytest.mark.slow
def test_a_step_on_mixed_images_is_a_step_on_their_mixture():
  mixing, state, batch = small_step(mixup=4.0, seed=5)
  plain, _, _ = small_step(seed=5)
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), 1)
  mixed = step_lib.mix(batch, key, 4.0)
  assert 0.05 < float(mixed["labels"].max(axis=1).min()) < 0.95
  found, metrics = jax.jit(mixing)(state, batch)
  wanted, wanted_metrics = jax.jit(plain)(state, mixed)
  assert_trees_close((found, metrics), (wanted, wanted_metrics), 1e-6)
  in_parts, _, _ = small_step(mixup=4.0, seed=5, accumulate=2)
  assert_trees_close(jax.jit(in_parts)(state, batch)[0], wanted, 1e-5)
  later = jax.jit(mixing)(state._replace(step=jnp.int32(1)), batch)[1]
  assert abs(float(later["loss"]) - float(metrics["loss"])) > 1e-4


def test_the_average_by_hand():
  # 0 + (1 - 1/10) x 1 = 0.9; 0.9 + (1 - 2/11) x (2 - 0.9) = 1.8; then the decay of 0.2 is the lower one: 0.2 x 1.8 + 0.8 x 3.
  average, found = {"w": jnp.zeros(1)}, []
  for step, value in enumerate([1.0, 2.0, 3.0]):
    average = step_lib.moving_average(average, {"w": jnp.full(1, value)}, jnp.int32(step), 0.2)
    found.append(float(average["w"][0]))
  np.testing.assert_allclose(found, [0.9, 1.8, 2.76], rtol=1e-6)
  odd = {"w": jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)}
  odd["w"] = odd["w"].at[:3].set(jnp.array([-0.0, 5.6e-45, -1e-40], jnp.float32))
  same = jax.jit(step_lib.moving_average)(odd, odd, jnp.int32(7), 0.999)
  assert np.asarray(same["w"]).tobytes() == np.asarray(odd["w"]).tobytes()


@pytest.mark.oracle
def test_the_average_is_torch_s_and_changes_no_step():
  torch = pytest.importorskip("torch")
  averaging, state, batch = small_step(ema=0.15)
  plain, _, _ = small_step()
  averaging, plain = jax.jit(averaging), jax.jit(plain)
  averaged, alone = state._replace(average=state.params), state
  path = [np.asarray(jax.tree.leaves(state.params["head"])[0])]
  for _ in range(4):
    (averaged, _), (alone, _) = averaging(averaged, batch), plain(alone, batch)
    path.append(np.asarray(jax.tree.leaves(alone.params["head"])[0]))
  assert_trees_close(averaged.params, alone.params, 1e-6)
  assert alone.average is None
  assert alone.result is alone.params
  assert averaged.result is averaged.average
  wanted = torch.tensor(path[0])
  for step, leaf in enumerate(path[1:]):
    wanted.lerp_(torch.tensor(leaf), 1 - min(0.15, (1 + step) / (10 + step)))
  found = jax.tree.leaves(averaged.average["head"])[0]
  np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)
  assert np.abs(found - path[-1]).max() > 1e-5


AVERAGED = {"stage_one.epochs": 1, "stage_one.ema": 0.9, "stage_two.ema": 0.9, "epoch_size": 48, "stage_two.mixup": 0.4}


@pytest.mark.slow
def test_the_average_is_validated_kept_exported_and_resumed(data_root, tmp_path, monkeypatch):
  config, folder = tiny_config(data_root, **AVERAGED), tmp_path / "whole"
  seen, validate = {}, loop._Trainer.validate

  def watch(trainer, stage, forward, params, maps):
    found = validate(trainer, stage, forward, params, maps)
    seen.setdefault(stage.name, []).append((found["validation_loss"], jax.device_get(params)))
    return found

  monkeypatch.setattr(loop._Trainer, "validate", watch)
  loop.train(config, folder)
  best = min(seen["stage_two"], key=lambda pair: pair[0])[1]
  kept = best_params(config, folder)
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), kept, best))
  exported.export(folder, tmp_path / "model")
  (here,) = rmam_jax.load(tmp_path / "model").predict([np.zeros((64, 64, 3), np.uint8)])
  assert here.probabilities.shape == (10,)
  shipped = exported.load(tmp_path / "model").params
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), shipped, best))

  # The last state has the weights themselves, too, and these are others.
  stage = stages.build(config, "stage_two", **COUNTS)
  state = jax.eval_shape(
    lambda key: step_lib.init_state(stage.model, stage.optimizer, key, 64, averaged=True), jax.random.key(0)
  )
  like = checkpoints.abstract(state, mesh_lib.replicated(mesh_lib.make_mesh()))
  last, _ = checkpoints.StageCheckpoints(folder / "checkpoints" / "stage_two").restore_last(like)
  assert_trees_close(last.average, seen["stage_two"][-1][1], 0)
  apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), last.params["head"], last.average["head"])
  assert max(jax.tree.leaves(apart)) > 1e-4

  def interrupt(trainer, stage, forward, params, maps):
    if stage.name == "stage_two" and len(lines(tmp_path / "stopped")) == 2:
      raise KeyboardInterrupt
    return validate(trainer, stage, forward, params, maps)

  monkeypatch.setattr(loop._Trainer, "validate", interrupt)
  with pytest.raises(KeyboardInterrupt):
    loop.train(config, tmp_path / "stopped")
  monkeypatch.setattr(loop._Trainer, "validate", validate)
  loop.train(config, tmp_path / "stopped")
  assert lines(tmp_path / "stopped") == lines(folder)
  again = best_params(config, tmp_path / "stopped")
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), again, kept))


@pytest.mark.slow
def test_a_stage_ends_after_its_patience_and_stays_ended(data_root, tmp_path, monkeypatch, capsys):
  changes = {"stage_one.epochs": 0, "stage_two.epochs": 9, "stage_two.patience": 2, "epoch_size": 16}
  config, folder, seen = tiny_config(data_root, **changes), tmp_path / "run", []

  def validate(trainer, stage, forward, params, maps):
    if len(seen) == 3 and not stopped:
      stopped.append(True)
      raise KeyboardInterrupt
    seen.append(jax.device_get(params))
    return {"validation_loss": (0.9, 0.5, 0.7, 0.4, 0.6, 0.4)[len(seen) - 1], "validation_mAP": 0.0}

  stopped = []
  monkeypatch.setattr(loop._Trainer, "validate", validate)
  with pytest.raises(KeyboardInterrupt):  # within the patience: one epoch after the best
    loop.train(config, folder)
  found = loop.train(config, folder)
  assert [line["epoch"] for line in lines(folder)] == [1, 2, 3, 4, 5, 6]
  assert_trees_close(found, seen[3], 0)
  assert_trees_close(loop.train(config, folder), seen[3], 0)
  assert len(seen) == 6  # nothing was trained any more
  assert "stopped, as no epoch after 4 had a lower validation loss" in capsys.readouterr().out


ALONE = sorted(name for name, spec in heads.SPECS.items() if not spec.guide)


@pytest.mark.slow
@pytest.mark.parametrize("head", ALONE)
def test_stage_two_alone_trains_every_head_that_needs_no_guide(head, data_root, tmp_path):
  changes = {"model.head": head, "stage_one.epochs": 0, "stage_one.head": "", "stage_two.auxiliary_weight": 0.0}
  one_step = {"stage_two.epochs": 1, "epoch_size": 16}
  loop.train(tiny_config(data_root, **changes, **one_step), tmp_path / "run")
  (line,) = lines(tmp_path / "run")
  assert (line["stage"], line["epoch"]) == ("stage_two", 1)
  assert np.isfinite(line["validation_loss"])
  assert json.loads((tmp_path / "run" / "config.json").read_text())["stage_one"]["head"] == ""
