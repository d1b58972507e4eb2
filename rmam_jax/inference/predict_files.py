"""What `predict.py` calls: files in; JSON lines or CSV, and pictures, out."""

import contextlib
import csv
import glob
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

import numpy as np
import tqdm

from rmam_jax.inference import predictor
from rmam_jax.runtime.errors import UserError
from rmam_jax.visual import pictures

# By which a folder's images are told from its other files.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
COLUMNS = ("image", "kind", "label", "probability", "step", "left", "top", "right", "bottom")


def find_images(names: Sequence[str]) -> list[pathlib.Path]:
  """Files, folders with all below them, and patterns -> image files, each once; a folder's in alphabetical order.

  In a folder, files whose names are not those of images are passed over, and counted on stderr.

  Raises:
    UserError: a folder that cannot be read.
    UserError: a folder without images, or a pattern that matches nothing.
  """
  paths: list[pathlib.Path] = []
  for name in names:
    if pathlib.Path(name).is_dir():
      paths += _in_folder(pathlib.Path(name))
    elif glob.has_magic(name) and not pathlib.Path(name).exists():
      found = [pathlib.Path(match) for match in sorted(glob.glob(name, recursive=True))]
      if not found:
        raise UserError(f"{name} matches nothing")
      for path in found:
        paths += _in_folder(path) if path.is_dir() else [path]
    else:
      paths.append(pathlib.Path(name))  # a file that is not there is told of like one that cannot be read
  return list(dict.fromkeys(paths))


def _in_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  def refuse(error: OSError):
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}")

  files = [pathlib.Path(root, name) for root, _, names in os.walk(folder, onerror=refuse) for name in names]
  images = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
  if not images:
    raise UserError(f"{folder} holds no image: none of its {len(files)} files is named {', '.join(SUFFIXES)}")
  if len(images) < len(files):
    print(f"{folder}: passed over, not named as images: {len(files) - len(images)}", file=sys.stderr)
  return images


def as_record(path: pathlib.Path, found: predictor.Prediction, *, with_regions: bool) -> dict:
  """One image's line of JSON; boxes are [left, top, right, bottom] in pixels of the original image."""
  record = {
    "image": str(path),
    "width": found.width,
    "height": found.height,
    "labels": [
      {"label": label.name, "probability": _round(label.probability), "step": label.step, "box": _pixels(label.box)}
      for label in found.labels
    ],
  }
  if with_regions:
    record["regions"] = [
      {"step": each.step, "box": _pixels(each.box), "label": each.label, "probability": _round(each.probability)}
      for each in found.regions
    ]
  return record


def as_rows(path: pathlib.Path, found: predictor.Prediction, *, with_regions: bool) -> Iterator[list]:
  """One image's rows of CSV, see COLUMNS: its labels, then its regions; an image without labels has one that says so."""
  nothing = [""] * 4
  if not found.labels:
    yield [path, "none", "", "", "", *nothing]
  for label in found.labels:
    step = "" if label.step is None else label.step
    yield [path, "label", label.name, _round(label.probability), step, *(_pixels(label.box) or nothing)]
  for each in found.regions if with_regions else ():
    yield [path, "region", each.label, _round(each.probability), each.step, *_pixels(each.box)]


def _round(probability: float) -> float:
  return round(probability, 6)


def _pixels(box: predictor.Box | None) -> list[float] | None:
  return None if box is None else [round(side, 2) for side in box]


def _line_writer(file: TextIO, with_regions: bool) -> Callable[[pathlib.Path, predictor.Prediction], None]:
  return lambda path, found: print(json.dumps(as_record(path, found, with_regions=with_regions)), file=file)


def _row_writer(file: TextIO, with_regions: bool) -> Callable[[pathlib.Path, predictor.Prediction], None]:
  table = csv.writer(file, lineterminator="\n")
  table.writerow(COLUMNS)
  return lambda path, found: table.writerows(as_rows(path, found, with_regions=with_regions))


WRITERS = {"jsonl": _line_writer, "csv": _row_writer}


@contextlib.contextmanager
def _opened(out: pathlib.Path | None) -> Iterator[TextIO]:
  """A new file, or stdout without one. File names pass through whatever bytes they are made of."""
  if out is None:
    sys.stdout.reconfigure(errors="surrogateescape")
    yield sys.stdout
    sys.stdout.flush()
    return
  try:
    file = out.open("x", encoding="utf-8", errors="surrogateescape", newline="")
  except FileExistsError as error:
    raise UserError(f"{out} exists: remove it or name another file with --out=FILE") from error
  except OSError as error:
    raise UserError(f"cannot write {out}: {error.strerror}") from error
  with file:
    yield file


def _make(folder: pathlib.Path) -> None:
  """Makes a folder for pictures, or takes one that is empty."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    free = not any(folder.iterdir())
  except FileExistsError:
    free = False
  except OSError as error:
    raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
  if not free:
    raise UserError(f"{folder} exists and is no empty folder: name another with --pictures=OUT")


def predict_files(
  recogniser: predictor.Predictor,
  names: Sequence[str],
  *,
  format: str = "jsonl",
  out: pathlib.Path | None = None,
  with_regions: bool = False,
  picture_folder: pathlib.Path | None = None,
) -> int:
  """Predicts for files and writes what was found, in order. A file that cannot be read is told of on stderr.

  Args:
    recogniser: from `predictor.load`.
    names: files, folders and patterns; see `find_images`.
    format: "jsonl" or "csv".
    out: the file to write; None for stdout.
    with_regions: write all K regions too.
    picture_folder: where to draw each image with its regions, in folders as its own; None draws nothing.

  Returns:
    How many files could not be read.

  Raises:
    UserError: nothing to read, or an output that exists or cannot be written.
  """
  paths = find_images(names)
  if picture_folder is not None:
    _make(picture_folder)
  failed = 0
  shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
  with _opened(out) as file, tqdm.tqdm(total=len(paths), unit=" images", disable=len(paths) == 1) as bar:
    write = WRITERS[format](file, with_regions)
    for path, found in zip(paths, recogniser.stream(paths), strict=True):
      if isinstance(found, Exception):
        failed += 1
        bar.write(f"error: {found}", file=sys.stderr)
      else:
        write(path, found)
        if picture_folder is not None:
          below = os.path.relpath(os.path.abspath(path), shared)
          draw(picture_folder / f"{below}.png", path, found)
      bar.update()
  if failed:
    print(f"{failed} of {len(paths)} files could not be read", file=sys.stderr)
  return failed


def draw(target: pathlib.Path, path: pathlib.Path, found: predictor.Prediction) -> None:
  """Draws an image with its regions and labels."""
  boxes = np.array([each.box for each in found.regions]).reshape(-1, 4)[:, [1, 0, 3, 2]]
  verdicts = [
    pictures.Verdict(label.name, label.probability, True, None, None if label.step is None else label.step - 1)
    for label in found.labels
  ]
  image = predictor.read_image(path, str(path))
  shares = boxes / (found.height, found.width, found.height, found.width)
  target.parent.mkdir(parents=True, exist_ok=True)
  pictures.draw(target, [pictures.Panel(path.name, image, shares, verdicts)])
