"""What more looks bring: mAP and coverage of the first k regions of a trained recogniser, k beyond the K of training."""

import pathlib
from typing import NamedTuple

import numpy as np

from rmam_jax.data.splits import open_split
from rmam_jax.evaluation import metrics
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.training import checkpoints, workdir

MOST = 10


class ByLooks(NamedTuple):
  """Figures of the first 1, 2, ... looks, shares in [0, 1]."""

  mAP: list[float]
  coverage: list[float]


def by_looks(folder: pathlib.Path, most: int = MOST) -> ByLooks:
  """The network's own scores, Eq. 6 over the first k of `most` looks at the test split's centre views.

  Args:
    folder: a finished workdir; its head looks.
    most: looks; of a rule whose anchors depend on K, as many as it was trained with.
  """
  config = workdir.read_config(folder)
  if config.model.head == "recurrent" and config.model.recurrent.anchored:
    most = config.model.num_regions
  with config.unlocked():
    config.model.num_regions = most
  test = open_split(config.data, config.data.test)
  mesh = mesh_lib.make_mesh()
  model, params, _ = checkpoints.load_best(config, folder, len(test.class_names), mesh)
  forward = outputs_lib.make_forward(model, mesh)
  found = outputs_lib.compute_outputs(forward, params, test, data=config.data, batch_size=config.evaluation.batch_size)
  boxes = views_lib.region_boxes(found.thetas, config).transpose(1, 0, 2)

  def precision(k):
    scores = found.region_scores[:k].max(axis=0)
    every = metrics.average_precisions(scores, found.labels, ignore=found.ignore, method=config.evaluation.ap_method)
    return metrics.mean_average_precision(every)

  def coverage(k):
    return metrics.region_metrics(boxes[:, :k], None, *found.objects()).coverage

  numbers = np.arange(1, most + 1)
  return ByLooks([precision(k) for k in numbers], [coverage(k) for k in numbers])
