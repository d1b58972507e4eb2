"""The training of a run: its localiser if it has one, stage one, stage two. It goes on where it stopped."""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm

from rmam_jax import losses, metrics, processes
from rmam_jax import mesh as meshes
from rmam_jax.data import batches
from rmam_jax.data.records import open_split
from rmam_jax.evaluation import answers as answering
from rmam_jax.models import recognizer
from rmam_jax.training import checkpoints, localizing, profile, stopping, workdir
from rmam_jax.training import step as stepping
from rmam_jax.weights import start

STAGES = ("stage_one", "stage_two")
_STREAMS = (*STAGES, localizing.NAME)  # of one run each has its own random numbers


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage of a run, made from its configuration: what is trained, by what, and for how long."""

  name: str
  trains: str  # its head, or what a localiser learns from
  model: nn.Module
  optimizer: optax.GradientTransformation
  objective: stepping.Objective | localizing.Objective
  epochs: int
  steps_per_epoch: int

  @property
  def steps(self) -> int:
    return self.epochs * self.steps_per_epoch


def head_of(config: ml_collections.ConfigDict, name: str) -> str:
  """The name of the head that a stage trains."""
  return config[name].head or config.model.head


def build_model(config: ml_collections.ConfigDict, name: str, num_classes: int) -> recognizer.Recognizer:
  """The recogniser of a stage; stage two keeps stage one's head beside its own where the configuration says so.

  Raises:
    ValueError: a head that does not exist or lacks what it looks by.
  """
  head = head_of(config, name)
  if recognizer.GUIDES.get(head) == "boxes" and (
    not config.data.proposals or config.data.num_proposals != config.model.num_regions
  ):
    raise ValueError(
      f"head {head!r} looks at proposals: set data.proposals, and data.num_proposals to the {config.model.num_regions} of"
      " model.num_regions"
    )
  auxiliary = config.stage_one.head if config[name].auxiliary_weight or recognizer.needs_scores(head) else ""
  return recognizer.build(config.model, num_classes, head=head, auxiliary=auxiliary)


def _build_timetable(
  config: ml_collections.ConfigDict, name: str, num_records: int
) -> tuple[optax.GradientTransformation, int, int]:
  """Of a stage: its optimiser, its epochs and the steps of each.

  Raises:
    ValueError: a value that no stage can have; names its field.
  """
  section = config[name]
  if config.batch_size < 1 or config.batch_size > num_records:
    raise ValueError(f"batch_size must be between 1 and the {num_records} records, got {config.batch_size}")
  least = int(name != "stage_one")
  if section.epochs < least:
    raise ValueError(f"{name}.epochs must be at least {least}, got {section.epochs}")
  if not 0 <= section.stop_epoch <= section.epochs:
    raise ValueError(f"{name}.stop_epoch must be between 0 and its {section.epochs} epochs, got {section.stop_epoch}")
  steps_per_epoch = max((config.epoch_size or num_records) // config.batch_size, 1)
  schedule = stepping.learning_rate_schedule(
    section.schedule,
    peak=section.learning_rate,
    steps=section.epochs * steps_per_epoch,
    warmup_steps=section.warmup_steps,
    drop_at=section.drop_epoch * steps_per_epoch,
  )
  optimizer = optax.adam(schedule, b1=section.beta_1, b2=section.beta_2)
  return optimizer, section.stop_epoch or section.epochs, steps_per_epoch


def build_localizer_stage(config: ml_collections.ConfigDict, num_records: int) -> Stage:
  """The training of a localiser as `localizing.config_of` describes it.

  Raises:
    ValueError: see `build_stage`.
  """
  section = config.localizer
  if section.samples < 2:
    raise ValueError(f"localizer.samples must be at least 2, got {section.samples}")
  if not 0 <= section.negative <= section.positive <= 1:
    raise ValueError(
      "localizer.negative and localizer.positive must be IoUs in [0, 1], the first not above the second, got"
      f" {section.negative} and {section.positive}"
    )
  optimizer, epochs, steps_per_epoch = _build_timetable(config, localizing.NAME, num_records)
  model = recognizer.build_localizer(config.model)
  return Stage(
    name=localizing.NAME,
    trains=config.data.name,
    model=model.clone(backbone=model.backbone.clone(remat=config.remat)),
    optimizer=optimizer,
    objective=localizing.Objective(section.positive, section.negative, section.samples, section.box_weight),
    epochs=epochs,
    steps_per_epoch=steps_per_epoch,
  )


def build_stage(config: ml_collections.ConfigDict, name: str, *, num_classes: int, num_records: int) -> Stage:
  """A stage as `config` describes it.

  Raises:
    ValueError: a value that no stage can have; names its field.
  """
  section, loss = config[name], config.loss
  optimizer, epochs, steps_per_epoch = _build_timetable(config, name, num_records)
  kind = section.classification or loss.classification
  if kind not in losses.CLASSIFICATION_LOSSES:
    raise ValueError(f"{name}.classification must be one of {', '.join(losses.CLASSIFICATION_LOSSES)}, got {kind!r}")
  head = head_of(config, name)
  head_loss = recognizer.LOSSES[head](config, kind) if head in recognizer.LOSSES else None
  objective = stepping.Objective(
    classification=kind,
    localization_weight=loss.localization_weight if recognizer.looks(head) and head_loss is None else 0.0,
    auxiliary_weight=section.auxiliary_weight,
    localization={
      field: loss[field] for field in ("scale_weight", "anchor_weight", "positive_weight", "max_scale", "min_scale")
    },
    head_loss=head_loss,
  )
  model = build_model(config, name, num_classes)
  if config.remat:
    model = model.clone(backbone=model.backbone.clone(remat=True))
  return Stage(
    name=name,
    trains=head,
    model=model,
    optimizer=optimizer if model.localizer is None else _freeze_localizer(optimizer),
    objective=objective,
    epochs=epochs,
    steps_per_epoch=steps_per_epoch,
  )


def _freeze_localizer(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """Updates all of a recogniser's parameters but its localiser's, and keeps nothing for them."""

  def kinds(params):
    return {
      part: jax.tree.map(lambda _, part=part: "frozen" if part == localizing.NAME else "trained", tree)
      for part, tree in params.items()
    }

  return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, kinds)


def take_over(fresh: stepping.Params, trained: stepping.Params, head: str) -> stepping.Params:
  """Stage two's first parameters: stage one's backbone, and its head where stage two keeps it.

  Args:
    fresh: stage two's, as initialised.
    trained: stage one's best.
    head: "auxiliary" where stage one's head goes on beside the new one, "head" where it is the new one, "" for none.
  """
  taken = {"backbone": trained["backbone"]}
  if head:
    taken[head] = trained["head"]
  for name, tree in taken.items():
    shapes = [jax.tree.map(jnp.shape, side) for side in (fresh[name], tree)]
    if shapes[0] != shapes[1]:
      raise ValueError(f"stage one's {name} does not fit stage two's: {shapes[1]} against {shapes[0]}")
  return {**fresh, **taken}


class _Trainer:
  """Runs stages over one mesh, one data set and one workdir."""

  def __init__(
    self, config: ml_collections.ConfigDict, folder: pathlib.Path, first: start.Start | None, trace: profile.Trace
  ):
    self.config = config
    self.trace = trace
    self.first = first
    self.folder = folder
    data = config.data
    with processes.first_before_others("open"):  # digit scenes may have to be made
      self.train = open_split(data, data.train)
    self.validation = open_split(data, data.validation) if data.validation else None
    for split in (self.train, self.validation):
      if split is not None and split.dropped:
        print(f"{split.name}: {split.dropped} records without a positive label are left out")
    self.num_classes = len(self.train.class_names)
    self.mesh = meshes.make_mesh()
    if config.batch_size % self.mesh.size or config.evaluation.batch_size % self.mesh.size:
      raise ValueError(
        f"batch_size {config.batch_size} and evaluation.batch_size {config.evaluation.batch_size} must be multiples of"
        f" the {self.mesh.size} devices"
      )
    if config.accumulate < 1 or config.batch_size % (config.accumulate * self.mesh.size):
      raise ValueError(
        f"accumulate must be at least 1 and cut batch_size {config.batch_size} into equal parts, multiples of the"
        f" {self.mesh.size} devices, got {config.accumulate}"
      )

  def batches(self, stage: Stage, start: int):
    data = self.config.data
    return batches.train_batches(
      self.train,
      batch_size=self.config.batch_size,
      image_size=data.image_size,
      crop_size=data.crop_size,
      flip=data.flip,
      seed=self.config.seed * len(STAGES) + _STREAMS.index(stage.name),
      start_step=start,
      threads=data.threads,
      workers=data.workers,
      corrupt=data.corrupt,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def note_skipped(self, skipped: Iterable[str], step: int, bar: tqdm.tqdm) -> None:
    """Says which images were replaced, and lists them in WORKDIR/skipped.jsonl."""
    for reason in skipped:
      bar.write(f"skipped: {reason}")
      with (self.folder / "skipped.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "reason": str(reason)}) + "\n")

  def make_forward(self, stage: Stage):
    """What `validate` asks."""
    return answering.make_forward(stage.model, self.mesh)

  def validate(self, stage: Stage, forward, params) -> dict[str, float]:
    """The stage's loss over the whole validation split, summed once over all its examples, and its mAP.

    Nothing where there is no validation split.
    """
    if self.validation is None:
      return {}
    answers = answering.answer_split(
      forward,
      params,
      self.validation,
      data=self.config.data,
      batch_size=self.config.evaluation.batch_size,
    )
    classification = losses.CLASSIFICATION_LOSSES[stage.objective.classification]
    loss = float(classification(answers.scores, answers.labels, ignore=answers.ignore))
    if stage.objective.localization_weight:
      localization = losses.localization_loss(answers.thetas, **stage.objective.localization)
      loss += stage.objective.localization_weight * float(localization)
    precisions = metrics.average_precisions(answers.scores, answers.labels, ignore=answers.ignore)
    return {
      "validation_loss": loss,
      "validation_mAP": metrics.mean_average_precision(precisions),
    }

  def begin(self, stage: Stage, params: stepping.Params) -> stepping.Params:
    """Fresh parameters with what `config.weights` has for them."""
    params, taken = self.first.fill(
      params,
      heads={"head": stage.trains, "auxiliary": self.config.stage_one.head},
      class_names=self.train.class_names,
      region_size=tuple(self.config.model.region_size),
    )
    print(f"{stage.name} begins with {', '.join(taken)} of {self.config.weights}: {self.first.title}")
    return params

  def run(
    self, stage: Stage, previous: stepping.Params | None = None, kept: str = "", localizer: Any = None
  ) -> stepping.Params:
    """Trains a stage, or what is left of it; returns the parameters of its best epoch.

    Args:
      stage: what is trained.
      previous: the best parameters of the stage before, or None.
      kept: see `take_over`.
      localizer: the parameters of a localiser that the stage's recogniser has, or None.
    """
    replicated = meshes.replicated(self.mesh)
    key = jax.random.fold_in(jax.random.key(self.config.seed), _STREAMS.index(stage.name))
    init = functools.partial(stepping.init_state, stage.model, stage.optimizer, size=self.config.data.crop_size)
    shapes = checkpoints.abstract(jax.eval_shape(init, key), replicated)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    workdir.check_space(self.folder, 4 * size)

    saved = checkpoints.StageCheckpoints(self.folder / "checkpoints" / stage.name, writing=True)
    restored = saved.restore_last(shapes)
    if restored:
      state, progress = restored
    else:
      state = jax.jit(init, out_shardings=replicated)(key)
      params = state.params
      if self.first is not None:
        params = self.begin(stage, params)
      if previous is not None:
        params = take_over(params, previous, kept)
      if localizer is not None:
        params = {**params, localizing.NAME: localizer}
      state = state._replace(params=jax.device_put(params, replicated))
      progress = {"best_loss": math.inf, "best_epoch": 0, "seconds": 0.0}
    if int(state.step) < stage.steps or progress.get("unfinished"):
      self._train(stage, state, progress, saved)
    best, _ = saved.restore_best(shapes.params)
    saved.close()
    return best

  def _train(self, stage: Stage, state: stepping.TrainState, progress: dict, saved) -> None:
    sharding, replicated = meshes.by_example(self.mesh), meshes.replicated(self.mesh)
    train_step = jax.jit(
      stepping.make_train_step(
        stage.model, stage.optimizer, stage.objective, accumulate=self.config.accumulate, seed=self.config.seed
      ),
      in_shardings=(replicated, sharding),
      out_shardings=replicated,
      donate_argnums=0,
    )
    forward = self.make_forward(stage)
    step, totals = int(state.step), list(progress.pop("unfinished", ()))  # metrics of the steps of an unfinished epoch
    log = workdir.MetricsLog(self.folder, stage.name, step) if processes.is_first() else None
    started = time.monotonic() - progress["seconds"]
    label = f"{stage.name} ({stage.trains})"

    def save_unfinished() -> None:
      seconds = time.monotonic() - started
      saved.save_last(state, {**progress, "unfinished": totals, "seconds": seconds})
      bar.write(f"{label}: stopped after step {step} and saved")

    with (
      contextlib.closing(self.batches(stage, step)) as stream,
      contextlib.closing(log) if log else contextlib.nullcontext(),
      tqdm.tqdm(
        total=stage.steps, initial=step, desc=label, unit=" steps", dynamic_ncols=True, disable=not processes.is_first()
      ) as bar,
      # Several processes cannot agree on a step: there, signals act at once and the last epoch's checkpoint counts.
      stopping.Deferred(active=jax.process_count() == 1) as stop,
    ):
      while step < stage.steps or totals:
        running = None
        while len(totals) + bool(running) < stage.steps_per_epoch and not stop.asked:
          with self.trace.step():
            try:
              with jax.profiler.TraceAnnotation("input"):
                batch = next(stream)
            except Exception:
              if not stop.asked:
                raise
              break  # a signal to all processes has ended the workers, too
            self.note_skipped(batch.get("skipped", ()), step, bar)
            batches.check_batch(batch)
            on_devices = {
              name: jax.make_array_from_process_local_data(sharding, array)
              for name, array in batches.arrays_of(batch).items()
            }
            state, step_metrics = train_step(state, on_devices)
          step += 1
          if running:  # the step before, so that the host never waits for the one it has just started
            totals.append(_settle(*running))
            bar.set_postfix(loss=f"{totals[-1]['loss']:.3f}", refresh=False)
          running = f"{stage.name}, step {step}", step_metrics, batch["ids"]
          bar.update()
        if running:
          totals.append(_settle(*running))
        if stop.asked:
          save_unfinished()
          return
        try:
          with stop.suspended():
            found = self.validate(stage, forward, state.params)
        except KeyboardInterrupt:
          save_unfinished()
          raise
        means = {name: float(np.mean([values[name] for values in totals])) for name in totals[0]}
        totals = []
        epoch = step // stage.steps_per_epoch
        # Without a validation split nothing is chosen: the last epoch is the one that counts.
        if not found or found["validation_loss"] < progress["best_loss"]:
          progress = {**progress, "best_loss": found.get("validation_loss", math.inf), "best_epoch": epoch}
          saved.save_best(step, state.params, progress)
        progress["seconds"] = time.monotonic() - started
        if log is not None:
          log.write(step, {"epoch": epoch, **means, **found, "seconds": progress["seconds"]})
        saved.save_last(state, progress)
        validated = "".join(
          f", validation loss {value:.3f}" if name == "validation_loss" else f", {name.split('_')[1]} {value:.1%}"
          for name, value in found.items()
        )
        bar.write(f"{label} epoch {epoch}/{stage.epochs}: loss {means['loss']:.3f}{validated}")


class _LocalizerTrainer(_Trainer):
  """Trains a localiser: the data are those with boxes."""

  def make_forward(self, stage: Stage):
    return localizing.make_forward(stage.model, self.mesh)

  def validate(self, stage: Stage, forward, params) -> dict[str, float]:
    """The share of the objects that no region finds, by which the best epoch is chosen, and of those that one does."""
    if self.validation is None:
      return {}
    found = localizing.recall(
      forward, params, self.validation, data=self.config.data, batch_size=self.config.evaluation.batch_size
    )
    return {"validation_loss": 1 - found, "validation_recall": found}


def _settle(place: str, step_metrics: stepping.Metrics, ids: Sequence[str]) -> dict[str, float]:
  """A step's metrics on the host.

  Raises:
    FloatingPointError: one is not finite; names the step, the terms and the records.
  """
  values = {name: float(value) for name, value in step_metrics.items()}
  broken = [name for name, value in values.items() if not math.isfinite(value)]
  if broken:
    raise FloatingPointError(
      f"{place}: {', '.join(broken)} not finite, with the records {', '.join(ids)}. Nothing of this step was taken over"
      " or saved, and the checkpoint before it stays. Look at these records, or lower the learning rate in another"
      " --workdir."
    )
  return values


def train(
  config: ml_collections.ConfigDict, folder: pathlib.Path, *, profile_folder: pathlib.Path | None = None
) -> stepping.Params:
  """Runs both stages, and the training of the localiser before them if the head has one, or what is left of them.

  Args:
    config: see `configs/common.py`.
    folder: the workdir; made, or gone on with if it belongs to the same configuration.
    profile_folder: for a trace of the first steps after warming up; None writes none.

  Returns:
    Stage two's parameters at its best epoch by validation loss, or without a validation split at its last.

  Raises:
    ValueError, OSError, FloatingPointError: with what to do about it.
  """
  # Preprocessing travels with the weights: from here on the configuration has theirs, and so has all that reads it,
  # config.json, the checkpoints' owner, evaluation and prediction.
  with processes.first_before_others("weights"):  # the first one leaves their conversion in the cache
    config, first = start.resolve(config, folder)
  workdir.check(folder, config)
  trace = profile.Trace(profile_folder if processes.is_first() else None)
  trainer = _Trainer(config, folder, first, trace)
  stages = [
    build_stage(config, name, num_classes=trainer.num_classes, num_records=len(trainer.train)) for name in STAGES
  ]
  localizing_trainer = localizer_stage = None
  if any(stage.model.localizer is not None for stage in stages):
    localizing_trainer = _LocalizerTrainer(localizing.config_of(config), folder, first, profile.Trace(None))
    localizer_stage = build_localizer_stage(localizing_trainer.config, len(localizing_trainer.train))
  # Only now: a configuration that cannot run leaves nothing behind.
  with processes.first_before_others("claim"):
    workdir.claim(folder, config, trainer.train.class_names)
  params, kept = None, ""
  localizer = localizing_trainer.run(localizer_stage) if localizing_trainer else None
  with contextlib.closing(trace):
    for stage in stages:
      if stage.epochs:
        params = trainer.run(stage, params, kept, None if stage.model.localizer is None else localizer)
      kept = kept_head(config)
  return params


def best_epochs(folder: pathlib.Path) -> dict[str, int]:
  """The best epoch of each stage that has one in a workdir, the localiser's among them, by the stage's name."""
  found = {}
  for name in (localizing.NAME, *STAGES):
    if not (folder / "checkpoints" / name).is_dir():
      continue
    saved = checkpoints.StageCheckpoints(folder / "checkpoints" / name)
    if progress := saved.best_progress():
      found[name] = progress["best_epoch"]
    saved.close()
  return found


def kept_head(config: ml_collections.ConfigDict) -> str:
  """Where stage one's head goes on in stage two; see `take_over`."""
  head = head_of(config, "stage_two")
  if config.stage_two.auxiliary_weight or recognizer.needs_scores(head):
    return "auxiliary"
  return "head" if head == head_of(config, "stage_one") else ""
