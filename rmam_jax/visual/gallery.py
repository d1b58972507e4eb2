"""A test split on one page of HTML that needs nothing else: every image with its regions, and every figure."""

import base64
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmam_jax.evaluation import metrics, report
from rmam_jax.ops import boxes as boxes_lib
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError
from rmam_jax.visual import pictures

THUMBNAIL = 192  # pixels of the longer side
JPEG_QUALITY = 80
CURVE_POINTS = 100
MATRIX_CLASSES = 24  # the most frequent ones, of which the page shows what occurs together


class Curve(NamedTuple):
  """One class's precision and recall, as a path in a square of 100 x 100 with recall to the right."""

  name: str
  precision: float | None  # average precision; None without positives
  path: str


def curves(class_names: Sequence[str], precisions: Sequence[float | None], scores, labels, ignore) -> list[Curve]:
  """The curve of each of L classes, of scores, labels and ignore [N, L] of a whole split."""
  found = []
  for c, (name, precision) in enumerate(zip(class_names, precisions, strict=True)):
    kept = ~ignore[:, c]
    recall, height = metrics.precision_recall_curve(scores[kept, c], labels[kept, c])
    rising = np.flatnonzero(np.diff(recall, prepend=0))
    shown = rising[np.linspace(0, len(rising) - 1, min(len(rising), CURVE_POINTS)).round().astype(int)]
    points = (f"{100 * recall[i]:.1f} {100 - 100 * height[i]:.1f}" for i in shown)
    found.append(Curve(name, precision, "M" + "L".join(points) if len(shown) else ""))
  return found


class Answers(NamedTuple):
  """What the recognizer says of N images of a split and what is true. L classes."""

  probabilities: np.ndarray  # float [N, L]
  chosen: np.ndarray  # bool [N, L], the labels given
  labels: np.ndarray  # 0 or 1, [N, L]
  ignore: np.ndarray  # bool [N, L]
  thresholds: np.ndarray | None  # [L], the probabilities from which on labels are given, if it is these


class Movable(NamedTuple):
  """One class's threshold, and all that its counts depend on: sorted probabilities, as base64 of little-endian float32."""

  name: str
  threshold: float
  positives: str  # of the images that show the class
  negatives: str  # of those that do not


def movable(class_names: Sequence[str], answers: Answers) -> list[Movable]:
  """Each class's; where labels are not given by thresholds they begin at one half."""

  def encoded(values: np.ndarray) -> str:
    return base64.b64encode(np.sort(values).astype("<f4").tobytes()).decode()

  limits = np.full(len(class_names), 0.5) if answers.thresholds is None else answers.thresholds
  found = []
  for c, (name, limit) in enumerate(zip(class_names, limits, strict=True)):
    present, kept = answers.labels[:, c] == 1, ~answers.ignore[:, c]
    values = answers.probabilities[:, c]
    found.append(Movable(name, float(limit), encoded(values[kept & present]), encoded(values[kept & ~present])))
  return found


class Together(NamedTuple):
  """How many images show both of two classes, and how many are given both; on the diagonal, the one class."""

  names: list[str]
  present: np.ndarray  # int [M, M]
  given: np.ndarray  # int [M, M]


def together(class_names: Sequence[str], answers: Answers) -> Together:
  """The `MATRIX_CLASSES` most frequent classes in their order; a label that is ignored is neither present nor given."""
  present, given = (marks & ~answers.ignore for marks in (answers.labels == 1, answers.chosen))
  shown = np.sort(np.argsort(-present.sum(axis=0), kind="stable")[:MATRIX_CLASSES])
  counts = (marks[:, shown].astype(int).T @ marks[:, shown].astype(int) for marks in (present, given))
  return Together([class_names[c] for c in shown], *counts)


def _card(panel: pictures.Panel, class_names: Sequence[str]) -> dict[str, Any]:
  """What the template shows of an image; the image itself as a JPEG in a data URI."""
  from PIL import Image

  small = Image.fromarray(panel.image)
  small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  small.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
  return {
    "title": panel.title,
    "source": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(),
    "width": small.width,
    "height": small.height,
    "boxes": (100 * boxes_lib.clip_boxes(panel.boxes)).round(2).tolist(),
    "labels": [
      {
        "name": verdict.label,
        "index": class_names.index(verdict.label),
        "probability": verdict.probability,
        "kind": ("right" if verdict.chosen else "missed") if verdict.present else "false",
        "step": verdict.step,
      }
      for verdict in panel.verdicts
    ],
  }


def write(
  path: pathlib.Path,
  panels: Iterable[pictures.Panel],
  *,
  results: dict[str, Any],
  class_curves: Sequence[Curve],
  answers: Answers,
  num_shown: int,
) -> None:
  """Writes a new page: `num_shown` panels, as they come, the content of results.json, each class's curve, and answers.

  Raises a UserError if `path` exists or cannot be written.
  """
  import jinja2

  if path.exists():
    raise UserError(f"{path} exists")
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("rmam_jax.visual"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  class_names = [curve.name for curve in class_curves]
  page = environment.get_template("gallery.html").stream(
    cards=(_card(panel, class_names) for panel in panels),
    results=results,
    curves=class_curves,
    region_metrics=[
      (name, meaning, [results.get(prefix + name) for prefix in ("", *report.BASELINES)])
      for name, meaning in metrics.REGION_METRICS.items()
      if name in results
    ],
    movable=movable(class_names, answers),
    by_thresholds=answers.thresholds is not None,
    together=together(class_names, answers),
    colours=pictures.STEP_COLOURS,
    num_shown=num_shown,
  )
  page.enable_buffering(64)
  with files.whole_file(path) as draft, draft.open("w", encoding="utf-8") as file:
    page.dump(file)
