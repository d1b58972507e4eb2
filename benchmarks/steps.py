"""Training steps on images of noise, stage two: by default the paper's of `configs/voc.py`, or a thin model's."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import machine, operations
from rmam_jax.training import stages
from rmam_jax.training import step as step_lib

CLASSES = 20
SMALL_SIDE = 96
SMALL = {
  "model.vgg.blocks": ((16, 16), (32, 32), (64, 64, 64)),
  **{f"model.{name}_width": 256 for name in ("x", "lstm", "z")},
  "batch_size": 8,
}


def make(config, side: int, classes: int = CLASSES):
  """A stage, the function from a key to its first state, and a batch of crops of so many pixels, one label each."""
  stage = stages.build(config, "stage_two", num_classes=classes, num_records=5_011)
  rng, size = np.random.default_rng(0), config.batch_size
  batch = {
    "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
    "labels": np.eye(classes, dtype=np.float32)[rng.integers(0, classes, size)],
    "ignore": np.zeros((size, classes), bool),
    "mask": np.ones(size, np.float32),
  }
  return stage, functools.partial(step_lib.init_state, stage.model, stage.optimizer, size=side), batch


class Part(NamedTuple):
  work: Callable[[], None]  # does it once and waits for it
  operations: int  # by formula
  moved: int = 0  # bytes that it has to read and write, by formula; 0: not counted


def _part(function: Callable, *arguments: Any) -> Part:
  program = jax.jit(function).lower(*arguments).compile()
  return Part(functools.partial(machine.finish, program, *arguments), operations.count(function, *arguments))


def optimizer_part(stage, state) -> Part:
  """The optimizer alone. Uses up the state."""

  def update(state, gradients):
    updates, moments = stage.optimizer.update(gradients, state.opt_state, state.params)
    return state._replace(params=optax.apply_updates(state.params, updates), opt_state=moments)

  # Every array of the state is read and written, and the gradients are read.
  moved = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  moved += sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3), state.params)
  program = jax.jit(update, donate_argnums=0).lower(state, gradients).compile()
  held = [state]

  def work():
    held[0] = jax.block_until_ready(program(held[0], gradients))

  return Part(work, 0, moved)


def parts(stage, state, batch) -> dict[str, Part]:
  """A step's parts, each a program of its own."""
  params, model, batch = state.params, stage.model, jax.device_put(batch)

  def feature_map(backbone, images):
    return model.apply({"params": {**params, "backbone": backbone}}, images, method="feature_map")

  def loss(head, one_map, batch):
    recognition = model.apply({"params": {**params, "head": head}}, one_map, method="recognize")
    return stage.objective(recognition, batch["labels"], batch["ignore"], batch["mask"])[0]

  def backbone_gradient(backbone, images, slope):
    one_map, pull = jax.vjp(lambda backbone: feature_map(backbone, images), backbone)
    return one_map, pull(slope)

  one_map = jax.jit(feature_map)(params["backbone"], batch["image"])
  return {
    "backbone, forward": _part(feature_map, params["backbone"], batch["image"]),
    "backbone, forward + backward": _part(backbone_gradient, params["backbone"], batch["image"], one_map),
    "head, forward": _part(loss, params["head"], one_map, batch),
    "head, forward + backward": _part(jax.grad(loss, argnums=(0, 1)), params["head"], one_map, batch),
    "optimizer": optimizer_part(stage, jax.tree.map(jnp.copy, state)),
  }


def compile_step(stage, state, batch):
  """The compiled step, which takes the memory of the state that it is given."""
  program = step_lib.make_train_step(stage.model, stage.optimizer, stage.objective)
  return jax.jit(program, donate_argnums=0).lower(state, batch).compile()


def count(stage, state, batch) -> int:
  """The operations of a step, by formula."""
  return operations.count(step_lib.make_train_step(stage.model, stage.optimizer, stage.objective), state, batch)


def start(stage, state, batch):
  """A function that makes a step and waits for it, and the first step's loss. Uses up the state."""
  batch = jax.device_put(batch)
  program = compile_step(stage, state, batch)
  held = list(program(state, batch))
  loss = float(held[1]["loss"])

  def work():
    held[:] = program(held[0], batch)
    jax.block_until_ready(held)

  return work, loss
