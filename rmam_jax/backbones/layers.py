"""What the families share: convolutions with batch normalisation, depthwise ones, and which maps of a network are taken.

A normalised layer keeps `scale`, `bias`, `mean` and `var` beside its kernel as parameters. With stored statistics it is

    y = (conv(x) - mean) / sqrt(var + epsilon) * scale + bias,

computed as one convolution with the kernel times scale / sqrt(var + epsilon).
"""

import functools
from collections.abc import Callable, Mapping, Sequence

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


def wanted_strides(maps: str, strides: Sequence[int]) -> tuple[int, ...]:
  """The strides of the maps that `model.maps` names, the finest first; `strides` are those that the network has.

  "" is the last map, the number of a stride is that map, and "fused" the last two. Raises UserError for another.
  """
  check_name("model.maps", maps, ("", *map(str, strides), FUSED))
  if maps == FUSED:
    return tuple(strides[-2:])
  return (int(maps) if maps else strides[-1],)


def fuse(maps: Mapping[int, jax.Array], strides: Sequence[int]) -> jax.Array:
  """The maps of these strides, each resized (bilinear) to the first one's cells, as channels of one map."""
  finest = maps[strides[0]]
  same_cells = (jax.image.resize(maps[s], (*finest.shape[:3], maps[s].shape[3]), "bilinear") for s in strides[1:])
  return jnp.concatenate([finest, *same_cells], axis=-1)
