"""VGG-16's convolutions, forward and backward, against torch's: the whole backbone, and each of its layers by itself.

    python -m benchmarks.backbone --sides=224
    python -m benchmarks.backbone --sides=224,448 --batch=1

Torch's images lie channels last and have the same kernels; the feature maps must agree before the clock runs. Backward is
the gradient of the map's sum of squares with respect to images and kernels; of a layer, with respect to its input and to
its kernel, apart.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from benchmarks import machine
from rmam_jax.backbones import vgg

TOLERANCE = 1e-4  # of the largest activation


def torch_map(images, kernels):
  """The map of images [B, 3, H, W], by kernels [out, in, 3, 3] without biases."""
  x, kernels = images, iter(kernels)
  for block, widths in enumerate(vgg.BLOCKS["vgg16"]):
    if block:
      x = functional.max_pool2d(x, 2)
    for _ in widths:
      x = functional.relu(functional.conv2d(x, next(kernels), padding=1))
  return x


def channels_last(array: np.ndarray) -> torch.Tensor:
  """[B, H, W, C] or [h, w, in, out] as torch has them, without a copy of the memory's order."""
  order = (3, 2, 0, 1) if array.shape[:2] == (3, 3) else (0, 3, 1, 2)
  return torch.tensor(array).permute(order).contiguous(memory_format=torch.channels_last)


def backbone_sides(side: int, batch: int):
  """Forward, and forward + backward, of both."""
  model = vgg.VGG()
  images = np.random.default_rng(0).normal(0, 1, (batch, side, side, 3)).astype(np.float32)
  params = jax.jit(model.init)(jax.random.key(0), images)
  forward = jax.jit(model.apply)
  both = jax.jit(jax.grad(lambda params, images: jnp.square(model.apply(params, images)).sum(), argnums=(0, 1)))
  layers = [
    f"block{block}_conv{layer}" for block, w in enumerate(vgg.BLOCKS["vgg16"], 1) for layer in range(1, len(w) + 1)
  ]
  kernels = [channels_last(np.asarray(params["params"][name]["kernel"])).requires_grad_() for name in layers]
  theirs = channels_last(images).requires_grad_()

  def torch_forward():
    with torch.no_grad():
      return torch_map(theirs, kernels)

  def torch_both():
    return torch.autograd.grad(torch_map(theirs, kernels).square().sum(), [theirs, *kernels])

  ours = np.asarray(forward(params, images))
  difference = np.abs(ours - torch_forward().permute(0, 2, 3, 1).numpy()).max() / np.abs(ours).max()
  if difference > TOLERANCE:
    raise RuntimeError(f"the feature maps differ by {difference:.0e} of the largest activation")
  return {
    "forward": (functools.partial(_run, forward, params, images), torch_forward),
    "forward + backward": (functools.partial(_run, both, params, images), torch_both),
  }


def layer_sides(side: int, batch: int, channels: int, width: int):
  """A layer's forward pass and its two gradients, of both."""
  rng = np.random.default_rng(0)
  x, g = (rng.normal(0, 1, (batch, side, side, depth)).astype(np.float32) for depth in (channels, width))
  kernel = rng.normal(0, 1, (3, 3, channels, width)).astype(np.float32)

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

  programs = {
    "forward": jax.jit(lambda x, kernel, g: convolve(x, kernel)),
    "input's gradient": jax.jit(lambda x, kernel, g: jax.vjp(lambda x: convolve(x, kernel), x)[1](g)),
    "kernel's gradient": jax.jit(lambda x, kernel, g: jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](g)),
  }
  theirs = [channels_last(array) for array in (x, kernel, g)]

  def torch_gradient(mask):
    x, kernel, g = theirs
    return torch.ops.aten.convolution_backward(g, x, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)

  peers = (
    lambda: functional.conv2d(theirs[0], theirs[1], padding=1),
    functools.partial(torch_gradient, [True, False, False]),
    functools.partial(torch_gradient, [False, True, False]),
  )
  inputs = tuple(map(jnp.asarray, (x, kernel, g)))
  return {
    name: (functools.partial(_run, program, *inputs), peer)
    for (name, program), peer in zip(programs.items(), peers, strict=True)
  }


def _run(program, *inputs):
  jax.block_until_ready(program(*inputs))


def report(label: str, sides, repeats: int) -> None:
  """A row for each pass: our time, torch's, and their ratio."""
  for name, (ours, theirs) in sides.items():
    found = machine.medians({"ours": ours, "torch": theirs}, repeats)
    times = (f"{1e3 * found['ours']:.1f}", f"{1e3 * found['torch']:.1f}", f"{found['ours'] / found['torch']:.2f}")
    print(machine.row(label, name, *times), flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sides", default="224", help="of the images, in pixels")
  parser.add_argument("--batch", type=int, default=2)
  parser.add_argument("--repeats", type=int, default=5)
  arguments = parser.parse_args()
  print(
    f"{jax.devices()[0].device_kind}; {machine.describe('jax', 'flax', 'torch')}; {torch.get_num_threads()} threads"
  )
  print(f"of torch. Batch {arguments.batch}; medians of {arguments.repeats}, in ms; ratio: ours over torch's.\n")
  print(machine.header("", "", "ours", "torch", "ratio"))
  for side in map(int, arguments.sides.split(",")):
    report(f"VGG-16, {side}", backbone_sides(side, arguments.batch), arguments.repeats)
    channels = 3
    for block, widths in enumerate(vgg.BLOCKS["vgg16"]):
      for width in dict.fromkeys(zip((channels, *widths[:-1]), widths, strict=True)):
        size = side // 2**block
        report(
          f"{size} x {size}, {width[0]} -> {width[1]}", layer_sides(size, arguments.batch, *width), arguments.repeats
        )
      channels = widths[-1]


if __name__ == "__main__":
  main()
