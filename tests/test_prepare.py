"""VOC and COCO from archives in the official layout by the real TFDS builders, and then without tensorflow."""

import json
import pathlib
import subprocess
import sys
import time

import archives
import numpy as np
import pytest

from configs import coco, common, voc
from rmam_jax.data import prepare, splits
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import pipeline

ROOT = pathlib.Path(__file__).parent.parent

WITHOUT_TENSORFLOW = """
import json, pathlib, sys
class Without:  # as if tensorflow were not installed
  def __init__(self, finder):
    self._finder = finder
  def find_spec(self, name, path=None, target=None):
    return None if name.split(".")[0] == "tensorflow" else self._finder.find_spec(name, path, target)
  def __getattr__(self, name):
    return getattr(self._finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
import ml_collections
from rmam_jax.training import evaluate, pipeline
def frozen(value):
  if isinstance(value, dict):
    return {name: frozen(each) for name, each in value.items()}
  return tuple(map(frozen, value)) if isinstance(value, list) else value
config = ml_collections.ConfigDict(frozen(json.loads(pathlib.Path(sys.argv[1]).read_text()))).lock()
pipeline.train_and_evaluate(config, pathlib.Path(sys.argv[2]))
evaluate.evaluate_and_print(pathlib.Path(sys.argv[2]))
"""

PREPARE = """
import pathlib, sys
from tensorflow_datasets.core.download import checksums
from rmam_jax.data import prepare
root, archives = sys.argv[1:]
infos = prepare.make_builder("voc/2007", root).url_infos  # the small archives pass for the official ones
infos.update({u: checksums.compute_url_info(f) for u in infos if (f := pathlib.Path(archives, u.rsplit("/", 1)[-1])).exists()})
prepare.prepare("voc/2007", root=root, archives=archives)
"""


def thin(config, root, **data):
  config.weights = "none"
  config.data.update({"root": str(root), "image_size": 48, "crop_size": 32, **data})
  config.model.update(
    {"vgg": {"blocks": ((4,), (4,), (8,))}, "region_size": (3, 3), "region_pool": 1, "num_regions": 3}
  )
  config.model.x_width = config.model.lstm_width = config.model.z_width = 16
  config.batch_size = 4
  config.stage_one.epochs, config.stage_two.epochs = 1, 2
  config.evaluation.update({"batch_size": 8, "pictures": 2, "svm_c": (0.1, 1.0)})
  return config


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """The data root, after both data sets were prepared from small archives whose checksums pass for the official ones."""
  pytest.importorskip("tensorflow")
  from tensorflow_datasets.core.download import checksums

  root, folder = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("archives")
  archives.write_voc(folder)
  archives.write_coco(folder)
  official = {}
  for name in prepare.ARCHIVES:
    infos = prepare.make_builder(name, root).url_infos  # one dictionary for the whole process
    official[name] = infos, dict(infos)
    infos.update({u: checksums.compute_url_info(f) for u in infos if (f := folder / u.rsplit("/", 1)[-1]).exists()})
  half_made = root / "voc" / "2007" / "incomplete.ABC_5.0.0"
  half_made.mkdir(parents=True)
  (half_made / "voc-train.array_record").write_bytes(b"half")
  for name in prepare.ARCHIVES:
    prepare.prepare(name, root=str(root), archives=str(folder))
  assert not half_made.exists()
  yield root, folder
  for infos, before in official.values():
    infos.clear()
    infos.update(before)


@pytest.mark.oracle
def test_voc_records_say_what_the_archives_hold(prepared):
  data = thin(voc.get_config(), prepared[0], expected=(("train", 30), ("validation", 20), ("test", 20))).data
  for split, stored in (("train", "train"), ("validation", "val"), ("test", "test")):
    found = splits.open_split(data, split)
    assert found.class_names == archives.VOC
    records_by_name = {found[i].id: found[i] for i in range(len(found))}
    numbers = [number for number in archives.VOC_SPLITS[stored] if number != 8]  # which has nothing but difficult
    assert sorted(records_by_name) == [f"{number:06d}.jpg" for number in numbers]
    assert found.dropped == (stored == "train")
    for number in numbers:
      record = records_by_name[f"{number:06d}.jpg"]
      assert record.image == archives.jpeg(number)
      sure = {name for name, difficult in archives.voc_objects(number) if not difficult}
      hard = {name for name, difficult in archives.voc_objects(number) if difficult}
      assert {archives.VOC[c] for c in np.flatnonzero(record.labels)} == sure
      assert {archives.VOC[c] for c in np.flatnonzero(record.ignore)} == hard - sure
      np.testing.assert_allclose(record.boxes[0], [9 / 90, 12 / 120, 45 / 90, 60 / 120], atol=1e-6)


@pytest.mark.oracle
def test_coco_records_and_parts(prepared):
  config = thin(
    coco.get_config(),
    prepared[0],
    expected=(("train", 24), ("validation", 13)),
    train="train:rest-6",
    validation="train:held-6",
  )
  opened = {name: splits.open_split(config.data, config.data[name]) for name in ("train", "validation", "test")}
  assert {name: len(split) for name, split in opened.items()} == {"train": 18, "validation": 6, "test": 13}
  assert len(opened["train"].class_names) == 80
  record = opened["test"][0]
  number = int(record.id[-16:-4])
  assert {opened["test"].class_names[c] for c in np.flatnonzero(record.labels)} == {
    f"thing {1 + (number + k) % 80}" for k in range(2)
  }
  with pytest.raises(UserError, match=r"coco/2014 train has 24 annotated images where data\.expected has 82,081"):
    splits.open_split(thin(coco.get_config(), prepared[0]).data, "train:held-6")


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["voc", "coco"])
def test_trains_and_evaluates_without_tensorflow(prepared, tmp_path, name):
  if name == "voc":
    config = thin(voc.get_config(), prepared[0], expected=(), workers=0)
  else:
    config = thin(
      coco.get_config(), prepared[0], expected=(), workers=0, train="train:rest-6", validation="train:held-6"
    )
  (tmp_path / "config.json").write_text(config.to_json())
  command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path / "config.json"), str(tmp_path / "run")]
  found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert found.returncode == 0, found.stderr
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert results["test_images"] == (20 if name == "voc" else 13)
  choices = json.loads((tmp_path / "run" / "selection.json").read_text())
  assert choices["chosen_on"] == ("voc/2007 validation" if name == "voc" else "coco/2014 train:held-6")
  if name == "voc":
    assert results["config"]["data"]["train"] == "train+validation"
    chosen = pipeline.checkpoints.best_epochs(tmp_path / "run" / "choose")
    assert pipeline.checkpoints.best_epochs(tmp_path / "run") == chosen


@pytest.mark.oracle
def test_a_second_preparation_uses_the_first(prepared, monkeypatch):
  monkeypatch.setattr(prepare.shutil, "disk_usage", None)
  assert prepare.prepare("voc/2007", root=str(prepared[0])) == prepared[0] / "voc/2007/5.0.0"


@pytest.mark.oracle
def test_a_preparation_that_is_killed_ends_as_one_that_is_not(prepared, tmp_path):
  """kill -9 while archives are unpacked, and while records are written."""
  root, folder = prepared
  command = [sys.executable, "-c", PREPARE, str(tmp_path), str(folder)]
  for moment in ("downloads/extracted/*", "voc/2007/incomplete.*/*"):
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
      while not any(tmp_path.glob(moment)):
        assert process.poll() is None, f"ended before {moment} was there"
        time.sleep(0.002)
      process.kill()
    assert not (tmp_path / "voc/2007/5.0.0").exists()
  found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert found.returncode == 0, found.stderr
  assert {path.name for path in (tmp_path / "voc/2007").iterdir()} == {"5.0.0", "lock"}
  for split in ("train", "validation", "test"):
    whole, again = (
      splits.open_split(thin(voc.get_config(), where, expected=()).data, split) for where in (root, tmp_path)
    )
    assert len(whole) == len(again) > 0
    for index in range(len(whole)):
      assert (whole[index].id, whole[index].image) == (again[index].id, again[index].image)
      np.testing.assert_array_equal(whole[index].labels, again[index].labels)


@pytest.mark.oracle
def test_wrong_archives_are_named_at_once(prepared, tmp_path):
  _, folder = prepared
  with pytest.raises(UserError, match=r"VOCtrainval_06-Nov-2007\.tar is missing; .*VOCtest_06-Nov-2007\.tar is"):
    prepare.prepare("voc/2007", root=str(tmp_path), archives=str(tmp_path))
  for archive in prepare.ARCHIVES["voc/2007"]:
    (tmp_path / archive).write_bytes((folder / archive).read_bytes())
  test = tmp_path / "VOCtest_06-Nov-2007.tar"
  test.write_bytes(test.read_bytes()[:-1])
  with pytest.raises(UserError, match=r"VOCtest_06-Nov-2007\.tar has [\d,]+ bytes, the official one has [\d,]+\. "):
    prepare.prepare("voc/2007", root=str(tmp_path), archives=str(tmp_path))
  test.write_bytes(test.read_bytes() + b"x")
  with pytest.raises(UserError, match=r"an archive of voc/2007 is not the official one.*VOCtest_06-Nov-2007\.tar"):
    prepare.prepare("voc/2007", root=str(tmp_path), archives=str(tmp_path))


@pytest.mark.oracle
def test_a_full_disk_is_noticed_first(prepared, tmp_path, monkeypatch):
  monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: prepare.shutil._ntuple_diskusage(10, 9, 1))
  with pytest.raises(UserError, match=r"has 0\.0 GB free and the data need .*--data_root=DIR"):
    prepare.prepare("voc/2007", root=str(tmp_path), archives=str(prepared[1]))


def test_without_tensorflow_the_extra_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  with pytest.raises(UserError, match=r"preparing voc/2007 needs tensorflow, training does not: pip install"):
    prepare.prepare("voc/2007", root=str(tmp_path))
  with pytest.raises(UserError, match=r"must be one of voc/2007, coco/2014, got 'voc/2012'"):
    prepare.prepare("voc/2012", root=str(tmp_path))


@pytest.mark.parametrize(("module", "name"), [(voc, "voc/2007"), (coco, "coco/2014")])
def test_training_on_unprepared_data_names_the_command(module, name, tmp_path):
  config = module.get_config()
  config.data.root = str(tmp_path)
  with pytest.raises(UserError, match=rf"rmam-jax prepare {name} --archives=DIR --data_root="):
    splits.open_split(config.data, config.data.train)


@pytest.mark.parametrize(("module", "images"), [(voc, 4_952), (coco, 40_137)])
def test_the_paper_s_configuration(module, images):
  for scale in common.SCALES:
    config = module.get_config(scale)
    assert (config.data.image_size, config.data.crop_size) == (int(scale), int(scale) - 64)
    stages = config.stage_one, config.stage_two
    assert all(
      (s.learning_rate, s.epochs, s.epochs * s.drop_share, s.schedule) == (1e-5, 45, 30, "step") for s in stages
    )
    assert (config.batch_size, config.model.num_regions, config.model.head) == (16, 5, "recurrent")
    assert (config.loss.localization_weight, config.loss.anchor_weight, config.loss.positive_weight) == (0.1, 0.01, 0.1)
    assert dict(config.data.expected)[config.data.test] == images
    assert config.stage_two.auxiliary_weight == 0
    assert config.weights == ""
  with pytest.raises(UserError, match="'1024' is none of 512, 640, recurrent"):
    module.get_config("1024")
