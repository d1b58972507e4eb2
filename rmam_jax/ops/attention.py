"""The recurrent memorized-attention module (Sec. 3.2, Eq. 2-6): look at a region, remember, score, choose the next.

Letters: B batch, H W C the feature map, K regions, X Z N widths of x, z and the LSTM, L classes.

`attend` takes its parameters as a plain tree, so that any library can hold them:

    {"fx":   {"kernel": [h * w * C, X], "bias": [X]},            W_fx, b_x   Eq. 4
     "lstm": {"w_x": [X, 4N], "w_h": [N, 4N], "b": [4N]},        gates i, g, o, m side by side
     "hz":   {"kernel": [N, Z], "bias": [Z]},                    W_hz, b_z   Eq. 5
     "zs":   {"kernel": [Z, L], "bias": [L]},                    W_zs, b_s
     "next_region": whatever the rule needs}

`rmam_jax.ops.next_region` holds the ways of choosing the next region; `init_attention` makes the tree.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmam_jax.ops import scan, spatial_transformer
from rmam_jax.ops.scan import product

Params = Any
Memory = Any


# A rule of where to look next: it reads the map [B, H, W, C] once and returns its first memory and what chooses, which takes
# memory, z_k [B, Z] and k, and returns the memory and M_{k+1} as theta [B, 4]. A memory that changes is made of the map
# from the start, or `jax.shard_map` takes it for the same on every device.
Choose = Callable[[Memory, jax.Array, jax.Array], tuple[Memory, jax.Array]]
NextRegion = Callable[[Params, jax.Array], tuple[Memory, Choose]]


class Attention(NamedTuple):
  """What `attend` returns, for the regions 1..K."""

  scores: jax.Array  # [K, B, L], s_k of Eq. 5
  thetas: jax.Array  # [K, B, 4], M_k of Eq. 2
  x: jax.Array  # [K, B, X]
  h: jax.Array  # [K, B, N]
  z: jax.Array  # [K, B, Z]
  memory: Memory  # the rule's, after its last choice


def dense(params: Params, inputs: jax.Array) -> jax.Array:
  """W x + b, multiplied as `product` says and summed in float32 or better."""
  return product(inputs, params["kernel"]) + params["bias"]


def region_features(
  feature_map: jax.Array,
  theta: jax.Array,
  region_size: tuple[int, int] = (7, 7),
  *,
  pool: int = 1,
  align_corners: bool = True,
) -> jax.Array:
  """f_k, flattened (Eq. 2): [B, h * w * C] in the map's type.

  Args:
    feature_map: [B, H, W, C].
    theta: [B, 4].
    region_size: (h, w) of the result.
    pool: samples `pool` times finer and max-pools: 2 takes 14x14 for 7x7, as RoI pooling would; 1 samples directly.
    align_corners: as in `rmam_jax.ops.spatial_transformer`.
  """
  h, w = region_size
  fine = spatial_transformer.spatial_transform(feature_map, theta, (h * pool, w * pool), align_corners=align_corners)
  batch, _, _, channels = fine.shape
  return fine.reshape(batch, h, pool, w, pool, channels).max(axis=(2, 4)).reshape(batch, -1)


def region_code(params: Params, feature_map: jax.Array, theta: jax.Array, **sampling: Any) -> jax.Array:
  """x_k = ReLU(W_fx f_k + b_x), [B, X] (Eq. 4); `sampling` as in `region_features`."""
  return jax.nn.relu(dense(params["fx"], region_features(feature_map, theta, **sampling)))


def read_state(params: Params, h: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What a state says (Eq. 5): h [..., N] -> z [..., Z] and scores [..., L]."""
  z = jax.nn.relu(dense(params["hz"], h))
  return z, dense(params["zs"], z)


def lstm_step(
  params: Params, carry: tuple[jax.Array, jax.Array], x: jax.Array, *, squash_cell: bool = False
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
  """One step of the LSTM of Eq. 4: (c_k, h_k), h_k.

  Args:
    params: {"w_x": [X, 4N], "w_h": [N, 4N], "b": [4N]}, the input, forget, output and modulation gates (i, g, o, m in
      the paper's letters) side by side.
    carry: (c_{k-1}, h_{k-1}), each [..., N].
    x: x_k, [..., X].
    squash_cell: h = o * tanh(c), as most LSTMs do; the paper prints h = o * c.
  """
  c, h = carry
  i, g, o, m = jnp.split(product(x, params["w_x"]) + product(h, params["w_h"]) + params["b"], 4, axis=-1)
  c = jax.nn.sigmoid(g) * c + jax.nn.sigmoid(i) * jnp.tanh(m)
  h = jax.nn.sigmoid(o) * (jnp.tanh(c) if squash_cell else c)
  return (c, h), h


def check_arguments(feature_map: jax.Array, num_regions: int) -> None:
  """Raises ValueError for K < 1, and for a map that is not [B, H, W, C]."""
  if num_regions < 1:
    raise ValueError(f"num_regions must be at least 1, got {num_regions}")
  if feature_map.ndim != 4:
    raise ValueError(f"feature_map must have shape [B, H, W, C], got {list(feature_map.shape)}")


def attend(
  params: Params,
  feature_map: jax.Array,
  *,
  num_regions: int,
  next_region: NextRegion,
  squash_cell: bool = False,
  unroll: bool | None = None,
  **sampling: Any,
) -> Attention:
  """K+1 looks at a feature map in one scan (Eq. 2-5): first the whole image, which is not scored, then K regions.

  Its gradient is for reverse mode only.

  Args:
    params: see the module's docstring.
    feature_map: [B, H, W, C], float32 or bfloat16. W_fx, the LSTM and W_hz are multiplied in its type and summed in
      float32; scores, states and coordinates, and the layers that predict scores and coordinates, are float32.
    num_regions: K >= 1.
    next_region: the rule that chooses where to look next.
    squash_cell: see `lstm_step`.
    unroll: whether the looks stand one after the other in the program; None: where that is faster.
    **sampling: `region_size`, (h, w) of a region's features, by default (7, 7); `pool` and `align_corners`; see
      `region_features`.

  Raises:
    ValueError: K < 1, or a map that is not [B, H, W, C].
  """
  check_arguments(feature_map, num_regions)
  memory, choose = next_region(params["next_region"], feature_map)
  kernels = {"fx": params["fx"]["kernel"], "hz": params["hz"]["kernel"]}
  kernels |= {name: params["lstm"][name] for name in ("w_x", "w_h")}

  def look(kernels, state, k):
    carry, theta, memory = state
    fx, hz = ({**params[name], "kernel": kernels[name]} for name in ("fx", "hz"))
    x = region_code({"fx": fx}, feature_map, theta, **sampling)
    lstm = {"w_x": kernels["w_x"], "w_h": kernels["w_h"], "b": params["lstm"]["b"]}
    carry, h = lstm_step(lstm, carry, x, squash_cell=squash_cell)
    z = jax.nn.relu(dense(hz, h))
    memory, next_theta = choose(memory, z, k)
    return (carry, next_theta + nothing, memory), (theta, x, h, z)

  wide = spatial_transformer.wide_dtype(feature_map)
  # Zeros [B, 1] made of the map: inside `jax.shard_map` a scan's state has to vary between devices from the start.
  nothing = (feature_map[:, :1, 0, 0] > jnp.inf).astype(wide)
  zeros = jnp.zeros((feature_map.shape[0], len(params["lstm"]["w_h"])), wide) + nothing
  theta = jnp.asarray(spatial_transformer.WHOLE_IMAGE, wide) + nothing
  state, places = ((zeros, zeros), theta, memory), jnp.arange(num_regions + 1)
  (_, _, memory), looks = scan.scan(look, kernels, state, places, dtype=feature_map.dtype, unroll=unroll)
  thetas, x, h, z = (every[1:] for every in looks)
  return Attention(dense(params["zs"], z), thetas, x, h, z, memory)


def max_pool_scores(scores: jax.Array) -> jax.Array:
  """Category-wise max-pooling (Eq. 6): [K, B, L] -> [B, L]."""
  return scores.max(axis=0)


def winning_region(scores: jax.Array) -> jax.Array:
  """The region, 0..K-1, that gives Eq. 6 its maximum: [K, B, L] -> int [B, L]; the first of equals."""
  return scores.argmax(axis=0)


def init_scores(rows: int, num_classes: int, prior: float) -> Params:
  """A score layer that says `prior`, a probability above 0, for every class, whatever it is given; [rows, L]."""
  return {"kernel": jnp.zeros((rows, num_classes)), "bias": jnp.full(num_classes, jax.scipy.special.logit(prior))}


def init_attention(
  key: jax.Array,
  *,
  channels: int,
  num_classes: int,
  init_next_region: Callable[..., Params],
  region_size: tuple[int, int] = (7, 7),
  x_width: int = 4096,
  lstm_width: int = 4096,
  z_width: int = 4096,
  forget_bias: float = 0.0,
  fan: str = "fan_avg",
  prior: float = 0.0,
) -> Params:
  """Parameters for `attend`: Xavier uniform weights, zero biases (Sec. 5.1).

  Args:
    key: a PRNG key.
    channels: C of the feature map.
    num_classes: L.
    init_next_region: key, *, channels, z_width -> the rule's parameters.
    region_size: (h, w) of a region's features.
    x_width, lstm_width, z_width: X, N, Z; the paper gives none.
    forget_bias: the forget gate's first bias; 1 is a common other choice.
    fan: "fan_avg", the mean of a layer's inputs and outputs as Glorot and Bengio have it, or "fan_in", Caffe's default:
      weights are uniform in ±sqrt(3 / fan).
    prior: the probability of every class at first, if above 0: the weights of the score layer are then 0, and its bias is
      that probability's log-odds. A sigmoid's scores of rare classes are otherwise far off at first (Lin et al., "Focal
      Loss", ICCV 2017).
  """
  xavier = jax.nn.initializers.variance_scaling(1.0, fan, "uniform")
  keys = jax.random.split(key, 10)

  def init_dense(key, rows, columns):
    return {"kernel": xavier(key, (rows, columns)), "bias": jnp.zeros(columns)}

  def init_gates(key, rows):  # Xavier for each gate by itself
    return jnp.concatenate([xavier(key, (rows, lstm_width)) for key in jax.random.split(key, 4)], axis=1)

  return {
    "fx": init_dense(keys[0], region_size[0] * region_size[1] * channels, x_width),
    "lstm": {
      "w_x": init_gates(keys[1], x_width),
      "w_h": init_gates(keys[2], lstm_width),
      "b": jnp.zeros((4, lstm_width)).at[1].set(forget_bias).reshape(-1),
    },
    "hz": init_dense(keys[3], lstm_width, z_width),
    "zs": init_scores(z_width, num_classes, prior) if prior else init_dense(keys[4], z_width, num_classes),
    "next_region": init_next_region(keys[5], channels=channels, z_width=z_width),
  }
