"""What `train.py` and `eval.py` call: a whole run, and the evaluation that ends it."""

import contextlib
import functools
import json
import pathlib
import shutil
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

import rmam_jax
from rmam_jax import heads
from rmam_jax.data.splits import Split, open_split
from rmam_jax.evaluation import calibration, metrics, output_cache, report, svm
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import scores as scores_lib
from rmam_jax.evaluation import selection as selection_lib
from rmam_jax.evaluation import thresholds as thresholds_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.runtime import files, processes
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import best_checkpoint, checkpoints, initial_weights, loop, stages, workdir
from rmam_jax.training import rpn as rpn_training
from rmam_jax.visual import panels

_NOTHING: Mapping[str, Any] = types.MappingProxyType({})


def default_workdir(config: ml_collections.ConfigDict) -> pathlib.Path:
  """runs/DATA-HEAD, e.g. runs/digits-easy-saliency."""
  return pathlib.Path("runs", f"{config.data.name}-{config.model.head}".replace("/", "-"))


def train_and_evaluate(
  config: ml_collections.ConfigDict, folder: pathlib.Path, *, profile_folder: pathlib.Path | None = None
) -> dict[str, Any]:
  """A whole run, or what is left of it: both stages, the controls, the evaluation.

  With `data.final_train` there are two phases. The first, in `folder/choose`, trains on `data.train` and chooses the
  epoch of each stage and of a region proposal network, C, thresholds and temperature on `data.validation`. The second carries them to
  `final_train`, in `folder`, and is evaluated on `data.test`, on which nothing is chosen.

  Args:
    config: see `configs/common.py`.
    folder: the workdir; made, or gone on with if it belongs to the same configuration.
    profile_folder: see `loop.train`; of the last phase, without its controls.

  Returns:
    What `results.json` holds; in another process than the first, nothing.

  Raises:
    UserError: with what to do about it; another process that trains there, among them.
  """
  with workdir.locked(folder) if processes.is_first() else contextlib.nullcontext():
    check(config, folder)
    results = _train_and_evaluate(config, folder, profile_folder)
    for control in config.controls:
      print(f"control: {control}")
      _train_and_evaluate(control_config(config, control), folder / "controls" / control)
    if processes.is_first():
      results["controls"] = _controls(config, folder, results)
      files.write_json(folder / "results.json", results)
      _print(results, folder)
  return results


def check(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
  """Refuses now what would otherwise be found when all is trained.

  Raises:
    UserError: with what to do about it.
  """
  _check_evaluation(config)
  data = config.data
  if not 0 < data.crop_size <= data.image_size:
    raise UserError(
      f"data.crop_size must be between 1 and data.image_size {data.image_size}, got {data.crop_size}: they are set together"
    )
  if config.seed < 0:
    raise UserError(f"seed must be 0 or more, got {config.seed}")
  with processes.first_before_others("check"):  # digit scenes may have to be made
    for split in filter(None, (data.train, data.validation, data.final_train, data.test)):
      open_split(data, split)
  for control in config.controls:
    if control not in heads.SPECS:
      raise UserError(f"controls must be some of {', '.join(heads.SPECS)}, got {control!r}")
  if not data.validation:
    selection_lib.check(folder)
    if config.controls:
      raise UserError("controls choose on data.validation, which is empty: set --config.controls=() or name a split")
  if data.final_train and (folder / "config.json").exists():
    resolved, _ = initial_weights.resolve(config, folder)
    theirs = workdir.read_config(folder)
    workdir.check(folder, final_config(resolved, {name: theirs[name].stop_epoch for name in loop.STREAMS}))


def _check_evaluation(config: ml_collections.ConfigDict) -> None:
  data, section = config.data, config.evaluation
  for field, known in (
    ("feature", outputs_lib.FEATURES),
    ("ap_method", metrics.AP_METHODS),
    ("thresholds", calibration.RULES),
    ("svm_solver", ("", *svm.SOLVERS)),
  ):
    if section[field] not in known:
      raise UserError(f"evaluation.{field} must be one of {', '.join(known)}, got {section[field]!r}")
  if section.top_k < 1:
    raise UserError(f"evaluation.top_k must be at least 1, got {section.top_k}")
  views = views_lib.from_config(config)
  if heads.get(config.model.head).guide == heads.BOXES and views != views_lib.CENTRE:
    raise UserError("proposals are seen from the centre view alone: set evaluation.views=centre")
  if data.validation == data.test:
    raise UserError(f"data.validation and data.test are both {data.test!r}: nothing may be chosen on the test split")


def _train_and_evaluate(
  config: ml_collections.ConfigDict, folder: pathlib.Path, profile_folder: pathlib.Path | None = None
) -> dict[str, Any]:
  """A run without its controls: one phase or two."""
  first = folder / "choose" if config.data.final_train else None
  if first is not None:
    print(f"first phase: choosing on {config.data.validation}, in {first}")
    train_and_evaluate(choosing_config(config), first)
    if config.rpn.data and processes.is_first():  # what it learns from is the same: it is not trained again
      checkpoints.take_over(rpn_training.NAME, first, folder)
    config = final_config(config, best_checkpoint.epochs(first))
    print(f"second phase: {config.data.train}, with the epochs, C and thresholds of the first")
  loop.train(config, folder, profile_folder=profile_folder)
  if first is not None and processes.is_first():
    shutil.copyfile(first / selection_lib.FILE, folder / selection_lib.FILE)
  return evaluate(folder)


def evaluate_and_print(folder: pathlib.Path, changes: Mapping[str, Any] = _NOTHING, **beside: Any) -> dict[str, Any]:
  """`evaluate`, and a summary of one screen; in another process than the first, nothing."""
  results = evaluate(folder, changes, **beside)
  if not processes.is_first():
    return results
  _print(results, folder)
  for path in beside.values():
    if isinstance(path, pathlib.Path):
      print(f"wrote {path}")
  return results


def print_protocols(
  folders: Sequence[pathlib.Path],
  names: Sequence[str] = (),
  *,
  fusion: str = "mean",
  changes: Mapping[str, Any] = _NOTHING,
) -> dict[str, dict[str, Any]]:
  """Prints what other protocols make of the saved scores of some runs and, if more than one, of their fusion.

  Runs that were not evaluated since their last training, and all of them if there are `changes`, are evaluated first.

  Args:
    folders: the workdirs.
    names: of `metrics.PROTOCOLS`; none: all whose scores are there.
    fusion: of `scores.FUSIONS`.
    changes: see `evaluate`.

  Returns:
    The figures, by run and protocol; in another process than the first, nothing.

  Raises:
    UserError: an unknown protocol or fusion, a protocol whose scores are not there, or runs that do not fit together.
  """
  for name in names:
    scores_lib.protocol(name)
  for folder in folders:
    if changes or not _is_evaluated(folder):
      evaluate(folder, changes)
  if not processes.is_first():
    return {}
  runs = {str(folder): scores_lib.load(folder) for folder in folders}
  if len(runs) > 1:
    runs[f"{fusion} of {len(folders)}"] = scores_lib.fuse(runs, fusion)
  found = {run: scores_lib.measure(scores, names) for run, scores in runs.items()}
  print(report.protocol_table(found, next(iter(runs.values())).class_names.tolist()))
  print("\n".join(["", *(f"{name}: {scores_lib.describe(scores)}" for name, scores in runs.items())]))
  return found


def _is_evaluated(folder: pathlib.Path) -> bool:
  """Whether the saved scores are those of the best epoch."""
  workdir.read_config(folder)  # refuses what is no workdir
  return (folder / scores_lib.FILE).exists() and scores_lib.about(scores_lib.load(folder))[
    "checkpoint"
  ] == best_checkpoint.digest(folder)


def _print(results: dict[str, Any], folder: pathlib.Path) -> None:
  print(report.summary(results))
  print(f"\nwrote {folder / 'results.json'} and {folder / 'pictures'}")


def _controls(config: ml_collections.ConfigDict, folder: pathlib.Path, results: Mapping[str, Any]) -> dict[str, float]:
  """The mAP of each control that has been trained beside the run and was evaluated as it was."""
  paths = {control: folder / "controls" / control / "results.json" for control in config.controls}
  found = {control: files.read_json(path) for control, path in paths.items() if path.exists()}
  alike = ("views", "mirror", "AP_method")
  return {
    control: theirs["mAP"]
    for control, theirs in found.items()
    if all(theirs[field] == results[field] for field in alike)
  }


def control_config(config: ml_collections.ConfigDict, head: str) -> ml_collections.ConfigDict:
  """The same run with a control's head in both stages and nothing beside it: as many steps on the same batches, at its
  own learning rate if there is one.
  """
  control = config.copy_and_resolve_references()
  control.model.head = control.stage_one.head = head
  control.stage_two.auxiliary_weight = 0.0
  control.stage_two.learning_rate = config.controls_rate or config.stage_two.learning_rate
  control.controls = ()
  control.evaluation.pictures = 0
  return control


def choosing_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The first of two phases: it never sees the test split, and no controls are trained."""
  first = config.copy_and_resolve_references()
  first.data.final_train = first.data.test = ""
  first.controls = ()
  return first


def final_config(config: ml_collections.ConfigDict, epochs: Mapping[str, int]) -> ml_collections.ConfigDict:
  """The second of two phases: on all labelled images, each stage as long as the first phase found best."""
  second = config.copy_and_resolve_references()
  second.data.train, second.data.validation, second.data.final_train = config.data.final_train, "", ""
  for stage, epoch in epochs.items():
    second[stage].stop_epoch = epoch
  return second


def evaluate(
  folder: pathlib.Path,
  changes: Mapping[str, Any] = _NOTHING,
  *,
  gallery_page: pathlib.Path | None = None,
  gallery_images: int = 0,
  figure_folder: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Evaluates the best epoch of a workdir on its test split, or on the validation split if it has no other.

  Writes there: `results.json`, `pictures/`, `features/`, `selection.json` (what the validation split decided),
  `svm.npz` (the machines) and `scores.npz`.

  Args:
    folder: the workdir.
    changes: fields of `config.evaluation` that shall differ from the workdir's configuration.
    gallery_page: an HTML file to write, see `gallery`; None writes none.
    gallery_images: show the first so many test images there; 0 shows all.
    figure_folder: a folder to make, with figures like the paper's; None draws none.

  Returns:
    What `results.json` holds; in another process than the first, nothing.

  Raises:
    UserError: with what to do about it.
  """
  for path, flag in ((gallery_page, "--gallery=OUT.html"), (figure_folder, "--figures=OUT")):
    if path is not None and path.exists():
      raise UserError(f"{path} exists: remove it or name another with {flag}")
    if path is not None and not path.absolute().parent.is_dir():
      raise UserError(f"{path.parent} is no folder: make it or name another with {flag}")
  started = time.monotonic()
  config = workdir.read_config(folder)
  with config.evaluation.unlocked():
    config.evaluation.update_from_flattened_dict(dict(changes))
  data, section = config.data, config.evaluation
  _check_evaluation(config)
  views = views_lib.from_config(config)
  mesh = mesh_lib.make_mesh()
  if section.batch_size % mesh.size:
    raise UserError(f"evaluation.batch_size {section.batch_size} must be a multiple of the {mesh.size} devices")
  test = open_split(data, data.test or data.validation)
  names = test.class_names
  model, params, progress = best_checkpoint.load(config, folder, len(names), mesh)
  digest = output_cache.digest_params(params)

  @functools.cache
  def forward(views: views_lib.Views) -> outputs_lib.Forward:
    return outputs_lib.make_forward(model, mesh, views, feature=section.feature)

  def answers(split: Split, label: str, views: views_lib.Views = views, beside: str = "") -> outputs_lib.Outputs:
    found = output_cache.extract(
      output_cache.folder_of(folder, split.name + beside),
      output_cache.make_key(config, split, digest, views),
      forward(views),
      params,
      split,
      data=data,
      batch_size=section.batch_size,
      progress=label,
    )
    for reason in found.skipped:
      print(f"{label}: skipped: {reason}")
    return found

  train = validation = None
  validation_split = open_split(data, data.validation) if data.validation else None
  if section.svm_solver:
    train = answers(open_split(data, data.train, section.svm_images), "images for the SVMs")
  if validation_split is not None:
    validation = answers(validation_split, "validation images")
  head, kind = config.model.head, stages.classification_of(config, "stage_two")
  one_view = validation  # of what prediction sees
  if validation is not None and views != views_lib.CENTRE:
    one_view = answers(validation_split, "validation images, one view", views_lib.CENTRE, beside=" one view")
  if validation is None:
    chosen = selection_lib.read(folder, names)
    if processes.is_first() and (note := selection_lib.differing(chosen, config)):
      print(note)
  elif processes.is_first():  # what follows from answers takes the devices of one process
    chosen = selection_lib.select(config, kind, names, validation_split.name, train, validation, one_view)
    files.write_json(folder / selection_lib.FILE, chosen._asdict())

  test_outputs = answers(test, "test images")
  about = scores_lib.made_by(config, best_checkpoint.digest(folder))
  if not processes.is_first():
    return {}
  margins = None
  if train is None:
    (folder / svm.FILE).unlink(missing_ok=True)  # of an evaluation before
  else:
    margins = _fit_svms(config, folder, names, train, chosen.svm_c).margins(
      selection_lib.svm_features(test_outputs, config)
    )
  scores_lib.save(folder, test_outputs, names, margins, about)
  results = report.evaluate(config, (head, kind), names, test_outputs, margins, chosen)
  results |= {
    "data": test.name,
    "head": head,
    "seed": config.seed,
    "best_epoch": progress["best_epoch"],
    "dropped_test_records": test.dropped,
    "version": rmam_jax.__version__,
    "wall_seconds": sum(_stage_seconds(folder)) + time.monotonic() - started,
    "config": json.loads(config.to_json()),
  }
  if train is not None:
    results["svm_images"] = len(train.readable)
  results["controls"] = _controls(config, folder, results)
  exhibit = panels.EvaluatedSplit(
    config, head, thresholds_lib.make_thresholds(kind, chosen._asdict(), top_k=section.top_k), test, test_outputs
  )
  panels.draw_pictures(folder / "pictures", exhibit)
  files.write_json(folder / "results.json", results)
  if gallery_page is not None:
    panels.write_gallery(gallery_page, exhibit, results, limit=gallery_images)
  if figure_folder is not None:
    panels.draw_figures(figure_folder, exhibit)
  return results


def _fit_svms(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  names: Sequence[str],
  train: outputs_lib.Outputs,
  c: float | None,
) -> svm.Machines:
  """The machines, saved in the workdir."""
  if c is None:
    raise UserError(
      f"{folder / selection_lib.FILE} has no C, as no SVMs were fitted where it was chosen: evaluate that run with"
      " --evaluation.svm_solver first, and copy the file again"
    )
  (machines,) = svm.fit(
    selection_lib.svm_features(train, config),
    train.labels,
    [c],
    ignore=train.ignore,
    solver=config.evaluation.svm_solver,
    class_names=names,
    seed=config.seed,
  )
  unfitted = [names[index] for index in machines.unfitted]
  if unfitted:
    print(f"no SVM for {', '.join(unfitted)}: the training images hold only one kind; their margins are 0")
  svm.save(folder / svm.FILE, machines)
  return machines


def _stage_seconds(folder: pathlib.Path):
  """The wall time that each stage took, over all the runs it took."""
  lines = workdir.read_lines(folder / "metrics.jsonl")
  for stage in (rpn_training.NAME, *stages.NAMES):
    yield max((line["seconds"] for line in lines if line["stage"] == stage), default=0.0)
