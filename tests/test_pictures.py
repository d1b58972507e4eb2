"""Regions are drawn where they look."""

import numpy as np
from PIL import Image

from rmam_jax.visual import fonts, pictures


def read(path):
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB")).astype(int)


def near(pixels, colour):
  wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
  return np.abs(pixels - wanted).max(axis=-1) < 3


def has(path, colour):
  return near(read(path), colour).any()


def test_a_picture_shows_each_step_in_its_colour(tmp_path):
  image = np.full((64, 64, 3), 128, np.uint8)
  boxes = np.array([[0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9]])
  verdicts = [pictures.Verdict("cat", 0.9, True, True, 0), pictures.Verdict("dog", 0.2, True, False, 1)]
  panel = pictures.Panel("a picture", image, boxes, verdicts)
  pictures.draw(tmp_path / "one.png", [panel])
  assert [has(tmp_path / "one.png", pictures.colour(step)) for step in range(3)] == [True, True, False]


def test_of_many_regions_those_that_won_a_label_are_shown(tmp_path):
  image = np.full((64, 64, 3), 128, np.uint8)
  boxes = np.tile([0.1, 0.1, 0.4, 0.4], (pictures.MOST_REGIONS + 1, 1))
  verdicts = [pictures.Verdict("cat", 0.9, True, True, 16), pictures.Verdict("dog", 0.2, True, False, 9)]
  pictures.draw(tmp_path / "one.png", [pictures.Panel("a picture", image, boxes, verdicts)])
  shown = [has(tmp_path / "one.png", each) for each in pictures.STEP_COLOURS[:7]]  # the eighth is the paper's white
  assert shown == [True, True, False, False, False, False, False]  # 16 and 9, in rounds of eight


def test_an_overview_holds_panels_of_heads_that_do_not_look(tmp_path):
  image = np.zeros((8, 8, 3), np.uint8)
  panel = pictures.Panel("nothing", image, np.zeros((0, 4)), [pictures.Verdict("cat", 0.5, True, True, None)])
  pictures.draw(tmp_path / "five.png", [panel] * 5, columns=3)
  pictures.draw(tmp_path / "one.png", [panel], columns=3)
  wide, narrow = (read(tmp_path / name).shape for name in ("five.png", "one.png"))
  assert wide == (2 * narrow[0], 3 * narrow[1], 3)


def test_figure_1_shows_the_winning_regions_in_their_labels_colours(tmp_path):
  image = np.full((64, 64, 3), 128, np.uint8)
  boxes = np.array([[0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9], [0.6, 0.1, 0.9, 0.4]])
  verdicts = [
    pictures.Verdict("cat", 0.9, True, True, 0),
    pictures.Verdict(r"$\frac$ mouse", 0.8, True, False, 1),
    pictures.Verdict("dog", 0.2, False, True, 2),  # it was not given: neither region nor label
  ]
  pictures.regions_and_labels(tmp_path / "one.png", [pictures.Panel(r"a $\frac$", image, boxes, verdicts)])
  assert [has(tmp_path / "one.png", pictures.colour(step)) for step in range(3)] == [True, True, False]


def test_figure_5_has_ours_in_green_above_others_in_blue(tmp_path):
  image = np.full((64, 64, 3), 128, np.uint8)
  panel = pictures.Panel("a picture", image, np.array([[0.1, 0.1, 0.4, 0.4]]), [])
  pictures.regions_and_others(tmp_path / "five.png", [panel] * 3, [np.array([[0.5, 0.5, 0.9, 0.9]])] * 3, "others")
  pixels = read(tmp_path / "five.png")
  for colour, upper in ((pictures.OURS, True), (pictures.OTHERS, False)):
    rows, _ = np.nonzero(near(pixels, colour))
    assert len(rows)
    assert ((rows < len(pixels) / 2) == upper).all()


def test_a_picture_is_as_large_whatever_the_image(tmp_path):
  for name, size in (("dot", (1, 1)), ("wide", (3, 4000)), ("large", (3000, 2000))):
    panel = pictures.Panel(name * 30, np.zeros((*size, 3), np.uint8), np.array([[0.1, 0.1, 0.9, 0.9]]), [])
    pictures.draw(tmp_path / f"{name}.png", [panel])
  assert len({read(path).shape for path in tmp_path.iterdir()}) == 1


def test_letters_that_the_usual_font_lacks_come_from_another_or_are_numbers(tmp_path, monkeypatch, capsys):
  """matplotlib brings fonts for mathematics, which have a bold A of their own, and none for Chinese."""
  usual = ["sans-serif"]
  assert fonts.fit("cat ünïcode") == ("cat ünïcode", usual)
  text, families = fonts.fit("\N{MATHEMATICAL BOLD CAPITAL A} cat")
  assert text == "\N{MATHEMATICAL BOLD CAPITAL A} cat"
  assert len(families) == 2
  assert fonts.fit(text)[1] == families
  # As on a machine that has matplotlib's fonts alone.
  own = {name: files for name, files in fonts._families().items() if all("mpl-data" in path for path in files)}
  monkeypatch.setattr(fonts, "_families", lambda: own)
  fonts._family_with.cache_clear()
  fonts._tell.cache_clear()
  assert fonts.fit("猫 cat") == ("[732B] cat", usual)
  assert fonts.fit("犬")[0] == "[72AC]"
  assert capsys.readouterr().err.count("\n") == 1  # it is said once
  verdicts = [pictures.Verdict(name, 0.9, True, True, None) for name in ("猫", text)]
  panel = pictures.Panel("犬.jpg", np.zeros((8, 8, 3), np.uint8), np.zeros((0, 4)), verdicts)
  pictures.draw(tmp_path / "one.png", [panel])  # a missing letter would be a warning, which is an error here
  pictures.regions_and_labels(tmp_path / "two.png", [panel])
  fonts._family_with.cache_clear()
