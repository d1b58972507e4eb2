"""How near a compiled program comes to what its machine can do."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

_SIDES = {"cpu": 2_048}  # of the matrices, by platform
_SIDE = 8_192
_COPIED = 2**28  # bytes


def _seconds(program, x) -> float:
  """The median of five runs of x -> x, each given what the one before returned, after one that warms up."""
  taken = []
  for _ in range(6):
    started = time.perf_counter()
    x = jax.block_until_ready(program(x))
    taken.append(time.perf_counter() - started)
  return statistics.median(taken[1:])


def ceilings(dtype: str = "float32") -> tuple[float, float]:
  """What the first device reaches now: operations a second in a large matrix product, bytes a second in a large copy."""
  side = _SIDES.get(jax.default_backend(), _SIDE)
  matrix = jnp.full((side, side), 1 / side, dtype)
  vector = jnp.ones(_COPIED // 4, jnp.float32)
  operations = 2 * side**3 / _seconds(jax.jit(lambda x: x @ matrix), matrix)
  return operations, 2 * _COPIED / _seconds(jax.jit(lambda x: x + 1, donate_argnums=0), vector)


def line(compiled: Any, seconds: float, dtype: str = "float32") -> str:
  """One line: what XLA counts in a program, the ceilings of this run, the share of the nearer one that was reached.

  Args:
    compiled: a compiled program of one device; the body of a loop counts once.
    seconds: that it takes.
    dtype: of the matrix product that sets the ceiling.
  """
  counted = compiled.cost_analysis()
  operations, moved = counted["flops"], counted["bytes accessed"]
  rate, bandwidth = ceilings(dtype)
  least = max(operations / rate, moved / bandwidth)
  bound = "operations" if operations / rate >= moved / bandwidth else "bytes"
  return (
    f"Roofline: {operations / 1e9:,.1f} GFLOP and {moved / 1e9:,.2f} GB counted (loops once; fused reads may not count);"
    f" ceilings {rate / 1e9:,.0f} GFLOP/s ({dtype} product of matrices) and {bandwidth / 1e9:,.1f} GB/s (copy): at least"
    f" {1e3 * least:,.1f} ms, by {bound}; {operations / rate / seconds:.0%} of the ceiling of operations,"
    f" {moved / bandwidth / seconds:.0%} of that of bytes."
  )
