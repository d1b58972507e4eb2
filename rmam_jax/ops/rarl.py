"""Recurrent attentional reinforcement learning (RARL): regions of several shapes around centres that a policy samples.

After Chen, Wang, Li, Lin: "Recurrent Attentional Reinforcement Learning for Multi-label Image Recognition" (AAAI 2018),
of which only the abstract was at hand. What follows from other sources or from memory is marked "reconstructed".

Letters as in `ops.attention`, and T steps, k regions at each, numbered step by step: K = T * k. Centres are (t_x, t_y).

The parameters are "fx", "lstm", "hz" and "zs" of `ops.attention`, and

    "policy":   {"kernel": [N, 2], "bias": [2]}   from the LSTM's state to the next centre's mean
    "baseline": {"kernel": [N, 1], "bias": [1]}   and to the reward that is expected there
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax.ops import attention, losses, spatial_transformer
from rmam_jax.ops.attention import Attention, Params, dense

BASELINES = ("learned", "batch")


class Rollout(NamedTuple):
  """The actions of an episode and what they were chosen by, for the policy's gradient."""

  means: jax.Array  # [T, B, 2], of the Gaussian that each centre was sampled from
  centres: jax.Array  # [T, B, 2]; no gradient flows through them
  states: jax.Array  # [T, B, N], h of the LSTM before each centre
  baselines: jax.Array  # [T, B], the reward expected before each centre; its gradient reaches only its own layer


def region_shapes(sizes: Sequence[float], aspects: Sequence[float]) -> np.ndarray:
  """(s_x, s_y) of every size with every aspect ratio, at the size's area: float32 [k, 2].

  Sizes are sides of square regions as shares of the image's, aspects width over height. The paper's regions differ in
  both; which sizes, and that the area is kept, is reconstructed.
  """
  return np.array([(size * aspect**0.5, size / aspect**0.5) for size in sizes for aspect in aspects], np.float32)


def attend(
  params: Params,
  feature_map: jax.Array,
  *,
  steps: int,
  shapes: np.ndarray,
  deviation: float,
  key: jax.Array | None = None,
  squash_cell: bool = False,
  **sampling: Any,
) -> Attention:
  """An episode: the whole image, which only finds the first centre, then T steps of k regions around one centre each.

  Reconstructed: each region of a step enters the LSTM with the state that the step before left, and the mean of the k
  new states goes on; the next centre's mean is the tanh of a linear layer on h, and so inside the image; the centre is
  Gaussian around it with a fixed deviation; a region's scores come from z, as in RMAM.

  Shapes [k, 2] are those of `region_shapes`; the deviation is in units of half the image. Without a key for the noise,
  as in evaluation, the centres are the means. For the other arguments see `attention.attend`. The memory that is
  returned is a `Rollout`. Raises a ValueError for T < 1, and without shapes.
  """
  if steps < 1 or not len(shapes):
    raise ValueError(f"steps must be at least 1 and shapes not empty, got {steps} and {len(shapes)} shapes")
  batch = feature_map.shape[0]

  def look(state, thetas_kB4):
    """The mean state after each of the k regions, and their x and h."""
    x = jax.vmap(functools.partial(attention.region_code, params, feature_map, **sampling))(thetas_kB4)
    states, h = attention.lstm_step(params["lstm"], state, x, squash_cell=squash_cell)
    return jax.tree.map(lambda array: array.mean(axis=0), states), x, h

  def step(state, noise):
    _, h_before = state
    mean = jnp.tanh(dense(params["policy"], h_before))
    centre = jax.lax.stop_gradient(mean + deviation * noise)
    expected = dense(params["baseline"], jax.lax.stop_gradient(h_before))[:, 0]
    halves = jnp.asarray(shapes)[:, None], centre
    thetas = jnp.concatenate([jnp.broadcast_to(half, (len(shapes), batch, 2)) for half in halves], axis=-1)
    state, x, h = look(state, thetas)
    z, scores = attention.read_state(params, h)
    return state, ((scores, thetas, x, h, z), Rollout(mean, centre, h_before, expected))

  zeros = jnp.zeros((batch, len(params["lstm"]["w_h"])), spatial_transformer.wide_dtype(feature_map))
  whole_image = jnp.broadcast_to(jnp.asarray(spatial_transformer.WHOLE_IMAGE, zeros.dtype), (1, batch, 4))
  state, _, _ = look((zeros, zeros), whole_image)
  noise = jnp.zeros((steps, batch, 2)) if key is None else jax.random.normal(key, (steps, batch, 2))
  _, (looks, rollout) = jax.lax.scan(step, state, noise)
  return Attention(*(every.reshape(-1, *every.shape[2:]) for every in looks), rollout)


def init_attention(
  key: jax.Array, *, lstm_width: int, policy_scale: float = 0.01, fan: str = "fan_avg", **options: Any
) -> Params:
  """Parameters for `attend`: as RMAM's, a small policy whose first means are near the image's middle, a baseline of 0.

  `policy_scale` is the variance of the policy's weights relative to Xavier's; options as of `attention.init_attention`.
  """
  policy = jax.nn.initializers.variance_scaling(policy_scale, fan, "uniform")
  params = attention.init_attention(
    key, lstm_width=lstm_width, init_next_region=lambda key, **_: policy(key, (lstm_width, 2)), fan=fan, **options
  )
  policy_kernel = params.pop("next_region")
  return {
    **params,
    "policy": {"kernel": policy_kernel, "bias": jnp.zeros(2)},
    "baseline": {"kernel": jnp.zeros((lstm_width, 1)), "bias": jnp.zeros(1)},
  }


def reward(scores: jax.Array, labels: jax.Array, ignore: jax.Array) -> tuple[jax.Array, jax.Array]:
  """|G ∩ P| / n at the end of an episode: G the n true labels, P the n that score highest (reconstructed).

  Scores of Eq. 6, labels and ignore are [B, L]; ignored labels are in neither set. Returns the reward [B] in [0, 1], 0
  without true labels, and whether there are any, bool [B].
  """
  true = (labels > 0) & ~ignore
  count = true.sum(axis=-1)
  order = jnp.argsort(jnp.where(ignore, -jnp.inf, scores), axis=-1, descending=True)  # the first of equals first
  ranked = jnp.take_along_axis(true, order, axis=-1)
  hits = (ranked & (jnp.arange(labels.shape[-1]) < count[:, None])).sum(axis=-1)
  return hits / jnp.maximum(count, 1), count > 0


def advantages(rewards: jax.Array, counted: jax.Array, rollout: Rollout, baseline: str) -> jax.Array:
  """Reward [B] less baseline for each centre, [T, B], without gradient; `counted` [B] is 1 for the episodes that count.

  The baseline is "learned", of the state before each centre, or "batch", the mean reward of the other episodes. Neither
  knows that centre, so both leave the gradient's mean as it is.
  """
  expected = rollout.baselines
  if baseline == "batch":
    expected = ((rewards * counted).sum() - rewards) / jnp.maximum(counted.sum() - 1, 1)
    expected = jnp.broadcast_to(expected, rollout.baselines.shape)
  return jax.lax.stop_gradient((rewards - expected) * counted)


def policy_variance(rollout: Rollout, advantages_TB: jax.Array, counted: jax.Array, deviation: float) -> jax.Array:
  """How uncertain a batch's REINFORCE gradient of the policy's kernel is: the variance of all its entries, summed.

  The gradient is a mean over episodes; its variance is estimated from how the episodes of the batch differ, which is
  noise and images together. Arguments as in `advantages`. A scalar; 0 with fewer than two episodes.
  """
  slope = (rollout.centres - rollout.means) / deviation**2 * (1 - rollout.means**2)  # d log pi / d (before tanh)
  by_episode = jnp.einsum("TBN,TBd,TB->BNd", rollout.states, slope, advantages_TB)
  count = counted.sum()
  centred = (by_episode - by_episode.sum(axis=0) / jnp.maximum(count, 1)) * counted[:, None, None]
  return jax.lax.stop_gradient((centred**2).sum() / jnp.maximum((count - 1) * count, 1))


def loss(
  found: Attention,
  labels: jax.Array,
  ignore: jax.Array,
  mask: jax.Array,
  *,
  deviation: float,
  classification: str = "euclidean",
  options: Mapping[str, Any] = {},
  policy_weight: float = 1.0,
  baseline: str = "learned",
  baseline_weight: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Classification of the pooled scores of `attend` with a key and, jointly, -J, whose gradient is REINFORCE's.

  Labels (0 or 1), ignore and mask are as in `heads.spec.HeadLoss`, `options` are those of the loss `classification`, of
  `losses.CLASSIFICATION_LOSSES`. Reconstructed: Eq. 7-8 as classification loss, the baseline,
  and the weights of -J and of the learned baseline's squared error. Returns the loss and its terms, with the mean
  "reward" and "policy_variance". Raises a ValueError for a baseline not in `BASELINES`.
  """
  if baseline not in BASELINES:
    raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {baseline!r}")
  rollout = found.memory
  scores = attention.max_pool_scores(found.scores)
  rewards, has_reward = reward(jax.lax.stop_gradient(scores), labels, ignore)
  counted = mask.astype(rewards.dtype) * has_reward
  gains = advantages(rewards, counted, rollout, baseline)
  mean = functools.partial(losses.batch_mean, example_mask=mask)
  # log pi of each centre [T, B]: of two independent Gaussians, without their constant.
  log_probability = -((rollout.centres - rollout.means) ** 2).sum(axis=-1) / (2 * deviation**2)
  terms = {
    "classification": losses.CLASSIFICATION_LOSSES[classification](
      scores, labels, ignore=ignore, example_mask=mask, **options
    ),
    "policy": -mean((log_probability * gains).sum(axis=0)),
  }
  total = terms["classification"] + policy_weight * terms["policy"]
  if baseline == "learned":
    terms["baseline"] = mean(((rollout.baselines - rewards) ** 2).mean(axis=0) * counted)
    total += baseline_weight * terms["baseline"]
  terms["reward"] = (rewards * counted).sum() / jnp.maximum(counted.sum(), 1)
  terms["policy_variance"] = policy_variance(rollout, gains, counted, deviation)
  return total, terms
