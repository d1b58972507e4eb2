"""What `train.py` and `eval.py` call: a whole run, and the evaluation that ends it."""

import contextlib
import json
import pathlib
import shutil
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

import rmam_jax
from rmam_jax import exhibits, processes
from rmam_jax import mesh as meshes
from rmam_jax.data.records import Split, open_split
from rmam_jax.evaluation import answers as answering
from rmam_jax.evaluation import choices as choosing
from rmam_jax.evaluation import decisions, features, report, svm
from rmam_jax.evaluation import scores as scoring
from rmam_jax.evaluation import views as viewing
from rmam_jax.training import checkpoints, localizing, loop, stages, workdir
from rmam_jax.training import step as stepping

_NOTHING: Mapping[str, Any] = types.MappingProxyType({})


def default_workdir(config: ml_collections.ConfigDict) -> pathlib.Path:
  """runs/DATA-HEAD, e.g. runs/digits-easy-saliency."""
  return pathlib.Path("runs", f"{config.data.name}-{config.model.head}".replace("/", "-"))


def train_and_evaluate(
  config: ml_collections.ConfigDict, folder: pathlib.Path, *, profile_folder: pathlib.Path | None = None
) -> dict[str, Any]:
  """A whole run, or what is left of it: both stages, the controls, the evaluation.

  With `data.final_train` there are two phases. The first, in `folder/choose`, trains on `data.train` and chooses the
  epoch of each stage and of a localiser, C, thresholds and temperature on `data.validation`. The second carries them to
  `final_train`, in `folder`, and is evaluated on `data.test`, on which nothing is chosen.

  Args:
    config: see `configs/common.py`.
    folder: the workdir; made, or gone on with if it belongs to the same configuration.
    profile_folder: see `loop.train`; of the last phase, without its controls.

  Returns:
    What `results.json` holds; in another process than the first, nothing.

  Raises:
    ValueError, OSError, FloatingPointError: with what to do about it; another process that trains there, among them.
  """
  with workdir.locked(folder) if processes.is_first() else contextlib.nullcontext():
    return _train_and_evaluate(config, folder, profile_folder)


def _train_and_evaluate(
  config: ml_collections.ConfigDict, folder: pathlib.Path, profile_folder: pathlib.Path | None
) -> dict[str, Any]:
  first = folder / "choose" if config.data.final_train else None
  if first is not None:
    print(f"first phase: choosing on {config.data.validation}, in {first}")
    train_and_evaluate(choosing_config(config), first)
    if config.localizer.data and processes.is_first():  # what it learns from is the same: it is not trained again
      checkpoints.take_over(localizing.NAME, first, folder)
    config = final_config(config, loop.best_epochs(first))
    print(f"second phase: {config.data.train}, with the epochs, C and thresholds of the first")
  elif not config.data.validation:
    choosing.check(folder)  # now, and not when all is trained
  loop.train(config, folder, profile_folder=profile_folder)
  if first is not None and processes.is_first():
    shutil.copyfile(first / choosing.FILE, folder / choosing.FILE)
  results = evaluate(folder)
  for control in config.controls:
    print(f"control: {control}")
    control_folder = folder / "controls" / control
    loop.train(control_config(config, control), control_folder)
    evaluate(control_folder)
  if processes.is_first():
    results["controls"] = _controls(config, folder)
    workdir.write_json(folder / "results.json", results)
    _print(results, folder)
  return results


def evaluate_and_print(folder: pathlib.Path, changes: Mapping[str, Any] = _NOTHING, **beside: Any) -> dict[str, Any]:
  """`evaluate`, and a summary of one screen."""
  results = evaluate(folder, changes, **beside)
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
    The figures, by run and protocol.

  Raises:
    ValueError: an unknown protocol or fusion, a protocol whose scores are not there, or runs that do not fit together.
  """
  for name in names:
    scoring.protocol(name)
  runs = {}
  for folder in folders:
    if changes or not _is_evaluated(folder):
      evaluate(folder, changes)
    runs[str(folder)] = scoring.load(folder)
  if len(runs) > 1:
    runs[f"{fusion} of {len(folders)}"] = scoring.fuse(runs, fusion)
  found = {run: scoring.measure(scores, names) for run, scores in runs.items()}
  print(report.protocol_table(found, next(iter(runs.values())).class_names.tolist()))
  return found


def _is_evaluated(folder: pathlib.Path) -> bool:
  """Whether the saved scores are those of the best epoch."""
  workdir.read_config(folder)  # refuses what is no workdir
  return (folder / scoring.FILE).exists() and int(scoring.load(folder).step) == _best_step(folder)


def _best_step(folder: pathlib.Path) -> int | None:
  saved = checkpoints.StageCheckpoints(folder / "checkpoints" / "stage_two")
  step = saved.best_step()
  saved.close()
  return step


def _print(results: dict[str, Any], folder: pathlib.Path) -> None:
  print(report.summary(results))
  print(f"\nwrote {folder / 'results.json'} and {folder / 'pictures'}")


def _controls(config: ml_collections.ConfigDict, folder: pathlib.Path) -> dict[str, float]:
  """The mAP of each control that has been trained beside the run."""
  paths = {control: folder / "controls" / control / "results.json" for control in config.controls}
  return {control: json.loads(path.read_text())["mAP"] for control, path in paths.items() if path.exists()}


def control_config(config: ml_collections.ConfigDict, head: str) -> ml_collections.ConfigDict:
  """The same run with a control's head in both stages and nothing beside it: as many steps on the same batches."""
  control = config.copy_and_resolve_references()
  control.model.head = control.stage_one.head = head
  control.stage_two.auxiliary_weight = 0.0
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


def load_best(config: ml_collections.ConfigDict, folder: pathlib.Path, num_classes: int, mesh: jax.sharding.Mesh):
  """Stage two's recogniser, the parameters of its best epoch, and what the host knew then.

  Raises:
    FileNotFoundError: stage two has not finished an epoch there.
    ValueError: the checkpoint is damaged, or of another model than the configuration's.
  """
  model = stages.build_model(config, "stage_two", num_classes)
  size = config.data.crop_size
  like = jax.eval_shape(lambda key: stepping.init_params(model, key, size), jax.random.key(0))
  saved = checkpoints.StageCheckpoints(folder / "checkpoints" / "stage_two")
  try:
    restored = saved.restore_best(checkpoints.abstract(like, meshes.replicated(mesh)))
  finally:
    saved.close()
  if restored is None:
    raise FileNotFoundError(f"{folder} holds no checkpoint of stage two: run train.py --workdir={folder} to its end")
  return model, *restored


def evaluate(
  folder: pathlib.Path,
  changes: Mapping[str, Any] = _NOTHING,
  *,
  gallery_page: pathlib.Path | None = None,
  gallery_images: int = 0,
  figure_folder: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Evaluates the best epoch of a workdir on its test split, or on the validation split if it has no other.

  Writes there: `results.json`, `pictures/`, `features/`, `choices.json` (what the validation split decided),
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
    ValueError, OSError, FloatingPointError: with what to do about it.
  """
  for path, flag in ((gallery_page, "--gallery=OUT.html"), (figure_folder, "--figures=OUT")):
    if path is not None and path.exists():
      raise FileExistsError(f"{path} exists: remove it or name another with {flag}")
  started = time.monotonic()
  config = workdir.read_config(folder)
  with config.evaluation.unlocked():
    config.evaluation.update_from_flattened_dict(dict(changes))
  data, section = config.data, config.evaluation
  views = viewing.from_config(config)
  mesh = meshes.make_mesh()
  if section.batch_size % mesh.size:
    raise ValueError(f"evaluation.batch_size {section.batch_size} must be a multiple of the {mesh.size} devices")
  if data.validation == data.test:
    raise ValueError(f"data.validation and data.test are both {data.test!r}: nothing may be chosen on the test split")
  test = open_split(data, data.test or data.validation)
  names = test.class_names
  model, params, progress = load_best(config, folder, len(names), mesh)
  forward = answering.make_forward(model, mesh, views, feature=section.feature)
  digest = features.digest_params(params)

  def answers(split: Split, label: str) -> answering.Answers:
    return features.extract(
      features.folder_of(folder, split.name),
      features.make_key(config, split, digest),
      forward,
      params,
      split,
      data=data,
      batch_size=section.batch_size,
      progress=label,
    )

  train = validation = None
  validation_split = open_split(data, data.validation) if data.validation else None
  if section.svm_solver:
    train = answers(open_split(data, data.train, section.svm_images), "images for the SVMs")
  if validation_split is not None:
    validation = answers(validation_split, "validation images")
  head, kind = stages.head_of(config, "stage_two"), classification_of(config)
  if validation is None:
    chosen = choosing.read(folder, names)
  elif processes.is_first():  # what follows from answers takes the devices of one process
    chosen = choosing.choose(config, kind, names, validation_split.name, train, validation)
    workdir.write_json(folder / choosing.FILE, chosen._asdict())

  test_answers = answers(test, "test images")
  best_step = _best_step(folder)
  if not processes.is_first():
    return {}
  margins = None
  if train is not None:
    margins = _fit_svms(config, folder, names, train, chosen.svm_c).margins(choosing.prepare(test_answers, config))
  scoring.save(folder, test_answers, names, margins, step=best_step)
  results = report.evaluate(config, (head, kind), names, test_answers, margins, chosen)
  results |= {
    "data": test.name,
    "head": head,
    "seed": config.seed,
    "best_epoch": progress["best_epoch"],
    "dropped_test_records": test.dropped,
    "version": rmam_jax.__version__,
    "wall_seconds": sum(_stage_seconds(folder)) + time.monotonic() - started,
    "controls": _controls(config, folder),
    "config": json.loads(config.to_json()),
  }
  if train is not None:
    results["svm_images"] = len(train.labels)
  exhibit = exhibits.Exhibit(config, head, decisions.decide(config, chosen._asdict()), test, test_answers)
  exhibits.draw_pictures(folder / "pictures", exhibit)
  workdir.write_json(folder / "results.json", results)
  if gallery_page is not None:
    exhibits.write_gallery(gallery_page, exhibit, results, limit=gallery_images)
  if figure_folder is not None:
    exhibits.draw_figures(figure_folder, exhibit)
  return results


def classification_of(config: ml_collections.ConfigDict) -> str:
  """The loss that stage two's scores are trained with."""
  return config.stage_two.classification or config.loss.classification


def _fit_svms(
  config: ml_collections.ConfigDict, folder: pathlib.Path, names: Sequence[str], train: answering.Answers, c: float
) -> svm.Machines:
  """The machines, saved in the workdir."""
  (machines,) = svm.fit(
    choosing.prepare(train, config),
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
  for stage in (localizing.NAME, *stages.NAMES):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    yield max((line["seconds"] for line in map(json.loads, lines) if line["stage"] == stage), default=0.0)
