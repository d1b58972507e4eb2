"""RARL: its episodes, the reward by hand, and REINFORCE against exact gradients and a policy that is known to be best."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import coco, common, digits, voc
from rmam_jax.inference import predictor
from rmam_jax.ops import attention, losses, rarl, spatial_transformer
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import exported, loop, pipeline, stages
from rmam_jax.training import step as step_lib

SHAPES = rarl.region_shapes((0.3, 0.5), (2.0, 1.0, 0.5))


def small_case(batch=3, seed=0):
  rng = np.random.default_rng(seed)
  feature_map = rng.normal(size=(batch, 6, 5, 4)).astype(np.float32)
  widths = {"channels": 4, "num_classes": 5, "region_size": (3, 3), "x_width": 8, "lstm_width": 7, "z_width": 9}
  params = rarl.init_attention(jax.random.key(seed), policy_scale=1.0, **widths)
  # Weights of the baseline are zero at first, which would hide where its gradient goes.
  params["baseline"] = {"kernel": jnp.asarray(rng.normal(size=(7, 1)), jnp.float32), "bias": jnp.ones(1)}
  return params, jnp.asarray(feature_map)


@functools.partial(jax.jit, static_argnames="steps")
def episode(params, feature_map, *, key=None, shapes=SHAPES, steps=4):
  return rarl.attend(params, feature_map, key=key, steps=steps, shapes=shapes, deviation=0.2, region_size=(3, 3))


def test_shapes_by_hand():
  found = rarl.region_shapes((0.25, 0.5), (4.0, 1.0))
  np.testing.assert_allclose(found, [[0.5, 0.125], [0.25, 0.25], [1.0, 0.25], [0.5, 0.5]])
  section = common.get_config().model.rarl
  pixels = 512 * rarl.region_shapes(section.sizes, section.aspects)
  assert len(pixels) == 9
  np.testing.assert_allclose(np.sqrt(pixels.prod(axis=1)), np.repeat([80, 160, 240], 3), rtol=1e-5)
  np.testing.assert_allclose(pixels[:, 0] / pixels[:, 1], np.tile([2, 1, 0.5], 3), rtol=1e-5)


def test_an_episode_written_out():
  """Against a loop over steps and regions in numpy, with the sampler and the LSTM of RMAM."""
  params, feature_map = small_case()
  key = jax.random.key(3)
  found = episode(params, feature_map, key=key)
  noise = np.asarray(jax.random.normal(key, (4, 3, 2)))
  layer = {
    name: (np.asarray(tree["kernel"]), np.asarray(tree["bias"])) for name, tree in params.items() if name != "lstm"
  }

  def affine(name, array):
    return array @ layer[name][0] + layer[name][1]

  def seen(theta, state):
    f = attention.region_features(feature_map, theta, (3, 3))
    return attention.lstm_step(params["lstm"], state, np.maximum(affine("fx", np.asarray(f)), 0))[0]

  zeros = np.zeros((3, 7), np.float32)
  c, h = seen(jnp.tile(jnp.asarray(spatial_transformer.WHOLE_IMAGE), (3, 1)), (zeros, zeros))
  for t in range(4):
    mean = np.tanh(affine("policy", np.asarray(h)))
    centre = mean + 0.2 * noise[t]
    np.testing.assert_allclose(found.memory.means[t], mean, atol=1e-5)
    np.testing.assert_allclose(found.memory.baselines[t], affine("baseline", np.asarray(h))[:, 0], atol=1e-5)
    states = []
    for k, shape in enumerate(SHAPES):
      theta = np.concatenate([np.tile(shape, (3, 1)), centre], axis=1).astype(np.float32)
      np.testing.assert_allclose(found.thetas[6 * t + k], theta, atol=1e-5)
      states.append(seen(jnp.asarray(theta), (c, h)))
      scores = affine("zs", np.maximum(affine("hz", np.asarray(states[-1][1])), 0))
      np.testing.assert_allclose(found.scores[6 * t + k], scores, atol=1e-5)
    c, h = (np.mean([state[i] for state in states], axis=0) for i in (0, 1))
  assert found.scores.shape == (24, 3, 5)


def test_sampling_is_keyed_and_evaluation_looks_at_the_means():
  params, feature_map = small_case()
  one, same, other = (episode(params, feature_map, key=jax.random.key(seed)).thetas for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert float(jnp.abs(one - other).max()) > 0.1
  still = episode(params, feature_map).memory
  np.testing.assert_array_equal(still.centres, still.means)
  many = episode(params, jnp.tile(feature_map[:1], (2_000, 1, 1, 1)), key=jax.random.key(0), steps=1).memory
  np.testing.assert_allclose((many.centres - many.means).std(axis=1), np.full((1, 2), 0.2), rtol=0.05)


def test_the_order_of_the_shapes_does_not_matter():
  params, feature_map = small_case()
  key = jax.random.key(0)
  turned = episode(params, feature_map, key=key, shapes=SHAPES[::-1])
  plain = episode(params, feature_map, key=key)
  np.testing.assert_allclose(turned.scores.reshape(4, 6, 3, 5)[:, ::-1], plain.scores.reshape(4, 6, 3, 5), atol=1e-5)


def test_rewards_by_hand():
  scores = jnp.array([[5.0, 4, 3, 2, 1]] * 4 + [[1.0, 1, 1, 1, 1]] * 2)
  labels = jnp.array(
    [[1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]], float
  )
  ignore = jnp.zeros((6, 5), bool)
  rewards, has = rarl.reward(scores, labels, ignore)
  np.testing.assert_allclose(rewards, [1 / 2, 1, 1 / 3, 0, 1, 0])
  np.testing.assert_array_equal(has, [True, True, True, False, True, True])
  # The first row without its second label, which then stands in nobody's way; the second without a true one.
  rewards, has = rarl.reward(scores, labels, ignore.at[0, 1].set(True).at[1, 0].set(True).at[5, 4].set(True))
  np.testing.assert_allclose(rewards[:2], [1, 1])
  assert not bool(has[5])


def test_the_loss_by_hand():
  """Two episodes of one step; the third image is padding, the fourth has nothing to find."""
  means = jnp.array([[[0.0, 0.0], [0.0, 0.5], [0.0, 0.0], [0.0, 0.0]]])
  centres = jnp.array([[[0.2, 0.0], [0.0, 0.1], [3.0, 0.0], [2.0, 0.0]]])
  rollout = rarl.Rollout(means, centres, jnp.ones((1, 4, 1)), jnp.array([[0.25, 0.5, 0.0, 0.0]]))
  scores = jnp.array([[[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, 2.0]]])
  labels = jnp.array([[1.0, 0], [0, 1], [1, 0], [0, 0]])
  ignore, mask = jnp.zeros((4, 2), bool), jnp.array([1.0, 1, 0, 1])
  found = attention.Attention(scores, jnp.zeros((1, 4, 4)), *[jnp.zeros((1, 4, 1))] * 3, rollout)
  total, terms = rarl.loss(found, labels, ignore, mask, deviation=0.2, classification="sigmoid", policy_weight=2.0)
  wanted = losses.sigmoid_loss(scores[0], labels, example_mask=mask)
  np.testing.assert_allclose(terms["classification"], wanted)
  # log pi: -0.04 / 0.08 and -0.16 / 0.08; reward less baseline: 1 - 0.25 and 0 - 0.5; three real images.
  np.testing.assert_allclose(terms["policy"], -(-0.5 * 0.75 + -2 * -0.5) / 3, rtol=1e-5)
  np.testing.assert_allclose(terms["baseline"], (0.75**2 + 0.5**2) / 3, rtol=1e-5)
  np.testing.assert_allclose(terms["reward"], 0.5)
  np.testing.assert_allclose(total, wanted + 2 * terms["policy"] + terms["baseline"], rtol=1e-5)
  # By advantage, d log pi before the tanh is (0.2 / 0.04, 0) * 0.75 and (0, -0.4 / 0.04 * (1 - 0.25)) * -0.5: both 3.75.
  # A mean of these two has in each entry the variance (1.875^2 + 1.875^2) / (1 * 2).
  np.testing.assert_allclose(terms["policy_variance"], 2 * 1.875**2, rtol=1e-5)
  _, terms = rarl.loss(found, labels, ignore, mask, deviation=0.2, baseline="batch")
  # Each one's baseline is the other's reward: 0 and 1.
  np.testing.assert_allclose(terms["policy"], -(-0.5 * 1 + -2 * -1) / 3, rtol=1e-5)
  assert "baseline" not in terms


@pytest.mark.parametrize(("baseline", "classification"), [("learned", "euclidean"), ("batch", "sigmoid")])
def test_images_without_labels_and_empty_batches_are_finite(baseline, classification):
  params, feature_map = small_case()
  labels = jnp.zeros((3, 5))

  @jax.jit
  @jax.value_and_grad
  def total(params, ignore, mask):
    found = episode(params, feature_map, key=jax.random.key(0), steps=2)
    return rarl.loss(found, labels, ignore, mask, deviation=0.2, baseline=baseline, classification=classification)[0]

  for ignore in (jnp.zeros((3, 5), bool), jnp.ones((3, 5), bool)):
    for mask in (jnp.ones(3), jnp.zeros(3)):
      value, gradients = total(params, ignore, mask)
      assert np.isfinite(value)
      assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
      np.testing.assert_array_equal(gradients["policy"]["kernel"], 0)


def test_each_term_s_gradient_goes_where_it_should():
  params, feature_map = small_case()
  labels = jnp.eye(5)[:3]

  @jax.jit
  @jax.jacrev
  def terms_of(params):
    found = episode(params, feature_map, key=jax.random.key(0), steps=2)
    return rarl.loss(found, labels, jnp.zeros((3, 5), bool), jnp.ones(3), deviation=0.2)[1]

  reached = {
    name: {part for part, tree in gradients.items() if any(np.any(leaf) for leaf in jax.tree.leaves(tree))}
    for name, gradients in terms_of(params).items()
  }
  assert reached == {
    "classification": {"fx", "lstm", "hz", "zs"},  # not through where it looked
    "policy": {"fx", "lstm", "policy"},
    "baseline": {"baseline"},
    "reward": set(),
    "policy_variance": set(),
  }


# The toy: a map of two cells, an object in the left one (state 0) or the right one (state 1), regions that are points.
# x = f, and h is tanh of what is seen, faded by `forget`, so that the score of the label "object" is above that of
# "nothing" where a look sees more than half of the object: on its side of the middle.


def toy_params(forget, policy):
  eye = jnp.eye(2)
  none = jnp.zeros(2)
  faded = jax.nn.sigmoid(jnp.asarray(forget)) * jnp.tanh(1.0)
  return {
    "fx": {"kernel": eye, "bias": none},
    "lstm": {
      "w_x": jnp.concatenate([0 * eye, 0 * eye, 0 * eye, eye], axis=1),
      "w_h": jnp.zeros((2, 8)),
      "b": jnp.repeat(jnp.array([20.0, forget, 20.0, 0.0]), 2),
    },
    "hz": {"kernel": eye, "bias": none},
    "zs": {"kernel": jnp.array([[1.0, 0.0], [1.0, 0.0]]), "bias": jnp.array([0.0, faded + 2 * np.tanh(0.5)])},
    "policy": policy,
    "baseline": {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)},
  }


STATES = jnp.array([[1.0, 0.0], [0.0, 1.0]])
POINT = np.zeros((1, 2), np.float32)
DEVIATION = 0.3


def toy_loss(params, states, key, steps, baseline="learned"):
  """Episodes of the toy in these states [B]; `policy_weight` alone, so that the gradient is REINFORCE's."""
  found = rarl.attend(
    params,
    STATES[states][:, None, :, None],
    steps=steps,
    shapes=POINT,
    deviation=DEVIATION,
    key=key,
    region_size=(1, 2),
  )
  batch = len(states)
  labels = jnp.tile(jnp.array([1.0, 0.0]), (batch, 1))
  mask, ignore = jnp.ones(batch), jnp.zeros((batch, 2), bool)
  return rarl.loss(found, labels, ignore, mask, deviation=DEVIATION, classification="sigmoid", baseline=baseline)


def exact_return(params, state):
  """E[R] of two steps, summed over a grid of x of both centres; y shows nothing, the map being one cell high."""
  grid = jnp.linspace(-3, 3, 1_201)
  lstm_bias = params["lstm"]["b"].reshape(4, 2)
  forget, threshold = jax.nn.sigmoid(lstm_bias[1]), params["zs"]["bias"][1]

  def policy_mean(h):
    return jnp.tanh(h @ params["policy"]["kernel"] + params["policy"]["bias"])[..., 0]

  def log_density(mean):  # over the grid, normalised on it
    return jax.nn.log_softmax(-((grid - mean[..., None]) ** 2) / (2 * DEVIATION**2), axis=-1)

  # Linear between the cells at -1 and 1 and to zero one cell, a distance of 2, further out.
  cells = (grid + 1) / 2
  value = sum(STATES[state][cell] * jnp.maximum(1 - jnp.abs(cells - cell), 0) for cell in (0, 1))
  before = jnp.tanh(STATES[state])
  after = forget * before + jnp.tanh(value)[:, None]  # h after the first look, for each place
  later = forget * after[:, None] + jnp.tanh(value)[None, :, None]  # and after the second
  seen = jnp.maximum(after.sum(-1)[:, None], later.sum(-1)) > threshold
  probability = jnp.exp(log_density(policy_mean(before))[:, None] + log_density(policy_mean(after)))
  return (probability * seen).sum()


@pytest.mark.parametrize("baseline", rarl.BASELINES)
def test_the_estimator_s_mean_is_the_exact_gradient(baseline):
  policy = {"kernel": jnp.array([[0.3, 0.1], [0.6, -0.2]]), "bias": jnp.array([0.1, 0.0])}
  params = toy_params(-1.0, policy)
  params["baseline"]["bias"] = jnp.array([0.4])  # a poor one changes the variance and not the mean
  states = jnp.zeros(500, jnp.int32)

  def estimate(key):
    (_, terms), gradients = jax.value_and_grad(
      lambda params: (lambda _, terms: (terms["policy"], terms))(*toy_loss(params, states, key, 2, baseline)),
      has_aux=True,
    )(params)
    parts = {"policy": gradients["policy"], "lstm": gradients["lstm"]["b"]}
    return jax.tree.map(jnp.negative, parts), terms["reward"], terms["policy_variance"]

  every, rewards, variances = jax.jit(lambda keys: jax.lax.map(estimate, keys))(
    jax.random.split(jax.random.key(0), 200)
  )
  value, exact = jax.jit(jax.value_and_grad(exact_return))(params, 0)
  np.testing.assert_allclose(rewards.mean(), value, atol=0.005)
  exact = {"policy": exact["policy"], "lstm": exact["lstm"]["b"].reshape(4, 2).at[0].set(0).at[2:].set(0).reshape(-1)}
  errors = jax.tree.map(lambda x: np.asarray(x).std(axis=0, ddof=1) / np.sqrt(len(x)), every)
  found = jax.tree.map(lambda x: np.asarray(x).mean(axis=0), every)
  found["lstm"] = found["lstm"].reshape(4, 2)[1]
  errors["lstm"] = errors["lstm"].reshape(4, 2)[1]
  exact["lstm"] = exact["lstm"].reshape(4, 2)[1]
  for mine, wanted, error in zip(*map(jax.tree.leaves, (found, exact, errors)), strict=True):
    assert (np.abs(mine - wanted) < 4 * error + 1e-3).all(), (mine, wanted, error)
    assert error.max() < 0.02
  kernel = np.asarray(exact["policy"]["kernel"])
  assert np.abs(kernel[0, 0]) > 0.2  # far from nothing
  measured = np.asarray(every["policy"]["kernel"]).var(axis=0, ddof=1).sum()
  np.testing.assert_allclose(variances.mean(), measured, rtol=0.25)


def test_a_baseline_takes_variance_away():
  policy = {"kernel": jnp.array([[-0.5, 0.0], [0.5, 0.0]]), "bias": jnp.zeros(2)}
  states = jnp.arange(400) % 2

  @functools.partial(jax.jit, static_argnums=1)
  def variance(expected, baseline):  # with the same reward expected everywhere
    params = toy_params(-20.0, policy) | {"baseline": {"kernel": jnp.zeros((2, 1)), "bias": jnp.full(1, expected)}}
    return toy_loss(params, states, jax.random.key(0), 1, baseline)[1]["policy_variance"]

  without, learned, batch = variance(0.0, "learned"), variance(0.9, "learned"), variance(0.0, "batch")
  assert max(batch, learned) < 0.5 * without


@pytest.mark.parametrize("baseline", rarl.BASELINES)
def test_the_best_policy_of_two_states_is_found(baseline):
  """It looks left where the object is left: the mean is at -1 and 1 but for the tanh's ends, the reward 1."""
  params = toy_params(-20.0, {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)})
  optimizer = optax.adam(0.05)
  trained = {name: params[name] for name in ("policy", "baseline")}
  states = jnp.arange(32) % 2

  def update(carry, key):
    trained, opt_state = carry

    def total(trained):
      value, terms = toy_loss(params | trained, states, key, 1, baseline)
      return value - terms["classification"], terms["reward"]

    gradients, reward = jax.grad(total, has_aux=True)(trained)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return (optax.apply_updates(trained, updates), opt_state), reward

  keys = jax.random.split(jax.random.key(0), 300)
  (trained, _), rewards = jax.jit(lambda carry: jax.lax.scan(update, carry, keys))((trained, optimizer.init(trained)))
  assert 0.4 < rewards[:3].mean() < 0.7
  assert rewards[-50:].mean() > 0.97
  found = rarl.attend(
    params | trained, STATES[:, None, :, None], steps=1, shapes=POINT, deviation=DEVIATION, region_size=(1, 2)
  )
  left, right = found.memory.means[0, :, 0]
  assert (left < -0.6, right > 0.6) == (True, True)
  if baseline == "learned":
    np.testing.assert_allclose(found.memory.baselines, 1, atol=0.15)


def thin_config(data_root="", variant="tiny:rarl"):
  config = digits.get_config(variant)
  config.data.root = str(data_root)
  config.model.vgg.blocks = ((4,), (8,))
  config.model.x_width = config.model.lstm_width = config.model.z_width = 16
  config.model.rarl.steps = 3
  config.stage_one.epochs = 0
  config.stage_two.epochs = 2
  config.epoch_size = 32
  config.evaluation.batch_size = 20
  config.evaluation.svm_images = 60
  config.evaluation.pictures = 1
  return config


@pytest.mark.slow
def test_the_step_on_two_devices_and_with_padding():
  stage = stages.build(thin_config(), "stage_two", num_classes=10, num_records=160)
  state = jax.jit(functools.partial(step_lib.init_state, stage.model, optax.sgd(0.1), size=64))(jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (16, 64, 64, 3), np.uint8),
    "labels": (rng.random((16, 10)) < 0.3).astype(np.float32),
    "ignore": rng.random((16, 10)) < 0.1,
    "mask": (np.arange(16) < 13).astype(np.float32),
  }
  train_step = jax.jit(step_lib.make_train_step(stage.model, optax.sgd(0.1), stage.objective, seed=3))
  wanted, metrics = train_step(state, batch)
  assert set(metrics) >= {"classification", "policy", "baseline", "reward", "policy_variance", "auxiliary"}
  two = mesh_lib.make_mesh()
  assert two.size == 2
  sharded = train_step(jax.device_put(state, mesh_lib.replicated(two)), jax.device_put(batch, mesh_lib.by_example(two)))
  garbled = {
    name: np.where((np.arange(16) < 13).reshape(-1, *[1] * (x.ndim - 1)), x, x[::-1]) for name, x in batch.items()
  }
  garbled["mask"] = batch["mask"]
  padded = train_step(state, garbled)  # what is in the padding changes nothing
  for found in (sharded, padded):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves((wanted, metrics)), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), wanted.params, state.params)
  assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model.rarl.steps": 0}, r"model\.rarl\.steps must be positive, got 0"),
    ({"model.rarl.sizes": ()}, r"model\.rarl\.sizes must be positive, got \(\)"),
    ({"model.rarl.aspects": (1.0, -1.0)}, r"model\.rarl\.aspects must be positive"),
    ({"model.rarl.deviation": 0.0}, r"model\.rarl\.deviation must be positive, got 0\.0"),
    ({"loss.rarl.baseline": "mean"}, r"loss\.rarl\.baseline must be one of learned, batch, got 'mean'"),
  ],
)
def test_impossible_configurations_are_refused(changes, message):
  config = thin_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    stages.build(config, "stage_two", num_classes=10, num_records=160)


@pytest.mark.parametrize(("config", "classes"), [(voc.get_config("rarl"), 20), (coco.get_config("640:rarl"), 80)])
def test_the_step_of_natural_images_has_its_shapes(config, classes):
  stage = stages.build(config, "stage_two", num_classes=classes, num_records=5_000)
  init = functools.partial(step_lib.init_state, stage.model, stage.optimizer, size=config.data.crop_size)
  state = jax.eval_shape(init, jax.random.key(0))
  # VGG-16's 13 convolutions; W_fx; the LSTM's gates; W_hz, W_zs, the policy and the baseline; each with its bias.
  wanted = 14_714_688 + (25_088 + 1) * 4096 + (2 * 4096 + 1) * 4 * 4096 + (4096 + 1) * (4096 + classes + 2 + 1)
  assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == wanted
  side = config.data.crop_size
  batch = {
    "image": jax.ShapeDtypeStruct((16, side, side, 3), jnp.uint8),
    "labels": jax.ShapeDtypeStruct((16, classes), jnp.float32),
    "ignore": jax.ShapeDtypeStruct((16, classes), jnp.bool_),
    "mask": jax.ShapeDtypeStruct((16,), jnp.float32),
  }
  after, _ = jax.eval_shape(step_lib.make_train_step(stage.model, stage.optimizer, stage.objective), state, batch)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  found = jax.eval_shape(
    lambda params, images: stage.model.apply({"params": params}, images), state.params, batch["image"]
  )
  assert found.attention.scores.shape == (45, 16, classes)


@pytest.mark.slow
def test_a_run_is_stopped_goes_on_and_answers(data_root, tmp_path, monkeypatch):
  config, whole, stopped = thin_config(data_root), tmp_path / "whole", tmp_path / "stopped"
  results = pipeline.train_and_evaluate(config.copy_and_resolve_references(), whole)
  assert results["controls"] == {}
  assert {"coverage", "pointing", "svm_mAP", "auxiliary_mAP"} <= results.keys()
  validate = loop._Trainer.validate

  def interrupt(*arguments):
    if (stopped / "metrics.jsonl").exists() and (stopped / "metrics.jsonl").read_text():
      raise KeyboardInterrupt
    return validate(*arguments)

  monkeypatch.setattr(loop._Trainer, "validate", interrupt)
  with pytest.raises(KeyboardInterrupt):
    loop.train(config, stopped)
  monkeypatch.setattr(loop._Trainer, "validate", validate)
  loop.train(config, stopped)
  logs = [
    [json.loads(line) | {"seconds": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for folder in (whole, stopped)
  ]
  assert logs[0] == logs[1]
  assert len(logs[0]) == 2
  trained = [exported.load(folder).params for folder in (whole, stopped)]
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), *trained))

  (found,) = predictor.load(whole, threshold=0.0).predict([np.zeros((72, 80, 3), np.uint8)])
  assert len(found.regions) == 18
  assert {label.name for label in found.labels} == set("0123456789")
