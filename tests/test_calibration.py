"""Thresholds, temperature and reliability: by hand, by trying everything, and from labels drawn as the scores say."""

import functools

import numpy as np
import pytest

from rmam_jax.evaluation import calibration, metrics


def drawn(seed, images=4000, classes=3):
  """Scores and labels that are present with the scores' own sigmoid probability."""
  rng = np.random.default_rng(seed)
  scores = rng.normal(-1, 2, (images, classes))
  labels = (rng.random(scores.shape) < 1 / (1 + np.exp(-scores))).astype(np.float32)
  return scores.astype(np.float32), labels, np.zeros(labels.shape, bool)


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.4])
def test_the_temperature_undoes_a_factor(factor):
  scores, labels, ignore = drawn(0)
  assert calibration.fit_temperature(scores * factor, labels, ignore, "sigmoid") == pytest.approx(factor, rel=0.06)


def test_ignored_labels_have_no_say():
  scores, labels, ignore = drawn(1)
  ignore[:, 1] = True
  wrong = labels.copy()
  wrong[:, 1] = 1 - wrong[:, 1]
  for fit in (
    lambda labels: calibration.fit_temperature(scores, labels, ignore, "sigmoid"),
    lambda labels: calibration.fit_thresholds(scores, labels, ignore, "per_class")[[0, 2]].tolist(),
    lambda labels: calibration.fit_thresholds(scores, labels, ignore, "global").tolist(),
    lambda labels: calibration.reliability(calibration.probabilities(scores, "sigmoid"), labels, ignore).expected_error,
  ):
    assert fit(labels) == fit(wrong)


def test_threshold_by_hand():
  # Down to the score 3: F1 2/4; 2: 1/2 x ... ; two of the three highest are right: 2 x 2 / (3 + 2) is the best.
  assert calibration.best_threshold(np.array([5.0, 4.0, 3.0, 1.0]), np.array([1, 0, 1, 0])) == 2.0
  assert calibration.best_threshold(np.array([5.0, 5.0, 1.0]), np.array([1, 0, 0])) == 3.0  # equals go together
  assert calibration.best_threshold(np.array([2.0, 1.0]), np.array([1, 1])) == 1.0  # none lower
  assert calibration.best_threshold(np.array([2.0, 1.0]), np.array([0, 0])) == np.inf


def f1(predicted, labels):
  return 2 * (predicted & (labels == 1)).sum() / (predicted.sum() + labels.sum())


def test_no_other_threshold_is_better():
  scores, labels, ignore = drawn(2, images=150)
  per_class = calibration.fit_thresholds(scores, labels, ignore, "per_class")
  for c, threshold in enumerate(per_class):
    best = max(f1(scores[:, c] >= t, labels[:, c]) for t in scores[:, c])
    assert f1(scores[:, c] >= threshold, labels[:, c]) == pytest.approx(best)
  everywhere = calibration.fit_thresholds(scores, labels, ignore, "global")
  assert len(set(everywhere)) == 1
  found = metrics.precision_recall_f1(scores >= everywhere, labels)
  assert found["OF1"] == pytest.approx(max(f1(scores >= t, labels) for t in scores.ravel()))


def test_a_class_without_positives_takes_the_global_threshold():
  scores, labels, ignore = drawn(3, images=100)
  labels[:, 1] = 0
  found = calibration.fit_thresholds(scores, labels, ignore, "per_class")
  assert found[1] == calibration.fit_thresholds(scores, labels, ignore, "global")[0]
  with pytest.raises(ValueError, match="thresholds must be one of per_class, global, got 'best'"):
    calibration.fit_thresholds(scores, labels, ignore, "best")


def test_what_a_softmax_leaves_open_decides_nothing():
  """Eq. 7 is the same for scores with a constant added for each image: so are thresholds and the labels they give."""
  rng = np.random.default_rng(5)
  scores = rng.normal(0, 2, (300, 4)).astype(np.float32)
  labels = (rng.random(scores.shape) < calibration.probabilities(scores, "euclidean")).astype(np.float32)
  shifted, ignore = scores + rng.normal(0, 5, (300, 1)).astype(np.float32), np.zeros(labels.shape, bool)
  fitted, raw = [], []
  for each in (scores, shifted):
    log_odds = calibration.log_odds(each, "euclidean")
    thresholds = calibration.fit_thresholds(log_odds, labels, ignore, "per_class")
    rule = calibration.make_thresholds("euclidean", {"thresholds": thresholds}, top_k=3)
    fitted.append(rule.chosen(each))
    np.testing.assert_array_equal(fitted[-1], calibration.probabilities(each, "euclidean") >= sigmoid(thresholds))
    raw.append(calibration.fit_thresholds(calibration.log_odds(each, "sigmoid"), labels, ignore, "per_class"))
  np.testing.assert_array_equal(*fitted)
  assert np.abs(raw[0] - raw[1]).max() > 0.1  # a sigmoid's scores are log-odds as they are


@pytest.mark.parametrize(("kind", "temperature"), [("sigmoid", 0.7), ("sigmoid", 3.0), ("euclidean", 1.0)])
def test_thresholds_as_probabilities_give_the_same_labels(kind, temperature):
  scores = np.random.default_rng(6).normal(0, 3, (500, 3)).astype(np.float32)
  selection = {"thresholds": [-2.0, 0.3, float(calibration.log_odds(scores, kind)[0, 2])], "temperature": temperature}
  for options in ({}, {"threshold": 0.3}, {"threshold": np.array([0.9, 0.1, 0.4])}):
    rule = calibration.make_thresholds(kind, selection, top_k=3, **options)
    np.testing.assert_array_equal(rule.chosen(scores), rule.probabilities(scores) >= rule.as_probabilities(3))
    assert 0.05 < rule.chosen(scores).mean() < 0.95


def test_labels_that_others_of_the_image_decide_have_no_thresholds():
  make = functools.partial(calibration.make_thresholds, top_k=3)
  assert make("euclidean", {}).as_probabilities(3) is None  # the three highest
  assert make("euclidean", {"thresholds": [0.0] * 3, "temperature": 2.0}).as_probabilities(3) is None
  assert make("sigmoid", {}, top=1).as_probabilities(3) is None


def sigmoid(log_odds):
  return 1 / (1 + np.exp(-np.asarray(log_odds)))


def test_reliability_by_hand():
  probability = np.array([[0.1, 0.2], [0.9, 1.0]])
  labels = np.array([[0, 1], [1, 1]])
  found = calibration.reliability(probability, labels, np.zeros((2, 2), bool), bins=4)
  assert found.counts.tolist() == [2, 0, 0, 2]
  np.testing.assert_allclose(found.confidence, [0.15, np.nan, np.nan, 0.95])
  np.testing.assert_allclose(found.frequency, [0.5, np.nan, np.nan, 1.0])
  assert found.expected_error == pytest.approx((0.35 + 0.05) / 2)


def test_probabilities_that_are_right_have_next_to_no_error():
  scores, labels, ignore = drawn(4)
  error, doubled = (
    calibration.reliability(calibration.probabilities(scores * factor, "sigmoid"), labels, ignore).expected_error
    for factor in (1, 2)
  )
  assert error < 0.02 < 0.05 < doubled
