"""What a step, an evaluation, SVMs and checkpoints give on all devices of this process; run by `test_devices.py`."""

import functools
import pathlib
import sys

import jax
import numpy as np
import optax

from configs import digits
from rmam_jax import recognizer
from rmam_jax.data import splits
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import svm
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.training import checkpoints
from rmam_jax.training import step as step_lib

BATCH = 16


def tiny(data_root):
  config = digits.get_config("tiny")
  config.data.root = str(data_root)
  config.model.vgg.blocks = ((4,), (8,))
  config.model.x_width = config.model.lstm_width = config.model.z_width = 16
  return config


def parts(config):
  """A model, its plain optimiser, whose moves are the gradients, and its objective."""
  model = recognizer.build(config.model, 10, head="saliency", auxiliary="score_map")
  return model, optax.sgd(1.0), step_lib.Objective("sigmoid", auxiliary_weight=1.0)


def fresh_state(config):
  model, optimizer, _ = parts(config)
  return jax.jit(functools.partial(step_lib.init_state, model, optimizer, size=64))(jax.random.key(0))


def batch_of(real):
  """A batch of which only the first `real` examples count."""
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (BATCH, 64, 64, 3), np.uint8),
    "labels": (rng.random((BATCH, 10)) < 0.3).astype(np.float32),
    "ignore": rng.random((BATCH, 10)) < 0.1,
    "mask": (np.arange(BATCH) < real).astype(np.float32),
  }


def measure(mesh, data_root):
  """Everything by name: losses and gradients of a full and an uneven batch, the answers for 40 images, SVMs."""
  config = tiny(data_root)
  model, optimizer, objective = parts(config)
  replicated, by_example = mesh_lib.replicated(mesh), mesh_lib.by_example(mesh)
  state = jax.device_put(fresh_state(config), replicated)
  train_step = jax.jit(
    step_lib.make_train_step(model, optimizer, objective),
    in_shardings=(replicated, by_example),
    out_shardings=replicated,
  )
  found = {}
  for real in (BATCH, 13):
    after, metrics = train_step(state, batch_of(real))
    gradients = jax.tree.map(lambda a, b: a - b, state.params, after.params)
    found |= {f"{real} {name}": value for name, value in metrics.items()}
    found |= {
      f"{real} {jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
    }
  split = splits.open_split(config.data, "test")
  answered = outputs_lib.compute_outputs(
    outputs_lib.make_forward(model, mesh), state.params, split, data=config.data, batch_size=BATCH
  )
  found |= {name: getattr(answered, name) for name in ("scores", "features", "region_scores", "thetas", "labels")}
  rng = np.random.default_rng(1)
  features = np.maximum(rng.normal(size=(200, 20)), 0).astype(np.float32)
  (machines,) = svm.fit(features, features @ rng.normal(size=(20, 10)) > 0.5, [1.0])
  return {name: np.asarray(value) for name, value in (found | machines._asdict()).items() if name != "class_names"}


def main(out, data_root, theirs, mine):
  """Writes what `measure` finds and the state read from the folder `theirs` to `out`; saves that state in `mine`."""
  mesh = mesh_lib.make_mesh()
  assert mesh.size == 8
  found = measure(mesh, data_root)
  like = checkpoints.abstract(fresh_state(tiny(data_root)), mesh_lib.replicated(mesh))
  restored, progress = checkpoints.StageCheckpoints(pathlib.Path(theirs)).restore_last(like)
  assert progress == {"saved on": 1}
  assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(restored))
  checkpoints.StageCheckpoints(pathlib.Path(mine)).save_last(restored, {"saved on": 8})
  np.savez(out, **found)


if __name__ == "__main__":
  main(*sys.argv[1:])
