"""The gallery: one page that needs nothing else, safe against names, and what its controls do in a browser."""

import base64
import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image

from rmam_jax.evaluation import metrics, report
from rmam_jax.runtime.errors import UserError
from rmam_jax.visual import gallery, pictures

HOSTILE = '"><script>alert("it\'s out")</script>'
NAMES = ["cat", "dog", HOSTILE]
NONE = "\u2013"  # a dash, where there is nothing to divide by
BOXES = np.array([[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.2, 0.9]])


def panel(title, verdicts, shade=200, size=(300, 150)):
  image = np.full((*size, 3), shade, np.uint8)
  return pictures.Panel(title, image, BOXES, verdicts)


# Verdicts: label, probability, chosen, present, step.
PANELS = [
  panel("one", [pictures.Verdict("cat", 0.9, True, True, 0), pictures.Verdict("dog", 0.2, False, True, 1)]),
  panel("two " + HOSTILE, [pictures.Verdict(HOSTILE, 0.7, True, False, 1)]),
  panel("three", [pictures.Verdict("cat", 0.95, True, True, 1), pictures.Verdict("dog", 0.8, True, False, 0)]),
  panel("four", []),
]
SCORES = np.array([[0.9, 0.2, 0.1], [0.1, 0.1, 0.7], [0.95, 0.8, 0.0], [0.3, 0.0, 0.0]])
LABELS = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]])
LIMITS = np.array([0.5, 0.6, 0.65], np.float32)
ANSWERS = gallery.Answers(SCORES, SCORES >= LIMITS, LABELS, np.zeros(LABELS.shape, bool), LIMITS)


@pytest.fixture
def page(tmp_path):
  """The page of PANELS."""
  precisions = [1.0, 0.5, None]
  results = {
    "data": "pets & more",
    "head": "saliency",
    "seed": 0,
    "version": "1.2.3",
    "mAP": 0.75,
    "AP_method": "all_point",
    "test_images": 1234,
    **{prefix + name: 0.123 for name in metrics.REGION_METRICS for prefix in ("", *report.BASELINES)},
    "chance_astray": None,
  }
  gallery.write(
    tmp_path / "page.html",
    iter(PANELS),
    results=results,
    class_curves=gallery.curves(NAMES, precisions, SCORES, LABELS, np.zeros(LABELS.shape, bool)),
    answers=ANSWERS,
    num_shown=len(PANELS),
  )
  return tmp_path / "page.html"


class Elements(html.parser.HTMLParser):
  """Every element with its attributes, and the text outside of scripts and styles."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.text, self._raw = [], "", False
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    self._raw = tag in ("script", "style")

  def handle_endtag(self, tag):
    self._raw = False

  def handle_data(self, data):
    self.text += "" if self._raw else data

  def named(self, tag, kind=None):
    return [found for name, found in self.elements if name == tag and kind in (None, *found.get("class", "").split())]


def test_the_page_needs_nothing_else_and_names_stay_text(page):
  found = Elements(page.read_text())
  assert len(found.named("script")) == 1
  assert not found.named("link")
  for tag, attributes in found.elements:
    assert not {"href", "srcset", "action", "onerror"} & set(attributes), tag
    assert attributes.get("src", "data:").startswith("data:")
  # Bar, curve, option, label and title of its card; its threshold; its row and its column of what occurs together.
  assert found.text.count(HOSTILE) == 8
  assert "pets & more" in found.text
  assert "1,234 images, of which the first 4 are shown" in " ".join(found.text.split())


def test_thumbnails_keep_the_aspect(page):
  images = Elements(page.read_text()).named("img")
  assert len(images) == len(PANELS)
  kind, encoded = images[0]["src"].split(",")
  assert kind == "data:image/jpeg;base64"
  with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
    assert image.size == (gallery.THUMBNAIL // 2, gallery.THUMBNAIL) == (int(images[0]["width"]), 192)
    assert abs(np.asarray(image).mean() - 200) < 2


def test_labels_are_right_missed_or_false_and_know_their_region(page):
  found = Elements(page.read_text())
  labels = [(x["data-class"], x["data-kind"], x["data-step"], x["data-score"]) for x in found.named("button", "label")]
  assert labels == [
    ("0", "right", "0", "0.900000"),
    ("1", "missed", "1", "0.200000"),
    ("2", "false", "1", "0.700000"),
    ("0", "right", "1", "0.950000"),
    ("1", "false", "0", "0.800000"),
  ]
  rect = found.named("rect")[1]  # clipped to the image: in percent
  assert [float(rect[side]) for side in ("x", "y", "width", "height")] == [50, 50, 40, 50]
  assert rect["stroke"] == pictures.STEP_COLOURS[1]


def test_curves_by_hand():
  # Ranked for the cat: right .95, right .9, right .3, wrong .1; the dog: wrong .8, right .2.
  found = gallery.curves(NAMES, [1.0, 0.5, None], SCORES, LABELS, np.zeros(LABELS.shape, bool))
  assert found[0].path == "M33.3 0.0L66.7 0.0L100.0 0.0"
  assert found[1].path == "M100.0 50.0"
  assert found[2].path == ""
  ignore = np.zeros(LABELS.shape, bool)
  ignore[2, 1] = True  # the wrong one
  assert gallery.curves(NAMES, [1.0, 1.0, None], SCORES, LABELS, ignore)[1].path == "M100.0 0.0"


def test_long_curves_are_thinned():
  rng = np.random.default_rng(0)
  labels = (rng.random((5000, 1)) < 0.5).astype(int)
  path = gallery.curves(["cat"], [0.5], rng.random((5000, 1)), labels, np.zeros((5000, 1), bool))[0].path
  assert path.count("L") == gallery.CURVE_POINTS - 1
  assert path.split("L")[-1].startswith("100.0 ")


def decoded(text):
  return np.frombuffer(base64.b64decode(text), "<f4").tolist()


def test_thresholds_begin_where_they_were_and_ignored_labels_count_for_nothing():
  ignore = np.zeros(LABELS.shape, bool)
  ignore[2] = True
  found = gallery.movable(NAMES, ANSWERS._replace(ignore=ignore))
  assert [(each.name, each.threshold) for each in found] == list(zip(NAMES, LIMITS.tolist(), strict=True))
  for each, positives, negatives in zip(
    found, ([0.3, 0.9], [0.2], []), ([0.1], [0.0, 0.1], [0.0, 0.1, 0.7]), strict=True
  ):
    np.testing.assert_allclose(decoded(each.positives), positives, rtol=1e-6)
    np.testing.assert_allclose(decoded(each.negatives), negatives, rtol=1e-6)
  assert {each.threshold for each in gallery.movable(NAMES, ANSWERS._replace(thresholds=None))} == {0.5}


def test_what_occurs_together_by_hand(monkeypatch):
  # Present: cat and dog, nothing, cat, cat. Given: cat, the hostile one, cat and dog, nothing.
  found = gallery.together(NAMES, ANSWERS)
  assert found.names == NAMES
  assert found.present.tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
  assert found.given.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
  ignore = np.zeros(LABELS.shape, bool)
  ignore[[0, 2], 1] = True  # the dogs
  assert gallery.together(NAMES, ANSWERS._replace(ignore=ignore)).present.tolist() == [[3, 0, 0], [0, 0, 0], [0, 0, 0]]
  assert gallery.together(NAMES, ANSWERS._replace(ignore=ignore)).given[1].tolist() == [0, 0, 0]
  monkeypatch.setattr(gallery, "MATRIX_CLASSES", 2)
  assert gallery.together(["z", "y", "x"], ANSWERS._replace(labels=LABELS[:, ::-1])).names == ["y", "x"]


def test_a_page_is_never_written_over(page):
  with pytest.raises(UserError):
    gallery.write(page, [], results={}, class_curves=[], answers=ANSWERS, num_shown=0)


@pytest.fixture
def tab(watched_tab, page):
  """The page, opened; at the end nothing was complained of or fetched."""
  tab, complaints, requests = watched_tab
  tab.goto(page.as_uri())
  yield tab
  tab.close()
  assert complaints == []
  assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]


def shown(tab):
  """The titles of the cards that can be seen, by their first word, in order."""
  titles = tab.locator(".card:visible figcaption div").all_text_contents()
  return [title.split()[0] for title in titles]


@pytest.mark.browser
def test_it_renders(tab):
  assert shown(tab) == ["one", "two", "three", "four"]
  assert tab.inner_text("output") == "4 of 4 images"
  sizes = tab.eval_on_selector_all("img", "images => images.map(i => [i.naturalWidth, i.naturalHeight])")
  assert sizes == [[96, 192]] * 4
  view, rect = tab.locator(".view").first.bounding_box(), tab.locator("rect").first.bounding_box()
  assert rect["x"] - view["x"] == pytest.approx(0.2 * view["width"], abs=2)
  assert rect["y"] - view["y"] == pytest.approx(0.1 * view["height"], abs=2)
  assert rect["width"] == pytest.approx(0.4 * view["width"], abs=3)


@pytest.mark.browser
def test_it_filters_and_sorts(tab):
  tab.select_option("select[name=class]", "0")
  assert shown(tab) == ["one", "three"]
  tab.select_option("select[name=sort]", "high")
  assert shown(tab) == ["three", "one"]
  tab.select_option("select[name=sort]", "low")
  assert shown(tab) == ["one", "three"]
  tab.check("input[value=missed]")
  assert shown(tab) == []
  tab.select_option("select[name=class]", "")
  assert shown(tab) == ["one"]
  tab.check("input[value=false]")
  assert shown(tab) == ["two", "three"]
  assert tab.inner_text("output") == "2 of 4 images"
  tab.select_option("select[name=sort]", "high")  # by the false labels' scores, .8 and .7
  assert shown(tab) == ["three", "two"]
  tab.check("input[value='']")
  tab.select_option("select[name=sort]", "")
  assert shown(tab) == ["one", "two", "three", "four"]


@pytest.mark.browser
def test_a_bar_chooses_its_class_and_shows_its_curve(tab):
  tab.click(".bar >> nth=1")
  assert tab.input_value("select[name=class]") == "1"
  assert shown(tab) == ["one", "three"]
  assert tab.eval_on_selector_all(".curves path.lit", "paths => paths.map(p => p.dataset.class)") == ["1"]
  tab.click(".bar >> nth=1")
  assert tab.input_value("select[name=class]") == ""


def lit(tab):
  """The regions that are lit, as (card, step)."""
  return [
    tuple(each)
    for each in tab.eval_on_selector_all(
      "rect.lit",
      "all => all.map(r => [[...document.querySelectorAll('.card')].indexOf(r.closest('.card')), +r.dataset.step])",
    )
  ]


@pytest.mark.browser
def test_hovering_over_a_label_lights_the_region_that_won_it(tab):
  assert lit(tab) == []
  tab.hover(".label >> nth=1")
  assert lit(tab) == [(0, 1)]
  tab.hover(".label >> nth=4")
  assert lit(tab) == [(2, 0)]
  tab.hover("h1")
  assert lit(tab) == []


@pytest.mark.browser
def test_the_keyboard_does_it_all(tab):
  tab.focus("select[name=class]")
  tab.keyboard.press("d")  # the dog
  assert shown(tab) == ["one", "three"]
  tab.keyboard.press("Tab")
  tab.keyboard.press("ArrowRight")  # right
  tab.keyboard.press("ArrowRight")  # missed
  assert shown(tab) == ["one"]
  tab.keyboard.press("ArrowRight")
  assert shown(tab) == ["three"]
  tab.keyboard.press("Tab")
  tab.keyboard.press("Tab")  # past the sort, to the first label
  assert lit(tab) == [(2, 1)]
  tab.keyboard.press("ArrowRight")
  assert lit(tab) == [(2, 0)]
  tab.keyboard.press("ArrowRight")  # there is no further one
  assert lit(tab) == [(2, 0)]
  tab.hover("h1")  # the pointer elsewhere leaves the focused one lit
  assert lit(tab) == [(2, 0)]


def counted(tab):
  """The table of thresholds: of each class, then of all, the counts and figures."""
  rows = tab.locator(".thresholds tbody tr, .thresholds tfoot tr").all_inner_texts()
  return [[cell.strip() for cell in row.split("\t")[-6:]] for row in rows]


@pytest.mark.browser
def test_thresholds_moved_by_hand_count_anew(tab):
  # At first the cat's .5 of right .95 .9 .3 and wrong .1; the dog's .6 of right .2 and wrong .8 .1 0.
  first = [
    ["2", "0", "1", "100.0", "66.7", "80.0"],
    ["0", "1", "1", "0.0", "0.0", "0.0"],
    ["0", "1", "0", "0.0", NONE, "0.0"],
    ["2", "2", "2", "50.0", "50.0", "50.0"],
  ]
  assert counted(tab) == first
  tab.fill(".thresholds [type=number] >> nth=1", "0.2")  # reached by the right one
  assert counted(tab)[1] == ["1", "1", "0", "50.0", "100.0", "66.7"]
  assert counted(tab)[3] == ["3", "2", "1", "60.0", "75.0", "66.7"]
  assert tab.input_value(".thresholds [type=range] >> nth=1") == "0.2"
  tab.fill(".thresholds [type=range] >> nth=2", "0.7")  # which float32 stores as a little less
  assert counted(tab)[2] == first[2]
  tab.fill(".thresholds [type=range] >> nth=2", "0.701")
  assert counted(tab)[2] == ["0", "0", "0", NONE, NONE, NONE]
  tab.fill(".thresholds [type=number] >> nth=0", "1.5")  # no probability
  tab.fill(".thresholds [type=number] >> nth=0", "")
  assert counted(tab)[0] == first[0]
  tab.click("#copy")
  assert json.loads(tab.input_value("#json")) == {"cat": 0.5, "dog": 0.2, HOSTILE: 0.701}
  assert tab.evaluate("document.getSelection().toString()") == tab.input_value("#json")
  assert tab.inner_text("#copied").startswith(("copied: save them", "marked below"))
  tab.click("#reset")
  assert counted(tab) == first
  np.testing.assert_array_equal(np.float32(list(json.loads(tab.input_value("#json")).values())), LIMITS)


@pytest.mark.browser
def test_what_occurs_together_is_shown_as_it_is_and_as_it_was_given(tab):
  def cells():
    return tab.locator(".together td").all_inner_texts()

  assert cells() == ["3", "1", "", "1", "1", "", "", "", ""]
  tab.click(".marks >> nth=1")
  assert cells() == ["2", "1", "", "1", "1", "", "", "", "1"]
  assert tab.get_attribute(".together td >> nth=1", "title") == "cat and dog: present in 1, given in 1 images"


@pytest.mark.browser
def test_mistakes_come_in_the_order_of_how_sure_it_was(tab):
  tab.check("input[value=mistakes]")
  assert shown(tab) == ["one", "two", "three"]
  tab.select_option("select[name=sort]", "mistakes")  # missed at .2, false at .8, false at .7
  assert shown(tab) == ["one", "three", "two"]
  tab.select_option("select[name=class]", "1")
  assert shown(tab) == ["one", "three"]
  tab.select_option("select[name=class]", "")
  tab.check("input[value='']")
  assert shown(tab) == ["one", "three", "two", "four"]  # without a mistake last
