"""Trains a region proposal network if the head has one, then both stages; each goes on where it stopped."""

import contextlib
import functools
import json
import math
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rmam_jax import heads
from rmam_jax.data import batches
from rmam_jax.data.augmentation import Augmentation
from rmam_jax.data.batches import StoredMaps
from rmam_jax.data.splits import Split, open_split
from rmam_jax.evaluation import calibration, stored_maps
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.runtime import files, processes
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime import progress as progress_lib
from rmam_jax.runtime.errors import UserError, os_errors
from rmam_jax.training import checkpoints, initial_weights, signals, stages, workdir, writers
from rmam_jax.training import rpn as rpn_training
from rmam_jax.training import step as step_lib
from rmam_jax.training.initial_weights import InitialWeights
from rmam_jax.visual import panels, pictures

STREAMS = (*stages.NAMES, stages.RPN)  # each has random numbers of its own
WARM_UP, TRACED = 3, 10  # steps before a trace, which compile and warm up, and in it


class _Trace(contextlib.ExitStack):
  """Writes `TRACED` steps after the first `WARM_UP`, for TensorBoard's profiler or https://ui.perfetto.dev.

  It closes itself after the last of them. Without a folder it writes nothing.
  """

  def __init__(self, folder: pathlib.Path | None):
    super().__init__()
    self._folder, self._steps = folder, 0

  @contextlib.contextmanager
  def step(self) -> Iterator[None]:
    """One step: its input and its computation."""
    if self._folder is not None and self._steps == WARM_UP:
      self.callback(lambda: print(f"wrote a trace of {self._steps - WARM_UP} steps to {self._folder}"))
      self.enter_context(jax.profiler.trace(self._folder))
    with jax.profiler.StepTraceAnnotation("train", step_num=self._steps):
      yield
    self._steps += 1
    if self._steps == WARM_UP + TRACED:
      self.close()


class _Trainer:
  """Trains stages over one mesh, one data set and one workdir; `first` are initial weights, None for random ones."""

  def __init__(self, config: Any, folder: pathlib.Path, first: InitialWeights | None, trace: _Trace):
    self.config, self.folder, self.first, self.trace, self.mesh = config, folder, first, trace, mesh_lib.make_mesh()
    writers.check(config.writers)
    if config.validation_pictures < 0:
      raise UserError(f"validation_pictures must be 0 or more, got {config.validation_pictures}")
    data = config.data
    with processes.first_before_others("open"):  # digit scenes may have to be made
      self.splits = [open_split(data, name) for name in (data.train, data.validation) if name]
    self.train = self.splits[0]
    self.validation = self.splits[1] if data.validation else None
    for split in self.splits:
      if split.dropped:
        print(f"{split.name}: {split.dropped} records without a positive label are left out")
    devices = self.mesh.size
    if config.batch_size % devices or config.evaluation.batch_size % devices:
      raise UserError(
        f"batch_size {config.batch_size} and evaluation.batch_size {config.evaluation.batch_size} must be multiples of"
        f" the {devices} devices"
      )
    if config.accumulate < 1 or config.batch_size % (config.accumulate * devices):
      raise UserError(
        f"accumulate must be at least 1 and cut batch_size {config.batch_size} into equal parts, multiples of the"
        f" {devices} devices, got {config.accumulate}"
      )

  def maps_of(
    self, stage: stages.Stage, forward: Any, params: step_lib.Params, split: Split | None
  ) -> StoredMaps | None:
    """The feature maps of a split where a stage does not train its backbone, for `forward`'s views; else None."""
    if split is None or not stage.frozen:
      return None
    options = {"config": self.config, "mesh": self.mesh, "views": forward.views}
    return stored_maps.of_split(stage.model, params, split, **options)

  def validate(
    self, stage: stages.Stage, forward: Any, params: step_lib.Params, maps: StoredMaps | None
  ) -> dict[str, float]:
    """The figures of an epoch, of which the lowest `validation_loss` is the best; none without a validation split."""
    if self.validation is None:
      return {}
    options = {"data": self.config.data, "batch_size": self.config.evaluation.batch_size}
    if maps is not None:
      options["maps"] = maps
    return stage.validate(forward, params, self.validation, **options)

  def pictures(
    self, stage: stages.Stage, forward: Any, params: step_lib.Params, maps: StoredMaps | None
  ) -> np.ndarray | None:
    """The first `validation_pictures` validation images with their regions, uint8 [N, height, width, 3].

    None where there is nothing to draw: without a validation split, for a head that does not look, in other processes
    than the first (all compute together).
    """
    config, limit = self.config, self.config.validation_pictures
    if self.validation is None or not limit or stage.name == stages.RPN or not heads.get(stage.trains).looks:
      return None
    options = {"data": config.data, "batch_size": config.evaluation.batch_size, "maps": maps, "limit": limit}
    found = outputs_lib.compute_outputs(forward, params, self.validation, **options)
    if not processes.is_first() or not len(found.readable):
      return None
    kind = stages.classification_of(config, stage.name)
    thresholds = calibration.make_thresholds(kind, {}, top_k=config.evaluation.top_k)
    shown = panels.EvaluatedSplit(config, stage.trains, thresholds, self.validation, found)
    return np.stack([pictures.pixels(panel) for panel in panels.panels(shown, found.readable)])

  def run(
    self, stage: stages.Stage, previous: step_lib.Params | None = None, kept: str = "", rpn: Any = None
  ) -> step_lib.Params:
    """Trains a stage, or what is left of it; returns the parameters of its best epoch.

    It begins with the best ones of the `previous` stage, of which it keeps the head `kept` (`stages.take_over`), and of
    the region proposal network `rpn` that its recognizer has.
    """
    replicated = mesh_lib.replicated(self.mesh)
    key = jax.random.fold_in(jax.random.key(self.config.seed), STREAMS.index(stage.name))
    options = {"size": self.config.data.crop_size, "averaged": bool(stage.ema)}
    init = functools.partial(step_lib.init_state, stage.model, stage.optimizer, **options)
    shapes = checkpoints.abstract(jax.eval_shape(init, key), replicated)
    # Two last states, a third while it is written, and the best parameters.
    needed = 4 * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    if (free := shutil.disk_usage(self.folder).free) < needed:
      raise UserError(
        f"{self.folder} has {free / 1e6:,.0f} MB free and the checkpoints need {needed / 1e6:,.0f} MB. Free some, or"
        " name another folder with --workdir=DIR."
      )
    folder = self.folder / "checkpoints" / stage.name
    with contextlib.closing(checkpoints.StageCheckpoints(folder, writing=True)) as saved:
      state, progress = saved.restore_last(shapes) or (None, {"best_loss": math.inf, "best_epoch": 0, "seconds": 0.0})
      if state is None:
        state = jax.jit(init, out_shardings=replicated)(key)
        params = state.params
        if self.first is not None:
          params, taken = self.first.fill(
            params,
            heads={"head": stage.trains, "auxiliary": self.config.stage_one.head},
            class_names=self.train.class_names,
            region_size=tuple(self.config.model.region_size),
          )
          print(f"{stage.name} begins with {', '.join(taken)} of {self.config.weights}: {self.first.title}")
        if previous is not None:
          params = stages.take_over(params, previous, kept)
        if rpn is not None:
          params = {**params, stages.RPN: jax.tree.map(jnp.copy, rpn)}  # which another stage takes, too
        params = jax.device_put(params, replicated)
        average = jax.tree.map(jnp.copy, params) if stage.ema else None  # a copy: the step takes both, and frees them
        state = state._replace(params=params, average=average)
      if not stage.is_over(int(state.step), progress["best_epoch"]) or progress.get("unfinished"):
        self._train(stage, state, progress, saved)
      best, _ = saved.restore_best(shapes.params)
      return best

  def _batches(self, stage: stages.Stage, start: int, maps: StoredMaps | None) -> Iterator[Mapping[str, Any]]:
    """The stage's batches from a step on."""
    fields = ("image_size", "crop_size", "flip", "threads", "workers", "corrupt")
    options = {"process_index": jax.process_index(), "process_count": jax.process_count(), "start_step": start}
    options |= {field: self.config.data[field] for field in fields} | {"batch_size": self.config.batch_size}
    seed = self.config.seed * len(stages.NAMES) + STREAMS.index(stage.name)
    if maps is None:  # which were computed without it
      options["augmentation"] = Augmentation(**self.config.data.augmentation)
    return batches.train_batches(self.train, seed=seed, maps=maps, **options)

  def _next_batch(self, stream: Iterator[Mapping[str, Any]], place: dict[str, Any], bar: Any) -> tuple[Any, Any]:
    """A batch's ids and its arrays on the devices; says which images were replaced and lists them in `_skipped`."""
    with jax.profiler.TraceAnnotation("input"):
      batch = next(stream)
    for reason in batch.get("skipped", ()):
      bar.write(f"skipped: {reason}")
      path = _skipped(self.folder)
      with os_errors(f"cannot write {path}", files.GO_ON), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**place, "reason": str(reason)}) + "\n")
    batches.check_batch(batch)
    put = functools.partial(jax.make_array_from_process_local_data, mesh_lib.by_example(self.mesh))
    return batch["ids"], {name: put(array) for name, array in batches.arrays_of(batch).items()}

  def _train(
    self, stage: stages.Stage, state: step_lib.TrainState, progress: dict, saved: checkpoints.StageCheckpoints
  ) -> None:
    """The stage's steps from `state` on, its epochs validated and saved."""
    config, replicated, first = self.config, mesh_lib.replicated(self.mesh), processes.is_first()
    parts = stage.model, stage.optimizer, stage.objective
    train_step = jax.jit(
      step_lib.make_train_step(
        *parts, accumulate=config.accumulate, seed=config.seed, ema=stage.ema, mixup=stage.mixup
      ),
      in_shardings=(replicated, mesh_lib.by_example(self.mesh)),
      out_shardings=replicated,
      donate_argnums=0,
    )
    forward = stage.make_forward(stage.model, self.mesh)
    maps, validation_maps = (
      self.maps_of(stage, forward, state.params, split) for split in (self.train, self.validation)
    )
    step, totals = int(state.step), list(progress.pop("unfinished", ()))  # metrics of the steps of an unfinished epoch
    log_or_none = contextlib.nullcontext()
    with processes.first_before_others(f"log of {stage.name}"):
      if first:  # for all, as the run may have had more processes before
        for path in self.folder.glob("skipped*.jsonl"):
          workdir.keep_until(path, stage.name, step)
    if first:
      log_or_none = contextlib.closing(writers.open_writers(config.writers, self.folder, stage.name, step))
    started, label = time.monotonic() - progress["seconds"], f"{stage.name} ({stage.trains})"
    shown = {"total": stage.steps, "initial": step, "unit": " steps", "dynamic_ncols": True, "disable": not first}

    def save_unfinished() -> None:
      saved.save_last(state, {**progress, "unfinished": totals, "seconds": time.monotonic() - started})
      saved.wait()
      bar.write(f"{label}: stopped after step {step} and saved")

    with (
      contextlib.closing(self._batches(stage, step, maps)) as stream,
      log_or_none as log,
      progress_lib.bar(None, label, **shown) as bar,
      # Several processes cannot agree on a step: there, signals act at once and the last epoch's checkpoint counts.
      signals.Deferred(active=jax.process_count() == 1) as stop,
    ):
      if log is not None and not step:
        log.write_hparams(workdir.flatten(json.loads(config.to_json())))
      while not stage.is_over(step, progress["best_epoch"]) or totals:
        running = None
        while len(totals) + bool(running) < stage.steps_per_epoch and not stop.asked:
          with self.trace.step():
            try:
              ids, batch = self._next_batch(stream, {"stage": stage.name, "step": step + 1}, bar)
            except Exception:
              if not stop.asked:
                raise
              break  # a signal to all processes has ended the workers, too
            state, step_metrics = train_step(state, batch)
          step += 1
          if running:  # the step before, so that the host never waits for the one it has just started
            totals.append(_settle(*running))
            bar.set_postfix(loss=f"{totals[-1]['loss']:.3f}", refresh=False)
          running = f"{stage.name}, step {step}", step_metrics, ids
          bar.update()
        if running:
          totals.append(_settle(*running))
        if stop.asked:
          save_unfinished()
          return
        try:
          with stop.suspended():
            found = self.validate(stage, forward, state.result, validation_maps)
        except KeyboardInterrupt:
          save_unfinished()
          raise
        means = {name: float(np.mean([values[name] for values in totals])) for name in totals[0]}
        totals, epoch = [], step // stage.steps_per_epoch
        drawn = None
        # Without a validation split nothing is chosen: the last epoch is the one that counts.
        if not found or found["validation_loss"] < progress["best_loss"]:
          progress = {**progress, "best_loss": found.get("validation_loss", math.inf), "best_epoch": epoch}
          saved.save_best(step, state.result, progress)
          if writers.show_images(config.writers):
            drawn = self.pictures(stage, forward, state.result, validation_maps)
        progress["seconds"] = time.monotonic() - started
        if log is not None:
          log.write_scalars(step, {"epoch": epoch, **means, **found, "seconds": progress["seconds"]})
          if drawn is not None:
            log.write_images(step, {"validation": drawn})
          log.flush()
        saved.save_last(state, progress)
        validated = "".join(
          f", validation loss {value:.3f}" if name == "validation_loss" else f", {name.split('_')[1]} {value:.1%}"
          for name, value in found.items()
        )
        bar.write(f"{label} epoch {epoch}/{stage.epochs}: loss {means['loss']:.3f}{validated}")
        if step < stage.steps and stage.is_over(step, progress["best_epoch"]):
          bar.write(f"{label}: stopped, as no epoch after {progress['best_epoch']} had a lower validation loss")


def _skipped(folder: pathlib.Path) -> pathlib.Path:
  """Where this process alone lists the images that it replaced: skipped.jsonl, of the second skipped-1.jsonl, ..."""
  index = jax.process_index()
  return folder / (f"skipped-{index}.jsonl" if index else "skipped.jsonl")


def _settle(place: str, step_metrics: step_lib.Metrics, ids: Sequence[str]) -> dict[str, float]:
  """A step's metrics on the host; refuses those that are not finite and names the step, the terms and the records."""
  values = {name: float(value) for name, value in step_metrics.items()}
  broken = [name for name, value in values.items() if not math.isfinite(value)]
  if broken:
    raise UserError(
      f"{place}: {', '.join(broken)} not finite, with the records {', '.join(ids)}. Nothing of this step was kept or"
      " saved, and the checkpoint before it stays. Look at these records, or lower the learning rate in another"
      " --workdir."
    )
  return values


def train(
  config: ml_collections.ConfigDict, folder: pathlib.Path, *, profile_folder: pathlib.Path | None = None
) -> step_lib.Params:
  """Trains both stages, and before them a region proposal network if the head has one, or what is left of them.

  `config` is as in `rmam_jax.config`. The workdir `folder` is made, or gone on with if it belongs to the same
  configuration. In `profile_folder` the first steps after warming up are traced; None for no trace.

  Returns:
    Stage two's parameters at its best epoch by validation loss, or without a validation split at its last.
  """
  # Preprocessing belongs to the weights: from here on the configuration has theirs, and so has all that reads it,
  # config.json, evaluation and prediction.
  with processes.first_before_others("weights"):  # the first one leaves their conversion in the cache
    config, first = initial_weights.resolve(config, folder)
  workdir.check(folder, config)
  with _Trace(profile_folder if processes.is_first() else None) as trace:
    trainer = _Trainer(config, folder, first, trace)
    planned = stages.build_all(config, trainer.train)
    trainers = [trainer]
    if any(stage.model.rpn is not None for stage in planned):
      trainers.append(_Trainer(rpn_training.config_of(config), folder, first, _Trace(None)))
      rpn_stage = stages.build_rpn(trainers[1].config, len(trainers[1].train))
    records = {split.name: split.digest() for each in trainers for split in each.splits}
    # Only now: a configuration that cannot run leaves nothing behind.
    with processes.first_before_others("claim"):
      workdir.claim(folder, config, trainer.train.class_names, records)
    params, kept = None, ""
    rpn = trainers[1].run(rpn_stage) if len(trainers) > 1 else None
    for stage in planned:
      params = trainer.run(stage, params, kept, None if stage.model.rpn is None else rpn)
      kept = stages.kept_head(config)
  return params
