"""Answers about a split as something to look at: an image, its regions, what is said of it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rmam_jax import pictures
from rmam_jax.data import batches
from rmam_jax.data.records import Split
from rmam_jax.evaluation import regions
from rmam_jax.evaluation.answers import Answers
from rmam_jax.evaluation.decisions import Decision
from rmam_jax.models import recognizer


def verdicts(
  class_names: Sequence[str],
  probabilities: np.ndarray,
  chosen: np.ndarray,
  *,
  winners: np.ndarray | None,
  present: np.ndarray | None = None,
  ignore: np.ndarray | None = None,
) -> list[pictures.Verdict]:
  """What to say of one image: its labels and those it was given, the surest first.

  Args:
    class_names: L names.
    probabilities: [L].
    chosen: bool [L], the labels that it was given.
    winners: int [L], the region that won each; None for a head that does not look.
    present: bool [L], its labels; None where nobody knows.
    ignore: bool [L], where a label is neither; left out.
  """
  shown = chosen if present is None else chosen | present
  if ignore is not None:
    shown = shown & ~ignore
  return [
    pictures.Verdict(
      label=class_names[c],
      probability=float(probabilities[c]),
      chosen=bool(chosen[c]),
      present=None if present is None else bool(present[c]),
      step=None if winners is None else int(winners[c]),
    )
    for c in np.argsort(-probabilities, kind="stable")
    if shown[c]
  ]


def panels(
  config: Any, head: str, decision: Decision, split: Split, answers: Answers, indices: Iterable[int]
) -> Iterator[pictures.Panel]:
  """The images of a split at these positions, one at a time.

  Args:
    config: the configuration.
    head: the name of the head that answered.
    decision: how labels are chosen.
    split: the records.
    answers: about all of them.
    indices: positions in the split.
  """
  probabilities = decision.probabilities(answers.pooled)
  chosen = decision.chosen(probabilities)
  looks = recognizer.looks(head)
  boxes_NK4 = regions.region_boxes(answers.thetas, config).transpose(1, 0, 2)
  for index in indices:
    record = split[index]
    yield pictures.Panel(
      title=f"{record.id}: {', '.join(np.array(split.class_names)[record.labels == 1])}",
      image=batches.decode_image(record.image, f"{split.name}, {record.id}"),
      boxes=boxes_NK4[index] if looks else np.zeros((0, 4)),
      verdicts=verdicts(
        split.class_names,
        probabilities[index],
        chosen[index],
        winners=answers.winners[index] if looks else None,
        present=answers.labels[index] == 1,
        ignore=answers.ignore[index],
      ),
    )
