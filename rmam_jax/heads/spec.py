"""What a head says of itself: all that the other rooms ask about it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax

from rmam_jax.ops.attention import Attention

DENSE_SCORES, BOXES, RPN = "dense_scores", "boxes", "rpn"


class HeadLoss(Protocol):
  """A head's own loss, in place of Eq. 14.

  Its attention, labels [B, L], ignore [B, L] and mask [B] -> the loss, a mean over the real examples, and its terms by
  name, which become metrics. What it needs beside scores and thetas is in `Attention.memory`.
  """

  def __call__(
    self, attention: Attention, labels: jax.Array, ignore: jax.Array, mask: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]: ...


@dataclasses.dataclass(frozen=True)
class HeadSpec:
  """A network from a feature map [B, H, W, C] to an `Attention`.

  Attributes:
    name: what `model.head` says.
    build: the `model` section of a configuration and L, the number of classes -> the module. In training it may sample
      from the generator "look", where `self.has_rng("look")`.
    looks: whether it looks at K regions; else it is a control that sees the whole image as one.
    guide: what it is given beside the map, as a keyword: `DENSE_SCORES` [B, H, W, L] of an auxiliary head; `BOXES`
      [B, K, 4] that come with the images; `RPN`, boxes of a region proposal network that is trained before; or "".
    gives_dense_scores: whether its `Attention.memory` are such scores.
    samples: whether it samples in training: what a batch teaches it then depends on how the batch is cut into parts.
    loss: from the configuration, the name of a classification loss (`ops.losses.CLASSIFICATION_LOSSES`) and that one's
      keyword arguments to the head's own loss; None: Eq. 14. Raises UserError for a classification loss that has no
      meaning for the head.
    class_features: its attention -> features [B, L, F] for the SVM of each class by itself; None: it has none.
    takes_shares: whether its loss has a meaning for labels between 0 and 1, which mixed images have.
    defaults: its own sections of the configuration, by dotted name. One without a dot is a training with a schedule.
    most_regions: of the `model` section: how many regions it can look at after training; None: any number.
    check: refuses a configuration that this head cannot be trained with.
  """

  name: str
  build: Callable[[Any, int], nn.Module]
  looks: bool = True
  guide: str = ""
  gives_dense_scores: bool = False
  samples: bool = False
  loss: Callable[[Any, str, Mapping[str, Any]], HeadLoss] | None = None
  class_features: Callable[[Attention], jax.Array] | None = None
  takes_shares: bool = True
  defaults: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  most_regions: Callable[[Any], int | None] = lambda model: None
  check: Callable[[Any], None] = lambda config: None
