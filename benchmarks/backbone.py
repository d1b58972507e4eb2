"""Backbones, forward and backward, against torch's: VGG-16 and each of its layers by itself, or others as a whole.

    python -m benchmarks.backbone --sides=224
    python -m benchmarks.backbone --sides=224,448 --batch=1
    python -m benchmarks.backbone --sides=320 --backbones=efficientnet_lite0,mobilenet_v2
    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.backbone --cpu      # where others use the machine, too

Torch has the same kernels and its images lie channels last; the feature maps must agree before the clock runs. Backward
is the gradient of the map's sum of squares with respect to images and kernels; of a layer, with respect to its input
and to its kernel, apart.
"""

import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import traverse_util
from torch.nn import functional

from benchmarks import machine, peer
from rmam_jax import backbones
from rmam_jax.backbones import vgg
from rmam_jax.config import get_config

BLOCKS = vgg.BLOCKS["vgg16"]
TOLERANCE = 1e-4  # of the largest activation


def backbone_sides(side: int, batch: int):
  """Forward, and forward + backward, of both."""
  model = vgg.VGG()
  images = np.random.default_rng(0).normal(0, 1, (batch, side, side, 3)).astype(np.float32)
  params = jax.jit(model.init)(jax.random.key(0), images)
  forward = jax.jit(model.apply)
  both = jax.jit(jax.grad(lambda params, images: jnp.square(model.apply(params, images)).sum(), argnums=(0, 1)))
  kernels = [peer.kernel(params["params"][name]["kernel"]).requires_grad_() for name in vgg.convolutions(BLOCKS)]
  theirs = peer.images(images).requires_grad_()

  def torch_forward():
    with torch.no_grad():
      return peer.vgg_map(theirs, BLOCKS, kernels)

  def torch_both():
    return torch.autograd.grad(peer.vgg_map(theirs, BLOCKS, kernels).square().sum(), [theirs, *kernels])

  ours = np.asarray(forward(params, images))
  difference = np.abs(ours - torch_forward().permute(0, 2, 3, 1).numpy()).max() / np.abs(ours).max()
  if difference > TOLERANCE:
    raise RuntimeError(f"the feature maps differ by {difference:.0e} of the largest activation")
  return {
    "forward": (functools.partial(machine.finish, forward, params, images), torch_forward),
    "forward + backward": (functools.partial(machine.finish, both, params, images), torch_both),
  }


def network_sides(name: str, side: int, batch: int):
  """The same of another backbone, with the random weights of torch's; backward is with respect to its parameters."""
  config = get_config()
  config.model.backbone = name
  module, spec = backbones.build(config.model), backbones.get(name)
  network, features = peer.backbone(name)
  network = network.to(peer.DEVICE, memory_format=torch.channels_last)
  state = {their: value.cpu().numpy() for their, value in network.state_dict().items()}
  layout = next(layout for layout in spec.layouts if all(place.source in state for place in layout.places.values()))
  params = {our: jnp.asarray(place.convert(state[place.source])) for our, place in layout.places.items()}
  params = {"params": traverse_util.unflatten_dict(params, sep="/")}
  images = np.random.default_rng(0).normal(0, 1, (batch, side, side, 3)).astype(np.float32)
  theirs, used = peer.images(images).to(peer.DEVICE), [*network.parameters()]
  forward = jax.jit(module.apply)
  both = jax.jit(jax.grad(lambda params, images: jnp.square(module.apply(params, images)).sum()))

  def torch_forward():
    with torch.no_grad():
      found = features(theirs)
    peer.wait()
    return found

  def torch_both():
    torch.autograd.grad(features(theirs).square().sum(), used, allow_unused=True)
    peer.wait()

  ours = np.asarray(forward(params, images))
  difference = np.abs(ours - torch_forward().cpu().permute(0, 2, 3, 1).numpy()).max() / np.abs(ours).max()
  if difference > TOLERANCE:
    raise RuntimeError(f"the feature maps differ by {difference:.0e} of the largest activation")
  return {
    "forward": (functools.partial(machine.finish, forward, params, images), torch_forward),
    "forward + backward": (functools.partial(machine.finish, both, params, images), torch_both),
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
  theirs = peer.images(x), peer.kernel(kernel), peer.images(g)

  def torch_gradient(mask):
    x, kernel, g = theirs
    return torch.ops.aten.convolution_backward(g, x, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)

  peers = {
    "forward": lambda: functional.conv2d(theirs[0], theirs[1], padding=1),
    "input's gradient": functools.partial(torch_gradient, [True, False, False]),
    "kernel's gradient": functools.partial(torch_gradient, [False, True, False]),
  }
  inputs = tuple(map(jnp.asarray, (x, kernel, g)))
  return {name: (functools.partial(machine.finish, programs[name], *inputs), peers[name]) for name in programs}


def report(label: str, sides, options: Mapping[str, Any]) -> None:
  """A row for each pass: our time, torch's, and their ratio; the options are those of `machine.medians`."""
  for name, (ours, theirs) in sides.items():
    found = machine.medians({"ours": ours, "torch": theirs}, **options)
    times = (f"{1e3 * found['ours']:.1f}", f"{1e3 * found['torch']:.1f}", f"{found['ours'] / found['torch']:.2f}")
    print(machine.row(label, name, *times), flush=True)


def main() -> None:
  parser = machine.make_parser(__doc__, repeats=5)
  parser.add_argument("--sides", default="224", help="of the images, in pixels")
  parser.add_argument("--batch", type=int, default=2)
  parser.add_argument("--backbones", default="vgg16", help="by name")
  parser.add_argument("--cpu", action="store_true", help="the processor's time and not the clock's")
  arguments = parser.parse_args()
  print(f"{machine.describe_device('flax', 'torch')}.")
  print(
    f"Batch {arguments.batch}; medians of {arguments.repeats}, in ms{' of the processor' * arguments.cpu}; ratio: ours over torch's.\n"
  )
  print(machine.header("", "", "ours", "torch", "ratio"))
  options = {"repeats": arguments.repeats, "clock": time.process_time if arguments.cpu else time.perf_counter}
  for side in map(int, arguments.sides.split(",")):
    for name in arguments.backbones.split(","):
      if name == "vgg16":
        report_vgg(side, arguments.batch, options)
      else:
        report(f"{name}, {side}", network_sides(name, side, arguments.batch), options)


def report_vgg(side: int, batch: int, options: Mapping[str, Any]) -> None:
  """The whole of it, and each layer."""
  report(f"VGG-16, {side}", backbone_sides(side, batch), options)
  channels = 3
  for block, widths in enumerate(BLOCKS):
    size = side // 2**block
    for depth, width in dict.fromkeys(zip((channels, *widths[:-1]), widths, strict=True)):
      report(f"{size} x {size}, {depth} -> {width}", layer_sides(size, batch, depth, width), options)
    channels = widths[-1]


if __name__ == "__main__":
  main()
