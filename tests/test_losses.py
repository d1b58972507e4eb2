"""Eq. 7-14 against numbers worked out by hand."""

import functools

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


@pytest.mark.parametrize("loss", losses.CLASSIFICATION_LOSSES.values())
def test_padding_changes_neither_loss_nor_gradient(loss):
  rng = np.random.default_rng(0)
  scores, labels = rng.normal(size=(3, 4)).astype(np.float32), np.eye(3, 4, dtype=np.float32)
  padded = np.concatenate([scores, np.full((2, 4), 7.0, np.float32)])
  padded_labels = np.concatenate([labels, np.zeros((2, 4), np.float32)])
  mask = np.array([1, 1, 1, 0, 0], np.float32)
  both = jax.jit(jax.value_and_grad(loss))
  value, gradient = both(padded, padded_labels, example_mask=mask)
  wanted, wanted_gradient = both(scores, labels)
  np.testing.assert_allclose(value, wanted, rtol=1e-6)
  np.testing.assert_allclose(gradient[:3], wanted_gradient, rtol=1e-5)
  assert (gradient[3:] == 0).all()


def test_focal_loss_by_hand():
  # sigmoid(log 3) = 3/4: present, it costs (1/4)^2 x -log(3/4); absent, (3/4)^2 x -log(1/4); weighed 1/4 and 3/4.
  scores = jnp.array([[LOG(3), LOG(3)]])
  found = losses.focal_loss(scores, jnp.array([[1.0, 0.0]]))
  np.testing.assert_allclose(found, -LOG(3 / 4) / 16 / 4 - 9 / 16 * LOG(1 / 4) * 3 / 4, rtol=1e-6)
  unweighed = losses.focal_loss(scores, jnp.array([[1.0, 0.0]]), gamma=1.0, alpha=-1.0)
  np.testing.assert_allclose(unweighed, -LOG(3 / 4) / 4 - 3 / 4 * LOG(1 / 4), rtol=1e-6)


def test_asymmetric_loss_by_hand():
  # Present, with gamma_pos 0: -log(3/4). Absent: q = 3/4 - 1/20 = 7/10, and q^4 x -log(3/10).
  scores, labels = jnp.array([[LOG(3), LOG(3)]]), jnp.array([[1.0, 0.0]])
  found = losses.asymmetric_loss(scores, labels)
  np.testing.assert_allclose(found, -LOG(3 / 4) - 0.7**4 * LOG(0.3), rtol=1e-6)
  found = losses.asymmetric_loss(scores, labels, gamma_pos=1.0, gamma_neg=2.0, clip=0.0)
  np.testing.assert_allclose(found, -LOG(3 / 4) / 4 - (3 / 4) ** 2 * LOG(1 / 4), rtol=1e-6)
  # An absent class below the clip costs nothing and teaches nothing, whatever the power.
  for gamma in (0.0, 0.5, 4.0):
    value, slope = jax.value_and_grad(losses.asymmetric_loss)(
      jnp.array([[LOG(1 / 20)]]), jnp.zeros((1, 1)), gamma_neg=gamma
    )
    assert (value, slope[0, 0]) == (0, 0)


def test_without_their_factors_both_are_cross_entropy():
  rng = np.random.default_rng(0)
  scores, labels = jnp.asarray(rng.normal(size=(4, 5)) * 5), jnp.asarray(rng.integers(0, 2, (4, 5)), jnp.float32)
  wanted = rmam.sigmoid_loss(scores, labels)
  np.testing.assert_allclose(losses.focal_loss(scores, labels, gamma=0.0, alpha=-1.0), wanted, rtol=1e-6)
  np.testing.assert_allclose(losses.asymmetric_loss(scores, labels, gamma_neg=0.0, clip=0.0), wanted, rtol=1e-6)


@pytest.mark.parametrize("loss", [rmam.sigmoid_loss, losses.focal_loss, losses.asymmetric_loss])
def test_losses_of_single_classes_are_linear_in_labels_and_finite_far_out(loss):
  rng = np.random.default_rng(0)
  scores, one, other = rng.normal(size=(4, 5)), *rng.integers(0, 2, (2, 4, 5)).astype(np.float32)
  scores = jnp.asarray(scores, jnp.float32)
  np.testing.assert_allclose(
    loss(scores, 0.3 * one + 0.7 * other), 0.3 * loss(scores, one) + 0.7 * loss(scores, other), rtol=1e-5
  )
  far = jnp.array([[1e4, -1e4, 1e4, -1e4]]), jnp.array([[1.0, 1.0, 0.0, 0.0]])
  value, slope = jax.value_and_grad(loss)(*far)
  assert np.isfinite(value)
  assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", losses.CLASSIFICATION_LOSSES)
def test_class_weights_multiply_all_that_a_class_costs(name):
  loss, rng = losses.CLASSIFICATION_LOSSES[name], np.random.default_rng(0)
  scores, labels = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32), jnp.asarray(np.eye(3)[[0, 1, 2, 0, 1, 2]])
  alone = [float(loss(scores, labels, class_weights=np.eye(3)[c])) for c in range(3)]
  assert min(alone) > 0
  np.testing.assert_allclose(sum(alone), loss(scores, labels), rtol=1e-5)
  found = loss(scores, labels, class_weights=(2.0, 0.5, 3.0))
  np.testing.assert_allclose(found, 2 * alone[0] + 0.5 * alone[1] + 3 * alone[2], rtol=1e-5)


def test_a_mixture_s_target_is_its_shares_of_their_sum():
  # Softmax (1/4, 3/4); labels (1/2, 1) share out as (1/3, 2/3).
  found = rmam.classification_loss(jnp.array([[LOG(1), LOG(3)]]), jnp.array([[0.5, 1.0]]))
  np.testing.assert_allclose(found, 2 * (1 / 12) ** 2, rtol=1e-5)
  # Mixed with an image without labels: (0.6, 0) has the target (1, 0).
  found = rmam.classification_loss(jnp.array([[LOG(1), LOG(3)]]), jnp.array([[0.6, 0.0]]))
  np.testing.assert_allclose(found, 2 * (3 / 4) ** 2, rtol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "clip"), [(4.0, 0.0, 0.05), (4.0, 1.0, 0.05), (2.0, 0.5, 0.0)])
def test_asymmetric_loss_is_that_of_its_authors(gamma_neg, gamma_pos, clip):
  """Values and gradients against torch, written as the paper's own code computes them."""
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  scores, labels = rng.normal(size=(8, 6)) * 3, rng.integers(0, 2, (8, 6)).astype(float)
  x, y = torch.tensor(scores, requires_grad=True), torch.tensor(labels)
  p = torch.sigmoid(x)
  absent = (1 - p + clip).clamp(max=1) if clip else 1 - p
  entropy = y * torch.log(p.clamp(min=1e-8)) + (1 - y) * torch.log(absent.clamp(min=1e-8))
  right = p * y + absent * (1 - y)
  wanted = -(entropy * (1 - right) ** (gamma_pos * y + gamma_neg * (1 - y))).sum(dim=1).mean()
  wanted.backward()
  options = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
  value, slope = jax.value_and_grad(losses.asymmetric_loss)(jnp.asarray(scores), jnp.asarray(labels), **options)
  np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
  np.testing.assert_allclose(slope, x.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, -1.0)])
def test_focal_loss_is_torch_s(gamma, alpha):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  scores, labels = rng.normal(size=(8, 6)) * 3, rng.integers(0, 2, (8, 6)).astype(float)
  x, y = torch.tensor(scores, requires_grad=True), torch.tensor(labels)
  p = torch.sigmoid(x)
  right = p * y + (1 - p) * (1 - y)
  terms = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none") * (1 - right) ** gamma
  terms = terms * (alpha * y + (1 - alpha) * (1 - y)) if alpha >= 0 else terms
  wanted = terms.sum(dim=1).mean()
  wanted.backward()
  value, slope = jax.value_and_grad(losses.focal_loss)(
    jnp.asarray(scores), jnp.asarray(labels), gamma=gamma, alpha=alpha
  )
  np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
  np.testing.assert_allclose(slope, x.grad, rtol=1e-3, atol=1e-6)


def test_every_sigmoid_has_the_sigmoid_s_probabilities():
  scores = jnp.array([LOG(3), 0.0])
  assert set(losses.SIGMOIDS) == set(losses.CLASSIFICATION_LOSSES) - {"euclidean"}
  for name in losses.SIGMOIDS:
    np.testing.assert_allclose(losses.PROBABILITIES[name](scores), [3 / 4, 1 / 2], rtol=1e-6)
    np.testing.assert_array_equal(losses.LOG_ODDS[name](scores), scores)


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
    for classification in losses.CLASSIFICATION_LOSSES.values():
      loss = jax.jit(functools.partial(rmam.joint_loss, labels=labels, classification=classification))
      for argument in (0, 1):
        direction = jnp.asarray(rng.normal(size=(3, 2, 4)))
        slope = (jax.jit(jax.grad(loss, argument))(scores, thetas) * direction).sum()
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


@pytest.mark.parametrize("loss", losses.CLASSIFICATION_LOSSES.values())
def test_labels_outside_of_0_and_1_are_an_error(loss):
  for wrong in (1.5, -0.5, np.nan):
    with pytest.raises(ValueError, match="labels must lie between 0 and 1"):
      loss(jnp.zeros((1, 2)), jnp.array([[wrong, 1.0]]))
  with pytest.raises(ValueError, match=r"\[B, L\], got \[1, 2\], \[1, 3\]"):
    loss(jnp.zeros((1, 2)), jnp.zeros((1, 3)))


def test_thetas_of_another_shape_are_an_error():
  with pytest.raises(ValueError, match=r"\[K, B, 4\], got \[2, 4\]"):
    rmam.localization_loss(jnp.zeros((2, 4)))
