"""Training images that are changed at random, and their boxes with them."""

import itertools
import math

import numpy as np
import pytest
from test_images import encode, photograph
from test_training import lines, tiny_config

from configs import common
from rmam_jax.data import augmentation, batches, splits
from rmam_jax.data.augmentation import Augmentation
from rmam_jax.data.record import Record
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import loop

ALL = Augmentation(crop_scale=(0.3, 0.9), crop_aspect=1.5, jitter=0.4, randaugment=2, cutout=0.3)
OPTIONS = {"batch_size": 12, "image_size": 72, "crop_size": 64, "flip": True, "seed": 3}


def opened(data_root, **data):
  config = common.get_config()
  config.data.update({"name": "digits/tiny", "root": str(data_root), **data})
  return splits.open_split(config.data, "train")


def first(split, count, **options):
  return list(itertools.islice(batches.train_batches(split, **OPTIONS | options), count))


def test_a_changed_batch_depends_on_seed_and_step_alone(data_root):
  train = opened(data_root)
  whole, plain = first(train, 6, augmentation=ALL), first(train, 6)
  later = first(train, 2, augmentation=ALL, start_step=4, threads=1)
  for one, other in zip(whole[4:], later, strict=True):
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])
  for one, other in zip(whole, plain, strict=True):
    assert (one["ids"] == other["ids"]).all()
    assert (one["labels"] == other["labels"]).all()
    assert one["image"].shape == (12, 64, 64, 3)
    assert one["image"].dtype == np.uint8
    assert (one["image"] != other["image"]).any(axis=(1, 2, 3)).all()
  shares = [first(train, 1, augmentation=ALL, process_index=index, process_count=3)[0]["image"] for index in range(3)]
  np.testing.assert_array_equal(np.concatenate(shares), whole[0]["image"])


def test_crops_have_the_areas_and_aspects_that_are_asked_for():
  rng = np.random.default_rng(0)
  windows = np.array([Augmentation(crop_scale=(0.2, 0.5), crop_aspect=2.0).draw(rng).window for _ in range(2000)])
  assert windows.min() >= 0
  assert windows.max() <= 1
  height, width = (windows[:, 2:] - windows[:, :2]).T
  np.testing.assert_allclose([(height * width).min(), (height * width).max()], [0.2, 0.5], atol=0.002)
  aspect = np.log(width / height)
  np.testing.assert_allclose([aspect.min(), aspect.max(), aspect.mean()], [-math.log(2), math.log(2), 0], atol=0.05)
  room = 1 - np.stack([height, width], axis=1)
  corner = windows[:, :2] / room  # evenly over all places
  np.testing.assert_allclose(np.histogram(corner, 4, (0, 1))[0] / corner.size, 0.25, atol=0.02)
  whole = Augmentation(crop_scale=(1.0, 1.0), crop_aspect=4.0).draw(rng).window  # no higher or wider than the image
  assert (whole >= 0).all()
  assert (whole <= 1).all()


def marked(box, height=60, width=80):
  """A black image with a white box (top, left, bottom, right), in shares."""
  image = np.zeros((height, width, 3), np.uint8)
  top, left, bottom, right = np.rint(np.array(box) * [height, width, height, width]).astype(int)
  image[top:bottom, left:right] = 255
  return image


@pytest.mark.parametrize("flip", [False, True])
def test_a_box_stays_on_its_object(flip):
  """The white pixels of the changed image against the changed box, whatever the crop."""
  box, rng = np.array([[0.4, 0.5, 0.6, 0.7]]), np.random.default_rng(0)
  image, inside = marked(box[0]), 0
  for _ in range(30):
    change = Augmentation(crop_scale=(0.4, 1.0), crop_aspect=1.5).draw(rng)
    found, boxes = batches._changed(image, box, change, (72, 64, 0, 0, flip))
    white = found[..., 0] > 127
    if not white.any():
      assert (np.clip(boxes, 0, 1)[0, 2:] - np.clip(boxes, 0, 1)[0, :2]).min() < 0.02
      continue
    inside += 1
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    seen = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / 64
    np.testing.assert_allclose(np.clip(boxes[0], 0, 1), seen, atol=1.01 / 64)
  assert inside > 20


def test_boxes_of_a_window_by_hand():
  window, box = np.array([0.2, 0.5, 0.6, 1.0]), np.array([[0.3, 0.6, 0.5, 0.7]])
  np.testing.assert_allclose(augmentation.window_boxes(box, window, False), [[0.25, 0.2, 0.75, 0.4]])
  np.testing.assert_allclose(augmentation.window_boxes(box, window, True), [[0.25, 0.6, 0.75, 0.8]])


def test_a_window_of_whole_pixels_is_cut_out():
  image = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
  found = augmentation.resized_window(image, np.array([0.25, 0.125, 0.75, 0.375]), 20)
  np.testing.assert_array_equal(found, image[10:30, 10:30])


def test_of_a_large_photograph_what_a_window_needs_is_decoded(monkeypatch):
  """Small windows need more of the file, and no view differs from that of all its pixels by more than a shade."""
  half_as_high = augmentation.Change(window=np.array([0, 0, 0.5, 0.25]))
  assert half_as_high.needed(image_size=100, crop_size=64) == (128, 256)
  assert augmentation.Change().needed(image_size=100, crop_size=64) == (100, 100)
  large, none = photograph(2_400, 1_800), np.zeros(3, np.float32)
  record = Record("a", encode(large, "JPEG"), none, none > 0, np.zeros((0, 4)), np.zeros(0))
  train = type("Photographs", (list,), {"name": "photographs"})([record] * 12)
  real, decoded = batches.decode, []

  def noted(*arguments):
    found = real(*arguments)
    decoded.append(found.pixels.shape[0])
    return found

  monkeypatch.setattr(batches, "decode", noted)
  change = Augmentation(crop_scale=(0.01, 0.6))
  found = np.stack([batch["image"] for batch in first(train, 2, augmentation=change)])  # the first has no 900
  assert {225, 450, 900} <= set(decoded)
  monkeypatch.setattr(batches, "decode", lambda encoded, name, needed: real(encoded, name))
  whole = np.stack([batch["image"] for batch in first(train, 2, augmentation=change)])
  differences = abs(found.astype(int) - whole)
  assert differences.mean(axis=(2, 3, 4)).max() < 1.5
  assert differences.max() <= 12


def test_colours_by_hand():
  image = np.array([[[200, 100, 0], [40, 40, 40]]], np.uint8)
  grey = np.array([118, 40])  # 0.299 red + 0.587 green + 0.114 blue
  brightness, contrast, saturation = (
    lambda factor, place=place: augmentation.recoloured(image, ((place, factor),)) for place in range(3)
  )
  np.testing.assert_allclose(brightness(0.5).astype(int), image / 2, atol=1)
  np.testing.assert_allclose(contrast(0.5).astype(int), (image + grey.mean()) / 2, atol=1)
  np.testing.assert_allclose(saturation(0.0).astype(int), np.stack([grey] * 3, axis=-1)[None], atol=1)
  np.testing.assert_array_equal(augmentation.recoloured(image, tuple((place, 1.0) for place in range(3))), image)
  both = augmentation.recoloured(image, ((0, 0.5), (2, 0.0)))
  np.testing.assert_allclose(both.astype(int), np.stack([grey / 2] * 3, axis=-1)[None], atol=1)


def test_colours_are_drawn_evenly_and_in_every_order():
  rng = np.random.default_rng(0)
  drawn = [Augmentation(jitter=0.4).draw(rng).colours for _ in range(600)]
  assert len({tuple(place for place, _ in colours) for colours in drawn}) == 6
  factors = np.array([factor for colours in drawn for _, factor in colours])
  np.testing.assert_allclose([factors.min(), factors.max(), factors.mean()], [0.6, 1.4, 1.0], atol=0.02)


def test_operations_by_hand():
  image = np.array([[[200, 100, 0], [50, 80, 31]]], np.uint8)
  stretched, equal, few_bits, inverted = (
    lambda strength, place=place: augmentation.recoloured(image, ((place, strength),)) for place in range(4, 8)
  )
  np.testing.assert_array_equal(stretched(0.3), [[[255, 255, 0], [0, 0, 255]]])  # each colour to its full range
  np.testing.assert_array_equal(equal(0.3), image)  # two pixels are too few to be spread
  np.testing.assert_array_equal(few_bits(1.0), image // 16 * 16)
  np.testing.assert_array_equal(few_bits(0.5), image // 4 * 4)
  np.testing.assert_array_equal(inverted(0.5), [[[55, 100, 0], [50, 80, 31]]])
  np.testing.assert_array_equal(inverted(0.0), image)


def test_operations_are_drawn_evenly_and_as_far_as_is_asked_for():
  rng = np.random.default_rng(0)
  drawn = np.array([Augmentation(randaugment=2, magnitude=0.5).draw(rng).colours for _ in range(4000)]).reshape(-1, 2)
  np.testing.assert_allclose(np.bincount(drawn[:, 0].astype(int), minlength=8) / len(drawn), 1 / 8, atol=0.015)
  enhanced = drawn[:, 0] < 4
  assert {*np.round(drawn[enhanced, 1], 6)} == {0.55, 1.45}
  np.testing.assert_allclose((drawn[enhanced, 1] > 1).mean(), 0.5, atol=0.03)
  assert (drawn[~enhanced, 1] == 0.5).all()


def test_a_hidden_square_by_hand():
  image = np.zeros((8, 8, 3), np.uint8)
  image[:, 4:] = 200
  wanted, before = image.copy(), image.copy()
  wanted[2:6, 4:8] = 100
  np.testing.assert_array_equal(augmentation.with_hidden(image, np.array([0.25, 0.5, 0.75, 1.0])), wanted)
  np.testing.assert_array_equal(image, before)
  hidden = np.array([Augmentation(cutout=0.5).draw(np.random.default_rng(seed)).hidden for seed in range(300)])
  sides = hidden[:, 2:] - hidden[:, :2]
  assert (hidden >= 0).all()
  assert (hidden <= 1).all()
  np.testing.assert_allclose(sides.max(), 0.5)
  assert sides.min() < 0.3  # at an edge it is cut off


def test_a_square_hides_what_it_should_on_average():
  rng = np.random.default_rng(0)
  hidden = np.array([Augmentation(cutout=0.5).draw(rng).hidden for _ in range(4000)])
  # Along a side: E = 0.5 where the centre is a quarter from the edges; else 0.25 to 0.5: 0.5 x 0.5 + 0.5 x 0.375.
  share = np.prod(hidden[:, 2:] - hidden[:, :2], axis=1).mean()
  np.testing.assert_allclose(share, 0.4375**2, rtol=0.02)


def test_what_cannot_be_is_refused():
  for fields, message in (
    ({"crop_scale": (0.5,)}, "crop_scale must be"),
    ({"crop_scale": (0.9, 0.5)}, "crop_scale must be"),
    ({"crop_aspect": 0.5}, r"crop_aspect must be at least 1, got 0\.5"),
    ({"randaugment": -1}, r"randaugment must be 0 or more, got -1"),
    ({"magnitude": 1.5}, r"magnitude must be in \[0, 1\], got 1\.5"),
    ({"cutout": 1.5}, r"cutout must be in \[0, 1\], got 1\.5"),
  ):
    with pytest.raises(UserError, match=message):
      Augmentation(**fields).check()


@pytest.mark.slow
def test_a_stage_sees_the_configured_change_and_one_on_stored_maps_none(data_root, tmp_path, monkeypatch):
  changes = {"crop_scale": (0.3, 0.9), "crop_aspect": 1.5, "jitter": 0.4, "randaugment": 2, "cutout": 0.3}
  config = tiny_config(data_root, **{f"data.augmentation.{name}": value for name, value in changes.items()})
  config.stage_one.epochs = config.stage_two.epochs = 1
  config.stage_one.backbone_rate, config.stage_one.mixup = 0.0, 0.3  # mixup works on stored maps
  config.epoch_size, seen, train_batches = 16, [], batches.train_batches

  def watch(split, **options):
    seen.append((options.get("maps") is not None, options.get("augmentation", augmentation.NONE)))
    return train_batches(split, **options)

  monkeypatch.setattr(batches, "train_batches", watch)
  loop.train(config, tmp_path / "run")
  assert seen == [(True, augmentation.NONE), (False, ALL)]
  assert [line["stage"] for line in lines(tmp_path / "run")] == ["stage_one", "stage_two"]


def test_objects_stay_where_their_boxes_are_in_batches(data_root):
  """Proposals that are the objects' own boxes, in scenes: what a window of them shows is what the image has there."""
  train = opened(data_root, proposals="objects", num_proposals=2)
  batch = first(train, 1, augmentation=Augmentation(crop_scale=(0.5, 0.5), crop_aspect=1.0), flip=False)[0]
  plain = first(train, 1, flip=False)[0]
  sides = (batch["proposals"][..., 2:] - batch["proposals"][..., :2]) * math.sqrt(0.5)
  wanted = (plain["proposals"][..., 2:] - plain["proposals"][..., :2]) * 64 / 72
  np.testing.assert_allclose(sides, wanted, atol=1e-5)
  assert np.abs(batch["proposals"] - plain["proposals"]).max() > 0.05
