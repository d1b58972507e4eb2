"""Adam's moments in bfloat16: half the memory and the traffic of its state.

The first moment moves by a tenth of the way in a step, and is rounded to the nearest number. The second moves by a
thousandth: by less than half the distance between neighbouring numbers, 0.4 to 0.8 %, so that the nearest would mostly be
the old one and the moment would stand still. It is rounded up or down so that the mean over the steps is right: up where
what is cut off exceeds a threshold that goes through all its values in turn, far apart from one step to the next. The
threshold follows from Adam's count alone: a run that resumes goes on bit for bit.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

KINDS = ("float32", "bfloat16")
_STEP = 40_503  # odd, near 2**16 over the golden ratio: multiples of it modulo 2**16 are all numbers, evenly spread


def round_in_turn(x: jax.Array, count: jax.Array) -> jax.Array:
  """float32, not negative -> the bfloat16 below or above, of the same shape.

  `count` is Adam's, an integer. Over 2**16 counts in a row each x is exact in the mean.
  """
  threshold = (jnp.asarray(count).astype(jnp.uint32) * _STEP) & 0xFFFF
  bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + threshold) >> 16
  return jax.lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)


def in_bfloat16(adam: optax.GradientTransformation) -> optax.GradientTransformation:
  """`optax.adam`, `optax.adamw` or another that begins with `optax.scale_by_adam`, its moments kept in bfloat16."""

  def of_adam(change: Any, state: Any) -> Any:
    def kind(each):
      return isinstance(each, optax.ScaleByAdamState)

    return jax.tree.map(lambda each: change(each) if kind(each) else each, state, is_leaf=kind)

  def narrow(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
    mu = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.mu)
    return state._replace(mu=mu, nu=jax.tree.map(lambda leaf: round_in_turn(leaf, state.count), state.nu))

  def widen(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
    mu, nu = (jax.tree.map(lambda leaf: leaf.astype(jnp.float32), moment) for moment in (state.mu, state.nu))
    return state._replace(mu=mu, nu=nu)

  def init(params):
    return of_adam(narrow, adam.init(params))

  def update(gradients, state, params=None):
    updates, state = adam.update(gradients, of_adam(widen, state), params)
    return updates, of_adam(narrow, state)

  return optax.GradientTransformation(init, update)
