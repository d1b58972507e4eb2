"""Evaluates the best epoch of a trained workdir again: writes its results.json and pictures/ and prints the summary.

python eval.py --workdir=runs/digits-easy-saliency
python eval.py --workdir=runs/digits-easy-saliency --gallery=gallery.html --figures=figures
"""

import pathlib

from absl import app, flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished train.py run.", required=True)
_GALLERY = flags.DEFINE_string("gallery", None, "HTML file to write: one page with every image, label and figure.")
_GALLERY_IMAGES = flags.DEFINE_integer(
  "gallery_images", 1000, "Show the first so many test images there; 0 shows all.", lower_bound=0
)
_FIGURES = flags.DEFINE_string("figures", None, "Folder to make, with figures like the paper's 1 and 5.")


def main(argv: list[str]) -> None:
  from rmam_jax import command, run

  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  with command.speaking():
    run.evaluate_and_print(
      pathlib.Path(_WORKDIR.value),
      gallery_page=_GALLERY.value and pathlib.Path(_GALLERY.value),
      gallery_images=_GALLERY_IMAGES.value,
      figure_folder=_FIGURES.value and pathlib.Path(_FIGURES.value),
    )


if __name__ == "__main__":
  app.run(main)
