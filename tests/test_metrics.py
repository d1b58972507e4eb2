"""AP against scikit-learn, Eq. 15 and localisation against cases worked out by hand."""

import numpy as np
import pytest

from rmam_jax.evaluation import metrics
from rmam_jax.ops import boxes as boxes_lib


def random_scores(seed, images=200, classes=6):
  rng = np.random.default_rng(seed)
  labels = (rng.random((images, classes)) < 0.2).astype(int)
  scores = np.round(labels + rng.normal(size=labels.shape), 1)  # rounded, so that many are equal
  return scores, labels


@pytest.mark.parametrize("seed", range(3))
def test_all_point_ap_equals_scikit_learn(seed):
  from sklearn.metrics import average_precision_score

  scores, labels = random_scores(seed)
  theirs = average_precision_score(labels, scores, average=None)
  np.testing.assert_allclose(metrics.average_precisions(scores, labels), theirs, rtol=1e-12)


def test_the_curve_equals_scikit_learn_s():
  from sklearn.metrics import precision_recall_curve

  scores, labels = random_scores(6, classes=1)
  precision, recall, _ = precision_recall_curve(
    labels[:, 0], scores[:, 0]
  )  # from the lowest score on, and (0, 1) added
  found = metrics.precision_recall_curve(scores[:, 0], labels[:, 0])
  np.testing.assert_allclose(found, [recall[-2::-1][: len(found[0])], precision[-2::-1][: len(found[0])]])
  assert found[0][-1] == 1
  assert len(found[0]) == len(np.unique(scores))
  assert [len(each) for each in metrics.precision_recall_curve(np.ones(3), np.zeros(3))] == [0, 0]


def test_ap_by_hand():
  # Ranked: right, wrong, right, wrong, right. Precision at the positives: 1, 2/3, 3/5.
  scores, labels = np.array([5, 4, 3, 2, 1]), np.array([1, 0, 1, 0, 1])
  assert metrics.average_precision(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
  assert metrics.average_precision(scores, labels, "interpolated") == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
  # Recalls 0-.3: 1, .4-.6: 2/3, .7-1: 3/5.
  assert metrics.average_precision(scores, labels, "eleven_point") == pytest.approx((4 + 3 * 2 / 3 + 4 * 3 / 5) / 11)


def test_interpolation_takes_the_best_precision_to_the_right():
  # Ranked: wrong, right, right. Precision at the positives: 1/2, 2/3; interpolated: 2/3, 2/3.
  scores, labels = np.array([3, 2, 1]), np.array([0, 1, 1])
  assert metrics.average_precision(scores, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)
  assert metrics.average_precision(scores, labels, "interpolated") == pytest.approx(2 / 3)
  assert metrics.average_precision(scores, labels, "eleven_point") == pytest.approx(2 / 3)


def test_ignored_labels_are_as_if_the_image_were_not_there():
  scores, labels = random_scores(3)
  ignore = np.zeros(labels.shape, bool)
  ignore[::7, 2] = True
  found = metrics.average_precisions(scores, labels, ignore=ignore)
  kept = ~ignore[:, 2]
  assert found[2] == metrics.average_precision(scores[kept, 2], labels[kept, 2])
  assert found[0] == metrics.average_precision(scores[:, 0], labels[:, 0])


def test_a_class_without_positives_is_undefined_and_left_out_of_the_mean():
  scores, labels = random_scores(4)
  labels[:, 1] = 0
  found = metrics.average_precisions(scores, labels)
  assert np.isnan(found[1])
  assert metrics.mean_average_precision(found) == pytest.approx(np.delete(found, 1).mean())
  assert np.isnan(metrics.mean_average_precision(np.array([np.nan])))


def test_scores_that_are_not_finite_are_an_error():
  with pytest.raises(ValueError, match="finite"):
    metrics.average_precision(np.array([1.0, np.nan]), np.array([0, 1]))
  with pytest.raises(ValueError, match="method must be one of"):
    metrics.average_precision(np.zeros(2), np.ones(2), "voc")


def test_top_k_labels():
  scores = np.array([[0.9, 0.1, 0.8, 0.7], [0.2, 0.3, 0.1, 0.0]])
  np.testing.assert_array_equal(metrics.top_k_labels(scores, 2), [[1, 0, 1, 0], [1, 1, 0, 0]])


def test_precision_recall_f1_by_hand():
  labels = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
  predicted = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]], bool)
  # Class 0: 1 right of 2 predicted and 2 there; class 1: 2 of 2 and 2; class 2: never predicted, 1 there.
  found = metrics.precision_recall_f1(predicted, labels)
  assert found["CP"] == pytest.approx((1 / 2 + 1 + 0) / 3)
  assert found["CR"] == pytest.approx((1 / 2 + 1 + 0) / 3)
  assert found["CF1"] == pytest.approx(1 / 2)
  assert found["OP"] == pytest.approx(3 / 4)
  assert found["OR"] == pytest.approx(3 / 5)
  assert found["OF1"] == pytest.approx(2 * 0.75 * 0.6 / 1.35)
  # Ignoring the wrong prediction of class 0 in the last image makes its precision 1.
  ignore = np.zeros(labels.shape, bool)
  ignore[3, 0] = True
  assert metrics.precision_recall_f1(predicted, labels, ignore=ignore)["CP"] == pytest.approx(2 / 3)


def test_precision_recall_f1_equals_scikit_learn():
  from sklearn.metrics import precision_recall_fscore_support

  scores, labels = random_scores(5)
  predicted = scores > 0.5
  found = metrics.precision_recall_f1(predicted, labels)
  micro = precision_recall_fscore_support(labels, predicted, average="micro")
  macro = precision_recall_fscore_support(labels, predicted, average="macro")
  np.testing.assert_allclose([found["OP"], found["OR"], found["OF1"]], micro[:3])
  np.testing.assert_allclose([found["CP"], found["CR"], found["macro_F1"]], macro[:3])
  assert found["CF1"] == pytest.approx(2 * macro[0] * macro[1] / (macro[0] + macro[1]))
  assert abs(found["CF1"] - found["macro_F1"]) > 1e-4


def test_nothing_predicted_is_zero_not_an_error():
  found = metrics.precision_recall_f1(np.zeros((2, 2), bool), np.eye(2, dtype=int))
  assert set(found.values()) == {0.0}


# Four images, two classes; the last image holds class 0 only as difficult.
SCORES = np.array([[3.0, -1.0], [-2.0, 0.0], [1.0, 0.5], [2.0, -3.0]])
LABELS = np.array([[1, 0], [0, 1], [1, 0], [0, 0]])
DIFFICULT = np.array([[0, 0], [0, 0], [0, 0], [1, 0]], bool)


@pytest.mark.parametrize(
  ("rule", "ap", "precision", "recall"),
  [
    ("ignore", 1, 2 / 2, 2 / 2),  # ranked 3 right, 1 right, -2
    ("negative", (1 + 2 / 3) / 2, 2 / 3, 2 / 2),  # 3 right, 2 wrong, 1 right
    ("positive", 1, 3 / 3, 3 / 3),
  ],
)
def test_difficult_labels_by_hand(rule, ap, precision, recall):
  protocol = metrics.Protocol("network", "all_point", rule, rule, 0, 0.5, False, "CF1")
  found = metrics.measure(protocol, SCORES, LABELS, DIFFICULT)
  assert found["AP"][0] == pytest.approx(ap)
  # Class 1 has one prediction, wrong (0.5 reaches the threshold), and one positive.
  assert found["CP"] == pytest.approx((precision + 0) / 2)
  assert found["CR"] == pytest.approx((recall + 0) / 2)


def test_a_strict_threshold_excludes_what_only_reaches_it():
  loose = metrics.Protocol("network", "all_point", "ignore", "ignore", 0, 0.5, False, "CF1")
  found = metrics.measure(loose._replace(strict=True), SCORES, LABELS, DIFFICULT)
  assert metrics.measure(loose, SCORES, LABELS, DIFFICULT)["never_predicted"] == []
  assert found["never_predicted"] == [1]
  assert found["undefined"] == []
  assert metrics.measure(loose, SCORES[:1], LABELS[:1], DIFFICULT[:1])["undefined"] == [1]


def others(name, scores, labels, ignore):
  """What other code prints, by scikit-learn: mAP, CP, CR, CF1, OP, OR, OF1."""
  from sklearn.metrics import average_precision_score, precision_recall_fscore_support

  probability = 1 / (1 + np.exp(-scores))
  rules = {  # mAP without difficult labels, F1 without them, prediction, harmonic mean
    "ml-gcn": (True, False, scores >= 0, True),
    "mcar": (True, False, probability >= 0.6, True),
    "csra": (True, True, probability >= 0.5, True),
    "asl": (False, False, probability > 0.8, False),
    "ml-decoder": (False, False, probability > 0.75, False),
  }
  ap_without, f1_without, predicted, harmonic = rules[name]
  kept = ~ignore if ap_without else np.ones(labels.shape, bool)
  classes = range(labels.shape[1])
  mean_ap = np.mean([average_precision_score(labels[kept[:, c], c], scores[kept[:, c], c]) for c in classes])
  kept = ~ignore if f1_without else np.ones(labels.shape, bool)
  by_class = np.mean(
    [
      precision_recall_fscore_support(labels[kept[:, c], c], predicted[kept[:, c], c], average="binary")[:3]
      for c in classes
    ],
    axis=0,
  )
  overall = precision_recall_fscore_support(labels[kept], predicted[kept], average="binary")[:3]
  if harmonic:
    by_class[2] = 2 * by_class[0] * by_class[1] / by_class[:2].sum()
  return [mean_ap, *by_class, *overall]


@pytest.mark.parametrize("name", ["ml-gcn", "mcar", "csra", "asl", "ml-decoder"])
def test_presets_print_what_others_print(name):
  scores, labels = random_scores(6)
  scores = 3 * scores - 1.5
  ignore = (np.random.default_rng(7).random(labels.shape) < 0.05) & (labels == 0)
  found = metrics.measure(metrics.PROTOCOLS[name], scores, labels, ignore)
  wanted = others(name, scores, labels, ignore)
  np.testing.assert_allclose([found[each] for each in ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")], wanted)
  different = [others(other, scores, labels, ignore) for other in ("ml-gcn", "mcar", "csra", "asl", "ml-decoder")]
  assert sum(np.allclose(wanted, each) for each in different) == 1  # or the preset would not matter


def test_the_paper_s_preset_takes_three_labels_with_positive_margins():
  margins = np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 0.0, -1.0, -2.0]])
  labels = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
  paper, top_3 = (metrics.PROTOCOLS[name]._replace(ap_method="all_point") for name in ("paper", "paper-top3"))
  found = metrics.measure(paper, margins, labels, np.zeros(labels.shape, bool))
  assert (found["OP"], found["OR"]) == (
    1,
    4 / 6,
  )  # three of the first image, one of the second: 0 is no positive margin
  found = metrics.measure(top_3, margins, labels, np.zeros(labels.shape, bool))
  assert (found["OP"], found["OR"]) == (5 / 6, 5 / 6)


# One image with two objects, classes 0 and 1; a second without any. Boxes are (top, left, bottom, right).
BOXES = [np.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 0.75]]), np.zeros((0, 4))]
CLASSES = [np.array([0, 1]), np.zeros(0, int)]


def test_box_iou_by_hand():
  # A square; its lower right quarter; one that touches it; nothing at all.
  a = np.array([[0.0, 0.0, 1.0, 1.0]])
  b = np.array([[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.5, 1.5], [1.0, 0.0, 2.0, 1.0], [0.2, 0.2, 0.2, 0.2]])
  np.testing.assert_allclose(boxes_lib.box_iou(a, b), [[0.25, 0.25 / 1.75, 0, 0]])
  assert boxes_lib.box_iou(b[3:], b[3:]) == 0


def test_box_iou_equals_counting_on_a_raster():
  rng = np.random.default_rng(0)
  boxes = [np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4) for n in (7, 5)]
  points = (np.arange(400) + 0.5) / 400

  def drawn(box):
    top, left, bottom, right = box
    return ((top <= points) & (points <= bottom))[:, None] & (left <= points) & (points <= right)

  one, other = (np.stack([drawn(box) for box in each]) for each in boxes)
  shared, joined = (one[:, None] & other).sum((-1, -2)), (one[:, None] | other).sum((-1, -2))
  np.testing.assert_allclose(boxes_lib.box_iou(*boxes), shared / joined, atol=0.02)


def test_clip_boxes_turns_mirrored_ones_round():
  boxes = np.array([[-0.5, 0.25, 0.5, 1.5], [0.5, 0.75, 0.25, 0.5], [1.2, 0.1, 1.4, 0.2]])
  wanted = [[0, 0.25, 0.5, 1], [0.25, 0.5, 0.5, 0.75], [1, 0.1, 1, 0.2]]
  np.testing.assert_allclose(boxes_lib.clip_boxes(boxes), wanted)


def around(x, y, height=0.1, width=0.1):
  return [y - height / 2, x - width / 2, y + height / 2, x + width / 2]


def test_places_by_hand():
  # Centred on the first object; nowhere; on the second, which spans x .5-.75 and y .5-1; on the first.
  one = [around(0.1, 0.4), around(0.9, 0.9), around(0.6, 0.9), around(0.3, 0.1)]
  found = metrics.region_metrics(np.array([one] * 2), np.array([[0, 1, 3], [0, 0, 0]]), BOXES, CLASSES)
  assert found.r_precision == 1 / 2  # of the first two looks, one is on an object
  assert found.coverage == 1  # both objects hold a centre
  assert found.pointing == 1 / 2  # class 0 was won on its object, class 1 beside it
  assert metrics.region_metrics(np.array([one]), None, BOXES[:1], CLASSES[:1]).pointing == 1  # the best could


def test_fit_by_hand():
  # IoU with the first object: 0.4 / 0.5 of its height = 0.8; with the second: half of it, 0.25 high, = 0.5 at most.
  regions = np.array([[[0.0, 0.0, 0.4, 0.5], [0.5, 0.5, 0.75, 0.75]]])
  found = metrics.region_metrics(regions, np.array([[0, 1]]), BOXES[:1], CLASSES[:1])
  assert (found.iou_30, found.iou_50) == (1, 1)
  shorter = np.array([[[0.0, 0.0, 0.4, 0.5], [0.5, 0.5, 0.7, 0.75]]])  # 0.4 of the second
  found = metrics.region_metrics(shorter, np.array([[0, 1]]), BOXES[:1], CLASSES[:1])
  assert (found.iou_30, found.iou_50) == (1, 1 / 2)
  swapped = metrics.region_metrics(shorter, np.array([[1, 0]]), BOXES[:1], CLASSES[:1])
  assert (swapped.iou_30, swapped.iou_50) == (0, 0)
  best = metrics.region_metrics(shorter, None, BOXES[:1], CLASSES[:1])
  assert (best.iou_30, best.iou_50) == (1, 1 / 2)


def test_redundancy_and_astray_by_hand():
  # Two equal regions, one that reaches a quarter outside, one centred outside, one mirrored.
  half = [0.0, 0.0, 0.5, 0.5]
  regions = np.array([[half, half], [half, [-0.5, 0.0, 0.5, 0.5]], [half, [0.0, 0.9, 0.5, 1.2]]])
  found = metrics.region_metrics(regions, np.zeros((3, 2), int), BOXES[:1] * 3, CLASSES[:1] * 3)
  assert found.redundancy == pytest.approx((1 + 1 + 0) / 3)  # what lies outside does not count
  assert found.astray == 1 / 6
  mirrored = np.array([[half, [0.5, 0.0, 0.0, 0.5]]])
  found = metrics.region_metrics(mirrored, np.zeros((1, 2), int), BOXES[:1], CLASSES[:1])
  assert (found.redundancy, found.astray) == (1, 1 / 2)
  alone = metrics.region_metrics(regions[:, :1], None, BOXES[:1] * 3, CLASSES[:1] * 3)
  assert np.isnan(alone.redundancy)


def test_chance_by_hand():
  points = np.zeros((2, 2, 4))  # regions of no size
  found = metrics.chance_region_metrics(points, np.zeros((2, 2), int), BOXES, CLASSES, samples=100_000)
  assert found.coverage == pytest.approx((1 - (1 - 0.25) ** 2 + 1 - (1 - 0.125) ** 2) / 2, abs=0.01)
  assert found.r_precision == pytest.approx(0.375, abs=0.01)  # the union's area
  assert found.pointing == pytest.approx((0.25 + 0.125) / 2, abs=0.01)
  assert (found.iou_30, found.redundancy, found.astray) == (0, 0, 0)


def test_chance_is_what_random_places_get():
  rng = np.random.default_rng(0)
  images, looks = 3000, 3
  sizes = np.array([[0.5, 0.5], [0.2, 0.4], [0.5, 0.3]])
  centres, winners = rng.random((images, looks, 2)), rng.integers(0, looks, (images, 2))
  regions = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1)
  found = metrics.region_metrics(regions, winners, BOXES[:1] * images, CLASSES[:1] * images)
  mirrored = regions[..., [2, 3, 0, 1]]  # elsewhere and upside down: only the sizes count
  wanted = metrics.chance_region_metrics(
    mirrored, winners, BOXES[:1] * images, CLASSES[:1] * images, samples=16, seed=1
  )
  np.testing.assert_allclose(found, wanted, atol=0.02)
  assert found.iou_50 > 0.02


def test_no_boxes_at_all_is_undefined():
  found = metrics.region_metrics(np.zeros((1, 2, 4)), np.zeros((1, 2), int), BOXES[1:], CLASSES[1:])
  assert np.isnan(found).all()


def test_arguments_are_taken_in_every_form_or_refused():
  scores, labels = [0.9, 0.2, 0.6, 0.4], [1, 0, 0, 1]
  wanted = (1 + 2 / 3) / 2  # ranks 1 and 3
  forms = (
    (scores, labels),
    (np.array(scores), np.array(labels, bool)),
    (np.array([90, 20, 60, 40], np.uint8), np.array(labels, np.int8)),
    (np.array(scores, np.float32), np.array(labels, np.float64)),
  )
  for form in forms:
    assert metrics.average_precision(*form) == pytest.approx(wanted)
    assert metrics.average_precisions(*(np.array(each)[:, None] for each in form)) == pytest.approx([wanted])
  for wrong, match in (
    ((scores, [1, -1, -1, 1]), "labels must be 0 or 1, got -1"),
    ((scores, [2, 0, 0, 1]), "labels must be 0 or 1, got 2"),
    ((scores, [0.5, 0, 0, 1]), r"labels must be 0 or 1, got 0\.5"),
    ((scores, ["a", "b", "c", "d"]), "labels must be 0 or 1, got <U1"),
    ((scores[:3], labels), r"same shape, \[N\]; got scores \[3\], labels \[4\]"),
    (([scores], [labels]), r"same shape, \[N\]; got scores \[1, 4\]"),
    (([0.1, np.nan, 0.2, 0.3], labels), "scores must be finite"),
    ((["a", "b", "c", "d"], labels), "scores must be numbers"),
  ):
    with pytest.raises(ValueError, match=match):
      metrics.average_precision(*wrong)
  many = 5_000  # float16 counts to 2,048
  half = np.ones(many, np.float16), np.arange(many) % 2 == 0
  assert metrics.average_precision(half[0], half[1].astype(np.float16)) == pytest.approx(0.5)
  for form in ([[9, 0, 5]], np.array([[9, 0, 5]], np.uint8)):
    assert metrics.top_k_labels(form, 2).tolist() == [[True, False, True]]
  assert metrics.mean_average_precision([0.5, np.nan, 1]) == 0.75
  predicted = [[True, False], [True, True]]
  assert metrics.precision_recall_f1(predicted, [[1, 0], [0, 1]])["OP"] == pytest.approx(2 / 3)
  with pytest.raises(ValueError, match="predicted must be bool, or 0 or 1: compare scores with a threshold first"):
    metrics.precision_recall_f1([[0.3, 0.7]], [[0, 1]])
  with pytest.raises(ValueError, match=r"ignore \[1\]"):
    metrics.precision_recall_f1(predicted, [[1, 0], [0, 1]], ignore=[True])
