"""Ways of choosing the next region: the update rule of M (Sec. 3.2) and its rivals.

A rule reads the feature map once and returns its first memory and its step (`attention.NextRegion`), so that what
depends on the map alone is computed outside the scan. Each rule has an initialiser of its parameters beside it; the
arguments after `feature_map` are set with `functools.partial`.

Letters: B batch, H W C the feature map, Z width of z, D width of keys and queries, K regions.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax import geometry
from rmam_jax.attention import dense


def recurrent(params, feature_map, *, origins=None):
  """The paper's rule: M_{k+1} = W_zm z_k + b_m (Eq. 5), unbounded.

  Its gradient reaches the map only through the few cells under the present region.

  Args:
    params: {"kernel": [Z, 4], "bias": [4]}.
    feature_map: unused; every rule takes it.
    origins: [K, 2] of (x, y), added to (t_x, t_y) of the K regions; None adds nothing, as printed. With the centre and
      the anchor points, the layer predicts corrections to the anchors.
  """
  del feature_map

  def choose(memory, z, k):
    theta = dense(params, z)
    if origins is not None:
      theta = theta.at[:, 2:].add(jnp.asarray(origins)[jnp.minimum(k, len(origins) - 1)])
    return memory, theta

  return (), choose


def init_recurrent(key, *, channels, z_width, bias=geometry.WHOLE_IMAGE, weight_scale=0.01):
  """Small Xavier weights and the identity as bias: with a zero bias every region would collapse to one point.

  Args:
    key: a PRNG key.
    channels: unused; every initialiser takes it.
    z_width: Z.
    bias: the first (s_x, s_y, t_x, t_y).
    weight_scale: variance of the weights relative to Xavier's.
  """
  del channels
  init = jax.nn.initializers.variance_scaling(weight_scale, "fan_avg", "uniform")
  return {"kernel": init(key, (z_width, 4)), "bias": jnp.asarray(bias, jnp.float32)}


def grid_thetas(num_regions: int, scale: float = 0.5) -> np.ndarray:
  """The fixed grid: the centre and the anchor points of Sec. 4.2, all at one scale. float32 [K, 4]."""
  centres = np.concatenate([np.zeros((1, 2), np.float32), geometry.anchor_points(num_regions)])
  return np.concatenate([np.full_like(centres, scale), centres], axis=1)


def fixed_grid(params, feature_map, *, num_regions, scale=0.5):
  """Regions that never move: the control that every attention result needs. No parameters."""
  del params
  thetas = jnp.asarray(grid_thetas(num_regions, scale))
  batch = feature_map.shape[0]

  def choose(memory, z, k):
    theta = thetas[jnp.minimum(k, num_regions - 1)]  # the last choice is made but not looked at
    return memory, jnp.broadcast_to(theta, (batch, 4)).astype(z.dtype)

  return (), choose


def init_fixed_grid(key, *, channels, z_width):
  """A grid has nothing to learn."""
  del key, channels, z_width
  return {}


def saliency(
  params,
  feature_map,
  *,
  radius=0.35,
  peak_width=0.2,
  scale_range=(0.2, 0.6),
  initial_scale=0.35,
  align_corners=True,
):
  """Looks where a learned map of the image is highest and never returns to a place.

  The logit of each of the H x W places is its salience, linear in the map, plus keys . query / sqrt(D), the keys
  linear in the map and the query in z_k. Places within a radius of an earlier centre are taken out for good: left to
  themselves the K looks settle on one object, and a penalty is simply outgrown. (t_x, t_y) is the mean place under
  the softmax of the logits, weighted towards its highest peak so that two objects are never averaged; (s_x, s_y) are
  linear in z_k and clipped.

  Gradient path: through the mean place into the softmax, and so into the whole map, the keys and the query; through
  the sampled region into the cells under it; not through where the peak is nor through what was taken out.

  Args:
    params: from `init_saliency`.
    feature_map: [B, H, W, C].
    radius: of what a look takes out, in normalised coordinates (the map is 2 wide).
    peak_width: standard deviation of the weight around the peak, likewise.
    scale_range: the least and the largest s_x and s_y.
    initial_scale: s_x and s_y where the linear map of z_k gives zero.
    align_corners: where the map's cells lie, as in `attend`.
  """
  batch, height, width, channels = feature_map.shape
  cells = feature_map.reshape(batch, height * width, channels)
  keys = dense(params["keys"], cells)
  salience = dense(params["salience"], cells)[..., 0]
  # Every place of the map as (x, y), [H * W, 2].
  identity = jnp.asarray(geometry.WHOLE_IMAGE, salience.dtype)
  places = geometry.affine_grid(identity, (height, width), align_corners=align_corners).reshape(-1, 2)

  def choose(visited, z, k):
    del k
    query = dense(params["query"], z)
    logits = jnp.einsum("bpd,bd->bp", keys, query) / np.sqrt(keys.shape[-1]) + salience
    # Where every place is taken, the choice is free again.
    open_places = ~visited | visited.all(axis=1, keepdims=True)
    logits = jnp.where(open_places, logits, -jnp.inf)
    peak = places[logits.argmax(axis=1)]
    near_peak = ((places - peak[:, None]) ** 2).sum(-1) / (-2 * peak_width**2)
    weights = jax.nn.softmax(logits + near_peak, axis=1)
    centre = weights @ places
    distance = ((places - jax.lax.stop_gradient(centre)[:, None]) ** 2).sum(-1)
    visited |= distance < radius**2
    scale = jnp.clip(initial_scale + dense(params["scale"], z), *scale_range)
    return visited, jnp.concatenate([scale, centre], axis=1)

  return salience > jnp.inf, choose  # nowhere yet


def init_saliency(key, *, channels, z_width, key_width=64, salience_gain=4.0):
  """Looking begins where the map is strongest: the salience starts as the map's mean over its channels.

  With random salience the looks flee the objects: scores are not yet told apart there, and the background is the safe
  answer. Query and scales start small, and so begin as nothing and as `initial_scale`.

  Args:
    key: a PRNG key.
    channels: C of the feature map.
    z_width: Z.
    key_width: D.
    salience_gain: what the mean is multiplied by.
  """
  xavier = jax.nn.initializers.glorot_uniform()
  small = jax.nn.initializers.variance_scaling(0.01, "fan_avg", "uniform")
  keys = jax.random.split(key, 3)
  return {
    "keys": {"kernel": xavier(keys[0], (channels, key_width)), "bias": jnp.zeros(key_width)},
    "query": {"kernel": small(keys[1], (z_width, key_width)), "bias": jnp.zeros(key_width)},
    "salience": {"kernel": jnp.full((channels, 1), salience_gain / channels, jnp.float32), "bias": jnp.zeros(1)},
    "scale": {"kernel": small(keys[2], (z_width, 2)), "bias": jnp.zeros(2)},
  }
