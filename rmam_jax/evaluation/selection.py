"""What is chosen on the validation split, and never on the test split: C of the SVMs, thresholds, a temperature.

`selection.json` in the workdir holds the selection. A run with a validation split makes it. A run without one
(`data.validation` is empty: all labelled images were trained on) reads the file that an earlier run made and that was
put into its workdir.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rmam_jax.evaluation import calibration, metrics, svm
from rmam_jax.evaluation import views as views_lib
from rmam_jax.evaluation.outputs import Outputs
from rmam_jax.runtime import files
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
  thresholds: list[float]  # [L], on the log-odds of the network's scores
  prediction: dict[str, Any]  # temperature and thresholds for scores of the centre view alone, which prediction sees


def svm_features(outputs: Outputs, config: Any) -> np.ndarray:
  """The features [N, F] as the SVMs see them."""
  return svm.normalize(outputs.features) if config.evaluation.svm_normalize else outputs.features


def _choose_c(config: Any, train: Outputs | None, validation: Outputs) -> tuple[float | None, dict[str, float]]:
  """The C of highest mAP on the validation split, the lowest of equals, and every C's mAP; None without SVMs."""
  section = config.evaluation
  grid = sorted(section.svm_c)
  if train is None or len(grid) == 1:
    return (None if train is None else grid[0]), {}
  options = {"ignore": train.ignore, "solver": section.svm_solver, "seed": config.seed}
  features, ap_method = svm_features(validation, config), section.ap_method
  found = {}
  for c, machines in zip(grid, svm.fit(svm_features(train, config), train.labels, grid, **options), strict=True):
    margins = machines.margins(features)
    every = metrics.average_precisions(margins, validation.labels, ignore=validation.ignore, method=ap_method)
    found[str(c)] = metrics.mean_average_precision(every)
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
  """Chooses on the validation split of this name, for scores trained with the classification loss `kind`.

  `train` are outputs for the SVMs, or None; `one_view` those for the validation images' centre view alone.
  """

  def calibrated(outputs: Outputs) -> dict[str, Any]:
    known = outputs.labels, outputs.ignore
    log_odds = calibration.log_odds(outputs.scores, kind)
    thresholds = calibration.fit_thresholds(log_odds, *known, config.evaluation.thresholds)
    return {
      "temperature": calibration.fit_temperature(outputs.scores, *known, kind),
      "thresholds": thresholds.tolist(),
    }

  svm_c, tried = _choose_c(config, train, validation)
  return Selection(
    chosen_on=name,
    class_names=list(class_names),
    rule=config.evaluation.thresholds,
    seen={**views_lib.names(config), "feature": config.evaluation.feature},
    svm_c=svm_c,
    svm_mAP=tried,
    **calibrated(validation),
    prediction=calibrated(one_view),
  )


def differing(selection: Selection, config: Any) -> str:
  """A warning if this evaluation's settings differ from those of the selection, else nothing."""
  section = config.evaluation
  now = {**views_lib.names(config), "feature": section.feature, "thresholds": section.thresholds}
  then = {**selection.seen, "thresholds": selection.rule}
  fields = ", ".join(f"{name} {then.get(name)} (now {now[name]})" for name in now if now[name] != then.get(name))
  return f"C, temperature and thresholds were chosen on {selection.chosen_on} with {fields}" if fields else ""


def at_an_end(selection: Selection) -> str:
  """A warning if the C that was chosen is the lowest or the highest of those tried, else nothing."""
  tried = sorted(map(float, selection.svm_mAP))
  if selection.svm_c not in (tried[:1] + tried[-1:]):
    return ""
  end, other = ("lowest", "lower") if selection.svm_c == tried[0] else ("highest", "higher")
  return (
    f"C = {selection.svm_c:g} is best for the SVMs, and the {end} that was tried: add {other} values to"
    " evaluation.svm_c, one of which may be better"
  )


def check(folder: pathlib.Path) -> None:
  """Refuses a workdir without a selection; the UserError says where it could come from."""
  if not (folder / FILE).exists():
    raise UserError(
      f"data.validation is empty and {folder} holds no {FILE}: copy the one of a run that had a validation split, or"
      " name a split with --config.data.validation=SPLIT"
    )


def read(folder: pathlib.Path, class_names: Sequence[str]) -> Selection:
  """The selection in a workdir; raises a UserError if it is not there, not readable, or made for other classes."""
  check(folder)
  path = folder / FILE
  try:
    selection = Selection(**files.read_json(path))
  except TypeError as error:
    raise UserError(f"{path} holds no selection ({error}): copy it again from the run that made it") from error
  if selection.class_names != list(class_names):
    raise UserError(f"{path} was made for other classes ({', '.join(selection.class_names[:5])}, ...)")
  return selection
