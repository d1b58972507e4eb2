"""One training step, stage two with the paper's rule, against an equal PyTorch model written here.

    python -m benchmarks.train_step --small                        seconds a step on a CPU
    python -m benchmarks.train_step                                VGG-16, crops of 448, batch 16: for a GPU
    python -m benchmarks.train_step --dtype=bfloat16 --compiled

The two have the same layers, the same losses (Eq. 7-14) and the same Adam; before the clock runs, both are given the same
parameters and batch and their losses must agree. Torch's images lie channels last; `--compiled` wraps its step in
`torch.compile`. Batches are made in memory.
"""

import argparse
import functools
import math

import jax
import numpy as np
import torch
from torch.nn import functional

from benchmarks import machine, roofline
from configs import voc
from rmam_jax.ops import spatial_transformer
from rmam_jax.training import stages
from rmam_jax.training import step as step_lib

CLASSES = 20
SMALL = {
  "model.vgg.blocks": ((16, 16), (32, 32), (64, 64, 64)),
  "model.x_width": 256,
  "model.lstm_width": 256,
  "model.z_width": 256,
  "batch_size": 8,
}
SMALL_SIDE = 96


class Peer(torch.nn.Module):
  """The backbone and the module of Sec. 3.2 with Eq. 5, as PyTorch has them."""

  def __init__(self, params, config):
    super().__init__()
    self.config = config.model
    backbone, attention = params["backbone"], params["head"]["attention"]
    self.kernels = torch.nn.ParameterList()
    self.biases = torch.nn.ParameterList()
    for block, widths in enumerate(config.model.vgg.blocks, start=1):
      for layer in range(1, len(widths) + 1):
        layer = backbone[f"block{block}_conv{layer}"]
        self.kernels.append(torch.tensor(np.asarray(layer["kernel"]).transpose(3, 2, 0, 1)))
        self.biases.append(torch.tensor(np.asarray(layer["bias"])))
    named = jax.tree_util.tree_leaves_with_path(attention)
    self.head = torch.nn.ParameterDict(
      {"_".join(str(part.key) for part in path): torch.tensor(np.asarray(leaf)) for path, leaf in named}
    )
    self.register_buffer("mean", torch.tensor(config.model.pixel_mean))

  def feature_map(self, images):
    x = (images - self.mean).permute(0, 3, 1, 2)  # channels last in memory
    index = 0
    for block, widths in enumerate(self.config.stages):
      if block:
        x = functional.max_pool2d(x, 2)
      for _ in widths:
        x = functional.relu(functional.conv2d(x, self.kernels[index], self.biases[index], padding=1))
        index += 1
    return x

  def forward(self, images):
    """Scores [K, B, L] and thetas [K, B, 4] of the regions 1..K."""
    head, feature_map = self.head, self.feature_map(images)
    batch, channels = feature_map.shape[:2]
    (h, w), pool = self.config.region_size, self.config.region_pool
    theta = torch.tensor(spatial_transformer.WHOLE_IMAGE, device=images.device).expand(batch, 4)
    hidden = cell = torch.zeros(batch, self.config.lstm_width, device=images.device)
    scores, thetas = [], []
    for _ in range(self.config.num_regions + 1):
      thetas.append(theta)
      s_x, s_y, t_x, t_y = theta.unbind(1)
      nothing = torch.zeros_like(s_x)
      matrix = torch.stack([s_x, nothing, t_x, nothing, s_y, t_y], dim=1).reshape(-1, 2, 3)
      grid = functional.affine_grid(matrix, (batch, channels, h * pool, w * pool), align_corners=True)
      region = functional.max_pool2d(
        functional.grid_sample(feature_map, grid.to(feature_map), align_corners=True), pool
      )
      x = functional.relu(region.permute(0, 2, 3, 1).flatten(1) @ head["fx_kernel"] + head["fx_bias"])
      gates = x @ head["lstm_w_x"] + hidden @ head["lstm_w_h"] + head["lstm_b"]
      i, g, o, m = gates.chunk(4, dim=1)
      cell = g.sigmoid() * cell + i.sigmoid() * m.tanh()
      hidden = o.sigmoid() * cell
      z = functional.relu(hidden @ head["hz_kernel"] + head["hz_bias"])
      scores.append(z @ head["zs_kernel"] + head["zs_bias"])
      theta = (z @ head["next_region_kernel"] + head["next_region_bias"]).float()
    return torch.stack(scores[1:]).float(), torch.stack(thetas[1:])


def peer_loss(scores, thetas, labels, loss):
  """Eq. 14 with the weights of the configuration's section `loss`."""
  target = labels / labels.sum(dim=1, keepdim=True).clamp(min=1)
  classification = ((scores.amax(dim=0).softmax(dim=1) - target) ** 2).sum(dim=1).mean()
  scales, anchors = thetas[..., :2], torch.tensor(spatial_transformer.anchor_points(len(thetas)), device=thetas.device)
  too_large = ((scales.abs() - loss.max_scale).clamp(min=0) ** 2).sum(dim=(0, 2))
  too_small = (loss.min_scale - scales).clamp(min=0).sum(dim=(0, 2))
  astray = 0.5 * ((thetas[1:, :, 2:] - anchors[:, None]) ** 2).sum(dim=(0, 2))
  terms = loss.scale_weight * too_large + loss.anchor_weight * astray + loss.positive_weight * too_small
  return classification + loss.localization_weight * terms.mean()


def our_side(params, stage, batch):
  """A function that makes a step and waits for it, the first step's loss, and the compiled step."""
  state = jax.tree.map(jax.numpy.array, step_lib.TrainState(np.int32(0), params, stage.optimizer.init(params)))
  batch = jax.device_put(batch)
  train_step = jax.jit(step_lib.make_train_step(stage.model, stage.optimizer, stage.objective), donate_argnums=0)
  train_step = train_step.lower(state, batch).compile()
  held = list(train_step(state, batch))
  loss = float(held[1]["loss"])

  def work():
    held[:] = train_step(held[0], batch)
    jax.block_until_ready(held)

  return work, loss, train_step


def torch_side(config, params, batch, compiled: bool):
  """The same of the peer."""
  device = "cuda" if torch.cuda.is_available() else "cpu"
  model = Peer(params, config).to(device)
  section = config.stage_two
  optimizer = torch.optim.Adam(model.parameters(), section.learning_rate, (section.beta_1, section.beta_2))
  images, labels = torch.tensor(batch["image"], device=device).float(), torch.tensor(batch["labels"], device=device)

  def train_step():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
      scores, thetas = model(images)
    loss = peer_loss(scores, thetas, labels, config.loss)
    loss.backward()
    optimizer.step()
    return loss.detach()

  run = torch.compile(train_step) if compiled else train_step
  loss = float(run())

  def work():
    run()
    if device == "cuda":
      torch.cuda.synchronize()

  return work, loss


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--small", action="store_true", help="a thin model at 96 pixels")
  parser.add_argument("--side", type=int, default=448, help="of the crops, in pixels")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--compiled", action="store_true", help="torch.compile the peer")
  parser.add_argument("--repeats", type=int, default=5)
  arguments = parser.parse_args()
  config = voc.get_config()
  config.batch_size, config.model.dtype, side = arguments.batch, arguments.dtype, arguments.side
  if arguments.small:
    config.update_from_flattened_dict(SMALL)
    side = SMALL_SIDE
  stage = stages.build(config, "stage_two", num_classes=CLASSES, num_records=5_011)
  params = jax.jit(functools.partial(step_lib.init_params, stage.model, size=side))(jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (config.batch_size, side, side, 3), np.uint8),
    "labels": np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, config.batch_size)],
    "ignore": np.zeros((config.batch_size, CLASSES), bool),
    "mask": np.ones(config.batch_size, np.float32),
  }
  ours, our_loss, compiled = our_side(params, stage, batch)
  theirs, their_loss = torch_side(config, params, batch, arguments.compiled)
  if not math.isclose(our_loss, their_loss, rel_tol=1e-3 if arguments.dtype == "float32" else 5e-2):
    raise SystemExit(f"error: the first losses differ, {our_loss} and {their_loss}: the models are not equal")
  found = machine.medians({"ours": ours, "torch": theirs}, arguments.repeats)

  print(
    f"{jax.devices()[0].device_kind}; {machine.describe('jax', 'flax', 'optax', 'torch')}; {torch.get_num_threads()}"
  )
  print(
    f"threads of torch. {side} x {side}, batch {config.batch_size}, {arguments.dtype}, stages {config.model.vgg.blocks},"
  )
  print(
    f"widths {config.model.x_width}; first loss {our_loss:.4f} and {their_loss:.4f}. Medians of {arguments.repeats}.\n"
  )
  print(machine.header("", "s a step", "images/s"))
  name = "torch, compiled" if arguments.compiled else "torch, eager"
  for title, seconds in (("ours, jitted", found["ours"]), (name, found["torch"])):
    print(machine.row(title, f"{seconds:.3f}", f"{config.batch_size / seconds:.1f}"))
  print(machine.row("torch's time over ours", f"{found['torch'] / found['ours']:.2f}", ""))
  print("\n" + roofline.line(compiled, found["ours"], arguments.dtype))


if __name__ == "__main__":
  main()
