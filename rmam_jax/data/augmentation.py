"""Training images that are changed at random: crops of other sizes and shapes, colours, a hidden square.

All of it is drawn from one generator, which `batches` makes from (seed, position): the same example is changed in the
same way whatever runs beside it. Boxes are (top, left, bottom, right) as shares.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from rmam_jax.runtime.errors import UserError


def _enhancing(kind: type) -> Callable[[Image.Image, float], Image.Image]:
  return lambda picture, factor: kind(picture).enhance(factor)


# What is done to colours, by a number: the first ones multiply by a factor, the others have a strength in [0, 1].
ENHANCERS = tuple(
  map(_enhancing, (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, ImageEnhance.Sharpness))
)
JITTERED = 3  # of them, by `jitter`
OPERATIONS = (
  *ENHANCERS,
  lambda picture, _: ImageOps.autocontrast(picture),
  lambda picture, _: ImageOps.equalize(picture),
  lambda picture, strength: ImageOps.posterize(picture, 8 - round(4 * strength)),  # bits that stay
  lambda picture, strength: ImageOps.solarize(picture, round(256 * (1 - strength))),  # what is brighter is inverted
)


class Change(NamedTuple):
  """What is done to one image."""

  window: np.ndarray | None = None  # the box that is shown; None: the window that `batches.view` cuts
  colours: tuple[tuple[int, float], ...] = ()  # (place in `OPERATIONS`, its number), in the order of their use
  hidden: np.ndarray | None = None  # a box of the view

  def needed(self, image_size: int, crop_size: int) -> tuple[float, float]:
    """The (height, width) in pixels to which the whole image is resized where the view shows it at its size."""
    if self.window is None:
      return image_size, image_size
    tall, wide = (self.window[2:] - self.window[:2]).tolist()
    return crop_size / tall, crop_size / wide


class Augmentation(NamedTuple):
  """The section `data.augmentation`; without arguments nothing is changed."""

  crop_scale: tuple[float, ...] = ()  # least and largest share of the image's area that a view shows; (): see `view`
  crop_aspect: float = 4 / 3  # of such views the largest ratio of their aspect to the image's, and of that to theirs
  jitter: float = 0.0  # brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter
  randaugment: int = 0  # so many of `OPERATIONS`, which move no object, are drawn for an image (Cubuk et al., 2020)
  magnitude: float = 0.3  # of `randaugment`, in [0, 1]: factors are 1 - 0.9 or 1 + 0.9 times it, strengths are it
  cutout: float = 0.0  # the side of a square in the view's mean colour, as a share of the view's; 0: none

  def check(self) -> None:
    """Raises a UserError for a value out of its range."""
    scale = self.crop_scale
    for field, allowed, wanted in (
      ("crop_scale", not scale or (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1), "(least, largest) share, or ()"),
      ("crop_aspect", self.crop_aspect >= 1, "at least 1"),
      ("jitter", 0 <= self.jitter <= 1, "in [0, 1]"),
      ("randaugment", self.randaugment >= 0, "0 or more"),
      ("magnitude", 0 <= self.magnitude <= 1, "in [0, 1]"),
      ("cutout", 0 <= self.cutout <= 1, "in [0, 1]"),
    ):
      if not allowed:
        raise UserError(f"data.augmentation.{field} must be {wanted}, got {getattr(self, field)}")

  @property
  def changes(self) -> bool:
    """Whether it does anything."""
    return bool(self.crop_scale or self.jitter or self.randaugment or self.cutout)

  def draw(self, rng: np.random.Generator) -> Change:
    """A change; takes no numbers of the generator for what is off."""
    window = hidden = None
    colours: tuple[tuple[int, float], ...] = ()
    if self.crop_scale:
      area, turn = rng.uniform(*self.crop_scale), rng.uniform(-1, 1) * math.log(self.crop_aspect)
      sides = np.minimum(math.sqrt(area) * np.exp([-turn / 2, turn / 2]), 1)
      corner = rng.uniform(size=2) * (1 - sides)
      window = np.concatenate([corner, corner + sides])
    if self.jitter:
      order, factors = rng.permutation(JITTERED), rng.uniform(1 - self.jitter, 1 + self.jitter, JITTERED)
      colours = tuple(zip(order.tolist(), factors.tolist(), strict=True))
    if self.randaugment:
      places = rng.integers(len(OPERATIONS), size=self.randaugment)
      factors = 1 + 0.9 * self.magnitude * rng.choice((-1.0, 1.0), self.randaugment)
      numbers = np.where(places < len(ENHANCERS), factors, self.magnitude)
      colours += tuple(zip(places.tolist(), numbers.tolist(), strict=True))
    if self.cutout:
      centre = rng.uniform(size=2)
      hidden = np.concatenate([centre - self.cutout / 2, centre + self.cutout / 2]).clip(0, 1)
    return Change(window, colours, hidden)


NONE = Augmentation()


def resized_window(image: np.ndarray, window: np.ndarray, side: int) -> np.ndarray:
  """What a box of an image shows, side x side: uint8 [height, width, 3] -> [side, side, 3]."""
  top, left, bottom, right = window * np.array(image.shape[:2] * 2)
  options = {"box": (left, top, right, bottom), "resample": Image.Resampling.BILINEAR}
  return np.asarray(Image.fromarray(image).resize((side, side), **options))


def window_boxes(boxes: np.ndarray, window: np.ndarray, flip: bool) -> np.ndarray:
  """Boxes [..., 4] of an image as shares of what a window of it shows, which is then mirrored if asked."""
  corner, sides = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
  shown = (boxes - corner) / sides
  return np.stack([shown[..., 0], 1 - shown[..., 3], shown[..., 2], 1 - shown[..., 1]], -1) if flip else shown


def recoloured(image: np.ndarray, colours: tuple[tuple[int, float], ...]) -> np.ndarray:
  """`OPERATIONS` by their places and numbers, in the order given: uint8 [height, width, 3] -> the same."""
  picture = Image.fromarray(image)
  for place, number in colours:
    picture = OPERATIONS[place](picture, number)
  return np.asarray(picture)


def with_hidden(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
  """A view [height, width, 3] whose box `hidden` has the view's mean colour."""
  top, left, bottom, right = np.rint(hidden * np.array(image.shape[:2] * 2)).astype(int)
  found = image.copy()
  found[top:bottom, left:right] = np.rint(image.mean(axis=(0, 1)))
  return found
