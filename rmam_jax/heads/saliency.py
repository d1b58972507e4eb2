"""Our head: looks where the classes score highest on the map, and never returns to a place."""

import functools
from typing import Any

from rmam_jax.heads.attending import attending_spec
from rmam_jax.heads.spec import DENSE_SCORES
from rmam_jax.ops import next_region
from rmam_jax.runtime.errors import UserError


def _rule(model: Any) -> Any:
  for field in ("scale", "peak_width"):
    if model.saliency[field] <= 0:
      raise UserError(f"model.saliency.{field} must be above 0, got {model.saliency[field]}")
  return functools.partial(next_region.saliency, align_corners=model.align_corners, **model.saliency)


SPEC = attending_spec(
  "saliency",
  _rule,
  guide=DENSE_SCORES,
  defaults={"scale": 0.3, "inhibition": 1.2, "peak_width": 0.2},  # see `ops.next_region.saliency`
)
