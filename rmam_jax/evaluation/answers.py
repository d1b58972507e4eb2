"""What a recogniser says about a whole split: every example exactly once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import tqdm

from rmam_jax import geometry
from rmam_jax import mesh as meshes
from rmam_jax.data import batches
from rmam_jax.data.records import Record, Split
from rmam_jax.models import recognizer


class Answers(NamedTuple):
  """Scores and places for N images, K regions, L classes, and the truth beside them."""

  scores: np.ndarray  # float32 [K, N, L], of every region
  thetas: np.ndarray  # float32 [K, N, 4], in the view's coordinates
  centres: np.ndarray  # float32 [N, K, 2] of (x, y), as shares of the image
  features: np.ndarray  # float32 [N, F], z_k, its maximum over the regions
  auxiliary: np.ndarray | None  # float32 [N, L], the auxiliary head's pooled scores
  labels: np.ndarray  # float32 [N, L]
  ignore: np.ndarray  # bool [N, L]
  boxes: list[np.ndarray]  # N of [n, 4] (top, left, bottom, right), as shares of the image
  box_classes: list[np.ndarray]

  @property
  def pooled(self) -> np.ndarray:
    """The recogniser's scores (Eq. 6), [N, L]."""
    return self.scores.max(axis=0)

  @property
  def winners(self) -> np.ndarray:
    """The region that gives Eq. 6 its maximum, int [N, L]."""
    return self.scores.argmax(axis=0)


def view_to_image(
  points: np.ndarray, *, image_size: int, crop_size: int, stride: int, align_corners: bool = True
) -> np.ndarray:
  """Normalised points of the centre view's feature map -> shares of the whole image.

  Args:
    points: [..., 2] of (x, y), as in `geometry`.
    image_size, crop_size: N and the view's side, in pixels.
    stride: of the feature map, in pixels.
    align_corners: the grid's convention.
  """
  pixels = geometry.map_to_pixels(points, crop_size // stride, stride, align_corners=align_corners)
  return (np.asarray(pixels) + batches.centre_offset(image_size, crop_size)) / image_size


def make_forward(model: nn.Module, mesh: jax.sharding.Mesh) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
  """Jits params, images -> scores, thetas, features and auxiliary scores over the mesh."""

  def forward(params, images):
    attention, auxiliary = model.apply({"params": params}, images)
    answer = {"scores": attention.scores, "thetas": attention.thetas, "features": attention.z.max(axis=0)}
    return answer if auxiliary is None else answer | {"auxiliary": auxiliary.scores.max(axis=0)}

  replicated = meshes.replicated(mesh)
  return jax.jit(forward, in_shardings=(replicated, meshes.by_example(mesh)), out_shardings=replicated)


def answer_split(
  forward: Callable[[Any, jax.Array], dict[str, jax.Array]],
  params: Any,
  split: Split,
  *,
  data: Any,
  model: Any,
  batch_size: int,
  progress: str = "",
) -> Answers:
  """Runs the centre view of every record of a split once.

  Args:
    forward: from `make_forward`.
    params: the recogniser's.
    split: the records.
    data, model: sections of the configuration.
    batch_size: a multiple of the number of devices; the last batch is padded, the padding left out.
    progress: the progress bar's label; none if empty.

  Raises:
    FloatingPointError: a score that is not finite, with the first record it belongs to.
  """
  parts: list[dict[str, np.ndarray]] = []
  records: list[Record] = []
  views = batches.evaluation_batches(split, batch_size=batch_size, image_size=data.image_size, crop_size=data.crop_size)
  with tqdm.tqdm(total=len(split), desc=progress, unit=" images", disable=not progress, leave=False) as bar:
    for batch, batch_records in views:
      answer = jax.device_get(forward(params, batch["image"]))
      real = len(batch_records)
      parts.append({name: array[:real] if array.ndim == 2 else array[:, :real] for name, array in answer.items()})
      records += batch_records
      bar.update(real)

  def join(name):
    arrays = [part[name] for part in parts]
    return np.concatenate(arrays, axis=0 if arrays[0].ndim == 2 else 1)

  scores, thetas = join("scores"), join("thetas")
  wrong = ~np.isfinite(scores).all(axis=(0, 2))
  if wrong.any():
    raise FloatingPointError(f"{split.name}, {records[wrong.argmax()].id}: its scores are not finite")
  centres = view_to_image(
    thetas[..., 2:],
    image_size=data.image_size,
    crop_size=data.crop_size,
    stride=recognizer.stride(model),
    align_corners=model.align_corners,
  )
  return Answers(
    scores=scores,
    thetas=thetas,
    centres=centres.transpose(1, 0, 2),
    features=join("features"),
    auxiliary=join("auxiliary") if "auxiliary" in parts[0] else None,
    labels=np.stack([record.labels for record in records]),
    ignore=np.stack([record.ignore for record in records]),
    boxes=[record.boxes for record in records],
    box_classes=[record.box_classes for record in records],
  )
