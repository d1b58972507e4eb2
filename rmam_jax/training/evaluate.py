"""The evaluation that ends a run, and what `eval.py` calls."""

import functools
import hashlib
import json
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

import rmam_jax
from rmam_jax import heads
from rmam_jax.data.splits import Split, moved, open_split
from rmam_jax.evaluation import calibration, metrics, report, stored_maps, svm
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import scores as scores_lib
from rmam_jax.evaluation import selection as selection_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.evaluation.outputs import Outputs
from rmam_jax.runtime import files, processes
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError, check_name, os_errors
from rmam_jax.training import checkpoints, stages, workdir
from rmam_jax.visual import panels


def check_evaluation(config: ml_collections.ConfigDict) -> None:
  """Refuses a configuration that cannot be evaluated."""
  data, section = config.data, config.evaluation
  known = {"feature": outputs_lib.FEATURES, "ap_method": metrics.AP_METHODS, "thresholds": calibration.RULES}
  for field, values in {**known, "svm_solver": ("", *svm.SOLVERS)}.items():
    check_name(f"evaluation.{field}", section[field], values)
  if section.feature == outputs_lib.CLASS and heads.get(config.model.head).class_features is None:
    able = ", ".join(name for name, each in heads.SPECS.items() if each.class_features)
    raise UserError(f"head {config.model.head!r} has no features by class, as {able} have: set evaluation.feature to z")
  for field, least in (("top_k", 1), ("batch_size", 1), ("svm_images", 0), ("pictures", 0)):
    if section[field] < least:
      raise UserError(f"evaluation.{field} must be at least {least}, got {section[field]}")
  if section.svm_solver:
    svm.check_cs(section.svm_c)
  views = views_lib.from_config(config)
  if heads.get(config.model.head).guide == heads.BOXES and views != views_lib.CENTRE:
    raise UserError("proposals are seen from the centre view alone: set evaluation.views=centre")
  if data.validation == data.test:
    raise UserError(f"data.validation and data.test are both {data.test!r}: nothing may be chosen on the test split")


def evaluate(
  folder: pathlib.Path,
  changes: Mapping[str, Any] | None = None,
  *,
  test: str = "",
  data_root: str = "",
  gallery_page: pathlib.Path | None = None,
  gallery_images: int = 0,
  figure_folder: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Evaluates the best epoch of a workdir on its test split, or on the validation split if it has no other.

  Writes there: `results.json`, `pictures/`, `features/`, `selection.json` (what was chosen on the validation split),
  `svm.npz` (the machines) and `scores.npz`. On another test set, `test`, nothing is chosen or fitted: selection and
  machines are those of the workdir's evaluation before, and results, pictures and scores go to `place_of(folder, test)`.

  Args:
    folder: the workdir.
    changes: fields of `config.evaluation` that shall differ from the workdir's configuration.
    test: another test set of the same classes: a manifest, or a split of the data set.
    data_root: where the data lie by now, see `splits.moved`; of own images with `test`, the folder of its images.
    gallery_page: an HTML file to write, see `visual.gallery`, with the first `gallery_images` test images; 0: all.
    figure_folder: a folder to make, with figures like the paper's.

  Returns:
    What `results.json` holds; in another process than the first, nothing.
  """
  for path, flag in ((gallery_page, "--gallery=OUT.html"), (figure_folder, "--figures=OUT")):
    if path and path.exists():
      raise UserError(f"{path} exists: remove it or name another with {flag}")
    if path and not path.absolute().parent.is_dir():
      raise UserError(f"{path.parent} is no folder: make it or name another with {flag}")
  started = time.monotonic()
  config = workdir.read_config(folder)
  with config.evaluation.unlocked():
    config.evaluation.update_from_flattened_dict(dict(changes or {}))
  if data_root:
    own_test = test and config.data.name == "custom"
    config.data.update({"images": data_root} if own_test else moved(config.data, data_root))
  config.data.test = test or config.data.test
  out = place_of(folder, test)
  check_evaluation(config)
  data, section, mesh = config.data, config.evaluation, mesh_lib.make_mesh()
  if section.batch_size % mesh.size:
    raise UserError(f"evaluation.batch_size {section.batch_size} must be a multiple of the {mesh.size} devices")
  names = workdir.read_class_names(folder)
  split = open_split(data, data.test or data.validation, class_names=names)
  machines, svm_images = _fitted_before(folder, section.feature) if test else (None, 0)
  head, kind = config.model.head, stages.classification_of(config, "stage_two")
  model, params, progress = checkpoints.load_best(config, folder, len(names), mesh)
  outputs = _make_outputs(config, folder, model, params, mesh)
  train = None
  if section.svm_solver and not test:
    train = outputs(open_split(data, data.train, section.svm_images, names), "images for the SVMs")
  validation = None
  if data.validation and not test:
    validation = outputs(open_split(data, data.validation, class_names=names), "validation images")
  selection = _select(config, folder, names, train, validation, outputs)
  found = outputs(split, "test images" if data.test else "validation images", suffix=f" {out.name}" if test else "")
  if not processes.is_first():
    return {}
  if train is not None:
    # Every choice is made: where nothing is measured on the validation images, they may be learned from.
    fitted = [train, validation] if section.svm_refit and validation is not None and data.test else [train]
    machines = _fit_svms(config, folder, names, fitted, selection.svm_c)
    svm_images = sum(len(each.readable) for each in fitted)
  elif not test:
    (folder / svm.FILE).unlink(missing_ok=True)  # of an evaluation before
  margins = None
  if machines is not None:
    margins = machines.margins(selection_lib.svm_features(found, config))
  with os_errors(f"cannot use {out}", files.GO_ON):
    out.mkdir(parents=True, exist_ok=True)
  scores_lib.save(out, found, names, kind, margins, scores_lib.made_by(config, checkpoints.digest_of(params)))
  results = report.evaluate(config, (head, kind), names, found, margins, selection)
  # A stage's last line has all of its seconds.
  seconds = {line["stage"]: line["seconds"] for line in workdir.read_lines(folder / "metrics.jsonl")}
  results |= {
    "data": split.name,
    "origin": split.origin,
    "head": head,
    "seed": config.seed,
    "best_epoch": progress["best_epoch"],
    "dropped_test_records": split.dropped,
    "proposals": data.proposals,
    "version": rmam_jax.__version__,
    "wall_seconds": sum(seconds.values()) + time.monotonic() - started,
    "config": json.loads(config.to_json()),
  }
  if machines is not None:
    results["svm_images"] = svm_images
  results["controls"] = {} if test else controls_beside(config, folder, results)
  thresholds = calibration.make_thresholds(kind, selection._asdict(), top_k=section.top_k)
  shown = panels.EvaluatedSplit(config, head, thresholds, split, found)
  with os_errors(f"cannot draw into {out / 'pictures'}", files.GO_ON):
    panels.draw_pictures(out / "pictures", shown)
  files.write_json(out / "results.json", results)
  if gallery_page is not None:
    panels.write_gallery(gallery_page, shown, results, limit=gallery_images)
  if figure_folder is not None:
    with os_errors(f"cannot draw into {figure_folder}"):
      panels.draw_figures(figure_folder, shown)
  return results


def place_of(folder: pathlib.Path, test: str = "") -> pathlib.Path:
  """Where in a workdir the results on a test set go: on its own into the workdir, on another one into `tests/NAME`.

  NAME is made of the last two parts of the test set's path, and of a digest of all of it where another one has that name.
  """
  if not test:
    return folder
  name = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(pathlib.PurePath(test).parts[-2:])).strip("-") or "other"
  place = folder / "tests" / name
  taken = place / "results.json"
  if taken.exists() and files.read_json(taken)["config"]["data"]["test"] != test:
    return place.with_name(f"{name}-{hashlib.sha256(test.encode()).hexdigest()[:8]}")
  return place


def _fitted_before(folder: pathlib.Path, feature: str) -> tuple[svm.Machines | None, int]:
  """The machines of a workdir's own evaluation, and to how many images they were fitted; None and 0 without SVMs.

  UserError: it has not been evaluated, or they were fitted to another feature.
  """
  if not (folder / selection_lib.FILE).exists() or not (folder / "results.json").exists():
    raise UserError(
      f"{folder} has not been evaluated, and thresholds are chosen then: eval.py --workdir={folder} first"
    )
  if not (folder / svm.FILE).exists():
    return None, 0
  results = files.read_json(folder / "results.json")
  if results.get("svm_feature", feature) != feature:
    raise UserError(
      f"the SVMs of {folder} were fitted to the feature {results['svm_feature']!r}, not {feature!r}:"
      f" eval.py --workdir={folder} --evaluation.feature={feature} fits them anew"
    )
  return svm.load(folder / svm.FILE), results.get("svm_images", 0)


def _make_outputs(config: Any, folder: pathlib.Path, model: Any, params: Any, mesh: Any) -> Callable[..., Outputs]:
  """A function from a split, a label, and perhaps other views and a suffix for their folder, to outputs."""
  section, digest, configured = config.evaluation, outputs_lib.digest_params(params), views_lib.from_config(config)
  feature = {"feature": section.feature, "class_features": heads.get(config.model.head).class_features}
  forward = functools.cache(lambda views: outputs_lib.make_forward(model, mesh, views, **feature))
  stored = not config.stage_two.backbone_rate  # the same backbone's maps serve every head

  def outputs(split: Split, label: str, views: views_lib.Views = configured, suffix: str = "") -> Outputs:
    place, key = (
      outputs_lib.folder_of(folder, split.name + suffix),
      outputs_lib.make_key(config, split, digest, views),
    )
    options = {"data": config.data, "batch_size": section.batch_size, "progress": label}
    if stored:
      shown = {"config": config, "mesh": mesh, "views": views}
      options["maps"] = functools.partial(stored_maps.of_split, model, params, split, **shown)
    found = outputs_lib.extract(place, key, forward(views), params, split, **options)
    for reason in found.skipped:
      print(f"{label}: skipped: {reason}")
    return found

  return outputs


def _select(
  config: Any,
  folder: pathlib.Path,
  names: Sequence[str],
  train: Outputs | None,
  validation: Outputs | None,
  outputs: Callable[..., Outputs],
) -> selection_lib.Selection | None:
  """What is chosen on the validation split, or was before if there is none; in other processes than the first, None."""
  data, first = config.data, processes.is_first()
  if validation is None:
    selection = selection_lib.read(folder, names)
    if first and (note := selection_lib.differing(selection, config)):
      print(note)
    return selection
  split, one_view = open_split(data, data.validation, class_names=names), validation
  if views_lib.from_config(config) != views_lib.CENTRE:  # what prediction sees
    one_view = outputs(split, "validation images, one view", views_lib.CENTRE, " one view")
  if not first:  # what follows from outputs takes the devices of one process
    return None
  kind = stages.classification_of(config, "stage_two")
  selection = selection_lib.select(config, kind, names, split.name, train, validation, one_view)
  if note := selection_lib.at_an_end(selection):
    print(note)
  files.write_json(folder / selection_lib.FILE, selection._asdict())
  return selection


def _fit_svms(
  config: Any, folder: pathlib.Path, names: Sequence[str], fitted: Sequence[Outputs], c: float | None
) -> svm.Machines:
  """The machines, fitted to the outputs of some splits together and saved in the workdir."""
  if c is None:
    raise UserError(
      f"{folder / selection_lib.FILE} has no C, as no SVMs were fitted where it was chosen: evaluate that run with"
      " --evaluation.svm_solver first, and copy the file again"
    )
  labels, ignore = (np.concatenate([getattr(each, field) for each in fitted]) for field in ("labels", "ignore"))
  features = [selection_lib.svm_features(each, config) for each in fitted]
  features = np.concatenate(features) if len(features) > 1 else features[0]  # not in memory twice
  options = {"ignore": ignore, "solver": config.evaluation.svm_solver, "class_names": names, "seed": config.seed}
  (machines,) = svm.fit(features, labels, [c], **options)
  if unfitted := [names[index] for index in machines.unfitted]:
    print(f"no SVM for {', '.join(unfitted)}: the training images hold only one kind; their margins are 0")
  svm.save(folder / svm.FILE, machines)
  return machines


def controls_beside(config: Any, folder: pathlib.Path, results: Mapping[str, Any]) -> dict[str, float]:
  """The mAP of each control that has been trained beside a run and was evaluated in the same way."""
  found = {}
  for control in config.controls:
    path = folder / "controls" / control / "results.json"
    theirs = files.read_json(path) if path.exists() else {}
    if theirs and all(theirs[field] == results[field] for field in ("views", "mirror", "AP_method")):
      found[control] = theirs["mAP"]
  return found


def print_results(results: dict[str, Any], folder: pathlib.Path) -> None:
  """A summary of one screen."""
  print(
    f"{report.summary(results)}\n  the images are from {results['origin']}\n\nwrote {folder / 'results.json'} and {folder / 'pictures'}"
  )


def evaluate_and_print(folder: pathlib.Path, changes: Mapping[str, Any] | None = None, **beside: Any) -> dict[str, Any]:
  """`evaluate`, and its summary."""
  results = evaluate(folder, changes, **beside)
  if processes.is_first():
    print_results(results, place_of(folder, beside.get("test", "")))
    for path in beside.values():
      if isinstance(path, pathlib.Path):
        print(f"wrote {path}")
  return results


def print_protocols(
  folders: Sequence[pathlib.Path],
  names: Sequence[str] = (),
  *,
  fusion: str = "mean",
  changes: Any = None,
  test: str = "",
  data_root: str = "",
) -> dict[str, dict[str, Any]]:
  """Prints and returns figures by run and protocol, from the saved scores of some runs and, if several, their fusion.

  Runs that were not evaluated since their last training, and all of them if there are `changes` or another `test` or
  `data_root` (see `evaluate`), are evaluated first.
  `names` are of `metrics.PROTOCOLS`, none for all whose scores are there; `fusion` is of `scores.FUSIONS`. Raises a
  UserError for unknown ones, for a protocol whose scores are not there, and for runs that do not fit together.
  """
  for name in names:
    scores_lib.protocol(name)
  check_name("--fusion", fusion, scores_lib.FUSIONS)
  for folder in folders:
    if changes or test or data_root or not _is_evaluated(folder):
      evaluate(folder, changes, test=test, data_root=data_root)
  if not processes.is_first():
    return {}
  runs = {str(folder): scores_lib.load(place_of(folder, test)) for folder in folders}
  if len(runs) > 1:
    runs[f"{fusion} of {len(folders)}"] = scores_lib.fuse(runs, fusion)
  found = {run: scores_lib.measure(scores, names) for run, scores in runs.items()}
  print(report.protocol_table(found, next(iter(runs.values())).class_names.tolist()))
  print("\n".join(["", *(f"{name}: {scores_lib.describe(scores)}" for name, scores in runs.items())]))
  return found


def _is_evaluated(folder: pathlib.Path) -> bool:
  """Whether the saved scores are those of the best epoch, as this version saves them."""
  workdir.read_config(folder)  # refuses what is no workdir
  if not (folder / scores_lib.FILE).exists():
    return False
  made = scores_lib.about(scores_lib.load(folder))
  return (made["checkpoint"], made.get("network")) == (checkpoints.best_digest(folder), scores_lib.NETWORK)
