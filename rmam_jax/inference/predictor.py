"""Labels, probabilities and regions for any images, from a trained recogniser."""

import collections
import concurrent.futures
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from rmam_jax import heads
from rmam_jax.data import batches
from rmam_jax.evaluation import regions as regions_lib
from rmam_jax.evaluation import thresholds as thresholds_lib
from rmam_jax.ops import boxes as boxes_lib
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import exported, stages

PRETRAINED = pathlib.Path(__file__).parent / "pretrained" / "digits-easy"

Box = tuple[float, float, float, float]  # (left, top, right, bottom) in pixels of the original image
Source = str | os.PathLike | bytes | np.ndarray


class Label(NamedTuple):
  """A label that an image is given."""

  name: str
  probability: float
  step: int | None  # the region that won Eq. 6 for it, 1 to K; None for a head that does not look
  box: Box | None  # what that region saw, clipped to the image


class Region(NamedTuple):
  """One of the K regions, in the order of looking."""

  step: int  # 1 to K
  box: Box  # clipped to the image
  label: str  # what it alone would say
  probability: float


class Prediction(NamedTuple):
  """What the recogniser says of one image."""

  width: int  # pixels of the original, upright image
  height: int
  labels: list[Label]  # the surest first
  regions: list[Region]  # empty for a head that does not look
  probabilities: np.ndarray  # float [L], of all classes


class _View(NamedTuple):
  pixels: np.ndarray  # uint8 [crop_size, crop_size, 3]
  width: int  # of the original
  height: int


def _name(source: Source, index: int) -> str:
  return os.fspath(source) if isinstance(source, str | os.PathLike) else f"image {index}"


def read_image(source: Source, name: str) -> np.ndarray:
  """A file, the bytes of one, or pixels as uint8 [height, width, 3].

  Raises:
    UserError: no readable image; names it.
    UserError: the file cannot be read.
  """
  if isinstance(source, np.ndarray):
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3 or 0 in source.shape:
      raise UserError(f"{name}: pixels must be uint8 [height, width, 3], got {source.dtype} {list(source.shape)}")
    return source
  if isinstance(source, str | os.PathLike):
    source = pathlib.Path(source).read_bytes()
  return batches.decode_image(source, name)


class Predictor:
  """A recogniser with all that it needs to answer for images as they come.

  Attributes:
    config: of its training.
    class_names: L names.
    decision: how labels are chosen; see `thresholds_lib.make_thresholds`.
  """

  def __init__(
    self,
    trained: exported.TrainedModel,
    *,
    top: int | None = None,
    threshold: float | None = None,
    batch_size: int = 32,
    threads: int = 4,
  ):
    """Makes a predictor of what `exported.load` gives.

    Args:
      trained: configuration, class names, parameters and selection.
      top: at most so many labels an image; 0 is no limit.
      threshold: a label is given from this probability on, in place of the calibrated thresholds.
      batch_size: images in one pass; rounded up to a multiple of the devices.
      threads: that read and decode ahead.

    Raises:
      UserError: an option out of its range.
    """
    if batch_size < 1 or threads < 1:
      raise UserError(f"batch_size and threads must be at least 1, got {batch_size} and {threads}")
    config = self.config = trained.config
    self.class_names = trained.class_names
    selection = (trained.selection or {}).get("prediction", {})
    self.decision = thresholds_lib.make_thresholds(
      stages.classification_of(config, "stage_two"),
      selection,
      top_k=config.evaluation.top_k,
      top=top,
      threshold=threshold,
    )
    mesh = mesh_lib.make_mesh()
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    self._threads = threads
    head = config.model.head
    self._looks = heads.get(head).looks
    if heads.get(head).guide == heads.BOXES:
      raise UserError(f"head {head!r} looks at proposals, which images alone do not have: it can only be evaluated")
    model = stages.build_model(config, "stage_two", len(trained.class_names))
    self._params = jax.device_put(trained.params, mesh_lib.replicated(mesh))
    self._forward = _make_forward(model, mesh)

  def predict(self, images: Iterable[Source]) -> list[Prediction]:
    """What the recogniser says of each image, in order.

    Args:
      images: files, the bytes of files, or pixels as uint8 [height, width, 3].

    Raises:
      UserError: names the first image that cannot be read.
    """
    if isinstance(images, str | bytes | os.PathLike):
      raise UserError("images must be a list of images, got a single one: predict([image])")
    predictions = []
    for found in self.stream(images):
      if isinstance(found, Exception):
        raise found
      predictions.append(found)
    return predictions

  def stream(self, images: Iterable[Source]) -> Iterator[Prediction | UserError]:
    """`predict` for any number of images: one answer for each, in order, in the memory of a few batches.

    An image that cannot be read gives its error in place of a prediction and the others go on. Reading and decoding
    run ahead on threads while the network works, and the next batch begins before the last one's answer is used.
    """
    tasks = ((source, _name(source, index)) for index, source in enumerate(images))
    with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
      views = _ahead(pool, self._read, tasks, 2 * self._batch_size)
      begun: collections.deque = collections.deque()
      while batch := list(itertools.islice(views, self._batch_size)):
        begun.append((batch, self._begin(batch)))
        if len(begun) == 2:
          yield from self._finish(*begun.popleft())
      while begun:
        yield from self._finish(*begun.popleft())

  def _read(self, task: tuple[Source, str]) -> _View | UserError:
    data = self.config.data
    offset = batches.centre_offset(data.image_size, data.crop_size)
    try:
      image = read_image(*task)
    except OSError as error:
      return UserError(f"{task[1]}: {error.strerror or error}")
    except ValueError as error:
      return error
    height, width = image.shape[:2]
    return _View(batches.view(image, data.image_size, data.crop_size, offset, offset, False), width, height)

  def _begin(self, batch: list[_View | Exception]) -> tuple[jax.Array, jax.Array]:
    """Starts the network on the views of a batch, padded: one shape is compiled once."""
    size = self.config.data.crop_size
    pixels = np.zeros((self._batch_size, size, size, 3), np.uint8)
    for row, view in enumerate(batch):
      if isinstance(view, _View):
        pixels[row] = view.pixels
    return self._forward(self._params, pixels)

  def _finish(self, batch: list[_View | Exception], answer) -> Iterator[Prediction | UserError]:
    """The answers of a batch, in order; what is no view is passed on."""
    scores_KBL, thetas_KB4 = jax.device_get(answer)
    scores_KBL, thetas_KB4 = scores_KBL[:, : len(batch)], thetas_KB4[:, : len(batch)]
    if not np.isfinite(scores_KBL).all():
      raise UserError("the recogniser's scores are not finite: its parameters are damaged")
    pooled_BL = scores_KBL.max(axis=0)
    probabilities_BL, chosen_BL = self.decision.probabilities(pooled_BL), self.decision.chosen(pooled_BL)
    each_KBL = self.decision.probabilities(scores_KBL)
    boxes_KB4 = boxes_lib.clip_boxes(regions_lib.region_boxes(thetas_KB4, self.config))
    winners_BL = scores_KBL.argmax(axis=0)
    for b, view in enumerate(batch):
      if isinstance(view, _View):
        yield self._prediction(view, probabilities_BL[b], chosen_BL[b], winners_BL[b], each_KBL[:, b], boxes_KB4[:, b])
      else:
        yield view

  def _prediction(self, view: _View, probabilities, chosen, winners, each_KL, shares_K4) -> Prediction:
    boxes: list[Box] = [
      (left * view.width, top * view.height, right * view.width, bottom * view.height)
      for top, left, bottom, right in shares_K4.tolist()
    ]
    labels = [
      Label(
        self.class_names[c],
        float(probabilities[c]),
        int(winners[c]) + 1 if self._looks else None,
        boxes[winners[c]] if self._looks else None,
      )
      for c in np.argsort(-probabilities, kind="stable")
      if chosen[c]
    ]
    looks = [
      Region(step + 1, box, self.class_names[scores.argmax()], float(scores.max()))
      for step, (box, scores) in enumerate(zip(boxes, each_KL, strict=True))
    ]
    return Prediction(view.width, view.height, labels, looks if self._looks else [], probabilities)


def _make_forward(model: Any, mesh: jax.sharding.Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Jits params, images -> the scores and thetas of all regions, over the mesh."""

  def forward(params, images):
    attention = model.apply({"params": params}, images).attention
    return attention.scores, attention.thetas

  replicated = mesh_lib.replicated(mesh)
  return jax.jit(forward, in_shardings=(replicated, mesh_lib.by_example(mesh)), out_shardings=replicated)


def _ahead(pool: concurrent.futures.Executor, function: Callable, items: Iterable, window: int) -> Iterator:
  """function(item) for each item, in order, with at most `window` of them begun and not yet taken."""
  waiting: collections.deque[concurrent.futures.Future] = collections.deque()
  for item in items:
    waiting.append(pool.submit(function, item))
    if len(waiting) == window:
      yield waiting.popleft().result()
  while waiting:
    yield waiting.popleft().result()


def load(folder: str | os.PathLike | None = None, **options) -> Predictor:
  """The predictor of a workdir or an exported folder; without one, of the digit scenes' that ships with the package.

  Args:
    folder: see `exported.load`.
    **options: of `Predictor`.
  """
  return Predictor(exported.load(pathlib.Path(folder or PRETRAINED)), **options)
