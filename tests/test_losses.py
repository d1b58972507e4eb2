"""Eq. 7-14 against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmam_jax as rmam
from rmam_jax.ops import losses

LOG = np.log


def test_classification_loss_by_hand():
  # Softmax of (log 1, log 3) is (1/4, 3/4); of (log 2, log 2) is (1/2, 1/2).
  scores = jnp.array([[LOG(1), LOG(3)], [LOG(2), LOG(2)]])
  labels = jnp.array([[1, 0], [1, 1]])
  # First image: (1/4 - 1)^2 + (3/4)^2 = 9/8; second: its target is (1/2, 1/2), so 0.
  np.testing.assert_allclose(rmam.classification_loss(scores, labels), (9 / 8 + 0) / 2, rtol=1e-6)


def test_ignored_classes_leave_softmax_target_and_sum():
  scores = jnp.array([[LOG(1), LOG(3), 50.0]])
  labels = jnp.array([[1.0, 0.0, 0.0]])
  ignore = jnp.array([[False, False, True]])
  np.testing.assert_allclose(rmam.classification_loss(scores, labels, ignore=ignore), 9 / 8, rtol=1e-6)
  gradient = jax.grad(lambda s: rmam.classification_loss(s, labels, ignore=ignore))(scores)
  assert gradient[0, 2] == 0


def test_sigmoid_loss_by_hand():
  # sigmoid(log 3) = 3/4, sigmoid(0) = 1/2.
  scores, labels = jnp.array([[LOG(3), 0.0]]), jnp.array([[1.0, 0.0]])
  np.testing.assert_allclose(rmam.sigmoid_loss(scores, labels), -LOG(3 / 4) - LOG(1 / 2), rtol=1e-6)
  ignore = jnp.array([[True, False]])
  np.testing.assert_allclose(rmam.sigmoid_loss(scores, labels, ignore=ignore), -LOG(1 / 2), rtol=1e-6)


@pytest.mark.parametrize("loss", [rmam.classification_loss, rmam.sigmoid_loss])
def test_padding_changes_neither_loss_nor_gradient(loss):
  rng = np.random.default_rng(0)
  scores, labels = rng.normal(size=(3, 4)).astype(np.float32), np.eye(3, 4, dtype=np.float32)
  padded = np.concatenate([scores, np.full((2, 4), 7.0, np.float32)])
  padded_labels = np.concatenate([labels, np.zeros((2, 4), np.float32)])
  mask = np.array([1, 1, 1, 0, 0], np.float32)
  value, gradient = jax.value_and_grad(loss)(padded, padded_labels, example_mask=mask)
  wanted, wanted_gradient = jax.value_and_grad(loss)(scores, labels)
  np.testing.assert_allclose(value, wanted, rtol=1e-6)
  np.testing.assert_allclose(gradient[:3], wanted_gradient, rtol=1e-5)
  assert (gradient[3:] == 0).all()


THETAS = jnp.array([[[0.7, -0.9, 0.3, 0.0]], [[0.05, 0.5, 0.6, 0.2]]])  # K = 2, one image


def test_scale_loss_by_hand():
  # max(.7 - .5, 0)^2 + max(.9 - .5, 0)^2 = .04 + .16; both of the second region's scales are small enough.
  np.testing.assert_allclose(rmam.scale_loss(THETAS), [[0.2], [0]], atol=1e-7)


def test_anchor_loss_by_hand():
  # The only anchor at K = 2 is (.5, .5): ((.6 - .5)^2 + (.2 - .5)^2) / 2 = .05; the first region is free.
  np.testing.assert_allclose(rmam.anchor_loss(THETAS), [[0.05]], rtol=1e-6)


def test_positive_loss_by_hand():
  # First region: 0 + (.1 + .9); second: .1 - .05 + 0.
  np.testing.assert_allclose(rmam.positive_loss(THETAS), [[1.0], [0.05]], rtol=1e-6)


def test_localization_loss_by_hand():
  # l_S + .01 l_A + .1 l_P = .2 + .0005 + .105, each summed over the regions.
  np.testing.assert_allclose(rmam.localization_loss(THETAS), 0.3055, rtol=1e-6)
  without = rmam.localization_loss(THETAS, scale_weight=0, positive_weight=0)
  np.testing.assert_allclose(without, 0.0005, rtol=1e-5)


def test_region_1_may_be_without_any_constraint():
  # Of the second region: 0 + .01 x .05 + .1 x .05.
  np.testing.assert_allclose(rmam.localization_loss(THETAS, constrain_first=False), 0.0055, rtol=1e-6)
  gradient = jax.grad(rmam.localization_loss)(THETAS, constrain_first=False)
  assert (gradient[0] == 0).all()
  assert (jax.grad(rmam.localization_loss)(THETAS)[0, 0, :2] != 0).all()


def test_localization_loss_is_the_mean_over_images():
  twice = jnp.concatenate([THETAS, jnp.zeros_like(THETAS)], axis=1)
  masked = rmam.localization_loss(twice, example_mask=jnp.array([1.0, 0.0]))
  np.testing.assert_allclose(masked, 0.3055, rtol=1e-6)
  assert float(rmam.localization_loss(twice)) != pytest.approx(0.3055, rel=1e-3)


def test_a_region_at_its_anchor_of_good_scale_costs_nothing():
  anchors = rmam.anchor_points(5)
  centres = np.concatenate([[[0.9, -0.9]], anchors])  # the first may be anywhere
  thetas = np.concatenate([np.full((5, 2), 0.3), centres], axis=1)[:, None]
  np.testing.assert_allclose(rmam.localization_loss(jnp.asarray(thetas)), 0, atol=1e-7)


def test_joint_loss_by_hand():
  scores = jnp.array([[[LOG(1), LOG(0.5)]], [[LOG(0.5), LOG(3)]]])  # Eq. 6 gives (log 1, log 3)
  labels = jnp.array([[1.0, 0.0]])
  np.testing.assert_allclose(rmam.joint_loss(scores, THETAS, labels), 9 / 8 + 0.1 * 0.3055, rtol=1e-6)
  null = rmam.joint_loss(scores, THETAS, labels, localization_weight=0.0)
  np.testing.assert_allclose(null, 9 / 8, rtol=1e-6)


def test_gradients_by_finite_differences_in_float64():
  with jax.enable_x64():
    rng = np.random.default_rng(1)
    scores, thetas = jnp.asarray(rng.normal(size=(3, 2, 4))), jnp.asarray(rng.normal(size=(3, 2, 4)))
    labels = jnp.asarray([[1.0, 0, 1, 0], [0, 1, 0, 0]])
    for classification in (rmam.classification_loss, rmam.sigmoid_loss):

      def loss(s, t, classification=classification):
        return rmam.joint_loss(s, t, labels, classification=classification)

      for argument in (0, 1):
        direction = jnp.asarray(rng.normal(size=(3, 2, 4)))
        slope = (jax.grad(loss, argument)(scores, thetas) * direction).sum()
        step = 1e-6 * direction
        moved = [(scores, thetas), (scores, thetas)]
        moved[0] = tuple(x + step * (i == argument) for i, x in enumerate(moved[0]))
        moved[1] = tuple(x - step * (i == argument) for i, x in enumerate(moved[1]))
        np.testing.assert_allclose(slope, (loss(*moved[0]) - loss(*moved[1])) / 2e-6, rtol=1e-6)


def test_log_odds_of_a_softmax_by_hand():
  # Of (log 1, log 3, log 4) the shares are 1/8, 3/8, 4/8.
  found = losses.softmax_log_odds(jnp.log(jnp.array([1.0, 3, 4])))
  np.testing.assert_allclose(found, LOG([1 / 7, 3 / 5, 1]), atol=1e-6)
  np.testing.assert_array_equal(found, losses.softmax_log_odds(np.log(np.array([1.0, 3, 4]))))  # of numpy's float64
  assert losses.softmax_log_odds(jnp.array([[5.0]])) == jnp.finfo(jnp.float32).max  # one class is always sure


def test_log_odds_of_a_softmax_are_exact_where_it_is_0_or_1_and_ignore_what_eq_7_ignores():
  scores = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * np.geomspace(0.1, 300, 50)[:, None]
  exact = scores.astype(np.longdouble)
  odds = np.stack([exact[:, c] - np.logaddexp.reduce(np.delete(exact, c, 1), axis=1) for c in range(4)], axis=1)
  found = losses.softmax_log_odds(jnp.asarray(scores, jnp.float32))
  np.testing.assert_allclose(found, odds.astype(float), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(jax.nn.sigmoid(found), jax.nn.softmax(jnp.asarray(scores, jnp.float32)), atol=1e-6)
  shifted = losses.softmax_log_odds(jnp.asarray(scores + np.arange(50)[:, None], jnp.float32))
  np.testing.assert_allclose(shifted, found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", [rmam.classification_loss, rmam.sigmoid_loss])
def test_labels_other_than_0_and_1_are_an_error(loss):
  with pytest.raises(ValueError, match="labels must be 0 or 1"):
    loss(jnp.zeros((1, 2)), jnp.array([[0.5, 1.0]]))
  with pytest.raises(ValueError, match=r"\[B, L\], got \[1, 2\], \[1, 3\]"):
    loss(jnp.zeros((1, 2)), jnp.zeros((1, 3)))


def test_thetas_of_another_shape_are_an_error():
  with pytest.raises(ValueError, match=r"\[K, B, 4\], got \[2, 4\]"):
    rmam.localization_loss(jnp.zeros((2, 4)))
