"""The VGG family against torch and Flax, and what every head promises."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, photographs, rehearsal
from rmam_jax import heads, recognizer
from rmam_jax.backbones import vgg
from rmam_jax.heads import pooling
from rmam_jax.ops import next_region
from rmam_jax.runtime.errors import UserError

STAGES = ((4,), (6, 6), (8, 8))


def small_model(**changes):
  config = common.get_config()
  with config.unlocked():
    config.model.update(
      {"vgg": {"blocks": STAGES}, "region_size": (3, 3), "x_width": 8, "lstm_width": 7, "z_width": 9, **changes}
    )
  return config.model


@pytest.mark.oracle
@pytest.mark.parametrize("stages", [STAGES, vgg.BLOCKS["vgg16"]])
def test_vgg_equals_torch(stages):
  torch = pytest.importorskip("torch")
  size = 48
  images = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
  model = vgg.VGG(stages)
  params = jax.jit(model.init)(jax.random.key(0), images)
  ours = jax.jit(model.apply)(params, images)

  theirs = torch.tensor(images.transpose(0, 3, 1, 2))
  for block, widths in enumerate(stages, start=1):
    if block > 1:
      theirs = torch.nn.functional.max_pool2d(theirs, 2)
    for layer in range(1, len(widths) + 1):
      layer_params = params["params"][f"block{block}_conv{layer}"]
      kernel = torch.tensor(np.asarray(layer_params["kernel"]).transpose(3, 2, 0, 1))
      bias = torch.tensor(np.asarray(layer_params["bias"]))
      theirs = torch.relu(torch.nn.functional.conv2d(theirs, kernel, bias, padding=1))
  theirs = theirs.numpy().transpose(0, 2, 3, 1)
  assert ours.shape == (1, size // 2 ** (len(stages) - 1), size // 2 ** (len(stages) - 1), stages[-1][-1])
  np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_vgg16_has_its_thirteen_convolutions():
  shapes = jax.eval_shape(vgg.VGG().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
  assert len(shapes) == 13
  assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 14_714_688


@pytest.mark.parametrize("size", [8, 9, 2])
def test_max_pool_equals_flax(size):
  x = np.random.default_rng(0).normal(size=(2, size, size + 1, 3)).astype(np.float32)
  np.testing.assert_array_equal(vgg.max_pool(x), nn.max_pool(x, (2, 2), (2, 2)))
  weights = jnp.arange(vgg.max_pool(x).size, dtype=jnp.float32).reshape(vgg.max_pool(x).shape)
  ours = jax.grad(lambda x: (vgg.max_pool(x) * weights).sum())(x)
  theirs = jax.grad(lambda x: (nn.max_pool(x, (2, 2), (2, 2)) * weights).sum())(x)
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("head", heads.SPECS)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_every_head_answers_in_the_same_form(head, dtype):
  model = recognizer.build(small_model(dtype=dtype), 4, head=head, auxiliary="score_map")
  images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
  params = jax.jit(model.init)(jax.random.key(0), images)
  attention, auxiliary = jax.jit(model.apply)(params, images)
  regions = 45 if head == "rarl" else 5 if heads.get(head).looks else 1
  assert attention.scores.shape == (regions, 3, 4)
  assert attention.thetas.shape == (regions, 3, 4)
  assert auxiliary.scores.shape == (1, 3, 4)
  assert {attention.scores.dtype, attention.thetas.dtype} == {jnp.dtype("float32")}
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
  if not heads.get(head).looks:
    np.testing.assert_array_equal(attention.thetas, np.broadcast_to([1, 1, 0, 0], (1, 3, 4)))


def test_the_rule_for_photographs_begins_at_the_grid_and_the_paper_s_with_the_whole_image():
  images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
  whole_image = np.tile([1.0, 1.0, 0.0, 0.0], (5, 1))
  for config, first in ((photographs, next_region.grid_thetas(5)), (rehearsal, whole_image)):
    section = config.get_config("320:recurrent").model
    section.update(backbone="vgg_thin", x_width=8, lstm_width=8, z_width=8)
    model = recognizer.build(section, 4, head="recurrent")
    params = jax.jit(model.init)(jax.random.key(0), images)
    thetas = jax.jit(model.apply)(params, images).attention.thetas
    np.testing.assert_allclose(thetas, np.broadcast_to(first[:, None], (5, 2, 4)), atol=0.1)


@pytest.mark.parametrize("head", ["saliency", "fixed_grid", "whole_image"])
def test_the_grid_s_convention_reaches_every_head_that_samples(head):
  images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
  models = [
    recognizer.build(small_model(region_pool=1, align_corners=aligned), 4, head=head, auxiliary="score_map")
    for aligned in (True, False)
  ]
  params = jax.jit(models[0].init)(jax.random.key(0), images)
  aligned, unaligned = (jax.jit(model.apply)(params, images).attention.scores for model in models)
  assert float(jnp.abs(aligned - unaligned).max()) > 1e-3


def test_controls_by_hand():
  feature_map = jnp.array([[[[1.0], [3.0]], [[0.0], [4.0]]]])
  dense = {"scores": {"kernel": jnp.array([[2.0, -1.0]]), "bias": jnp.array([0.0, 1.0])}}
  for head, wanted in (
    (pooling.Pooled(2, jnp.mean), [4, -1]),  # the mean is 2
    (pooling.Pooled(2, jnp.max), [8, -3]),  # the maximum is 4
    (pooling.ScoreMap(2), [8, 1]),  # the second class is highest where the map is 0
    (pooling.ScoreMap(2, places=2), [7, 0.5]),  # of 8, 6, 2, 0 and 1, 0, -2, -3
    (pooling.ScoreMap(2, places=9), [4, -1]),  # more than there are: the mean
  ):
    scores = head.apply({"params": dense}, feature_map).scores
    np.testing.assert_allclose(scores, [[wanted]])


def test_pixels_are_normalised_as_configured():
  class Mean(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      return x

  model = recognizer.Recognizer(
    backbone=Mean(), head=pooling.Pooled(1, jnp.mean), pixel_mean=(10.0, 20.0, 30.0), pixel_std=(1.0, 2.0, 4.0)
  )
  images = np.full((1, 2, 2, 3), (12, 24, 38), np.uint8)
  params = jax.jit(model.init)(jax.random.key(0), images)
  np.testing.assert_allclose(model.apply(params, images).attention.z, [[[2, 2, 2]]])


def test_a_wrong_model_is_refused():
  with pytest.raises(UserError, match=r"head must be one of .*saliency.*got 'salience'"):
    recognizer.build(small_model(), 4, head="salience")
  with pytest.raises(UserError, match=r"model\.num_regions must be at least 1, got 0"):
    recognizer.build(small_model(num_regions=0), 4, head="fixed_grid")
  with pytest.raises(UserError, match=r"'saliency' looks by the dense scores of an auxiliary 'score_map'.*'mean_pool'"):
    recognizer.build(small_model(), 4, head="saliency", auxiliary="mean_pool")


@pytest.mark.parametrize(
  ("head", "field", "value"),
  [
    ("mean_pool", "dtype", "float99"),
    ("score_map", "score_map.places", 0),
    ("saliency", "saliency.peak_width", 0.0),
    ("recurrent", "recurrent.bias", (1.0, 1.0, 0.0)),
    ("recurrent", "recurrent.weight_scale", -1.0),
    ("recurrent", "recurrent.gain", 0.0),
    ("fixed_grid", "region_pool", 0),
    ("fixed_grid", "x_width", 0),
  ],
)
def test_a_field_out_of_its_range_is_named(head, field, value):
  model = small_model()
  model.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=rf"model\.{field} must"):
    recognizer.build(model, 4, head=head, auxiliary="score_map")


def test_saliency_is_guided_by_the_auxiliary_scores():
  """Turning the auxiliary head's kernel round turns the first look to another place."""
  model = recognizer.build(small_model(), 4, head="saliency", auxiliary="score_map")
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
  params = jax.jit(model.init)(jax.random.key(0), images)["params"]
  turned = {**params, "auxiliary": jax.tree.map(jnp.negative, params["auxiliary"])}
  apply = jax.jit(model.apply)
  looked, other = (apply({"params": tree}, images).attention.thetas[0] for tree in (params, turned))
  assert float(jnp.abs(looked - other)[:, 2:].max()) > 0.2


@pytest.mark.parametrize(
  "head", ["recurrent", "fixed_grid", "whole_image", "mean_pool", "max_pool", "csra", "score_map"]
)
def test_score_layers_begin_with_the_prior(head):
  section = small_model(prior=0.05)
  model = recognizer.build(section, 7, head=head)
  images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
  params = jax.jit(model.init)(jax.random.key(0), images)["params"]
  scores = jax.jit(model.apply)({"params": params}, images).attention.scores
  np.testing.assert_allclose(jax.nn.sigmoid(scores), 0.05, rtol=1e-5)
  for prior in (-0.1, 1.0):
    with pytest.raises(UserError, match=f"model.prior must be a probability below 1, or 0 for none, got {prior}"):
      recognizer.build(small_model(prior=prior), 7, head=head)


def test_maps_are_scaled_to_their_images():
  feature_map = jnp.array([[[[1.0, 3.0], [3.0, 5.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])  # means (2, 4) and (0, 0)
  found = recognizer.image_scaled(feature_map)
  np.testing.assert_allclose(found, feature_map / np.sqrt(10), rtol=1e-6)
  np.testing.assert_allclose(recognizer.image_scaled(7 * feature_map), found, rtol=1e-6)
  model = recognizer.build(small_model(map_norm="image"), 4, head="mean_pool")
  images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
  variables = jax.jit(model.init)(jax.random.key(0), images)
  square = np.square(model.apply(variables, images).attention.x).mean(axis=-1)
  np.testing.assert_allclose(square, 1, rtol=1e-4)
  with pytest.raises(UserError, match=r"model\.map_norm"):
    recognizer.build(small_model(map_norm="batch"), 4, head="mean_pool")
