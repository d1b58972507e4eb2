"""Digit scenes: a multi-label data set that is made locally, with boxes, from what scikit-learn ships.

Real handwritten digits (the UCI optical digits, 8x8 grey pixels, 1,797 samples) are painted in random colours and
sizes on patches of two real photographs (`china.jpg` by Ian Griggs and `flower.jpg` by Neil Kandalgaonkar, both CC BY
2.0), among fragments of other digits that count for nothing. A scene's labels are the digits that stand whole in it.

Splits share neither digit samples nor background: every tenth sample is for validation, every fifth for the test, and
each split has its own vertical band of both photographs. A scene is a pure function of (setting, split, index).

Objects keep `MARGIN` pixels off the border: the centre view of (size - 2 * MARGIN) pixels holds all of them whole, and
a random crop of that size cuts at most `MARGIN` pixels off any.
"""

import dataclasses
import functools

import numpy as np
from PIL import Image

from rmam_jax.data.digits import letters

CLASSES = tuple(str(digit) for digit in range(10))
SPLITS = ("train", "validation", "test")
MARGIN = 4


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a scene is drawn from; lengths in pixels, ranges inclusive."""

  size: int  # side of the square scene
  object_size: tuple[int, int]
  objects: tuple[int, int]  # how many digits
  clutter: tuple[int, int]  # how many fragments
  fragment_size: tuple[int, int] = (6, 11)
  train_scenes: int = 24_000
  test_scenes: int = 1_000  # also the size of the validation split
  source: bool = False  # letters in place of digits, on another photograph; see `rmam_jax.data.digits.letters`

  @property
  def classes(self) -> tuple[str, ...]:
    return letters.CLASSES if self.source else CLASSES


SETTINGS = {
  "easy": Setting(size=72, object_size=(12, 26), objects=(1, 4), clutter=(0, 6)),
  # About twice the canvas of `easy` (in area), smaller objects, more of them, twice the clutter.
  "hard": Setting(size=104, object_size=(10, 20), objects=(1, 6), clutter=(0, 12)),
  # `easy` in small, to try things out.
  "tiny": Setting(size=72, object_size=(12, 26), objects=(1, 4), clutter=(0, 6), train_scenes=160, test_scenes=40),
}
# Beside each, scenes of another world to learn localisation from.
SETTINGS |= {
  f"source_{name}": dataclasses.replace(setting, source=True, train_scenes=min(setting.train_scenes, 12_000))
  for name, setting in SETTINGS.items()
}

# Each split's columns of the photographs, as shares of their width.
_BANDS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}


@functools.cache
def _photographs() -> tuple[np.ndarray, ...]:
  from sklearn.datasets import load_sample_images

  return tuple(np.asarray(image, np.uint8) for image in load_sample_images().images)


@functools.cache
def digit_samples(split: str) -> tuple[np.ndarray, np.ndarray]:
  """The handwritten samples of one split: images uint8 [n, 8, 8] and their classes int [n]."""
  from sklearn.datasets import load_digits

  digits = load_digits()
  index = np.arange(len(digits.target))
  chosen = {"validation": index % 10 == 0, "test": index % 5 == 4}
  chosen["train"] = ~(chosen["validation"] | chosen["test"])
  images = np.round(digits.images[chosen[split]] * (255 / 16)).astype(np.uint8)
  return images, digits.target[chosen[split]]


def background_columns(split: str, width: int) -> tuple[int, int]:
  """The half-open range of photograph columns that belong to a split."""
  start, stop = _BANDS[split]
  return round(start * width), round(stop * width)


def _background(rng: np.random.Generator, photographs: tuple[np.ndarray, ...], split: str, size: int) -> np.ndarray:
  photograph = photographs[rng.integers(len(photographs))]
  first, last = background_columns(split, photograph.shape[1])
  side = rng.integers(64, min(last - first, 2 * size) + 1)
  left = rng.integers(first, last - side + 1)
  top = rng.integers(0, photograph.shape[0] - side + 1)
  box = left, top, left + side, top + side
  patch = Image.fromarray(photograph).resize((size, size), Image.Resampling.BILINEAR, box=box)
  return np.asarray(patch, np.float32) * rng.uniform(0.5, 0.65)


def _paint(scene: np.ndarray, glyph: np.ndarray, top: int, left: int, size: int, colour: np.ndarray) -> None:
  stretched = Image.fromarray(glyph).resize((size, size), Image.Resampling.BICUBIC)
  window = scene[top : top + size, left : left + size]
  window += np.asarray(stretched, np.float32)[..., None] / 255 * (colour - window)


def _place(rng, boxes, size, low, high, tries=20):
  """A random corner whose square overlaps no box, or None after `tries`."""
  for top, left in rng.integers(low, high - size + 1, (tries, 2)):
    if all(top + size <= y0 or y1 <= top or left + size <= x0 or x1 <= left for y0, x0, y1, x1 in boxes):
      return int(top), int(left)
  return None


def draw_scene(setting: Setting, split: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws one scene.

  Returns:
    The image, uint8 [size, size, 3]; the class of each object, int [n]; and its box in pixels, int [n, 4] as
    (top, left, bottom, right), bottom and right exclusive.
  """
  samples, photographs = (letters.samples, letters.photographs) if setting.source else (digit_samples, _photographs)
  # Scenes of letters are drawn from other random numbers than the scenes of digits with the same index.
  rng = np.random.default_rng([SPLITS.index(split), index, setting.size, *([1] if setting.source else [])])
  images, classes = samples(split)
  scene = _background(rng, photographs(), split, setting.size)
  for _ in range(rng.integers(*setting.clutter, endpoint=True)):
    y, x = rng.integers(0, 5, 2)
    fragment = images[rng.integers(len(images))][y : y + 4, x : x + 4]
    size = int(rng.integers(*setting.fragment_size, endpoint=True))
    top, left = rng.integers(0, setting.size - size + 1, 2)
    _paint(scene, np.ascontiguousarray(fragment), top, left, size, rng.uniform(0.4, 1, 3) * 255)
  labels, boxes = [], []
  for _ in range(rng.integers(*setting.objects, endpoint=True)):
    size = int(rng.integers(*setting.object_size, endpoint=True))
    corner = _place(rng, boxes, size, MARGIN, setting.size - MARGIN)
    if corner is None:  # crowded out: the scene has one object fewer
      continue
    sample = rng.integers(len(images))
    _paint(scene, images[sample], *corner, size, rng.uniform(0.5, 1, 3) * 255)
    labels.append(classes[sample])
    boxes.append((*corner, corner[0] + size, corner[1] + size))
  return np.clip(np.round(scene), 0, 255).astype(np.uint8), np.array(labels), np.array(boxes)
