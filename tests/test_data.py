"""Digit scenes, records and batches: what each split may hold, and an order that depends on (seed, step) alone."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from rmam_jax.data import batches, digits, records


@pytest.fixture(scope="module")
def train(data_root):
  return records.Split("digits/tiny", "train", str(data_root))


def test_splits_share_no_digit_sample():
  seen = [{image.tobytes() for image in digits.digit_samples(split)[0]} for split in digits.SPLITS]
  for one, other in itertools.combinations(seen, 2):
    assert len(one & other) <= 1  # two samples of the 1,797 are the same drawing
  counts = [len(digits.digit_samples(split)[1]) for split in digits.SPLITS]
  assert sum(counts) == 1797
  assert all(set(digits.digit_samples(split)[1]) == set(range(10)) for split in digits.SPLITS)


def test_splits_share_no_background():
  columns = [set(range(*digits.background_columns(split, 640))) for split in digits.SPLITS]
  assert set.union(*columns) == set(range(640))
  assert sum(map(len, columns)) == 640


@pytest.mark.parametrize("name", digits.SETTINGS)
def test_scenes_keep_what_their_setting_says(name):
  setting = digits.SETTINGS[name]
  counts, sizes = set(), set()
  for index in range(150):
    image, classes, boxes = digits.draw_scene(setting, "train", index)
    assert image.shape == (setting.size, setting.size, 3)
    assert image.dtype == np.uint8
    assert len(classes) == len(boxes) >= 1
    assert boxes.min() >= digits.MARGIN
    assert boxes.max() <= setting.size - digits.MARGIN
    for one, other in itertools.combinations(boxes, 2):
      assert (one[2:] <= other[:2]).any() or (other[2:] <= one[:2]).any()  # no overlap
    counts.add(len(classes))
    sizes |= set(boxes[:, 2] - boxes[:, 0])
  assert counts == set(range(setting.objects[0], setting.objects[1] + 1))
  assert (min(sizes), max(sizes)) == setting.object_size


def test_hard_is_harder_than_easy():
  easy, hard = digits.SETTINGS["easy"], digits.SETTINGS["hard"]
  assert hard.size**2 > 2 * easy.size**2
  assert hard.object_size < easy.object_size
  assert hard.clutter[1] == 2 * easy.clutter[1]


def test_a_scene_depends_on_setting_split_and_index_alone():
  setting = digits.SETTINGS["easy"]
  first = digits.draw_scene(setting, "test", 3)
  digits.draw_scene(setting, "train", 0)
  for one, other in zip(first, digits.draw_scene(setting, "test", 3), strict=True):
    np.testing.assert_array_equal(one, other)
  assert (digits.draw_scene(setting, "test", 4)[0] != first[0]).any()
  assert (digits.draw_scene(setting, "validation", 3)[0] != first[0]).any()


def test_the_builder_stores_the_scenes(train, data_root):
  assert train.class_names == digits.CLASSES
  assert len(train) == 160
  assert len(records.Split("digits/tiny", "test", str(data_root))) == 40
  setting = digits.SETTINGS["tiny"]
  for position in range(10):
    record = train[position]
    image, classes, boxes = digits.draw_scene(setting, "train", int(record.id[6:12]))
    np.testing.assert_array_equal(batches.decode_image(record.image, record.id), image)
    np.testing.assert_array_equal(np.flatnonzero(record.labels), np.unique(classes))
    np.testing.assert_array_equal(record.box_classes, classes)
    np.testing.assert_allclose(record.boxes * setting.size, boxes, atol=1e-4)
    assert not record.ignore.any()


def test_prepared_data_is_not_made_again(data_root, monkeypatch):
  monkeypatch.setattr(digits, "draw_scene", None)
  assert records.prepare("digits/tiny", str(data_root)) == data_root / "digits/tiny/1.0.0"


def test_data_is_read_without_tensorflow(data_root):
  import subprocess
  import sys

  code = (
    "import sys\n"
    "from rmam_jax.data import records\n"
    f"records.Split('digits/tiny', 'train', {str(data_root)!r})[0]\n"
    "assert 'tensorflow' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_difficult_labels_are_ignored_unless_present_otherwise():
  example = {
    "image": b"",
    "image/filename": b"000005.jpg",
    "labels": [2, 0, 1],
    "labels_no_difficult": [2],
    "objects": {"bbox": [[0, 0, 1, 1]], "label": [2]},
  }
  record = records.adapt_voc(example, 4)
  np.testing.assert_array_equal(record.labels, [0, 0, 1, 0])
  np.testing.assert_array_equal(record.ignore, [True, True, False, False])
  assert record.id == "000005.jpg"


def test_records_without_a_positive_label_are_dropped_and_counted(data_root, monkeypatch):
  def adapt(example, num_classes):
    record = records.adapt_digits(example, num_classes)
    return record._replace(labels=record.labels * (np.arange(num_classes) < 5))

  data_set = records.DATA_SETS["digits/tiny"]
  monkeypatch.setitem(records.DATA_SETS, "digits/tiny", data_set._replace(adapter=adapt))
  split = records.Split("digits/tiny", "train", str(data_root))
  assert split.dropped > 0
  assert len(split) + split.dropped == 160
  assert all(split[index].labels.any() for index in range(len(split)))


def test_unknown_and_unprepared_data_say_what_to_do(tmp_path):
  with pytest.raises(ValueError, match=r"data\.name must be one of digits/easy.*got 'digits/huge'"):
    records.prepare("digits/huge", str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r"voc/2007 is not prepared: .*tfds build voc"):
    records.prepare("voc/2007", str(tmp_path))


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(OSError, match=r"cannot write digits/tiny below .*file.*--config\.data\.root"):
    records.prepare("digits/tiny", str(tmp_path / "file"))


OPTIONS = {"batch_size": 12, "image_size": 72, "crop_size": 64, "flip": True, "seed": 3}


def take(stream, count):
  return [batch for batch, _ in zip(stream, range(count), strict=False)]


def assert_same(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("threads", [1, 4])
def test_a_batch_depends_on_seed_and_step_alone(train, threads):
  whole = take(batches.train_batches(train, **OPTIONS), 20)  # past the first epoch's end
  later = take(batches.train_batches(train, **OPTIONS, start_step=11, threads=threads), 9)
  for one, other in zip(whole[11:], later, strict=True):
    assert_same(one, other)
  assert (whole[0]["image"] != take(batches.train_batches(train, **OPTIONS | {"seed": 4}), 1)[0]["image"]).any()


def test_an_epoch_holds_every_record_once(train):
  options = OPTIONS | {"batch_size": 16, "flip": False, "image_size": 72, "crop_size": 72}
  epochs = take(batches.train_batches(train, **options), 20)
  for epoch in (epochs[:10], epochs[10:]):
    images = np.concatenate([batch["image"] for batch in epoch])
    assert len({image.tobytes() for image in images}) == len(train)
  assert (epochs[0]["image"] != epochs[10]["image"]).any()  # shuffled anew


def test_every_example_has_a_crop_and_a_flip_of_its_own(train, monkeypatch):
  seen, view = [], batches.view

  def watch(image, image_size, crop_size, top, left, flip):
    seen.append((int(top), int(left), bool(flip)))
    return view(image, image_size, crop_size, top, left, flip)

  monkeypatch.setattr(batches, "view", watch)
  take(batches.train_batches(train, **OPTIONS), 25)
  drawn = seen[:300]
  assert {top for top, _, _ in drawn} == {left for _, left, _ in drawn} == set(range(9))  # 72 - 64 and the ends
  assert len({(top, left) for top, left, _ in drawn}) > 60  # of 81
  assert 100 < sum(flip for _, _, flip in drawn) < 200


def test_processes_share_the_same_global_batch(train):
  whole = take(batches.train_batches(train, **OPTIONS), 3)
  shares = [
    take(batches.train_batches(train, **OPTIONS, process_index=index, process_count=3), 3) for index in range(3)
  ]
  for batch, *parts in zip(whole, *shares, strict=True):
    assert_same(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})
  with pytest.raises(ValueError, match="12 is no multiple of the 5 processes"):
    next(batches.train_batches(train, **OPTIONS, process_count=5))


def test_views_are_windows_of_the_resized_image():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (40, 60, 3), np.uint8)
  resized = np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BILINEAR))
  np.testing.assert_array_equal(batches.view(image, 48, 40, 3, 8, False), resized[3:43, 8:48])
  np.testing.assert_array_equal(batches.view(image, 48, 40, 3, 8, True), resized[3:43, 8:48][:, ::-1])


def test_evaluation_sees_each_record_once_and_masks_the_padding(data_root):
  split = records.Split("digits/tiny", "test", str(data_root))
  seen = []
  for batch, batch_records in batches.evaluation_batches(split, batch_size=16, image_size=72, crop_size=64):
    assert batch["image"].shape == (16, 64, 64, 3)
    np.testing.assert_array_equal(batch["mask"], np.arange(16) < len(batch_records))
    assert not batch["image"][len(batch_records) :].any()
    whole = batches.decode_image(batch_records[0].image, "first")
    np.testing.assert_array_equal(batch["image"][0], whole[4:68, 4:68])
    seen += [record.id for record in batch_records]
  assert seen == [split[index].id for index in range(40)]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_colour_modes_become_rgb(mode):
  encoded = io.BytesIO()
  Image.new("RGB", (6, 4), (250, 10, 20)).convert(mode).save(encoded, "TIFF")
  assert batches.decode_image(encoded.getvalue(), mode).shape == (4, 6, 3)


def test_an_unreadable_image_is_named():
  with pytest.raises(ValueError, match=r"digits/tiny train, 7\.png: not a readable image"):
    batches.decode_image(b"no image", "digits/tiny train, 7.png")


def batch_of(images, labels):
  return {"image": np.asarray(images), "labels": np.asarray(labels)}


def test_bad_batches_are_refused():
  images, labels = np.zeros((2, 4, 4, 3), np.float32), np.eye(2)
  batches.check_batch(batch_of(images, labels))
  with pytest.raises(ValueError, match=r"0 or 1, got 0\.5 for example 1, class 0"):
    batches.check_batch(batch_of(images, [[1, 0], [0.5, 1]]))
  with pytest.raises(ValueError, match=r"labels must have shape \[2, L\], got \[3, 2\]"):
    batches.check_batch(batch_of(images, np.zeros((3, 2))))
  with pytest.raises(ValueError, match=r"\[B, height, width, 3\], got \[2, 4, 4\]"):
    batches.check_batch(batch_of(images[..., 0], labels))
  images[1, 2, 3, 0] = np.nan
  with pytest.raises(ValueError, match="not finite, first in example 1"):
    batches.check_batch(batch_of(images, labels))
