"""How a region proposal network is trained: on which boxes, by what loss, and how many objects it then finds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rmam_jax import heads
from rmam_jax.data import batches
from rmam_jax.data.splits import Split
from rmam_jax.heads.rpn import Proposed, RegionProposalNetwork
from rmam_jax.ops import boxes as boxes_lib
from rmam_jax.ops import losses, rpn
from rmam_jax.runtime import mesh as mesh_lib

NAME = "rpn"  # of the training, of its checkpoints, and of its part of a recognizer's parameters
FOUND = 0.5  # IoU from which on a region has found an object


def config_of(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The run's configuration with the data that its region proposal network learns from: another set's, or its own.

  Their objects' boxes come as proposals. Raises UserError if the head cannot learn from these data.
  """
  heads.get(config.model.head).check(config)
  section, own = config.rpn, config.copy_and_resolve_references()
  if section.data:
    own.data.update(name=section.data, train=section.train, validation=section.validation, expected=())
  own.data.proposals, own.data.num_proposals = "objects", section.num_boxes
  own.epoch_size = section.epoch_size
  return own


def objective(
  found: Proposed, labels: jax.Array, ignore: jax.Array, mask: jax.Array, *, box_weight: float, **limits: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss and its terms: `rpn.layer_loss` of each image, the mean over the real ones; it does not need the labels."""

  def each(scores, offsets, boxes, noise):
    return rpn.layer_loss(scores, offsets, found.anchors, boxes, noise, **limits)

  terms = jax.vmap(each)(found.scores, found.offsets, jnp.clip(found.boxes, 0, 1), found.noise)
  confidence, box = (losses.batch_mean(term, mask) for term in terms)
  loss = confidence + box_weight * box
  return loss, {"loss": loss, "confidence": confidence, "box": box}


class Forward(NamedTuple):
  """A jitted program: parameters, images [B, height, width, 3] -> regions [B, K, 4]; and the sharding of its images."""

  program: Callable[[Any, jax.Array], jax.Array]
  sharding: jax.sharding.NamedSharding


def make_forward(model: RegionProposalNetwork, mesh: jax.sharding.Mesh) -> Forward:
  """The regions of images that are shared out over the mesh."""
  replicated, by_example = mesh_lib.replicated(mesh), mesh_lib.by_example(mesh)
  program = jax.jit(
    lambda params, images: model.apply({"params": params}, images, method="regions"),
    in_shardings=(replicated, by_example),
    out_shardings=replicated,
  )
  return Forward(program, by_example)


def recall(forward: Forward, params: Any, split: Split, *, data: Any, batch_size: int) -> float:
  """The share of the objects of a split, as far as the centre view shows them, that a region has found.

  `split` has boxes as proposals and `data` is that section, both from `config_of`; `batch_size` is a multiple of the
  number of devices.
  """
  found = objects = 0
  sizes = {"image_size": data.image_size, "crop_size": data.crop_size}
  options = {"process_index": jax.process_index(), "process_count": jax.process_count(), "corrupt": data.corrupt}
  stream = batches.evaluation_batches(split, range(len(split)), batch_size=batch_size, **sizes, **options)
  offset = batches.centre_offset(**sizes)
  for images, _, records, _ in stream:
    shared_out = jax.make_array_from_process_local_data(forward.sharding, images)
    regions = np.asarray(jax.device_get(forward.program(params, shared_out)))
    for record, each in zip(records, regions, strict=False):  # the last batch is padded
      shown = boxes_lib.clip_boxes(batches.view_boxes(record.boxes, *sizes.values(), offset, offset, False))
      shown = shown[np.prod(shown[:, 2:] - shown[:, :2], axis=1) > 0]
      found += (boxes_lib.box_iou(shown, each).max(axis=1) >= FOUND).sum()
      objects += len(shown)
  return float(found / max(objects, 1))


def validate(*arguments: Any, **options: Any) -> dict[str, float]:
  """`recall`, and the share of the objects that no region finds, by which the best epoch is chosen."""
  found = recall(*arguments, **options)
  return {"validation_loss": 1 - found, "validation_recall": found}
