"""Your own images: every form of manifest from parsing to a trained run, and every problem with its place."""

import copy
import io
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import custom
from rmam_jax.data import batches, manifests, splits
from rmam_jax.data.validation import validate
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import loop, pipeline, workdir

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ("blue", "green", "red")
COLOURS = {"red": (250, 20, 30), "green": (20, 240, 30), "blue": (30, 20, 250)}
SPLITS = {"train": 12, "val": 6, "test": 6}
SPLIT_OF = {"custom train": "train", "custom validation": "val", "custom test": "test"}


def draw(names, seed):
  """An image with a patch of each colour, and the patches' boxes in pixels (left, top, right, bottom)."""
  rng = np.random.default_rng(seed)
  image = rng.integers(60, 120, (60, 80, 3), np.uint8)
  boxes = []
  for column, name in enumerate(names):
    left, top = 5 + 25 * column, int(rng.integers(5, 35))
    image[top : top + 20, left : left + 20] = COLOURS[name]
    boxes.append((left, top, left + 20, top + 20))
  return image, boxes


def examples(split):
  """(file name, names, boxes, ignored names) of each image of a split."""
  found = []
  for i in range(SPLITS[split]):
    names = [NAMES[i % 3]] + ([NAMES[(i + 1) % 3]] if i % 2 else [])
    image, boxes = draw(names, [len(split), i])
    found.append((f"{split}{i}.png", image, names, boxes, [NAMES[(i + 2) % 3]] if i == 3 else []))
  return found


def png(image) -> bytes:
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  return file.getvalue()


def write_csv(folder, split):
  lines = ["image,labels,ignore"]
  for name, image, names, _, ignored in examples(split):
    (folder / name).write_bytes(png(image))
    lines.append(f"{name},{'|'.join(names)},{'|'.join(ignored)}")
  (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
  return str(folder / f"{split}.csv")


def write_jsonl(folder, split):
  lines = []
  for name, image, names, _, ignored in examples(split):
    (folder / name).write_bytes(png(image))
    lines.append(json.dumps({"image": name, "labels": names} | ({"ignore": ignored} if ignored else {})))
  (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
  return str(folder / f"{split}.jsonl")


def write_coco(folder, split):
  images, annotations = [], []
  for i, (name, image, names, boxes, _) in enumerate(examples(split)):
    (folder / name).write_bytes(png(image))
    images.append({"id": 100 + i, "file_name": name, "height": 60, "width": 80})
    for label, (left, top, right, bottom) in zip(names, boxes, strict=True):
      annotations.append(
        {"image_id": 100 + i, "category_id": 7 + NAMES.index(label), "bbox": [left, top, right - left, bottom - top]}
      )
  categories = [{"id": 7 + i, "name": name} for i, name in enumerate(NAMES)]
  content = {"images": images, "annotations": annotations, "categories": categories}
  (folder / f"{split}.json").write_text(json.dumps(content))
  return str(folder / f"{split}.json")


def write_voc(folder, split):
  for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
    (folder / part).mkdir(parents=True, exist_ok=True)
  stems = []
  for name, image, names, boxes, ignored in examples(split):
    (folder / "JPEGImages" / name).write_bytes(png(image))
    stems.append(pathlib.Path(name).stem)
    objects = "".join(
      f"<object><name>{label}</name><difficult>{int(hard)}</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
      f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
      for label, (left, top, right, bottom), hard in [
        *((label, box, False) for label, box in zip(names, boxes, strict=True)),
        *((label, (0, 0, 5, 5), True) for label in ignored),
      ]
    )
    (folder / "Annotations" / f"{stems[-1]}.xml").write_text(
      f"<annotation><filename>{name}</filename><size><width>80</width><height>60</height></size>{objects}</annotation>"
    )
  (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
  return f"{folder}:{split}"


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "coco": write_coco, "voc": write_voc}


def parse(manifest, **data):
  section = custom.get_config().data
  section.update(data)
  return manifests.parse(manifest, section)


def thin_config(written, head="mean_pool", **data):
  config = custom.get_config(f"thin:{head}")
  config.data.update(
    {**dict(zip(("train", "validation", "test"), written, strict=True)), "image_size": 40, "crop_size": 32, **data}
  )
  config.model.update({"vgg": {"blocks": ((4,), (8,))}, "region_size": (3, 3), "num_regions": 3})
  config.model.x_width = config.model.lstm_width = config.model.z_width = 16
  config.batch_size = 4
  config.stage_one.epochs, config.stage_two.epochs = 1, 2
  for stage in (config.stage_one, config.stage_two):
    stage.schedule, stage.warmup_steps, stage.drop_share, stage.learning_rate = "step", 0, 1.0, 1e-2
  config.evaluation.update({"batch_size": 6, "views": "centre", "svm_solver": "", "pictures": 2})
  return config


@pytest.fixture(scope="module", params=WRITERS)
def written(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  return request.param, [WRITERS[request.param](folder, split) for split in SPLITS]


def test_manifests_say_what_was_written(written):
  form, (train, *_) = written
  config = thin_config(written[1])
  split = splits.open_split(config.data, train)
  assert split.class_names == NAMES
  assert len(split) == 12
  found = {split[i].id: split[i] for i in range(len(split))}
  for name, image, names, boxes, ignored in examples("train"):
    record = found[name]
    assert record.image == png(image)
    assert {NAMES[c] for c in np.flatnonzero(record.labels)} == set(names)
    if form != "coco":  # which has no place for it
      assert {NAMES[c] for c in np.flatnonzero(record.ignore)} == set(ignored)
    if form in ("coco", "voc"):
      wanted = np.array([(top / 60, left / 80, bottom / 60, right / 80) for left, top, right, bottom in boxes])
      np.testing.assert_allclose(record.boxes[: len(boxes)], wanted, atol=1e-6)
      assert [NAMES[c] for c in record.box_classes[: len(boxes)]] == names


def test_sound_manifests_have_no_problem(written):
  report = validate(thin_config(written[1]).data)
  assert report.problems == []
  assert report.summary.startswith("train: 12 images in ")


def test_from_manifest_to_results(written, tmp_path):
  form, paths = written
  config = thin_config(paths, head="saliency" if form == "voc" else "mean_pool")
  results = pipeline.train_and_evaluate(config, tmp_path / "run")
  assert results["test_images"] == 6
  assert set(results["AP"]) == set(NAMES)
  assert (tmp_path / "run" / "classes.json").exists()
  assert ("coverage" in results) == (form == "voc")  # of the looking head, where there are boxes


def test_a_run_goes_on_after_its_data_have_moved(tmp_path, capsys):
  (tmp_path / "here").mkdir()
  paths = [write_csv(tmp_path / "here", split) for split in SPLITS]
  results = pipeline.train_and_evaluate(thin_config(paths), tmp_path / "run")
  (tmp_path / "here").rename(tmp_path / "there")
  log = (tmp_path / "run" / "metrics.jsonl").read_bytes()
  moved = [path.replace("/here/", "/there/") for path in paths]
  again = pipeline.train_and_evaluate(thin_config(moved, **{"images": str(tmp_path / "there")}), tmp_path / "run")
  assert again["AP"] == results["AP"]
  assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log  # nothing was trained again
  assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["train"] == moved[0]
  train = pathlib.Path(moved[0])
  train.write_text(train.read_text().replace("train0.png,blue", "train0.png,red"))
  with pytest.raises(UserError, match="began with other records of custom train"):
    pipeline.train_and_evaluate(thin_config(moved, **{"images": str(tmp_path / "there")}), tmp_path / "run")


def test_a_folder_of_own_images_may_move(written, tmp_path):
  form, paths = written
  folder = pathlib.Path(paths[0].rpartition(":")[0] or paths[0])
  folder = folder if folder.is_dir() else folder.parent
  moved = [path.replace(str(folder), str(tmp_path / "elsewhere"), 1) for path in paths]
  shutil.copytree(folder, tmp_path / "elsewhere")
  for path, elsewhere in zip(paths, moved, strict=True):
    one, other = (
      splits.open_split(thin_config(all_paths).data, opened)
      for all_paths, opened in ((paths, path), (moved, elsewhere))
    )
    assert one.name == other.name
    assert one.digest() == other.digest()
    ids = [one[i].id for i in range(len(one))]
    assert ids == [other[i].id for i in range(len(other))]
    assert ids == [name for name, *_ in examples(SPLIT_OF[one.name])] or form == "voc"
    assert other[0].path == str(tmp_path / "elsewhere" / ("JPEGImages" if form == "voc" else "") / other[0].id)


def test_an_image_s_id_is_its_path_below_the_folder(tmp_path):
  (tmp_path / "images" / "red").mkdir(parents=True)
  (tmp_path / "images" / "red" / "a.png").write_bytes(png(draw(["red"], 0)[0]))
  path = tmp_path / "a.csv"
  path.write_text("image,labels\n./red//a.png,red\n")
  config = thin_config((str(path),) * 3, images=str(tmp_path / "images"))
  assert splits.open_split(config.data, str(path))[0].id == "red/a.png"


def test_a_manifest_s_split_is_named_by_the_field_that_names_it(tmp_path):
  paths = [write_csv(tmp_path, split) for split in SPLITS]
  data = thin_config(paths, final_train=write_jsonl(tmp_path, "train")).data
  names = [splits.open_split(data, path).name for path in (*paths, data.final_train, write_coco(tmp_path, "test"))]
  assert names == ["custom train", "custom validation", "custom test", "custom final_train", "custom test.json"]
  data.validation = data.train
  assert splits.open_split(data, data.validation).name == "custom train"


def test_changed_files_are_seen_when_a_split_is_opened_again(tmp_path):
  path = pathlib.Path(write_csv(tmp_path, "train"))
  data = thin_config((str(path),) * 3).data
  assert len(splits.open_split(data, str(path))) == 12
  path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
  assert len(splits.open_split(data, str(path))) == 11


def test_given_classes_need_no_training_manifest(tmp_path):
  test = write_csv(tmp_path, "test")
  data = thin_config(("", "", test), classes=NAMES).data
  assert splits.open_split(data, test).class_names == NAMES
  data.classes = ()
  with pytest.raises(UserError, match="must name a manifest each"):
    splits.open_split(data, test)


def test_changed_labels_sizes_and_boxes_change_a_manifest_s_digest(tmp_path):
  path, data = write_coco(tmp_path, "train"), custom.get_config().data
  content = json.loads(pathlib.Path(path).read_text())
  image = tmp_path / content["images"][0]["file_name"]

  def digest():
    data.train = str(path)
    return splits.open_split(data, data.train).digest()

  def with_annotation(**changes):
    other = copy.deepcopy(content)
    other["annotations"][0].update(changes)
    pathlib.Path(path).write_text(json.dumps(other))
    return digest()

  one = digest()
  image.touch()
  assert digest() == one
  other_class = next(
    each["id"] for each in content["categories"] if each["id"] != content["annotations"][0]["category_id"]
  )
  found = [one, with_annotation(category_id=other_class), with_annotation(bbox=[1, 2, 3, 4]), with_annotation(ignore=1)]
  with_annotation()
  image.write_bytes(image.read_bytes() + b" ")
  assert len({*found, digest()}) == 5


@pytest.mark.parametrize("suffix", ["bmp", "TIFF"])
def test_other_pixels_of_as_many_bytes_change_a_digest(tmp_path, suffix):
  digests, path, data = [], tmp_path / f"a.{suffix}", custom.get_config().data
  (tmp_path / "train.csv").write_text(f"image,labels\n{path.name},cat\n")
  for shade in (10, 200, 10):
    Image.new("RGB", (50, 40), (shade, 0, 0)).save(path)
    data.train = str(tmp_path / "train.csv")
    digests.append((path.stat().st_size, splits.open_split(data, data.train).digest()))
  assert digests[0] == digests[2]
  assert digests[0][0] == digests[1][0]
  assert digests[0][1] != digests[1][1]


@pytest.mark.slow
def test_a_run_with_images_that_cannot_be_read_counts_and_names_them(tmp_path, capsys):
  paths = [write_csv(tmp_path, split) for split in SPLITS]
  config = thin_config(paths, head="saliency", corrupt="skip")
  config.evaluation.svm_solver, config.evaluation.svm_c = "newton", (1.0,)
  broken = [splits.open_split(config.data, path)[0].path for path in paths]
  for path in broken:
    pathlib.Path(path).write_bytes(b"no image")
  pathlib.Path(splits.open_split(config.data, paths[2])[1].path).unlink()
  (tmp_path / "run").mkdir()
  of_another = tmp_path / "run" / "skipped-1.jsonl"  # of a process that the run had and has no more
  of_another.write_text('{"stage": "stage_one", "step": 1}\n{"stage": "stage_three", "step": 1}\n')
  results = pipeline.train_and_evaluate(config, tmp_path / "run")
  assert workdir.read_lines(of_another) == [{"stage": "stage_three", "step": 1}]
  assert (results["test_images"], results["svm_images"]) == (4, 11)
  assert len(results["skipped_images"]) == 2
  assert broken[2] in results["skipped_images"][0]
  assert "cannot read" in results["skipped_images"][1]
  assert "2 images cannot be read and do not count" in capsys.readouterr().out
  lines = workdir.read_lines(tmp_path / "run" / "skipped.jsonl")
  assert {line["stage"] for line in lines} == {"stage_one", "stage_two"}
  assert all(broken[0] in line["reason"] for line in lines)
  assert all(1 <= line["step"] <= 3 * {"stage_one": 1, "stage_two": 2}[line["stage"]] for line in lines)  # 3 an epoch
  assert len(list((tmp_path / "run" / "pictures").glob("*-*.png"))) == 2
  config.data.corrupt = "error"
  with pytest.raises(UserError, match="not a readable image"):
    pipeline.train_and_evaluate(config, tmp_path / "other")


def test_an_image_that_cannot_be_read_changes_no_figure_of_the_others(tmp_path):
  manifest = write_csv(tmp_path, "test")
  config = thin_config([manifest] * 3, corrupt="skip")
  split = splits.open_split(config.data, manifest)
  whole = [
    found for _, _, found, _ in batches.evaluation_batches(split, range(6), batch_size=6, image_size=40, crop_size=32)
  ]
  pathlib.Path(split[2].path).write_bytes(b"")
  shares = [
    list(
      batches.evaluation_batches(
        split, range(6), batch_size=6, image_size=40, crop_size=32, corrupt="skip", process_index=i, process_count=2
      )
    )
    for i in range(2)
  ]
  for ((_, _, found, reasons),) in shares:  # both know, though one alone has to show it
    assert [each.id for each in found] == [each.id for each in whole[0]]
    assert [bool(reason) for reason in reasons] == [False, False, True, False, False, False]
    assert found[2].ignore.all()
    assert not found[2].labels.any()
  assert not shares[0][0][0][2].any()


def test_a_workdir_whose_labels_were_changed_since_is_refused(tmp_path):
  paths = [write_csv(tmp_path, split) for split in SPLITS]
  config = thin_config(paths)
  config.stage_one.epochs, config.stage_two.epochs = 0, 1
  loop.train(config, tmp_path / "run")
  loop.train(config, tmp_path / "run")
  lines = pathlib.Path(paths[0]).read_text().splitlines()
  image, _ = lines[1].split(",")[:2]
  pathlib.Path(paths[0]).write_text(
    "\n".join([lines[0], f"{image},{NAMES[0]}|{NAMES[1]}|{NAMES[2]},", *lines[2:]]) + "\n"
  )
  with pytest.raises(ValueError, match="began with other records of custom train: labels, images or boxes have"):
    loop.train(config, tmp_path / "run")


def test_links_below_the_folder_may_lead_elsewhere(tmp_path):
  (tmp_path / "disk").mkdir()
  (tmp_path / "set").mkdir()
  (tmp_path / "disk" / "a.png").write_bytes(png(draw(["red"], 0)[0]))
  (tmp_path / "set" / "images").symlink_to(tmp_path / "disk")
  (tmp_path / "set" / "train.csv").write_text("image,labels\nimages/a.png,red\nimages/../../disk/a.png,red\n")
  (entry,), (problem,), _, _ = parse(str(tmp_path / "set" / "train.csv"))
  assert pathlib.Path(entry.image).read_bytes() == (tmp_path / "disk" / "a.png").read_bytes()
  assert "train.csv:3: image 'images/../../disk/a.png' lies outside" in problem


def test_annotations_to_ignore_in_coco_s_form(tmp_path):
  box = {"image_id": 1, "bbox": [0, 0, 5, 5]}
  content = {
    "images": [{"id": 1, "file_name": "a.png", "width": 10, "height": 10}],
    "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
    "annotations": [
      box | {"category_id": 7, "ignore": 1},
      box | {"category_id": 8},
      box | {"category_id": 8, "ignore": 1},
    ],
  }
  (tmp_path / "a.json").write_text(json.dumps(content))
  (tmp_path / "a.png").write_bytes(b"")
  (entry,), problems_, _, _ = parse(str(tmp_path / "a.json"))
  assert (entry.labels, entry.ignore, problems_) == (("dog",), ("cat",), ())
  assert entry.box_labels == ("cat", "dog", "dog")


def test_a_class_that_is_named_twice_is_refused(tmp_path):
  manifest = write_csv(tmp_path, "train")
  with pytest.raises(UserError, match=r"data\.classes names cat more than once"):
    splits.open_split(thin_config([manifest] * 3, classes=("cat", "cat", "dog")).data, manifest)


def test_the_validation_command_lists_every_problem_with_its_place(tmp_path):
  good = png(draw(["red"], 0)[0])
  for name in ("a.png", "same.png", "other.png"):
    (tmp_path / name).write_bytes(png(draw(["green"], [1, len(name)])[0]))
  (tmp_path / "same.png").write_bytes(good)
  (tmp_path / "test.png").write_bytes(good)
  (tmp_path / "broken.png").write_bytes(good[:60])
  (tmp_path / "train.csv").write_text(
    "image,labels\n"
    "a.png,red\n"
    "missing.png,red\n"
    "broken.png,green\n"
    "a.png,green\n"
    "other.png,\n"
    "same.png,red,green\n"
    "../outside.png,red\n"
    "same.png,red\n"
  )
  (tmp_path / "val.jsonl").write_text(
    '{"image": "other.png", "labels": ["red", "violet"]}\nnonsense\n{"labels": []}\n'
    + r'{"image": "caf\udce9.png", "labels": ["red"]}'
    + "\n"
  )
  (tmp_path / "test.csv").write_text("image,labels\ntest.png,red\n")
  flags = [
    f"--config.data.{split}={tmp_path / name}"
    for split, name in (("train", "train.csv"), ("validation", "val.jsonl"), ("test", "test.csv"))
  ]
  command = [sys.executable, "-m", "rmam_jax", "validate", "--config=configs/custom.py", *flags]
  found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert found.returncode == 1, found.stderr
  train, val, test = (tmp_path / name for name in ("train.csv", "val.jsonl", "test.csv"))
  wanted = [
    f"{train}:7: 3 fields where the header has 2",
    f"{train}:8: image '../outside.png' lies outside {tmp_path}",
    f"{train}:3: there is no image {tmp_path / 'missing.png'}",
    f"{train}:4: {tmp_path / 'broken.png'}: not a readable image",
    f"{val}:2: not valid JSON",
    f"{val}:3: no column is known as that of the images; the columns are 'labels'",
    rf"{val}:4: there is no image {tmp_path / 'caf'}\udce9.png",
    rf"{val}:4: the name of caf\udce9.png is not UTF-8",
    f"{val}:1: unknown label violet; the classes are green, red",
    f"{val}:1: {tmp_path / 'other.png'} is in train as well: an image may be in one alone",
  ]
  notes = [
    f"note: {train}: the rows of an image are joined where it has several: images 1, first a.png",
    f"note: {val}: class green has no image",
    f"note: {test}: class green has no image",
    f"note: {test}:2: {tmp_path / 'test.png'} has the same content as {tmp_path / 'same.png'}, of the train split",
    "note: rare, with fewer than 10 training images: green (2), red (3)",
  ]
  lines = found.stdout.splitlines()
  for line in wanted + notes:
    assert any(each.startswith(line) for each in lines), (line, lines)
  assert lines[-1] == f"{len(wanted)} problems that stop training"
  assert f"train: 5 images in {tmp_path}, 1.00 labels an image, 1 without a label (negatives), 0 boxes" in lines


@pytest.mark.parametrize("divided", [False, True])
def test_names_that_are_no_text_are_told_of_before_anything_fails_of_them(tmp_path, divided):
  folder = tmp_path / "own"
  write_voc(folder, "train")
  shutil.rmtree(folder / "ImageSets")
  for part, suffix in (("Annotations", "xml"), ("JPEGImages", "png")):
    path = folder / part / f"train0.{suffix}"
    try:
      path.rename(path.with_name(f"caf\udce9.{suffix}"))  # a byte of Windows-1252
    except OSError as error:
      pytest.skip(f"the file system takes no such names ({error})")
  data = custom.get_config().data
  data.train = f"{folder}:train" if divided else str(folder)
  data.split = (0.5, 0.5) if divided else ()
  wanted = r"the name of caf\udce9.png is not UTF-8, as in zips of another system: rename the file"
  assert len([each for each in validate(data).problems if wanted in each]) == 1
  with pytest.raises(UserError) as caught:
    splits.open_split(data, data.train)
  assert wanted in str(caught.value)


def test_what_no_file_can_be_called_is_missing_and_may_be_skipped(tmp_path):
  manifest = write_csv(tmp_path, "train")
  with open(manifest, "a") as file:
    file.write("a\0.png,red\n")
  data = thin_config([manifest] * 3, corrupt="skip").data
  data.validation = data.test = ""
  assert f"{manifest}:14: there is no image {tmp_path / 'a'}\0.png" in validate(data).notes
  split = splits.open_split(data, manifest)
  assert len(split) == 13
  split.digest()
  with pytest.raises(UserError, match=r"custom train \[12\]: cannot read .*a\\0\.png"):
    split[12]
  data.corrupt = "error"
  with pytest.raises(UserError, match="there is no image"):
    splits.open_split(data, manifest)


def test_the_validation_command_says_that_all_is_well(tmp_path):
  flags = [
    f"--config.data.{split}={write_csv(tmp_path, name)}"
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test"))
  ]
  command = [sys.executable, "-m", "rmam_jax", "validate"]
  without_train = subprocess.run([*command, *flags[1:]], cwd=ROOT, capture_output=True, text=True)
  assert without_train.returncode == 1
  assert without_train.stderr.splitlines()[-1].startswith("error: data.train, data.validation and data.test must name")
  found = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
  assert (found.returncode, found.stdout.splitlines()[-1]) == (0, "nothing stops training"), found.stderr
  assert [line.split() for line in found.stdout.splitlines() if line.startswith("blue")] == [["blue", "6", "3", "3"]]


def problems(tmp_path, name, content):
  (tmp_path / name).write_text(content)
  return parse(str(tmp_path / name))[1]


@pytest.mark.parametrize(
  ("name", "content", "wanted"),
  [
    ("a.csv", "what,labels\n", "a.csv:1: no column is known as that of the images; the columns are 'what', 'labels'"),
    ("a.csv", "image\n", "a.csv:1: no column is known as that of the labels; the columns are 'image'"),
    ("a.csv", "", "a.csv: an empty file; its first row must name columns, e.g. image,labels"),
    ("a.csv", "image,labels\n", "a.csv: it names no image"),
    ("a.csv", 'image,labels\n"x.png,red\n', "a.csv:2: not valid CSV"),
    (
      "a.jsonl",
      '{"image": "x.png", "labels": [["red"]]}',
      "a.jsonl:1: labels must be names that can be printed",
    ),
    ("a.jsonl", '{"image": "x.png", "labels": ["a"], "labels": ["b"]}', "the field 'labels' stands there twice"),
    (
      "a.jsonl",
      '{"image": "x.png", "lables": []}',
      "a.jsonl:1: no field is known as that of the labels; the fields are",
    ),
    ("a.json", "[]", "a.json: it names no image"),
    ("a.json", "{}", "a.json: not as COCO has it"),
    (
      "a.json",
      '{"images": [{"id": 1, "file_name": "x.png"}], "categories": [], "annotations": [{"image_id": 2}]}',
      "a.json annotations[0]: image_id 2 is the id of no image",
    ),
    (
      "a.json",
      '{"images": [{"id": 1}], "categories": [], "annotations": []}',
      "a.json images[0]: file_name is missing",
    ),
    (
      "a.json",
      '{"images": [{"id": 1, "file_name": "x.png"}, {"id": 1, "file_name": "y.png"}], "categories": [],'
      ' "annotations": []}',
      "a.json images[1]: id 1 is a duplicate: one before it has it",
    ),
    ("a.json", '{"images": [], "categories": [], "annotations": null}', "a.json: not as COCO has it"),
  ],
)
def test_malformed_manifests_are_told_of_by_place(tmp_path, name, content, wanted):
  found = problems(tmp_path, name, content)
  assert any(wanted in problem for problem in found), found


@pytest.mark.parametrize(
  ("xml", "wanted"),
  [
    ("<annotation>", "no XML that can be read"),
    ("", "an empty file"),
    ("<annotations/>", "not as VOC has it: its root is <annotations>, not <annotation>"),
    ("<annotation><object><name> </name></object></annotation>", "object 0 has no name"),
  ],
)
def test_malformed_xml_is_told_of(tmp_path, xml, wanted):
  (tmp_path / "Annotations").mkdir()
  (tmp_path / "Annotations" / "a.xml").write_text(xml)
  assert f"a.xml: {wanted}" in parse(str(tmp_path))[1][0]


def test_xml_that_expands_is_refused(tmp_path):
  from defusedxml import EntitiesForbidden

  (tmp_path / "Annotations").mkdir()
  (tmp_path / "Annotations" / "a.xml").write_text(
    '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotation><filename>&c;</filename></annotation>'
  )
  (found,) = parse(str(tmp_path))[1]
  assert EntitiesForbidden.__name__ in found


def test_what_is_no_manifest_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"there is no manifest .*missing\.csv"):
    parse(str(tmp_path / "missing.csv"))
  assert "no VOC-style folder: it holds no XML file" in parse(str(tmp_path)).problems[0]
  (tmp_path / "a.yaml").write_text("")
  assert (
    "a.yaml: a manifest is a folder or one of .csv, .tsv, .txt, .jsonl, .js"
    in parse(str(tmp_path / "a.yaml")).problems[0]
  )
  with pytest.raises(UserError, match=r"must name a manifest each: --config\.data\.train=train\.csv"):
    splits.open_split(custom.get_config().data, "")


def test_training_stops_at_the_first_problems_and_names_the_command(tmp_path):
  train, val = write_csv(tmp_path, "train"), tmp_path / "val.csv"
  val.write_text("image,labels\n" + "".join(f"{i}.png,mauve\n" for i in range(7)))
  config = thin_config((train, str(val), train))
  with pytest.raises(ValueError, match=r"val\.csv:2: unknown label mauve.* and 10 more\. `rmam-jax validate`"):
    splits.open_split(config.data, str(val))


def test_a_label_cannot_be_ignored_as_well(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("image,labels,ignore\na.png,red|blue,blue\n")
  config = thin_config((str(path),) * 3)
  with pytest.raises(UserError, match=r"a\.csv:2: blue is both a label and to be ignored"):
    splits.open_split(config.data, str(path))


def test_images_may_lie_elsewhere_and_classes_be_given(tmp_path):
  images = tmp_path / "images"
  images.mkdir()
  (images / "a.png").write_bytes(png(draw(["red"], 0)[0]))
  path = tmp_path / "a.csv"
  path.write_text("image,labels\na.png,red\n")
  config = thin_config((str(path),) * 3, images=str(images), classes=("violet", "red"))
  split = splits.open_split(config.data, str(path))
  assert split.class_names == ("violet", "red")
  np.testing.assert_array_equal(split[0].labels, [0, 1])
  (images / "a.png").unlink()
  with pytest.raises(UserError, match=rf"custom train \[0\]: cannot read {images}/a\.png"):
    batches.read_image(split, 0)
