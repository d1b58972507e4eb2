"""Outputs about a split as something to look at: an image, its regions, what is said of it."""

import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from rmam_jax import heads
from rmam_jax.data import batches
from rmam_jax.data.splits import Split
from rmam_jax.evaluation import regions as regions_lib
from rmam_jax.evaluation.outputs import Outputs
from rmam_jax.evaluation.thresholds import Thresholds
from rmam_jax.ops import next_region
from rmam_jax.runtime.errors import UserError
from rmam_jax.visual import figures, gallery, pictures


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


class EvaluatedSplit(NamedTuple):
  """A test split and all that was answered about it."""

  config: Any
  head: str  # the name of the head that answered
  decision: Thresholds
  split: Split
  answers: Outputs


def panels(exhibit: EvaluatedSplit, indices: Iterable[int]) -> Iterator[pictures.Panel]:
  """The images at these positions of the split, one at a time."""
  config, head, decision, split, answers = exhibit
  probabilities = decision.probabilities(answers.scores)
  chosen = decision.chosen(answers.scores)
  looks = heads.get(head).looks
  boxes_NK4 = regions_lib.region_boxes(answers.thetas, config).transpose(1, 0, 2)
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


def draw_pictures(folder: pathlib.Path, exhibit: EvaluatedSplit) -> None:
  """Draws the first `evaluation.pictures` images, each by itself and the first six on one page, `overview.png`."""
  shown = exhibit.answers.readable[: exhibit.config.evaluation.pictures]
  if not len(shown):
    return
  folder.mkdir(parents=True, exist_ok=True)
  drawn = list(panels(exhibit, shown))
  for index, panel in zip(shown, drawn, strict=True):
    pictures.draw(folder / f"{index:04d}-{pathlib.PurePath(exhibit.split[index].id).stem}.png", [panel])
  pictures.draw(folder / "overview.png", drawn[:6], columns=3)


def write_gallery(path: pathlib.Path, exhibit: EvaluatedSplit, results: dict[str, Any], *, limit: int = 0) -> None:
  """Writes a page of the first images and all figures; see `gallery`.

  Args:
    path: of the HTML file; must not exist.
    exhibit: what was answered.
    results: what `results.json` holds.
    limit: show so many images; 0 shows all.
  """
  split, answers = exhibit.split, exhibit.answers
  shown = answers.readable[: limit or None]
  names = split.class_names
  gallery.write(
    path,
    tqdm.tqdm(panels(exhibit, shown), total=len(shown), desc="gallery", unit=" images", leave=False),
    results=results,
    class_curves=gallery.curves(
      names, [results["AP"][name] for name in names], answers.scores, answers.labels, answers.ignore
    ),
    num_shown=len(shown),
  )


FIGURE_1_IMAGES, FIGURE_5_IMAGES = 4, 6  # the paper shows two and five


def draw_figures(folder: pathlib.Path, exhibit: EvaluatedSplit) -> None:
  """Figures like the paper's 1 and 5, of the first images with two labels or more; Fig. 5 beside the fixed grid.

  Args:
    folder: a new folder for `figure_1.png` and `figure_5.png`.
    exhibit: what was answered.

  Raises:
    UserError: a head that does not look at regions, or no such image.
  """
  if not heads.get(exhibit.head).looks:
    raise UserError(f"head '{exhibit.head}' looks at no regions: there is nothing to draw")
  indices = np.flatnonzero((exhibit.answers.labels == 1).sum(axis=1) >= 2)[: max(FIGURE_1_IMAGES, FIGURE_5_IMAGES)]
  if not len(indices):
    raise UserError(f"{exhibit.split.name} holds no image with two labels: there is nothing to draw")
  config = exhibit.config
  drawn = list(panels(exhibit, indices))
  folder.mkdir(parents=True)
  figures.regions_and_labels(folder / "figure_1.png", drawn[:FIGURE_1_IMAGES])
  grid = regions_lib.region_boxes(
    next_region.grid_thetas(config.model.num_regions, config.model.fixed_grid.scale), config
  )
  others = [grid] * min(len(drawn), FIGURE_5_IMAGES)
  figures.regions_and_others(folder / "figure_5.png", drawn[:FIGURE_5_IMAGES], others, "a grid that never moves")
