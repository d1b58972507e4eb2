"""Training steps on images of noise, stage two: by default the paper's of `configs/voc.py`, or a thin model's."""

import functools

import jax
import numpy as np

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


def compile_step(stage, state, batch):
  """The compiled step, which takes the memory of the state that it is given."""
  program = step_lib.make_train_step(stage.model, stage.optimizer, stage.objective)
  return jax.jit(program, donate_argnums=0).lower(state, batch).compile()


def start(stage, state, batch):
  """A function that makes a step and waits for it, the first step's loss, and the compiled step. Uses up the state."""
  batch = jax.device_put(batch)
  program = compile_step(stage, state, batch)
  held = list(program(state, batch))
  loss = float(held[1]["loss"])

  def work():
    held[:] = program(held[0], batch)
    jax.block_until_ready(held)

  return work, loss, program
