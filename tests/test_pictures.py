"""Regions are drawn where they look."""

import numpy as np
from PIL import Image

from rmam_jax import pictures


def read(path):
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB")).astype(int)


def test_a_picture_shows_each_step_in_its_colour(tmp_path):
  image = np.full((64, 64, 3), 128, np.uint8)
  boxes = np.array([[0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9]])
  verdicts = [pictures.Verdict("cat", 0.9, True, True, 0), pictures.Verdict("dog", 0.2, True, False, 1)]
  panel = pictures.Panel("a picture", image, boxes, verdicts)
  pictures.draw(tmp_path / "one.png", [panel])
  pixels = read(tmp_path / "one.png")
  for colour, there in ((0, True), (1, True), (2, False)):
    wanted = [int(pictures.STEP_COLOURS[colour][i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(pixels - wanted).max(axis=-1) < 3).any() == there


def test_an_overview_holds_panels_of_heads_that_do_not_look(tmp_path):
  image = np.zeros((8, 8, 3), np.uint8)
  panel = pictures.Panel("nothing", image, np.zeros((0, 4)), [pictures.Verdict("cat", 0.5, True, True, None)])
  pictures.draw(tmp_path / "five.png", [panel] * 5, columns=3)
  pictures.draw(tmp_path / "one.png", [panel], columns=3)
  wide, narrow = (read(tmp_path / name).shape for name in ("five.png", "one.png"))
  assert wide == (2 * narrow[0], 3 * narrow[1], 3)
