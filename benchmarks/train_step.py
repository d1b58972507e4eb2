"""One training step, stage two with the paper's rule, against an equal PyTorch model written here.

    python -m benchmarks.train_step --small                        seconds a step on a CPU
    python -m benchmarks.train_step                                VGG-16, crops of 448, batch 16: for a GPU
    python -m benchmarks.train_step --dtype=bfloat16 --compiled

The two have the same layers, losses (Eq. 7-14), Adam, parameters and batch; their first losses must agree before the
clock runs. Torch's images lie channels last; `--compiled` wraps its step in `torch.compile`.
"""

import math

import jax
import numpy as np
import torch
from torch.nn import functional

from benchmarks import machine, peer, roofline, steps
from configs import voc
from rmam_jax.backbones import vgg
from rmam_jax.ops import spatial_transformer


class Peer(torch.nn.Module):
  """The backbone and the module of Sec. 3.2 with Eq. 5, as PyTorch has them."""

  def __init__(self, params, config, blocks):
    super().__init__()
    self.config, self.blocks = config.model, blocks
    layers = [params["backbone"][name] for name in vgg.convolutions(blocks)]
    self.kernels = torch.nn.ParameterList(peer.kernel(layer["kernel"]) for layer in layers)
    self.biases = torch.nn.ParameterList(torch.tensor(np.asarray(layer["bias"])) for layer in layers)
    named = jax.tree_util.tree_leaves_with_path(params["head"]["attention"])
    self.head = torch.nn.ParameterDict(
      {"_".join(str(part.key) for part in path): torch.tensor(np.asarray(leaf)) for path, leaf in named}
    )
    self.register_buffer("mean", torch.tensor(config.model.pixel_mean))

  def forward(self, images):
    """Scores [K, B, L] and thetas [K, B, 4] of the regions 1..K."""
    head, batch = self.head, len(images)
    pixels = (images - self.mean).permute(0, 3, 1, 2)  # channels last in memory
    feature_map = peer.vgg_map(pixels, self.blocks, self.kernels, self.biases)
    (h, w), pool = self.config.region_size, self.config.region_pool
    theta = torch.tensor(spatial_transformer.WHOLE_IMAGE, device=images.device).expand(batch, 4)
    hidden = cell = torch.zeros(batch, self.config.lstm_width, device=images.device)
    scores, thetas = [], []
    for _ in range(self.config.num_regions + 1):
      thetas.append(theta)
      region = functional.max_pool2d(peer.sample(feature_map, theta, (h * pool, w * pool)), pool)
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


def torch_side(model, config, batch, compiled: bool):
  """A function that makes a step and waits for it, and the first step's loss."""
  model = model.to(peer.DEVICE)
  section = config.stage_two
  optimizer = torch.optim.Adam(model.parameters(), section.learning_rate, (section.beta_1, section.beta_2))
  images, labels = (torch.tensor(batch[name], device=peer.DEVICE) for name in ("image", "labels"))
  images = images.float()

  def train_step():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(peer.DEVICE, torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
      scores, thetas = model(images)
    loss = peer_loss(scores, thetas, labels, config.loss)
    loss.backward()
    optimizer.step()
    return loss.detach()

  run = torch.compile(train_step) if compiled else train_step
  loss = float(run())

  def work():
    run()
    peer.wait()

  return work, loss


def main() -> None:
  parser = machine.make_parser(__doc__, repeats=5)
  parser.add_argument("--small", action="store_true", help="a thin model at 96 pixels")
  parser.add_argument("--side", type=int, default=448, help="of the crops, in pixels")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--compiled", action="store_true", help="torch.compile the peer")
  arguments = parser.parse_args()
  config = voc.get_config()
  config.batch_size, config.model.dtype, side = arguments.batch, arguments.dtype, arguments.side
  if arguments.small:
    config.update_from_flattened_dict(steps.SMALL)
    side = steps.SMALL_SIDE
  stage, init, batch = steps.make(config, side)
  state = jax.jit(init)(jax.random.key(0))
  model = Peer(state.params, config, blocks := stage.model.backbone.blocks)
  ours, our_loss, compiled = steps.start(stage, state, batch)
  theirs, their_loss = torch_side(model, config, batch, arguments.compiled)
  if not math.isclose(our_loss, their_loss, rel_tol=1e-3 if arguments.dtype == "float32" else 5e-2):
    raise SystemExit(f"error: the first losses differ, {our_loss} and {their_loss}: the models are not equal")
  found = machine.medians({"ours": ours, "torch": theirs}, arguments.repeats)

  print(f"{machine.describe_device('flax', 'optax', 'torch')}.")
  print(f"{side} x {side}, batch {config.batch_size}, {arguments.dtype}, blocks {blocks},")
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
