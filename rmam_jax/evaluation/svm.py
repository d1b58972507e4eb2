"""One-vs-rest linear SVMs on region features (Sec. 5.1), by scikit-learn's LIBLINEAR."""

import numpy as np


def normalize(features: np.ndarray) -> np.ndarray:
  """Rows scaled to Euclidean length 1; rows of zeros stay."""
  length = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(length, np.finfo(features.dtype).tiny)


def fit_predict(
  train_features: np.ndarray,
  train_labels: np.ndarray,
  test_features: np.ndarray,
  *,
  c: float = 1.0,
  ignore: np.ndarray | None = None,
  seed: int = 0,
) -> np.ndarray:
  """Fits one SVM for each class and returns its margins on the test features.

  Args:
    train_features: [N, F]; normalised here.
    train_labels: [N, L] of 0 and 1.
    test_features: [M, F].
    c: C of the squared hinge loss.
    ignore: bool [N, L]; training labels to leave out of their class.
    seed: of LIBLINEAR's shuffling.

  Returns:
    float64 [M, L]. A class with only positives or only negatives among its training labels cannot be fitted: its
    margins are all zero, so that its average precision is that of chance.
  """
  from sklearn.svm import LinearSVC

  train, test = normalize(train_features), normalize(test_features)
  kept = np.ones(train_labels.shape, bool) if ignore is None else ~ignore
  margins = np.zeros((len(test), train_labels.shape[1]))
  for label in range(train_labels.shape[1]):
    rows = kept[:, label]
    target = train_labels[rows, label]
    if target.min() == target.max():
      continue
    svm = LinearSVC(C=c, dual=len(target) < train.shape[1], random_state=seed)
    margins[:, label] = svm.fit(train[rows], target).decision_function(test)
  return margins
