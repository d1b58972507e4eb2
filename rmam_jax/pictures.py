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


def draw_regions(
  path: pathlib.Path,
  image: np.ndarray,
  *,
  thetas: Sequence[np.ndarray],
  stride: int,
  align_corners: bool,
  title: str,
  verdicts: Sequence[Verdict],
) -> None:
  """One picture: the view with its regions in the colour of their step, and its labels beside it.

  Args:
    path: of the PNG.
    image: the view, uint8 [side, side, 3].
    thetas: [K, 4]; empty for a head that does not look.
    stride: of the feature map, in pixels.
    align_corners: the grid's convention.
    title: above the picture.
    verdicts: best first; present labels are bold.
  """
  from matplotlib import patches
  from matplotlib.figure import Figure

  side = image.shape[0]
  figure = Figure(figsize=(6.4, 4.4), dpi=100, layout="constrained")
  picture, legend = figure.subplots(1, 2, width_ratios=(4, 2))
  figure.suptitle(title, fontsize=10)
  picture.imshow(image, extent=(0, side, side, 0), interpolation="nearest")
  for step, theta in enumerate(thetas):
    colour = _colour(step)
    left, top, width, height = region_box(
      theta, cells=side // stride, stride=stride, align_corners=align_corners
    )
    picture.add_patch(patches.Rectangle((left, top), width, height, fill=False, ec="black", lw=3))
    picture.add_patch(patches.Rectangle((left, top), width, height, fill=False, ec=colour, lw=2))
    number = {"color": "black", "backgroundcolor": colour, "fontsize": 7, "weight": "bold"}
    picture.text(left, top, str(step + 1), va="top", clip_on=True, **number)
  picture.set(xlim=(0, side), ylim=(side, 0))
  for row, verdict in enumerate(verdicts):
    y = 0.95 - 0.095 * row
    colour = "white" if verdict.step is None else _colour(verdict.step)
    legend.add_patch(patches.Rectangle((0, y - 0.03), 0.12, 0.06, fc=colour, ec="black", lw=0.5))
    weight = "bold" if verdict.present else "normal"
    text = f"{verdict.label}  {verdict.probability:.2f}" + ("" if verdict.present else "  (absent)")
    legend.text(0.18, y, text, va="center", fontsize=10, weight=weight)
  for axes in (picture, legend):
    axes.set_axis_off()
  figure.savefig(path)


def _colour(step: int) -> str:
  return STEP_COLOURS[step % len(STEP_COLOURS)]
