"""Networks from a feature map to scores and regions: one file and one `HeadSpec` a head, found by its name."""

from collections.abc import Iterable

from rmam_jax.heads import fixed_grid, pooling, proposals, rarl, recurrent, rlsd, saliency, whole_image
from rmam_jax.heads.spec import BOXES as BOXES
from rmam_jax.heads.spec import DENSE_SCORES as DENSE_SCORES
from rmam_jax.heads.spec import RPN as RPN
from rmam_jax.heads.spec import HeadLoss as HeadLoss
from rmam_jax.heads.spec import HeadSpec
from rmam_jax.runtime.errors import check_name

SPECS: dict[str, HeadSpec] = {}


def register(spec: HeadSpec) -> None:
  """Makes a head known under its name."""
  SPECS[spec.name] = spec


def get(name: str, field: str = "model.head") -> HeadSpec:
  """The head that a field names; raises UserError if there is none."""
  check_name(field, name, SPECS)
  return SPECS[name]


def unused_sections(used: Iterable[str]) -> tuple[str, ...]:
  """The beginnings, "SECTION.", of the fields that only other heads read than these, by name."""
  sections = {name: {f"{section}." for section in spec.defaults} for name, spec in SPECS.items()}
  return tuple(sorted(set().union(*sections.values()) - set().union(*(sections[name] for name in used))))


for _spec in (
  *(recurrent.SPEC, saliency.SPEC, rarl.SPEC, *rlsd.SPECS, fixed_grid.SPEC, proposals.SPEC),
  *(whole_image.SPEC, *pooling.SPECS),
):
  register(_spec)
