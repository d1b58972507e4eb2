"""What is chosen on the validation split, and never on the test split: C of the SVMs, thresholds, a temperature.

`selection.json` in the workdir holds them. A run with a validation split makes it; one without (`data.validation` is
empty: all labelled images were trained on) uses the one that lies in its workdir, made by the run before.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rmam_jax.evaluation import calibration, metrics, svm
from rmam_jax.evaluation import views as views_lib
from rmam_jax.evaluation.outputs import Outputs
from rmam_jax.runtime.errors import UserError

FILE = "selection.json"


class Selection(NamedTuple):
  chosen_on: str  # the data set and split
  class_names: list[str]
  rule: str  # `evaluation.thresholds`
  seen: dict[str, str]  # the views and the feature that C, temperature and thresholds were chosen with
  svm_c: float | None  # None without SVMs
  svm_mAP: dict[str, float]  # of each value of C that was tried, on that split; empty if there was but one
  temperature: float  # see `calibration`
  thresholds: list[float]  # [L], on the network's scores
  prediction: dict[str, Any]  # temperature and thresholds for scores of the centre view alone, which prediction sees


def svm_features(answers: Outputs, config: Any) -> np.ndarray:
  """The features as the SVMs see them."""
  return svm.normalize(answers.features) if config.evaluation.svm_normalize else answers.features


def _choose_c(config: Any, train: Outputs | None, validation: Outputs) -> tuple[float | None, dict[str, float]]:
  """The C of highest mAP on the validation split, the lowest of equals, and every C's mAP; None without SVMs."""
  section = config.evaluation
  grid = sorted(section.svm_c)
  if train is None:
    return None, {}
  if len(grid) == 1:
    return grid[0], {}
  features = svm_features(validation, config)
  every = svm.fit(
    svm_features(train, config), train.labels, grid, ignore=train.ignore, solver=section.svm_solver, seed=config.seed
  )
  found = {}
  for c, machines in zip(grid, every, strict=True):
    precisions = metrics.average_precisions(
      machines.margins(features), validation.labels, ignore=validation.ignore, method=section.ap_method
    )
    found[str(c)] = metrics.mean_average_precision(precisions)
  return max(grid, key=lambda c: found[str(c)]), found


def select(
  config: Any,
  kind: str,
  class_names: Sequence[str],
  name: str,
  train: Outputs | None,
  validation: Outputs,
  one_view: Outputs,
) -> Selection:
  """Chooses on a validation split.

  Args:
    config: the configuration.
    kind: the classification loss, "sigmoid" or "euclidean".
    class_names: L names.
    name: the validation split's.
    train: on training images, for the SVMs; None without SVMs.
    validation: on the validation split.
    one_view: on the centre view alone of the same images.
  """
  svm_c, tried = _choose_c(config, train, validation)
  return Selection(
    chosen_on=name,
    class_names=list(class_names),
    rule=config.evaluation.thresholds,
    seen=_seen(config),
    svm_c=svm_c,
    svm_mAP=tried,
    **_calibrate(config, kind, validation),
    prediction=_calibrate(config, kind, one_view),
  )


def _seen(config: Any) -> dict[str, str]:
  return {**views_lib.names(config), "feature": config.evaluation.feature}


def differing(selection: Selection, config: Any) -> str:
  """A sentence where an evaluation differs from the one that its selection were made with, else nothing."""
  now = {**_seen(config), "thresholds": config.evaluation.thresholds}
  then = {**selection.seen, "thresholds": selection.rule}
  fields = [f"{name} {then.get(name)} (now {now[name]})" for name in now if now[name] != then.get(name)]
  return (
    f"C, temperature and thresholds were chosen on {selection.chosen_on} with {', '.join(fields)}" if fields else ""
  )


def _calibrate(config: Any, kind: str, validation: Outputs) -> dict[str, Any]:
  truth = validation.labels, validation.ignore
  return {
    "temperature": calibration.fit_temperature(validation.scores, *truth, kind),
    "thresholds": calibration.fit_thresholds(validation.scores, *truth, config.evaluation.thresholds).tolist(),
  }


def check(folder: pathlib.Path) -> None:
  """Refuses a workdir without selection.

  Raises:
    UserError: says where they could come from.
  """
  if not (folder / FILE).exists():
    raise UserError(
      f"data.validation is empty and {folder} holds no {FILE}: copy the one of a run that had a validation split, or"
      " name a split with --config.data.validation=SPLIT"
    )


def read(folder: pathlib.Path, class_names: Sequence[str]) -> Selection:
  """The selection that lie in a workdir.

  Raises:
    UserError: there are none.
    UserError: not readable, or made for other classes.
  """
  check(folder)
  path = folder / FILE
  try:
    selection = Selection(**json.loads(path.read_text()))
  except (json.JSONDecodeError, TypeError) as error:
    raise UserError(f"{path} holds no selection ({error}): copy it again from the run that made it") from error
  if selection.class_names != list(class_names):
    raise UserError(f"{path} was made for other classes ({', '.join(selection.class_names[:5])}, ...)")
  return selection
