"""Where a region lies and what the feature map holds there: the spatial transformer (Sec. 3.1, Eq. 1-3).

Conventions, throughout the package:
  * A region is `theta` = (s_x, s_y, t_x, t_y), the four free entries of M in Eq. 1. The region's normalised
    coordinates (x', y') in [-1, 1] lie at x = s_x * x' + t_x, y = s_y * y' + t_y of the feature map.
  * x runs along the width to the right and y along the height downwards, both in [-1, 1] across the map. With
    `align_corners=True` (the default) -1 and 1 are the centres of the first and last cells; with False they are the
    outer edges of those cells. These are the conventions of `torch.nn.functional.grid_sample`.
  * Feature maps are channels last. Outside the map everything is zero.
  * Coordinates and the weights that come of them are float32 (float64 where the input is), whatever the type of the
    features.

Letters: B batch, H W map height and width, h w region height and width, C channels, K regions.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

WHOLE_IMAGE = (1.0, 1.0, 0.0, 0.0)  # M_0 of Eq. 3


def _axis_points(length: int, align_corners: bool, dtype) -> jax.Array:
  """The normalised positions [length] of samples along one axis, in [-1, 1]."""
  if align_corners:
    return jnp.linspace(-1, 1, length, dtype=dtype) if length > 1 else jnp.zeros(1, dtype)
  return (2 * jnp.arange(length, dtype=dtype) + 1) / length - 1


def to_cells(coordinate: jax.Array, length: int, *, align_corners: bool = True) -> jax.Array:
  """Normalised coordinate to cell index: -1..1 to 0..length-1 if aligned, else to -0.5..length-0.5."""
  if align_corners:
    return (coordinate + 1) * (0.5 * (length - 1))
  return ((coordinate + 1) * length - 1) * 0.5


def from_cells(cell: jax.Array, length: int, *, align_corners: bool = True) -> jax.Array:
  """Cell index to normalised coordinate: the inverse of `to_cells`. A map of one cell has no aligned coordinates."""
  if align_corners:
    return cell / (0.5 * max(length - 1, 1)) - 1
  return (2 * cell + 1) / length - 1


def boxes_to_thetas(boxes: jax.Array, cells: tuple[int, int], *, align_corners: bool = True) -> jax.Array:
  """The thetas [..., 4] of the regions that sample from edge to edge of boxes [..., 4].

  Boxes are (top, left, bottom, right) as shares of what the map shows; `cells` is (H, W) of the map.
  """
  lengths = (*cells, *cells)
  edges = boxes * jnp.asarray(lengths, boxes.dtype) - 0.5  # in cells
  top, left, bottom, right = (
    from_cells(edges[..., side], length, align_corners=align_corners) for side, length in enumerate(lengths)
  )
  return jnp.stack([(right - left) / 2, (bottom - top) / 2, (right + left) / 2, (bottom + top) / 2], axis=-1)


def map_to_pixels(points: jax.Array, cells: int, stride: int, *, align_corners: bool = True) -> jax.Array:
  """Normalised coordinates along an axis of `cells` cells -> pixels of the image that the feature map came from.

  A cell stands for a square of `stride` x `stride` pixels, and its centre for the square's. Pixels count from the image's
  edge: 0 is the outer edge of the first pixel, cells * stride that of the last.
  """
  return (to_cells(points, cells, align_corners=align_corners) + 0.5) * stride


def wide_dtype(array: jax.Array):
  """The array's type, but float32 at least."""
  return jnp.promote_types(array.dtype, jnp.float32)


def _check(array: jax.Array, name: str, shape: str) -> None:
  """Raises ValueError unless the array's last dimensions are as in "..., h, w, 2", letters being any numbers."""
  wanted = shape.split(", ")[1:]
  if array.ndim < len(wanted) or (wanted[-1].isdigit() and array.shape[-1] != int(wanted[-1])):
    raise ValueError(f"{name} must have shape [{shape}], got {list(array.shape)}")


def _check_with_map(feature_map: jax.Array, array: jax.Array, name: str, shape: str) -> None:
  """Raises ValueError unless a map and an array of this shape belong together."""
  _check(feature_map, "feature_map", "..., H, W, C")
  _check(array, name, shape)
  if feature_map.shape[:-3] != array.shape[: -shape.count(",")]:
    shapes = f"feature_map {list(feature_map.shape)} and {name} {list(array.shape)}"
    raise ValueError(f"{shapes} differ in their leading dimensions")


def affine_grid(theta: jax.Array, size: tuple[int, int], *, align_corners: bool = True) -> jax.Array:
  """The points of the map that a region samples (Eq. 1): [..., h, w, 2] of (x, y), inside the map where in [-1, 1].

  Args:
    theta: [..., 4] as (s_x, s_y, t_x, t_y).
    size: (h, w) of the region's samples.
    align_corners: see the module's docstring.
  """
  theta = jnp.asarray(theta)
  _check(theta, "theta", "..., 4")
  theta = theta.astype(wide_dtype(theta))
  h, w = size
  s_x, s_y, t_x, t_y = jnp.moveaxis(theta[..., None, None], -3, 0)
  x = s_x * _axis_points(w, align_corners, theta.dtype) + t_x
  y = s_y * _axis_points(h, align_corners, theta.dtype)[:, None] + t_y
  return jnp.stack(jnp.broadcast_arrays(x, y), axis=-1)


def grid_sample(feature_map: jax.Array, grid: jax.Array, *, align_corners: bool = True) -> jax.Array:
  """Bilinear samples of a map at any points, zero outside (Sec. 3.1): [..., h, w, C] in the map's type.

  Equals `torch.nn.functional.grid_sample(mode="bilinear", padding_mode="zeros")` but for the channels' place. Its
  derivative at a cell's very centre is the one towards larger coordinates, as there.

  Args:
    feature_map: [..., H, W, C].
    grid: [..., h, w, 2] of (x, y), with the same leading dimensions.
    align_corners: see the module's docstring.
  """
  feature_map, grid = jnp.asarray(feature_map), jnp.asarray(grid)
  _check_with_map(feature_map, grid, "grid", "..., h, w, 2")
  grid = grid.astype(jnp.promote_types(wide_dtype(feature_map), grid.dtype))
  *lead, height, width, channels = feature_map.shape
  x = to_cells(grid[..., 0], width, align_corners=align_corners).reshape(-1, *grid.shape[-3:-1])
  y = to_cells(grid[..., 1], height, align_corners=align_corners).reshape(x.shape)
  sampled = jax.vmap(_gather)(feature_map.reshape(-1, height, width, channels), y, x)
  return sampled.reshape(*lead, *sampled.shape[1:])


def _neighbours(position: jax.Array, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Around cell positions [...]: the two cells, their weights, and 1 where they are cells of the map; [2, ...] each."""
  below = jnp.floor(position)
  cells = jnp.stack([below, below + 1])
  inside = (cells >= 0) & (cells < length)
  weights = jnp.stack([1 - (position - below), position - below])
  return jnp.where(inside, cells, 0).astype(jnp.int32), jnp.where(inside, weights, 0), inside.astype(position.dtype)


_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


def _gather(map_HWC: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
  """Sums the four cells around each sample by their weights: at cell positions y and x [h, w], or [h, 1] and [1, w]."""
  rows, weights_y, _ = _neighbours(y, map_HWC.shape[0])
  columns, weights_x, _ = _neighbours(x, map_HWC.shape[1])
  total = 0
  for a, b in _CORNERS:
    cells = map_HWC.at[rows[a], columns[b]].get(mode="promise_in_bounds")
    total += (weights_y[a] * weights_x[b])[..., None] * cells
  return total.astype(map_HWC.dtype)


def _gather_gradient(map_HWC, y_h1, x_1w, gradient_hwC):
  """The gradients of `_gather`: one buffer for the map, added to in place, where autodiff would make four."""
  rows, weights_y, inside_y = _neighbours(y_h1, map_HWC.shape[0])
  columns, weights_x, inside_x = _neighbours(x_1w, map_HWC.shape[1])
  gradient_hwC = gradient_hwC.astype(jnp.promote_types(map_HWC.dtype, weights_y.dtype))
  to_map = jnp.zeros_like(map_HWC, gradient_hwC.dtype)
  to_weight = {}  # [h, w] for each corner
  for a, b in _CORNERS:
    weighted = (weights_y[a] * weights_x[b])[..., None] * gradient_hwC
    to_map = to_map.at[rows[a], columns[b]].add(weighted, mode="promise_in_bounds")
    cells = map_HWC.at[rows[a], columns[b]].get(mode="promise_in_bounds")
    to_weight[a, b] = (gradient_hwC * cells).sum(axis=-1) * inside_y[a] * inside_x[b]
  to_y = sum(weights_x[b] * (to_weight[1, b] - to_weight[0, b]) for b in (0, 1)).sum(axis=1, keepdims=True)
  to_x = sum(weights_y[a] * (to_weight[a, 1] - to_weight[a, 0]) for a in (0, 1)).sum(axis=0, keepdims=True)
  return to_map.astype(map_HWC.dtype), to_y.astype(y_h1.dtype), to_x.astype(x_1w.dtype)


@jax.custom_vjp
@jax.jit
def _sample_rectangle(map_BHWC: jax.Array, y_Bh1: jax.Array, x_B1w: jax.Array) -> jax.Array:
  """Bilinear samples [B, h, w, C] at all pairs of the cell positions y and x.

  M has no rotation, so that the weights are separable and A_y F A_x^T is the same: two matrix products. That form was
  slower than gathering at every size measured, on a CPU and on a GPU (docs/benchmarks/sampler.md).
  """
  return jax.vmap(_gather)(map_BHWC, y_Bh1, x_B1w)


_gather_gradients = jax.jit(jax.vmap(_gather_gradient))
_sample_rectangle.defvjp(
  lambda *inputs: (_sample_rectangle(*inputs), inputs), lambda inputs, gradient: _gather_gradients(*inputs, gradient)
)


def spatial_transform(
  feature_map: jax.Array, theta: jax.Array, size: tuple[int, int], *, align_corners: bool = True
) -> jax.Array:
  """The features of a region: f_k = st(f_I, M_k) (Eq. 2), [..., h, w, C] in the map's type.

  Equals `grid_sample(feature_map, affine_grid(theta, size))`, and is faster: M has no rotation (Eq. 1), so that the
  weights along each axis are those of all its samples. Its gradient in map and theta is written out, for reverse mode
  only.

  Args:
    feature_map: [..., H, W, C].
    theta: [..., 4], with the same leading dimensions.
    size: (h, w) of the result.
    align_corners: see the module's docstring.
  """
  feature_map, theta = jnp.asarray(feature_map), jnp.asarray(theta)
  _check_with_map(feature_map, theta, "theta", "..., 4")
  *lead, height, width, channels = feature_map.shape
  theta = theta.astype(wide_dtype(theta)).reshape(-1, 4)
  s_x, s_y, t_x, t_y = jnp.moveaxis(theta[..., None], -2, 0)

  def positions(scale, offset, cells, samples):
    points = scale * _axis_points(samples, align_corners, theta.dtype) + offset
    return to_cells(points, cells, align_corners=align_corners)

  y, x = positions(s_y, t_y, height, size[0]), positions(s_x, t_x, width, size[1])
  sampled = _sample_rectangle(feature_map.reshape(-1, height, width, channels), y[:, :, None], x[:, None])
  return sampled.reshape(*lead, *sampled.shape[1:])


def anchor_points(num_regions: int) -> np.ndarray:
  """Where the anchor constraint wants the regions 2..K, `num_regions` being K >= 1: float32 [K-1, 2] of (c_x, c_y).

  They lie (Sec. 4.2, Fig. 4) at angles pi/4 + 2 pi j / (K-1) on the circle of radius sqrt(2)/2, sorted by their angle's
  size, positive before negative, which for K = 5 is the printed order (.5, .5), (.5, -.5), (-.5, .5), (-.5, -.5).
  """
  if num_regions < 1:
    raise ValueError(f"num_regions must be at least 1, got {num_regions}")
  count = num_regions - 1
  # Angles as whole multiples of pi / (4 * count), in (-pi, pi], so that the order is exact.
  turns = [(count + 8 * j) % (8 * count) for j in range(count)]
  turns = [turn - 8 * count if turn > 4 * count else turn for turn in turns]
  turns.sort(key=lambda turn: (abs(turn), -turn))
  angles = np.array([turn * math.pi / (4 * count) for turn in turns])
  points = math.sqrt(0.5) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  return np.round(points, 12).astype(np.float32)
