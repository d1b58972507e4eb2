"""Labels, probabilities and regions for any images, from a trained recognizer."""

import concurrent.futures
import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import jax
import ml_collections
import numpy as np
from PIL import Image

from rmam_jax import heads
from rmam_jax.data import batches
from rmam_jax.data.images import Decoded, decode, pixels_of
from rmam_jax.evaluation import calibration
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.ops import boxes as boxes_lib
from rmam_jax.runtime import files
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError, os_errors
from rmam_jax.training import exported, stages

PRETRAINED = pathlib.Path(__file__).parent / "pretrained"  # the recognizers that ship, by name
DEFAULT = "photographs"

Box = tuple[float, float, float, float]  # (left, top, right, bottom) in pixels of the original image
Source = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray
_View = tuple[np.ndarray, int, int]  # uint8 [side, side, 3]; height and width of the original


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
  """What the recognizer says of one image."""

  width: int  # pixels of the original, upright image
  height: int
  labels: list[Label]  # the surest first
  regions: list[Region]  # empty for a head that does not look
  probabilities: np.ndarray  # float [L], of all classes


def read_image(source: Source, name: str, needed: tuple[float, float] = (math.inf, math.inf)) -> Decoded:
  """An image: a file's name, its bytes, an open one, an image of Pillow's, or pixels.

  Pixels are what numpy makes an array of: uint8 [height, width], [height, width, 1], 3 (red, green, blue) or 4 (and how
  opaque), or 16 bits of grey, uint16 [height, width]. Of large photographs no more pixels are decoded than
  `images.decode` takes for a resizing to `needed`, (height, width) in pixels. Raises a UserError that calls what is no
  image `name`.
  """
  if isinstance(source, Image.Image) and 0 not in source.size:
    return _whole(pixels_of(source, name))
  if isinstance(source, str | os.PathLike):
    with os_errors(name):
      source = files.named(source).read_bytes()
  elif hasattr(source, "read"):
    with os_errors(name):
      source = source.read()
    if not isinstance(source, bytes):
      raise UserError(f"{name}: a file must be opened to be read as bytes: open(..., 'rb')")
  if isinstance(source, bytes | bytearray | memoryview):
    return decode(bytes(source), name, needed)
  try:
    pixels = np.asarray(source)
  except ValueError as error:  # lists of lists that are no array
    raise UserError(f"{name}: no array of pixels ({error})") from error
  grey = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
  colours = grey.ndim == 3 and grey.shape[-1] in (3, 4) and grey.dtype == np.uint8
  if 0 in pixels.shape or not (colours or (grey.ndim == 2 and grey.dtype in (np.uint8, np.uint16))):
    raise UserError(
      f"{name}: pixels must be uint8 [height, width, 3], or [height, width] of uint8 or uint16, got {pixels.dtype}"
      f" {list(pixels.shape)}"
    )
  return _whole(pixels_of(Image.fromarray(np.ascontiguousarray(grey)), name))


def _whole(pixels: np.ndarray) -> Decoded:
  return Decoded(pixels, pixels.shape[:2])


def thresholds_of(
  trained: exported.TrainedModel, *, top: int | None = None, threshold: float | np.ndarray | None = None
) -> calibration.Thresholds:
  """Which labels a trained model gives to an image that it sees from the centre; see `calibration.make_thresholds`."""
  kind, chosen = stages.classification_of(trained.config, "stage_two"), trained.selection or {}
  options = {"top_k": trained.config.evaluation.top_k, "top": top, "threshold": threshold}
  return calibration.make_thresholds(kind, chosen.get("prediction", {}), **options)


def check_head(config: ml_collections.ConfigDict) -> heads.HeadSpec:
  """The head of a trained model; raises UserError if it needs more than images."""
  spec = heads.get(config.model.head)
  if spec.guide == heads.BOXES:
    raise UserError(f"head {spec.name!r} looks at proposals, which images alone do not have: it can only be evaluated")
  return spec


def _by_class(thresholds: Mapping[str, float], class_names: Sequence[str]) -> np.ndarray:
  """Thresholds in the order of the classes, [L]; raises UserError unless there is a number for each class."""
  if differing := sorted({*thresholds} ^ {*class_names}):
    kind = "lack" if differing[0] in class_names else "name the unknown class"
    raise UserError(f"thresholds {kind} {differing[0]!r}: they must name each of the {len(class_names)} classes")
  if wrong := [name for name, value in thresholds.items() if not isinstance(value, int | float)]:
    raise UserError(f"thresholds: that of {wrong[0]!r} must be a number, got {thresholds[wrong[0]]!r}")
  return np.array([thresholds[name] for name in class_names], float)


class Predictor:
  """A recognizer with all that it needs to predict for images as they come.

  Its `thresholds` say which labels an image is given; `config` is that of its training, `class_names` has L names.
  """

  def __init__(
    self,
    trained: exported.TrainedModel,
    *,
    top: int | None = None,
    threshold: float | Mapping[str, float] | None = None,
    views: str = "centre",
    batch_size: int = 32,
    threads: int = 4,
  ):
    """Makes a predictor of a trained model.

    Args:
      trained: from `exported.load`.
      top: at most so many labels an image; 0 is no limit.
      threshold: a label is given from this probability on, in place of the calibrated thresholds; or one for each
        class, by its name.
      views: of `views.KINDS`. "two" sees the mirror image as well, "five" and "ten" all of the image to its border; the
        probabilities are those of the mean over the views, the regions those of the centre view.
      batch_size: images in one pass; rounded up to a multiple of the devices.
      threads: that read and decode ahead.

    Raises a UserError for an option out of its range, and for a head that needs more than images.
    """
    if batch_size < 1 or threads < 1:
      raise UserError(f"batch_size and threads must be at least 1, got {batch_size} and {threads}")
    config, self.class_names = trained.config, trained.class_names
    if isinstance(threshold, Mapping):
      threshold = _by_class(threshold, self.class_names)
    self.thresholds = thresholds_of(trained, top=top, threshold=threshold)
    spec = check_head(config)
    mesh, self._views = mesh_lib.make_mesh(), views_lib.from_config(config, views)
    self.config, self._looks, self._threads = config, spec.looks, threads
    self._batch_size, self._devices = -(-batch_size // mesh.size) * mesh.size, mesh.size
    self._params = jax.device_put(trained.params, mesh_lib.replicated(mesh))
    self._forward = outputs_lib.make_forward(
      stages.build_model(config, "stage_two", len(self.class_names)), mesh, self._views
    )

  def predict(self, images: Iterable[Source]) -> list[Prediction]:
    """What the recognizer says of each image, in order; raises a UserError that names the first that cannot be read.

    Images are what `read_image` takes.
    """
    predictions = []
    for found in self.stream(images):
      if isinstance(found, Exception):
        raise found
      predictions.append(found)
    return predictions

  def stream(self, images: Iterable[Source]) -> Iterator[Prediction | UserError]:
    """`predict` for any number of images: one result for each, in order, in the memory of a few batches.

    An image that cannot be read gives its error in place of a prediction and the others go on. Threads read and decode
    the next images while the network works.
    """
    single = isinstance(images, str | bytes | os.PathLike | Image.Image) or hasattr(images, "read")
    if single or getattr(images, "ndim", 0) in (2, 3):
      raise UserError("images must be a list of images, got a single one: predict([image])")
    with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
      tasks = enumerate(images)
      groups = iter(lambda: list(itertools.islice(tasks, self._batch_size)), [])
      first = next(groups, [])
      # A few images need no whole batch; of more, the last batch has the shape that is compiled already.
      size = -(-min(1 << max(len(first) - 1, 0).bit_length(), self._batch_size) // self._devices) * self._devices
      groups = itertools.chain([first] if first else [], groups)
      views = outputs_lib.ahead(pool.map(self._read, group) for group in groups)  # `map` begins all of a group
      for begun, arrays in outputs_lib.ahead(self._begin(each, size) for each in views):
        yield from self._finish(begun, arrays)

  def _read(self, task: tuple[int, Source]) -> _View | UserError:
    (index, source), data = task, self.config.data
    size = self._views.pixels(data)
    offset = batches.centre_offset(data.image_size, size)
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "filename", "")
    name = name or getattr(source, "name", "")  # Pillow's images and open files tell where they come from
    name = os.fspath(name) if isinstance(name, str | os.PathLike) and name else f"image {index}"
    try:
      image = read_image(source, name, (data.image_size, data.image_size))
    except ValueError as error:
      return error
    return batches.view(image.pixels, data.image_size, size, offset, offset, False), *image.shape

  def _begin(
    self, views: Iterable[_View | UserError], batch: int
  ) -> tuple[list[_View | UserError], dict[str, jax.Array]]:
    """Starts the network on the views of a batch, padded to `batch` images: each shape is compiled once."""
    size, views = self._views.pixels(self.config.data), list(views)
    pixels = np.zeros((batch, size, size, 3), np.uint8)
    for row, view in enumerate(views):
      if not isinstance(view, Exception):
        pixels[row] = view[0]
    return views, self._forward(self._params, pixels)

  def _finish(self, views: list[_View | UserError], arrays: dict[str, jax.Array]) -> Iterator[Prediction | UserError]:
    """The predictions of a batch, in order; errors are passed on."""
    fetched = jax.device_get([arrays[name] for name in ("scores", "region_scores", "thetas")])
    pooled_BL, scores_BKL, thetas_BK4 = (array[: len(views)] for array in fetched)
    if not (np.isfinite(pooled_BL).all() and np.isfinite(scores_BKL).all()):
      raise UserError("the recognizer's scores are not finite: its parameters are damaged")
    found = (
      self.thresholds.probabilities(pooled_BL),
      self.thresholds.chosen(pooled_BL),
      scores_BKL.argmax(axis=1),
      self.thresholds.probabilities(scores_BKL),
      boxes_lib.clip_boxes(views_lib.region_boxes(thetas_BK4, self.config)),
    )
    for view, *of_image in zip(views, *found, strict=True):
      yield view if isinstance(view, Exception) else self._prediction(*view[1:], *of_image)

  def _prediction(self, height, width, probabilities_L, chosen_L, winners_L, each_KL, shares_K4) -> Prediction:
    boxes: list[Box] = [
      (left * width, top * height, right * width, bottom * height) for top, left, bottom, right in shares_K4.tolist()
    ]
    won = [(int(k) + 1, boxes[k]) if self._looks else (None, None) for k in winners_L]
    labels = [
      Label(self.class_names[c], float(probabilities_L[c]), *won[c])
      for c in np.argsort(-probabilities_L, kind="stable")
      if chosen_L[c]
    ]
    regions = [
      Region(step, box, self.class_names[each_L.argmax()], float(each_L.max()))
      for step, (box, each_L) in enumerate(zip(boxes, each_KL, strict=True), 1)
    ]
    return Prediction(width, height, labels, regions if self._looks else [], probabilities_L)


def find(name: str | os.PathLike | None) -> pathlib.Path:
  """The folder of a recognizer: of this path, else one that ships, `photographs` (also for None) or `digits-easy`.

  `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION`, is fetched from the Hugging Face hub; see `exported.fetch`.
  """
  if name and exported.is_of_hub(name):
    return exported.fetch(str(name))
  path = files.named(name or PRETRAINED / DEFAULT)
  return PRETRAINED / path if not path.exists() and (PRETRAINED / path).is_dir() else path


def load(folder: str | os.PathLike | None = None, **options) -> Predictor:
  """The predictor of a workdir, an exported folder or one of those that `find` knows, with options of `Predictor`.

  See `exported.load`.
  """
  return Predictor(exported.load(find(folder)), **options)
