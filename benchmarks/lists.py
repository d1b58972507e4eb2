"""Long lists of images, opened: a table, three parts of it, a column of splits, and COCO's form, each in a process of its own.

    python -m benchmarks.lists
    python -m benchmarks.lists --images=100000 --coco=10000

Seconds of processor time and GB at peak, with the libraries; a row for these alone comes first. Ours finds every image's
file, checks every row and gathers the labels. pandas with scikit-learn's MultiLabelBinarizer, and pycocotools, only read
and gather; they are left out where they are not installed. Lists and image files, which are empty, are made in a
temporary folder.
"""

import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks import machine

CLASSES = [f"class {number}" for number in range(80)]
FOLDER = 10_000  # images in each


def image_names(count: int) -> list[str]:
  return [f"images/{number // FOLDER:03d}/{number:07d}.jpg" for number in range(count)]


def make_images(root: pathlib.Path, names: list[str]) -> None:
  for folder in {name.rpartition("/")[0] for name in names}:
    (root / folder).mkdir(parents=True)
  for name in names:
    (root / name).touch()


def make_table(root: pathlib.Path, count: int) -> None:
  """`table.csv` of one to five labels an image, and `splits.csv`, which says the split beside them."""
  rng, names = np.random.default_rng(0), image_names(count)
  make_images(root, names)
  first, several = rng.integers(0, 76, count), rng.integers(1, 6, count)
  rows = [f"{name},{'|'.join(CLASSES[a : a + n])}" for name, a, n in zip(names, first, several, strict=True)]
  (root / "table.csv").write_text("\n".join(["image,labels", *rows]))
  parts = itertools.cycle([*["train"] * 8, "validation", "test"])
  (root / "splits.csv").write_text("\n".join(["image,labels,split", *map(",".join, zip(rows, parts, strict=False))]))


def make_coco(root: pathlib.Path, count: int) -> None:
  """`coco.json` with 7.3 boxes an image, each with an outline of twenty points, as COCO 2017 has them."""
  rng, names = np.random.default_rng(0), image_names(count)
  make_images(root, names)
  owners = rng.integers(0, count, round(7.27 * count))
  boxes = rng.uniform(0, 200, (len(owners), 4)).round(2)
  outlines = rng.uniform(0, 400, (len(owners), 40)).round(2)
  annotations = [
    {
      "id": i,
      "image_id": owner,
      "category_id": owner % 80,
      "bbox": box,
      "area": 99.5,
      "iscrowd": 0,
      "segmentation": [line],
    }
    for i, (owner, box, line) in enumerate(zip(owners.tolist(), boxes.tolist(), outlines.tolist(), strict=True))
  ]
  images = [{"id": i, "file_name": name, "width": 640, "height": 480} for i, name in enumerate(names)]
  categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
  whole = {"images": images, "annotations": annotations, "categories": categories}
  (root / "coco.json").write_text(json.dumps(whole))


MAKERS = {"images": make_table, "coco": make_coco}  # by the flag that says of how many images


def ours(folder: pathlib.Path, **fields) -> None:
  from configs import custom
  from rmam_jax.data.splits import FIELDS, check_disjoint, open_split, resolved

  data = custom.get_config().data
  data.update({field: f"{folder}/{value}" if field in FIELDS else value for field, value in fields.items()})
  data.update(resolved(data))
  check_disjoint({field: open_split(data, data[field]) for field in FIELDS if data[field]})


def by_pandas(folder: pathlib.Path) -> None:
  import pandas
  from sklearn.preprocessing import MultiLabelBinarizer

  table = pandas.read_csv(folder / "table.csv")
  MultiLabelBinarizer().fit_transform(table["labels"].str.split("|")).astype(np.float32)


def by_pycocotools(folder: pathlib.Path) -> None:
  from pycocotools import coco

  opened = coco.COCO(folder / "coco.json")
  labels = np.zeros((len(opened.imgs), len(opened.cats)), np.float32)
  for each in opened.anns.values():
    labels[each["image_id"], each["category_id"]] = 1


def libraries(folder: pathlib.Path) -> None:
  del folder
  from configs import custom  # noqa: F401
  from rmam_jax.data import splits  # noqa: F401


class Side(NamedTuple):
  made: str  # the list that it opens, of MAKERS
  open: Callable[[pathlib.Path], None]
  package: str = "rmam_jax"


_SPLITS = {field: f"splits.csv:{field}" for field in ("train", "validation", "test")}
SIDES = {
  "the libraries alone": Side("images", libraries),
  "a table": Side("images", lambda folder: ours(folder, train="table.csv")),
  "the same by pandas": Side("images", by_pandas, "pandas"),
  "three parts of it by `data.split`": Side(
    "images", lambda folder: ours(folder, train="table.csv", split=(0.8, 0.1, 0.1))
  ),
  "three parts by a column `split`": Side("images", lambda folder: ours(folder, **_SPLITS)),
  "COCO's form": Side("coco", lambda folder: ours(folder, train="coco.json")),
  "the same by pycocotools": Side("coco", by_pycocotools, "pycocotools"),
}


def run(*flags: str) -> tuple[float, float]:
  """Runs this module in a process of its own: its seconds of processor time, and its GB at peak.

  This process has to stay small: its memory at the start counts as the other's.
  """
  command = [sys.executable, "-m", "benchmarks.lists", *flags]
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # pycocotools says what it does
  _, status, used = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"failed: {' '.join(flags)}")
  return used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6


def main() -> None:
  parser = machine.make_parser(__doc__)
  parser.add_argument("--images", type=int, default=1_000_000, help="in the table")
  parser.add_argument("--coco", type=int, default=118_287, help="images in COCO's form")
  parser.add_argument("--folder", type=pathlib.Path, help="where one of these alone is done:")
  parser.add_argument("--make", choices=MAKERS, help="make a list")
  parser.add_argument("--open", choices=SIDES, help="open one that is made")
  arguments = parser.parse_args()
  if arguments.make:
    MAKERS[arguments.make](arguments.folder, getattr(arguments, arguments.make))
  elif arguments.open:
    SIDES[arguments.open].open(arguments.folder)
  else:
    print(machine.describe("numpy"))
    print(f"A table of {arguments.images:,} images, COCO's form of {arguments.coco:,}.\n")
    print(machine.header("", "processor, s", "peak, GB"))
    for made in MAKERS:
      with tempfile.TemporaryDirectory() as folder:
        run(f"--make={made}", f"--{made}={getattr(arguments, made)}", f"--folder={folder}")
        for name, side in SIDES.items():
          if side.made == made and importlib.util.find_spec(side.package):
            seconds, peak = run(f"--open={name}", f"--folder={folder}")
            print(machine.row(name, f"{seconds:.1f}", f"{peak:.2f}"), flush=True)


if __name__ == "__main__":
  main()
