"""The trainings of a run, as its configuration describes them: what each trains, by what, and for how long."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from rmam_jax import heads, recognizer
from rmam_jax.data.augmentation import Augmentation
from rmam_jax.data.splits import Split
from rmam_jax.evaluation import calibration, metrics
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.heads import rpn as rpn_lib
from rmam_jax.ops import losses
from rmam_jax.runtime.errors import UserError, check_name
from rmam_jax.training import moments
from rmam_jax.training import rpn as rpn_training
from rmam_jax.training import step as step_lib

NAMES = ("stage_one", "stage_two")
RPN = rpn_training.NAME


@dataclasses.dataclass(frozen=True)
class Stage:
  """One training of a run."""

  name: str
  trains: str  # its head, or what a region proposal network learns from
  model: nn.Module
  objective: Callable[..., Any]  # what the model gives, labels, ignore and mask -> the loss and its terms
  make_forward: Callable[[nn.Module, jax.sharding.Mesh], Any]  # makes the program that `validate` runs
  validate: Callable[..., dict[str, float]]  # as `rpn.validate`: the best epoch has the lowest `validation_loss`
  optimizer: optax.GradientTransformation
  epochs: int
  steps_per_epoch: int
  frozen: bool  # whether its backbone is not trained: it learns from stored feature maps
  ema: float  # decay of the average of its parameters; 0: it has none
  patience: int  # epochs without a lower validation loss that end it; 0: none do
  mixup: float = 0.0  # see `step.mix`

  @property
  def steps(self) -> int:
    return self.epochs * self.steps_per_epoch

  def is_over(self, step: int, best_epoch: int) -> bool:
    """Whether it ends after this step, whose epochs so far were best at `best_epoch`, 0 where there was none."""
    return step >= self.steps or bool(self.patience and step // self.steps_per_epoch - best_epoch >= self.patience)


def head_of(config: ml_collections.ConfigDict, name: str) -> heads.HeadSpec:
  """The head that a stage trains; raises UserError if there is none of its name."""
  own = config.stage_one.head if name == "stage_one" else ""
  return heads.get(own, "stage_one.head") if own else heads.get(config.model.head)


def classification_of(config: ml_collections.ConfigDict, name: str) -> str:
  """The loss that a stage's scores are trained with."""
  return config[name].classification or config.loss.classification


def _auxiliary_of(config: ml_collections.ConfigDict, name: str) -> str:
  """Stage one's head, where a stage keeps it beside its own; else ""."""
  head, weight = head_of(config, name), config[name].auxiliary_weight
  if not weight and head.guide != heads.DENSE_SCORES:
    return ""
  if not config.stage_one.head:
    raise UserError(
      f"stage_one.head is empty, but {name} trains an auxiliary head beside {head.name!r}, which it names: set it (and"
      f" {name}.auxiliary_weight, {weight}, the weight of its loss)"
    )
  return config.stage_one.head


def build_model(config: ml_collections.ConfigDict, name: str, num_classes: int) -> recognizer.Recognizer:
  """The recognizer of a stage; raises UserError for a head that does not exist or lacks what it is guided by."""
  head, auxiliary = head_of(config, name), _auxiliary_of(config, name)
  return recognizer.build(config.model, num_classes, head=head.name, auxiliary=auxiliary, remat=config.remat)


def _timetable(config: ml_collections.ConfigDict, name: str, num_records: int) -> dict[str, Any]:
  """A training's optimizer, its epochs and the steps of each."""
  section = config[name]
  if config.batch_size < 1 or config.batch_size > num_records:
    raise UserError(f"batch_size must be between 1 and the {num_records} records, got {config.batch_size}")
  if config.epoch_size < 0:
    raise UserError(f"epoch_size must be 0 or more, got {config.epoch_size}")
  least = int(name != "stage_one")
  if section.epochs < least:
    raise UserError(f"{name}.epochs must be at least {least}, got {section.epochs}")
  if not 0 <= section.stop_epoch <= section.epochs:
    raise UserError(f"{name}.stop_epoch must be between 0 and its {section.epochs} epochs, got {section.stop_epoch}")
  if not 0 <= section.drop_share <= 1:
    raise UserError(f"{name}.drop_share must be a share of the epochs, in [0, 1], got {section.drop_share}")
  if not 0 <= section.ema < 1:
    raise UserError(f"{name}.ema must be the decay of an average, at least 0 (none) and below 1, got {section.ema}")
  for field in ("backbone_rate", "l2", "weight_decay", "clip_norm", "patience"):
    if section[field] < 0:
      raise UserError(f"{name}.{field} must be 0 or more, got {section[field]}")
  check_name(f"{name}.moments", section.moments, moments.KINDS)
  steps_per_epoch = max((config.epoch_size or num_records) // config.batch_size, 1)
  return {
    "optimizer": _optimizer(section, section.epochs * steps_per_epoch),
    "epochs": section.stop_epoch or section.epochs,
    "steps_per_epoch": steps_per_epoch,
    "frozen": not section.backbone_rate,
    "ema": section.ema,
    "patience": section.patience,
  }


def _optimizer(section: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
  """Adam or AdamW by a training's section, for parameters of which some are a backbone's and some a trained network's."""
  matrices = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)

  def adam(rate: float) -> optax.GradientTransformation:
    schedule = step_lib.learning_rate_schedule(
      section.schedule,
      peak=section.learning_rate * rate,
      steps=steps,
      warmup_steps=section.warmup_steps,
      drop_at=round(section.drop_share * steps),
    )
    betas = {"b1": section.beta_1, "b2": section.beta_2}
    found = optax.adam(schedule, **betas)
    if section.weight_decay:
      found = optax.adamw(schedule, **betas, weight_decay=section.weight_decay, mask=matrices)
    return moments.in_bfloat16(found) if section.moments == "bfloat16" else found

  fresh = adam(1.0)
  if section.l2:  # its gradient joins the loss's, before Adam scales it
    fresh = optax.chain(optax.add_decayed_weights(2 * section.l2, matrices), fresh)
  optimizers = {"fresh": fresh, RPN: optax.set_to_zero()}  # nothing is kept for what is not trained
  optimizers["backbone"] = adam(section.backbone_rate) if section.backbone_rate else optax.set_to_zero()

  def kinds(params):
    return {
      part: jax.tree.map(lambda _, kind=part if part in optimizers else "fresh": kind, tree)
      for part, tree in params.items()
    }

  optimizer = optax.partition(optimizers, kinds)
  return optax.chain(optax.clip_by_global_norm(section.clip_norm), optimizer) if section.clip_norm else optimizer


def build_rpn(config: ml_collections.ConfigDict, num_records: int) -> Stage:
  """The training of a region proposal network; `config` is from `rpn.config_of`. Raises as `build`."""
  section = config.rpn
  if not section.backbone_rate:
    raise UserError(
      "rpn.backbone_rate is 0, but a region proposal network is trained with its backbone: set it above 0"
    )
  if section.samples < 2:
    raise UserError(f"rpn.samples must be at least 2, got {section.samples}")
  if not 0 <= section.negative <= section.positive <= 1:
    raise UserError(
      "rpn.negative and rpn.positive must be IoUs in [0, 1], the first not above the second, got"
      f" {section.negative} and {section.positive}"
    )
  fields = ("positive", "negative", "samples", "box_weight")
  return Stage(
    name=RPN,
    trains=config.data.name,
    model=rpn_lib.build(config.model, remat=config.remat),
    objective=functools.partial(rpn_training.objective, **{name: section[name] for name in fields}),
    make_forward=rpn_training.make_forward,
    validate=rpn_training.validate,
    **_timetable(config, RPN, num_records),
  )


def build_all(config: ml_collections.ConfigDict, train: Split) -> list[Stage]:
  """The stages that `config` trains on a split, in order; without stage one where it has no epochs. Raises as `build`."""
  names = [name for name in NAMES if name != "stage_one" or config.stage_one.epochs]
  counts = {"num_classes": len(train.class_names), "num_records": len(train), "positives": train.positives()}
  return [build(config, name, **counts) for name in names]


def class_weights(loss: ml_collections.ConfigDict, num_classes: int, positives: Sequence[int]) -> tuple[float, ...]:
  """What `loss.class_weights` says, as a number for each class; () where it is empty.

  "balanced" is the mean number of positives of a class, divided by the class's own; at most `loss.max_class_weight`,
  and 1 for a class without positives. Raises UserError for anything but positive numbers, one a class.
  """
  given = loss.class_weights
  if given in ("balanced", ("balanced",)):
    if loss.max_class_weight <= 0:
      raise UserError(f"loss.max_class_weight must be above 0, got {loss.max_class_weight}")
    counts = np.asarray(positives, float)
    found = np.divide(counts.mean(), counts, out=np.ones_like(counts), where=counts > 0)
    return tuple(np.minimum(found, loss.max_class_weight).tolist())
  numbers = all(isinstance(each, (int, float)) and 0 < each < np.inf for each in given)
  if given and not (numbers and len(given) == num_classes):
    raise UserError(
      f"loss.class_weights must be 'balanced' or hold a positive number for each of the {num_classes} classes, got"
      f" {given}"
    )
  return tuple(map(float, given))


def _loss_options(config: ml_collections.ConfigDict, kind: str, weights: Sequence[float]) -> dict[str, Any]:
  """The keyword arguments of a classification loss by the `loss` section; UserError for one that is out of its range."""
  sections = {
    "asymmetric": {"gamma_neg": (0, np.inf), "gamma_pos": (0, np.inf), "clip": (0, 1)},
    "focal": {"gamma": (0, np.inf), "alpha": (-np.inf, 1)},
  }
  options: dict[str, Any] = {"class_weights": weights} if weights else {}
  for field, (low, high) in sections.get(kind, {}).items():
    value = options[field] = config.loss[kind][field]
    if not low <= value <= high:
      raise UserError(f"loss.{kind}.{field} must be in [{low}, {high}], got {value}")
  return options


def _check_augmentation(config: ml_collections.ConfigDict) -> None:
  """Refuses augmentation that is out of range, or that no stage would see, as all learn from stored feature maps."""
  augmentation = Augmentation(**config.data.augmentation)
  augmentation.check()
  if augmentation.changes and not any(config[name].epochs and config[name].backbone_rate for name in NAMES):
    raise UserError(
      "data.augmentation changes images, but with backbone_rate 0 every stage learns from stored feature maps: train the"
      " backbone (stage_two.backbone_rate above 0), or leave crop_scale, jitter, randaugment and cutout at their defaults"
    )


def _check_shares(config: ml_collections.ConfigDict, name: str, kind: str, spec: heads.HeadSpec) -> None:
  """Refuses label smoothing and mixup where labels between 0 and 1, or mixed images, have no meaning."""
  smoothing, mixup = config.loss.label_smoothing, config[name].mixup
  if not 0 <= smoothing < 1:
    raise UserError(f"loss.label_smoothing must be a share, at least 0 and below 1, got {smoothing}")
  if smoothing and kind != "sigmoid":
    raise UserError(f"loss.label_smoothing is for the loss 'sigmoid', but that of {name} is {kind!r}: set it to 0")
  if mixup < 0:
    raise UserError(f"{name}.mixup must be 0 or more, got {mixup}")
  if mixup and spec.guide in (heads.BOXES, heads.RPN):
    raise UserError(f"{name}.mixup is {mixup}, but head {spec.name!r} looks at boxes of single images: set it to 0")
  for field, value in ((f"{name}.mixup", mixup), ("loss.label_smoothing", smoothing)):
    if value and not spec.takes_shares:
      raise UserError(
        f"{field} is {value}, but the loss of head {spec.name!r} needs labels that are 0 or 1: set it to 0"
      )


def build(
  config: ml_collections.ConfigDict, name: str, *, num_classes: int, num_records: int, positives: Sequence[int] = ()
) -> Stage:
  """A stage as `config` describes it; raises UserError for a value that no stage can have and names its field.

  `positives` are the training records of each class, [L], which balanced class weights need.
  """
  loss, kind, spec = config.loss, classification_of(config, name), head_of(config, name)
  timetable = _timetable(config, name, num_records)
  check_name(f"{name}.classification", kind, losses.CLASSIFICATION_LOSSES)
  if num_classes == 1 and kind == "euclidean":
    raise UserError(
      f"{name} has one class and the loss 'euclidean', whose softmax over classes is then always 1: set"
      " loss.classification to 'sigmoid'"
    )
  spec.check(config)
  _check_augmentation(config)
  _check_shares(config, name, kind, spec)
  options = _loss_options(config, kind, class_weights(loss, num_classes, positives))
  head_loss = spec.loss(config, kind, options) if spec.loss else None
  fields = ("constrain_first", "scale_weight", "anchor_weight", "positive_weight", "max_scale", "min_scale")
  objective = step_lib.Objective(
    classification=kind,
    localization_weight=loss.localization_weight if spec.looks and head_loss is None else 0.0,
    auxiliary_weight=config[name].auxiliary_weight,
    localization={field: loss[field] for field in fields},
    head_loss=head_loss,
    options=options,
    label_smoothing=loss.label_smoothing,
  )
  model = build_model(config, name, num_classes)
  if model.rpn is not None and timetable["frozen"]:
    raise UserError(f"{name}.backbone_rate is 0, but head {spec.name!r} has a second backbone: set it above 0")
  validate = functools.partial(_validate, objective)
  forward, mixup = outputs_lib.make_forward, config[name].mixup
  if timetable["frozen"]:
    forward = functools.partial(forward, views=views_lib.of_frozen(config))
  return Stage(name, spec.name, model, objective, forward, validate, **timetable, mixup=mixup)


def _validate(
  objective: step_lib.Objective, forward: outputs_lib.Forward, params: step_lib.Params, split: Split, **options: Any
) -> dict[str, float]:
  """The loss that the best epoch is chosen by, over all images of the split that can be read, and its mAP.

  The loss is Eq. 14 with the stage's classification loss of the pooled scores, whatever else is trained: auxiliary
  scores, a policy and its baseline, a label sequence, smoothed labels or mixed images are not in it. Raises UserError if no image can be read.
  """
  found = outputs_lib.compute_outputs(forward, params, split, **options)
  read = found.readable
  if not len(read):
    reason = f"can be read, first {found.skipped[0]}" if found.skipped else "has a label that is not ignored"
    raise UserError(f"{split.name}: none of its images {reason}")
  scores, labels, ignore = found.scores[read], found.labels[read], found.ignore[read]
  loss = float(objective.classification_loss(scores, labels, ignore=ignore))
  if objective.localization_weight:
    localization = losses.localization_loss(found.thetas[:, read], **objective.localization)
    loss += objective.localization_weight * float(localization)
  ranked = calibration.log_odds(scores, objective.classification)
  precisions = metrics.average_precisions(ranked, labels, ignore=ignore)
  return {"validation_loss": loss, "validation_mAP": metrics.mean_average_precision(precisions)}


def kept_head(config: ml_collections.ConfigDict) -> str:
  """Where stage one's head goes on in stage two; see `take_over`."""
  if _auxiliary_of(config, "stage_two"):
    return "auxiliary"
  return "head" if head_of(config, "stage_two") == head_of(config, "stage_one") else ""


def take_over(fresh: step_lib.Params, trained: step_lib.Params, head: str) -> step_lib.Params:
  """Stage two's first parameters: `fresh` ones with stage one's best backbone, and its head where that is kept.

  `head` is "auxiliary" where stage one's head goes on beside the new one, "head" where it is the new one, "" for none.
  """
  taken = {"backbone": trained["backbone"]} | ({head: trained["head"]} if head else {})
  for name, tree in taken.items():
    theirs, ours = (jax.tree.map(jnp.shape, side) for side in (tree, fresh[name]))
    if theirs != ours:
      raise ValueError(f"stage one's {name} does not fit stage two's: {theirs} against {ours}")
  return {**fresh, **taken}
