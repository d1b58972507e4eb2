"""One training step, stage two with the paper's rule, against an equal PyTorch model written here, and its parts.

    python -m benchmarks.train_step --small                        # on a CPU
    python -m benchmarks.train_step                                # VGG-16, crops of 448, batch 16: for a GPU
    python -m benchmarks.train_step --dtype=bfloat16 --batches=16,64

The two have the same layers, losses (Eq. 7-14), Adam, parameters and batch; their first losses must agree before the
clock runs. Torch's images lie channels last, its Adam is the fused one on a GPU; `compiled` is `torch.compile` of its
model, neither of loss nor optimizer. The parts are programs of their own, so that they need not add up to the step.
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

# Of the first losses. With random weights gates are in the hundreds, where bfloat16 rounds to ones: whether two models
# are equal is seen in float32.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.15}


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
  section = config.stage_two
  rates = {"lr": section.learning_rate, "betas": (section.beta_1, section.beta_2)}
  optimizer = torch.optim.Adam(model.parameters(), **rates, fused=peer.DEVICE == "cuda")
  images, labels = (torch.tensor(batch[name], device=peer.DEVICE) for name in ("image", "labels"))
  images, forward = images.float(), torch.compile(model) if compiled else model

  def work():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(peer.DEVICE, torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
      scores, thetas = forward(images)
    loss = peer_loss(scores, thetas, labels, config.loss)
    loss.backward()
    optimizer.step()
    peer.wait()
    return loss.detach()

  return work, float(work())


def compare(config, side: int, peers: list[str], repeats: int) -> None:
  """Prints the table of one batch size: the step beside its peers."""
  stage, init, batch = steps.make(config, side)
  state = jax.jit(init)(jax.random.key(0))
  counted = steps.count(stage, state, batch)
  blocks, params = stage.model.backbone.blocks, jax.tree.map(np.array, state.params)
  sides, losses = {}, {}
  sides["ours, jitted"], our_loss = steps.start(stage, state, batch)
  for name in peers:
    model = Peer(params, config, blocks).to(peer.DEVICE)
    title = f"torch, {name}"
    sides[title], losses[title] = torch_side(model, config, batch, name == "compiled")
  for title, loss in losses.items():
    if not math.isclose(our_loss, loss, rel_tol=TOLERANCES[config.model.dtype]):
      raise SystemExit(f"error: the first losses differ, ours {our_loss} and {title} {loss}: the models are not equal")
  found = machine.medians(sides, repeats)
  ours = found["ours, jitted"]
  first = ", ".join(f"{loss:.4f}" for loss in (our_loss, *losses.values()))
  print(f"\n{side} x {side}, batch {config.batch_size}, {config.model.dtype}, blocks {blocks},")
  print(f"widths {config.model.x_width}; first losses {first}. Medians of {repeats}.\n")
  print(machine.header("", "ms a step", "images/s", "its time over ours"))
  for title, seconds in found.items():
    cells = f"{config.batch_size / seconds:,.0f}", f"{seconds / ours:.2f}"
    print(machine.row(title, machine.milliseconds(seconds), *cells))
  print(f"\nOurs, {roofline.by_operations(counted, ours, config.model.dtype)}.")


def split(config, side: int, repeats: int) -> None:
  """Prints a table of the step's parts."""
  stage, init, batch = steps.make(config, side)
  parts = steps.parts(stage, jax.jit(init)(jax.random.key(0)), batch)
  config.stage_two.moments = "bfloat16"
  stage, init, _ = steps.make(config, side)
  parts["optimizer, moments in bfloat16"] = steps.optimizer_part(stage, jax.jit(init)(jax.random.key(0)))
  found = machine.medians({name: part.work for name, part in parts.items()}, repeats)
  print("\n" + machine.header(f"parts, batch {config.batch_size}, {config.model.dtype}", "ms", "reached"))
  for name, part in parts.items():
    reached = [roofline.by_operations(part.operations, found[name], config.model.dtype)] if part.operations else []
    reached += [roofline.by_bytes(part.moved, found[name])] if part.moved else []
    print(machine.row(name, machine.milliseconds(found[name]), "; ".join(reached)), flush=True)


def main() -> None:
  parser = machine.make_parser(__doc__, repeats=5)
  parser.add_argument("--small", action="store_true", help="a thin model at 96 pixels, batch 8")
  parser.add_argument("--side", type=int, default=448, help="of the crops, in pixels")
  parser.add_argument("--batches", default="16", help="with commas between")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument(
    "--moments", default="float32", choices=("float32", "bfloat16"), help="of Adam, of the whole step"
  )
  parser.add_argument("--peers", default="eager,compiled", help="some of eager, compiled; empty: none")
  parser.add_argument("--no-parts", action="store_true")
  arguments = parser.parse_args()
  print(f"{machine.describe_device('flax', 'optax', 'torch')}.")
  for batch in map(int, arguments.batches.split(",")):
    config, side = voc.get_config(), arguments.side
    config.batch_size, config.model.dtype, config.stage_two.moments = batch, arguments.dtype, arguments.moments
    if arguments.small:
      config.update_from_flattened_dict(steps.SMALL)
      side = steps.SMALL_SIDE
    compare(config, side, [name for name in arguments.peers.split(",") if name], arguments.repeats)
    if not arguments.no_parts:
      split(config, side, arguments.repeats)
  print("\n" + roofline.ceilings(arguments.dtype))


if __name__ == "__main__":
  main()
