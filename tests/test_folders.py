"""VOC and COCO as they lie on disk: the records that TFDS gives, and every folder that is no such thing."""

import json
import pathlib
import shutil
import tarfile
import zipfile

import archives
import numpy as np
import pytest
from test_prepare import (
  prepared,  # noqa: F401
  thin,
)

from configs import coco, voc
from rmam_jax.data import annotations, folders, splits
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import pipeline


def extract_voc(folder, year="2007"):
  folder.mkdir(exist_ok=True)
  archives.write_voc(folder)
  for archive in folder.glob("VOC*.tar"):
    with tarfile.open(archive) as tar:
      tar.extractall(folder, filter="data")
    archive.unlink()
  if year != "2007":
    (folder / "VOCdevkit" / "VOC2007").rename(folder / "VOCdevkit" / f"VOC{year}")
  return folder / "VOCdevkit"


def extract_coco(folder, year="2014"):
  folder.mkdir(exist_ok=True)
  archives.write_coco(folder)
  for archive in folder.glob("*.zip"):
    with zipfile.ZipFile(archive) as content:
      content.extractall(folder)
    archive.unlink()
  if year != "2014":
    for path in [*folder.iterdir(), *(folder / "annotations").iterdir()]:
      path.rename(path.with_name(path.name.replace("2014", year)))
  return folder


@pytest.fixture
def devkit(tmp_path):
  return extract_voc(tmp_path)


def open_voc(root, split="train", name="voc/2007", **data):
  return splits.open_split(thin(voc.get_config(), root, **{"expected": (), "name": name, **data}).data, split)


def records(split):
  return {split[i].id: split[i] for i in range(len(split))}


def assert_same(one, other):
  assert one.class_names == other.class_names
  assert one.dropped == other.dropped
  one, other = records(one), records(other)
  assert sorted(one) == sorted(other)
  for name, mine in one.items():
    assert mine.image == other[name].image
    for field in ("labels", "ignore", "box_classes"):
      np.testing.assert_array_equal(getattr(mine, field), getattr(other[name], field))
    np.testing.assert_allclose(mine.boxes, other[name].boxes, atol=1e-7)
    assert mine.boxes.dtype == other[name].boxes.dtype
    assert mine.labels.dtype == other[name].labels.dtype


@pytest.mark.oracle
@pytest.mark.parametrize("difficult", ["ignore", "negative", "positive"])
@pytest.mark.parametrize("split", ["train", "validation", "test", "train+validation", "train:held-9", "train:rest-9"])
def test_voc_s_folder_gives_the_records_of_tfds(prepared, devkit, split, difficult):  # noqa: F811
  one, other = (open_voc(root, split, difficult=difficult) for root in (prepared[0], devkit))
  assert_same(one, other)
  assert one.name == other.name
  assert "prepared by TFDS" in one.origin
  assert other.origin == str(devkit / "VOC2007")


@pytest.mark.oracle
@pytest.mark.parametrize("split", ["train", "validation", "train+validation", "train:held-9", "train:rest-9"])
def test_coco_s_folder_gives_the_records_of_tfds(prepared, tmp_path, split):  # noqa: F811
  extract_coco(tmp_path)
  one, other = (
    splits.open_split(thin(coco.get_config(), root, expected=()).data, split) for root in (prepared[0], tmp_path)
  )
  assert_same(one, other)


@pytest.mark.oracle
def test_prepared_data_are_read_where_both_are_there(prepared, tmp_path):  # noqa: F811
  root = extract_voc(tmp_path)
  shutil.copytree(prepared[0] / "voc", root / "voc")
  assert open_voc(root).origin == f"{root / 'voc/2007/5.0.0'}, prepared by TFDS"


def test_records_say_what_the_folder_holds(devkit):
  found = open_voc(devkit, "train+validation", expected=(("train+validation", 50),))
  assert found.class_names == archives.VOC
  assert [found[i].id for i in range(len(found))] == [f"{n:06d}.jpg" for n in range(1, 51) if n != 8]
  for number, record in ((int(record.id[:6]), record) for record in records(found).values()):
    assert record.image == archives.jpeg(number)
    objects = archives.voc_objects(number)
    sure = {name for name, difficult in objects if not difficult}
    assert {archives.VOC[c] for c in np.flatnonzero(record.labels)} == sure
    assert {archives.VOC[c] for c in np.flatnonzero(record.ignore)} == {name for name, _ in objects} - sure
    assert [archives.VOC[c] for c in record.box_classes] == [name for name, _ in objects]
    np.testing.assert_allclose(record.boxes[0], [9 / 90, 12 / 120, 45 / 90, 60 / 120], atol=1e-6)


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_the_root_may_be_the_devkit_its_parent_or_the_year(devkit, place):
  assert open_voc(devkit.parent / place).origin == str(devkit / "VOC2007")


def test_two_years_are_read_as_one(devkit, tmp_path):
  other = extract_voc(tmp_path / "other", "2012") / "VOC2012"
  for path in [*other.glob("Annotations/*"), *other.glob("JPEGImages/*")]:
    path.rename(path.with_name(f"2012_{path.name}"))
  for path in other.glob("ImageSets/Main/*"):
    path.write_text("".join(f"2012_{line}\n" for line in path.read_text().split()))
  (other / "ImageSets/Main/test.txt").unlink()  # as it is published
  shutil.move(other, devkit / "VOC2012")
  counts = {
    name: [len(open_voc(devkit, split, name)) for split in ("train", "validation")]
    for name in ("voc/2007", "voc/2012", "voc/2007+2012")
  }
  assert counts == {"voc/2007": [29, 20], "voc/2012": [29, 20], "voc/2007+2012": [58, 40]}
  both = open_voc(devkit / "VOC2012", "train+validation", "voc/2007+2012")
  assert len(both) == 98
  assert both.origin == f"{devkit / 'VOC2007'} and {devkit / 'VOC2012'}"
  for i in (0, 30, 60, 97):
    number = int(both[i].id[-10:-4])
    assert both[i].image == archives.jpeg(number)
    assert [archives.VOC[c] for c in both[i].box_classes] == [name for name, _ in archives.voc_objects(number)]
  assert len(open_voc(devkit, "test", "voc/2007+2012")) == 20
  with pytest.raises(UserError, match=r"test\.txt is missing, .*no test split of voc/2012: its labels were never publ"):
    open_voc(devkit, "test", "voc/2012")


def test_coco_2017_and_images_in_a_folder_of_their_own(tmp_path):
  root = extract_coco(tmp_path / "coco", "2017")
  for path in root.rglob("*.json"):
    path.write_text(path.read_text().replace("2014", "2017"))
  for path in root.rglob("*.jpg"):
    path.rename(path.with_name(path.name.replace("2014", "2017")))
  data = thin(coco.get_config(), tmp_path, expected=(("train", 24),), name="coco/2017").data
  assert len(splits.open_split(data, "train:rest-6")) == 18
  (root / "images").mkdir()
  (root / "val2017").rename(root / "images" / "val2017")
  found = splits.open_split(data, "validation")
  assert len(found) == 13
  assert found[0].path == str(root / "images/val2017/COCO_val2017_000000000031.jpg")
  with pytest.raises(UserError, match=r"instances_test2017\.json is missing"):
    splits.open_split(data, "test")


def test_labels_are_read_once_and_anew_where_an_annotation_has_changed(devkit, monkeypatch):
  wanted = records(open_voc(devkit))
  monkeypatch.setattr(annotations, "read_voc", None)
  folders._remembered.clear()  # as another process begins
  again = records(open_voc(devkit))
  for name, record in wanted.items():
    np.testing.assert_array_equal(record.labels, again[name].labels)
    np.testing.assert_array_equal(record.boxes, again[name].boxes)
  monkeypatch.undo()
  path = devkit / "VOC2007/Annotations/000002.xml"
  path.write_text(path.read_text().replace("bird", "sheep"))
  changed = records(open_voc(devkit))["000002.jpg"]
  assert {archives.VOC[c] for c in np.flatnonzero(changed.labels)} == {"sheep", "cat"}


def test_a_damaged_or_forbidden_cache_costs_time_alone(devkit, monkeypatch, tmp_path):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert len(open_voc(devkit)) == 29
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folders._remembered.clear()
  assert len(open_voc(devkit)) == 29
  (kept,) = (tmp_path / "cache").rglob("table-*.npz")
  kept.write_bytes(kept.read_bytes()[:99])
  folders._remembered.clear()
  assert len(open_voc(devkit)) == 29


@pytest.mark.slow
def test_trains_and_evaluates_from_the_folder(devkit, tmp_path, capsys):
  config = thin(voc.get_config(), devkit, expected=(("train", 30), ("test", 20)), workers=0)
  results = pipeline.train_and_evaluate(config, tmp_path / "run")
  assert results["test_images"] == 20
  assert "coverage" in results  # where the boxes came along
  assert f"voc/2007 test: 20 images, from {devkit / 'VOC2007'}" in capsys.readouterr().out


def refused(root, match, split="train", name="voc/2007", **data):
  folders._remembered.clear()
  with pytest.raises(UserError, match=match) as error:
    open_voc(root, split, name, **data)
  assert "\n" not in str(error.value)


def test_what_is_no_voc_is_refused_in_a_line(devkit, tmp_path):
  (tmp_path / "nothing").mkdir()
  refused(tmp_path / "nothing", r"voc/2007 is read from VOC2007, .*--config\.data\.root=DIR; .*nothing does not")
  refused(devkit, r"voc/2007\+2012 is read from VOC2007 and VOC2012", name="voc/2007+2012")
  refused(devkit, r"voc/2007 has no split 'train\[:10\]': it has train, validation, test", "train[:10]")
  refused(devkit, r"voc/2007 train has 30 annotated images where data\.expected has 31", expected=(("train", 31),))
  year = devkit / "VOC2007"
  (year / "ImageSets/Main/val.txt").unlink()
  refused(
    devkit, r"val\.txt is missing, so there is no validation split of voc/2007: extract its archive", "validation"
  )
  annotation = year / "Annotations/000003.xml"
  whole = annotation.read_text()
  for content, why in ((whole[:50], "no XML that can be read"), ("", "an empty file")):
    annotation.write_text(content)
    refused(devkit, rf"000003\.xml: {why}")
  annotation.write_text(whole.replace("<name>boat", "<name>ship"))
  refused(devkit, r"000003\.xml: 'ship' is no class of this data set")
  annotation.write_text(whole)
  (year / "JPEGImages/000005.jpg").unlink()
  refused(devkit, r"JPEGImages lacks 1 of the 30 images that are listed, the first 000005\.jpg")
  annotation.unlink()
  refused(devkit, r"Annotations lacks 1 of the 30 annotations that are listed, the first 000003\.xml")
  shutil.rmtree(year / "JPEGImages")
  refused(devkit, r"VOC2007 is no whole VOC folder: it has no folder JPEGImages")


def test_what_is_no_coco_is_refused_in_a_line(tmp_path):
  root = extract_coco(tmp_path)
  data = thin(coco.get_config(), root, expected=()).data
  path = root / "annotations/instances_val2014.json"
  whole = json.loads(path.read_text())
  for content, why in (
    ("{", "not valid JSON, or cut short"),
    ("[]", "not as COCO has it, an object with the lists images, annotations, categories: it is no object"),
    (json.dumps(whole | {"annotations": [{"image_id": 99, "category_id": 1}]}), "image_id 99 is the id of no image"),
    (json.dumps(whole | {"categories": [{"id": 1}]}), "the category with id 1 has no name"),
    (json.dumps(whole | {"categories": ["cat"]}), r"categories\[0\]: id is missing"),
  ):
    path.write_text(content)
    with pytest.raises(UserError, match=why):
      splits.open_split(data, "validation")
  shutil.rmtree(root / "train2014")
  with pytest.raises(
    UserError, match=r"train2014 lacks 30 of the 30 images that are listed, the first COCO_train2014_0"
  ):
    splits.open_split(data, "train")


def test_photographs_are_those_of_the_lists(tmp_path):
  counts = {part: len((folders.LISTS / f"{part}.txt").read_text().split()) for part in ("train", "val", "test")}
  assert counts == {"train": 2366, "val": 416, "test": 2800}
  listed = [stem for part in counts for stem in (folders.LISTS / f"{part}.txt").read_text().split()]
  assert len(set(listed)) == 5582
  assert sum("_" in stem for stem in listed) == 3426  # of VOC 2012


@pytest.mark.parametrize("together", [True, False])
def test_photographs_are_read_from_both_years_or_one_folder(tmp_path, together, monkeypatch):
  lists = tmp_path / "lists"
  lists.mkdir()
  for part, stems in {"train": ["000001", "2008_000002"], "val": ["2008_000003"], "test": ["000004"]}.items():
    (lists / f"{part}.txt").write_text("\n".join(stems) + "\n")
  monkeypatch.setattr(folders, "LISTS", lists)
  root = extract_voc(tmp_path, "2012")
  for path in (root / "VOC2012").glob("*/0000*.*"):
    path.rename(path.with_name(f"2008_{path.name}"))
  extract_voc(tmp_path)
  if together:
    for path in root.glob("VOC2012/*/2008*"):
      path.rename(root / "VOC2007" / path.parent.name / path.name)
    root = (root / "VOC2007").rename(tmp_path / "photographs")
  found = {split: open_voc(root, split, "photographs") for split in ("train", "validation", "test")}
  assert {split: sorted(records(each)) for split, each in found.items()} == {
    "train": ["000001.jpg", "2008_000002.jpg"],
    "validation": ["2008_000003.jpg"],
    "test": ["000004.jpg"],
  }
  assert records(found["train"])["2008_000002.jpg"].image == archives.jpeg(2)


def test_photographs_need_both_years(tmp_path):
  refused(extract_voc(tmp_path), r"photographs is read from VOC2007 and VOC2012", name="photographs")


def test_a_line_of_a_class_list_may_say_more_than_an_id(devkit):
  path = devkit / "VOC2007/ImageSets/Main/train.txt"
  path.write_text("000001  1\n000002 -1\n\n")
  assert sorted(records(open_voc(devkit))) == ["000001.jpg", "000002.jpg"]
  assert pathlib.Path(records(open_voc(devkit))["000001.jpg"].path) == devkit / "VOC2007/JPEGImages/000001.jpg"
