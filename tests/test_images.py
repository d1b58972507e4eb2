"""Images of every kind, made here, so that the right pixels are known."""

import io
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from rmam_jax.data.images import MOST_PIXELS, decode_image, pixels_of
from rmam_jax.runtime.errors import UserError

COLOURS = np.array(
  [[[250, 10, 20], [30, 240, 40]], [[50, 60, 230], [0, 0, 0]], [[255, 255, 255], [90, 90, 90]]], np.uint8
)


def encode(image, kind="PNG", **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def rgb():
  return Image.fromarray(COLOURS)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_colours_survive(kind, options):
  np.testing.assert_array_equal(decode_image(encode(rgb(), kind, **options), "a"), COLOURS)


def test_jpeg_is_pillow_s():
  encoded = encode(rgb().resize((20, 30)), "JPEG")
  with Image.open(io.BytesIO(encoded)) as image:
    np.testing.assert_array_equal(decode_image(encoded, "a"), np.asarray(image))


def test_grey_is_three_times_itself():
  grey = np.array([[0, 100], [200, 255]], np.uint8)
  found = decode_image(encode(Image.fromarray(grey)), "a")
  np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=-1))


def test_black_and_white():
  found = decode_image(encode(Image.fromarray(np.array([[True, False]]))), "a")
  np.testing.assert_array_equal(found, [[[255] * 3, [0] * 3]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_what_fills_twelve_or_eight_of_sixteen_bits_is_not_black(kind):
  deep = np.array([[0, 2_048], [1_000, 4_095]], np.uint16)
  found = decode_image(encode(Image.fromarray(deep), kind), "a")
  np.testing.assert_array_equal(found[..., 0], [[0, 128], [62, 255]])  # 2,048 / 4,095 * 255 = 127.53; 62.27
  np.testing.assert_array_equal(found[..., 0], found[..., 2])
  shallow = np.array([[0, 7], [99, 255]], np.uint16)
  np.testing.assert_array_equal(decode_image(encode(Image.fromarray(shallow), kind), "a")[..., 1], shallow)
  dark = np.array([[0, 4_096]], np.uint16)  # of more than 12 bits: a dark image of 16
  np.testing.assert_array_equal(decode_image(encode(Image.fromarray(dark), kind), "a")[..., 1], [[0, 16]])
  assert not decode_image(encode(Image.fromarray(np.zeros((2, 2), np.uint16)), kind), "a").any()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind):
  deep = np.array([[0, 257 * 100], [257 * 200 + 1, 65_535]], np.uint16)
  found = decode_image(encode(Image.fromarray(deep), kind), "a")
  np.testing.assert_array_equal(found[..., 0], [[0, 100], [200, 255]])


def test_palette():
  image = Image.new("P", (3, 1))
  image.putpalette([10, 20, 30, 200, 100, 50, 1, 2, 3])
  image.putdata([0, 1, 2])
  np.testing.assert_array_equal(decode_image(encode(image), "a"), [[[10, 20, 30], [200, 100, 50], [1, 2, 3]]])


def test_transparency_lies_over_white():
  pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], np.uint8)
  wanted = [[[200, 0, 0], [255, 255, 255], [244, 204, 204]]]  # 0.2 * 200 + 0.8 * 255 = 244
  np.testing.assert_allclose(decode_image(encode(Image.fromarray(pixels)), "a"), wanted, atol=1)


def test_transparent_palette_entry_is_white():
  image = Image.new("P", (2, 1))
  image.putpalette([10, 20, 30, 200, 100, 50])
  image.putdata([0, 1])
  np.testing.assert_array_equal(decode_image(encode(image, transparency=0), "a"), [[[255, 255, 255], [200, 100, 50]]])


def test_cmyk_becomes_what_it_looks_like():
  pixels = np.array([[[255, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 255]]], np.uint8).repeat(16, 0).repeat(16, 1)
  image = Image.frombytes("CMYK", (48, 16), pixels.tobytes())
  found = decode_image(encode(image, "JPEG", quality=95), "a")
  np.testing.assert_allclose(found[8, [8, 24, 40]], [[0, 255, 255], [255, 255, 255], [0, 0, 0]], atol=6)


@pytest.mark.parametrize(
  ("orientation", "undo"),
  [
    (1, lambda a: a),
    (2, lambda a: a[:, ::-1]),
    (3, lambda a: a[::-1, ::-1]),
    (4, lambda a: a[::-1]),
    (6, lambda a: np.rot90(a, 1)),  # stored turned left, shown turned right
    (8, lambda a: np.rot90(a, -1)),
  ],
)
def test_a_rotated_photograph_comes_upright(orientation, undo):
  stored = Image.fromarray(np.ascontiguousarray(undo(COLOURS)))
  exif = Image.Exif()
  exif[0x0112] = orientation
  np.testing.assert_array_equal(decode_image(encode(stored, exif=exif), "a"), COLOURS)


def test_damage_in_another_exif_tag_is_no_damage_to_the_image():
  exif = Image.Exif()
  exif[0x0112], exif[0x011A] = 3, 300.0
  stored = Image.fromarray(np.ascontiguousarray(COLOURS[::-1, ::-1]))
  encoded = encode(stored, "WEBP", lossless=True, exif=exif)
  damaged = encoded.replace(struct.pack(">HH", 0x011A, 5), struct.pack(">HH", 0x011A, 2))  # a resolution in letters
  assert damaged != encoded
  np.testing.assert_array_equal(decode_image(damaged, "a"), COLOURS)


def test_of_an_animation_the_first_frame():
  first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
  found = decode_image(encode(first, "GIF", save_all=True, append_images=[second]), "a")
  np.testing.assert_array_equal(found, np.broadcast_to([255, 0, 0], (4, 4, 3)))


def chunk(kind: bytes, content: bytes) -> bytes:
  return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("side", [20_000, 9_460])
def test_a_bomb_is_refused_by_its_header(side):
  """A PNG of 67 bytes that claims to be huge: were it decoded, it would be called truncated."""
  assert side**2 > MOST_PIXELS
  header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
  bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with pytest.raises(UserError, match=r"photo\.png: not a readable image \(.*pixels"):
      decode_image(bomb, "photo.png")


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_refused(content):
  with pytest.raises(UserError, match=r"photo\.jpg: not a readable image"):
    decode_image(content, "photo.jpg")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"])
def test_a_truncated_image_is_refused(kind):
  noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
  encoded = encode(noise, kind)
  with pytest.raises(UserError, match="a: not a readable image"):
    decode_image(encoded[: len(encoded) // 2], "a")


def test_avif_is_read():
  found = decode_image(encode(Image.new("RGB", (40, 30), (200, 30, 90)), "AVIF", quality=100), "a.avif")
  assert found.shape == (30, 40, 3)
  np.testing.assert_allclose(found[15, 20], (200, 30, 90), atol=3)


def test_heic_is_read_upright():
  """A phone's photograph that lies on its side: what is 60 wide is 40 wide upright, its left end above."""
  image = Image.new("RGB", (60, 40), (0, 0, 255))
  image.paste((255, 0, 0), (0, 0, 30, 40))
  exif = image.getexif()
  exif[ExifTags.Base.Orientation] = 6
  pytest.importorskip("pillow_heif", reason="the extra `heif` is not installed").register_heif_opener()
  encoded = encode(image, "HEIF", quality=95, exif=exif.tobytes())
  found = decode_image(encoded, "a.heic")
  assert found.shape == (60, 40, 3)
  np.testing.assert_allclose(found[[10, 50], 20], [(255, 0, 0), (0, 0, 255)], atol=12)
  with pytest.raises(UserError, match=r"a\.heic: not a readable image"):
    decode_image(encoded[:-20], "a.heic")


def test_heic_without_the_extra_names_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
  encoded = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
  with pytest.raises(UserError, match=r"^a\.heic: .*it is HEIC, which pip install 'rmam_jax\[heif\]' makes readable"):
    decode_image(encoded, "a.heic")


def test_an_image_of_pillow_s_is_read_as_its_file():
  image = rgb()
  image.getexif()[ExifTags.Base.Orientation] = 6
  np.testing.assert_array_equal(pixels_of(image, "a"), np.rot90(COLOURS, -1))
  assert image.size == (2, 3)  # what was given stays


def test_real_numbers_are_refused():
  with pytest.raises(UserError, match="real numbers of unknown range"):
    decode_image(encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "a")
