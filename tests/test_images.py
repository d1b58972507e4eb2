"""Images of every kind, made here, so that the right pixels are known."""

import io
import pathlib
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from rmam_jax.data import batches
from rmam_jax.data.images import MOST_PIXELS, decode, decode_image, pixels_of
from rmam_jax.runtime.errors import UserError

DOCS = pathlib.Path(__file__).parents[1] / "docs"
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


def test_a_tiff_whose_header_promises_rows_that_it_does_not_hold_is_refused():
  """Pillow makes 60,000 rows, most of them black, of a few bytes."""
  file = io.BytesIO()
  Image.effect_noise((24, 16), 90).convert("RGB").save(file, "TIFF")
  content = file.getvalue()
  rows = struct.pack("<HHII", 257, 4, 1, 16)  # the tag ImageLength
  assert content.count(rows) == 1
  assert decode_image(content, "a.tif").shape == (16, 24, 3)
  with pytest.raises(UserError, match=r"a\.tif: not a readable image \(24 x 60000 pixels, of which it holds 24 x 16\)"):
    decode_image(content.replace(rows, struct.pack("<HHII", 257, 4, 1, 60_000)), "a.tif")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"])
def test_a_truncated_image_is_refused(kind):
  noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
  encoded = encode(noise, kind)
  with pytest.raises(UserError, match="a: not a readable image"):
    decode_image(encoded[: len(encoded) // 2], "a")


def photograph(width, height):
  """A real one, side by side and one below the other: with all its detail, whatever the size."""
  picture = Image.new("RGB", (width, height))
  with Image.open(DOCS / "astronaut.jpg") as one:
    for corner in np.ndindex(-(-width // one.width), -(-height // one.height)):
      picture.paste(one, (corner[0] * one.width, corner[1] * one.height))
  return picture


@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("RGB", {}),
    ("RGB", {"progressive": True, "subsampling": 0, "quality": 95}),
    ("L", {}),
    ("CMYK", {}),
  ],
)
def test_a_large_photograph_is_decoded_in_part_and_hardly_differs(kind, options):
  """Against all of its 12 million pixels, at the sizes that the networks see: of 255, less than one in the mean."""
  encoded = encode(photograph(4_000, 3_000).convert(kind), "JPEG", **options)
  whole = decode_image(encoded, "a")
  for side, decoded in ((144, (375, 500, 3)), (320, (750, 1_000, 3)), (512, (1_500, 2_000, 3))):
    part = decode(encoded, "a", (side, side))
    assert (part.pixels.shape, part.shape) == (decoded, (3_000, 4_000))
    found, wanted = (batches.view(each, side, side, 0, 0, False).astype(int) for each in (part.pixels, whole))
    assert abs(found - wanted).mean() < 1
    assert abs(found - wanted).max() <= 8


@pytest.mark.parametrize(
  ("size", "needed", "part"),
  [
    ((500, 375), (144, 144), 1),  # VOC's and COCO's sizes: whole at every size that a configuration has
    ((640, 480), (144, 144), 1),
    ((640, 480), (120, 120), 2),  # (height, width) twice as many as needed
    ((640, 480), (121, 120), 1),
    ((640, 480), (60, 80), 4),
    ((640, 480), (80, 60), 2),
    ((642, 480), (60, 60), 2),  # 642 / 4 leaves a rest, by which the frame would shift
    ((641, 480), (60, 60), 1),
    ((1_600, 800), (50, 50), 8),
    ((1_600, 800), (1, 1), 8),
    ((1_600, 800), (np.inf, np.inf), 1),
  ],
)
def test_how_much_of_a_jpeg_is_decoded(size, needed, part):
  image = photograph(*size)
  found = decode(encode(image, "JPEG"), "a", needed)
  assert found.pixels.shape == (size[1] // part, size[0] // part, 3)
  assert found.shape == size[::-1]
  if part == 1:
    np.testing.assert_array_equal(found.pixels, decode_image(encode(image, "JPEG"), "a"))
  np.testing.assert_array_equal(decode(encode(image), "a", needed).pixels, np.asarray(image))  # PNG has no such way


def test_on_its_side_a_photograph_is_decoded_by_what_is_needed_upright():
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  encoded = encode(photograph(800, 400), "JPEG", exif=exif)
  assert decode_image(encoded, "a").shape == (800, 400, 3)
  found = decode(encoded, "a", (200, 50))  # of 800 upright a half is 400, twice 200
  assert (found.pixels.shape, found.shape) == ((400, 200, 3), (800, 400))
  assert decode(encoded, "a", (50, 200)).pixels.shape == (800, 400, 3)


def test_several_photographs_in_one_file():
  """As phones and stereo cameras write them: the first is read, in part if it is large."""
  image = photograph(800, 400)
  found = decode(encode(image, "MPO", save_all=True, append_images=[image]), "a", (100, 100))
  assert (found.pixels.shape, found.shape) == ((200, 400, 3), (400, 800))


def test_half_a_photograph_is_refused_in_part_as_well():
  encoded = encode(photograph(1_600, 1_600), "JPEG")
  with pytest.raises(UserError, match="a: not a readable image"):
    decode(encoded[: len(encoded) // 2], "a", (100, 100))


def deep_png(values, colours):
  """A PNG of 16 bits, big end first, row by row without a filter: [height, width, channels]."""
  height, width = values.shape[:2]
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
  header = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
  content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + content


# Of 4,095: 2,048 is 127.53 of 255, 1,000 is 62.27, 100 is 6.23, 9 is 0.56.
TWELVE = np.array([[[4_095, 0, 2_048], [1_000, 100, 9]]])
AS_SEEN = [[[255, 0, 128], [62, 6, 1]]]


def with_opacity(values, opacity):
  return np.concatenate([values, np.broadcast_to(opacity, (*values.shape[:2], 1))], axis=-1)


@pytest.mark.parametrize(
  ("values", "colours", "wanted"),
  [
    (TWELVE, 2, AS_SEEN),
    (with_opacity(TWELVE, 4_095), 6, AS_SEEN),  # 12 bits of opacity too
    (with_opacity(TWELVE, 65_535), 6, AS_SEEN),  # or 16 of it
    (with_opacity(TWELVE, 0), 6, [[[255] * 3] * 2]),  # nothing but white below
    (with_opacity(TWELVE[..., :1], 65_535), 4, [[[255] * 3, [62] * 3]]),  # grey
    (with_opacity(TWELVE[..., :1], [[[4_095], [2_048]]]), 4, [[[255] * 3, [158] * 3]]),  # 62 at 128 / 255 over white
    (np.array([[[255, 7, 0]]]), 2, [[[255, 7, 0]]]),  # 8 bits
    (
      np.array([[[4_096, 4_095, 0]]]),
      2,
      [[[16, 15, 0]]],
    ),  # more than 12: a dark image of 16, of which the upper 8 count
    (np.array([[[65_535, 25_700, 255]]]), 2, [[[255, 100, 0]]]),
    (with_opacity(np.array([[[65_535, 25_700, 0]]]), 4_095), 6, [[[255, 100, 0]]]),
    (np.zeros((1, 2, 3)), 2, np.zeros((1, 2, 3))),
  ],
)
def test_colours_of_twelve_bits_are_not_black(values, colours, wanted):
  np.testing.assert_array_equal(decode_image(deep_png(values, colours), "a"), wanted)


def tiff(values, order, planes=1):
  """A TIFF of 16 bits without compression, [height, width, 3], in either order of bytes."""
  height, width, _ = values.shape
  content = (values if planes == 1 else values.transpose(2, 0, 1)).astype(f"{order}u2").tobytes()
  strips, part = (1, len(content)) if planes == 1 else (3, len(content) // 3)
  tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
  tags += [(273, 4, strips, 14 if strips == 3 else 38), (277, 3, 1, 3), (278, 3, 1, height)]
  tags += [(279, 4, strips, 26 if strips == 3 else part), (284, 3, 1, planes)]
  head = struct.pack(f"{order}3H", 16, 16, 16)
  head += struct.pack(f"{order}6I", *(38 + place * part for place in range(3)), *[part] * 3)
  listed = struct.pack(f"{order}H", len(tags))
  for number, kind, count, value in tags:
    short = kind == 3 and count == 1
    listed += struct.pack(
      f"{order}HHI" + ("HH" if short else "I"), number, kind, count, *((value, 0) if short else (value,))
    )
  mark = b"II*\0" if order == "<" else b"MM\0*"
  return mark + struct.pack(f"{order}I", 38 + len(content)) + head + content + listed + bytes(4)


@pytest.mark.parametrize("order", "<>")
def test_so_are_those_of_tiff(order):
  np.testing.assert_array_equal(decode_image(tiff(TWELVE, order), "a"), AS_SEEN)
  np.testing.assert_array_equal(decode_image(tiff(TWELVE * 16, order), "a"), TWELVE >> 4)
  with pytest.raises(UserError, match="a plane for each colour, of 16 bits"):
    decode_image(tiff(TWELVE, order, planes=2), "a")


def test_avif_is_read():
  found = decode_image(encode(Image.new("RGB", (40, 30), (200, 30, 90)), "AVIF", quality=100), "a.avif")
  assert found.shape == (30, 40, 3)
  np.testing.assert_allclose(found[15, 20], (200, 30, 90), atol=3)


def test_a_damaged_avif_is_refused():
  encoded = bytearray(encode(Image.effect_noise((300, 200), 80).convert("RGB"), "AVIF"))
  reasons = []
  for place in range(0, len(encoded), 64):
    damaged = encoded.copy()
    damaged[place : place + 64] = bytes(len(damaged[place : place + 64]))
    try:
      decode_image(bytes(damaged), "a.avif")
    except UserError as error:
      reasons.append(str(error))
  assert len(reasons) > 5
  assert all(reason.startswith("a.avif: not a readable image") for reason in reasons)


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
