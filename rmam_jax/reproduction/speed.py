"""How long a trained recogniser takes for an image."""

import pathlib
import time

import jax
import numpy as np

from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.training import checkpoints, workdir

_TIMES = 15  # batches; their median counts


def milliseconds_per_image(folder: pathlib.Path) -> float:
  """Wall time of the network alone: the centre view in batches of `evaluation.batch_size`, decoded beforehand.

  Args:
    folder: a finished workdir.
  """
  config, names = workdir.read_config(folder), workdir.read_class_names(folder)
  mesh = mesh_lib.make_mesh()
  model, params, _ = checkpoints.load_best(config, folder, len(names), mesh)
  forward = outputs_lib.make_forward(model, mesh)
  batch, side = config.evaluation.batch_size, config.data.crop_size
  images = jax.device_put(np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8), forward.sharding)
  jax.block_until_ready(forward(params, images))  # compiled here
  seconds = []
  for _ in range(_TIMES):
    started = time.perf_counter()
    jax.block_until_ready(forward(params, images))
    seconds.append(time.perf_counter() - started)
  return 1_000 * float(np.median(seconds)) / batch
