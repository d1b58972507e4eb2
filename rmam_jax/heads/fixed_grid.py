"""A control: regions that never move, the centre and the anchor points of Sec. 4.2."""

import functools

from rmam_jax.heads.attending import attending_spec
from rmam_jax.ops import next_region

SPEC = attending_spec(
  "fixed_grid",
  lambda model: functools.partial(next_region.fixed_grid, num_regions=model.num_regions, **model.fixed_grid),
  defaults={"scale": 0.5},
)
