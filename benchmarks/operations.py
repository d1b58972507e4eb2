"""Floating-point operations by formula, from the shapes of convolutions and matrix products.

XLA's own count takes a loop's body once, and on a GPU leaves out the convolutions, which cuDNN computes.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def count(function: Callable, *arguments: Any) -> int:
  """Of a call of a JAX function with these arrays or shapes: two for each multiplication with its addition.

  A loop of known length counts as often as it runs, a choice between branches as the costliest. Zeros between the cells
  of a strided convolution's gradient do not count; zeros around a map do.
  """
  return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> int:
  return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: core.JaxprEqn) -> int:
  name, fields = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = fields["dimension_numbers"]
    left = equation.invars[0].aval
    return 2 * equation.outvars[0].aval.size * math.prod(left.shape[axis] for axis in contracted)
  if name == "conv_general_dilated":
    kernel, (_, inputs, *spatial) = equation.invars[1].aval, fields["dimension_numbers"].rhs_spec
    each = kernel.shape[inputs] * math.prod(kernel.shape[axis] for axis in spatial)
    return 2 * equation.outvars[0].aval.size * each // math.prod(fields["lhs_dilation"])
  if name == "while":
    raise ValueError("a loop of unknown length cannot be counted")
  inner = [_of_jaxpr(each) for each in _inner(fields)]
  return max(inner, default=0) if name == "cond" else sum(inner) * fields.get("length", 1)


def _inner(fields: dict[str, Any]) -> Iterator[core.Jaxpr]:
  for value in fields.values():
    for each in value if isinstance(value, tuple | list) else [value]:
      if isinstance(each, core.ClosedJaxpr):
        yield each.jaxpr
      elif isinstance(each, core.Jaxpr):
        yield each
