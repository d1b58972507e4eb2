"""From outputs to results: every figure with its protocol and its controls, and the summary that a person reads."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmam_jax import heads
from rmam_jax.data import proposals
from rmam_jax.evaluation import calibration, metrics
from rmam_jax.evaluation import views as views_lib
from rmam_jax.evaluation.outputs import Outputs
from rmam_jax.evaluation.selection import Selection
from rmam_jax.ops import next_region
from rmam_jax.ops.boxes import WHOLE_IMAGE

# What regions that know nothing of the image would reach, by the prefix of their figures, with what people are told.
BASELINES = {
  "fixed_grid_": "a grid that never moves, with the best choice among its regions",
  "chance_": "the (first) head's regions at random places",
  "centred_": "a centred box of 0.7 of the image, for every label",
  "whole_": "the whole image, for every label",
}
CENTRED_BOX = (0.15, 0.15, 0.85, 0.85)


def _all_region_metrics(test: Outputs, config: Any) -> dict[str, float]:
  """How the regions fit the objects, and how `BASELINES` do.

  Nothing is trained in the grid, so it has no winning regions: its figures are what the best choice would reach.
  """
  objects = test.objects()
  ours = views_lib.region_boxes(test.thetas, config).transpose(1, 0, 2)
  grid = views_lib.region_boxes(next_region.grid_thetas(len(test.thetas), config.model.fixed_grid.scale), config)
  one_box = {
    prefix: metrics.region_metrics(np.broadcast_to(np.array(box), (len(ours), 1, 4)), None, *objects)
    for prefix, box in (("centred_", CENTRED_BOX), ("whole_", WHOLE_IMAGE))
  }
  found = {
    "": metrics.region_metrics(ours, test.winners, *objects),
    "fixed_grid_": metrics.region_metrics(np.broadcast_to(grid, ours.shape), None, *objects),
    "chance_": metrics.chance_region_metrics(ours, test.winners, *objects),
    **one_box,
  }
  return {prefix + name: value for prefix, figures in found.items() for name, value in figures._asdict().items()}


def _precisions(prefix: str, config: Any, class_names: Sequence[str], scores: np.ndarray, test: Outputs) -> dict:
  """The mAP and each class's average precision."""
  every = metrics.average_precisions(scores, test.labels, ignore=test.ignore, method=config.evaluation.ap_method)
  by_class = dict(zip(class_names, every.tolist(), strict=True))
  return {f"{prefix}mAP": metrics.mean_average_precision(every), f"{prefix}AP": by_class}


def _network(config: Any, kind: str, class_names: Sequence[str], test: Outputs) -> dict[str, Any]:
  """Figures of the network's own scores, and of the auxiliary head's, which are trained with a sigmoid."""
  found = _precisions("", config, class_names, calibration.log_odds(test.scores, kind), test)
  predicted = metrics.top_k_labels(test.scores, config.evaluation.top_k)
  results = {
    **found,
    "AP_method": config.evaluation.ap_method,
    **metrics.precision_recall_f1(predicted, test.labels, ignore=test.ignore),
    "top_k": config.evaluation.top_k,
    "undefined_classes": [name for name, ap in found["AP"].items() if math.isnan(ap)],
    "never_predicted_classes": [class_names[c] for c in metrics.never_predicted(predicted, test.ignore)],
    "test_images": len(test.readable),
    "skipped_images": test.skipped,
    **views_lib.names(config),
  }
  if test.auxiliary is not None:
    auxiliary = _precisions("", config, class_names, test.auxiliary, test)["mAP"]
    results |= {"auxiliary_head": config.stage_one.head, "auxiliary_mAP": auxiliary}
  return results


def _calibrated(kind: str, class_names: Sequence[str], test: Outputs, selection: Selection) -> dict[str, Any]:
  """What the thresholds and the temperature of the selection do on the test split."""
  plain, curve = (
    calibration.reliability(calibration.probabilities(test.scores, kind, temperature), test.labels, test.ignore)
    for temperature in (1.0, selection.temperature)
  )
  given = calibration.log_odds(test.scores, kind) >= np.array(selection.thresholds)
  return {
    "thresholded": {
      "rule": selection.rule,
      "chosen_on": selection.chosen_on,
      **metrics.precision_recall_f1(given, test.labels, ignore=test.ignore),
      "thresholds": dict(zip(class_names, selection.thresholds, strict=True)),
    },
    "calibration": {
      "temperature": selection.temperature,
      "chosen_on": selection.chosen_on,
      "ECE": curve.expected_error,
      "ECE_uncalibrated": plain.expected_error,
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
  """All figures for the test split: JSON-ready, as shares in [0, 1], undefined ones None.

  `trained` names the head and its classification loss; `margins` [N, L] are None without SVMs.
  """
  head, kind = trained
  results = _network(config, kind, class_names, test)
  if margins is not None:
    results |= {
      **_precisions("svm_", config, class_names, margins, test),
      "svm_c": selection.svm_c,
      "svm_feature": config.evaluation.feature,
      "svm_solver": config.evaluation.svm_solver,
    }
  results |= _calibrated(kind, class_names, test, selection)
  if heads.get(head).looks and any(map(len, test.boxes)):
    results |= _all_region_metrics(test, config)
  return _without_nan(results)


def _without_nan(value: Any) -> Any:
  """JSON has no nan: undefined figures become None."""
  return json.loads(json.dumps(value), parse_constant=lambda name: None if name == "NaN" else float(name))


def protocol_table(found: Mapping[str, Mapping[str, dict[str, Any]]], class_names: Sequence[str]) -> str:
  """A Markdown table of what each protocol prints, in %, from what `scores.measure` returns for each run."""
  names = ("mAP", *metrics.F1_NAMES)
  lines = ["| | protocol | scores | " + " | ".join(names) + " |", "|-" * (3 + len(names)) + "|"]
  rules = {"undefined": "without positives, not in mAP", "never_predicted": "never predicted, precision 0"}
  notes = []
  for run, protocols in found.items():
    for name, figures in protocols.items():
      cells = " | ".join(_percent(figures[each]).strip() for each in names)
      lines.append(f"| {run} | {name} | {metrics.PROTOCOLS[name].scores} | {cells} |")
      named = {rule: ", ".join(class_names[c] for c in figures[kind]) for kind, rule in rules.items()}
      notes += [f"{run}, {name}: {rule}: {classes}" for rule, classes in named.items() if classes]
  return "\n".join([*lines, *([""] if notes else []), *notes])


def _percent(value: float | None) -> str:
  return "   -" if value is None or math.isnan(value) else f"{100 * value:5.1f}"


def summary(results: dict[str, Any]) -> str:
  """One screen of the figures, in %."""
  at = f" at {proposals.KINDS[results['proposals']]}" if results["proposals"] else ""
  lines = [
    f"{results['data']}: {results['test_images']} test images, head '{results['head']}'{at}, seed {results['seed']}",
    "",
    f"  mAP ({results['AP_method']})       {_percent(results['mAP'])}   network scores, {views_lib.in_words(results)}",
  ]

  def add(figure: float, note: str) -> None:
    lines.append(f"{'':24}{_percent(figure)}   {note}")

  if skipped := results["skipped_images"]:
    lines.append(f"{'':32}{len(skipped)} images cannot be read and do not count")
  if undefined := results["undefined_classes"]:
    lines.append(f"{'':32}without positives, left out: {', '.join(undefined)}")
  if "svm_mAP" in results:
    fitted = f"region features of {results['svm_images']} training images, C = {results['svm_c']:g}"
    add(results["svm_mAP"], f"SVMs on {fitted}")
  if "auxiliary_mAP" in results:
    note = f"control '{results['auxiliary_head']}' on the same backbone, trained beside it"
    add(results["auxiliary_mAP"], note)
  for control, value in results["controls"].items():
    add(value, f"control '{control}' by itself, as many steps")
  thresholded, calibrated = results["thresholded"], results["calibration"]
  lines += [
    "  per class            " + "  ".join(f"{name} {_percent(ap)}" for name, ap in results["AP"].items()),
    f"  top {results['top_k']}                "
    + "  ".join(f"{name} {_percent(results[name])}" for name in metrics.F1_NAMES),
  ]
  if never := results["never_predicted_classes"]:
    lines.append(f"{'':23}never predicted, precision 0: {', '.join(never)}")
  lines += [
    "  thresholds           " + "  ".join(f"{name} {_percent(thresholded[name])}" for name in metrics.F1_NAMES),
    f"{'':23}{thresholded['rule']}, chosen on {thresholded['chosen_on']}",
    f"  calibration          ECE {_percent(calibrated['ECE'])} at temperature {calibrated['temperature']:.2f};"
    f" {_percent(calibrated['ECE_uncalibrated'])} without",
  ]
  if "coverage" in results:
    lines += ["", "  where it looked         ours   fixed grid*   chance   centred box   whole image"]
    for name in metrics.REGION_METRICS:
      ours, grid, chance, centred, whole = (_percent(results[prefix + name]) for prefix in ("", *BASELINES))
      lines.append(f"    {name:<18} {ours}        {grid}     {chance}         {centred}         {whole}")
    lines.append("    * with the best choice among its regions, which nothing has trained it to make")
  return "\n".join(lines)
