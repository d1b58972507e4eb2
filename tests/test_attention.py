"""Eq. 2-6: hand-worked LSTM, a plain numpy loop, the scan against an unrolled one, and what each rule promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import rmam_jax as rmam
from rmam_jax.ops import attention, next_region, spatial_transformer
from rmam_jax.runtime import mesh as mesh_lib

K, B, C, L = 5, 3, 6, 4


def saliency(params, feature_map, **options):
  """The map's first channels serve as class scores, low where the map is: most places show nothing."""
  wide = feature_map.astype(jnp.promote_types(feature_map.dtype, "float32"))
  return next_region.saliency(params, feature_map, dense_scores=wide[..., :L] - 8, **options)


RULES = {
  "recurrent": (next_region.recurrent, functools.partial(next_region.init_recurrent, weight_scale=1.0)),
  "fixed_grid": (functools.partial(next_region.fixed_grid, num_regions=K), next_region.no_parameters),
  "saliency": (saliency, next_region.no_parameters),
}


@functools.cache
def attending(rule, **options):
  """`attend` with a rule, compiled once for all tests."""
  return jax.jit(
    functools.partial(rmam.attend, num_regions=K, next_region=RULES[rule][0], region_size=(3, 3), **options)
  )


def case(rule, seed=0, size=12, **options):
  _, init = RULES[rule]
  keys = jax.random.split(jax.random.key(seed))
  params = rmam.init_attention(
    keys[0],
    channels=C,
    num_classes=L,
    init_next_region=init,
    region_size=(3, 3),
    x_width=8,
    lstm_width=7,
    z_width=9,
  )
  feature_map = jax.nn.relu(jax.random.normal(keys[1], (B, size, size, C)))
  return params, feature_map, attending(rule, **options)


@pytest.mark.parametrize(("fan", "of"), [("fan_avg", lambda rows, columns: (rows + columns) / 2), ("fan_in", min)])
def test_xavier_weights_are_uniform_by_their_fan(fan, of):
  widths = {"x_width": 600, "lstm_width": 700, "z_width": 800, "region_size": (3, 3)}  # each layer has fewer inputs
  init = functools.partial(next_region.init_recurrent, fan=fan, weight_scale=0.01)
  params = rmam.init_attention(
    jax.random.key(0), channels=60, num_classes=900, init_next_region=init, fan=fan, **widths
  )
  found = {
    "fx": (params["fx"]["kernel"], 540, 600),
    "gates of x": (params["lstm"]["w_x"], 600, 700),
    "gates of h": (params["lstm"]["w_h"], 700, 700),
    "hz": (params["hz"]["kernel"], 700, 800),
    "zs": (params["zs"]["kernel"], 800, 900),
  }
  for name, (kernel, rows, columns) in found.items():
    limit = np.sqrt(3 / of(rows, columns))
    assert 0.999 * limit < float(jnp.abs(kernel).max()) <= limit, name
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.01, err_msg=name)
  kernel = params["next_region"]["kernel"]  # 800 x 4, a tenth of Xavier's width
  np.testing.assert_allclose(kernel.std(), 0.1 / np.sqrt({"fan_avg": 402, "fan_in": 800}[fan]), rtol=0.05)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_lstm_step_by_hand():
  # One unit, one input; the gates' weights are (i, g, o, m) = (1, 2, 3, 4) for x, 0.5 each for h, biases 0.1.
  params = {
    "w_x": jnp.array([[1.0, 2.0, 3.0, 4.0]]),
    "w_h": jnp.full((1, 4), 0.5),
    "b": jnp.full(4, 0.1),
  }
  (c, h), returned = rmam.lstm_step(params, (jnp.array([0.3]), jnp.array([-0.4])), jnp.array([0.2]))
  # x = .2, h = -.4: i = s(.1), g = s(.3), o = s(.5), m = tanh(.7).
  wanted_c = 0.574442517 * 0.3 + 0.524979187 * 0.604367777
  np.testing.assert_allclose(c, wanted_c, rtol=1e-6)
  np.testing.assert_allclose(h, 0.622459331 * wanted_c, rtol=1e-6)
  np.testing.assert_array_equal(h, returned)


def test_lstm_step_squashes_the_cell_on_request():
  params, _, _ = case("recurrent")
  carry = (jnp.full((B, 7), 0.9), jnp.full((B, 7), 0.1))
  x = jnp.ones((B, 8))
  (c, h), _ = rmam.lstm_step(params["lstm"], carry, x)
  (same_c, squashed), _ = rmam.lstm_step(params["lstm"], carry, x, squash_cell=True)
  np.testing.assert_array_equal(c, same_c)
  np.testing.assert_allclose(squashed, h / c * np.tanh(c), rtol=1e-5)


def plain_attend(params, feature_map):
  """Eq. 2-5 with the paper's rule as a numpy loop."""
  p = jax.tree.map(np.asarray, params)
  theta = np.tile(np.array([1.0, 1.0, 0.0, 0.0], np.float32), (B, 1))
  c = h = np.zeros((B, 7), np.float32)
  scores, thetas = [], []
  for k in range(K + 1):
    grid = rmam.affine_grid(theta, (3, 3))
    f = np.asarray(rmam.grid_sample(feature_map, grid)).reshape(B, -1)
    x = np.maximum(f @ p["fx"]["kernel"] + p["fx"]["bias"], 0)
    gates = x @ p["lstm"]["w_x"] + h @ p["lstm"]["w_h"] + p["lstm"]["b"]
    i, g, o, m = gates[:, :7], gates[:, 7:14], gates[:, 14:21], gates[:, 21:]
    c = sigmoid(g) * c + sigmoid(i) * np.tanh(m)
    h = sigmoid(o) * c
    z = np.maximum(h @ p["hz"]["kernel"] + p["hz"]["bias"], 0)
    if k > 0:
      scores.append(z @ p["zs"]["kernel"] + p["zs"]["bias"])
      thetas.append(theta)
    theta = z @ p["next_region"]["kernel"] + p["next_region"]["bias"]
  return np.stack(scores), np.stack(thetas)


def test_attend_equals_a_numpy_loop():
  params, feature_map, attend = case("recurrent")
  scores, thetas = plain_attend(params, feature_map)
  found = attend(params, feature_map)
  np.testing.assert_allclose(found.scores, scores, atol=1e-5)
  np.testing.assert_allclose(found.thetas, thetas, atol=1e-5)
  assert np.ptp(thetas[1:], axis=1).max() > 1e-3  # the regions do depend on the image


@pytest.mark.parametrize("rule", RULES)
def test_the_scan_equals_an_unrolled_loop(rule):
  params, feature_map, attend = case(rule)
  memory, choose = RULES[rule][0](params["next_region"], feature_map)
  carry = (jnp.zeros((B, 7)), jnp.zeros((B, 7)))
  theta = jnp.tile(jnp.array(spatial_transformer.WHOLE_IMAGE), (B, 1))
  scores, thetas = [], []
  for k in range(K + 1):
    f = attention.region_features(feature_map, theta, (3, 3))
    carry, h = rmam.lstm_step(params["lstm"], carry, jax.nn.relu(attention.dense(params["fx"], f)))
    z = jax.nn.relu(attention.dense(params["hz"], h))
    scores.append(attention.dense(params["zs"], z))
    thetas.append(theta)
    memory, theta = choose(memory, z, k)
  found = attend(params, feature_map)
  np.testing.assert_allclose(found.scores, np.stack(scores[1:]), atol=1e-5)
  np.testing.assert_allclose(found.thetas, np.stack(thetas[1:]), atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_jit_changes_nothing(rule):
  params, feature_map, attend = case(rule)
  plain, jitted = attend.__wrapped__(params, feature_map), attend(params, feature_map)
  np.testing.assert_allclose(jitted.scores, plain.scores, atol=1e-6)
  np.testing.assert_allclose(jitted.thetas, plain.thetas, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_examples_do_not_see_each_other(rule):
  params, feature_map, attend = case(rule)
  together = attend(params, feature_map).scores
  alone = attend(params, feature_map[1:2]).scores
  np.testing.assert_allclose(together[:, 1:2], alone, atol=1e-5)


def test_vmap_over_examples():
  params, feature_map, attend = case("saliency")
  mapped = jax.vmap(lambda f: attend(params, f[None]).scores[:, 0], out_axes=1)(feature_map)
  np.testing.assert_allclose(mapped, attend(params, feature_map).scores, atol=1e-5)


def test_pmap_over_two_devices():
  params, feature_map, attend = case("saliency")
  halves = feature_map[:2, None]
  mapped = jax.pmap(lambda f: attend(params, f).scores)(halves)
  np.testing.assert_allclose(np.concatenate(list(mapped), axis=1), attend(params, feature_map[:2]).scores, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_inside_shard_map(rule):
  params, feature_map, attend = case(rule)
  feature_map, labels = jnp.concatenate([feature_map, feature_map[:1]]), jnp.eye(4, L)
  two, data = mesh_lib.make_mesh(), PartitionSpec(mesh_lib.AXIS)

  def loss(params, feature_map, labels):
    found = attend(params, feature_map)
    return rmam.joint_loss(found.scores, found.thetas, labels)

  def shard_gradient(*shard):
    return jax.grad(lambda *shard: jax.lax.pmean(loss(*shard), mesh_lib.AXIS))(*shard)

  sharded = jax.shard_map(shard_gradient, mesh=two, in_specs=(PartitionSpec(), data, data), out_specs=PartitionSpec())
  found, wanted = (jax.jit(gradient)(params, feature_map, labels) for gradient in (sharded, jax.grad(loss)))
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


@jax.jit
@jax.grad
def total_seen(feature_map, theta):
  return attention.region_features(feature_map, theta, (3, 3)).sum()


def under(feature_map, theta):
  """The cells that a region with this theta samples: bool [B, H, W]."""
  return np.abs(total_seen(feature_map, jnp.tile(jnp.asarray(theta, jnp.float32), (B, 1)))).sum(-1) > 0


def test_scores_are_causal():
  """The score of region k feels the cells under the looks up to k, and none that only later looks sample."""
  params, feature_map, attend = case("fixed_grid", size=24)
  seen = under(feature_map, spatial_transformer.WHOLE_IMAGE)
  gradient = jax.jit(jax.grad(lambda f, k: attend(params, f).scores[k].sum()))
  for k, theta in enumerate(next_region.grid_thetas(K)):
    before, seen = seen, seen | under(feature_map, theta)
    felt = np.abs(gradient(feature_map, k)).sum(-1) > 0
    assert not (felt & ~seen).any()
    assert (felt & ~before).any()  # its own cells


def test_finite_differences_in_float64():
  with jax.enable_x64():
    params, feature_map, attend = case("recurrent")
    params, feature_map = jax.tree.map(lambda x: x.astype(jnp.float64), (params, feature_map))
    labels = jnp.eye(B, L)

    @jax.jit
    def loss(scale):
      moved = {**params, "next_region": jax.tree.map(lambda x: scale * x, params["next_region"])}
      found = attend(moved, scale * feature_map)
      assert found.scores.dtype == jnp.float64
      return rmam.joint_loss(found.scores, found.thetas, labels)

    step = 1e-7
    slope = (loss(0.9 + step) - loss(0.9 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.9), slope, rtol=1e-5)


def test_bfloat16_features_give_float32_scores_and_places():
  params, feature_map, attend = case("saliency")
  found = attend(params, feature_map.astype(jnp.bfloat16))
  assert {found.scores.dtype, found.thetas.dtype, found.z.dtype} == {jnp.dtype("float32")}
  np.testing.assert_allclose(found.scores, attend(params, feature_map).scores, atol=0.1)


def test_pooled_regions_sample_finer():
  params, feature_map, attend = case("fixed_grid", pool=2)
  theta = jnp.tile(jnp.array([0.4, 0.5, 0.1, 0.0]), (B, 1))
  fine = np.asarray(rmam.spatial_transform(feature_map, theta, (6, 6)))
  pooled = attention.region_features(feature_map, theta, (3, 3), pool=2)
  wanted = fine.reshape(B, 3, 2, 3, 2, C).max(axis=(2, 4)).reshape(B, -1)
  np.testing.assert_array_equal(pooled, wanted)
  assert attend(params, feature_map).scores.shape == (K, B, L)


def test_max_pool_scores_and_winners():
  scores = jnp.array([[[1.0, 5.0]], [[2.0, 5.0]], [[0.0, 4.0]]])
  np.testing.assert_array_equal(rmam.max_pool_scores(scores), [[2, 5]])
  np.testing.assert_array_equal(rmam.winning_region(scores), [[1, 0]])


def test_pooling_does_not_care_for_the_order_of_regions():
  params, feature_map, attend = case("recurrent")
  scores = attend(params, feature_map).scores
  order = np.array([3, 1, 4, 0, 2])
  np.testing.assert_array_equal(rmam.max_pool_scores(scores), rmam.max_pool_scores(scores[order]))
  np.testing.assert_array_equal(rmam.winning_region(scores), order[rmam.winning_region(scores[order])])


def test_the_fixed_grid_never_moves():
  params, feature_map, attend = case("fixed_grid")
  thetas = attend(params, feature_map).thetas
  grid = [[0.5, 0.5, x, y] for x, y in [(0, 0), (0.5, 0.5), (0.5, -0.5), (-0.5, 0.5), (-0.5, -0.5)]]
  np.testing.assert_allclose(thetas, np.broadcast_to(np.array(grid)[:, None], (K, B, 4)), atol=1e-7)


@pytest.mark.parametrize(("align_corners", "wanted"), [(True, (4 / 7, 2 / 3, -4 / 7, 0)), (False, (0.5, 0.5, -0.5, 0))])
def test_proposals_are_looked_at_on_a_map_that_is_no_square(align_corners, wanted):
  boxes = jnp.array([[[0.25, 0, 0.75, 0.5]]])  # rows 0.5 to 2.5 of 0 to 3, columns -0.5 to 3.5 of 0 to 7
  _, choose = next_region.proposals({}, jnp.zeros((1, 4, 8, C)), boxes=boxes, align_corners=align_corners)
  np.testing.assert_allclose(choose((), jnp.zeros((1, 9)), 0)[1], [wanted], atol=1e-6)


def test_origins_are_added_to_the_paper_s_rule():
  params, feature_map, _ = case("recurrent")
  still = {"kernel": jnp.zeros((9, 4)), "bias": jnp.array([0.4, 0.3, 0.01, -0.02])}
  origins = next_region.grid_thetas(K)[:, 2:]
  rule = functools.partial(next_region.recurrent, origins=origins)
  params = {**params, "next_region": still}
  thetas = rmam.attend(params, feature_map, num_regions=K, next_region=rule, region_size=(3, 3)).thetas
  np.testing.assert_allclose(thetas[..., :2], np.broadcast_to([0.4, 0.3], (K, B, 2)), atol=1e-6)
  np.testing.assert_allclose(thetas[:, 0, 2:], origins + np.array([0.01, -0.02]), atol=1e-6)


def test_a_gain_of_the_paper_s_rule_changes_how_it_is_learned_and_not_what_it_says():
  params, feature_map, _ = case("recurrent")
  first = (0.6, 0.5, 0.1, -0.1)
  begun = next_region.init_recurrent(jax.random.key(0), channels=C, z_width=9, bias=first, weight_scale=1.0, gain=0.1)
  printed = jax.tree.map(lambda leaf: 0.1 * leaf, begun)
  np.testing.assert_allclose(printed["bias"], first, rtol=1e-6)

  def places(own, gain):
    rule = functools.partial(next_region.recurrent, gain=gain)
    found = rmam.attend(params | {"next_region": own}, feature_map, num_regions=K, next_region=rule, region_size=(3, 3))
    return found.thetas

  slow, plain = (jax.jit(places, static_argnums=1)(*case) for case in ((begun, 0.1), (printed, 1.0)))
  np.testing.assert_allclose(slow, plain, atol=1e-5)
  assert np.ptp(np.asarray(slow), axis=0).min() > 1e-3
  gradients = (jax.grad(lambda own, gain=gain: jnp.sin(places(own, gain)).sum()) for gain in (0.1, 1.0))
  found, wanted = (gradient(own) for gradient, own in zip(gradients, (begun, printed), strict=True))
  for name in found:
    np.testing.assert_allclose(found[name], 0.1 * wanted[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("align_corners", [True, False])
def test_saliency_looks_at_the_strongest_places_first_and_never_twice(align_corners):
  params, _, _ = case("saliency")
  rule = functools.partial(saliency, align_corners=align_corners)
  options = {"region_size": (3, 3), "align_corners": align_corners}
  feature_map = np.full((B, 12, 12, C), 0.01, np.float32)
  peaks = [(2, 3), (9, 9), (10, 1)]
  for strength, (row, column) in zip((9.0, 6.0, 3.0), peaks, strict=True):
    feature_map[:, row, column] = strength
  thetas = rmam.attend(params, feature_map, num_regions=K, next_region=rule, **options).thetas
  centres = np.asarray(thetas)[..., 2:]
  cells = np.asarray(spatial_transformer.to_cells(centres, 12, align_corners=align_corners))
  for look, (row, column) in enumerate(peaks):
    np.testing.assert_allclose(cells[look], np.tile([column, row], (B, 1)), atol=0.2)
  for one in range(K):
    for other in range(one):
      # A centre is a mean of open places near the peak: it can lie a little inside the radius, never on the old one.
      assert np.linalg.norm(centres[one] - centres[other], axis=-1).min() > 0.2


def test_saliency_by_hand():
  """Three places in a row, one class: the mean place around the peak, then that of what is left."""
  scores = jnp.log(jnp.array([[[[4.0], [2.0], [1.0]]]]))
  visited, choose = next_region.saliency(
    {}, None, dense_scores=scores, scale=0.5, inhibition=1.0, peak_width=1.0 / np.sqrt(2 * np.log(2))
  )
  # Their sigmoids are 4/5, 2/3, 1/2. The weight halves at distance 1 of the peak at x = -1, and is 1/16 at 2.
  visited, theta = choose(visited, jnp.zeros((1, 9)), 0)
  first = (-4 / 5 + 1 / 32) / (4 / 5 + 1 / 3 + 1 / 32)
  np.testing.assert_allclose(theta, [[0.5, 0.5, first, 0.0]], atol=1e-6)
  np.testing.assert_array_equal(visited, [[True, False, False]])  # 0.34 and 0.66 away from the centre, then 1.66
  # The peak is now at x = 0, its neighbour at half weight: 2/3, 1/4.
  visited, theta = choose(visited, jnp.zeros((1, 9)), 1)
  np.testing.assert_allclose(theta, [[0.5, 0.5, 3 / 11, 0.0]], atol=1e-6)
  np.testing.assert_array_equal(visited, [[True, True, False]])


def test_a_look_takes_out_the_places_within_its_radius():
  scores = jnp.full((1, 9, 9, 1), -9.0).at[0, 4, 4].set(9.0)  # places are 1/4 apart, the highest in the middle
  visited, choose = next_region.saliency({}, None, dense_scores=scores, scale=0.4, inhibition=1.5)
  assert not visited.any()
  visited, theta = choose(visited, jnp.zeros((1, 1)), 0)
  np.testing.assert_allclose(theta, [[0.4, 0.4, 0, 0]], atol=1e-6)
  x, y = np.meshgrid(np.arange(-4, 5) / 4, np.arange(-4, 5) / 4)
  np.testing.assert_array_equal(visited.reshape(9, 9), np.hypot(x, y) < 0.6)


def test_saliency_looks_on_when_every_place_is_taken():
  params, feature_map, _ = case("saliency")
  rule = functools.partial(saliency, inhibition=14.0)
  found = rmam.attend(params, feature_map, num_regions=K, next_region=rule, region_size=(3, 3))
  assert np.isfinite(found.scores).all()
  assert np.isfinite(found.thetas).all()
  assert found.memory.all()


@pytest.mark.parametrize(("rule", "reaches"), [("saliency", True), ("recurrent", False)])
def test_gradient_of_a_place_reaches_the_map(rule, reaches):
  """The saliency's first centre feels cells that the glance has not sampled; that of Eq. 5 feels only those it has."""
  params, feature_map, attend = case(rule, size=24)
  gradient = jax.jit(jax.grad(lambda f: attend(params, f).thetas[0, :, 2].sum()))
  felt = np.abs(gradient(feature_map)).sum(-1) > 0
  assert (felt & ~under(feature_map, spatial_transformer.WHOLE_IMAGE)).any() == reaches


def test_no_regions_is_an_error():
  params, feature_map, _ = case("saliency")
  with pytest.raises(ValueError, match="num_regions must be at least 1, got 0"):
    rmam.attend(params, feature_map, num_regions=0, next_region=saliency)


def test_a_map_without_a_batch_is_an_error():
  params, feature_map, attend = case("saliency")
  with pytest.raises(ValueError, match=r"\[B, H, W, C\], got \[12, 12, 6\]"):
    attend(params, feature_map[0])
