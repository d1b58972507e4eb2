"""From answers to results: every figure with its protocol and its controls, and the summary that a person reads."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmam_jax import heads
from rmam_jax.evaluation import calibration, metrics
from rmam_jax.evaluation import regions as regions_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.evaluation.outputs import Outputs
from rmam_jax.evaluation.selection import Selection
from rmam_jax.ops import next_region


def _prefixed(found: metrics.RegionMetrics, prefix: str = "") -> dict[str, float]:
  return {prefix + name: value for name, value in found._asdict().items()}


def all_region_metrics(test: Outputs, config: Any) -> dict[str, metrics.RegionMetrics]:
  """How the regions fit the objects, against the same regions at random places and a grid of as many that never moves.

  Objects of classes that are neither present nor absent are not counted. Nothing is trained in the grid, so it has no
  winning regions: its figures are what the best choice would reach.

  Returns:
    "ours", "fixed_grid" and "chance".
  """
  truth = test.objects()
  ours = regions_lib.region_boxes(test.thetas, config).transpose(1, 0, 2)
  grid = next_region.grid_thetas(len(test.thetas), config.model.fixed_grid.scale)
  grid_regions = np.broadcast_to(regions_lib.region_boxes(grid, config), ours.shape)
  return {
    "ours": metrics.region_metrics(ours, test.winners, *truth),
    "fixed_grid": metrics.region_metrics(grid_regions, None, *truth),
    "chance": metrics.chance_region_metrics(ours, test.winners, *truth),
  }


def _by_class(class_names: Sequence[str], values: np.ndarray) -> dict[str, float]:
  return dict(zip(class_names, values.tolist(), strict=True))


def _network(config: Any, class_names: Sequence[str], test: Outputs) -> dict[str, Any]:
  """Figures of the network's own scores, and of the auxiliary head's."""
  section, truth = config.evaluation, (test.labels, test.ignore)
  every = _precisions(config, test.scores, test)
  predicted = metrics.top_k_labels(test.scores, section.top_k)
  counts = metrics.count(predicted, test.labels, ignore=test.ignore)
  results = {
    "mAP": metrics.mean_average_precision(every),
    "AP": _by_class(class_names, every),
    "AP_method": section.ap_method,
    **metrics.precision_recall_f1(predicted, truth[0], ignore=truth[1]),
    "top_k": section.top_k,
    "undefined_classes": [name for name, ap in zip(class_names, every, strict=True) if math.isnan(ap)],
    "never_predicted_classes": [name for name, n in zip(class_names, counts.predicted, strict=True) if n == 0],
    "test_images": len(test.readable),
    "skipped_images": test.skipped,
    **views_lib.names(config),
  }
  if test.auxiliary is not None:
    results["auxiliary_head"] = config.stage_one.head
    results["auxiliary_mAP"] = metrics.mean_average_precision(_precisions(config, test.auxiliary, test))
  return results


def _precisions(config: Any, scores: np.ndarray, test: Outputs) -> np.ndarray:
  return metrics.average_precisions(scores, test.labels, ignore=test.ignore, method=config.evaluation.ap_method)


def _calibrated(
  config: Any, kind: str, class_names: Sequence[str], test: Outputs, selection: Selection
) -> dict[str, Any]:
  """What the thresholds and the temperature chosen elsewhere do on the test split."""
  predicted = test.scores >= np.array(selection.thresholds)
  curves = {
    temperature: calibration.reliability(
      calibration.probabilities(test.scores, kind, temperature), test.labels, test.ignore
    )
    for temperature in (1.0, selection.temperature)
  }
  curve = curves[selection.temperature]
  return {
    "thresholded": {
      "rule": selection.rule,
      "chosen_on": selection.chosen_on,
      **metrics.precision_recall_f1(predicted, test.labels, ignore=test.ignore),
      "thresholds": _by_class(class_names, np.array(selection.thresholds)),
    },
    "calibration": {
      "temperature": selection.temperature,
      "chosen_on": selection.chosen_on,
      "ECE": curve.expected_error,
      "ECE_uncalibrated": curves[1.0].expected_error,
      "reliability": [
        {"labels": n, "confidence": confidence, "frequency": frequency}
        for n, confidence, frequency in zip(*(array.tolist() for array in curve), strict=True)
      ],
    },
  }


def evaluate(
  config: Any,
  trained: tuple[str, str],
  class_names: Sequence[str],
  test: Outputs,
  margins: np.ndarray | None,
  selection: Selection,
) -> dict[str, Any]:
  """All figures for the test split.

  Args:
    config: the configuration.
    trained: the name of the head that answered and of the classification loss that it was trained with.
    class_names: L names.
    test: the answers on the test split.
    margins: the SVMs', [N, L]; None without SVMs.
    selection: what was chosen on the validation split.

  Returns:
    JSON-ready results; figures are shares in [0, 1], undefined ones None.
  """
  head, kind = trained
  results = _network(config, class_names, test)
  if margins is not None:
    section, every = config.evaluation, _precisions(config, margins, test)
    results |= {
      "svm_mAP": metrics.mean_average_precision(every),
      "svm_AP": _by_class(class_names, every),
      "svm_c": selection.svm_c,
      "svm_feature": section.feature,
      "svm_solver": section.svm_solver,
    }
  results |= _calibrated(config, kind, class_names, test, selection)
  if heads.get(head).looks and any(map(len, test.boxes)):
    for name, found in all_region_metrics(test, config).items():
      results |= _prefixed(found, "" if name == "ours" else f"{name}_")
  return _without_nan(results)


def _without_nan(value: Any) -> Any:
  """JSON has no nan: undefined figures become None."""
  if isinstance(value, dict):
    return {key: _without_nan(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_without_nan(item) for item in value]
  return None if isinstance(value, float) and math.isnan(value) else value


_F1_NAMES = ("CP", "CR", "CF1", "OP", "OR", "OF1")


def protocol_table(found: Mapping[str, Mapping[str, dict[str, Any]]], class_names: Sequence[str]) -> str:
  """A Markdown table of what each protocol prints, in %.

  Args:
    found: by the name of what was measured and of the protocol, what `scores.measure` returns.
    class_names: L names.
  """
  names = ("mAP", *_F1_NAMES)
  lines = ["| | protocol | scores | " + " | ".join(names) + " |", "|-" * (3 + len(names)) + "|"]
  notes: dict[str, None] = {}
  for run, protocols in found.items():
    for name, figures in protocols.items():
      cells = " | ".join(_percent(_without_nan(figures[each])).strip() for each in names)
      lines.append(f"| {run} | {name} | {metrics.PROTOCOLS[name].scores} | {cells} |")
      for kind, rule in (
        ("undefined", "without positives, not in mAP"),
        ("never_predicted", "never predicted, precision 0"),
      ):
        if figures[kind]:
          notes[f"{run}, {name}: {rule}: {', '.join(class_names[c] for c in figures[kind])}"] = None
  return "\n".join([*lines, *([""] if notes else []), *notes])


def _percent(value: float | None) -> str:
  return "   -" if value is None else f"{100 * value:5.1f}"


def summary(results: dict[str, Any]) -> str:
  """One screen of the figures, in %."""
  lines = [
    f"{results['data']}: {results['test_images']} test images, head '{results['head']}', seed {results['seed']}",
    "",
    f"  mAP ({results['AP_method']})       {_percent(results['mAP'])}   network scores, {views_lib.in_words(results)}",
  ]
  if results["skipped_images"]:
    lines.append(
      f"                                {len(results['skipped_images'])} images cannot be read and do not count"
    )
  if results["undefined_classes"]:
    lines.append(
      f"                                without positives, left out: {', '.join(results['undefined_classes'])}"
    )
  if "svm_mAP" in results:
    fitted = f"SVMs on region features of {results['svm_images']} training images, C = {results['svm_c']:g}"
    lines.append(f"                        {_percent(results['svm_mAP'])}   {fitted}")
  if "auxiliary_mAP" in results:
    control = f"control '{results['auxiliary_head']}' on the same backbone, trained beside it"
    lines.append(f"                        {_percent(results['auxiliary_mAP'])}   {control}")
  for control, value in results["controls"].items():
    lines.append(f"                        {_percent(value)}   control '{control}' by itself, as many steps")
  lines += [
    "  per class            " + "  ".join(f"{name} {_percent(ap)}" for name, ap in results["AP"].items()),
    f"  top {results['top_k']}                " + "  ".join(f"{name} {_percent(results[name])}" for name in _F1_NAMES),
  ]
  if results["never_predicted_classes"]:
    lines.append(
      f"                       never predicted, precision 0: {', '.join(results['never_predicted_classes'])}"
    )
  thresholded, calibrated = results["thresholded"], results["calibration"]
  lines += [
    "  thresholds           " + "  ".join(f"{name} {_percent(thresholded[name])}" for name in _F1_NAMES),
    f"                       {thresholded['rule']}, chosen on {thresholded['chosen_on']}",
    f"  calibration          ECE {_percent(calibrated['ECE'])} at temperature {calibrated['temperature']:.2f};"
    f" {_percent(calibrated['ECE_uncalibrated'])} without",
  ]
  if "coverage" in results:
    lines += ["", "  where it looked         ours   fixed grid*   chance"]
    for name in metrics.RegionMetrics._fields:
      ours, grid, chance = (results[prefix + name] for prefix in ("", "fixed_grid_", "chance_"))
      lines.append(f"    {name:<18} {_percent(ours)}        {_percent(grid)}     {_percent(chance)}")
    lines.append("    * with the best choice among its regions, which nothing has trained it to make")
  return "\n".join(lines)
