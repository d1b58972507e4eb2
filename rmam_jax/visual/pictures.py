"""Images with the regions that the recognizer looked at, what it says of them, and figures like the paper's."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rmam_jax.ops import boxes as boxes_lib
from rmam_jax.visual import fonts

# Okabe and Ito's colours, told apart by most colour-blind readers; one for each step, again from the start after eight.
STEP_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff")
LONGEST_SIDE = 1024  # pixels of an image that a panel can show
LONGEST_TITLE = 52  # characters
MOST_VERDICTS = 10  # lines beside a picture
MOST_REGIONS = 16  # that a picture shows all of; of more, those that won a label beside it
OURS, OTHERS = "#2ca02c", "#1f77b4"  # green and blue, as in Fig. 5


class Verdict(NamedTuple):
  """What the recognizer says of one label of one image."""

  label: str
  probability: float
  chosen: bool  # whether the image is given this label
  present: bool | None  # None where nobody knows
  step: int | None  # the region that won it, from 0; None for a head that does not look


class Panel(NamedTuple):
  """One image to draw."""

  title: str
  image: np.ndarray  # uint8 [height, width, 3], of any size
  boxes: np.ndarray  # [K, 4] of (top, left, bottom, right) as shares of the image; [0, 4] for a head that does not look
  verdicts: Sequence[Verdict]  # the surest first


def colour(step: int) -> str:
  """Of a step, from 0."""
  return STEP_COLOURS[step % len(STEP_COLOURS)]


def draw(path: pathlib.Path, panels: Sequence[Panel], *, columns: int = 1) -> None:
  """A PNG of panels in reading order: each image with its regions, coloured by step, and its labels beside it.

  Regions that won none of the given labels are thin. Present labels are bold. The picture's size does not depend on the
  images'.
  """
  _figure(panels, columns).savefig(path)


def pixels(panel: Panel) -> np.ndarray:
  """A panel drawn as `draw` does, uint8 [height, width, 3], the same size for all."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas = FigureCanvasAgg(_figure([panel], 1))
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure(panels: Sequence[Panel], columns: int):
  from matplotlib.figure import Figure

  columns = min(columns, len(panels))
  rows = -(-len(panels) // columns)
  width, height = 1 / columns, 1 / rows
  figure = Figure(figsize=(6.4 * columns, 4.6 * rows), dpi=100)
  for index, panel in enumerate(panels):
    row, column = divmod(index, columns)
    left, bottom = column * width, 1 - (row + 1) * height
    view = figure.add_axes((left + 0.02 * width, bottom + 0.02 * height, 0.66 * width, 0.90 * height))
    beside = figure.add_axes((left + 0.70 * width, bottom + 0.02 * height, 0.29 * width, 0.90 * height))
    _draw_image(view, panel.image, panel.title)
    steps = list(range(len(panel.boxes)))
    if len(steps) > MOST_REGIONS:
      steps = sorted({verdict.step for verdict in panel.verdicts[:MOST_VERDICTS]})
    won = {verdict.step for verdict in panel.verdicts if verdict.chosen}
    for thin, some in ((True, [step for step in steps if step not in won]), (False, sorted(won.intersection(steps)))):
      _draw_regions(view, panel.boxes[some], list(map(colour, some)), numbers=[step + 1 for step in some], thin=thin)
    _draw_verdicts(beside, panel, steps)
  return figure


def _draw_image(axes, image: np.ndarray, title: str) -> None:
  """An image in coordinates of shares, its aspect kept."""
  from PIL import Image

  height, width = image.shape[:2]
  shown = Image.fromarray(image)
  shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
  if len(title) > LONGEST_TITLE:
    title = "…" + title[1 - LONGEST_TITLE :]
  title, family = fonts.fit(title)
  axes.set_title(title, fontsize=10, family=family, parse_math=False)
  axes.imshow(np.asarray(shown), extent=(0, 1, 1, 0), interpolation="auto", aspect=height / width)
  axes.set_anchor("N")
  axes.set_axis_off()


def _draw_regions(
  axes, boxes: np.ndarray, colours: Sequence[str], *, numbers: Sequence[int] = (), thin: bool = False
) -> None:
  """The part inside the image of boxes [K, 4], each in its colour on a dark rim, with its number if there are any."""
  from matplotlib.patches import Rectangle

  for index, ((top, left, bottom, right), each) in enumerate(zip(boxes_lib.clip_boxes(boxes), colours, strict=True)):
    for edge, line in ((each, 0.8),) if thin else (("black", 3.5), (each, 2)):
      axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=edge, lw=line))
    if numbers:
      _draw_tag(axes, left, top, str(numbers[index]), each, size=7, va="top")
  axes.set(xlim=(0, 1), ylim=(1, 0))


def _draw_tag(axes, x: float, y: float, text: str, background: str, *, size: int = 8, **where) -> None:
  """Text on a colour, in black or white, whichever can be read on it."""
  red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
  ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 110 else "white"
  box = {"boxstyle": "square,pad=0.25", "facecolor": background, "edgecolor": "black", "linewidth": 0.5}
  text, family = fonts.fit(text)
  axes.text(x, y, text, fontsize=size, family=family, weight="bold", color=ink, bbox=box, parse_math=False, **where)


def _draw_verdicts(axes, panel: Panel, steps: Sequence[int]) -> None:
  def draw_step(x: float, y: float, step: int) -> None:
    _draw_tag(axes, x, y, str(step + 1), colour(step), va="center", ha="center")

  axes.set(xlim=(0, 1), ylim=(0, 1))
  axes.set_axis_off()
  for row, verdict in enumerate(panel.verdicts[:MOST_VERDICTS]):
    y = 0.96 - 0.075 * row
    if verdict.step is not None:
      draw_step(0.06, y, verdict.step)
    text = f"{verdict.label}  {verdict.probability:.2f}{'  (absent)' if verdict.present is False else ''}"
    text, family = fonts.fit(text)
    weight = "bold" if verdict.present else "normal"
    axes.text(0.15, y, text, va="center", fontsize=10, family=family, weight=weight, parse_math=False)
  more = len(panel.verdicts) - MOST_VERDICTS
  if more > 0:
    axes.text(0.15, 0.96 - 0.075 * MOST_VERDICTS, f"and {more} more", va="center", fontsize=9, style="italic")
  if len(panel.boxes):
    every = len(panel.boxes) <= MOST_REGIONS
    label = "regions, in order" if every else f"regions that won a label, of {len(panel.boxes)}"
    axes.text(0.0, 0.095, label, va="center", fontsize=8, color="#555555")
    for index, step in enumerate(steps):
      draw_step(0.06 + 0.12 * (index % 8), 0.03 - 0.05 * (index // 8), step)


def regions_and_labels(path: pathlib.Path, panels: Sequence[Panel]) -> None:
  """Like Fig. 1: a PNG of images with the regions that won the labels given; below, the labels in the same colours."""
  from matplotlib.figure import Figure

  labels = [[verdict for verdict in panel.verdicts if verdict.chosen] for panel in panels]
  lines = max(1, *map(len, labels))
  figure = Figure(figsize=(3.2 * len(panels), 3.5 + 0.3 * lines), dpi=100, layout="constrained")
  axes = figure.subplots(2, len(panels), height_ratios=(3.5, 0.3 * lines), squeeze=False)
  for view, below, panel, verdicts in zip(*axes, panels, labels, strict=True):
    _draw_image(view, panel.image, panel.title)
    below.set(xlim=(0, 1), ylim=(lines, 0))
    below.set_axis_off()
    for row, verdict in enumerate(verdicts):
      background = "#ffffff" if verdict.step is None else colour(verdict.step)
      _draw_tag(below, 0.5, row + 0.5, verdict.label, background, size=10, va="center", ha="center")
    winners = sorted({verdict.step for verdict in verdicts if verdict.step is not None})
    _draw_regions(view, panel.boxes[winners], list(map(colour, winners)))
  figure.savefig(path)


def regions_and_others(path: pathlib.Path, panels: Sequence[Panel], others: Sequence[np.ndarray], name: str) -> None:
  """Like Fig. 5: a PNG of all regions of each image, in green, above other regions [M, 4] of it, in blue.

  `others` has one such array for each panel, in shares of its image; `name` says what they are.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(2.6 * len(panels), 5.8), dpi=100, layout="constrained")
  rows = figure.subplots(2, len(panels), squeeze=False)
  for axes, regions, colour in zip(rows, ([panel.boxes for panel in panels], others), (OURS, OTHERS), strict=True):
    for view, panel, boxes in zip(axes, panels, regions, strict=True):
      _draw_image(view, panel.image, panel.title if colour == OURS else "")
      _draw_regions(view, boxes, [colour] * len(boxes))
  figure.suptitle(f"green: regions looked at; blue: {name}", fontsize=10)
  figure.savefig(path)
