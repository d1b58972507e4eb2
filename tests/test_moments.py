"""Adam's moments in bfloat16: the rounding by hand, against optax in float32, and kept in a checkpoint."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import assert_trees_close, small_step, tiny_config

from rmam_jax import recognizer
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import checkpoints, moments, stages
from rmam_jax.training import step as step_lib


def test_a_number_is_rounded_up_as_often_as_it_is_near():
  # 1 and 1 + 1/128 are neighbours in bfloat16: an eighth, a half of the way, and none.
  x = jnp.float32(jnp.array([1 + 1 / 1024, 1 + 1 / 256, 1.0]))
  rounded = jax.vmap(functools.partial(moments.round_in_turn, x))(jnp.arange(2**16)).astype(jnp.float32)
  assert {*np.unique(rounded).tolist()} == {1.0, 1 + 1 / 128}
  np.testing.assert_array_equal((rounded > 1).sum(axis=0), [2**13, 2**15, 0])
  for few in np.array_split(np.asarray(rounded[:, 1] > 1), 2**16 // 16):  # evenly spread
    assert 6 <= few.sum() <= 10


def test_the_second_moment_does_not_stand_still():
  """The gradient grows by a fifth: nu goes from 1 to 1.44 in some thousands of steps. The nearest would never move."""
  adam = optax.scale_by_adam()
  narrow = moments.in_bfloat16(adam)
  one = jnp.ones(3)

  def nu_after(optimizer, state, gradient, count, change=lambda state: state):
    def step(state, _):
      return change(optimizer.update(gradient, state)[1]), None

    return jax.lax.scan(step, state, length=count)[0]

  def nearest(state):
    return state._replace(nu=state.nu.astype(jnp.bfloat16).astype(jnp.float32))

  start = adam.init(one)._replace(nu=one)
  stuck = nu_after(adam, start, 1.2 * one, 5_000, nearest)
  np.testing.assert_array_equal(stuck.nu, 1)
  exact = nu_after(adam, start, 1.2 * one, 5_000)
  start = narrow.init(one)._replace(nu=one.astype(jnp.bfloat16))
  found = nu_after(narrow, start, 1.2 * one, 5_000)
  assert found.nu.dtype == found.mu.dtype == jnp.bfloat16
  np.testing.assert_allclose(found.nu.astype(jnp.float32), exact.nu, rtol=0.01)


def small_model():
  config = tiny_config("")
  return recognizer.build(config.model, 4, head="saliency", auxiliary="score_map")


def adam_stage(**changes):
  config = tiny_config("", **{"stage_two.learning_rate": 1e-2, "stage_two.warmup_steps": 0, **changes})
  return stages.build(config, "stage_two", num_classes=10, num_records=160)


@pytest.mark.slow
def test_the_loss_falls_as_with_moments_in_float32():
  _, state, batch = small_step()
  curves = []
  for kind in moments.KINDS:
    stage = adam_stage(**{"stage_two.moments": kind, "stage_two.weight_decay": 0.1})
    objective = step_lib.Objective("sigmoid", auxiliary_weight=1.0)
    model = small_model()
    train_step = jax.jit(step_lib.make_train_step(model, stage.optimizer, objective))
    now, losses = state._replace(opt_state=stage.optimizer.init(state.params)), []
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(now.opt_state) if leaf.ndim}
    assert kinds == {kind}
    for _ in range(25):
      now, found = train_step(now, batch)
      losses.append(float(found["loss"]))
    curves.append(losses)
  exact, narrow = np.array(curves)
  assert exact[-1] < 0.7 * exact[0]
  np.testing.assert_allclose(narrow, exact, rtol=0.02)
  assert (narrow != exact).any()


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(tmp_path):
  _, state, batch = small_step()
  optimizer = adam_stage(**{"stage_two.moments": "bfloat16"}).optimizer
  train_step = jax.jit(step_lib.make_train_step(small_model(), optimizer, step_lib.Objective("sigmoid")))
  state = state._replace(opt_state=optimizer.init(state.params))
  for _ in range(3):
    state, _ = train_step(state, batch)
  saved = checkpoints.StageCheckpoints(tmp_path, writing=True)
  saved.save_last(state, {})
  restored, _ = saved.restore_last(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state))
  saved.close()
  assert_trees_close(train_step(restored, batch)[0], train_step(state, batch)[0], 0)


def test_another_type_is_refused():
  with pytest.raises(UserError, match=r"stage_two.moments must be one of float32, bfloat16, got 'float16'"):
    adam_stage(**{"stage_two.moments": "float16"})
