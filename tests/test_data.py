"""Digit scenes, records and batches: what each split may hold, and an order that depends on (seed, step) alone."""

import itertools

import numpy as np
import pytest
from PIL import Image

from configs import common
from rmam_jax.data import batches, splits, stored
from rmam_jax.data.digits import scenes
from rmam_jax.data.images import decode_image
from rmam_jax.data.record import Index, Record
from rmam_jax.runtime.errors import UserError


def section(data_root, **changes):
  """The `data` section of a configuration."""
  config = common.get_config()
  config.data.update({"name": "digits/tiny", "root": str(data_root), **changes})
  return config.data


def tiny(split, data_root, **changes):
  return splits.open_split(section(data_root, **changes), split)


@pytest.fixture(scope="module")
def train(data_root):
  return tiny("train", data_root)


def test_splits_share_no_digit_sample():
  seen = [{image.tobytes() for image in scenes.samples(False, split)[0]} for split in scenes.SPLITS]
  for one, other in itertools.combinations(seen, 2):
    assert len(one & other) <= 1  # two samples of the 1,797 are the same drawing
  counts = [len(scenes.samples(False, split)[1]) for split in scenes.SPLITS]
  assert sum(counts) == 1797
  assert all(set(scenes.samples(False, split)[1]) == set(range(10)) for split in scenes.SPLITS)


def test_splits_share_no_background():
  columns = [set(range(*scenes.background_columns(split, 640))) for split in scenes.SPLITS]
  assert set.union(*columns) == set(range(640))
  assert sum(map(len, columns)) == 640


@pytest.mark.parametrize("name", scenes.SETTINGS)
def test_scenes_keep_what_their_setting_says(name):
  setting = scenes.SETTINGS[name]
  counts, sizes = set(), set()
  for index in range(150):
    image, classes, boxes = scenes.draw_scene(setting, "train", index)
    assert image.shape == (setting.size, setting.size, 3)
    assert image.dtype == np.uint8
    assert len(classes) == len(boxes) >= 1
    assert boxes.min() >= scenes.MARGIN
    assert boxes.max() <= setting.size - scenes.MARGIN
    for one, other in itertools.combinations(boxes, 2):
      assert (one[2:] <= other[:2]).any() or (other[2:] <= one[:2]).any()  # no overlap
    counts.add(len(classes))
    sizes |= set(boxes[:, 2] - boxes[:, 0])
  assert counts == set(range(setting.objects[0], setting.objects[1] + 1))
  assert (min(sizes), max(sizes)) == setting.object_size


def test_hard_is_harder_than_easy():
  easy, hard = scenes.SETTINGS["easy"], scenes.SETTINGS["hard"]
  assert hard.size**2 > 2 * easy.size**2
  assert hard.object_size < easy.object_size
  assert hard.clutter[1] == 2 * easy.clutter[1]


def test_a_scene_depends_on_setting_split_and_index_alone():
  setting = scenes.SETTINGS["easy"]
  first = scenes.draw_scene(setting, "test", 3)
  scenes.draw_scene(setting, "train", 0)
  for one, other in zip(first, scenes.draw_scene(setting, "test", 3), strict=True):
    np.testing.assert_array_equal(one, other)
  assert (scenes.draw_scene(setting, "test", 4)[0] != first[0]).any()
  assert (scenes.draw_scene(setting, "validation", 3)[0] != first[0]).any()


def test_the_builder_stores_the_scenes(train, data_root):
  assert train.class_names == scenes.CLASSES
  assert len(train) == 160
  assert len(tiny("test", data_root)) == 40
  setting = scenes.SETTINGS["tiny"]
  for position in range(10):
    record = train[position]
    image, classes, boxes = scenes.draw_scene(setting, "train", int(record.id[6:12]))
    np.testing.assert_array_equal(decode_image(record.image, record.id), image)
    np.testing.assert_array_equal(np.flatnonzero(record.labels), np.unique(classes))
    np.testing.assert_array_equal(record.box_classes, classes)
    np.testing.assert_allclose(record.boxes * setting.size, boxes, atol=1e-4)
    assert not record.ignore.any()


def test_prepared_data_is_not_made_again(data_root, monkeypatch):
  monkeypatch.setattr(scenes, "draw_scene", None)
  assert stored.find("digits/tiny", str(data_root)) == data_root / "digits/tiny/1.0.0"


def test_data_is_read_without_tensorflow(data_root):
  import subprocess
  import sys

  code = (
    "import sys\n"
    "from rmam_jax.data import splits as records\n"
    "from configs import common\n"
    "data = common.get_config().data\n"
    f"data.name, data.root = 'digits/tiny', {str(data_root)!r}\n"
    "records.open_split(data, 'train')[0]\n"
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
  record = stored.adapt(example, 4)
  np.testing.assert_array_equal(record.labels, [0, 0, 1, 0])
  np.testing.assert_array_equal(record.ignore, [True, True, False, False])
  assert record.id == "000005.jpg"


class Source:
  """Three classes; the second record has nothing, the third only what is difficult."""

  class_names, origin, notes = ("a", "b", "c"), "here", ()
  index = Index(
    ids=np.array(["0", "1", "2", "3"]),
    labels=np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]], np.float32),
    ignore=np.array([[0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]], bool),
    annotated=np.array([True, False, True, True]),
  )

  def __getitem__(self, i):
    return Record(self.index.ids[i], b"", self.index.labels[i], self.index.ignore[i], np.zeros((0, 4)), np.zeros(0))


@pytest.mark.parametrize(
  ("difficult", "ids", "first", "ignored"),
  [
    ("ignore", ["0", "3"], [1, 0, 0], [False, True, False]),
    ("negative", ["0", "3"], [1, 0, 0], [False] * 3),
    ("positive", ["0", "2", "3"], [1, 1, 0], [False] * 3),
  ],
)
def test_what_difficult_labels_count_as(difficult, ids, first, ignored):
  split = splits.Split("three", Source(), np.arange(4), difficult=difficult)
  assert [split[i].id for i in range(len(split))] == ids
  assert split.dropped == 4 - len(ids)
  np.testing.assert_array_equal(split[0].labels, first)
  np.testing.assert_array_equal(split[0].ignore, ignored)


def test_unknown_policy_for_difficult_labels():
  with pytest.raises(UserError, match=r"difficult must be one of ignore, negative, positive, got 'hard'"):
    splits.Split("three", Source(), np.arange(4), difficult="hard")


def test_held_out_records_are_those_of_the_smallest_hashes():
  # printf 'a' | sha256sum and so on: ca97, 3e23, 2e7d, 18ac for a, b, c, d.
  np.testing.assert_array_equal(splits.held_out(["a", "b", "c", "d"], 2), [False, False, True, True])
  np.testing.assert_array_equal(splits.held_out(["d", "a", "c", "b"], 2), [True, False, True, False])
  with pytest.raises(UserError, match="4 of 4 records cannot be held out"):
    splits.held_out(["a", "b", "c", "d"], 4)


def test_parts_of_a_split_share_nothing_and_make_the_whole(data_root):
  held, rest = tiny("train:held-30", data_root), tiny("train:rest-30", data_root)
  ids = [{split[i].id for i in range(len(split))} for split in (held, rest)]
  assert (len(held), len(rest)) == (30, 130)
  assert not ids[0] & ids[1]


def test_another_number_of_images_than_expected_is_refused(data_root):
  assert len(tiny("train", data_root, expected=(("train", 160),))) == 160
  with pytest.raises(UserError, match=r"train has 160 annotated images where data\.expected has 161"):
    tiny("train:held-30", data_root, expected=(("train", 161),))


def test_labels_are_read_once_and_damaged_notes_of_them_again(data_root, monkeypatch):
  wanted = tiny("validation", data_root)
  monkeypatch.setattr(stored.Stored, "__getitem__", None)
  again = tiny("validation", data_root)  # from the file beside the data
  assert len(again) == len(wanted)
  monkeypatch.undo()
  path = data_root / "digits/tiny/1.0.0/rmam-index-validation.npz"
  path.write_bytes(path.read_bytes()[:100])
  assert len(tiny("validation", data_root)) == len(wanted)


def test_unknown_and_unprepared_data_say_what_to_do(tmp_path):
  with pytest.raises(UserError, match=r"data\.name must be one of digits/easy.*got 'digits/huge'"):
    tiny("train", tmp_path, name="digits/huge")
  with pytest.raises(
    UserError, match=r"voc/2007 is read from VOC2007, .*data\.root=DIR.*rmam-jax prepare voc/2007 --arch"
  ):
    tiny("train", tmp_path, name="voc/2007")


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match=r"cannot write digits/tiny below .*file.*--config\.data\.root"):
    stored.find("digits/tiny", str(tmp_path / "file"))


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
  with pytest.raises(UserError, match="12 is no multiple of the 5 processes"):
    next(batches.train_batches(train, **OPTIONS, process_count=5))


def test_views_are_windows_of_the_resized_image():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (40, 60, 3), np.uint8)
  resized = np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BILINEAR))
  np.testing.assert_array_equal(batches.view(image, 48, 40, 3, 8, False), resized[3:43, 8:48])
  np.testing.assert_array_equal(batches.view(image, 48, 40, 3, 8, True), resized[3:43, 8:48][:, ::-1])


def test_evaluation_sees_each_record_once_and_pads_the_last_batch(data_root):
  split = tiny("test", data_root)
  seen = []
  for images, boxes, batch_records, _ in batches.evaluation_batches(
    split, range(len(split)), batch_size=16, image_size=72, crop_size=64
  ):
    assert images.shape == (16, 64, 64, 3)
    assert boxes is None
    assert images[: len(batch_records)].any(axis=(1, 2, 3)).all()
    assert not images[len(batch_records) :].any()
    whole = decode_image(batch_records[0].image, "first")
    np.testing.assert_array_equal(images[0], whole[4:68, 4:68])
    seen += [record.id for record in batch_records]
  assert seen == [split[index].id for index in range(40)]


def test_processes_share_an_evaluation_s_batches_out(data_root):
  split = tiny("test", data_root)
  options = {"batch_size": 16, "image_size": 72, "crop_size": 64}
  whole = list(batches.evaluation_batches(split, range(17), **options))
  shares = [
    list(batches.evaluation_batches(split, range(17), **options, process_index=index, process_count=4))
    for index in range(4)
  ]
  for place, (images, _, records_, _) in enumerate(whole):  # the last batch holds one record, and three shares none
    np.testing.assert_array_equal(np.concatenate([share[place][0] for share in shares]), images)
    assert all([each.id for each in share[place][2]] == [each.id for each in records_] for share in shares)
  with pytest.raises(UserError, match="batch_size 16 is no multiple of the 5 processes"):
    next(batches.evaluation_batches(split, range(17), **options, process_count=5))


class Broken:
  """A split of which some images cannot be decoded."""

  def __init__(self, split, broken):
    self._split, self._broken = split, broken
    self.name = split.name

  def __len__(self):
    return len(self._split)

  def __getitem__(self, index):
    record = self._split[index]
    return record._replace(image=b"no image") if index in self._broken else record


def test_a_corrupt_image_is_named(train):
  stream = batches.train_batches(
    Broken(train, range(160)), batch_size=4, image_size=72, crop_size=64, flip=False, seed=0
  )
  with pytest.raises(UserError, match=r"digits/tiny train \[\d+\], train_\d+\.png: not a readable image"):
    next(stream)
  with pytest.raises(UserError, match=r"digits/tiny train \[0\], train_\d+\.png: not a readable image"):
    next(batches.evaluation_batches(Broken(train, [0]), range(4), batch_size=4, image_size=72, crop_size=64))


def test_corrupt_images_are_replaced_and_named_on_request(train):
  options = {"batch_size": 16, "image_size": 72, "crop_size": 64, "flip": False, "seed": 0}
  whole = list(itertools.islice(batches.train_batches(train, **options), 3))
  broken = Broken(train, range(0, 160, 4))
  found = list(itertools.islice(batches.train_batches(broken, corrupt="skip", **options), 3))
  again = list(itertools.islice(batches.train_batches(broken, corrupt="skip", start_step=1, threads=1, **options), 2))
  for one, other in zip(found[1:], again, strict=True):
    np.testing.assert_array_equal(one["image"], other["image"])
    np.testing.assert_array_equal(one["skipped"], other["skipped"])
  for batch, sound in zip(found, whole, strict=True):
    same = (batch["image"] == sound["image"]).all(axis=(1, 2, 3))
    assert 0 < (~same).sum() <= len(batch["skipped"])
    assert all("digits/tiny train [" in reason for reason in batch["skipped"])
  assert all("skipped" not in batch for batch in whole)


def test_nothing_but_corrupt_images_is_an_error_all_the_same(train):
  stream = batches.train_batches(
    Broken(train, range(160)), batch_size=4, image_size=72, crop_size=64, flip=False, seed=0, corrupt="skip"
  )
  with pytest.raises(UserError, match="not a readable image"):
    next(stream)


@pytest.mark.slow
def test_batches_do_not_depend_on_the_workers():
  """In a process of its own: workers are spawned and import the main module again."""
  import subprocess
  import sys

  subprocess.run([sys.executable, "-m", "tests.worker_batches"], check=True)


def batch_of(images, labels):
  return {"image": np.asarray(images), "labels": np.asarray(labels)}


def test_bad_batches_are_refused():
  images, labels = np.zeros((2, 4, 4, 3), np.float32), np.eye(2)
  batches.check_batch(batch_of(images, labels))
  with pytest.raises(UserError, match=r"0 or 1, got 0\.5 for example 1, class 0"):
    batches.check_batch(batch_of(images, [[1, 0], [0.5, 1]]))
  with pytest.raises(UserError, match=r"labels must have shape \[2, L\], got \[3, 2\]"):
    batches.check_batch(batch_of(images, np.zeros((3, 2))))
  with pytest.raises(UserError, match=r"\[B, height, width, 3\], got \[2, 4, 4\]"):
    batches.check_batch(batch_of(images[..., 0], labels))
  images[1, 2, 3, 0] = np.nan
  with pytest.raises(UserError, match="not finite, first in example 1"):
    batches.check_batch(batch_of(images, labels))


def test_source_scenes_share_no_sample_and_no_background_with_scenes_of_digits():
  digit_samples = {image.tobytes() for split in scenes.SPLITS for image in scenes.samples(False, split)[0]}
  letter_samples = [{image.tobytes() for image in scenes.samples(True, split)[0]} for split in scenes.SPLITS]
  assert not digit_samples & set.union(*letter_samples)
  for photograph in scenes.photographs(True):
    assert not any(photograph.shape == other.shape for other in scenes.photographs(False))
  assert scenes.SETTINGS["source_easy"].classes == scenes.LETTER_CLASSES
  # Nor where the objects lie: the scenes of one index are drawn from different numbers.
  pairs = [
    [scenes.draw_scene(scenes.SETTINGS[name], "train", index)[2] for name in ("easy", "source_easy")]
    for index in range(20)
  ]
  assert not any(np.array_equal(*pair) for pair in pairs)
