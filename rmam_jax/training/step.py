"""One pure train step, for `jax.jit` over a mesh and, with an axis name, for `jax.pmap`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rmam_jax.heads import HeadLoss
from rmam_jax.ops import losses
from rmam_jax.recognizer import Recognition
from rmam_jax.runtime.errors import UserError

Params = Any
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
  """Everything that a step changes. NamedTuple: a plain tree to jit, pmap and Orbax."""

  step: jax.Array  # int32, of the present stage
  params: Params
  opt_state: optax.OptState
  average: Params | None = None  # of the parameters over the steps, where a stage keeps one; see `moving_average`

  @property
  def result(self) -> Params:
    """What is validated and kept: the average, or without one the parameters."""
    return self.params if self.average is None else self.average


class Objective(NamedTuple):
  """What a stage minimises: Eq. 14 or the head's own loss, and the auxiliary head's classification loss beside it."""

  classification: str = "euclidean"  # one of `losses.CLASSIFICATION_LOSSES`
  localization_weight: float = losses.LOCALIZATION_WEIGHT  # gamma; 0 for heads that do not look
  auxiliary_weight: float = 0.0  # of the auxiliary head's own sigmoid loss
  localization: Mapping[str, Any] = {}  # keyword arguments of `losses.localization_loss`
  head_loss: HeadLoss | None = None  # in place of Eq. 14, for a head that has a loss of its own
  options: Mapping[str, Any] = {}  # keyword arguments of the classification loss
  label_smoothing: float = 0.0  # the share of every label that becomes a half, in training alone

  def __call__(
    self, recognition: Recognition, labels: jax.Array, ignore: jax.Array, mask: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    """The loss and its terms, each a mean over the real examples."""
    if self.label_smoothing:
      labels = (1 - self.label_smoothing) * labels + self.label_smoothing / 2
    common = {"ignore": ignore, "example_mask": mask}
    if self.head_loss is not None:
      loss, terms = self.head_loss(recognition.attention, labels, ignore, mask)
    else:
      scores, thetas = recognition.attention.scores, recognition.attention.thetas
      classification = self.classification_loss
      options = {"localization_weight": self.localization_weight, **common, **self.localization}
      loss = losses.joint_loss(scores, thetas, labels, classification=classification, **options)
      # Under jit these are the same sums again, and computed once.
      terms = {"classification": classification(losses.max_pool_scores(scores), labels, **common)}
      if self.localization_weight:
        terms["localization"] = losses.localization_loss(thetas, example_mask=mask, **self.localization)
    if recognition.auxiliary is not None:
      auxiliary = losses.max_pool_scores(recognition.auxiliary.scores)
      terms["auxiliary"] = losses.sigmoid_loss(auxiliary, labels, **common)
      loss += self.auxiliary_weight * terms["auxiliary"]
    return loss, {"loss": loss, **terms}

  def classification_loss(self, scores: jax.Array, labels: jax.Array, **masks: Any) -> jax.Array:
    """Pooled scores and labels [B, L], `ignore` and `example_mask` -> the classification loss alone, a scalar."""
    return losses.CLASSIFICATION_LOSSES[self.classification](scores, labels, **masks, **self.options)


def init_params(model: nn.Module, key: jax.Array, size: int) -> Params:
  """A recognizer's first parameters; `size`, the side of the images in pixels, changes none of them."""
  return model.init(key, jnp.zeros((1, size, size, 3), jnp.uint8))["params"]


def init_state(
  model: nn.Module, optimizer: optax.GradientTransformation, key: jax.Array, size: int, *, averaged: bool = False
) -> TrainState:
  """A fresh state: first parameters, what the optimizer keeps for them, and their average if it is asked for."""
  params = init_params(model, key, size)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), params if averaged else None)


def moving_average(average: Params, params: Params, step: jax.Array, decay: float) -> Params:
  """The exponential moving average after a step, batch normalisation's statistics among its leaves.

  It moves towards the parameters by 1 - min(decay, (1 + step) / (10 + step)), `step` counted from 0: so the first
  parameters are soon forgotten (the rule of TensorFlow's `ExponentialMovingAverage`). What does not change stays as it
  is, bit for bit.
  """
  moved = 1 - jnp.minimum(decay, (1 + step) / (10 + step))

  def move(mean: jax.Array, leaf: jax.Array) -> jax.Array:  # the sum alone would make 0 of -0 and of denormal numbers
    return jnp.where(leaf == mean, mean, mean + (moved * (leaf - mean)).astype(mean.dtype))

  return jax.tree.map(move, average, params)


def mix(batch: Mapping[str, jax.Array], key: jax.Array, alpha: float) -> dict[str, jax.Array]:
  """Mixup (Zhang et al., ICLR 2018): every example becomes a mixture with the one before it, of images and of labels.

  One share for the whole batch is drawn from Beta(alpha, alpha). Labels become shares between 0 and 1; what is ignored
  in one of both images is ignored in the mixture. An example whose neighbour is padding stays as it is.

  Args:
    batch: as `data.batches` describes it; its images or feature maps come out as float32.
    key: of the random numbers.
    alpha: > 0.
  """

  def other(array):
    return jnp.roll(array, 1, axis=0)

  share = jax.random.beta(key, alpha, alpha)  # of the image itself
  share_B = jnp.where(other(batch["mask"]) > 0, share, 1)

  def mixed(array):
    own, theirs = array.astype(jnp.float32), other(array).astype(jnp.float32)
    weight = share_B.reshape(-1, *[1] * (array.ndim - 1))
    return weight * own + (1 - weight) * theirs

  ignore = batch["ignore"].astype(bool)
  found = {**batch, "labels": mixed(batch["labels"]), "ignore": ignore | (other(ignore) & (share_B < 1)[:, None])}
  return found | {name: mixed(batch[name]) for name in ("image", "feature_map") if name in batch}


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  objective: Objective,
  *,
  axis_name: str | None = None,
  accumulate: int = 1,
  seed: int = 0,
  ema: float = 0.0,
  mixup: float = 0.0,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]:
  """Builds the step: state, batch -> state, metrics. Pure; neither jitted nor donated.

  A step whose loss or gradient is not finite changes nothing of the state; its metrics say so.

  Args:
    model: a `Recognizer`, or a region proposal network.
    optimizer: its updates.
    objective: what is minimised.
    axis_name: inside `jax.pmap(..., axis_name=...)`, gradients and metrics are averaged over this axis; the devices'
      batches must be equally large. Leave it out under `jit`, where the batch is one array whatever its sharding.
      Not for `jax.shard_map`, which sums the gradients of replicated parameters by itself.
    accumulate: equal parts of the batch that are computed in turn, in the memory of one. Their gradients are weighted
      by their real examples: the result is the whole batch's, but for the noise of a head that samples. Batch
      normalisation that is not frozen normalises each part by itself; the running statistics go towards their mean.
    seed: of that noise, Flax's generator "look", which depends on `state.step` too, but not on the devices under `jit`;
      under `pmap` each device has its own.
    ema: the decay of the average that the state keeps, see `moving_average`; it counts only where there is one.
    mixup: alpha of `mix`, which depends on seed and step as the noise does; 0: images are not mixed.
  """

  if axis_name is not None and hasattr(model.backbone, "axis_name"):
    model = model.clone(backbone=model.backbone.clone(axis_name=axis_name))

  def train_step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if axis_name is not None:
      key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def loss_fn(params, batch, key):
      stored = "feature_map" in batch
      inputs = batch["feature_map" if stored else "image"], batch.get("proposals")
      options = {"rngs": {"look": key}, "mutable": ["statistics"]}
      options |= {"method": "recognize"} if stored else {"train": True}
      recognition, learned = model.apply({"params": params}, *inputs, **options)
      loss, metrics = objective(recognition, batch["labels"], batch["ignore"], batch["mask"])
      return loss, (metrics, learned.get("statistics", {}))

    if mixup:
      batch = mix(batch, jax.random.fold_in(key, 1), mixup)
    part_gradients = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
      gradients, (metrics, statistics) = part_gradients(state.params, batch, key)
    else:
      of_part = functools.partial(part_gradients, state.params)
      gradients, (metrics, statistics) = _weighted_sum(of_part, batch, jax.random.split(key, accumulate))
    if axis_name is not None:
      gradients, metrics, statistics = jax.lax.pmean((gradients, metrics, statistics), axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = _overlaid(optax.apply_updates(state.params, updates), statistics)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
    average = None if state.average is None else moving_average(state.average, params, state.step, ema)
    after = TrainState(state.step + 1, params, opt_state, average)
    return jax.tree.map(functools.partial(jnp.where, finite), after, state), metrics

  return train_step


def _overlaid(params: Params, statistics: Params) -> Params:
  """`params` with the leaves of `statistics`, a part of the tree, in place of its own."""
  if not isinstance(statistics, Mapping):
    return statistics
  return {**params, **{name: _overlaid(params[name], tree) for name, tree in statistics.items()}}


def _weighted_sum(function: Callable[[Any, jax.Array], Any], batch: Mapping[str, jax.Array], keys: jax.Array) -> Any:
  """The sum of `function` over a batch's equal parts, one for each key, weighted by its share of real examples."""
  # Every parts-th example, so that a batch that is shared out over devices gives each of them a share of every part.
  every = jax.tree.map(lambda x: x.reshape(-1, len(keys), *x.shape[1:]).swapaxes(0, 1), dict(batch))
  real = jnp.maximum(batch["mask"].sum(), 1)

  def add(total, part_and_key):
    part, _ = part_and_key
    weight = part["mask"].sum() / real
    return jax.tree.map(lambda a, b: a + weight * b, total, function(*part_and_key)), None

  shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], every), keys[0])
  return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), (every, keys))[0]


def learning_rate_schedule(
  kind: str, *, peak: float, steps: int, warmup_steps: int = 0, drop_at: int = 0
) -> optax.Schedule:
  """The learning rate at each of a stage's steps, after a linear rise from zero to `peak` in `warmup_steps`.

  `kind` is "step", the paper's: `peak`, a tenth of it from step `drop_at` on; or "cosine": down to `peak` / 50.
  """
  if kind == "step":
    schedule = optax.piecewise_constant_schedule(peak, {max(drop_at - warmup_steps, 0): 0.1})
  elif kind == "cosine":
    schedule = optax.cosine_decay_schedule(peak, max(steps - warmup_steps, 1), alpha=0.02)
  else:
    raise UserError(f"schedule must be 'step' or 'cosine', got {kind!r}")
  if not warmup_steps:
    return schedule
  return optax.join_schedules([optax.linear_schedule(0, peak, warmup_steps), schedule], [warmup_steps])
