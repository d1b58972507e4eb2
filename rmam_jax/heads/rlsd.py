"""The sister system RLSD, reconstructed: see `ops.rlsd` and docs/systems.md.

Its regions come from a region proposal network, which is trained before it and then frozen: `rlsd` takes one that
learned from another data set's boxes, `rlsd_ft_rpn` one that learned from the data set's own.
"""

import functools
from collections.abc import Mapping
from typing import Any

from rmam_jax.heads import attending
from rmam_jax.heads.spec import RPN, HeadLoss, HeadSpec
from rmam_jax.ops import rlsd
from rmam_jax.runtime.errors import UserError


def _build(model: Any, num_classes: int) -> attending.Attending:
  steps, order = model.rlsd.steps, tuple(model.rlsd.order)
  if steps < 1:
    raise UserError(f"model.rlsd.steps must be at least 1, got {steps}")
  if order and sorted(order) != list(range(num_classes)):
    raise UserError(f"model.rlsd.order must hold each of the {num_classes} classes' numbers once, got {order}")
  init_params = functools.partial(rlsd.init, **attending.init_options(model, num_classes))
  options = {"steps": steps, "squash_cell": model.squash_cell, **attending.sampling(model)}
  return attending.Attending(init_params, functools.partial(rlsd.recognize, **options))


def _loss(config: Any, classification: str, options: Mapping[str, Any]) -> HeadLoss:
  if classification not in ("euclidean", "sigmoid") or options:
    raise UserError(
      f"head {config.model.head!r} learns label sequences by a loss of its own: set loss.classification to 'sigmoid',"
      f" got {classification!r}, and leave loss.class_weights empty"
    )
  section = config.model.rlsd
  return rlsd.make_loss(steps=section.steps, order=tuple(section.order), squash_cell=config.model.squash_cell)


# DenseCap's anchor boxes: width and height in pixels of an image whose longer side has 720.
ANCHOR_SIZES = (
  *((45, 90), (90, 45), (64, 64), (90, 180), (180, 90), (128, 128)),
  *((181, 362), (362, 181), (256, 256), (362, 724), (724, 362), (512, 512)),
)

_DEFAULTS = {
  "model.rlsd": {  # reconstructed
    "steps": 10,  # labels that are read off an image's regions, END among them, at most
    "order": (),  # of the classes, by number: which is read first; empty: as they are numbered
  },
  "model.rpn": {  # as in DenseCap; see `ops.rpn`
    "anchor_sizes": ANCHOR_SIZES,  # (width, height) in pixels of the images
    "width": 256,  # filters of its 3x3 convolution
    "overlap": 0.7,  # IoU above which of two regions only the surer one is kept
  },
  "rpn": {  # its training, before the two stages
    "data": "",  # the data set whose boxes it learns; empty: the run's own, data.train and data.validation
    "train": "train",  # splits of another data set
    "validation": "validation",  # empty: the last epoch counts
    "epoch_size": 0,  # records in an epoch; 0: as many as the training split has
    "num_boxes": 64,  # of an image at most
    "positive": 0.7,  # IoU of an anchor box that stands for an object; the best one of each does, too
    "negative": 0.3,  # IoU below which an anchor box stands for nothing
    "samples": 256,  # anchor boxes of an image that are learned from, at most half of them positive
    "box_weight": 1.0,  # of the offsets' loss beside the confidence's; reconstructed
  },
}


def _check(config: Any, *, name: str, own: bool) -> None:
  source = config.rpn.data
  if config.data.name == "custom" and not source:
    raise UserError("rpn.data must name a data set with boxes, e.g. coco/2014, beside custom images")
  if own and source:
    raise UserError(
      f"the region proposal network of {name} learns from the run's own boxes: rpn.data must be empty, got {source!r}"
    )
  if not own and not source:
    raise UserError(
      f"the region proposal network of {name} learns from another data set's boxes: name it in rpn.data (own boxes:"
      " rlsd_ft_rpn)"
    )


SPECS = tuple(
  HeadSpec(
    name,
    _build,
    guide=RPN,
    samples=True,
    loss=_loss,
    takes_shares=False,
    defaults=_DEFAULTS,
    check=functools.partial(_check, name=name, own=own),
  )
  for name, own in (("rlsd", False), ("rlsd_ft_rpn", True))
)
