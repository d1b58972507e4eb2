"""Labels read off regions one after the other (RLSD: Zhang, Wu, Shen, Zhang and Lu, 2016; reconstructed).

From its abstract and RMAM's account of it: a network proposes regions that may hold several dependent labels
(`ops.rpn`), an LSTM reads the labels of each, and the results are max-pooled over the regions. The rest is
reconstructed:

  * The code x of a region is the LSTM's first input, as an image's is in a captioner; the embeddings of the labels that
    were read come after it. The z of each step gives a logit for every label and for END.
  * All regions read one sequence, the image's: a step's logits are pooled by their maximum over the regions, and the
    softmax over labels and END says which comes next. In training it is the image's true labels in a fixed order, then
    END (teacher forcing, one cross-entropy a step); afterwards it is the likeliest that was not yet read, until END.
  * The score of a label in a region is the log-odds that it would have if only this region spoke for it, at the step
    where they are highest. So Eq. 6, the maximum over regions, is the log-odds of the pooled softmax, and its sigmoid
    is a probability; both are continuous.

Letters: B batch, K regions, T steps, X Z N widths of x, z and the LSTM, L classes; END is number L.

The parameters are those of `attention.attend` with L + 1 outputs, and "labels" [L, X], the embeddings.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rmam_jax.ops import attention, losses, next_region, spatial_transformer
from rmam_jax.ops.attention import Attention, Params


def init(key: jax.Array, *, num_classes: int, x_width: int, **options: Any) -> Params:
  """Parameters: see the module's docstring; options as of `attention.init_attention`."""
  params = attention.init_attention(
    key, num_classes=num_classes + 1, x_width=x_width, init_next_region=next_region.no_parameters, **options
  )
  # Of unit variance, for which the LSTM's Xavier weights are made.
  params["labels"] = jax.random.normal(jax.random.fold_in(key, 1), (num_classes, x_width))
  return params


def _step(params: Params, carry, x: jax.Array, squash_cell: bool) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
  """One input [K, B, X] -> the LSTM's state, h, z and the logits of all labels and END [K, B, L + 1]."""
  carry, h = attention.lstm_step(params["lstm"], carry, x, squash_cell=squash_cell)
  return carry, h, *attention.read_state(params, h)


def _first_state(params: Params, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
  zeros = jnp.zeros((*codes.shape[:2], len(params["lstm"]["w_h"])), codes.dtype)
  return zeros, zeros


def label_sequence(labels: jax.Array, steps: int, order: Sequence[int] = ()) -> tuple[jax.Array, jax.Array]:
  """The labels [B, L] of each image in a fixed order, then END: int [B, T], and which of them count, bool [B, T].

  None after END counts; labels that do not fit into T steps are left out. Without an order it is that of their numbers.
  """
  num_classes = labels.shape[1]
  order = jnp.asarray(order or range(num_classes))
  present = labels[:, order] == 1
  first = order[jnp.argsort(~present, axis=1, stable=True)]
  count = present.sum(axis=1, keepdims=True)
  step = jnp.arange(steps)
  sequence = jnp.where(step < count, first[:, jnp.minimum(step, num_classes - 1)], num_classes)
  return sequence, step <= count


def read_given(params: Params, codes: jax.Array, sequence: jax.Array, *, squash_cell: bool = False) -> jax.Array:
  """Teacher forcing: the logits [T, K, B, L + 1] of every step, given the labels before it.

  Codes are [K, B, X], `sequence` is int [B, T]; what is read after END means nothing.
  """
  before = params["labels"][jnp.minimum(sequence[:, :-1], len(params["labels"]) - 1)].swapaxes(0, 1)  # [T - 1, B, X]
  inputs = jnp.concatenate([codes[None], jnp.broadcast_to(before[:, None], (len(before), *codes.shape))])

  def step(carry, x):
    carry, _, _, logits = _step(params, carry, x, squash_cell)
    return carry, logits

  return jax.lax.scan(step, _first_state(params, codes), inputs)[1]


def sequence_loss(
  logits: jax.Array, sequence: jax.Array, counts: jax.Array, *, ignore: jax.Array, mask: jax.Array
) -> jax.Array:
  """The cross-entropy of the regions' pooled logits with `label_sequence`: summed over steps, mean over examples.

  Logits are [T, K, B, L + 1]; ignored labels [B, L] are left out of the softmax; mask [B] is 1 for real examples.
  """
  pooled = logits.max(axis=1).swapaxes(0, 1)  # [B, T, L + 1]
  kept = jnp.pad(~ignore.astype(bool), ((0, 0), (0, 1)), constant_values=True)
  log_probabilities = jax.nn.log_softmax(pooled, axis=-1, where=kept[:, None])
  entropy = -jnp.take_along_axis(log_probabilities, sequence[..., None], axis=-1)[..., 0]
  return losses.batch_mean(jnp.where(counts, entropy, 0).sum(axis=1), mask)


def log_odds(logits: jax.Array) -> jax.Array:
  """Each label's log-odds against all others and END if only this region spoke for it: [K, B, L + 1] -> [K, B, L].

  Their maximum over K is the log-odds of the softmax of the logits' maximum over K.
  """
  pooled = logits.max(axis=0)
  itself = jnp.eye(pooled.shape[-1], dtype=bool)[:-1]
  others = jax.nn.logsumexp(jnp.where(itself, -jnp.inf, pooled[:, None]), axis=-1)  # [B, L]
  return logits[..., :-1] - others


def read(params: Params, codes: jax.Array, *, steps: int, squash_cell: bool = False) -> jax.Array:
  """Reads the likeliest label off the regions' codes [K, B, X] at each of up to T steps, until END.

  Returns the scores [K, B, L]: the highest `log_odds` of all steps up to END.
  """
  num_classes = len(params["labels"])

  def step(state, _):
    carry, x, scores, said, going = state
    carry, _, _, logits = _step(params, carry, x, squash_cell)
    scores = jnp.where(going[:, None], jnp.maximum(scores, log_odds(logits)), scores)
    pooled = jnp.where(said, -jnp.inf, logits.max(axis=0))
    chosen = pooled.argmax(axis=-1)
    said |= jax.nn.one_hot(chosen, num_classes + 1, dtype=bool).at[:, num_classes].set(False)
    label = params["labels"][jnp.minimum(chosen, num_classes - 1)]
    return (carry, jnp.broadcast_to(label, x.shape), scores, said, going & (chosen < num_classes)), None

  batch = codes.shape[1]
  scores = jnp.full((*codes.shape[:2], num_classes), -jnp.inf)
  state = _first_state(params, codes), codes, scores, jnp.zeros((batch, num_classes + 1), bool), jnp.ones(batch, bool)
  return jax.lax.scan(step, state, length=steps)[0][2]


def recognize(
  params: Params,
  feature_map: jax.Array,
  boxes: jax.Array,
  *,
  steps: int,
  squash_cell: bool = False,
  align_corners: bool = True,
  **sampling: Any,
) -> Attention:
  """Scores of the regions in boxes [B, K, 4] of (top, left, bottom, right), as shares of what the map shows.

  The x that are returned are the codes, h and z are those after a region's code alone, and the memory holds the
  parameters, for `make_loss`. For the other arguments see `attention.attend`.
  """
  thetas = spatial_transformer.boxes_to_thetas(boxes, feature_map.shape[1:3], align_corners=align_corners)
  thetas = thetas.swapaxes(0, 1)
  code = functools.partial(attention.region_code, params, feature_map, align_corners=align_corners, **sampling)
  codes = jax.lax.map(code, thetas)
  _, h, z, _ = _step(params, _first_state(params, codes), codes, squash_cell)
  scores = read(params, codes, steps=steps, squash_cell=squash_cell)
  return Attention(scores, thetas, codes, h, z, memory=params)


def make_loss(*, steps: int, order: Sequence[int] = (), squash_cell: bool = False):
  """The head's loss (`heads.spec.HeadLoss`) of what `recognize` returns: `sequence_loss` by teacher forcing."""

  def loss(found: Attention, labels, ignore, mask):
    sequence, counts = label_sequence(jnp.where(ignore, 0, labels), steps, order)
    logits = read_given(found.memory, found.x, sequence, squash_cell=squash_cell)
    value = sequence_loss(logits, sequence, counts, ignore=ignore, mask=mask)
    return value, {"sequence": value}

  return loss
