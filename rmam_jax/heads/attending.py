"""What heads have in common that look at regions: their fields, and the module around `ops.attention.attend`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from rmam_jax.heads.spec import HeadSpec
from rmam_jax.ops import attention, next_region
from rmam_jax.ops.attention import Attention


class Regions(nn.Module):
  """The fields of heads that look at regions and remember.

  Attributes:
    num_classes: L.
    region_size, pool, squash_cell, align_corners: as in `attention.attend`.
    x_width, lstm_width, z_width, forget_bias: as in `attention.init_attention`.
  """

  num_classes: int
  region_size: Sequence[int] = (7, 7)
  pool: int = 1
  squash_cell: bool = False
  align_corners: bool = True
  x_width: int = 4096
  lstm_width: int = 4096
  z_width: int = 4096
  forget_bias: float = 0.0

  def _parameters(self, init: Callable[..., Any], feature_map: jax.Array) -> Any:
    """The head's one parameter tree, by an initialiser that takes a key and what `attention.init_attention` does."""
    return self.param(
      "attention",
      lambda key: init(
        key,
        channels=feature_map.shape[-1],
        num_classes=self.num_classes,
        region_size=tuple(self.region_size),
        **{name: getattr(self, name) for name in ("x_width", "lstm_width", "z_width", "forget_bias")},
      ),
    )

  def _looking(self) -> dict[str, Any]:
    """Keyword arguments of the function that looks."""
    names = ("pool", "squash_cell", "align_corners")
    return {"region_size": tuple(self.region_size), **{name: getattr(self, name) for name in names}}


def options(model: Any) -> dict[str, Any]:
  """The fields of `Regions` from the `model` section of a configuration, but for the number of classes."""
  names = ("squash_cell", "align_corners", "x_width", "lstm_width", "z_width", "forget_bias")
  return {
    "region_size": tuple(model.region_size),
    "pool": model.region_pool,
    **{name: model[name] for name in names},
  }


class Attending(Regions, kw_only=True):
  """Holds the parameters of `attention.attend`.

  Attributes:
    num_regions: K.
    next_region: the rule, with all but its parameters, the map and its guide filled in.
    init_next_region: the rule's initialiser.
  """

  num_regions: int
  next_region: attention.NextRegion
  init_next_region: Callable[..., Any]

  @nn.compact
  def __call__(self, feature_map: jax.Array, **guide: jax.Array) -> Attention:
    """[B, H, W, C] -> K regions; `guide` is what the rule reads beside the map, e.g. `dense_scores` [B, H, W, L]."""
    init = functools.partial(attention.init_attention, init_next_region=self.init_next_region)
    return attention.attend(
      self._parameters(init, feature_map),
      feature_map,
      num_regions=self.num_regions,
      next_region=functools.partial(self.next_region, **guide),
      **self._looking(),
    )


def attending_spec(
  name: str,
  rule: Callable[[Any], attention.NextRegion],
  init: Callable[[Any], Callable[..., Any]] = lambda model: next_region.no_parameters,
  *,
  defaults: Mapping[str, Any] | None = None,
  **options_of_spec: Any,
) -> HeadSpec:
  """The spec of a head that looks by a rule.

  Args:
    name: of the head.
    rule: from the `model` section to the rule, all but its parameters, the map and its guide filled in.
    init: from the `model` section to the rule's initialiser.
    defaults: the fields of the section `model.NAME`.
    **options_of_spec: see `HeadSpec`.
  """

  def build(model: Any, num_classes: int) -> Attending:
    return Attending(
      num_classes=num_classes,
      num_regions=model.num_regions,
      next_region=rule(model),
      init_next_region=init(model),
      **options(model),
    )

  sections = {f"model.{name}": defaults} if defaults else {}
  return HeadSpec(name, build, defaults=sections, **options_of_spec)
