"""A training loop of your own under `jax.pmap`, from the package's parts, on digit scenes.

    python -m examples.pmap_training --steps=200
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m examples.pmap_training    # eight devices on one CPU

What `pmap` asks for: every array has a leading device axis. The state is copied to each device, a batch is cut into as
many equal parts, and the step averages gradients and metrics over the axis, so that the copies stay equal. `train.py`
does the same with `jax.jit` and one array for the whole batch; a test shows that both end with the same parameters.
"""

import argparse
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import digits
from rmam_jax import recognizer
from rmam_jax.data import batches, splits
from rmam_jax.training import step as step_lib

AXIS = "data"


def replicate(tree, devices: list[jax.Device]):
  """A copy for each device: leaves [...] -> [devices, ...]."""
  return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(devices), *leaf.shape)), tree)


def first_copy(tree):
  """Leaves [devices, ...], all copies equal -> [...]."""
  return jax.tree.map(lambda leaf: leaf[0], tree)


def cut(batch: Mapping[str, np.ndarray], devices: list[jax.Device]) -> dict[str, np.ndarray]:
  """An equal part of the batch for each device: [B, ...] -> [devices, B / devices, ...].

  The average over the devices is the average over the batch only if each part holds as many real examples: no padding.
  """
  return {name: array.reshape(len(devices), -1, *array.shape[1:]) for name, array in batches.arrays_of(batch).items()}


def train(
  model,
  optimizer,
  objective: step_lib.Objective,
  state: step_lib.TrainState,
  stream: Iterable[Mapping[str, np.ndarray]],
) -> tuple[step_lib.TrainState, list[float]]:
  """One step for each batch, on all local devices: the state without its device axis, and the loss of every step."""
  devices = jax.local_devices()
  train_step = step_lib.make_train_step(model, optimizer, objective, axis_name=AXIS)
  train_step = jax.pmap(train_step, axis_name=AXIS, donate_argnums=0)
  copies = replicate(state, devices)
  every = []
  for batch in stream:
    batches.check_batch(batch)
    copies, metrics = train_step(copies, cut(batch, devices))
    every.append(metrics["loss"])  # a device's number yet: reading it here would wait for the step
  return first_copy(copies), [float(losses[0]) for losses in every]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--batch_size", type=int, default=16, help="of all devices together")
  arguments = parser.parse_args()
  config = digits.get_config("tiny")
  data = config.data
  split = splits.open_split(data, data.train)  # makes the scenes the first time
  model = recognizer.build(config.model, len(split.class_names), head="saliency", auxiliary="score_map")
  optimizer = optax.adam(1e-3)
  objective = step_lib.Objective("sigmoid", auxiliary_weight=1.0)
  state = step_lib.init_state(model, optimizer, jax.random.key(0), data.crop_size)
  sizes = {"batch_size": arguments.batch_size, "image_size": data.image_size, "crop_size": data.crop_size}
  stream = batches.train_batches(split, **sizes, flip=data.flip, seed=0)
  _, losses = train(model, optimizer, objective, state, (next(stream) for _ in range(arguments.steps)))
  first, last = losses[0], losses[-1]
  print(f"{jax.local_device_count()} devices: loss {first:.3f} at first, {last:.3f} after {len(losses)} steps")


if __name__ == "__main__":
  main()
