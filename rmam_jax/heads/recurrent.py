"""The paper's head: the update rule of Eq. 5."""

import functools
from typing import Any

from rmam_jax.heads.attending import attending_spec
from rmam_jax.ops import next_region
from rmam_jax.runtime.errors import UserError


def _rule(model: Any) -> Any:
  origins = next_region.grid_thetas(model.num_regions)[:, 2:] if model.recurrent.anchored else None
  return functools.partial(next_region.recurrent, origins=origins, gain=model.recurrent.gain)


def _init(model: Any) -> Any:
  section = model.recurrent
  if len(section.bias) != 4:
    raise UserError(f"model.recurrent.bias must hold 4 numbers, the first M, got {tuple(section.bias)}")
  if section.weight_scale < 0:
    raise UserError(f"model.recurrent.weight_scale must be 0 or more, got {section.weight_scale}")
  if section.gain <= 0:
    raise UserError(f"model.recurrent.gain must be above 0, got {section.gain}")
  options = {
    "gain": section.gain,
    "bias": tuple(section.bias),
    "weight_scale": section.weight_scale,
    "fan": model.xavier,
  }
  return functools.partial(next_region.init_recurrent, **options)


SPEC = attending_spec(
  "recurrent",
  _rule,
  _init,
  defaults={
    "bias": (1.0, 1.0, 0.0, 0.0),  # the first M: the identity
    "weight_scale": 0.01,  # variance, relative to Xavier's
    "gain": 1.0,  # below 1, W_zm and b_m are learned so much slower; 1e-6: the regions stay as they begin
    "anchored": False,  # M corrects the centre and the anchor points, which the paper only draws it to
  },
  most_regions=lambda model: model.num_regions if model.recurrent.anchored else None,
)
