"""Regions from a feature map: `spatial_transform` against `grid_sample`, ours and torch's.

    python -m benchmarks.sampler
    python -m benchmarks.sampler --sizes=16x28x28x512:14 --repeats=50

The sides: `spatial_transform`; the general `grid_sample` with its gradient by autodiff; torch with channels in either
place, whichever is faster in each column. Forward, and forward with the gradients of map and theta. Regions of 0.2 to
0.5 of the map, as a trained model has them.
"""

import functools

import jax
import numpy as np
import torch

from benchmarks import machine, peer
from rmam_jax.ops import spatial_transformer

SIZES = ("32x16x16x64:5", "32x16x16x64:7", "16x28x28x512:7", "16x28x28x512:14")


FORMS = {
  "spatial_transform": spatial_transformer.spatial_transform,
  "grid_sample": lambda feature_map, theta, size: spatial_transformer.grid_sample(
    feature_map, spatial_transformer.affine_grid(theta, size)
  ),
}


def our_sides(feature_map, theta, cotangent, size):
  """Forward, and forward and gradients, of each form by its name."""
  inputs = jax.device_put((feature_map, theta))
  cotangent = jax.device_put(cotangent)

  def sides(form):
    sample = functools.partial(form, size=size)
    forward = jax.jit(sample)

    @jax.jit
    def both(inputs, cotangent):
      sampled, pull = jax.vjp(sample, *inputs)
      return sampled, pull(cotangent)

    forward, both = forward.lower(*inputs).compile(), both.lower(inputs, cotangent).compile()
    return lambda: machine.finish(forward, *inputs), lambda: machine.finish(both, inputs, cotangent)

  return {name: sides(form) for name, form in FORMS.items()}


def torch_sides(feature_map, theta, cotangent, size, memory_format):
  """The same of torch, whose maps lie in memory as `memory_format` says."""
  maps, cotangent = (peer.images(array, memory_format).to(peer.DEVICE) for array in (feature_map, cotangent))
  maps.requires_grad_()
  theta = torch.tensor(theta, device=peer.DEVICE, requires_grad=True)

  def forward():
    with torch.no_grad():
      peer.sample(maps, theta, size)
    peer.wait()

  def both():
    torch.autograd.grad(peer.sample(maps, theta, size), (maps, theta), cotangent)
    peer.wait()

  return forward, both


def main() -> None:
  parser = machine.make_parser(__doc__, repeats=21)
  parser.add_argument("--sizes", default=",".join(SIZES), help="BxHxWxC:h of map and region, with commas between")
  arguments = parser.parse_args()
  print(f"{machine.describe_device('numpy', 'torch')}.")
  print(f"Medians of {arguments.repeats} turns, in ms; ratio: torch's over `spatial_transform`'s.\n")
  print(machine.header("map -> region", "", *FORMS, "torch", "ratio"))
  for text in arguments.sizes.split(","):
    shape, side = text.split(":")
    batch, height, width, channels = map(int, shape.split("x"))
    size = (int(side), int(side))
    rng = np.random.default_rng(0)
    feature_map = rng.normal(size=(batch, height, width, channels)).astype(np.float32)
    theta = np.concatenate([rng.uniform(0.2, 0.5, (batch, 2)), rng.uniform(-0.5, 0.5, (batch, 2))], axis=1)
    inputs = (feature_map, theta.astype(np.float32), rng.normal(size=(batch, *size, channels)).astype(np.float32), size)
    sides = our_sides(*inputs)
    sides["torch NCHW"] = torch_sides(*inputs, torch.contiguous_format)
    sides["torch NHWC"] = torch_sides(*inputs, torch.channels_last)
    for column, title in enumerate(("forward", "forward + backward")):
      found = machine.medians({name: pair[column] for name, pair in sides.items()}, arguments.repeats)
      theirs = min("torch NCHW", "torch NHWC", key=found.get)
      cells = (machine.milliseconds(found[name]) for name in (*FORMS, theirs))
      ratio = f"{found[theirs] / found['spatial_transform']:.1f}"
      print(machine.row(f"{shape} -> {side} x {side}", title, *cells, ratio), flush=True)


if __name__ == "__main__":
  main()
