"""The Newton solver against LIBLINEAR run to a tolerance far below its own, and what cannot be solved."""

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from rmam_jax.evaluation import svm
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError

IMAGES, FEATURES, CLASSES = 600, 60, 3


def problem(kind):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(IMAGES, FEATURES)).astype(np.float32)
  scale = np.ones(FEATURES, np.float32)
  if kind == "half_sparse":
    x = svm.normalize(np.maximum(x, 0))  # as region features are
  elif kind == "unnormalised":
    x = 5 * x + 3
  elif kind == "constant_column":
    x[:, :3] = 5
  elif kind == "badly_scaled":
    scale = 10 ** rng.uniform(-3, 3, FEATURES).astype(np.float32)
  signal = (x - x.mean(axis=0)) @ rng.normal(size=(FEATURES, CLASSES))
  share = [0.01, 0.02, 0.03] if kind == "imbalanced" else [0.2, 0.4, 0.6]
  noisy = signal / signal.std() + 0.3 * rng.normal(size=signal.shape)
  return x * scale, (noisy > np.quantile(noisy, 1 - np.array(share), axis=0).diagonal()).astype(int)


KINDS = ("dense", "half_sparse", "unnormalised", "imbalanced", "constant_column", "badly_scaled")


@pytest.mark.parametrize("c", [0.1, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_solution_is_liblinear_s(kind, c):
  x, labels = problem(kind)
  (machines,) = svm.fit(x, labels, [c])
  for label in range(CLASSES):
    theirs = LinearSVC(C=c, dual=False, tol=1e-12, max_iter=20_000).fit(x.astype(np.float64), labels[:, label])
    weights = np.append(machines.weights[label], machines.biases[label])
    wanted = np.append(theirs.coef_, theirs.intercept_)
    assert np.abs(weights - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_ignored_labels_are_as_if_the_image_were_not_there():
  x, labels = problem("half_sparse")
  ignore = np.zeros(labels.shape, bool)
  ignore[::5, 1] = True
  (found,) = svm.fit(x, labels, [1.0], ignore=ignore)
  (without,) = svm.fit(x[~ignore[:, 1]], labels[~ignore[:, 1]], [1.0])
  (everything,) = svm.fit(x, labels, [1.0])
  np.testing.assert_allclose(found.weights[1], without.weights[1], atol=1e-5)
  np.testing.assert_allclose(found.weights[0], everything.weights[0], atol=1e-5)
  assert np.abs(found.weights[1] - everything.weights[1]).max() > 1e-3


def test_values_of_c_one_after_the_other_are_those_by_themselves():
  x, labels = problem("half_sparse")
  together = list(svm.fit(x, labels, [0.01, 1.0, 100.0]))
  for c, found in zip([0.01, 1.0, 100.0], together, strict=True):
    (alone,) = svm.fit(x, labels, [c])
    np.testing.assert_allclose(found.weights, alone.weights, atol=1e-5 * np.abs(alone.weights).max())
  assert np.abs(together[0].weights - together[1].weights).max() > 0.1


def test_both_solvers_agree_to_liblinear_s_own_tolerance():
  x, labels = problem("dense")
  (ours,), (theirs,) = (svm.fit(x, labels, [1.0], solver=solver) for solver in svm.SOLVERS)
  np.testing.assert_allclose(ours.margins(x), theirs.margins(x), atol=1e-2)


@pytest.mark.parametrize("solver", svm.SOLVERS)
def test_each_class_by_features_of_its_own(solver):
  x, labels = problem("dense")
  ignore = np.zeros(labels.shape, bool)
  ignore[::5, 1] = True
  own = np.stack([x, x[:, ::-1] ** 2, x + np.roll(x, 1, axis=1)], axis=1)
  found = list(svm.fit(own, labels, [0.1, 1.0], ignore=ignore, solver=solver))
  for label in range(CLASSES):
    every = svm.fit(own[:, label], labels[:, [label]], [0.1, 1.0], ignore=ignore[:, [label]], solver=solver)
    for machines, alone in zip(found, every, strict=True):
      np.testing.assert_allclose(machines.weights[label], alone.weights[0], rtol=1e-6)
      np.testing.assert_allclose(machines.margins(own)[:, label], alone.margins(own[:, label])[:, 0], rtol=1e-5)
  own[7, 2, 3] = np.inf
  with pytest.raises(UserError, match="the features of image 7 are not finite"):
    next(svm.fit(own, labels, [1.0]))


def test_features_of_length_1():
  features = np.array([[[3.0, 4.0], [0.0, 0.0]]])
  np.testing.assert_allclose(svm.normalize(features), [[[0.6, 0.8], [0.0, 0.0]]])
  np.testing.assert_allclose(svm.normalize(features[:, 0]), [[0.6, 0.8]])


def test_more_rows_than_a_block_and_float64():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(2 * svm.BLOCK + 37, 8))
  labels = (x @ rng.normal(size=(8, 2)) + rng.normal(size=(len(x), 2)) > 0).astype(int)
  (narrow,), (wide,) = (svm.fit(x.astype(kind), labels, [1.0]) for kind in (np.float32, np.float64))
  theirs = LinearSVC(dual=False, tol=1e-12, max_iter=20_000).fit(x, labels[:, 0])
  np.testing.assert_allclose(wide.weights[0], theirs.coef_[0], atol=1e-6)
  np.testing.assert_allclose(narrow.weights, wide.weights, atol=1e-5)


def test_a_class_of_one_kind_has_no_machine():
  x, labels = problem("dense")
  labels[:, 1] = 0
  labels[:, 2] = 1
  for solver in svm.SOLVERS:
    (found,) = svm.fit(x, labels, [1.0], solver=solver)
    assert found.unfitted.tolist() == [1, 2]
    assert not found.margins(x)[:, 1:].any()
    assert found.margins(x)[:, 0].any()


def test_no_convergence_is_an_error(monkeypatch):
  x, labels = problem("dense")
  monkeypatch.setattr(svm, "MOST_STEPS", 2)
  with pytest.raises(UserError, match=r"did not converge at C = 1\.0: the last step still moved"):
    next(svm.fit(x, labels, [1.0]))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"cs": [1.0, 0.0]}, "svm_c must hold positive values"),
    ({"solver": "sgd"}, "svm_solver must be one of newton, liblinear, got 'sgd'"),
    ({"features": np.full((IMAGES, 2), np.nan)}, "the features of image 0 are not finite"),
  ],
)
def test_impossible_problems_are_refused(changes, message):
  x, labels = problem("dense")
  arguments = {"features": x, "labels": labels, "cs": [1.0], **changes}
  with pytest.raises(UserError, match=message):
    next(svm.fit(arguments.pop("features"), arguments.pop("labels"), arguments.pop("cs"), **arguments))


def test_machines_are_saved_without_pickle(tmp_path):
  machines = svm.Machines(np.arange(6.0).reshape(2, 3), np.array([0.5, -1]), ("cat", "dog"))
  svm.save(tmp_path / "svm.npz", machines)
  found = files.read_npz(tmp_path / "svm.npz", "")
  np.testing.assert_array_equal(found["weights"], machines.weights)
  np.testing.assert_array_equal(found["biases"], machines.biases)
  assert found["class_names"].tolist() == ["cat", "dog"]
  np.savez(tmp_path / "bad.npz", weights=np.array([{}], object))
  with pytest.raises(UserError, match=r"bad\.npz is damaged \(Object arrays cannot be loaded.*: run eval\.py again"):
    files.read_npz(tmp_path / "bad.npz", "run eval.py again")
