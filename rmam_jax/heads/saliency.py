"""Our head: looks where the classes score highest on the map, and never returns to a place."""

import functools

from rmam_jax.heads.attending import attending_spec
from rmam_jax.heads.spec import DENSE_SCORES
from rmam_jax.ops import next_region

SPEC = attending_spec(
  "saliency",
  lambda model: functools.partial(next_region.saliency, align_corners=model.align_corners, **model.saliency),
  guide=DENSE_SCORES,
  defaults={"scale": 0.3, "inhibition": 1.2, "peak_width": 0.2},  # see `ops.next_region.saliency`
)
