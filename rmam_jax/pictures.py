"""Test images with the regions that the recogniser looked at."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rmam_jax import geometry

# Okabe and Ito's colours, told apart by most colour-blind readers; one for each step, again from the start after eight.
STEP_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff")


def region_box(
  theta: np.ndarray, *, cells: int, stride: int, align_corners: bool = True
) -> tuple[float, float, float, float]:
  """What a region samples, in pixels of the view: (left, top, width, height).

  The box runs between its coordinates -1 and 1, by the grid's own convention; a mirrored region has the same box.

  Args:
    theta: [4].
    cells: side of the feature map.
    stride: pixels in a cell.
    align_corners: the grid's convention.
  """
  s_x, s_y, t_x, t_y = theta
  corners = np.array([[t_x - abs(s_x), t_y - abs(s_y)], [t_x + abs(s_x), t_y + abs(s_y)]])
  pixels = geometry.map_to_pixels(corners, cells, stride, align_corners=align_corners)
  (left, top), (right, bottom) = np.asarray(pixels)
  return left, top, right - left, bottom - top


class Verdict(NamedTuple):
  """What the recogniser says of one label of one image."""

  label: str
  probability: float
  present: bool
  step: int | None  # the region that won it, from 0; None for a head that does not look


MOST_VERDICTS = 10  # lines beside a picture


class Panel(NamedTuple):
  """One image to draw."""

  title: str
  image: np.ndarray  # the view, uint8 [side, side, 3]
  thetas: Sequence[np.ndarray]  # [K, 4]; empty for a head that does not look
  verdicts: Sequence[Verdict]  # best first


def draw(
  path: pathlib.Path, panels: Sequence[Panel], *, stride: int, align_corners: bool = True, columns: int = 1
) -> None:
  """A PNG of one panel or many: the view with its regions, numbered and coloured by step, its labels beside it.

  A label has the colour of the step that won it; present labels are bold.

  Args:
    path: of the PNG.
    panels: in reading order.
    stride: of the feature map, in pixels.
    align_corners: the grid's convention.
    columns: panels side by side.
  """
  from matplotlib.figure import Figure

  columns = min(columns, len(panels))
  rows = -(-len(panels) // columns)
  figure = Figure(figsize=(5.6 * columns, 4.2 * rows), dpi=100, layout="constrained")
  axes = figure.subplots(rows, 2 * columns, width_ratios=(4, 1.8) * columns, squeeze=False)
  for each in axes.flat:
    each.set_axis_off()
  for index, panel in enumerate(panels):
    row, column = divmod(index, columns)
    _draw_view(axes[row, 2 * column], panel, stride, align_corners)
    _draw_verdicts(axes[row, 2 * column + 1], panel.verdicts)
  figure.savefig(path)


def _draw_view(axes, panel: Panel, stride: int, align_corners: bool) -> None:
  from matplotlib.patches import Rectangle

  side = panel.image.shape[0]
  axes.set_title(panel.title, fontsize=10)
  axes.imshow(panel.image, extent=(0, side, side, 0), interpolation="nearest")
  for step, theta in enumerate(panel.thetas):
    left, top, width, height = region_box(theta, cells=side // stride, stride=stride, align_corners=align_corners)
    for colour, line in (("black", 3), (_colour(step), 2)):
      axes.add_patch(Rectangle((left, top), width, height, fill=False, ec=colour, lw=line))
    number = {"color": "black", "backgroundcolor": _colour(step), "fontsize": 7, "weight": "bold"}
    axes.text(left, top, str(step + 1), va="top", clip_on=True, **number)
  axes.set(xlim=(0, side), ylim=(side, 0))


def _draw_verdicts(axes, verdicts: Sequence[Verdict]) -> None:
  from matplotlib.patches import Rectangle

  for row, verdict in enumerate(verdicts[:MOST_VERDICTS]):
    y = 0.95 - 0.095 * row
    colour = "white" if verdict.step is None else _colour(verdict.step)
    axes.add_patch(Rectangle((0, y - 0.03), 0.12, 0.06, fc=colour, ec="black", lw=0.5))
    weight = "bold" if verdict.present else "normal"
    absent = "" if verdict.present else "  (absent)"
    axes.text(0.18, y, f"{verdict.label}  {verdict.probability:.2f}{absent}", va="center", fontsize=10, weight=weight)


def _colour(step: int) -> str:
  return STEP_COLOURS[step % len(STEP_COLOURS)]
