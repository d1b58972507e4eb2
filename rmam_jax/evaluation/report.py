"""From answers to results: every figure with its protocol and its controls, and the summary that a person reads."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmam_jax import metrics, update_rules
from rmam_jax.evaluation import regions, svm
from rmam_jax.evaluation.answers import Answers
from rmam_jax.models import recognizer


def _localization(found: metrics.Localization, prefix: str = "") -> dict[str, float]:
  return {prefix + name: value for name, value in found._asdict().items()}


def localizations(test: Answers, config: Any) -> dict[str, metrics.Localization]:
  """How the regions fit the objects, against the same regions at random places and a grid that never moves.

  Nothing is trained in the grid, so it has no winning regions: its figures are what the best choice would reach.

  Returns:
    "ours", "fixed_grid" and "chance".
  """
  truth = test.boxes, test.box_classes
  ours = regions.region_boxes(test.thetas, config).transpose(1, 0, 2)
  grid = update_rules.grid_thetas(config.model.num_regions, config.model.fixed_grid.scale)
  grid_regions = np.broadcast_to(regions.region_boxes(grid, config), ours.shape)
  return {
    "ours": metrics.localization(ours, test.winners, *truth),
    "fixed_grid": metrics.localization(grid_regions, None, *truth),
    "chance": metrics.chance_localization(ours, test.winners, *truth),
  }


def evaluate(
  config: Any, head: str, class_names: Sequence[str], test: Answers, train: Answers | None
) -> dict[str, Any]:
  """All figures for the test split.

  Args:
    config: the configuration.
    head: the name of the head that answered.
    class_names: L names.
    test: the answers on the test split.
    train: on training images, for the SVMs; None leaves them out.

  Returns:
    JSON-ready results; figures are shares in [0, 1], undefined ones None.
  """
  section = config.evaluation

  def precisions(scores):
    return metrics.average_precisions(scores, test.labels, ignore=test.ignore, method=section.ap_method)

  every = precisions(test.pooled)
  results: dict[str, Any] = {
    "mAP": metrics.mean_average_precision(every),
    "AP": dict(zip(class_names, every.tolist(), strict=True)),
    "AP_method": section.ap_method,
    **metrics.precision_recall_f1(metrics.top_k_labels(test.pooled, section.top_k), test.labels, ignore=test.ignore),
    "top_k": section.top_k,
    "test_images": len(test.labels),
  }
  if test.auxiliary is not None:
    results["auxiliary_head"] = config.stage_one.head
    results["auxiliary_mAP"] = metrics.mean_average_precision(precisions(test.auxiliary))
  if train is not None:
    margins = svm.fit_predict(
      train.features,
      train.labels,
      test.features,
      c=section.svm_c,
      ignore=train.ignore,
      seed=config.seed,
    )
    results["svm_mAP"] = metrics.mean_average_precision(precisions(margins))
    results["svm_images"] = len(train.labels)
  if recognizer.looks(head) and any(map(len, test.boxes)):
    for name, found in localizations(test, config).items():
      results |= _localization(found, "" if name == "ours" else f"{name}_")
  return _without_nan(results)


def _without_nan(value: Any) -> Any:
  """JSON has no nan: undefined figures become None."""
  if isinstance(value, dict):
    return {key: _without_nan(item) for key, item in value.items()}
  return None if isinstance(value, float) and math.isnan(value) else value


def _percent(value: float | None) -> str:
  return "   -" if value is None else f"{100 * value:5.1f}"


def summary(results: dict[str, Any]) -> str:
  """One screen of the figures, in %."""
  lines = [
    f"{results['data']}: {results['test_images']} test images, head '{results['head']}', seed {results['seed']}",
    "",
    f"  mAP ({results['AP_method']})       {_percent(results['mAP'])}   network scores, centre view",
  ]
  if "svm_mAP" in results:
    fitted = f"SVMs on region features of {results['svm_images']} training images"
    lines.append(f"                        {_percent(results['svm_mAP'])}   {fitted}")
  if "auxiliary_mAP" in results:
    control = f"control '{results['auxiliary_head']}' on the same backbone, trained beside it"
    lines.append(f"                        {_percent(results['auxiliary_mAP'])}   {control}")
  for control, value in results["controls"].items():
    lines.append(f"                        {_percent(value)}   control '{control}' by itself, as many steps")
  lines += [
    "  per class            " + "  ".join(f"{name} {_percent(ap)}" for name, ap in results["AP"].items()),
    f"  top {results['top_k']}                "
    + "  ".join(f"{name} {_percent(results[name])}" for name in ("CP", "CR", "CF1", "OP", "OR", "OF1")),
  ]
  if "coverage" in results:
    lines += ["", "  where it looked         ours   fixed grid*   chance"]
    for name in metrics.Localization._fields:
      ours, grid, chance = (results[prefix + name] for prefix in ("", "fixed_grid_", "chance_"))
      lines.append(f"    {name:<18} {_percent(ours)}        {_percent(grid)}     {_percent(chance)}")
    lines.append("    * with the best choice among its regions, which nothing has trained it to make")
  return "\n".join(lines)
