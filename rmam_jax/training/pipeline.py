"""A whole run: its phases, one after the other, each trained and evaluated.

Most runs have one phase. With `data.final_train` there are two: the first, in `WORKDIR/choose`, trains on `data.train`
and chooses the epoch of each training, C, thresholds and temperature on `data.validation`; the second trains with these
on `data.final_train` and is evaluated on `data.test`, on which nothing is chosen. Each of `controls` adds such phases,
in `WORKDIR/controls/NAME`.
"""

import contextlib
import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from rmam_jax import backbones, heads
from rmam_jax.data.splits import Split, check_disjoint, open_split, resolved
from rmam_jax.evaluation import selection as selection_lib
from rmam_jax.runtime import files, processes
from rmam_jax.runtime.errors import UserError, check_name
from rmam_jax.training import checkpoints, initial_weights, loop, stages, workdir
from rmam_jax.training import rpn as rpn_training
from rmam_jax.training.evaluate import check_evaluation, controls_beside, evaluate, print_results


class Phase(NamedTuple):
  """A training of all stages and its evaluation."""

  title: str  # printed when it begins
  folder: pathlib.Path  # its workdir
  config: ml_collections.ConfigDict  # where another phase chooses, without the epochs that are not yet known
  chosen_in: pathlib.Path | None = None  # the workdir of the phase that chose its epochs and its selection
  control: str = ""  # the head that it trains beside the run's own


def default_workdir(config: ml_collections.ConfigDict) -> pathlib.Path:
  """runs/DATA-HEAD, e.g. runs/digits-easy-saliency."""
  return pathlib.Path("runs", f"{config.data.name}-{config.model.head}".replace("/", "-"))


def phases(config: ml_collections.ConfigDict, folder: pathlib.Path) -> list[Phase]:
  """The phases of a run in the order in which they are done: its own, then those of each control."""
  found = []
  for control in ("", *config.controls):
    each, place, title = config, folder, ""
    if control:
      each, place, title = _control(config, control), folder / "controls" / control, f"control {control}: "
    if not each.data.final_train:
      found.append(Phase(f"{title}stage one and two" if control else "", place, each, control=control))
      continue
    first, second = each.copy_and_resolve_references(), each.copy_and_resolve_references()
    first.data.final_train, first.data.test, first.controls = "", "", ()
    second.data.train, second.data.validation, second.data.final_train = each.data.final_train, "", ""
    choosing = f"{title}first phase, choosing on {each.data.validation}"
    training = f"{title}second phase, {second.data.train} with the epochs, C and thresholds of the first"
    found.append(Phase(choosing, place / "choose", first, control=control))
    found.append(Phase(training, place, second, place / "choose", control))
  return found


def _control(config: ml_collections.ConfigDict, head: str) -> ml_collections.ConfigDict:
  """The same run with a control's head in both stages and nothing beside it: as many steps on the same batches."""
  control = config.copy_and_resolve_references()
  control.model.head = control.stage_one.head = head
  control.stage_two.auxiliary_weight = 0.0
  control.stage_two.learning_rate = config.controls_rate or config.stage_two.learning_rate
  control.controls = ()
  control.evaluation.pictures = 0
  return control


NOTES = 5  # of a split that are printed


def check(config: ml_collections.ConfigDict, todo: Sequence[Phase]) -> dict[str, Split]:
  """Builds all that the phases will need: a UserError refuses what cannot be done before anything is trained.

  Returns the splits by the fields of `data` that name them.
  """
  data = config.data
  if not 0 < data.crop_size <= data.image_size:
    raise UserError(
      f"data.crop_size must be between 1 and data.image_size {data.image_size}, got {data.crop_size}: they are set"
      " together"
    )
  if backbones.cells(config.model, data.crop_size) < 1:
    raise UserError(
      f"data.crop_size {data.crop_size} is less than one cell of {config.model.backbone}'s map: enlarge it"
    )
  if len(config.model.region_size) != 2 or min(config.model.region_size) < 1:
    raise UserError(f"model.region_size must be (height, width) in samples, got {config.model.region_size}")
  if config.seed < 0:
    raise UserError(f"seed must be 0 or more, got {config.seed}")
  for control in config.controls:
    check_name("controls", control, heads.SPECS)
  if not data.validation:
    selection_lib.check(todo[0].folder)
  if config.controls and not data.validation:
    raise UserError("controls choose on data.validation, which is empty: set --config.controls=() or name a split")
  fields = [field for field in ("train", "validation", "final_train", "test") if data[field]]
  with processes.first_before_others("check"):  # digit scenes may have to be made
    opened = {field: open_split(data, data[field]) for field in fields}
  for split in opened.values():
    print(f"{split.name}: {len(split):,} images, from {split.origin}")
    for note in split.notes[:NOTES]:
      print(f"  note: {note}")
    if len(split.notes) > NOTES:
      print(f"  and {len(split.notes) - NOTES:,} notes more, which `rmam-jax validate` lists")
  by_name = {data[field]: split for field, split in opened.items()}
  for phase in todo:
    try:
      _check_phase(phase, by_name[phase.config.data.train])
    except UserError as error:
      if phase.control:
        raise UserError(f"the control {phase.control} cannot be trained: {error}") from error
      raise
  check_disjoint(opened)
  return opened


def _write_parts(folder: pathlib.Path, opened: Mapping[str, Split]) -> None:
  """What `data.split` made, as tables to be looked at: a row for each image, with its labels."""
  folder.mkdir(parents=True, exist_ok=True)
  for field, split in opened.items():
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows([("image", "labels"), *((name, "|".join(labels)) for name, labels in split.listed())])
    files.write_text(folder / f"{field}.csv", text.getvalue())


def _check_phase(phase: Phase, train: Split) -> None:
  config, folder = phase.config, phase.folder
  check_evaluation(config)
  if stages.build_all(config, train)[-1].model.rpn is not None:
    own = rpn_training.config_of(config)
    stages.build_rpn(own, len(open_split(own.data, own.data.train)))
  if (phase.chosen_in or phase.control) and (folder / "config.json").exists():  # the first phase's training checks it
    resolved, _ = initial_weights.resolve(config, folder)
    if phase.chosen_in is not None:
      theirs = workdir.read_config(folder)
      resolved = _with_epochs(resolved, {name: theirs[name].stop_epoch for name in loop.STREAMS})
    workdir.check(folder, resolved)


def _with_epochs(config: ml_collections.ConfigDict, epochs: Mapping[str, int]) -> ml_collections.ConfigDict:
  """The configuration of a second phase: each training ends at the epoch that the first phase found best."""
  config = config.copy_and_resolve_references()
  for name, epoch in epochs.items():
    config[name].stop_epoch = epoch
  return config


def _run(phase: Phase, profile_folder: pathlib.Path | None) -> dict[str, Any]:
  """Trains and evaluates one phase, or what is left of it; returns its results."""
  config, chosen_in, first = phase.config, phase.chosen_in, processes.is_first()
  if chosen_in is not None:
    if config.rpn.data and first:  # it learns from the same boxes in both phases, and is not trained again
      checkpoints.take_over(stages.RPN, chosen_in, phase.folder)
    config = _with_epochs(config, checkpoints.best_epochs(chosen_in))
  loop.train(config, phase.folder, profile_folder=profile_folder)
  if chosen_in is not None:
    with processes.first_before_others("selection"):  # all read it
      if first:
        files.write_text(phase.folder / selection_lib.FILE, (chosen_in / selection_lib.FILE).read_text())
  return evaluate(phase.folder)


def train_and_evaluate(
  config: ml_collections.ConfigDict, folder: pathlib.Path, *, profile_folder: pathlib.Path | None = None
) -> dict[str, Any]:
  """A whole run, or what is left of it. The arguments are those of `loop.train`; the run's own last phase is traced.

  Returns what `results.json` holds; in another process than the first, nothing. Raises a UserError if another process
  trains there.
  """
  with workdir.locked(folder) if processes.is_first() else contextlib.nullcontext():
    config = config.copy_and_resolve_references()
    config.data.update(resolved(config.data))
    todo = phases(config, folder)
    opened = check(config, todo)
    if config.data.split and processes.is_first():
      _write_parts(folder / "split", opened)
    for phase in todo:
      if phase.title:
        print(f"{phase.title}, in {phase.folder}")
      found = _run(phase, profile_folder if phase.folder == folder else None)
      if phase.folder == folder:
        results = found
    if processes.is_first():
      results["controls"] = controls_beside(config, folder, results)
      files.write_json(folder / "results.json", results)
      print_results(results, folder)
  return results
