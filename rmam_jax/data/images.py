"""Encoded images of every kind to red, green and blue as a person would see them."""

import contextlib
import io
import math
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from rmam_jax.runtime.errors import UserError

PIXELS = 2  # to be raised when a file gives other pixels than before: what is kept of images is told apart by it
GAP = 2  # times the pixels that are needed are decoded at least, as by `reducing_gap` of Pillow's thumbnails
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# What files of these, and of HEIC, are called.
SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_HEIF = re.compile(rb"....ftyp(?!.{0,50}avif)(hei[a-z]|hev[a-z]|mif1|msf1)", re.DOTALL)  # how HEIC files begin
MOST_PIXELS = 89_478_485  # 256 MB as red, green and blue; Pillow warns from here on
MOST_SCANS = 100  # of a JPEG that a server decodes; progressive ones have about ten
_WHITES = (255, 4_095, 65_535)  # what white is in 8, 12 and 16 bits
_NOT_NATIVE = "16B" if sys.byteorder == "little" else "16L"
# From Pillow's name of how 16-bit colours lie in a file, of which it keeps the upper bytes, to the name by which it keeps
# the lower ones.
_LOWER = {
  f"{mode};{order}": f"{mode};{other}"
  for mode in ("RGB", "RGBA")
  for order, other in (("16B", "16L"), ("16L", "16B"), ("16N", _NOT_NATIVE))
}
_LOWER["LA;16B"] = "RGBA"  # which takes all four bytes of a pixel as they lie: two of grey, two of how opaque it is
# From the value of EXIF's orientation, 2 to 8, to what puts the image upright. Pillow's exif_transpose also writes the
# other tags anew, and fails on damaged ones.
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_UPRIGHT = {value: Image.Transpose[turn] for value, turn in enumerate(_TURNS, start=2)}


class Decoded(NamedTuple):
  """An image's pixels, which may be fewer than its file has."""

  pixels: np.ndarray  # uint8 [height, width, 3]
  shape: tuple[int, int]  # (height, width) of the whole image, upright


def decode_image(encoded: bytes, name: str) -> np.ndarray:
  """All pixels of an AVIF, BMP, GIF, HEIC, JPEG, PNG, TIFF or WebP file, as `pixels_of` gives them.

  HEIC needs the extra `heif`. Of an animation the first frame is taken.

  Raises:
    UserError: the bytes, which it calls `name`, are no image, are cut short, or hold more than `MOST_PIXELS`, which is
      refused before it is decoded; or they are HEIC, and the extra is not there.
  """
  return decode(encoded, name).pixels


def decode(encoded: bytes, name: str, needed: tuple[float, float] = (math.inf, math.inf)) -> Decoded:
  """`decode_image`, but of a large JPEG no more than a half, a quarter or an eighth of each side, in less time.

  `needed` is the (height, width) in pixels to which the whole image is to be resized. Of these at least `GAP` times as
  many are decoded, and the frame stays the same: the part is one that divides both sides without rest, so boxes and
  windows as shares lie where they lay. Smaller images, and other files, are decoded as `decode_image` does.
  """
  with _readable(name), _open(encoded) as image:
    _check_size(image)
    rawmode, part = _rawmode(image), 1
    if isinstance(image, JpegImagePlugin.JpegImageFile):
      (width, height), turned = image.size, _orientation(image) in _TURNED
      part = _part((width, height) if turned else (height, width), needed)
      if part > 1:
        image.draft(None, (width // part, height // part))
    if isinstance(image, TiffImagePlugin.TiffImageFile):
      _check_planes(image)
      _check_strips(image)
    image.load()  # Pillow puts a TIFF file upright here
    pixels = _upright_rgb(_with_lower_bytes(image, encoded, rawmode) if rawmode in _LOWER else image)
  return Decoded(pixels, (pixels.shape[0] * part, pixels.shape[1] * part))


def _part(whole: tuple[int, int], needed: tuple[float, float]) -> int:
  """8, 4, 2 or 1: by what (height, width) may be divided where (height, width) is needed."""
  pairs = list(zip(whole, needed, strict=True))
  return next((n for n in (8, 4, 2) if all(side % n == 0 and side // n >= GAP * least for side, least in pairs)), 1)


def pixels_of(image: Image.Image, name: str) -> np.ndarray:
  """An image of Pillow's as uint8 [height, width, 3], upright, in red, green and blue as a person sees it.

  EXIF orientation is applied where it can be read, and transparency laid over white. Grey of 16 bits is scaled to 8; so is
  what fills 12 or 8 of them alone, as cameras and scanners write it, by the brightest pixel. Of colours of 16 bits Pillow
  keeps the upper bytes: `decode_image` reads the others where they matter.

  Raises UserError, which calls the image `name`, as `decode_image`.
  """
  with _readable(name):
    _check_size(image)
    image.load()
    return _upright_rgb(image)


def _open(encoded: bytes) -> Image.Image:
  if not _HEIF.match(encoded):
    return Image.open(io.BytesIO(encoded), formats=FORMATS)
  try:
    import pillow_heif
  except ImportError as error:
    raise UserError("it is HEIC, which pip install 'rmam_jax[heif]' makes readable") from error
  pillow_heif.register_heif_opener()
  return Image.open(io.BytesIO(encoded), formats=("HEIF",))


# What Pillow raises for damaged files. It warns of a bomb, as an exception only where warnings are errors.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, RuntimeError, EOFError, Image.DecompressionBombError, Warning)


def has_too_many_scans(encoded: bytes) -> bool:
  """Whether bytes are a JPEG of more than `MOST_SCANS` scans: each costs as much time as the image is large."""
  return encoded.startswith(b"\xff\xd8") and encoded.count(b"\xff\xda") > MOST_SCANS


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
  """Raises a UserError for what a damaged image, called `name`, leads to."""
  try:
    yield
  except UnidentifiedImageError as error:  # its own words hold an address in memory
    raise UserError(f"{name}: not a readable image (none of {', '.join(FORMATS)})") from error
  except _DAMAGE as error:
    raise UserError(f"{name}: not a readable image ({error})") from error


def _check_size(image: Image.Image) -> None:
  width, height = image.size
  if width * height > MOST_PIXELS:
    raise UserError(f"{width} x {height} pixels, of which {MOST_PIXELS:,} are allowed: make it smaller")


def _check_planes(image: TiffImagePlugin.TiffImageFile) -> None:
  tags = image.tag_v2
  if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and 16 in tags.get(TiffImagePlugin.BITSPERSAMPLE, ()):
    raise UserError(
      "it holds a plane for each colour, of 16 bits, which Pillow misreads: save it with one plane, or as PNG"
    )


def _check_strips(image: TiffImagePlugin.TiffImageFile) -> None:
  """Of what no strip or tile holds Pillow makes black pixels, as many as a damaged header says."""
  held = [max((tile[1][side] for tile in image.tile), default=0) for side in (2, 3)]
  if math.prod(held) < math.prod(image.size):
    raise UserError(f"{image.width} x {image.height} pixels, of which it holds {held[0]} x {held[1]}")


def _orientation(image: Image.Image) -> int:
  return image.getexif().get(ExifTags.Base.Orientation, 1)


def _rawmode(image: Image.Image) -> str:
  """How the pixels of a file that is not loaded yet lie in it, in Pillow's words; "" where it does not say."""
  arguments = image.tile[0][3] if getattr(image, "tile", None) else ""
  return arguments[0] if isinstance(arguments, tuple) and arguments else arguments


def _with_lower_bytes(image: Image.Image, encoded: bytes, rawmode: str) -> Image.Image:
  """An image of 16-bit colours from its upper bytes, which is what Pillow made of it, and its lower ones.

  Both together are scaled by the brightest value of all colours, as `_to_8_bits` does, and so is how opaque pixels are by
  the most opaque. Where that is more than 12 bits hold, the upper byte is what 8 bits would be.
  """
  upper = np.asarray(image, np.uint16)
  if upper[..., :3].max() >= 16 and (upper.shape[-1] == 3 or upper[..., 3].max() >= 16):
    return image
  with _open(encoded) as again:
    again.tile = [tile._replace(args=_renamed(tile.args, _LOWER[rawmode])) for tile in again.tile]
    again.load()
    lower = np.asarray(again, np.uint16)
  if rawmode == "LA;16B":
    lower = lower[..., [1, 1, 1, 3]]
  found = upper.astype(np.uint8)
  for part in (slice(3), slice(3, None)):
    if upper[..., part].size and upper[..., part].max() < 16:
      found[..., part] = _to_8_bits(256 * upper[..., part] + lower[..., part])
  made = Image.fromarray(found)
  made.info = image.info
  return made


def _renamed(arguments, rawmode: str):
  """A tile's arguments with another way in which pixels lie in the file."""
  return (rawmode, *arguments[1:]) if isinstance(arguments, tuple) else rawmode


def _to_8_bits(values: np.ndarray) -> np.ndarray:
  """Whole numbers up to 65,535 as uint8; the brightest says whether white is that of 8, of 12 or of 16 bits."""
  most = next(most for most in _WHITES if values.max() <= most)
  return np.round(values * (255 / most)).astype(np.uint8)


def _upright_rgb(image: Image.Image) -> np.ndarray:
  turn = _UPRIGHT.get(_orientation(image))
  return np.asarray(_to_rgb(image if turn is None else image.transpose(turn)))


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode == "F":
    raise UserError("it holds real numbers of unknown range")
  if image.mode.startswith("I"):  # 16 bits of grey
    grey = np.asarray(image, np.int64)
    if grey.min() < 0 or grey.max() > 65_535:
      raise UserError("it holds more than 16 bits a pixel")
    image = Image.fromarray(_to_8_bits(grey))
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
      size = image.size
      if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose `size` is that of the upright image
        size = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
      return size, _orientation(image)
  except _DAMAGE:
    return (0, 0), 1
