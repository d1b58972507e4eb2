"""AP against scikit-learn, Eq. 15 and localisation against cases worked out by hand."""

import numpy as np
import pytest

from rmam_jax import metrics


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
  found = metrics.measure(metrics.PROTOCOLS["paper"], margins, labels, np.zeros(labels.shape, bool))
  assert (found["OP"], found["OR"]) == (
    1,
    4 / 6,
  )  # three of the first image, one of the second: 0 is no positive margin
  found = metrics.measure(metrics.PROTOCOLS["paper-top3"], margins, labels, np.zeros(labels.shape, bool))
  assert (found["OP"], found["OR"]) == (5 / 6, 5 / 6)


# One image with two objects, classes 0 and 1; a second without any.
BOXES = [np.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 0.75]]), np.zeros((0, 4))]
CLASSES = [np.array([0, 1]), np.zeros(0, int)]


def test_localization_by_hand():
  # Centres as (x, y): on the first object; nowhere; on the second, which spans x .5-.75 and y .5-1; on the first.
  centres = np.array([[[0.1, 0.4], [0.9, 0.9], [0.6, 0.9], [0.3, 0.1]]] * 2)
  winners = np.array([[0, 1, 3], [0, 0, 0]])
  found = metrics.localization(centres, winners, BOXES, CLASSES)
  assert found.r_precision == 1 / 2  # of the first two looks, one is on an object
  assert found.coverage == 1  # both objects hold a centre
  assert found.pointing == 1 / 2  # class 0 was won on its object, class 1 was won on the other


def test_chance_by_hand():
  found = metrics.chance_localization(2, BOXES, CLASSES, [(1.0, 1.0)] * 2, samples=200_000)
  assert found.coverage == pytest.approx((1 - (1 - 0.25) ** 2 + 1 - (1 - 0.125) ** 2) / 2)
  assert found.r_precision == pytest.approx(0.375, abs=0.01)  # the union's area
  assert found.pointing == pytest.approx((0.25 + 0.125) / 2, abs=0.01)


def test_chance_is_what_random_looks_get():
  rng = np.random.default_rng(0)
  images, looks = 3000, 3
  centres, winners = rng.random((images, looks, 2)), rng.integers(0, looks, (images, 2))
  found = metrics.localization(centres, winners, BOXES[:1] * images, CLASSES[:1] * images)
  wanted = metrics.chance_localization(looks, BOXES[:1], CLASSES[:1], [(1.0, 1.0)], samples=100_000)
  np.testing.assert_allclose(found, wanted, atol=0.02)


def test_no_boxes_at_all_is_undefined():
  found = metrics.localization(np.zeros((1, 2, 2)), np.zeros((1, 2), int), BOXES[1:], CLASSES[1:])
  assert np.isnan(found).all()
