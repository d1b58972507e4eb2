"""What the families share: convolutions with batch normalisation, depthwise ones, and which maps of a network are taken.

A normalised layer keeps `scale`, `bias`, `mean` and `var` beside its kernel as parameters. With stored statistics it is

    y = (conv(x) - mean) / sqrt(var + epsilon) * scale + bias,

computed as one convolution with the kernel times scale / sqrt(var + epsilon).
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
  around = [pads(x.shape[axis], kernel.shape[axis - 1], stride, same) for axis in (1, 2)]
  forms = (functools.partial(form, stride=stride, around=around) for form in (_by_slices, _by_groups))
  return jax.lax.platform_dependent(x, kernel, **dict(zip(("cpu", "default"), forms, strict=True)))


def _by_groups(x: jax.Array, kernel: jax.Array, *, stride: int, around: Sequence[tuple[int, int]]) -> jax.Array:
  options = {"dimension_numbers": DIMENSIONS, "feature_group_count": x.shape[-1]}
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), around, **options)


def _by_slices(x: jax.Array, kernel: jax.Array, *, stride: int, around: Sequence[tuple[int, int]]) -> jax.Array:
  # The barrier: padding is done once, not again in each of the slices.
  x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *around, (0, 0))))
  height, width = (side - size + 1 for side, size in zip(x.shape[1:3], kernel.shape[:2], strict=True))
  return sum(
    x[:, row : row + height : stride, column : column + width : stride] * kernel[row, column, 0]
    for row in range(kernel.shape[0])
    for column in range(kernel.shape[1])
  )


def relu6(x: jax.Array) -> jax.Array:
  return jnp.clip(x, 0, 6)


class Normed(nn.Module):
  """A convolution without a bias, batch normalisation, and what follows it."""

  width: int
  size: int = 1  # of the kernel
  stride: int = 1
  depthwise: bool = False
  activation: Callable[[jax.Array], jax.Array] = lambda x: x
  same: bool = False  # see `pads`
  epsilon: float = 1e-5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', width]."""
    inputs = 1 if self.depthwise else x.shape[-1]
    kernel = self.param("kernel", nn.initializers.he_normal(), (self.size, self.size, inputs, self.width))
    scale, var = (self.param(name, nn.initializers.ones, (self.width,)) for name in ("scale", "var"))
    bias, mean = (self.param(name, nn.initializers.zeros, (self.width,)) for name in ("bias", "mean"))
    factor = scale * jax.lax.rsqrt(jax.lax.stop_gradient(var) + self.epsilon)
    shift = bias - jax.lax.stop_gradient(mean) * factor
    form = convolve_depthwise if self.depthwise else convolve
    y = form(x.astype(self.dtype), (kernel * factor).astype(self.dtype), self.stride, same=self.same)
    return self.activation(y + shift.astype(self.dtype))


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
