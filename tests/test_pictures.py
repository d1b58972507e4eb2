"""Regions are drawn where they look."""

import numpy as np
from PIL import Image

from rmam_jax import pictures


def read(path):
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB")).astype(int)


def test_region_box_by_hand():
  # Four cells of 16 pixels: -1 is pixel 8, 1 is pixel 56, so one unit is 24 pixels around 32.
  box = pictures.region_box(np.array([0.5, 0.25, 0.5, -0.5]), cells=4, stride=16)
  np.testing.assert_allclose(box, [32 + 12 - 12, 32 - 12 - 6, 24, 12], rtol=1e-6)
  mirrored = pictures.region_box(np.array([-0.5, -0.25, 0.5, -0.5]), cells=4, stride=16)
  np.testing.assert_allclose(mirrored, box, rtol=1e-6)


def test_a_picture_shows_each_step_in_its_colour(tmp_path):
  image = np.full((64, 64, 3), 128, np.uint8)
  thetas = np.array([[0.3, 0.3, -0.5, -0.5], [0.3, 0.3, 0.5, 0.5]])
  verdicts = [pictures.Verdict("cat", 0.9, True, 0), pictures.Verdict("dog", 0.2, False, 1)]
  panel = pictures.Panel("a picture", image, thetas, verdicts)
  pictures.draw(tmp_path / "one.png", [panel], stride=16)
  pixels = read(tmp_path / "one.png")
  for colour, there in ((0, True), (1, True), (2, False)):
    wanted = [int(pictures.STEP_COLOURS[colour][i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(pixels - wanted).max(axis=-1) < 3).any() == there


def test_an_overview_holds_panels_of_heads_that_do_not_look(tmp_path):
  image = np.zeros((8, 8, 3), np.uint8)
  panel = pictures.Panel("nothing", image, (), [pictures.Verdict("cat", 0.5, True, None)])
  pictures.draw(tmp_path / "five.png", [panel] * 5, stride=4, columns=3)
  pictures.draw(tmp_path / "one.png", [panel], stride=4, columns=3)
  wide, narrow = (read(tmp_path / name).shape for name in ("five.png", "one.png"))
  assert wide == (2 * narrow[0], 3 * narrow[1], 3)
