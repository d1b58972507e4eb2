"""Ways of choosing the next region: the update rule of M (Sec. 3.2) and its rivals.

A rule takes its parameters and the feature map [B, H, W, C], whether it needs them or not, and returns its first memory
and what chooses the next region (`attention.NextRegion`), so that what depends on the map alone is computed outside the scan. Its keyword
arguments are set with `functools.partial`. Its initialiser takes a key, the map's channels C and the width Z of z.

Letters: B batch, H W C the feature map, Z width of z, L classes, K regions.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax.ops import spatial_transformer
from rmam_jax.ops.attention import dense


def recurrent(params, feature_map, *, origins=None, gain=1.0):
  """The paper's rule: M_{k+1} = W_zm z_k + b_m (Eq. 5), unbounded.

  Its gradient reaches the map only through the few cells under the present region. Its parameters are
  {"kernel": [Z, 4], "bias": [4]}, which times `gain` are W_zm and b_m: a gain below 1 leaves the same regions possible, but
  a step of Adam moves them by so much less, and their gradient, which explodes at 1, is so much smaller a part of what
  is clipped. `origins` [K, 2] of (x, y) are added to (t_x, t_y) of the K regions, so that the layer predicts
  corrections, e.g. to the centre and the anchor points; None adds nothing, as printed.
  """
  del feature_map

  def choose(memory, z, k):
    theta = gain * dense(params, z)
    if origins is not None:
      theta = theta.at[:, 2:].add(jnp.asarray(origins)[jnp.minimum(k, len(origins) - 1)])
    return memory, theta

  return (), choose


def init_recurrent(
  key, *, channels, z_width, bias=spatial_transformer.WHOLE_IMAGE, weight_scale=0.01, fan="fan_avg", gain=1.0
):
  """Small Xavier weights and, as bias, the identity: with a zero bias every region would collapse to one point.

  `bias` is the first (s_x, s_y, t_x, t_y), whatever the `gain`, which is that of `recurrent`; `weight_scale` the variance of
  the weights relative to Xavier's, by the fan of `attention.init_attention`.
  """
  del channels
  init = jax.nn.initializers.variance_scaling(weight_scale, fan, "uniform")
  return {"kernel": init(key, (z_width, 4)), "bias": jnp.asarray(bias, jnp.float32) / gain}


def no_parameters(key, *, channels, z_width):
  """The initialiser of the rules below, which have nothing to learn."""
  del key, channels, z_width
  return {}


def grid_thetas(num_regions: int, scale: float = 0.5) -> np.ndarray:
  """The fixed grid: the centre and the anchor points of Sec. 4.2, all at one scale. float32 [K, 4]."""
  centres = np.concatenate([np.zeros((1, 2), np.float32), spatial_transformer.anchor_points(num_regions)])
  return np.concatenate([np.full_like(centres, scale), centres], axis=1)


def fixed_grid(params, feature_map, *, num_regions, scale=0.5):
  """Regions that never move, those of `grid_thetas`: the control that every attention result needs."""
  del params
  thetas = jnp.asarray(grid_thetas(num_regions, scale))

  def choose(memory, z, k):
    theta = thetas[jnp.minimum(k, num_regions - 1)]  # the last choice is made but not looked at
    return memory, jnp.broadcast_to(theta, (feature_map.shape[0], 4)).astype(z.dtype)

  return (), choose


def proposals(params, feature_map, *, boxes, align_corners=True):
  """Looks at boxes that something else has proposed, in their order: the paper's comparison of Table 3.

  `boxes` [B, K, 4] are (top, left, bottom, right) as shares of what the map shows; only the map's size is read.
  """
  del params
  thetas = spatial_transformer.boxes_to_thetas(boxes, feature_map.shape[1:3], align_corners=align_corners)

  def choose(memory, z, k):
    return memory, thetas[:, jnp.minimum(k, thetas.shape[1] - 1)].astype(z.dtype)

  return (), choose


def saliency(params, feature_map, *, dense_scores, scale=0.3, inhibition=1.2, peak_width=0.2, align_corners=True):
  """Looks where the classes score highest on the map, and never returns to a place.

  The salience of each of the H x W places is the log-sum-exp of its class scores, its sigmoid a probability that
  something is there. (t_x, t_y) is the mean of the places weighted by it, around its highest peak so that two objects are
  never averaged. Places within an extent of the region around it are taken out for good: without that the K looks settle
  on one object, and a penalty is simply outgrown. Neither place nor size depends on z_k: a query from it changed nothing,
  and a size that is learned through the sampled region shrinks to a point.

  Gradient path: through the mean place into the weights, and so into the scores of every open place; through the
  sampled region into the cells under it; not through where the peak is nor through what was taken out. The scores are
  best taught directly as well, by a loss of their own (`heads.pooling.ScoreMap`).

  Args:
    dense_scores: [B, H, W, L], a score of every class at every place of the map.
    scale: s_x and s_y of every region.
    inhibition: of what a look takes out, the radius in extents of the region, `scale`.
    peak_width: standard deviation of the weight around the peak, in normalised coordinates (the map is 2 wide).
    align_corners: as in `attention.attend`.
  """
  del params, feature_map
  batch, height, width, _ = dense_scores.shape
  salience = jax.nn.logsumexp(dense_scores, axis=-1).reshape(batch, height * width)
  # Every place of the map as (x, y), [H * W, 2].
  identity = jnp.asarray(spatial_transformer.WHOLE_IMAGE, salience.dtype)
  places = spatial_transformer.affine_grid(identity, (height, width), align_corners=align_corners).reshape(-1, 2)

  def squared_distance(points):
    return ((places - points[:, None]) ** 2).sum(-1)

  def choose(visited, z, k):
    del k
    # Where every place is taken, the choice is free again.
    open_places = ~visited | visited.all(axis=1, keepdims=True)
    peak = places[jnp.where(open_places, salience, -jnp.inf).argmax(axis=1)]
    log_weights = jax.nn.log_sigmoid(salience) - squared_distance(peak) / (2 * peak_width**2)
    weights = jax.nn.softmax(log_weights, axis=1, where=open_places)
    centre = weights @ places
    visited |= squared_distance(jax.lax.stop_gradient(centre)) < (inhibition * scale) ** 2
    return visited, jnp.concatenate([jnp.full_like(centre, scale), centre], axis=1).astype(z.dtype)

  return salience > jnp.inf, choose  # nowhere yet
