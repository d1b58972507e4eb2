"""What `train.py` and `eval.py` call: a whole run, and the evaluation that ends it."""

import json
import pathlib
import time
from typing import Any

import jax
import ml_collections

import rmam_jax
from rmam_jax import exhibits
from rmam_jax import mesh as meshes
from rmam_jax.data.records import Split, open_split
from rmam_jax.evaluation import answers as answering
from rmam_jax.evaluation import decisions, report
from rmam_jax.training import checkpoints, loop, workdir
from rmam_jax.training import step as stepping


def default_workdir(config: ml_collections.ConfigDict) -> pathlib.Path:
  """runs/DATA-HEAD, e.g. runs/digits-easy-saliency."""
  return pathlib.Path("runs", f"{config.data.name}-{config.model.head}".replace("/", "-"))


def train_and_evaluate(config: ml_collections.ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
  """A whole run, or what is left of it: both stages, the controls, the evaluation.

  Args:
    config: see `configs/common.py`.
    folder: the workdir; made, or gone on with if it belongs to the same configuration.

  Returns:
    What `results.json` holds.
  """
  loop.train(config, folder)
  results, _ = evaluate(folder)
  for control in config.controls:
    print(f"control: {control}")
    control_folder = folder / "controls" / control
    loop.train(control_config(config, control), control_folder)
    evaluate(control_folder)
  results["controls"] = _controls(config, folder)
  workdir.write_json(folder / "results.json", results)
  _print(results, folder)
  return results


def evaluate_and_print(
  folder: pathlib.Path,
  *,
  gallery_page: pathlib.Path | None = None,
  gallery_images: int = 0,
  figure_folder: pathlib.Path | None = None,
) -> dict[str, Any]:
  """`evaluate`, a summary of one screen, and what is asked for beside it.

  Args:
    folder: the workdir.
    gallery_page: the HTML file to write; None writes none.
    gallery_images: show the first so many test images there; 0 shows all.
    figure_folder: where to draw figures like the paper's; None draws none.

  Raises:
    FileExistsError: the page or the folder is there already.
  """
  for path, flag in ((gallery_page, "--gallery=OUT.html"), (figure_folder, "--figures=OUT")):
    if path is not None and path.exists():
      raise FileExistsError(f"{path} exists: remove it or name another with {flag}")
  results, exhibit = evaluate(folder)
  _print(results, folder)
  if gallery_page is not None:
    exhibits.write_gallery(gallery_page, exhibit, results, limit=gallery_images)
    print(f"wrote {gallery_page}")
  if figure_folder is not None:
    exhibits.draw_figures(figure_folder, exhibit)
    print(f"wrote {figure_folder}")
  return results


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


def load_best(config: ml_collections.ConfigDict, folder: pathlib.Path, num_classes: int, mesh: jax.sharding.Mesh):
  """Stage two's recogniser, the parameters of its best epoch, and what the host knew then.

  Raises:
    FileNotFoundError: stage two has not finished an epoch there.
    ValueError: the configuration or the checkpoint is that of another version.
  """
  other_version = f"train again into another folder, or use the version that made it; this is {rmam_jax.__version__}"
  try:
    model = loop.build_model(config, "stage_two", num_classes)
  except (AttributeError, KeyError) as error:
    raise ValueError(f"{folder / 'config.json'} lacks a field ({error}): {other_version}") from error
  size = config.data.crop_size
  like = jax.eval_shape(lambda key: stepping.init_params(model, key, size), jax.random.key(0))
  saved = checkpoints.StageCheckpoints(folder / "checkpoints" / "stage_two")
  try:
    restored = saved.restore_best(checkpoints.abstract(like, meshes.replicated(mesh)))
  except (KeyError, ValueError) as error:
    raise ValueError(f"the checkpoint in {folder} does not fit its config.json ({error}): {other_version}") from error
  finally:
    saved.close()
  if restored is None:
    raise FileNotFoundError(f"{folder} holds no checkpoint of stage two: run train.py --workdir={folder} to its end")
  return model, *restored


def evaluate(folder: pathlib.Path) -> tuple[dict[str, Any], exhibits.Exhibit]:
  """Evaluates the best epoch of a workdir on its test split; writes `results.json` and `pictures/` there.

  Returns:
    What `results.json` holds, and the answers to look at.
  """
  started = time.monotonic()
  config = workdir.read_config(folder)
  test = open_split(config.data.name, config.data.test, config.data.root)
  mesh = meshes.make_mesh()
  model, params, progress = load_best(config, folder, len(test.class_names), mesh)
  forward = answering.make_forward(model, mesh)

  def answers(split: Split, label: str) -> answering.Answers:
    return answering.answer_split(
      forward,
      params,
      split,
      data=config.data,
      model=config.model,
      batch_size=config.evaluation.batch_size,
      progress=label,
    )

  test_answers = answers(test, "test images")
  train = open_split(config.data.name, config.data.train, config.data.root, config.evaluation.svm_images)
  train_answers = answers(train, "images for the SVMs")
  head = loop.head_of(config, "stage_two")
  results = report.evaluate(config, head, test.class_names, test_answers, train_answers)
  results |= {
    "data": f"{config.data.name} {config.data.test}",
    "head": head,
    "seed": config.seed,
    "best_epoch": progress["best_epoch"],
    "dropped_test_records": test.dropped,
    "version": rmam_jax.__version__,
    "wall_seconds": sum(_stage_seconds(folder)) + time.monotonic() - started,
    "controls": _controls(config, folder),
    "config": json.loads(config.to_json()),
  }
  exhibit = exhibits.Exhibit(config, head, decisions.decide(config, {}), test, test_answers)
  exhibits.draw_pictures(folder / "pictures", exhibit)
  workdir.write_json(folder / "results.json", results)
  return results, exhibit


def _stage_seconds(folder: pathlib.Path):
  """The wall time that each stage took, over all the runs it took."""
  for stage in loop.STAGES:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    yield max((line["seconds"] for line in map(json.loads, lines) if line["stage"] == stage), default=0.0)
