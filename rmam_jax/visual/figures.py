"""Figures like the paper's: what was looked at for each label (Fig. 1), and how it compares (Fig. 5)."""

import pathlib
from collections.abc import Sequence

import numpy as np

from rmam_jax.visual import pictures

OURS = "#2ca02c"  # green and blue, as in Fig. 5
OTHERS = "#1f77b4"


def regions_and_labels(path: pathlib.Path, panels: Sequence[pictures.Panel]) -> None:
  """Like Fig. 1: a PNG of images with the regions that won the labels given; below them the labels, in the same colours."""
  from matplotlib.figure import Figure

  labels = [[verdict for verdict in panel.verdicts if verdict.chosen] for panel in panels]
  lines = max(1, *map(len, labels))
  figure = Figure(figsize=(3.2 * len(panels), 3.5 + 0.3 * lines), dpi=100, layout="constrained")
  axes = figure.subplots(2, len(panels), height_ratios=(3.5, 0.3 * lines), squeeze=False)
  for view, below, panel, verdicts in zip(*axes, panels, labels, strict=True):
    pictures.draw_image(view, panel.image, panel.title)
    below.set(xlim=(0, 1), ylim=(lines, 0))
    below.set_axis_off()
    for row, verdict in enumerate(verdicts):
      background = "#ffffff" if verdict.step is None else pictures.colour(verdict.step)
      pictures.draw_tag(below, 0.5, row + 0.5, verdict.label, background, size=10, va="center", ha="center")
    winners = sorted({verdict.step for verdict in verdicts if verdict.step is not None})
    pictures.draw_regions(view, panel.boxes[winners], list(map(pictures.colour, winners)))
  figure.savefig(path)


def regions_and_others(path: pathlib.Path, panels: Sequence[pictures.Panel], others: np.ndarray, name: str) -> None:
  """Like Fig. 5: a PNG of all regions of each image, in green, above other regions for the same image, in blue.

  `others` are [len(panels), M, 4] of (top, left, bottom, right) as shares of the images, `name` says what they are.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(2.6 * len(panels), 5.8), dpi=100, layout="constrained")
  rows = figure.subplots(2, len(panels), squeeze=False)
  for axes, regions, colour in zip(rows, ([panel.boxes for panel in panels], others), (OURS, OTHERS), strict=True):
    for view, panel, boxes in zip(axes, panels, regions, strict=True):
      pictures.draw_image(view, panel.image, panel.title if colour == OURS else "")
      pictures.draw_regions(view, boxes, [colour] * len(boxes))
  figure.suptitle(f"green: regions looked at; blue: {name}", fontsize=10)
  figure.savefig(path)
