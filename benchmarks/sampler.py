"""Regions from a feature map: `spatial_transform` and its two forms against torch's `grid_sample`.

    python -m benchmarks.sampler
    python -m benchmarks.sampler --sizes=16x28x28x512:14 --repeats=50

The sides: `spatial_transform` as the platform has it; the matrix-product form, which is another platform's; the general
`grid_sample` with its gradient by autodiff; torch with channels in either place, whichever is faster in each column.
Forward, and forward with the gradients of map and theta. Regions of 0.2 to 0.5 of the map, as a trained model has them.
"""

import argparse
import functools

import jax
import numpy as np
import torch

from benchmarks import machine, roofline
from rmam_jax.ops import spatial_transformer

SIZES = ("32x16x16x64:5", "32x16x16x64:7", "16x28x28x512:7", "16x28x28x512:14")


def products(feature_map, theta, size):
  """`spatial_transform` by matrix products, whatever the platform."""
  grid = spatial_transformer.affine_grid(theta, size)
  y = spatial_transformer.to_cells(grid[:, :, :1, 1], feature_map.shape[1])
  x = spatial_transformer.to_cells(grid[:, :1, :, 0], feature_map.shape[2])
  return spatial_transformer._by_products(feature_map, y, x)


def general(feature_map, theta, size):
  """`grid_sample`, which takes any grid."""
  return spatial_transformer.grid_sample(feature_map, spatial_transformer.affine_grid(theta, size))


FORMS = {
  "spatial_transform": spatial_transformer.spatial_transform,
  "matrix products": products,
  "grid_sample": general,
}


def our_sides(feature_map, theta, cotangent, size):
  """(forward, forward and gradients, the latter's compiled program) of each form, by its name."""
  inputs = jax.device_put((feature_map, theta))
  cotangent = jax.device_put(cotangent)

  def sides(form):
    sample = functools.partial(form, size=size)
    forward = jax.jit(sample)

    @jax.jit
    def both(inputs, cotangent):
      sampled, pull = jax.vjp(sample, *inputs)
      return sampled, pull(cotangent)

    programs = forward.lower(*inputs).compile(), both.lower(inputs, cotangent).compile()
    return (
      lambda: jax.block_until_ready(programs[0](*inputs)),
      lambda: jax.block_until_ready(programs[1](inputs, cotangent)),
      programs[1],
    )

  return {name: sides(form) for name, form in FORMS.items()}


def torch_sides(feature_map, theta, cotangent, size, memory_format):
  """The same of torch, with channels second in name and in memory as `memory_format` says."""
  device = "cuda" if torch.cuda.is_available() else "cpu"

  def channels_second(array):
    return torch.tensor(array.transpose(0, 3, 1, 2), device=device).contiguous(memory_format=memory_format)

  maps, cotangent = channels_second(feature_map).requires_grad_(), channels_second(cotangent)
  theta = torch.tensor(theta, device=device, requires_grad=True)

  def sample():
    s_x, s_y, t_x, t_y = theta.T
    nothing = torch.zeros_like(s_x)
    matrix = torch.stack([s_x, nothing, t_x, nothing, s_y, t_y], dim=1).reshape(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(matrix, (len(maps), 1, *size), align_corners=True)
    return torch.nn.functional.grid_sample(maps, grid, align_corners=True)

  def wait():
    if device == "cuda":
      torch.cuda.synchronize()

  def forward():
    with torch.no_grad():
      sample()
    wait()

  def both():
    torch.autograd.grad(sample(), (maps, theta), cotangent)
    wait()

  return forward, both


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sizes", default=",".join(SIZES), help="BxHxWxC:h of map and region, with commas between")
  parser.add_argument("--repeats", type=int, default=21)
  arguments = parser.parse_args()
  print(
    f"{jax.devices()[0].device_kind}; {machine.describe('jax', 'numpy', 'torch')}; {torch.get_num_threads()} threads"
  )
  print(f"of torch. Medians of {arguments.repeats} turns, in ms; ratio: torch's over `spatial_transform`'s.\n")
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
      theirs = min(found["torch NCHW"], found["torch NHWC"])
      cells = (f"{1e3 * found[name]:.2f}" for name in FORMS)
      ratio = f"{theirs / found['spatial_transform']:.1f}"
      print(machine.row(f"{shape} -> {side} x {side}", title, *cells, f"{1e3 * theirs:.2f}", ratio))
  *_, program = sides["spatial_transform"]
  print("\n" + roofline.line(program, found["spatial_transform"]) + " Of the last row, `spatial_transform`.")


if __name__ == "__main__":
  main()
