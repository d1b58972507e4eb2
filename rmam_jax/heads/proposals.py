"""The rival of Table 3: object proposals that come with the images, in place of the spatial transformer."""

import functools
from typing import Any

from rmam_jax.heads.attending import attending_spec
from rmam_jax.heads.spec import BOXES
from rmam_jax.ops import next_region
from rmam_jax.runtime.errors import UserError


def _check(config: Any) -> None:
  data, regions = config.data, config.model.num_regions
  if not data.proposals or data.num_proposals != regions:
    raise UserError(
      f"head 'proposals' looks at proposals: set data.proposals, and data.num_proposals to the {regions} of"
      " model.num_regions"
    )
  if data.edge_model and data.proposals != "edge_boxes":
    raise UserError(f"data.edge_model is for data.proposals=edge_boxes, got {data.proposals!r}")


SPEC = attending_spec(
  "proposals",
  lambda model: functools.partial(next_region.proposals, align_corners=model.align_corners),
  guide=BOXES,
  check=_check,
)
