"""What heads that look at regions share: the module with their parameters, and the spec of those that follow a rule."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from rmam_jax.heads.spec import HeadSpec
from rmam_jax.ops import attention
from rmam_jax.ops.attention import Attention
from rmam_jax.ops.next_region import no_parameters
from rmam_jax.runtime.errors import UserError, check_name


class Attending(nn.Module):
  """Two pure functions as a module, whose one parameter tree is named "attention"."""

  init_params: Callable[..., Any]  # key, *, channels of the map -> the parameters
  attend: Callable[..., Attention]  # parameters, feature map [B, H, W, C] and the guide, by keyword -> `Attention`
  samples: bool = False  # whether `attend` takes a `key`, too: of the generator "look", or None where there is none

  @nn.compact
  def __call__(self, feature_map: jax.Array, **guide: jax.Array) -> Attention:
    """[B, H, W, C] and what the head is guided by, e.g. `dense_scores` [B, H, W, L] -> K regions."""
    params = self.param("attention", lambda key: self.init_params(key, channels=feature_map.shape[-1]))
    if self.samples:
      guide["key"] = self.make_rng("look") if self.has_rng("look") else None
    return self.attend(params, feature_map, **guide)


def check_prior(model: Any) -> None:
  """Raises UserError unless `model.prior` is a probability below 1."""
  if not 0 <= model.prior < 1:
    raise UserError(f"model.prior must be a probability below 1, or 0 for none, got {model.prior}")


def init_options(model: Any, num_classes: int) -> dict[str, Any]:
  """What the `model` section of a configuration says of `attention.init_attention`; UserError for what cannot be."""
  names = ("x_width", "lstm_width", "z_width", "forget_bias", "prior")
  fields = {name: model[name] for name in names}
  check_name("model.xavier", model.xavier, ("fan_avg", "fan_in"))
  check_prior(model)
  for name in ("x_width", "lstm_width", "z_width"):
    if fields[name] < 1:
      raise UserError(f"model.{name} must be at least 1, got {fields[name]}")
  return {"num_classes": num_classes, "region_size": tuple(model.region_size), "fan": model.xavier, **fields}


def sampling(model: Any) -> dict[str, Any]:
  """What the `model` section of a configuration says of `attention.region_features`; UserError for a pool below 1."""
  if model.region_pool < 1:
    raise UserError(f"model.region_pool must be at least 1, got {model.region_pool}")
  return {"region_size": tuple(model.region_size), "pool": model.region_pool, "align_corners": model.align_corners}


def attending_spec(
  name: str,
  rule: Callable[[Any], attention.NextRegion],
  init: Callable[[Any], Callable[..., Any]] = lambda model: no_parameters,
  *,
  defaults: Mapping[str, Any] | None = None,
  **others: Any,
) -> HeadSpec:
  """The spec of a head that looks by a rule of `ops.next_region`.

  From the `model` section, `rule` makes the rule, all but its parameters, the map and its guide filled in, and `init`
  its initialiser. `defaults` are the fields of the section `model.NAME`; the others are those of `HeadSpec`.
  """

  def build(model: Any, num_classes: int) -> Attending:
    next_region = rule(model)
    options = {"num_regions": model.num_regions, "squash_cell": model.squash_cell, **sampling(model)}

    def attend(params, feature_map, **guide):
      guided = functools.partial(next_region, **guide)
      return attention.attend(params, feature_map, next_region=guided, **options)

    init_params = functools.partial(attention.init_attention, init_next_region=init(model))
    return Attending(functools.partial(init_params, **init_options(model, num_classes)), attend)

  return HeadSpec(name, build, defaults={f"model.{name}": defaults} if defaults else {}, **others)
