"""What source scenes are made of: printed letters on a photograph, nothing of which is in a scene of digits.

They stand in for another data set with boxes, on which a region proposal network learns before it is used where there are
none (`rmam_jax.ops.rpn`). The letters are drawn with fonts that matplotlib ships (DejaVu, STIX), in the 8x8 grey
pixels of the handwritten digits; the photograph, which it ships as well, is Grace Hopper's portrait by James S. Davis of
the US Navy, in the public domain.
"""

import functools
import pathlib
import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CLASSES = tuple(string.ascii_uppercase)
SIDE = 8  # pixels, as the digits have
_DRAWN = 64  # pixels of a glyph's height before it is made small

# Each split's fonts.
_FONTS = {
  "train": "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSansMono DejaVuSansMono-Bold DejaVuSerif"
  " DejaVuSerif-Italic STIXGeneral STIXGeneralBol STIXGeneralItalic",
  "validation": "DejaVuSansMono-Oblique STIXGeneralBolIta",
  "test": "DejaVuSans-BoldOblique DejaVuSerif-Bold DejaVuSansMono-BoldOblique",
}


def _shipped() -> pathlib.Path:
  import matplotlib

  return pathlib.Path(matplotlib.get_data_path())


def _glyph(letter: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
  """A letter as high or as wide as its square, whichever is more, and centred in it: uint8 [SIDE, SIDE]."""
  left, top, right, bottom = font.getbbox(letter)
  side = max(right - left, bottom - top)
  drawn = Image.new("L", (side, side))
  corner = (side - right - left) / 2, (side - bottom - top) / 2
  ImageDraw.Draw(drawn).text(corner, letter, fill=255, font=font)
  return np.asarray(drawn.resize((SIDE, SIDE), Image.Resampling.BOX))


@functools.cache
def samples(split: str) -> tuple[np.ndarray, np.ndarray]:
  """The letters of one split, large and small: images uint8 [n, SIDE, SIDE] and their classes int [n]."""
  fonts = [ImageFont.truetype(_shipped() / "fonts" / "ttf" / f"{name}.ttf", _DRAWN) for name in _FONTS[split].split()]
  glyphs = [_glyph(letter, font) for font in fonts for letter in CLASSES + tuple(string.ascii_lowercase)]
  return np.stack(glyphs), np.arange(len(glyphs)) % len(CLASSES)


@functools.cache
def photographs() -> tuple[np.ndarray, ...]:
  """The backgrounds: one photograph, uint8 [600, 512, 3]."""
  with Image.open(_shipped() / "sample_data" / "grace_hopper.jpg") as image:
    return (np.asarray(image.convert("RGB")),)
