"""Where several recognizers look in the same images: one picture, a row for each recognizer, a column for each image.

    python -m examples.compare_looks looks.png --workdirs runs/a runs/b photographs --images docs/cat.jpg docs/astronaut.jpg

A workdir is a run, an exported folder, or the name of a recognizer that ships with the package.
"""

import argparse
import pathlib

import rmam_jax
from rmam_jax.inference import predict_files
from rmam_jax.visual import pictures


def compare(out: pathlib.Path, workdirs: list[str], images: list[str], top: int = 1) -> None:
  """Draws each image with the regions and the `top` likeliest labels of each recognizer."""
  panels = []
  for workdir in workdirs:
    recognizer = rmam_jax.load(workdir, threshold=0.0, top=top)
    for image, found in zip(map(pathlib.Path, images), recognizer.predict(images), strict=True):
      panels.append(predict_files.panel_of(image, found)._replace(title=f"{pathlib.Path(workdir).name}: {image.stem}"))
  pictures.draw(out, panels, columns=len(images))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("out", type=pathlib.Path, help="the picture, e.g. looks.png")
  parser.add_argument("--workdirs", nargs="+", required=True, help="the recognizers")
  parser.add_argument("--images", nargs="+", required=True, help="image files")
  parser.add_argument("--top", type=int, default=1, help="labels of an image that are shown with their regions")
  arguments = parser.parse_args()
  compare(arguments.out, arguments.workdirs, arguments.images, arguments.top)
