"""The sister system RARL, reconstructed: see `ops.rarl` and docs/systems.md."""

import functools
from collections.abc import Mapping
from typing import Any

from rmam_jax.heads import attending
from rmam_jax.heads.spec import HeadLoss, HeadSpec
from rmam_jax.ops import rarl
from rmam_jax.runtime.errors import UserError, check_name


def _build(model: Any, num_classes: int) -> attending.Attending:
  """The module: [B, H, W, C] -> T * k regions around centres that it samples in training."""
  section = model.rarl
  for field, allowed in (
    ("steps", section.steps >= 1),
    ("sizes", len(section.sizes) and min(section.sizes) > 0),
    ("aspects", len(section.aspects) and min(section.aspects) > 0),
    ("deviation", section.deviation > 0),
  ):
    if not allowed:
      raise UserError(f"model.rarl.{field} must be positive, got {section[field]}")
  options = attending.init_options(model, num_classes)
  init_params = functools.partial(rarl.init_attention, policy_scale=section.policy_scale, **options)
  attend = functools.partial(
    rarl.attend,
    steps=section.steps,
    shapes=rarl.region_shapes(section.sizes, section.aspects),
    deviation=section.deviation,
    squash_cell=model.squash_cell,
    **attending.sampling(model),
  )
  return attending.Attending(init_params, attend, samples=True)


def _loss(config: Any, classification: str, options: Mapping[str, Any]) -> HeadLoss:
  check_name("loss.rarl.baseline", config.loss.rarl.baseline, rarl.BASELINES)
  deviation = config.model.rarl.deviation
  by = {"deviation": deviation, "classification": classification, "options": options}
  return functools.partial(rarl.loss, **by, **config.loss.rarl)


SPEC = HeadSpec(
  "rarl",
  _build,
  samples=True,
  loss=_loss,
  takes_shares=False,  # its reward counts labels
  defaults={  # all of it reconstructed
    "model.rarl": {
      "steps": 5,  # T
      "sizes": (80 / 512, 160 / 512, 240 / 512),  # sides of square regions, shares of the image's
      "aspects": (2.0, 1.0, 0.5),  # width over height, at a size's area
      "deviation": 0.2,  # of a centre around its mean in training, in half images
      "policy_scale": 0.01,  # variance of the policy's first weights, relative to Xavier's
    },
    "loss.rarl": {  # in place of Eq. 13
      "policy_weight": 1.0,  # of the expected reward
      "baseline": "learned",  # or "batch", the other images' mean reward
      "baseline_weight": 1.0,  # of the learned baseline's squared error
    },
  },
)
