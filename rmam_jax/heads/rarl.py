"""The sister system RARL, reconstructed: see `ops.rarl` and docs/systems.md."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from rmam_jax.heads import attending
from rmam_jax.heads.spec import HeadLoss, HeadSpec
from rmam_jax.ops import rarl
from rmam_jax.ops.attention import Attention
from rmam_jax.runtime.errors import UserError, check_name


class RARL(attending.Regions, kw_only=True):
  """Holds the parameters of `rarl.attend`; samples where it looks if it is given the generator "look".

  Attributes:
    steps, shapes, deviation: as in `rarl.attend`; the shapes as a tuple of pairs.
    policy_scale: as in `rarl.init_attention`.
  """

  steps: int
  shapes: Sequence[tuple[float, float]]
  deviation: float
  policy_scale: float = 0.01

  @nn.compact
  def __call__(self, feature_map: jax.Array) -> Attention:
    """[B, H, W, C] -> T * k regions; their memory is a `rarl.Rollout`."""
    init = functools.partial(rarl.init_attention, policy_scale=self.policy_scale)
    return rarl.attend(
      self._parameters(init, feature_map),
      feature_map,
      steps=self.steps,
      shapes=np.asarray(self.shapes, np.float32),
      deviation=self.deviation,
      key=self.make_rng("look") if self.has_rng("look") else None,
      **self._looking(),
    )


def _build(model: Any, num_classes: int) -> RARL:
  section = model.rarl
  for field, allowed in (
    ("steps", section.steps >= 1),
    ("sizes", len(section.sizes) and min(section.sizes) > 0),
    ("aspects", len(section.aspects) and min(section.aspects) > 0),
    ("deviation", section.deviation > 0),
  ):
    if not allowed:
      raise UserError(f"model.rarl.{field} must be positive, got {section[field]}")
  return RARL(
    num_classes=num_classes,
    steps=section.steps,
    shapes=tuple(map(tuple, rarl.region_shapes(section.sizes, section.aspects).tolist())),
    deviation=section.deviation,
    policy_scale=section.policy_scale,
    **attending.options(model),
  )


def _loss(config: Any, classification: str) -> HeadLoss:
  check_name("loss.rarl.baseline", config.loss.rarl.baseline, rarl.BASELINES)
  deviation = config.model.rarl.deviation
  return functools.partial(rarl.loss, deviation=deviation, classification=classification, **config.loss.rarl)


SPEC = HeadSpec(
  "rarl",
  _build,
  samples=True,
  loss=_loss,
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
