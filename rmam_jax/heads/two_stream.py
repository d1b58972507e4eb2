"""Our head for photographs: fixed regions weighed by two streams, what a dense score attends to, a region for each likely
class."""

import functools
from collections.abc import Mapping
from typing import Any

from rmam_jax.heads import attending, pooling
from rmam_jax.heads.spec import HeadLoss, HeadSpec
from rmam_jax.ops import losses, two_stream
from rmam_jax.runtime.errors import UserError


def _build(model: Any, num_classes: int) -> attending.Attending:
  section = model.two_stream
  for field, allowed, wanted in (
    ("sizes", len(section.sizes) and 0 < min(section.sizes) <= max(section.sizes) <= 1, "shares above 0 and at most 1"),
    ("step", section.step > 0, "above 0"),
    ("most_oblong", section.most_oblong >= 1, "at least 1"),
    ("surround", section.surround >= 1, "at least 1"),
    ("power", section.power > 0, "above 0"),
    ("threshold", 0 < section.threshold < 1, "above 0 and below 1"),
  ):
    if not allowed:
      raise UserError(f"model.two_stream.{field} must be {wanted}, got {section[field]}")
  options = {
    "num_regions": model.num_regions,
    "align_corners": model.align_corners,
    "residual": pooling.csra_options(model),
    **section,
  }
  attending.check_prior(model)
  init_params = functools.partial(two_stream.init, num_classes=num_classes, prior=model.prior)
  return attending.Attending(init_params, functools.partial(two_stream.recognize, **options))


def _loss(config: Any, classification: str, options: Mapping[str, Any]) -> HeadLoss:
  del config
  if classification not in losses.SIGMOIDS:
    raise UserError(
      f"head 'two_stream' learns log-odds: set loss.classification to 'sigmoid', or another of"
      f" {', '.join(losses.SIGMOIDS)}, got {classification!r}"
    )
  return functools.partial(two_stream.loss, classification=classification, options=options)


SPEC = HeadSpec(
  "two_stream",
  _build,
  loss=_loss,
  class_features=lambda attention: attention.memory.features,
  defaults={
    "model.two_stream": {
      # The fixed regions; see `ops.two_stream.fixed_regions`.
      "sizes": (0.3, 0.5, 0.7, 0.85, 1.0),
      "step": 0.2,
      "most_oblong": 2.6,
      "surround": 1.8,  # a region is weighed against what is around it, so many times its size; 1: against nothing
      # How a class's region is read off their weights; see `ops.two_stream.recognize`.
      "power": 0.15,
      "threshold": 0.35,
    },
    **pooling.CSRA_FIELDS,
  },
)
