"""What the families share: convolutions with batch normalisation, depthwise ones, and which maps of a network are taken.

A normalised layer keeps `scale`, `bias`, `mean` and `var` beside its kernel as parameters:

    y = (conv(x) - mean) / sqrt(var + epsilon) * scale + bias.

With the stored `mean` and `var` that is one convolution with the kernel times scale / sqrt(var + epsilon). In training
they may be the batch's instead; then the new running ones go to the collection "statistics", by the same paths, and the
train step writes them over the stored ones. No gradient reaches them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmam_jax.runtime.errors import check_name

FUSED = "fused"
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def pads(size: int, kernel: int, stride: int, same: bool) -> tuple[int, int]:
  """Zeros before and after a side of `size` cells: TensorFlow's SAME, or torch's `kernel // 2` on both sides."""
  if not same:
    return kernel // 2, kernel // 2
  total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, *, same: bool = False) -> jax.Array:
  """[B, H, W, I] and a kernel [h, w, I, O] -> [B, H', W', O], padded as `pads` says."""
  if kernel.shape[:2] == (1, 1) and stride == 1:
    return x @ kernel[0, 0]  # several times faster on CPU than as a convolution
  around = [pads(x.shape[axis], kernel.shape[axis - 1], stride, same) for axis in (1, 2)]
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), around, dimension_numbers=DIMENSIONS)


def convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1, *, same: bool = False) -> jax.Array:
  """[B, H, W, C] and a kernel [h, w, 1, C] of each channel's own -> [B, H', W', C], padded as `pads` says.

  On CPU a sum of shifted slices: XLA's own is seven times slower there, forward and backward.
  """
  around = tuple(pads(x.shape[axis], kernel.shape[axis - 1], stride, same) for axis in (1, 2))
  cpu, others = (functools.partial(form, stride=stride, around=around) for form in (_by_slices, _by_groups))
  return jax.lax.platform_dependent(x, kernel, cpu=cpu, default=others)


def _by_groups(x: jax.Array, kernel: jax.Array, *, stride: int, around: Sequence[tuple[int, int]]) -> jax.Array:
  options = {"dimension_numbers": DIMENSIONS, "feature_group_count": x.shape[-1]}
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), around, **options)


def _by_slices(x: jax.Array, kernel: jax.Array, *, stride: int, around: Sequence[tuple[int, int]]) -> jax.Array:
  return _sum_of_slices(jnp.pad(x, ((0, 0), *around, (0, 0))), kernel, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _sum_of_slices(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """[B, H, W, C], padded, and a kernel [h, w, 1, C] -> [B, (H - h) // stride + 1, ..., C]."""
  x = jax.lax.optimization_barrier(x)  # or it would be padded again in each of the slices
  height, width = (side - size + 1 for side, size in zip(x.shape[1:3], kernel.shape[:2], strict=True))
  return sum(
    x[:, row : row + height : stride, column : column + width : stride] * kernel[row, column, 0]
    for row in range(kernel.shape[0])
    for column in range(kernel.shape[1])
  )


def _sum_of_slices_forward(x: jax.Array, kernel: jax.Array, stride: int):
  return _sum_of_slices(x, kernel, stride), (x, kernel)


def _sum_of_slices_backward(stride: int, saved: tuple[jax.Array, jax.Array], g: jax.Array):
  """The kernel's gradient row by row of `g`, many times faster than tap by tap."""
  (x, kernel), (height, width) = saved, g.shape[1:3]
  rows, columns = kernel.shape[:2]
  # With zeros between its cells, and around them, the gradient is turned back by the kernel turned round.
  edges = [
    (size - 1, side - 1 - stride * (cells - 1), stride - 1)
    for side, size, cells in zip(x.shape[1:3], (rows, columns), (height, width), strict=True)
  ]
  spread = jax.lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
  to_x = _sum_of_slices(spread, kernel[::-1, ::-1], 1)

  taps = [(row, column) for row in range(rows) for column in range(columns)]

  def add(totals, row):
    seen = jax.lax.dynamic_slice_in_dim(x, row * stride, rows, axis=1)
    g_row = jax.lax.dynamic_slice_in_dim(g, row, 1, axis=1)[:, 0]
    ends = stride * (width - 1) + 1
    # No sum in here: one over images would not be vectorized, and takes up to eight times as long.
    added = (seen[:, r, c : c + ends : stride] * g_row for r, c in taps)
    return tuple(total + each for total, each in zip(totals, added, strict=True)), None

  nothing = jnp.zeros(g[:, 0].shape)
  totals, _ = jax.lax.scan(add, (nothing,) * len(taps), jnp.arange(height))
  to_kernel = jnp.stack([total.sum(axis=(0, 1)) for total in totals])
  return to_x, to_kernel.reshape(kernel.shape).astype(kernel.dtype)


_sum_of_slices.defvjp(_sum_of_slices_forward, _sum_of_slices_backward)


def relu6(x: jax.Array) -> jax.Array:
  return jnp.clip(x, 0, 6)


class Norm(NamedTuple):
  """How a network normalises."""

  epsilon: float = 1e-5
  momentum: float = 0.1  # share of the new batch in the running statistics
  frozen: bool = True  # always by the stored statistics
  axis_name: str | None = None  # under `jax.pmap`: the batch's statistics are those of all devices on this axis


class Normed(nn.Module):
  """A convolution without a bias, batch normalisation, and what follows it."""

  width: int
  size: int = 1  # of the kernel
  stride: int = 1
  depthwise: bool = False
  activation: Callable[[jax.Array], jax.Array] = lambda x: x
  same: bool = False  # see `pads`
  norm: Norm = Norm()
  train: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', width]."""
    inputs = 1 if self.depthwise else x.shape[-1]
    kernel = self.param("kernel", nn.initializers.he_normal(), (self.size, self.size, inputs, self.width))
    scale, var = (self.param(name, nn.initializers.ones, (self.width,)) for name in ("scale", "var"))
    bias, mean = (self.param(name, nn.initializers.zeros, (self.width,)) for name in ("bias", "mean"))
    form = functools.partial(convolve_depthwise if self.depthwise else convolve, stride=self.stride, same=self.same)
    x, (mean, var) = x.astype(self.dtype), jax.lax.stop_gradient((mean, var))
    if not self.train or self.norm.frozen:
      factor = scale * jax.lax.rsqrt(var + self.norm.epsilon)
      y = form(x, (kernel * factor).astype(self.dtype)) + (bias - mean * factor).astype(self.dtype)
    else:
      y = form(x, kernel.astype(self.dtype)).astype(jnp.float32)
      mean, var = self._of_batch(y, mean, var)
      y = ((y - mean) * (scale * jax.lax.rsqrt(var + self.norm.epsilon)) + bias).astype(self.dtype)
    return self.activation(y)

  def _of_batch(self, y: jax.Array, mean: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The batch's mean and variance [C] of y [B, H, W, C]; from the stored ones to the new running ones."""
    axis = self.norm.axis_name

    def average(x: jax.Array) -> jax.Array:
      x = x.mean(axis=(0, 1, 2))
      return x if axis is None else jax.lax.pmean(x, axis)

    of_batch = average(y)
    spread = average(jnp.square(y - of_batch))
    count = y.size // y.shape[-1] * (1 if axis is None else jax.lax.axis_size(axis))
    running = {"mean": (mean, of_batch), "var": (var, spread * (count / max(count - 1, 1)))}  # as torch: unbiased
    for name, (old, new) in running.items():
      self.put_variable("statistics", name, old + self.norm.momentum * jax.lax.stop_gradient(new - old))
    return of_batch, spread


def patches(width: int, side: int, dtype: jnp.dtype, *, name: str) -> nn.Conv:
  """A convolution of patches of `side` x `side` beside each other; what is left over at the far edges is not seen."""
  return nn.Conv(width, (side, side), strides=side, padding="VALID", dtype=dtype, name=name)


def layer_norm(dtype: jnp.dtype, *, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


class Maps(NamedTuple):
  """Which maps of a network are looked at."""

  strides: tuple[int, ...]  # the finest first; a network need not build what is behind the last
  factors: tuple[float, ...] = (1.0,)  # that bring each to the RMS of the network's last map on photographs

  @classmethod
  def named(cls, name: str, rms: Mapping[int, float]) -> Self:
    """Those that `model.maps` names: "" the last, the number of a stride that map, "fused" the last two.

    `rms` has each map of the network by its stride, the finest first. Raises UserError for another name.
    """
    strides = tuple(rms)
    check_name("model.maps", name, ("", *map(str, strides), FUSED))
    taken = strides[-2:] if name == FUSED else (int(name or strides[-1]),)
    return cls(taken, tuple(rms[strides[-1]] / rms[stride] for stride in taken))

  def fuse(self, found: Mapping[int, jax.Array]) -> jax.Array:
    """Maps by stride -> one: each resized (bilinear) to the finest one's cells, beside each other as channels."""
    cells = found[self.strides[0]].shape[:3]
    scaled = [
      found[s] if factor == 1 else found[s] * factor for s, factor in zip(self.strides, self.factors, strict=True)
    ]
    same = [
      each if each.shape[:3] == cells else jax.image.resize(each, (*cells, each.shape[3]), "bilinear")
      for each in scaled
    ]
    return same[0] if len(same) == 1 else jnp.concatenate(same, axis=-1)
