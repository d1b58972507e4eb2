"""What the benchmarks count, by hand; their times are not tested."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import machine, operations, steps
from configs import voc


def shape(*sides):
  return jax.ShapeDtypeStruct(sides, jnp.float32)


def convolve(x, kernel, stride=1, groups=1):
  dimensions = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions, feature_group_count=groups
  )


def gradient(function):
  return lambda *inputs: jax.vjp(function, *inputs)[1](jnp.ones(jax.eval_shape(function, *inputs).shape))


@pytest.mark.parametrize(
  ("function", "inputs", "wanted"),
  [
    (jnp.matmul, (shape(7, 2, 3), shape(3, 5)), 2 * 7 * 2 * 3 * 5),
    (convolve, (shape(2, 8, 6, 3), shape(3, 5, 3, 4)), 2 * 2 * 8 * 6 * 3 * 5 * 3 * 4),
    (functools.partial(convolve, groups=6), (shape(2, 8, 8, 6), shape(3, 3, 1, 6)), 2 * 2 * 8 * 8 * 6 * 9),
    # Towards the input and towards the kernel as much each as forward, with a stride of two as well.
    (gradient(convolve), (shape(2, 8, 6, 3), shape(3, 3, 3, 4)), 3 * 2 * 2 * 8 * 6 * 9 * 3 * 4),
    (
      gradient(functools.partial(convolve, stride=2)),
      (shape(2, 8, 8, 3), shape(4, 4, 3, 5)),
      3 * 2 * 2 * 4 * 4 * 16 * 15,
    ),
    (
      gradient(functools.partial(convolve, groups=6)),
      (shape(2, 8, 8, 6), shape(3, 3, 1, 6)),
      3 * 2 * 2 * 8 * 8 * 6 * 9,
    ),
    (lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=7), (shape(3, 3),), 7 * 2 * 27),
    (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x), (shape(3, 3),), 2 * 2 * 27),
    (jax.jit(lambda x: jax.jit(jnp.dot)(x, x) + 1), (shape(3, 3),), 2 * 27),
  ],
)
def test_operations_by_hand(function, inputs, wanted):
  assert operations.count(function, *inputs) == wanted


def test_a_loop_of_unknown_length_is_not_counted_as_nothing():
  with pytest.raises(ValueError, match="of unknown length"):
    operations.count(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), shape(3, 3))


def test_the_paper_s_step_by_hand():
  """Three times the forward pass, but for what is not differentiated by: the images, and the first state of the LSTM."""
  config = voc.get_config()
  stage, init, batch = steps.make(config, 448)
  counted = steps.count(stage, jax.eval_shape(init, jax.random.key(0)), batch)
  widths, side, layers, channels = stage.model.backbone.blocks, 448, [], 3
  for block in widths:
    for width in block:
      layers.append(2 * 16 * side**2 * 9 * channels * width)
      channels = width
    side //= 2
  looks = 6 * 2 * 16 * 4096 * (25_088 + 2 * 4 * 4096 + 4096 + 4) + 5 * 2 * 16 * 4096 * 20
  np.testing.assert_allclose(counted, 3 * (sum(layers) + looks) - layers[0], rtol=1e-3)
  assert round(counted / 1e12, 1) == 6.0


@pytest.mark.parametrize(("seconds", "wanted"), [(1.2345, "1,234"), (0.0283, "28.3"), (1.04e-4, "0.104"), (0.5, "500")])
def test_milliseconds_have_three_digits(seconds, wanted):
  assert machine.milliseconds(seconds) == wanted
