"""The two streams: fixed regions, branches and read-out by hand and by loops, the form that Eq. 6 needs, and training."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
import pytest
from test_training import tiny_config

import rmam_jax
from configs import common
from rmam_jax import heads, recognizer
from rmam_jax.ops import attention, csra, losses, two_stream
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import evaluate, exported, pipeline, stages

SET = {"sizes": (0.3, 0.5, 0.7, 0.85, 1.0), "step": 0.2, "most_oblong": 2.6}
WEIGHING = {"surround": 1.8, "residual": {"weight": 0.3, "temperature": 5.0}}
OPTIONS = {"num_regions": 3, "power": 0.15, "threshold": 0.4, **SET, **WEIGHING}


def small_case(batch=3, size=(6, 5), channels=4, num_classes=5, seed=0):
  rng = np.random.default_rng(seed)
  params = two_stream.init(jax.random.key(seed), channels=channels, num_classes=num_classes)
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
  return params, jnp.asarray(rng.normal(size=(batch, *size, channels)), jnp.float32)


@functools.cache
def seeing(num_regions=OPTIONS["num_regions"]):
  """`recognize` by `OPTIONS`, compiled: one program costs less than its hundred operations, each compiled by itself."""
  return jax.jit(functools.partial(two_stream.recognize, **OPTIONS | {"num_regions": num_regions}))


def logit(probability):
  return np.log(probability) - np.log(1 - probability)


def test_fixed_regions_by_hand():
  # Halves of 4 x 2 cells every quarter: three by two places (rounded to even) of 2 x 1; and the whole map.
  found = two_stream.fixed_regions(4, 2, (0.5, 1.0), 0.25, 1.0)
  wanted = [(top, left, top + 2, left + 1) for top in (0, 1, 2) for left in (0, 1)]
  assert sorted(map(tuple, found.tolist())) == sorted([*wanted, (0, 0, 4, 2)])
  # A ratio of 2 lets halves stand beside wholes.
  oblong = two_stream.fixed_regions(4, 2, (0.5, 1.0), 0.25, 2.0)
  assert {(0, 0, 2, 2), (1, 0, 3, 2), (2, 0, 4, 2), (0, 0, 4, 1), (0, 1, 4, 2)} == {*map(tuple, oblong.tolist())} - {
    *map(tuple, found.tolist())
  }


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (10, 10), (14, 20), (28, 28)])
def test_fixed_regions_lie_on_the_map_and_differ(size):
  found = two_stream.fixed_regions(*size, **SET)
  assert (found >= 0).all()
  assert (found[:, :2] < found[:, 2:]).all()
  assert (found[:, 2:] <= size).all()
  assert len({*map(tuple, found.tolist())}) == len(found)
  assert [0, 0, *size] in found.tolist()
  assert two_stream.coverage(found, *size).any(axis=0).all()  # every cell
  if size == (10, 10):
    assert len(found) == 145


def test_coverage_by_hand():
  found = two_stream.coverage(np.array([[0, 1, 2, 2], [0.5, 0.25, 1.0, 1.5]]), 2, 3)
  np.testing.assert_allclose(found, [[[0, 1, 0], [0, 1, 0]], [[0.375, 0.25, 0], [0, 0, 0]]])


def test_surroundings_by_hand():
  # Twice as large as 1 x 2 cells: half a cell more above and below, one at each side, of which the left is cut.
  found = two_stream.surroundings(np.array([[1, 0, 2, 2], [0, 0, 3, 4]]), 3, 4, 2.0)
  np.testing.assert_allclose(found[0], [[0.5, 0.5, 0.5, 0], [0, 0, 1, 0], [0.5, 0.5, 0.5, 0]])
  np.testing.assert_array_equal(found[1], 0)
  np.testing.assert_array_equal(two_stream.surroundings(np.array([[1, 0, 2, 2]]), 3, 4, 1.0), 0)


def test_the_branches_region_by_region():
  """Against loops in numpy that average the map first, as the paper pools its regions."""
  params, feature_map = small_case()
  regions = two_stream.fixed_regions(6, 5, **SET)
  found = two_stream.branches(params, feature_map, regions, **WEIGHING)
  tree, maps = jax.tree.map(np.float64, params), np.float64(feature_map)
  for example in range(3):
    image = maps[example].mean(axis=(0, 1))
    means = np.array([maps[example, top:end, left:right].mean(axis=(0, 1)) for top, left, end, right in regions])
    what = np.exp(means @ tree["what"]["region"] + image @ tree["what"]["image"] + tree["what"]["bias"])
    around = np.zeros_like(means)
    for place, cover in enumerate(two_stream.surroundings(regions, 6, 5, 1.8)):
      if cover.sum():
        around[place] = np.average(maps[example].reshape(30, -1), axis=0, weights=cover.ravel())
    where = np.exp((means - around) @ tree["where"]["region"])
    weights = what / (1 + what.sum(axis=1, keepdims=True)) * where / where.sum(axis=0)
    np.testing.assert_allclose(found.weights[example], weights, atol=1e-6)
    np.testing.assert_allclose(found.regions[example], logit(weights.sum(axis=0)), rtol=1e-4)
    places = maps[example].reshape(30, -1) @ tree["dense"]["image"]
    attending = np.exp(5 * places) / np.exp(5 * places).sum(axis=0)
    dense = places.mean(axis=0) + 0.3 * (attending * places).sum(axis=0) + tree["dense"]["bias"]
    np.testing.assert_allclose(found.dense[example], dense, atol=1e-5)
    attended = [attending[:, label] @ maps[example].reshape(30, -1) for label in range(5)]
    features = np.array([image / np.linalg.norm(image) + each / np.linalg.norm(each) for each in attended])  # [L, C]
    features *= np.sqrt(4)  # of four channels: either mean has unit root mean square
    wanted = np.diag(features @ tree["attended"]["class"]) + tree["attended"]["bias"]
    np.testing.assert_allclose(found.attended[example], wanted, atol=1e-5)


def test_what_is_attended_to_does_not_teach_where_to_attend():
  """Its gradient is that of attention which is held still: none reaches the dense scores."""
  params, feature_map = small_case()
  regions = two_stream.fixed_regions(6, 5, **SET)

  def ours(params, feature_map):
    return two_stream.branches(params, feature_map, regions, **WEIGHING).attended.sum()

  dense = np.einsum("bhwc,cl->bhwl", feature_map, params["dense"]["image"])
  attending = csra.attention(jnp.asarray(dense), WEIGHING["residual"]["temperature"])

  def held_still(params, feature_map):
    features = csra.class_features(feature_map, attending) * 4**0.5
    return jnp.einsum("blc,cl->", features, params["attended"]["class"]) + 3 * params["attended"]["bias"].sum()

  found, wanted = (jax.grad(each)(params, feature_map) for each in (ours, held_still))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, wanted)
  assert not np.any(found["dense"]["image"])
  assert np.abs(found["attended"]["class"]).min() > 0


def test_only_the_dense_score_teaches_the_map():
  params, feature_map = small_case()
  regions = two_stream.fixed_regions(6, 5, **SET)

  @functools.partial(jax.jit, static_argnums=0)
  def gradient(name, feature_map):
    return jax.grad(lambda maps: getattr(two_stream.branches(params, maps, regions, **WEIGHING), name).sum())(
      feature_map
    )

  def residual(maps):
    cells = jnp.einsum("bhwc,cl->bhwl", maps, params["dense"]["image"])
    return csra.csra(cells, **WEIGHING["residual"]).sum()

  np.testing.assert_allclose(gradient("dense", feature_map), jax.grad(residual)(feature_map), rtol=1e-4, atol=1e-6)
  for name in ("regions", "attended", "weights", "cells", "features"):
    assert not np.any(gradient(name, feature_map)), name


def test_gradients_of_the_layers_that_read_cells_against_differences():
  params, feature_map = small_case()
  regions = two_stream.fixed_regions(6, 5, **SET)

  def of_layers(params):
    found = two_stream.branches(params, feature_map, regions, **WEIGHING)
    return found.regions, found.dense

  jax.test_util.check_grads(jax.jit(of_layers), (params,), order=1, modes=["rev"], rtol=1e-2, atol=1e-2)


def test_a_thin_border_is_a_surrounding_too():
  """On a map that is the same everywhere nothing stands out, however little of a cell lies around a region."""
  params = jax.tree.map(jnp.ones_like, two_stream.init(jax.random.key(0), channels=4, num_classes=5))
  regions = two_stream.fixed_regions(4, 4, (0.25, 0.5), 0.25, 2.0)
  assert 0 < two_stream.surroundings(regions, 4, 4, 1.05).sum(axis=(1, 2)).min() < 0.1
  found = two_stream.branches(params, jnp.ones((1, 4, 4, 4)), regions, surround=1.05)
  np.testing.assert_allclose(found.weights, found.weights[:, :1].repeat(len(regions), axis=1), rtol=1e-5)


def test_features_by_class_are_the_mean_where_each_branch_sees_the_class():
  params, feature_map = small_case()
  regions = two_stream.fixed_regions(6, 5, **SET)
  found = heads.SPECS["two_stream"].class_features(seeing()(params, feature_map))
  weights = two_stream.branches(params, feature_map, regions, **WEIGHING).weights
  for image, label in itertools.product((0, 2), (0, 4)):
    cells = np.asarray(feature_map[image], np.float64)
    of_regions = sum(
      weight * cells[top:bottom, left:right].mean(axis=(0, 1))
      for (top, left, bottom, right), weight in zip(regions, weights[image, :, label], strict=True)
    )
    shown = np.exp(WEIGHING["residual"]["temperature"] * cells @ np.asarray(params["dense"]["image"][:, label]))
    parts = 2 * [cells.mean(axis=(0, 1))] + [of_regions, np.einsum("hw,hwc->c", shown, cells)]
    wanted = sum(part / np.linalg.norm(part) for part in parts)
    np.testing.assert_allclose(found[image, label], wanted, rtol=1e-4, atol=1e-5)


def test_branches_stay_finite_on_large_maps_and_learn_there():
  params, feature_map = small_case()
  regions = two_stream.fixed_regions(6, 5, **SET)

  def branch(params, labels):
    found = two_stream.branches(params, 300 * feature_map, regions)
    return losses.sigmoid_loss(found.regions, labels), found

  # Wrong in every class that is sure: the gradient must still say so where a probability is all but 0.
  _, found = jax.jit(branch)(params, jnp.zeros((3, 5)))
  assert np.isfinite(found.regions).all()
  labels = (found.regions < -20).astype(jnp.float32)
  assert labels.sum() > 0
  gradient, _ = jax.jit(jax.grad(branch, has_aux=True))(params, labels)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert float(optax.tree.norm(gradient["what"])) > 1


def test_a_single_class_can_be_absent():
  """A softmax over one class would always say that it is there."""
  params, feature_map = small_case(num_classes=1)
  for sign in (1, -1):
    params["what"] = {"region": jnp.zeros((4, 1)), "image": jnp.zeros((4, 1)), "bias": jnp.full(1, 3.0 * sign)}
    found = two_stream.branches(params, feature_map, two_stream.fixed_regions(6, 5, **SET))
    np.testing.assert_allclose(found.regions, 3.0 * sign, rtol=1e-4)


def test_the_mean_of_probabilities_by_hand():
  scores = jnp.array([logit(0.9), -90.0, 90.0]), jnp.array([logit(0.3), -91.0, -90.0])
  found = two_stream.mean_probability(*scores)
  np.testing.assert_allclose(found, [logit(0.6), np.log((np.exp(-90) + np.exp(-91)) / 2), 0], rtol=1e-5, atol=1e-5)


def test_extents_by_hand():
  # On 50 cells a side nothing is interpolated.
  evidence = jnp.full((50, 50), 2.0).at[10:25, 20:40].set(2.5).at[12, 21].set(3.0)
  np.testing.assert_allclose(two_stream.extents(evidence, 0.3), [0.2, 0.4, 0.5, 0.8], atol=1e-6)
  np.testing.assert_allclose(two_stream.extents(evidence, 0.6), [0.24, 0.42, 0.26, 0.44], atol=1e-6)
  np.testing.assert_allclose(two_stream.extents(jnp.full((3, 4), 2.0), 0.3), [0, 0, 1, 1])
  # Of two rows of cells, centres at 1/4 and 3/4, the lower has all: at 0.5 it begins half way, at 0.1 a little above.
  halves = jnp.array([[0.0], [1.0]])
  np.testing.assert_allclose(two_stream.extents(halves, 0.5), [0.5, 0, 1, 1], atol=1e-6)
  np.testing.assert_allclose(two_stream.extents(halves, 0.1), [0.3, 0, 1, 1], atol=1e-6)


@pytest.mark.parametrize(("num_regions", "num_classes"), [(1, 1), (1, 5), (3, 5), (5, 5), (8, 5), (4, 1)])
def test_eq_6_gives_the_image_s_scores_and_each_class_its_region(num_regions, num_classes):
  params, feature_map = small_case(num_classes=num_classes)
  found = seeing(num_regions)(params, feature_map)
  scores = two_stream.mean_probability(found.memory.regions, found.memory.attended)
  np.testing.assert_array_equal(attention.max_pool_scores(found.scores), scores)
  assert found.scores.shape == (num_regions, 3, num_classes)
  winners = attention.winning_region(found.scores)
  for example, place in itertools.product(range(3), range(max(num_regions, num_classes))):
    order = np.argsort(-scores[example])
    label = order[min(place, num_classes - 1)]
    region = min(place, num_regions - 1)
    if place < num_classes:
      assert winners[example, label] == region
    if place < num_regions:  # by itself, the region says the class that it was chosen for, and by a margin
      others = np.asarray(winners[example] != region)
      below = np.minimum(scores[example], scores[example, label]) - two_stream.MARGIN
      np.testing.assert_array_equal(found.scores[region, example][others], below[others])
      assert place >= num_classes or found.scores[region, example].argmax() == label


def test_the_regions_are_those_of_the_likeliest_classes():
  """From the weights, cell by cell, in numpy; the last one is the whole image, and nothing leaves it."""
  params, feature_map = small_case()
  found = two_stream.recognize(params, feature_map, **OPTIONS)
  regions = two_stream.fixed_regions(6, 5, **SET)
  jax.tree.map(
    np.testing.assert_array_equal, found.memory, two_stream.branches(params, feature_map, regions, **WEIGHING)
  )
  order = np.argsort(-np.asarray(attention.max_pool_scores(found.scores)), axis=1)
  for example, place in itertools.product(range(3), range(2)):
    label = order[example, place]
    covered = np.zeros((6, 5), np.float32)
    for (top, left, bottom, right), weight in zip(regions, found.memory.weights[example], strict=True):
      covered[top:bottom, left:right] += weight[label] ** 0.15
    cells = np.stack([feature_map[example] @ params[stream]["region"][:, label] for stream in ("what", "where")])
    evidence = sum((each - each.min()) / (each.max() - each.min()) for each in (covered, *cells))
    ours = two_stream.evidence(found.memory.weights[example, :, label], cells, regions, 0.15)
    np.testing.assert_allclose(ours, evidence, atol=1e-4)
    top, left, bottom, right = 2 * np.float64(two_stream.extents(evidence, 0.4)) - 1
    # Edges of cells, where -1 and 1 are the centres of the first and the last.
    theta = [
      (right - left) / 2 * 5 / 4,
      (bottom - top) / 2 * 6 / 5,
      (left + right) / 2 * 5 / 4,
      (top + bottom) / 2 * 6 / 5,
    ]
    np.testing.assert_allclose(found.thetas[place, example], theta, atol=1e-5)
  np.testing.assert_allclose(found.thetas[2], np.tile([5 / 4, 6 / 5, 0, 0], (3, 1)), atol=1e-6)


def test_features_are_means_inside_a_region_and_of_all_of_the_map():
  params, feature_map = small_case()
  found = seeing()(params, feature_map)
  mean = feature_map.mean(axis=(1, 2))
  for features in (found.x[2], *found.h, *found.z):  # the last region is the whole image
    np.testing.assert_allclose(features, mean, atol=1e-5)
  for example in range(3):
    s_x, s_y, t_x, t_y = np.float64(found.thetas[0, example])
    left, right = ((t_x + sign * s_x + 1) * 2 + 0.5 for sign in (-1, 1))  # in cells, of 5
    top, bottom = ((t_y + sign * s_y + 1) * 2.5 + 0.5 for sign in (-1, 1))  # of 6
    rows = [max(min(bottom, cell + 1) - max(top, cell), 0) for cell in range(6)]
    columns = [max(min(right, cell + 1) - max(left, cell), 0) for cell in range(5)]
    inside = np.einsum("h,w,hwc->c", rows, columns, feature_map[example]) / (sum(rows) * sum(columns))
    np.testing.assert_allclose(found.x[0, example], inside, atol=1e-4)


@pytest.mark.parametrize(
  "size", [(1, 1), *(pytest.param(size, marks=pytest.mark.slow) for size in ((1, 4), (5, 2), (14, 14)))]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_map_in_any_type_under_jit_grad_and_vmap(size, dtype):
  params, feature_map = small_case(size=size)
  feature_map = feature_map.astype(dtype)
  see = functools.partial(two_stream.recognize, **OPTIONS)
  found = see(params, feature_map)
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
  tolerance = {"rtol": 1e-4, "atol": 1e-4}
  jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), jax.jit(see)(params, feature_map), found)
  alone = jax.jit(jax.vmap(lambda one: see(params, one[None])))(feature_map)  # [B, K, 1, ...]
  np.testing.assert_allclose(alone.scores[:, :, 0].swapaxes(0, 1), found.scores, **tolerance)
  np.testing.assert_allclose(alone.thetas[:, :, 0].swapaxes(0, 1), found.thetas, **tolerance)
  gradient = jax.jit(jax.grad(lambda params: see(params, feature_map).scores.sum()))(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  wide = jax.jit(see)(params, feature_map.astype(jnp.float32)).scores
  np.testing.assert_allclose(found.scores, wide, atol=1e-6 if dtype == "float32" else 0.1)


def test_no_gradient_flows_through_the_regions_but_through_the_scores():
  params, feature_map = small_case()

  def thetas(params, feature_map):
    return two_stream.recognize(params, feature_map, **OPTIONS).thetas.sum()

  gradients = jax.jit(jax.grad(thetas, argnums=(0, 1)))(params, feature_map)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_the_loss_by_hand():
  """Each branch by its own, against optax; what is ignored, and padding, does not count."""
  params, feature_map = small_case()
  found = seeing()(params, feature_map)
  rng = np.random.default_rng(1)
  labels = jnp.asarray(rng.integers(0, 2, (3, 5)), jnp.float32)
  ignore = jnp.asarray(rng.random((3, 5)) < 0.3)
  total, terms = two_stream.loss(found, labels, ignore, jnp.array([1, 0, 1]))
  kept = ~np.asarray(ignore)
  for name in ("regions", "dense", "attended"):
    scores = getattr(found.memory, name)
    each = (np.asarray(optax.sigmoid_binary_cross_entropy(scores, labels)) * kept).sum(axis=1)
    assert float(terms[name]) == pytest.approx((each[0] + each[2]) / 2, rel=1e-5)
  assert float(total) == pytest.approx(float(terms["regions"] + terms["dense"] + terms["attended"]))


def test_bad_arguments():
  params, feature_map = small_case()
  with pytest.raises(ValueError, match="num_regions"):
    two_stream.recognize(params, feature_map, **OPTIONS | {"num_regions": 0})
  with pytest.raises(ValueError, match="feature_map"):
    two_stream.recognize(params, feature_map[0], **OPTIONS)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("sizes", ()),
    ("sizes", (0.0, 0.5)),
    ("sizes", (0.5, 1.2)),
    ("step", 0.0),
    ("most_oblong", 0.9),
    ("surround", 0.9),
    ("power", 0.0),
    ("threshold", 1.0),
  ],
)
def test_bad_fields(field, value):
  model = common.get_config().model
  model.two_stream[field] = value
  with pytest.raises(UserError, match=f"model.two_stream.{field}"):
    recognizer.build(model, 4, head="two_stream")


def test_it_learns_log_odds():
  config = common.paper_config("512", "two_stream")
  assert stages.build(config, "stage_two", num_classes=20, num_records=100).objective.localization_weight == 0
  config.loss.classification = "euclidean"
  with pytest.raises(UserError, match=r"loss\.classification"):
    stages.build(config, "stage_two", num_classes=20, num_records=100)


@pytest.mark.slow
def test_a_run_from_end_to_end_with_ten_views_and_what_it_exports(data_root, tmp_path):
  fields = {"loss.classification": "sigmoid", "controls": (), "evaluation.views": "ten"}
  config = tiny_config(data_root, **{"model.head": "two_stream", **fields})
  results = pipeline.train_and_evaluate(config, tmp_path / "run")
  assert results["head"] == "two_stream"
  assert results["views"] == "ten"
  assert results["astray"] == 0
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert any({"regions", "dense", "attended"} <= set(line) for line in lines)
  by_class = evaluate.evaluate(tmp_path / "run", {"feature": "class"})
  assert by_class["svm_feature"] == "class"
  assert by_class["mAP"] == results["mAP"]
  assert by_class["svm_mAP"] != results["svm_mAP"]
  exported.export(tmp_path / "run", tmp_path / "model")
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  (here,), (there,) = (rmam_jax.load(tmp_path / name).predict([image]) for name in ("run", "model"))
  np.testing.assert_array_equal(here.probabilities, there.probabilities)
  assert len(here.regions) == 3
  likeliest = np.argsort(-here.probabilities)[:2]
  assert [region.probability for region in here.regions[:2]] == here.probabilities[likeliest].tolist()
  assert here.regions[2].box == pytest.approx((4 / 72 * 64, 4 / 72 * 64, 68 / 72 * 64, 68 / 72 * 64))


def test_with_a_prior_every_class_begins_unlikely_and_everywhere_alike():
  params = two_stream.init(jax.random.key(0), channels=4, num_classes=5, prior=0.05)
  feature_map = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 4)), jnp.float32)
  regions = two_stream.fixed_regions(6, 6, (0.5, 1.0), 0.5, 2.0)
  found = two_stream.branches(params, feature_map, regions)
  odds = 0.05 / 0.95  # of each class against nothing
  np.testing.assert_allclose(jax.nn.sigmoid(found.regions), odds / (1 + 5 * odds), rtol=1e-5)
  for scores in (found.dense, found.attended):
    np.testing.assert_allclose(jax.nn.sigmoid(scores), 0.05, rtol=1e-5)
  np.testing.assert_allclose(found.weights, np.broadcast_to(found.weights[:, :1], found.weights.shape), rtol=1e-5)
