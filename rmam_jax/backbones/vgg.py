"""The VGG family of backbones (Simonyan and Zisserman, 2014), up to the last convolution's ReLU."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

# VGG-16 up to conv5_3: the width of each 3x3 convolution, stage by stage.
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """Images [B, height, width, 3] of 0..255, uint8 or float -> float32, by the mean and deviation of each channel."""
  return (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)


def max_pool(x: jax.Array) -> jax.Array:
  """2x2 max-pooling with stride 2: [B, H, W, C] -> [B, H // 2, W // 2, C].

  The greatest of four shifted slices, whose gradient is several times faster on CPU than that of a window reduction.
  """
  height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
  rows = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
  return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


class VGG(nn.Module):
  """Stages of 3x3 convolutions with ReLU, a 2x2 max-pool between stages and none after the last.

  Attributes:
    stages: the width of each convolution, stage by stage; `VGG16_STAGES` for the full one. The feature map's stride is
      2 ** (len(stages) - 1).
    dtype: of the computation; parameters are float32.
    remat: whether the backward pass computes each stage again from its input, instead of keeping what is inside.
  """

  stages: Sequence[Sequence[int]] = VGG16_STAGES
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """[B, height, width, 3], normalised -> f_I [B, H, W, C], not negative."""
    x = images.astype(self.dtype)
    for block in range(1, len(self.stages) + 1):
      run = functools.partial(VGG._stage, block=block)
      x = (nn.remat(run) if self.remat else run)(self, x)
    return x

  def _stage(self, x: jax.Array, *, block: int) -> jax.Array:
    if block > 1:
      x = max_pool(x)
    for layer, width in enumerate(self.stages[block - 1], start=1):
      convolution = nn.Conv(
        width,
        (3, 3),
        dtype=self.dtype,
        kernel_init=nn.initializers.he_normal(),
        name=f"block{block}_conv{layer}",
      )
      x = nn.relu(convolution(x))
    return x
