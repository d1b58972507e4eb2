"""Networks from a feature map to scores and regions: one file and one `HeadSpec` for each head, found by its name."""

from collections.abc import Iterable

from rmam_jax.heads import fixed_grid, pooling, proposals, rarl, recurrent, rlsd, saliency, two_stream, whole_image
from rmam_jax.heads.spec import BOXES, DENSE_SCORES, RPN, HeadLoss, HeadSpec
from rmam_jax.runtime.errors import check_name

__all__ = ["BOXES", "DENSE_SCORES", "RPN", "SPECS", "HeadLoss", "HeadSpec", "get", "register", "unused_sections"]

_WAYS_OF_LOOKING = (
  recurrent.SPEC,
  saliency.SPEC,
  two_stream.SPEC,
  rarl.SPEC,
  *rlsd.SPECS,
  fixed_grid.SPEC,
  proposals.SPEC,
)
_CONTROLS = (whole_image.SPEC, *pooling.SPECS)
SPECS = {spec.name: spec for spec in (*_WAYS_OF_LOOKING, *_CONTROLS)}


def register(spec: HeadSpec) -> None:
  """Makes a head known under its name."""
  SPECS[spec.name] = spec


def get(name: str, field: str = "model.head") -> HeadSpec:
  """The head that a field names; raises UserError if there is none."""
  check_name(field, name, SPECS)
  return SPECS[name]


def unused_sections(used: Iterable[str]) -> tuple[str, ...]:
  """The beginnings, "SECTION.", of the configuration's fields that only other heads than these read."""

  def sections(specs: Iterable[HeadSpec]) -> set[str]:
    return {f"{section}." for spec in specs for section in spec.defaults}

  return tuple(sorted(sections(SPECS.values()) - sections(map(get, used))))
