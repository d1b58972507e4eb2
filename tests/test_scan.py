"""The scan with shared kernels: against `jax.lax.scan`, and what its programs hold, lowered for a GPU and compiled."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmam_jax as rmam
from rmam_jax.ops import next_region, scan

K, B, MAP, WIDTH, CLASSES = 5, 16, (28, 28, 512), 4096, 20  # the paper's


def case(steps=4):
  rng = np.random.default_rng(0)
  kernels = {
    name: rng.normal(size=shape, scale=0.3).astype(np.float32) for name, shape in {"a": (5, 7), "b": (7, 5)}.items()
  }
  return kernels, rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=7).astype(np.float32), jnp.arange(steps)


def step(bias, kernels, state, x):
  """One that multiplies, closes over a bias, and counts."""
  (state, count) = state
  hidden = jnp.tanh(scan.product(state, kernels["a"]) + bias * x)
  return (jnp.tanh(scan.product(hidden, kernels["b"])), count + 1), hidden


def ours(kernels, state, bias, xs, **options):
  return scan.scan(functools.partial(step, bias), kernels, (state, jnp.int32(0)), xs, dtype=jnp.float32, **options)


def plain(kernels, state, bias, xs):
  return jax.lax.scan(functools.partial(step, bias, kernels), (state, jnp.int32(0)), xs)


@pytest.mark.parametrize("unroll", [pytest.param(False, marks=pytest.mark.slow), True])
def test_it_is_lax_scan_with_its_gradients(unroll):
  *inputs, xs = case()

  def loss(form, kernels, state, bias):
    (last, count), hidden = form(kernels, state, bias, xs)
    return (last**2).sum() + (hidden**3).sum() + count

  looped_or_not = functools.partial(ours, unroll=unroll)
  for form in (looped_or_not, jax.jit(looped_or_not)):
    np.testing.assert_allclose(form(*inputs, xs)[1], plain(*inputs, xs)[1], rtol=0, atol=1e-6)
    found = jax.grad(functools.partial(loss, form), argnums=(0, 1, 2))(*inputs)
    wanted = jax.grad(functools.partial(loss, plain), argnums=(0, 1, 2))(*inputs)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_a_bfloat16_kernel_s_gradient_is_summed_in_float32():
  """A sum of ones in bfloat16 would stop at 256, and 602 is no number in it."""

  def total(kernel):
    ones = functools.partial(scan.product, jnp.ones((2, 1)))
    return scan.scan(
      lambda kernels, state, x: (state + ones(kernels["w"]).sum(), None),
      {"w": kernel},
      jnp.zeros(()),
      jnp.arange(301),
      dtype=jnp.bfloat16,
    )[0]

  found = jax.grad(total)(jnp.ones((1, 1)))
  assert found.dtype == jnp.float32
  assert found == 602


def test_a_kernel_is_multiplied_by_once_in_a_step():
  def twice(kernels, state, x):
    return scan.product(scan.product(state, kernels["w"]), kernels["w"]), None

  with pytest.raises(ValueError, match="may be multiplied by once in a step"):
    scan.scan(twice, {"w": jnp.eye(3)}, jnp.ones((1, 3)), jnp.arange(2), dtype=jnp.float32)


def test_a_few_steps_are_unrolled_on_a_gpu_alone(monkeypatch):
  assert not scan.is_unrolled(6)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert scan.is_unrolled(scan.MOST_UNROLLED)
  assert not scan.is_unrolled(scan.MOST_UNROLLED + 1)


def paper_gradient(batch=B, feature_map=MAP, width=WIDTH, **options):
  """The gradient of the module in bfloat16, from shapes: jitted, and its arguments."""
  widths = {f"{name}_width": width for name in ("x", "lstm", "z")}
  init = functools.partial(
    rmam.init_attention, init_next_region=next_region.init_recurrent, channels=feature_map[-1], num_classes=CLASSES
  )
  params = jax.eval_shape(functools.partial(init, **widths), jax.random.key(0))

  def loss(params, feature_map):
    found = rmam.attend(params, feature_map, num_regions=K, next_region=next_region.recurrent, pool=2, **options)
    return rmam.joint_loss(found.scores, found.thetas, jnp.ones((batch, CLASSES)))

  arguments = params, jax.ShapeDtypeStruct((batch, *feature_map), jnp.bfloat16)
  return jax.jit(jax.grad(loss, argnums=(0, 1))), arguments


def in_loops(text):
  """What stands in the regions of `stablehlo.while`, and in the functions that are called there."""
  functions = dict(re.findall(r"^  func.func \w+ @(\w+)(.*?)^  }", text, re.MULTILINE | re.DOTALL))
  # The bodies' lines are indented more than the operation.
  found = "".join(re.findall(r"^    \S[^\n]*stablehlo.while\((.*?)^    }\n", text, re.MULTILINE | re.DOTALL))
  seen = set()
  while new := {*re.findall(r"call @(\w+)", found)} - seen:
    seen |= new
    found += "".join(functions[name] for name in sorted(new))
  return found


KERNELS = ("25088x4096", "4096x16384", "4096x4096")  # W_fx; the LSTM's two; W_hz


def test_the_paper_s_module_lowered_for_a_gpu_casts_its_weights_once_and_multiplies_in_bfloat16():
  program, arguments = paper_gradient()
  text = program.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
  inside = in_loops(text)
  assert text.count("stablehlo.while") == 2  # the looks, and back
  for kernel, count in zip(KERNELS, (1, 2, 1), strict=True):
    cast = rf"stablehlo.convert .*tensor<{kernel}xf32>\) -> tensor<{kernel}xbf16>"
    assert len(re.findall(cast, text)) == count
    assert not re.search(cast, inside)
    rows, columns = kernel.split("x")
    assert f"(tensor<16x{rows}xbf16>, tensor<{kernel}xbf16>) -> tensor<16x{columns}xf32>" in inside
    # Its gradient is one product over all looks, after the loop: 6 x 16 = 96.
    assert f"tensor<{kernel}xf32>" not in inside
    gradient = rf"\(tensor<96x{rows}xbf16>, tensor<96x{columns}xbf16>\) -> tensor<{kernel}xf32>"
    assert len(re.findall(gradient, text)) == count
  # Coordinates are float32 from the product that predicts them on.
  assert "(tensor<16x4096xf32>, tensor<4096x4xf32>) -> tensor<16x4xf32>" in inside


def test_unrolled_looks_are_no_loop_and_their_gradient_is_still_one_product():
  program, arguments = paper_gradient(unroll=True)
  text = program.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
  assert "stablehlo.while" not in text
  assert len(re.findall(r"dot_general.*-> tensor<25088x4096xf32>", text)) == 1


def test_the_compiled_program_casts_outside_its_loops():
  program, arguments = paper_gradient(batch=2, feature_map=(7, 7, 8), width=48)
  text = program.lower(*arguments).compile().as_text()
  bodies = re.findall(r"body=%?([\w.\-]+)", text)
  assert bodies
  computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))

  def reached(name):
    lines = computations.get(name, "")
    return lines + "".join(map(reached, re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", lines)))

  for kernel in ("392,48", "48,192"):
    cast = rf"bf16\[{kernel}\]\S* convert\("
    assert re.search(cast, text)
    assert not any(re.search(cast, reached(body)) for body in bodies)


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
  """Of the module with features in bfloat16: scores and places, and gradients' directions."""
  init = functools.partial(next_region.init_recurrent, weight_scale=0.3)
  widths = {f"{name}_width": 64 for name in ("x", "lstm", "z")}
  params = rmam.init_attention(
    jax.random.key(0), channels=32, num_classes=CLASSES, init_next_region=init, region_size=(3, 3), **widths
  )
  feature_map = jax.nn.relu(jax.random.normal(jax.random.key(1), (4, 12, 12, 32)))
  feature_map = feature_map.astype(jnp.bfloat16).astype(jnp.float32)  # so that the maps are equal

  def value(params, feature_map):
    found = rmam.attend(params, feature_map, num_regions=2, next_region=next_region.recurrent, region_size=(3, 3))
    return (found.scores**2).sum(), found

  gradient = jax.jit(jax.grad(value, has_aux=True))
  (wanted, exact), (rough, found) = gradient(params, feature_map), gradient(params, feature_map.astype(jnp.bfloat16))
  assert found.scores.dtype == found.thetas.dtype == jnp.float32
  scale = float(jnp.abs(exact.scores).max())
  np.testing.assert_allclose(found.scores, exact.scores, atol=0.02 * scale)
  np.testing.assert_allclose(found.thetas, exact.thetas, atol=0.01)
  for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(rough), strict=True):
    assert other.dtype == jnp.float32
    assert float(jnp.linalg.norm(one - other)) <= 0.1 * float(jnp.linalg.norm(one))
