"""`jax.lax.scan` over steps that multiply by the same large kernels, with as little memory traffic as that takes.

Each kernel is cast to the type of the computation once, before the first step. Its gradient is a sum over the steps of
x_k^T g_k; autodiff would read and write a buffer of the kernel's size at every step to add them up. Here what a kernel
was given, x_k, and the slopes g_k are kept, which are small, and one product after the last step gives the sum.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmam_jax.ops.spatial_transformer import wide_dtype

State = Any
MOST_UNROLLED = 10  # steps


class Shared:
  """A kernel [I, O] inside a step, which may be multiplied by once."""

  def __init__(self, kernel: jax.Array, offset: jax.Array | float):
    self._kernel, self._offset = kernel, offset
    self.given: jax.Array | None = None  # [..., I], what it was multiplied by
    self.found: jax.Array | None = None  # [..., O]

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """[..., I] -> [..., O], multiplied in the kernel's type, summed in float32 or better."""
    if self.given is not None:
      raise ValueError("a kernel that a scan shares may be multiplied by once in a step")
    self.given = inputs.astype(self._kernel.dtype)
    self.found = _product(self.given, self._kernel) + self._offset
    return self.found


def product(inputs: jax.Array, kernel: jax.Array | Shared) -> jax.Array:
  """[..., I] and [I, O] -> [..., O], multiplied in the inputs' type or that of a shared kernel, summed in float32."""
  if isinstance(kernel, Shared):
    return kernel(inputs)
  return jnp.matmul(inputs, kernel.astype(inputs.dtype), preferred_element_type=wide_dtype(inputs))


@jax.custom_vjp
def _product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """Both of one type, in which the gradient is multiplied too; that of the kernel is not given here."""
  return jnp.matmul(inputs, kernel, preferred_element_type=wide_dtype(inputs))


def _product_backward(kernel: jax.Array, slope: jax.Array) -> tuple[jax.Array, None]:
  to_inputs = jnp.einsum("...o,io->...i", slope.astype(kernel.dtype), kernel, preferred_element_type=slope.dtype)
  return to_inputs.astype(kernel.dtype), None


_product.defvjp(lambda inputs, kernel: (_product(inputs, kernel), kernel), _product_backward)


def is_unrolled(steps: int) -> bool:
  """Whether so many steps are faster one after the other in the program than in a loop (docs/benchmarks/gpu.md).

  On a GPU a few are: the loop costs as much as the small operations between the large products. On a CPU they are not,
  and compiling takes longer.
  """
  return jax.default_backend() == "gpu" and steps <= MOST_UNROLLED


class _Given(NamedTuple):
  """What the scan is differentiated by in one step: all but the kernels."""

  x: Any
  offsets: dict[str, jax.Array]  # 0, added to each product; their gradients are the slopes g_k


def scan(
  step: Callable[[Mapping[str, Shared], State, Any], tuple[State, Any]],
  kernels: Mapping[str, jax.Array],
  state: State,
  xs: jax.Array,
  *,
  dtype: Any,
  unroll: bool | None = None,
) -> tuple[State, Any]:
  """As `jax.lax.scan(step, state, xs)`, for reverse mode only.

  Args:
    step: shared kernels, state, one of `xs` -> state and what is stacked. It multiplies by each kernel once, through
      `product`; it may close over anything else, differentiated or not.
    kernels: [I, O] each, by name; their gradients have their own type.
    state: the first; inside `jax.shard_map` it varies between devices, as a scan's state has to.
    xs: integers [n].
    dtype: that products are multiplied in, of inputs, kernels and slopes alike.
    unroll: whether the steps stand one after the other in the program; None: as `is_unrolled` says.

  Returns:
    The last state, and what the steps gave, stacked.

  Raises:
    ValueError: a step multiplies by a kernel more than once.
  """

  def body(cast, state, given):
    shared = {name: Shared(kernel, given.offsets.get(name, 0.0)) for name, kernel in cast.items()}
    state, found = step(shared, state, given.x)
    return state, found, {name: (each.given, each.found) for name, each in shared.items()}

  shapes = jax.eval_shape(body, _cast(kernels, dtype), state, _Given(xs[0], {}))[2]
  # Zeros that vary between devices where the state does.
  zero = (jax.tree.leaves(state)[0].reshape(-1)[0] > jnp.inf).astype(jnp.float32)
  offsets = {
    name: jnp.zeros((len(xs), *found.shape), found.dtype) + zero.astype(found.dtype)
    for name, (_, found) in shapes.items()
  }
  first = _Given(xs[0], {name: each[0] for name, each in offsets.items()})
  body, closed_over = jax.closure_convert(body, _cast(kernels, dtype), state, first)
  unroll = is_unrolled(len(xs)) if unroll is None else unroll

  def run(cast, closed_over, state, offsets, xs):
    def one(state, given):
      state, found, products = body(cast, state, given, *closed_over)
      return state, (found, {name: inputs for name, (inputs, _) in products.items()})

    state, (found, inputs) = jax.lax.scan(one, state, _Given(xs, offsets), unroll=len(xs) if unroll else 1)
    return (state, found), inputs

  @jax.custom_vjp
  def whole(kernels, *others):
    return run(_cast(kernels, dtype), *others)[0]

  def forward(kernels, closed_over, state, offsets, xs):
    cast = _cast(kernels, dtype)
    found, pull, inputs = jax.vjp(lambda *others: run(cast, *others, xs), closed_over, state, offsets, has_aux=True)
    return found, (pull, inputs, kernels)

  def backward(saved, gradient):
    pull, inputs, kernels = saved
    *others, slopes = pull(gradient)
    to_kernels = {name: _kernel_gradient(kernel, inputs[name], slopes[name]) for name, kernel in kernels.items()}
    return to_kernels, *others, None, None

  whole.defvjp(forward, backward)
  return whole(dict(kernels), closed_over, state, offsets, xs)


def _cast(kernels: Mapping[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
  return {name: kernel.astype(dtype) for name, kernel in kernels.items()}


def _kernel_gradient(kernel: jax.Array, inputs: jax.Array, slopes: jax.Array) -> jax.Array:
  """The sum over all leading dimensions of inputs^T slopes, in the kernel's type."""
  inputs, slopes = (array.reshape(-1, array.shape[-1]) for array in (inputs, slopes))
  found = jnp.einsum("ni,no->io", inputs, slopes.astype(inputs.dtype), preferred_element_type=slopes.dtype)
  # Inside `jax.shard_map` the inputs vary between devices and the kernel need not: its gradient is then the sum over
  # them, which is the transpose of adding to it a zero that varies.
  zero = (inputs[0, 0] > jnp.inf).astype(kernel.dtype)
  return jax.vjp(lambda kernel: kernel + zero, kernel)[1](found.astype(kernel.dtype))[0]
