"""The stages of a run, as its configuration describes them: what each trains, by what, and for how long."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from rmam_jax import heads, recognizer
from rmam_jax.heads import rpn as rpn_lib
from rmam_jax.ops import losses
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import rpn as rpn_training
from rmam_jax.training import step as step_lib

NAMES = ("stage_one", "stage_two")


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage of a run, made from its configuration: what is trained, by what, and for how long."""

  name: str
  trains: str  # its head, or what a region proposal network learns from
  model: nn.Module
  optimizer: optax.GradientTransformation
  objective: step_lib.Objective | rpn_training.Objective
  epochs: int
  steps_per_epoch: int

  @property
  def steps(self) -> int:
    return self.epochs * self.steps_per_epoch


def head_of(config: ml_collections.ConfigDict, name: str) -> str:
  """The name of the head that a stage trains."""
  return (config.stage_one.head if name == "stage_one" else "") or config.model.head


def classification_of(config: ml_collections.ConfigDict, name: str) -> str:
  """The loss that a stage's scores are trained with."""
  return config[name].classification or config.loss.classification


def build_model(config: ml_collections.ConfigDict, name: str, num_classes: int) -> recognizer.Recognizer:
  """The recogniser of a stage; stage two keeps stage one's head beside its own where the configuration says so.

  Raises:
    UserError: a head that does not exist or lacks what it looks by.
  """
  head = head_of(config, name)
  auxiliary = ""
  if config[name].auxiliary_weight or heads.get(head).guide == heads.DENSE_SCORES:
    auxiliary = config.stage_one.head
    if not auxiliary:
      raise UserError(
        f"{name}.auxiliary_weight is {config[name].auxiliary_weight} for the head {head!r}, but stage_one.head is empty:"
        " name the auxiliary head there, or set the weight to 0"
      )
  return recognizer.build(config.model, num_classes, head=head, auxiliary=auxiliary, remat=config.remat)


def _build_timetable(
  config: ml_collections.ConfigDict, name: str, num_records: int
) -> tuple[optax.GradientTransformation, int, int]:
  """Of a stage: its optimiser, its epochs and the steps of each.

  Raises:
    UserError: a value that no stage can have; names its field.
  """
  section = config[name]
  if config.batch_size < 1 or config.batch_size > num_records:
    raise UserError(f"batch_size must be between 1 and the {num_records} records, got {config.batch_size}")
  least = int(name != "stage_one")
  if section.epochs < least:
    raise UserError(f"{name}.epochs must be at least {least}, got {section.epochs}")
  if not 0 <= section.stop_epoch <= section.epochs:
    raise UserError(f"{name}.stop_epoch must be between 0 and its {section.epochs} epochs, got {section.stop_epoch}")
  steps_per_epoch = max((config.epoch_size or num_records) // config.batch_size, 1)
  schedule = step_lib.learning_rate_schedule(
    section.schedule,
    peak=section.learning_rate,
    steps=section.epochs * steps_per_epoch,
    warmup_steps=section.warmup_steps,
    drop_at=section.drop_epoch * steps_per_epoch,
  )
  optimizer = optax.adam(schedule, b1=section.beta_1, b2=section.beta_2)
  return optimizer, section.stop_epoch or section.epochs, steps_per_epoch


def build_rpn(config: ml_collections.ConfigDict, num_records: int) -> Stage:
  """The training of a region proposal network as `rpn_training.config_of` describes it.

  Raises:
    UserError: see `build`.
  """
  section = config.rpn
  if section.samples < 2:
    raise UserError(f"rpn.samples must be at least 2, got {section.samples}")
  if not 0 <= section.negative <= section.positive <= 1:
    raise UserError(
      "rpn.negative and rpn.positive must be IoUs in [0, 1], the first not above the second, got"
      f" {section.negative} and {section.positive}"
    )
  optimizer, epochs, steps_per_epoch = _build_timetable(config, rpn_training.NAME, num_records)
  return Stage(
    name=rpn_training.NAME,
    trains=config.data.name,
    model=rpn_lib.build(config.model, remat=config.remat),
    optimizer=optimizer,
    objective=rpn_training.Objective(section.positive, section.negative, section.samples, section.box_weight),
    epochs=epochs,
    steps_per_epoch=steps_per_epoch,
  )


def build(config: ml_collections.ConfigDict, name: str, *, num_classes: int, num_records: int) -> Stage:
  """A stage as `config` describes it.

  Raises:
    UserError: a value that no stage can have; names its field.
  """
  section, loss = config[name], config.loss
  optimizer, epochs, steps_per_epoch = _build_timetable(config, name, num_records)
  kind = classification_of(config, name)
  if kind not in losses.CLASSIFICATION_LOSSES:
    raise UserError(f"{name}.classification must be one of {', '.join(losses.CLASSIFICATION_LOSSES)}, got {kind!r}")
  head = head_of(config, name)
  spec = heads.get(head)
  spec.check(config)
  head_loss = spec.loss(config, kind) if spec.loss else None
  objective = step_lib.Objective(
    classification=kind,
    localization_weight=loss.localization_weight if spec.looks and head_loss is None else 0.0,
    auxiliary_weight=section.auxiliary_weight,
    localization={
      field: loss[field] for field in ("scale_weight", "anchor_weight", "positive_weight", "max_scale", "min_scale")
    },
    head_loss=head_loss,
  )
  model = build_model(config, name, num_classes)
  return Stage(
    name=name,
    trains=head,
    model=model,
    optimizer=optimizer if model.rpn is None else _freeze_rpn(optimizer),
    objective=objective,
    epochs=epochs,
    steps_per_epoch=steps_per_epoch,
  )


def _freeze_rpn(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """Updates all of a recogniser's parameters but its region proposal network's, and keeps nothing for them."""

  def kinds(params):
    return {
      part: jax.tree.map(lambda _, part=part: "frozen" if part == rpn_training.NAME else "trained", tree)
      for part, tree in params.items()
    }

  return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, kinds)


def kept_head(config: ml_collections.ConfigDict) -> str:
  """Where stage one's head goes on in stage two; see `take_over`."""
  head = head_of(config, "stage_two")
  if config.stage_two.auxiliary_weight or heads.get(head).guide == heads.DENSE_SCORES:
    return "auxiliary"
  return "head" if head == head_of(config, "stage_one") else ""


def take_over(fresh: step_lib.Params, trained: step_lib.Params, head: str) -> step_lib.Params:
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
      raise UserError(f"stage one's {name} does not fit stage two's: {shapes[1]} against {shapes[0]}")
  return {**fresh, **taken}
