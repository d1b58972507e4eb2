"""The first hour: `rmam-jax init` on folders as people have them, and what it writes, from anywhere."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rmam_jax.commands import expand_home, find_config
from rmam_jax.data import discovery
from rmam_jax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
ROWS = {"a.jpg": "cat|dog", "b.jpg": "cat", "c.jpg": "", "d.jpg": "dog"}


@pytest.fixture
def home(tmp_path):
  """A folder `photos` with four photographs."""
  folder = tmp_path / "photos"
  folder.mkdir()
  for number, name in enumerate(ROWS):
    Image.fromarray(np.full((8, 9, 3), 50 * number, np.uint8)).save(folder / name)
  return folder


def table(path, rows=ROWS, header="image,labels"):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join([header, *(f"{name},{labels}" for name, labels in rows.items())]))


def coco(path, names=ROWS):
  path.parent.mkdir(parents=True, exist_ok=True)
  images = [{"id": number, "file_name": name, "width": 9, "height": 8} for number, name in enumerate(names)]
  annotations = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 4, 4]}]
  path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}))


def voc(folder, stems):
  for stem in stems:
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    text = f"<annotation><filename>{stem}.jpg</filename><object><name>cat</name></object></annotation>"
    (folder / "Annotations" / f"{stem}.xml").write_text(text)


def fields(*places):
  return discovery.look(list(map(str, places))).fields


def test_one_list_is_divided(home):
  table(home / "labels.csv")
  (home / "README.txt").write_text("Taken in May.\n")
  found = discovery.look([str(home)])
  assert found.fields == {"train": f"{home}/labels.csv", "split": (0.8, 0.1, 0.1)}
  assert found.folder == home
  (one,) = found.manifests
  assert (one.split, one.images, one.labels, one.problems) == ("train", 4, ("cat", "dog"), ())
  assert len(found.passed_over) == 1
  assert found.passed_over[0].startswith(f"{home}/README.txt:1: no column")
  assert fields(home / "labels.csv") == found.fields


@pytest.mark.parametrize(
  "names",
  [
    ("train.csv", "val.csv", "test.csv"),
    ("my_train_labels.csv", "valid-2.csv", "TEST.csv"),
    ("train/_classes.csv", "valid/_classes.csv", "test/_classes.csv"),
    ("training/labels.csv", "dev/labels.csv", "testing/labels.csv"),
  ],
)
def test_names_tell_the_splits(home, names):
  for name in names:
    table(home / name)
  wanted = dict(zip(("train", "validation", "test"), (f"{home}/{name}" for name in names), strict=True))
  assert fields(home) == wanted
  os.remove(home / names[2])
  assert fields(home) == {field: wanted[field] for field in ("train", "validation")}


def test_a_test_list_of_its_own_stays_when_training_is_divided(home):
  table(home / "train.csv")
  table(home / "test.csv")
  train = f"{home}/train.csv"
  wanted = {"train": f"{train}:train", "validation": f"{train}:validation", "test": f"{home}/test.csv"}
  assert fields(home) == wanted | {"split": (0.9, 0.1)}


def test_a_column_tells_the_splits(home):
  labels = dict(zip(ROWS, ("cat,train", "dog,train", "cat,val", "dog,test"), strict=True))
  table(home / "all.csv", labels, "image,labels,split")
  found = discovery.look([str(home)])
  assert found.fields == {
    "train": f"{home}/all.csv:train",
    "validation": f"{home}/all.csv:val",
    "test": f"{home}/all.csv:test",
  }
  assert [each.images for each in found.manifests] == [2, 1, 1]
  table(home / "all.csv", dict.fromkeys(ROWS, "cat,train") | {"d.jpg": "dog,test"}, "image,labels,split")
  with pytest.raises(UserError, match=r"all\.csv:train: there are no images for validation"):
    fields(home)


def test_coco_s_folder_with_its_other_files(home):
  for split in ("train", "val"):
    (home / f"{split}2017").mkdir()
    for name in ROWS:
      shutil.copy(home / name, home / f"{split}2017" / name)
    for kind in ("instances", "person_keypoints"):
      coco(home / "annotations" / f"{kind}_{split}2017.json")
  found = discovery.look([str(home)])
  place = f"{home}/annotations/instances_"
  assert found.fields == {"train": f"{place}train2017.json", "validation": f"{place}val2017.json"}
  assert [each.folder for each in found.manifests] == [f"{home}/train2017", f"{home}/val2017"]
  assert len(found.passed_over) == 2


def test_voc_with_its_lists_and_without(home):
  voc(home / "VOC2007", ["a", "b", "c", "d"])
  (home / "VOC2007" / "JPEGImages").mkdir()
  for name in ROWS:
    shutil.move(home / name, home / "VOC2007" / "JPEGImages" / name)
  assert fields(home) == {"train": f"{home}/VOC2007", "split": (0.8, 0.1, 0.1)}
  lists = home / "VOC2007" / "ImageSets" / "Main"
  lists.mkdir(parents=True)
  for name, stems in (("train", "a b"), ("val", "c"), ("test", "d"), ("trainval", "a b c"), ("cat_train", "a")):
    (lists / f"{name}.txt").write_text("\n".join(stems.split()))
  wanted = {"train": ":train", "validation": ":val", "test": ":test"}
  assert fields(home) == {field: f"{home}/VOC2007{part}" for field, part in wanted.items()}
  assert fields(home / "VOC2007") == fields(home)
  (home / "VOC2007/Annotations").rename(home / "VOC2007/below")
  (home / "VOC2007/Annotations").mkdir()
  (home / "VOC2007/below").rename(home / "VOC2007/Annotations/below")
  assert fields(home / "VOC2007") == fields(home)


def test_nothing_and_too_much_are_one_line(home):
  with pytest.raises(UserError, match=r"^there is no .*/gone: name a folder"):
    discovery.look([str(home / "gone")])
  with pytest.raises(UserError, match=rf"^{home}: no list .*image,labels and goes on with a\.jpg,cat\|dog\.$"):
    discovery.look([str(home)])
  for name in ("cat", "dog"):
    (home / name).mkdir()
    shutil.copy(home / "a.jpg", home / name / "a.jpg")
  with pytest.raises(UserError, match=r"images in 2 folders \(cat, dog\): if each is a class, .* cat/a\.jpg,cat\.$"):
    discovery.look([str(home)])
  (home / "notes.txt").write_text("hello\n")
  with pytest.raises(UserError, match=r"What was looked at: .*notes\.txt:1: no column"):
    discovery.look([str(home)])
  for name in ("one.csv", "two.csv", "val.csv"):
    table(home / name)
  with pytest.raises(UserError, match=r"^2 lists may be that of train: .*one\.csv, .*two\.csv\. Name those") as error:
    discovery.look([str(home)])
  assert "\n" not in str(error.value)
  assert fields(home / "two.csv", home / "val.csv") == {
    "train": f"{home}/two.csv",
    "validation": f"{home}/val.csv",
  }
  table(home / "test.csv")
  with pytest.raises(UserError, match=r"no list is that of training; there is .*val\.csv.*: .* rmam-jax init LIST"):
    fields(home / "val.csv", home / "test.csv")
  assert fields(home / "val.csv") == {"train": f"{home}/val.csv", "split": (0.8, 0.1, 0.1)}


@pytest.mark.parametrize("above", ["dev", "my-test", "train"])
def test_a_folder_above_tells_no_split(tmp_path, above):
  """A split is told by a folder only if it is below what is looked at, or beside others that are."""
  home = tmp_path / above / "photos"
  for place in ("one", "two_val"):
    table(home / place / "labels.csv")
  voc(home.parent / "VOC", ["a", "b"])
  assert fields(home) == {"train": f"{home}/one/labels.csv", "validation": f"{home}/two_val/labels.csv"}
  assert fields(home / "one/labels.csv", home / "two_val") == fields(home)
  one = {"split": (0.8, 0.1, 0.1)}
  assert fields(home.parent / "VOC") == one | {"train": f"{home.parent}/VOC"}
  assert fields(home / "two_val") == one | {"train": f"{home}/two_val/labels.csv"}
  table(home.parent / "all.csv")
  assert fields(home.parent / "all.csv") == one | {"train": f"{home.parent}/all.csv"}


def test_rows_without_a_split_and_folders_that_cannot_be_read_are_passed_over(home, monkeypatch):
  labels = dict(zip(ROWS, ("cat,train", "dog,", "cat,val", "dog,"), strict=True))
  table(home / "all.csv", labels, "image,labels,split")
  (home / "lost+found").mkdir()
  iterdir = pathlib.Path.iterdir

  def refuse(path):
    if path.name == "lost+found":
      raise PermissionError(13, "Permission denied", str(path))
    return iterdir(path)

  monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
  found = discovery.look([str(home)])
  assert [each.name for each in found.manifests] == [f"{home}/all.csv:train", f"{home}/all.csv:val"]
  assert set(found.passed_over) == {
    f"{home}/all.csv: 2 images whose column `split` is empty",
    f"{home}/lost+found: cannot look at it (Permission denied)",
  }
  os.remove(home / "all.csv")
  with pytest.raises(UserError, match=r"no list that says .* What was looked at: .*lost\+found: cannot look at it"):
    discovery.look([str(home)])


def test_a_file_for_each_image_is_no_list(home):
  (home / "labels").mkdir()
  for number in range(60):
    (home / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
  with pytest.raises(UserError, match=r"labels: 60 files, which look like one for each image"):
    discovery.look([str(home)])


def test_what_stops_training_is_said_and_does_not_stop_it(home):
  table(home / "labels.csv", ROWS | {"gone.jpg": "cat", "e.jpg": "Cat"})
  (one,) = discovery.look([str(home)]).manifests
  assert one.images == 6
  assert len(one.problems) == 3
  assert "gone.jpg" in one.problems[0]
  assert "differ in capitals" in one.problems[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The package as a wheel lays it out: the configurations within it, and no checkout around it."""
  site = tmp_path_factory.mktemp("site")
  shutil.copytree(ROOT / "rmam_jax", site / "rmam_jax", ignore=shutil.ignore_patterns("__pycache__"))
  shutil.copytree(ROOT / "configs", site / "rmam_jax" / "configs", ignore=shutil.ignore_patterns("__pycache__"))
  return site


def call(site, *arguments, cwd, **changes):
  environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"} | changes
  command = [sys.executable, "-m", "rmam_jax", *map(str, arguments)]
  return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("installed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_is_written_works_from_any_folder(home, tmp_path, request, installed):
  site = request.getfixturevalue("wheel") if installed else ROOT
  rows = {f"{number}.jpg": ("cat", "dog")[number % 2] for number in range(20)}
  for number, name in enumerate(rows):
    Image.fromarray(np.full((8, 9, 3), 5 * number, np.uint8)).save(home / name)
  table(home / "labels.csv", rows)
  work, other = tmp_path / "work", tmp_path / "other"
  work.mkdir()
  other.mkdir()
  made = call(site, "init", "../photos", cwd=work)
  assert made.returncode == 0, made.stderr
  assert f"train: {home}/labels.csv, 20 images in {home}, 2 labels" in made.stdout
  assert made.stdout.splitlines()[-1] == ("wrote photos_config.py; next: rmam-jax validate --config=photos_config.py")
  for cwd, flag in ((work, "--config=photos_config.py:thin"), (other, f"--config={work}/photos_config.py")):
    checked = call(site, "validate", flag, cwd=cwd)
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"^train: 16 images.*\nvalidation: 2 images.*\ntest: 2 images", checked.stdout, re.MULTILINE)
  again = call(site, "init", "../photos", cwd=work)
  assert (again.returncode, again.stderr) == (
    1,
    "error: photos_config.py exists: remove it or name another file with --out=FILE\n",
  )
  assert not list(other.iterdir())


def test_a_configuration_of_one_s_own_finds_the_package_s(tmp_path, monkeypatch):
  (tmp_path / "mine.py").touch()
  monkeypatch.setattr(sys, "path", [])
  assert find_config(f"{tmp_path}/mine.py:thin") == f"{tmp_path}/mine.py:thin"
  assert [place for place in sys.path if (pathlib.Path(place) / "configs" / "custom.py").is_file()] == [str(ROOT)]


def test_the_lines_that_people_change_can_be_changed(home, tmp_path):
  table(home / "labels.csv", dict.fromkeys([f"{name}{n}.jpg" for name in "abcd" for n in range(5)], "cat|dog"))
  assert call(ROOT, "init", home, "--out=mine.py", cwd=tmp_path).returncode == 0
  text = (tmp_path / "mine.py").read_text()
  changed = re.sub(r"^  # ((?:data|config)\.)", r"  \1", text, flags=re.MULTILINE)
  assert changed.count("\n  data.") == text.count("\n  data.") + 3
  namespace = {}
  exec(compile(changed, "mine.py", "exec"), namespace)
  config, default = namespace["get_config"]("thin"), {}
  exec(compile(text, "mine.py", "exec"), default)
  assert config.data.classes == ("cat", "dog")
  assert config.data.images == str(home)
  with config.unlocked():
    config.data.classes, config.data.images = (), ""
    config.stage_two.epochs = default["get_config"]("thin").stage_two.epochs
  assert config.to_json() == default["get_config"]("thin").to_json()  # the lines show what holds


def test_the_user_s_home_is_written_out_in_flags(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", "/home/ann")
  assert expand_home("--workdir=~/runs/x") == "--workdir=/home/ann/runs/x"
  assert expand_home("--config.data.images=~/a,~/b,/c") == "--config.data.images=/home/ann/a,/home/ann/b,/c"
  assert expand_home("~/photo.jpg") == "/home/ann/photo.jpg"
  for kept in ("--config.data.separator=~", "a~/b.jpg", "--x=a~/b", "runs/~/x", "photo~.jpg"):
    assert expand_home(kept) == kept
  found = call(ROOT, "eval", "--workdir=~/gone", cwd=tmp_path, HOME=str(tmp_path))
  assert found.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/gone holds no config.json")
