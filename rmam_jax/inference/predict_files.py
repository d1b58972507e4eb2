"""What `predict.py` calls: files in; JSON lines or CSV, and pictures, out."""

import contextlib
import csv
import glob
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from rmam_jax.data.images import SUFFIXES
from rmam_jax.inference import predictor
from rmam_jax.runtime import files, progress
from rmam_jax.runtime.errors import UserError, os_errors
from rmam_jax.visual import pictures

COLUMNS = ("image", "kind", "label", "probability", "step", "left", "top", "right", "bottom")


def find_images(names: Sequence[str]) -> list[pathlib.Path]:
  """Files, folders with all below them, and patterns -> image files, each once; a folder's in alphabetical order.

  Links to folders are followed. A folder's files that are not named as images are passed over, and counted on stderr with
  their endings. Raises a UserError for a folder that cannot be read or holds no image, and for a pattern that matches
  nothing.
  """
  paths: list[pathlib.Path] = []
  for name in names:
    found = [pathlib.Path(name)]  # a file that is not there is reported like one that cannot be read
    if glob.has_magic(name) and not found[0].exists():
      found = [pathlib.Path(match) for match in sorted(glob.glob(name, recursive=True))]
      if not found:
        raise UserError(f"{name} matches nothing")
    for path in found:
      paths += _in_folder(path) if path.is_dir() else [path]
  return list(dict.fromkeys(paths))


def _in_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  def refuse(error: OSError):
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}")

  found = files.below(folder, refuse)
  images = [path for path in found if path.suffix.lower() in SUFFIXES]
  if not images:
    raise UserError(f"{folder} holds no image: none of its {len(found)} files is named {', '.join(SUFFIXES)}")
  if len(images) < len(found):
    endings = sorted({path.suffix.lower() or "no ending" for path in found} - {*SUFFIXES})
    more = ", ..." if len(endings) > 5 else ""
    told = f"{len(found) - len(images)} ({', '.join(endings[:5])}{more})"
    print(f"{folder}: passed over, not named as images: {told}", file=sys.stderr)
  return images


def _pixels(box: predictor.Box | None) -> list[float] | None:
  return box and [round(side, 2) for side in box]


def as_json(found: predictor.Prediction, *, with_regions: bool) -> dict[str, Any]:
  """What is written of an image; boxes are [left, top, right, bottom] in pixels of the original image."""
  labels = [
    {"label": name, "probability": round(probability, 6), "step": step, "box": _pixels(box)}
    for name, probability, step, box in found.labels
  ]
  regions = [
    {"step": step, "box": _pixels(box), "label": name, "probability": round(probability, 6)}
    for step, box, name, probability in found.regions
  ]
  record = {"width": found.width, "height": found.height, "labels": labels}
  return record | ({"regions": regions} if with_regions else {})


def _rows(path: pathlib.Path, found: predictor.Prediction, with_regions: bool) -> Iterator[list]:
  """One image's rows of CSV, see COLUMNS: its labels, or one row that says "none", then its regions."""
  nothing = [None] * 4  # written as empty fields
  if not found.labels:
    yield [path, "none", None, None, None, *nothing]
  for name, probability, step, box in found.labels:
    yield [path, "label", name, round(probability, 6), step, *(_pixels(box) or nothing)]
  for step, box, name, probability in found.regions if with_regions else ():
    yield [path, "region", name, round(probability, 6), step, *_pixels(box)]


def _writer(format: str, file: TextIO, with_regions: bool) -> Callable[[pathlib.Path, predictor.Prediction], Any]:
  if format == "jsonl":

    def write(path: pathlib.Path, found: predictor.Prediction) -> None:
      print(json.dumps({"image": str(path), **as_json(found, with_regions=with_regions)}), file=file)

    return write
  table = csv.writer(file, lineterminator="\n")
  table.writerow(COLUMNS)
  return lambda path, found: table.writerows(_rows(path, found, with_regions))


def _open(out: pathlib.Path | None) -> contextlib.AbstractContextManager[TextIO]:
  """A new file, or stdout without one. File names pass through whatever bytes they are made of."""
  if out is None:
    sys.stdout.reconfigure(errors="surrogateescape")
    return contextlib.nullcontext(sys.stdout)
  if out.exists():
    raise UserError(f"{out} exists: remove it or name another file with --out=FILE")
  with os_errors(f"cannot write {out}"):
    return out.open("x", encoding="utf-8", errors="surrogateescape", newline="")


def _make(folder: pathlib.Path) -> None:
  """Makes a folder for pictures, or takes one that is empty."""
  with os_errors(f"cannot make the folder {folder}"):
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
      raise UserError(f"{folder} exists and is no empty folder: name another with --pictures=OUT")
    folder.mkdir(parents=True, exist_ok=True)


def predict_files(
  recognizer: predictor.Predictor,
  names: Sequence[str],
  *,
  format: str = "jsonl",
  out: pathlib.Path | None = None,
  with_regions: bool = False,
  picture_folder: pathlib.Path | None = None,
) -> int:
  """Predicts for files, folders and patterns (see `find_images`) and writes what was found, in order.

  It goes as "jsonl" or "csv" to a new file `out`, or to stdout, with all K regions if wanted. In `picture_folder`, new
  or empty, each image is drawn with its regions, in folders as its own; None draws nothing. Returns how many files
  could not be read; each is reported on stderr. Raises a UserError for nothing to read, and for an output that exists
  or cannot be written.
  """
  paths = find_images(names)
  if picture_folder is not None:
    _make(picture_folder)
  failed = 0
  shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
  with _open(out) as file, progress.bar(total=len(paths), unit=" images", disable=len(paths) == 1) as bar:
    write = _writer(format, file, with_regions)
    for path, found in zip(paths, recognizer.stream(paths), strict=True):
      if isinstance(found, Exception):
        failed += 1
        bar.write(f"error: {found}", file=sys.stderr)
      else:
        write(path, found)
        if picture_folder is not None:
          _draw(picture_folder / f"{os.path.relpath(os.path.abspath(path), shared)}.png", path, found)
      bar.update()
    file.flush()  # a reader of stdout that has gone is noticed here
  if failed:
    print(f"{failed} of {len(paths)} files could not be read", file=sys.stderr)
  return failed


def panel_of(path: pathlib.Path, found: predictor.Prediction) -> pictures.Panel:
  """An image with its regions and labels, to draw."""
  boxes = np.array([each.box for each in found.regions]).reshape(-1, 4)[:, [1, 0, 3, 2]]
  verdicts = [
    pictures.Verdict(label.name, label.probability, True, None, None if label.step is None else label.step - 1)
    for label in found.labels
  ]
  shares = boxes / (found.height, found.width, found.height, found.width)
  return pictures.Panel(path.name, predictor.read_image(path, str(path)).pixels, shares, verdicts)


def _draw(target: pathlib.Path, path: pathlib.Path, found: predictor.Prediction) -> None:
  with os_errors(f"cannot write {target}"):
    target.parent.mkdir(parents=True, exist_ok=True)
    pictures.draw(target, [panel_of(path, found)])
