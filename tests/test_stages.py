"""What a stage is trained by and chosen by: its optimizer as the configuration describes it, its validation loss."""

import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import tiny_config

from configs import voc
from rmam_jax import heads
from rmam_jax.config import get_config
from rmam_jax.data.augmentation import Augmentation
from rmam_jax.data.splits import open_split
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.ops import attention, losses, next_region
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import stages
from rmam_jax.training import step as step_lib


def updates_of(config, gradients, num_records):
  """What stage two's optimizer adds to a weight of the head whose gradients these are, step by step."""
  stage = stages.build(config, "stage_two", num_classes=20, num_records=num_records)
  params = {part: {"w": jnp.zeros(1)} for part in ("backbone", "head")}
  state, found = stage.optimizer.init(params), []

  @jax.jit
  def update(gradient, state, params):
    changes, state = stage.optimizer.update(jax.tree.map(lambda _: jnp.full(1, gradient), params), state, params)
    return changes["head"]["w"][0], state, optax.apply_updates(params, changes)

  for gradient in gradients:
    change, state, params = update(gradient, state, params)
    found.append(float(change))
  return np.array(found)


def test_a_stage_of_the_paper_divides_its_rate_by_ten_after_30_epochs():
  config = voc.get_config()
  stage = stages.build(config, "stage_two", num_classes=20, num_records=50)
  assert (stage.epochs, stage.steps_per_epoch, stage.steps) == (45, 3, 135)
  # Of a gradient that stays the same Adam makes steps of the length of its rate.
  rates = -updates_of(config, [0.01] * 135, num_records=50)
  np.testing.assert_allclose(rates, np.repeat([1e-5, 1e-6], [90, 45]), rtol=1e-3)


def test_a_stage_s_adam_has_the_configured_moments():
  config = voc.get_config()
  with config.unlocked():
    config.stage_two.learning_rate, config.stage_two.beta_1, config.stage_two.beta_2 = 1.0, 0.5, 0.75
  m, v, wanted = 0.0, 0.0, []
  gradients = [0.01, 0.0, 0.02]
  for t, g in enumerate(gradients, 1):
    m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g**2
    wanted.append(-(m / (1 - 0.5**t)) / np.sqrt(v / (1 - 0.75**t)))
  np.testing.assert_allclose(updates_of(config, gradients, num_records=50), wanted, rtol=1e-4)


class Part:
  """The first images of a split, some of them damaged."""

  def __init__(self, split, count, damaged=()):
    self._split, self._count, self._damaged = split, count, damaged
    self.name, self.blank = split.name, split.blank

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    record = self._split[index]
    return record._replace(image=b"no image") if index in self._damaged else record


@pytest.fixture(scope="module")
def looking(data_root):
  """A function from fields to what validation finds for a part of the validation split, and the program it runs."""
  config = tiny_config(data_root)
  config.model.head, config.stage_two.auxiliary_weight = "recurrent", 0.0
  config.loss.max_scale, config.loss.anchor_weight, config.loss.localization_weight = 0.25, 0.3, 0.7
  config.model.recurrent.bias = (0.6, -0.2, 0.3, 0.1)
  config.data.corrupt = "skip"
  split = open_split(config.data, "validation")
  model = stages.build_model(config, "stage_two", len(split.class_names))
  params = jax.jit(lambda key: step_lib.init_params(model, key, config.data.crop_size))(jax.random.key(1))
  forward = outputs_lib.make_forward(model, mesh_lib.make_mesh())
  options = {"data": config.data, "batch_size": 6}

  def validate(part, **changes):
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(changes)
    stage = stages.build(changed, "stage_two", num_classes=10, num_records=160)
    return stage.validate(forward, params, part(split), **options)

  return validate, lambda part: outputs_lib.compute_outputs(forward, params, part(split), **options)


def test_an_image_that_cannot_be_read_does_not_count_in_validation(looking):
  validate, _ = looking
  wanted = validate(lambda split: Part(split, 8))
  found = validate(lambda split: Part(split, 11, damaged=(8, 9, 10)))
  np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-5)
  assert found.keys() == {"validation_loss", "validation_mAP"}
  with pytest.raises(
    UserError, match=r"digits/tiny validation: none of its images can be read, first .*not a readable"
  ):
    validate(lambda split: Part(split, 2, damaged=(0, 1)))


def test_the_validation_loss_is_eq_14(looking):
  validate, outputs = looking

  def part(split):
    return Part(split, 12)

  found, plain = validate(part), validate(part, **{"loss.localization_weight": 0.0})
  thetas = outputs(part).thetas.astype(float)
  anchors = [(np.cos(turn), np.sin(turn)) / np.sqrt(2) for turn in (np.pi / 4, 5 * np.pi / 4)]
  l_s = (np.maximum(np.abs(thetas[..., :2]) - 0.25, 0) ** 2).sum(axis=(0, 2))
  l_p = np.maximum(0.1 - thetas[..., :2], 0).sum(axis=(0, 2))
  l_a = sum(((thetas[k + 1, :, 2:] - anchors[k]) ** 2).sum(axis=1) / 2 for k in (0, 1))
  l_loc = (l_s + 0.3 * l_a + 0.1 * l_p).mean()
  assert l_loc > 0.1
  np.testing.assert_allclose(found["validation_loss"] - plain["validation_loss"], 0.7 * l_loc, rtol=1e-4)
  assert found["validation_mAP"] == plain["validation_mAP"]


def test_region_1_is_free_where_the_configuration_says_so(looking):
  validate, outputs = looking

  def part(split):
    return Part(split, 12)

  found, freed = validate(part), validate(part, **{"loss.constrain_first": False})
  first = outputs(part).thetas[0, :, :2].astype(float)
  its_terms = (np.maximum(np.abs(first) - 0.25, 0) ** 2).sum(axis=1) + 0.1 * np.maximum(0.1 - first, 0).sum(axis=1)
  np.testing.assert_allclose(found["validation_loss"] - freed["validation_loss"], 0.7 * its_terms.mean(), rtol=1e-4)


@pytest.mark.parametrize("head", ["recurrent", "saliency", "rarl", "rlsd"])
def test_new_layers_have_the_configured_fan(head):
  config = tiny_config(".")
  for fan, of in (("fan_avg", 308), ("fan_in", 600)):
    config.model.xavier = fan
    params = heads.get(head).build(config.model, 10).init_params(jax.random.key(0), channels=24)  # 5 x 5 cells
    limit = np.sqrt(3 / of)
    assert 0.99 * limit < float(jnp.abs(params["fx"]["kernel"]).max()) <= limit
  rule = {"recurrent": ("next_region", 16), "rarl": ("policy", 16)}.get(head)
  if rule:
    kernel = params[rule[0]]["kernel"]
    np.testing.assert_allclose(jnp.abs(kernel).max(), 0.1 * np.sqrt(3 / rule[1]), rtol=0.1)
  config.model.xavier = "fan_out"
  with pytest.raises(UserError, match=r"model\.xavier must be one of fan_avg, fan_in, got 'fan_out'"):
    heads.get(head).build(config.model, 10)


def test_by_eq_7_validation_ranks_images_by_probabilities(monkeypatch):
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(40, 3)).astype(np.float32)
  labels = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 40)]

  def validate(kind, scores):
    known = {"scores": scores, "labels": labels, "ignore": labels > 1, "readable": np.arange(40)}
    monkeypatch.setattr(outputs_lib, "compute_outputs", lambda *_: types.SimpleNamespace(**known))
    return stages._validate(step_lib.Objective(kind, localization_weight=0.0), None, None, None)["validation_mAP"]

  shifted = scores + 10 * rng.normal(size=(40, 1)).astype(np.float32)
  assert validate("euclidean", shifted) == validate("euclidean", scores)
  probabilities = np.asarray(losses.PROBABILITIES["euclidean"](scores))
  assert validate("euclidean", scores) == validate("sigmoid", probabilities) != validate("sigmoid", scores)
  assert validate("sigmoid", shifted) != validate("sigmoid", scores)


@pytest.mark.parametrize(
  ("function", "section"),
  [
    (next_region.saliency, "model.saliency"),
    (next_region.fixed_grid, "model.fixed_grid"),
    (next_region.init_recurrent, "model.recurrent"),
    (losses.localization_loss, "loss"),
    (losses.asymmetric_loss, "loss.asymmetric"),
    (losses.focal_loss, "loss.focal"),
    (Augmentation, "data.augmentation"),
    (attention.init_attention, "model"),
  ],
)
def test_a_function_s_defaults_are_those_of_its_fields(function, section):
  """A number that stands twice is the same in both places."""
  fields = functools.reduce(getattr, section.split("."), get_config())
  defaults = {
    name: parameter.default
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.default is not parameter.empty and name in fields
  }
  assert defaults
  assert defaults == {name: fields[name] for name in defaults}


def test_one_class_needs_a_loss_that_can_learn_it():
  config = voc.get_config()
  with pytest.raises(UserError, match=r"stage_two has one class and the loss 'euclidean'"):
    stages.build(config, "stage_two", num_classes=1, num_records=50)
  config.loss.classification = "sigmoid"
  stages.build(config, "stage_two", num_classes=1, num_records=50)


@pytest.mark.parametrize(
  ("skipped", "reason"),
  [(["a.jpg: broken"], "can be read, first a.jpg: broken"), ([], "has a label that is not ignored")],
)
def test_a_validation_split_that_says_nothing_is_refused(monkeypatch, skipped, reason):
  found = types.SimpleNamespace(readable=np.array([], int), skipped=skipped)
  monkeypatch.setattr(stages.outputs_lib, "compute_outputs", lambda *_: found)
  with pytest.raises(UserError, match=f"mine: none of its images {reason}"):
    stages._validate(step_lib.Objective(), None, None, types.SimpleNamespace(name="mine"))
