"""How near a program comes to what its machine can do: operations and bytes by formula, ceilings measured in the run."""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

TURNS = 16  # in one program, so that starting it is not what is measured


def _seconds(turn: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
  """Of one turn x -> x: the median of five runs of a program of `TURNS`, after one that warms up."""
  program = jax.jit(lambda x: jax.lax.fori_loop(0, TURNS, lambda _, x: turn(x), x), donate_argnums=0)
  taken = []
  for _ in range(6):
    started = time.perf_counter()
    x = jax.block_until_ready(program(x))
    taken.append(time.perf_counter() - started)
  return statistics.median(taken[1:]) / TURNS


@functools.cache
def operations_a_second(dtype: str) -> float:
  """What the first device reaches now in a large matrix product."""
  side = 1_024 if jax.default_backend() == "cpu" else 8_192
  matrix = jnp.full((side, side), 1 / side, dtype)
  return 2 * side**3 / _seconds(lambda x: x @ matrix, matrix.copy())


@functools.cache
def bytes_a_second() -> float:
  """What the first device reads and writes a second, both counted, where it adds 1 to a large array."""
  count = 2**26 if jax.default_backend() == "cpu" else 2**30
  return 2 * 4 * count / _seconds(lambda x: x + 1, jnp.ones(count, jnp.float32))


def _with_prefix(value: float, unit: str) -> str:
  """With three digits, e.g. `214 TFLOP/s`."""
  prefix, factor = next(((name, each) for name, each in (("T", 1e12), ("G", 1e9)) if value >= each), ("M", 1e6))
  return f"{value / factor:.3g} {prefix}{unit}"


def by_operations(operations: int, seconds: float, dtype: str) -> str:
  """E.g. `6.05 TFLOP: 214 TFLOP/s, 27%`, the share being of `operations_a_second`."""
  rate = operations / seconds
  share = rate / operations_a_second(dtype)
  return f"{_with_prefix(operations, 'FLOP')}: {_with_prefix(rate, 'FLOP/s')}, {share:.0%}"


def by_bytes(moved: int, seconds: float) -> str:
  """E.g. `7.52 GB: 1.42 TB/s, 47%`, the share being of `bytes_a_second`."""
  rate = moved / seconds
  return f"{_with_prefix(moved, 'B')}: {_with_prefix(rate, 'B/s')}, {rate / bytes_a_second():.0%}"


def ceilings(dtype: str) -> str:
  """What the shares are of, in words."""
  operations, moved = _with_prefix(operations_a_second(dtype), "FLOP/s"), _with_prefix(bytes_a_second(), "B/s")
  return (
    f"Operations and bytes by formula (convolutions and matrix products; read and written); shares of {operations}, a"
    f" large {dtype} product, and of {moved}, read and written together."
  )
