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
import pathlib
import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# The builder stores this text, or the module's docstring, with prepared data: it is part of their digest.
LETTERS = """What source scenes are made of: printed letters on a photograph, nothing of which is in a scene of digits.

They stand in for another data set with boxes, on which a region proposal network learns before it is used where there are
none (`rmam_jax.ops.rpn`). The letters are drawn with fonts that matplotlib ships (DejaVu, STIX), in the 8x8 grey
pixels of the handwritten digits; the photograph, which it ships as well, is Grace Hopper's portrait by James S. Davis of
the US Navy, in the public domain.
"""

CLASSES = tuple(string.digits)
LETTER_CLASSES = tuple(string.ascii_uppercase)
SPLITS = ("train", "validation", "test")
MARGIN = 4  # pixels
_DRAWN = 64  # pixels of a letter's height before it is made small


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
  source: bool = False  # letters in place of digits, on another photograph; see `LETTERS`

  @property
  def classes(self) -> tuple[str, ...]:
    return LETTER_CLASSES if self.source else CLASSES


SETTINGS = {
  "easy": Setting(size=72, object_size=(12, 26), objects=(1, 4), clutter=(0, 6)),
  # About twice the canvas of `easy` (in area), smaller objects, more of them, twice the clutter.
  "hard": Setting(size=104, object_size=(10, 20), objects=(1, 6), clutter=(0, 12)),
}
SETTINGS["tiny"] = dataclasses.replace(SETTINGS["easy"], train_scenes=160, test_scenes=40)  # to try things out
# Beside each, scenes of another world to learn localisation from.
SETTINGS |= {
  f"source_{name}": dataclasses.replace(setting, source=True, train_scenes=min(setting.train_scenes, 12_000))
  for name, setting in SETTINGS.items()
}

# Each split's columns of the photographs, as shares of their width.
_BANDS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
_FONTS = {  # of each split's letters
  "train": "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSansMono DejaVuSansMono-Bold DejaVuSerif"
  " DejaVuSerif-Italic STIXGeneral STIXGeneralBol STIXGeneralItalic",
  "validation": "DejaVuSansMono-Oblique STIXGeneralBolIta",
  "test": "DejaVuSans-BoldOblique DejaVuSerif-Bold DejaVuSansMono-BoldOblique",
}


@functools.cache
def photographs(source: bool) -> tuple[np.ndarray, ...]:
  """The backgrounds of source scenes or of all others: uint8 [height, width, 3] each."""
  if source:
    with Image.open(_shipped() / "sample_data" / "grace_hopper.jpg") as image:
      return (np.asarray(image.convert("RGB")),)
  from sklearn.datasets import load_sample_images

  return tuple(np.asarray(image, np.uint8) for image in load_sample_images().images)


def _shipped() -> pathlib.Path:
  import matplotlib

  return pathlib.Path(matplotlib.get_data_path())


@functools.cache
def samples(source: bool, split: str) -> tuple[np.ndarray, np.ndarray]:
  """The letters (large and small) or handwritten digits of one split: uint8 [n, 8, 8], and their classes int [n]."""
  if source:
    fonts = [ImageFont.truetype(_shipped() / "fonts" / "ttf" / f"{name}.ttf", _DRAWN) for name in _FONTS[split].split()]
    letters = [_letter(letter, font) for font in fonts for letter in LETTER_CLASSES + tuple(string.ascii_lowercase)]
    return np.stack(letters), np.arange(len(letters)) % len(LETTER_CLASSES)
  from sklearn.datasets import load_digits

  digits = load_digits()
  index = np.arange(len(digits.target))
  chosen = {"validation": index % 10 == 0, "test": index % 5 == 4}
  chosen["train"] = ~(chosen["validation"] | chosen["test"])
  images = np.round(digits.images[chosen[split]] * (255 / 16)).astype(np.uint8)
  return images, digits.target[chosen[split]]


def _letter(letter: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
  """A letter as high or as wide as its square, whichever is more, and centred in it: uint8 [8, 8]."""
  left, top, right, bottom = font.getbbox(letter)
  side = max(right - left, bottom - top)
  drawn = Image.new("L", (side, side))
  corner = (side - right - left) / 2, (side - bottom - top) / 2
  ImageDraw.Draw(drawn).text(corner, letter, fill=255, font=font)
  return np.asarray(drawn.resize((8, 8), Image.Resampling.BOX))


def background_columns(split: str, width: int) -> tuple[int, int]:
  """The half-open range of photograph columns that belong to a split."""
  return tuple(round(share * width) for share in _BANDS[split])


def _background(rng: np.random.Generator, setting: Setting, split: str) -> np.ndarray:
  size, every = setting.size, photographs(setting.source)
  photograph = every[rng.integers(len(every))]
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


def _place(rng, boxes, size, low, high):
  """A random corner whose square overlaps no box, or None after 20 tries."""
  for top, left in rng.integers(low, high - size + 1, (20, 2)):
    if all(top + size <= y0 or y1 <= top or left + size <= x0 or x1 <= left for y0, x0, y1, x1 in boxes):
      return int(top), int(left)
  return None


def draw_scene(setting: Setting, split: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws one scene: its image, uint8 [size, size, 3]; the class of each object, int [n]; and its box, int [n, 4].

  Boxes are (top, left, bottom, right) in pixels, bottom and right exclusive.
  """
  # Scenes of letters are drawn from other random numbers than the scenes of digits with the same index.
  rng = np.random.default_rng([SPLITS.index(split), index, setting.size, *([1] if setting.source else [])])
  images, classes = samples(setting.source, split)
  scene = _background(rng, setting, split)
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
    if corner is not None:  # else it is crowded out: the scene has one object fewer
      sample = rng.integers(len(images))
      _paint(scene, images[sample], *corner, size, rng.uniform(0.5, 1, 3) * 255)
      labels.append(classes[sample])
      boxes.append((*corner, corner[0] + size, corner[1] + size))
  return np.clip(np.round(scene), 0, 255).astype(np.uint8), np.array(labels), np.array(boxes)
