"""Where a training's metrics go: `config.writers` names the writers, whose methods are called as those of CLU.

Each writer belongs to one stage of one workdir. It is opened at the step that the stage goes on from: what a run that
was stopped wrote after this step is not there twice.
"""

import importlib.util
import json
import os
import pathlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError, check_name, os_errors
from rmam_jax.training import workdir


class Writer:
  """What every writer can be asked; by itself it writes nothing."""

  shows_images = False  # or `write_images` writes none

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Metrics by their names, once a step; raises UserError if they cannot be written."""

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Images uint8 [N, height, width, 3] by their names, once a step."""

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """The fields of the configuration by their dotted names, once a training."""

  def flush(self) -> None:
    """Writes out what is still in memory."""

  def close(self) -> None:
    """Flushes, and ends it."""


class JsonLines(Writer):
  """`WORKDIR/metrics.jsonl`: a line of JSON for each step. It holds no images; `config.json` has the fields."""

  def __init__(self, folder: pathlib.Path, stage: str, step: int):
    self._stage, self._path = stage, folder / "metrics.jsonl"
    workdir.keep_until(self._path, stage, step)

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    with os_errors(f"cannot write {self._path}", files.GO_ON), self._path.open("a") as file:
      file.write(json.dumps({"stage": self._stage, "step": step, **scalars}) + "\n")


class TensorBoard(Writer):
  """`WORKDIR/tensorboard/STAGE/`: event files, of which TensorBoard drops what lies after the step gone on from."""

  shows_images = True

  def __init__(self, folder: pathlib.Path, stage: str, step: int):
    import tensorboardX

    self._events = tensorboardX.SummaryWriter(str(folder / "tensorboard" / stage), purge_step=step + 1)

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    for name, value in scalars.items():
      self._events.add_scalar(name, value, step)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    for name, array in images.items():
      for index, image in enumerate(array, 1):
        self._events.add_image(f"{name}/{index}", image, step, dataformats="HWC")

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    from tensorboardX import summary

    shown = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in hparams.items()}
    _, started, _ = summary.hparams(shown, {})  # without its experiment: TensorBoard then lists all metrics it finds
    self._events.file_writer.add_summary(started)

  def flush(self) -> None:
    self._events.flush()

  def close(self) -> None:
    self._events.close()


class WandB(Writer):
  """Weights & Biases: a run for each stage, those of a workdir in one group.

  `WORKDIR/wandb/STAGE.id` keeps the run's id: a run that goes on is the same one there, and W&B takes each step once.
  """

  shows_images = True

  def __init__(self, folder: pathlib.Path, stage: str, step: int):
    del step  # W&B knows how far it came
    import wandb

    known = folder / "wandb" / f"{stage}.id"
    known.parent.mkdir(exist_ok=True)
    if not known.exists():
      files.write_text(known, secrets.token_hex(8))
    try:
      self._run = wandb.init(
        dir=str(folder),
        project=os.environ.get("WANDB_PROJECT") or "rmam_jax",
        id=known.read_text(),
        name=f"{folder.name} {stage}",
        group=str(folder),
        job_type=stage,
        resume="allow",
        reinit="create_new",  # one after the other in a process
        settings=wandb.Settings(console="off", disable_git=True, disable_code=True),  # neither what is printed nor code
      )
    except wandb.errors.Error as error:
      raise UserError(
        f"writers: W&B begins no run ({error}): log in by `wandb login`, set WANDB_MODE=offline, or leave wandb out"
      ) from error

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    self._run.log(dict(scalars), step=step)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    import wandb

    self._run.log({name: list(map(wandb.Image, array)) for name, array in images.items()}, step=step)

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    self._run.config.update(dict(hparams), allow_val_change=True)

  def close(self) -> None:
    self._run.finish()


class Writers(Writer):
  """Several as one."""

  def __init__(self, each: Sequence[Writer]):
    self._each = each

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    for writer in self._each:
      writer.write_scalars(step, scalars)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    for writer in self._each:
      writer.write_images(step, images)

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    for writer in self._each:
      writer.write_hparams(hparams)

  def flush(self) -> None:
    for writer in self._each:
      writer.flush()

  def close(self) -> None:
    for writer in self._each:
      writer.close()


WRITERS = {"jsonl": JsonLines, "tensorboard": TensorBoard, "wandb": WandB}


def check(writers: str) -> list[str]:
  """The names in `config.writers`, each once; raises UserError: one is unknown or cannot be had, or `jsonl` is not among them."""
  names = list(dict.fromkeys(name.strip() for name in writers.split(",")))
  for name in names:
    check_name("writers", name, WRITERS)
  if "jsonl" not in names:
    raise UserError(f"writers must name jsonl, which evaluation reads, beside {writers}: set it to jsonl,{writers}")
  found = importlib.util.find_spec("wandb")
  if "wandb" in names and (found is None or found.origin is None):  # a folder `wandb` of runs is no package
    raise UserError("writers names wandb, which pip install 'rmam_jax[wandb]' brings: install it, or leave it out")
  return names


def show_images(writers: str) -> bool:
  """Whether one of `config.writers` writes images, which are drawn for it alone."""
  return any(WRITERS[name].shows_images for name in check(writers))


def open_writers(writers: str, folder: pathlib.Path, stage: str, step: int) -> Writers:
  """Those of `config.writers`, for a stage of a workdir that goes on after a step, 0 for one that begins."""
  return Writers([WRITERS[name](folder, stage, step) for name in check(writers)])
