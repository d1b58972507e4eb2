"""From answers to results: every figure with its protocol and its controls, and the summary that a person reads."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmam_jax import metrics, update_rules
from rmam_jax.evaluation import answers as answering
from rmam_jax.evaluation import svm
from rmam_jax.evaluation.answers import Answers
from rmam_jax.models import recognizer


def _localization(found: metrics.Localization, prefix: str = "") -> dict[str, float]:
  return {prefix + name: value for name, value in found._asdict().items()}


def _grid_localization(test: Answers, config: Any) -> metrics.Localization:
  """The fixed grid's figures on the same images. Nothing is trained, so it has no winning region to point with."""
  thetas = update_rules.grid_thetas(config.model.num_regions, config.model.fixed_grid.scale)
  centres = answering.view_to_image(
    thetas[:, 2:],
    image_size=config.data.image_size,
    crop_size=config.data.crop_size,
    stride=recognizer.stride(config.model),
    align_corners=config.model.align_corners,
  )
  found = metrics.localization(
    np.broadcast_to(centres, (len(test.labels), *centres.shape)),
    np.zeros(test.labels.shape, int),
    test.boxes,
    test.box_classes,
  )
  return found._replace(pointing=math.nan)


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
    found = metrics.localization(test.centres, test.winners, test.boxes, test.box_classes)
    chance = metrics.chance_localization(
      config.model.num_regions, test.boxes, test.box_classes, [(1.0, 1.0)] * len(test.boxes)
    )
    results |= _localization(found)
    results |= _localization(chance, "chance_")
    results |= _localization(_grid_localization(test, config), "fixed_grid_")
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
    lines += ["", "  where it looked         ours   fixed grid   chance"]
    for name in metrics.Localization._fields:
      ours, grid, chance = (results[prefix + name] for prefix in ("", "fixed_grid_", "chance_"))
      lines.append(f"    {name:<18} {_percent(ours)}        {_percent(grid)}    {_percent(chance)}")
  return "\n".join(lines)
