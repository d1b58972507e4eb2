"""Encoded images of every kind to red, green and blue as a person would see them."""

import contextlib
import io
import re
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from rmam_jax.runtime.errors import UserError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# What files of these, and of HEIC, are called.
SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_HEIF = re.compile(rb"....ftyp(?!.{0,50}avif)(hei[a-z]|hev[a-z]|mif1|msf1)", re.DOTALL)  # how HEIC files begin
MOST_PIXELS = 89_478_485  # 256 MB as red, green and blue; Pillow warns from here on
_WHITES = (255, 4_095, 65_535)  # what white is in 8, 12 and 16 bits of grey
# From the value of EXIF's orientation, 2 to 8, to what puts the image upright. Pillow's exif_transpose also writes the
# other tags anew, and fails on damaged ones.
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_UPRIGHT = {value: Image.Transpose[turn] for value, turn in enumerate(_TURNS, start=2)}


def decode_image(encoded: bytes, name: str) -> np.ndarray:
  """An AVIF, BMP, GIF, HEIC, JPEG, PNG, TIFF or WebP file's content as `pixels_of` gives it.

  HEIC needs the extra `heif`. Of an animation the first frame is taken.

  Raises:
    UserError: the bytes, which it calls `name`, are no image, are cut short, or hold more than `MOST_PIXELS`, which is
      refused before it is decoded; or they are HEIC, and the extra is not there.
  """
  return _decoded(lambda: _open(encoded), name)


def pixels_of(image: Image.Image, name: str) -> np.ndarray:
  """An image of Pillow's as uint8 [height, width, 3], upright, in red, green and blue as a person sees it.

  EXIF orientation is applied where it can be read, and transparency laid over white. Grey of 16 bits is scaled to 8; so is
  what fills 12 or 8 of them alone, as cameras and scanners write it, by the brightest pixel.

  Raises UserError, which calls the image `name`, as `decode_image`.
  """
  return _decoded(lambda: contextlib.nullcontext(image), name)


def _open(encoded: bytes) -> Image.Image:
  if not _HEIF.match(encoded):
    return Image.open(io.BytesIO(encoded), formats=FORMATS)
  try:
    import pillow_heif
  except ImportError as error:
    raise UserError("it is HEIC, which pip install 'rmam_jax[heif]' makes readable") from error
  pillow_heif.register_heif_opener()
  return Image.open(io.BytesIO(encoded), formats=("HEIF",))


def _decoded(opened: Callable[[], contextlib.AbstractContextManager[Image.Image]], name: str) -> np.ndarray:
  try:
    with opened() as image:
      width, height = image.size
      if width * height > MOST_PIXELS:
        raise UserError(f"{width} x {height} pixels, of which {MOST_PIXELS:,} are allowed: make it smaller")
      image.load()  # Pillow puts a TIFF file upright here
      method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
      return np.asarray(_to_rgb(image if method is None else image.transpose(method)))
  except UnidentifiedImageError as error:  # its own words hold an address in memory
    raise UserError(f"{name}: not a readable image (none of {', '.join(FORMATS)})") from error
  # Pillow warns of a bomb, as an exception only where warnings are errors.
  except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Warning) as error:
    raise UserError(f"{name}: not a readable image ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode == "F":
    raise UserError("it holds real numbers of unknown range")
  if image.mode.startswith("I"):  # 16 bits of grey
    grey = np.asarray(image, np.int64)
    if grey.min() < 0 or grey.max() > 65_535:
      raise UserError("it holds more than 16 bits a pixel")
    most = next(most for most in _WHITES if grey.max() <= most)
    image = Image.fromarray(np.round(grey * (255 / most)).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
  return image.convert("RGB")


def upright_boxes(boxes: np.ndarray, size: np.ndarray, encoded: bytes) -> np.ndarray:
  """Boxes as shares of the image as `decode_image` shows it.

  Tools that pay no attention to EXIF state the size, and boxes, of the image as it is stored, on its side.

  Args:
    boxes: float32 [n, 4] of (top, left, bottom, right) as shares of the image that the annotation describes.
    size: (width, height) in pixels as the annotation states it; zeros where it does not.
    encoded: the image's file.

  Returns:
    The boxes turned with the image where width and height are stated as they are stored, else the boxes themselves.
  """
  if not len(boxes) or size[0] == size[1]:
    return boxes
  stored, orientation = header(encoded)
  if orientation not in _TURNED or (stored[0] > stored[1]) != (size[0] > size[1]):
    return boxes
  top, left, bottom, right = boxes.T
  from_right, from_bottom = _TURNED[orientation]
  down = (1 - right, 1 - left) if from_right else (left, right)
  across = (1 - bottom, 1 - top) if from_bottom else (top, bottom)
  return np.stack([down[0], across[0], down[1], across[1]], axis=-1)


# Of the orientations that put an image on its side: whether what is stored from left to right comes down from the right,
# and what is stored from top to bottom goes across from the bottom.
_TURNED = {5: (False, False), 6: (False, True), 7: (True, True), 8: (True, False)}


def header(encoded: bytes) -> tuple[tuple[int, int], int]:
  """(width, height) as stored and EXIF's orientation, 1 where there is none; zeros and 1 for what is no image."""
  try:
    with _open(encoded) as image:
      return image.size, image.getexif().get(ExifTags.Base.Orientation, 1)
  except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Warning):
    return (0, 0), 1
