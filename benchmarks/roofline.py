"""How near a compiled program comes to what its machine can do."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

_COPIED = 2**28  # bytes


def _seconds(program, x) -> float:
  """The median of five runs of x -> x, each given what the one before returned, after one that warms up."""
  taken = []
  for _ in range(6):
    started = time.perf_counter()
    x = jax.block_until_ready(program(x))
    taken.append(time.perf_counter() - started)
  return statistics.median(taken[1:])


def ceilings(dtype: str) -> tuple[float, float]:
  """What the first device reaches now: operations a second in a large matrix product, bytes a second in a copy."""
  side = 2_048 if jax.default_backend() == "cpu" else 8_192
  matrix = jnp.full((side, side), 1 / side, dtype)
  vector = jnp.ones(_COPIED // 4, jnp.float32)
  operations = 2 * side**3 / _seconds(jax.jit(lambda x: x @ matrix), matrix)
  return operations, 2 * _COPIED / _seconds(jax.jit(lambda x: x + 1, donate_argnums=0), vector)


def line(compiled: Any, seconds: float, dtype: str = "float32") -> str:
  """What XLA counts in a compiled program of one device, the ceilings of this run, and the share of each reached.

  Args:
    compiled: the program; the body of a loop counts once.
    seconds: that it takes.
    dtype: of the matrix product that sets the ceiling.
  """
  counted = compiled.cost_analysis()
  operations, moved = counted["flops"], counted["bytes accessed"]
  rate, bandwidth = ceilings(dtype)
  by_operations, by_bytes = operations / rate, moved / bandwidth
  return (
    f"Roofline: {operations / 1e9:,.1f} GFLOP and {moved / 1e9:,.2f} GB counted (loops once; fused reads may not"
    f" count); ceilings {rate / 1e9:,.0f} GFLOP/s ({dtype} product of matrices) and"
    f" {bandwidth / 1e9:,.1f} GB/s (copy): at least {1e3 * max(by_operations, by_bytes):,.1f} ms, by"
    f" {'operations' if by_operations >= by_bytes else 'bytes'}; {by_operations / seconds:.0%} of the ceiling of"
    f" operations, {by_bytes / seconds:.0%} of that of bytes."
  )
