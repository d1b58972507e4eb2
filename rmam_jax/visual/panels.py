"""Panels of an evaluated split: an image, its regions, and what the recognizer says of it."""

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from rmam_jax import heads
from rmam_jax.data import batches
from rmam_jax.data.splits import Split
from rmam_jax.evaluation import views as views_lib
from rmam_jax.evaluation.calibration import Thresholds
from rmam_jax.evaluation.outputs import Outputs
from rmam_jax.ops import next_region
from rmam_jax.runtime import progress
from rmam_jax.runtime.errors import UserError
from rmam_jax.visual import gallery, pictures

FIGURE_1_IMAGES, FIGURE_5_IMAGES = 4, 6  # the paper shows two and five
MOST_LETTERS = 60  # of an image's name in that of its picture: a file system takes 255 bytes


class EvaluatedSplit(NamedTuple):
  """A test split and all outputs for it."""

  config: Any
  head: str  # the name of the head that was evaluated
  thresholds: Thresholds
  split: Split
  outputs: Outputs


def panels(evaluated: EvaluatedSplit, indices: Iterable[int]) -> Iterator[pictures.Panel]:
  """The images at these positions of the split, one at a time: labels present or given, the surest first."""
  config, head, thresholds, split, outputs = evaluated
  probabilities, chosen = thresholds.probabilities(outputs.scores), thresholds.chosen(outputs.scores)
  present = outputs.labels == 1
  shown = (chosen | present) & ~outputs.ignore
  looks = heads.get(head).looks
  boxes_NK4 = views_lib.region_boxes(outputs.thetas, config).transpose(1, 0, 2)
  winners = outputs.winners if looks else np.full(outputs.scores.shape, None)
  for index in indices:
    image, record = batches.read_image(split, index)
    columns = (array[index].tolist() for array in (probabilities, chosen, present, winners))
    verdicts = list(map(pictures.Verdict, split.class_names, *columns))
    yield pictures.Panel(
      title=f"{record.id}: {', '.join(np.array(split.class_names)[record.labels == 1])}",
      image=image,
      boxes=boxes_NK4[index] if looks else np.zeros((0, 4)),
      verdicts=[verdicts[c] for c in np.argsort(-probabilities[index], kind="stable") if shown[index, c]],
    )


def draw_pictures(folder: pathlib.Path, evaluated: EvaluatedSplit) -> None:
  """Draws the first `evaluation.pictures` images, each by itself and the first six on one page, `overview.png`."""
  shown = evaluated.outputs.readable[: evaluated.config.evaluation.pictures]
  if not len(shown):
    return
  folder.mkdir(parents=True, exist_ok=True)
  drawn = list(panels(evaluated, shown))
  for index, panel in zip(shown, drawn, strict=True):
    stem = pathlib.PurePath(evaluated.outputs.ids[index]).stem[:MOST_LETTERS]
    pictures.draw(folder / f"{index:04d}-{stem}.png", [panel])
  pictures.draw(folder / "overview.png", drawn[:6], columns=3)


def write_gallery(path: pathlib.Path, evaluated: EvaluatedSplit, results: dict[str, Any], *, limit: int = 0) -> None:
  """Writes a new page of the first `limit` images, or all for 0, with the figures of results.json; see `gallery`."""
  outputs, names = evaluated.outputs, evaluated.split.class_names
  shown = outputs.readable[: limit or None]
  thresholds, precisions = evaluated.thresholds, [results["AP"][name] for name in names]
  log_odds = thresholds.log_odds(outputs.scores)
  gallery.write(
    path,
    progress.bar(panels(evaluated, shown), "gallery", len(shown), unit=" images", leave=False),
    results=results,
    class_curves=gallery.curves(names, precisions, log_odds, outputs.labels, outputs.ignore),
    answers=gallery.Answers(
      thresholds.probabilities(outputs.scores),
      thresholds.chosen(outputs.scores),
      outputs.labels,
      outputs.ignore,
      thresholds.as_probabilities(len(names)),
    ),
    num_shown=len(shown),
  )


def draw_figures(folder: pathlib.Path, evaluated: EvaluatedSplit) -> None:
  """Draws `figure_1.png` and `figure_5.png`, of the first images with two labels or more, in a new folder.

  Fig. 5 has the fixed grid beside ours. Raises a UserError for a head without regions, and if there is no such image.
  """
  config, head, _, split, outputs = evaluated
  if not heads.get(head).looks:
    raise UserError(f"head '{head}' looks at no regions: there is nothing to draw")
  indices = np.flatnonzero((outputs.labels == 1).sum(axis=1) >= 2)[: max(FIGURE_1_IMAGES, FIGURE_5_IMAGES)]
  if not len(indices):
    raise UserError(f"{split.name} holds no image with two labels: there is nothing to draw")
  drawn = list(panels(evaluated, indices))
  folder.mkdir(parents=True)
  pictures.regions_and_labels(folder / "figure_1.png", drawn[:FIGURE_1_IMAGES])
  thetas = next_region.grid_thetas(config.model.num_regions, config.model.fixed_grid.scale)
  others = [views_lib.region_boxes(thetas, config)] * min(len(drawn), FIGURE_5_IMAGES)
  pictures.regions_and_others(folder / "figure_5.png", drawn[:FIGURE_5_IMAGES], others, "a grid that never moves")
