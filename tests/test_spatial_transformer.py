"""Eq. 1-3 against hand-worked values, torch, scipy and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmam_jax as rmam
from rmam_jax.ops import spatial_transformer

CONVENTIONS = pytest.mark.parametrize("align_corners", [True, False])


def random_case(seed, shape=(3, 9, 7, 5), size=(4, 6)):
  """A map, and thetas that reach beyond its border."""
  rng = np.random.default_rng(seed)
  feature_map = rng.normal(size=shape).astype(np.float32)
  theta = np.concatenate([rng.uniform(-0.9, 1.3, (shape[0], 2)), rng.uniform(-0.8, 0.8, (shape[0], 2))], axis=1)
  return feature_map, theta.astype(np.float32), size


def test_affine_grid_is_x_then_y():
  grid = rmam.affine_grid(jnp.array([0.5, 0.25, 0.1, -0.2]), (2, 3))
  x, y = np.array([-0.4, 0.1, 0.6]), np.array([-0.45, 0.05])
  expected = np.stack(np.broadcast_arrays(x[None], y[:, None]), axis=-1)
  np.testing.assert_allclose(grid, expected, atol=1e-7)


def test_affine_grid_unaligned_points_are_cell_centres():
  grid = rmam.affine_grid(jnp.array([1.0, 1.0, 0.0, 0.0]), (1, 4), align_corners=False)
  np.testing.assert_allclose(grid[0, :, 0], [-0.75, -0.25, 0.25, 0.75], atol=1e-7)
  np.testing.assert_allclose(grid[0, :, 1], 0, atol=1e-7)


def test_a_single_sample_lies_at_the_centre():
  grid = rmam.affine_grid(jnp.array([0.7, 0.3, 0.2, -0.6]), (1, 1))
  np.testing.assert_allclose(grid[0, 0], [0.2, -0.6], atol=1e-7)


@CONVENTIONS
def test_identity_returns_the_map(align_corners):
  feature_map, _, _ = random_case(0)
  theta = jnp.broadcast_to(jnp.array(spatial_transformer.WHOLE_IMAGE), (3, 4))
  sampled = rmam.spatial_transform(feature_map, theta, feature_map.shape[1:3], align_corners=align_corners)
  np.testing.assert_allclose(sampled, feature_map, atol=1e-5)


@CONVENTIONS
@pytest.mark.parametrize("seed", range(3))
def test_spatial_transform_is_grid_sample_of_affine_grid(seed, align_corners):
  feature_map, theta, size = random_case(seed)

  @jax.jit
  def both(feature_map, theta):
    grid = rmam.affine_grid(theta, size, align_corners=align_corners)
    return (
      rmam.spatial_transform(feature_map, theta, size, align_corners=align_corners),
      rmam.grid_sample(feature_map, grid, align_corners=align_corners),
    )

  cotangent = np.random.default_rng(9).normal(size=(3, *size, 5)).astype(np.float32)
  (fast, slow), vjp = jax.vjp(both, feature_map, theta)
  np.testing.assert_allclose(fast, slow, atol=1e-5)
  zero, vjp = jnp.zeros_like(cotangent), jax.jit(vjp)
  for one, other in zip(vjp((cotangent, zero)), vjp((zero, cotangent)), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.oracle
@CONVENTIONS
@pytest.mark.parametrize("seed", range(3))
def test_grid_sample_equals_torch(seed, align_corners):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(seed)
  feature_map = rng.normal(size=(2, 6, 5, 3)).astype(np.float32)
  grid = rng.uniform(-1.8, 1.8, (2, 4, 7, 2)).astype(np.float32)
  cotangent = rng.normal(size=(2, 4, 7, 3)).astype(np.float32)
  ours, vjp = jax.vjp(lambda f, g: rmam.grid_sample(f, g, align_corners=align_corners), feature_map, grid)
  ours_map, ours_grid = vjp(cotangent)

  torch_map = torch.tensor(feature_map.transpose(0, 3, 1, 2), requires_grad=True)
  torch_grid = torch.tensor(grid, requires_grad=True)
  theirs = torch.nn.functional.grid_sample(
    torch_map, torch_grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners
  )
  theirs.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
  np.testing.assert_allclose(ours, theirs.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5)
  np.testing.assert_allclose(ours_map, torch_map.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)
  np.testing.assert_allclose(ours_grid, torch_grid.grad.numpy(), atol=1e-4)


@pytest.mark.oracle
@CONVENTIONS
def test_affine_grid_equals_torch(align_corners):
  torch = pytest.importorskip("torch")
  _, theta, size = random_case(4)
  matrix = np.zeros((3, 2, 3), np.float32)
  matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 2], matrix[:, 1, 2] = theta.T
  theirs = torch.nn.functional.affine_grid(torch.tensor(matrix), (3, 1, *size), align_corners=align_corners)
  np.testing.assert_allclose(rmam.affine_grid(theta, size, align_corners=align_corners), theirs, atol=1e-6)


@CONVENTIONS
def test_grid_sample_equals_scipy(align_corners):
  scipy_ndimage = pytest.importorskip("scipy.ndimage")
  rng = np.random.default_rng(5)
  feature_map = rng.normal(size=(6, 5, 2)).astype(np.float32)
  grid = rng.uniform(-1.5, 1.5, (4, 7, 2)).astype(np.float32)
  ours = rmam.grid_sample(feature_map, grid, align_corners=align_corners)
  x = np.asarray(spatial_transformer.to_cells(grid[..., 0], 5, align_corners=align_corners))
  y = np.asarray(spatial_transformer.to_cells(grid[..., 1], 6, align_corners=align_corners))
  # scipy's "constant" mode drops a sample altogether once it leaves the map; a border of zeros makes it fade out.
  padded = np.pad(feature_map, ((2, 2), (2, 2), (0, 0)))
  for channel in range(2):
    theirs = scipy_ndimage.map_coordinates(padded[..., channel], [y + 2, x + 2], order=1, mode="constant")
    np.testing.assert_allclose(ours[..., channel], theirs, atol=1e-5)


def test_theta_gradient_by_finite_differences_in_float64():
  with jax.enable_x64():
    rng = np.random.default_rng(6)
    feature_map = jnp.asarray(rng.normal(size=(1, 8, 8, 3)))
    # Chosen so that no sample is within 1e-4 of a cell's centre, where the hat functions have their kinks.
    theta = jnp.array([[0.531, 0.377, 0.123, -0.211]])
    weights = jnp.asarray(rng.normal(size=(1, 4, 4, 3)))

    @jax.jit
    def value(theta):
      return (weights * rmam.spatial_transform(feature_map, theta, (4, 4))).sum()

    cells = spatial_transformer.to_cells(rmam.affine_grid(theta, (4, 4)), 8)
    assert np.abs(cells - np.round(cells)).min() > 1e-4
    gradient = jax.grad(value)(theta)
    step = 1e-6
    for entry in range(4):
      shift = jnp.zeros((1, 4)).at[0, entry].set(step)
      slope = (value(theta + shift) - value(theta - shift)) / (2 * step)
      np.testing.assert_allclose(gradient[0, entry], slope, rtol=1e-6)


def test_derivative_at_a_cell_centre_looks_towards_larger_coordinates():
  feature_map = jnp.array([0.0, 1.0, 3.0, 2.0, 7.0]).reshape(1, 5, 1)
  for sample in (
    lambda t: rmam.spatial_transform(feature_map, jnp.array([1.0, 1.0, t, 0.0]), (1, 1)).sum(),
    lambda t: rmam.grid_sample(feature_map, jnp.stack([t, 0.0 * t]).reshape(1, 1, 2)).sum(),
  ):
    # t = 0 is the centre of the third cell; one cell is 0.5 wide.
    assert jax.jit(jax.grad(sample))(0.0) == (2.0 - 3.0) / 0.5


def test_far_outside_is_zero_with_zero_gradient():
  feature_map = jnp.ones((1, 4, 4, 1))
  theta = jnp.array([[0.1, 0.1, 5.0, 0.0]])
  total = jax.value_and_grad(lambda t: rmam.spatial_transform(feature_map, t, (2, 2)).sum())
  value, gradient = jax.jit(total)(theta)
  assert value == 0
  assert (gradient == 0).all()


def test_bfloat16_features_keep_float32_coordinates():
  feature_map, theta, size = random_case(7, shape=(2, 64, 64, 4))
  transform = jax.jit(rmam.spatial_transform, static_argnums=2)
  exact = transform(feature_map, theta[:2], size)
  coarse = transform(feature_map.astype(jnp.bfloat16), theta[:2], size)
  assert coarse.dtype == jnp.bfloat16
  # bfloat16 coordinates could not tell neighbouring cells of 64 apart; bfloat16 values are right to 1 %.
  np.testing.assert_allclose(coarse.astype(np.float32), exact, atol=0.05)
  gradient = jax.grad(lambda t: transform(feature_map.astype(jnp.bfloat16), t, size).sum())(theta[:2])
  assert gradient.dtype == jnp.float32


@pytest.mark.oracle
@CONVENTIONS
def test_spatial_transform_and_its_gradients_equal_torch(align_corners):
  torch = pytest.importorskip("torch")
  feature_map, theta, size = random_case(3)
  cotangent = np.random.default_rng(1).normal(size=(3, *size, 5)).astype(np.float32)
  ours, vjp = jax.vjp(lambda f, t: rmam.spatial_transform(f, t, size, align_corners=align_corners), feature_map, theta)
  ours_map, ours_theta = vjp(cotangent)

  torch_map = torch.tensor(feature_map.transpose(0, 3, 1, 2), requires_grad=True)
  torch_theta = torch.tensor(theta, requires_grad=True)
  s_x, s_y, t_x, t_y = torch_theta.T
  nothing = torch.zeros_like(s_x)
  matrix = torch.stack([s_x, nothing, t_x, nothing, s_y, t_y], dim=1).reshape(-1, 2, 3)
  grid = torch.nn.functional.affine_grid(matrix, (3, 5, *size), align_corners=align_corners)
  theirs = torch.nn.functional.grid_sample(torch_map, grid, align_corners=align_corners)
  theirs.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
  np.testing.assert_allclose(ours, theirs.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5)
  np.testing.assert_allclose(ours_map, torch_map.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)
  np.testing.assert_allclose(ours_theta, torch_theta.grad.numpy(), atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_regions_are_gathered_and_their_gradient_is_added_to_one_buffer(platform):
  feature_map, theta, size = random_case(8)

  def total(feature_map, theta):
    return rmam.spatial_transform(feature_map, theta, size).sum()

  gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
  text = gradient.trace(feature_map, theta).lower(lowering_platforms=(platform,)).as_text()
  assert "stablehlo.gather" in text
  assert text.count('"stablehlo.scatter"(') == 4  # one for each corner, into the buffer of the one before
  assert "stablehlo.dot_general" not in text


def test_a_theta_that_is_no_number_reads_no_cell():
  feature_map, _, size = random_case(8)
  theta = jnp.full((3, 4), jnp.nan)
  gradient = jax.grad(lambda f: rmam.spatial_transform(f, theta, size).sum())(feature_map)
  assert (gradient == 0).all()


def test_jit_and_vmap_change_nothing():
  feature_map, theta, size = random_case(8)
  plain = rmam.spatial_transform(feature_map, theta, size)
  jitted = jax.jit(rmam.spatial_transform, static_argnums=2)(feature_map, theta, size)
  mapped = jax.vmap(lambda f, t: rmam.spatial_transform(f, t, size))(feature_map, theta)
  np.testing.assert_allclose(jitted, plain, atol=1e-6)
  np.testing.assert_allclose(mapped, plain, atol=1e-6)


def test_any_leading_dimensions():
  feature_map, theta, size = random_case(8, shape=(6, 5, 4, 2))
  flat = rmam.spatial_transform(feature_map, theta, size)
  shaped = rmam.spatial_transform(feature_map.reshape(2, 3, 5, 4, 2), theta.reshape(2, 3, 4), size)
  np.testing.assert_allclose(shaped.reshape(flat.shape), flat, atol=1e-6)


def test_options_are_keyword_only():
  feature_map, theta, size = random_case(8)
  with pytest.raises(TypeError):
    rmam.affine_grid(theta, size, True)
  with pytest.raises(TypeError):
    rmam.spatial_transform(feature_map, theta, size, True)


@pytest.mark.parametrize(
  ("feature_map", "theta", "message"),
  [
    ((5, 5, 1), (3,), "theta must have shape"),
    ((2, 5, 5, 1), (3, 4), "leading dimensions"),
    ((5, 1), (4,), "feature_map"),
  ],
)
def test_wrong_shapes_are_named(feature_map, theta, message):
  with pytest.raises(ValueError, match=message):
    rmam.spatial_transform(jnp.zeros(feature_map), jnp.zeros(theta), (2, 2))


def test_anchor_points_at_k_5_in_the_printed_order():
  printed = [[0.5, 0.5], [0.5, -0.5], [-0.5, 0.5], [-0.5, -0.5]]
  np.testing.assert_allclose(rmam.anchor_points(5), printed, atol=1e-7)


@pytest.mark.parametrize("num_regions", [1, 2, 3, 4, 9, 12])
def test_anchor_points_are_even_on_the_circle(num_regions):
  points = rmam.anchor_points(num_regions)
  assert points.shape == (num_regions - 1, 2)
  np.testing.assert_allclose(np.linalg.norm(points, axis=1), np.sqrt(0.5), rtol=1e-6)
  angles = np.arctan2(points[:, 1], points[:, 0])
  assert (np.diff(np.round(np.abs(angles), 6)) >= 0).all()
  if num_regions > 1:
    wanted = np.pi / 4 + 2 * np.pi * np.arange(num_regions - 1) / (num_regions - 1)
    np.testing.assert_allclose(np.sort(angles % (2 * np.pi)), np.sort(wanted % (2 * np.pi)), atol=1e-6)


def test_no_anchor_points_without_regions():
  with pytest.raises(ValueError, match="at least 1, got 0"):
    rmam.anchor_points(0)


def test_cells_map_to_the_middle_of_their_pixels():
  # Four cells of 16 pixels: the first cell's centre is pixel 8, the last one's 56, the middle of the map 32.
  aligned = spatial_transformer.map_to_pixels(jnp.array([-1.0, 0.0, 1.0]), 4, 16)
  np.testing.assert_allclose(aligned, [8, 32, 56])
  edges = spatial_transformer.map_to_pixels(jnp.array([-1.0, 0.0, 1.0]), 4, 16, align_corners=False)
  np.testing.assert_allclose(edges, [0, 32, 64])
