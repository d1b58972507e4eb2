"""Predictions for any images: the same as the evaluation's, in pixels of the original, whatever comes between."""

import copy
import functools
import io
import itertools
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

import rmam_jax
from configs import digits
from examples import compare_looks
from rmam_jax.data import splits
from rmam_jax.evaluation import calibration, metrics
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.inference import predict_files, predictor
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import stages
from rmam_jax.training import step as step_lib
from rmam_jax.training.exported import TrainedModel

ROOT = pathlib.Path(__file__).parent.parent
NAMES = tuple("0123456789")


def tiny(data_root):
  config = digits.get_config("tiny")
  config.data.root = str(data_root)
  return config.data


def untrained(head="saliency", **fields):
  """A small recognizer with random parameters."""
  config = digits.get_config(f"tiny:{head}")
  config.model.vgg.blocks = ((4,), (4,), (8,))
  config.model.x_width = config.model.lstm_width = config.model.z_width = 16
  for field, value in fields.items():
    config.model[field] = value
  model = stages.build_model(config, "stage_two", len(NAMES))
  shapes = jax.eval_shape(lambda key: step_lib.init_params(model, key, config.data.crop_size), jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(leaf.dtype), shapes)
  return TrainedModel(config=config, class_names=NAMES, params=params, selection=None)


@pytest.fixture(scope="module")
def small():
  """A predictor that gives every label, three images at a time."""
  return predictor.Predictor(untrained(), threshold=0.0, batch_size=3)


@pytest.fixture(scope="module")
def scenes(data_root):
  """The records of digits/tiny's test split."""
  split = splits.open_split(tiny(data_root), "test")
  return [split[index] for index in range(len(split))]


def encoded(image, format="PNG"):
  file = io.BytesIO()
  Image.fromarray(image).save(file, format)
  return file.getvalue()


def test_predictions_are_the_evaluation_s(small, scenes, data_root):
  trained = untrained()
  mesh = mesh_lib.make_mesh()
  model = stages.build_model(trained.config, "stage_two", len(NAMES))
  theirs = outputs_lib.compute_outputs(
    outputs_lib.make_forward(model, mesh),
    trained.params,
    splits.open_split(tiny(data_root), "test"),
    data=trained.config.data,
    batch_size=20,
  )
  ours = small.predict([scene.image for scene in scenes[:7]])  # the third batch is padded
  for index, found in enumerate(ours):
    wanted = 1 / (1 + np.exp(-theirs.scores[index].astype(float)))
    np.testing.assert_allclose(found.probabilities, wanted, rtol=1e-4)
    assert [label.name for label in found.labels] == [NAMES[c] for c in np.argsort(-wanted)]
    steps = {label.name: label.step for label in found.labels}
    assert [steps[name] for name in NAMES] == (theirs.winners[index] + 1).tolist()
    for k, region in enumerate(found.regions):
      assert (region.step, region.label) == (k + 1, NAMES[theirs.region_scores[k, index].argmax()])
      s, t = theirs.thetas[k, index, :2], theirs.thetas[k, index, 2:]
      corners = views_lib.view_to_image(np.stack([t - s, t + s]), image_size=72, crop_size=64, stride=4)
      np.testing.assert_allclose(np.array(region.box) / 72, np.clip(corners, 0, 1).ravel(), atol=1e-5)


def test_boxes_are_in_pixels_of_the_original():
  # Views of 64 begin at pixel 4 of 72; 16 cells of 4 pixels: -1 is pixel 2 and 1 is pixel 62, one unit is 30 pixels.
  grid = predictor.Predictor(untrained("fixed_grid", num_regions=1), threshold=0.0, batch_size=2)
  image = np.zeros((144, 360, 3), np.uint8)  # twice as high as 72 and five times as wide
  (found,) = grid.predict([encoded(image)])
  assert (found.width, found.height) == (360, 144)
  wanted = [5 * (36 - 15), 2 * (36 - 15), 5 * (36 + 15), 2 * (36 + 15)]  # scale 0.5 around the centre
  np.testing.assert_allclose(found.regions[0].box, wanted, rtol=1e-6)
  assert {label.box for label in found.labels} == {found.regions[0].box}
  assert {label.step for label in found.labels} == {1}


def test_boxes_are_in_pixels_of_a_photograph_that_is_decoded_in_part():
  """1,440 x 960 on its side, a quarter of each side decoded: 960 x 1,440 upright, as a PNG of all its pixels is."""
  grid = predictor.Predictor(untrained("fixed_grid", num_regions=1), threshold=0.0, batch_size=2)
  image = Image.linear_gradient("L").convert("RGB").resize((1_440, 960))
  exif, file, whole = image.getexif(), io.BytesIO(), io.BytesIO()
  exif[ExifTags.Base.Orientation] = 6
  image.save(file, "JPEG", exif=exif)
  image.rotate(-90, expand=True).save(whole, "PNG")
  read = predictor.read_image(file.getvalue(), "a", (72, 72))
  assert (read.pixels.shape, read.shape) == ((360, 240, 3), (1_440, 960))
  found, wanted = grid.predict([file.getvalue(), whole.getvalue()])
  assert (found.width, found.height, found.regions[0].box) == (960, 1_440, wanted.regions[0].box)
  np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=0.01)


def test_boxes_end_at_the_image_s_edge():
  trained = untrained("fixed_grid", num_regions=1)
  trained.config.model.fixed_grid.scale = 3.0
  (found,) = predictor.Predictor(trained, batch_size=2).predict([np.zeros((30, 50, 3), np.uint8)])
  np.testing.assert_allclose(found.regions[0].box, [0, 0, 50, 30], atol=1e-6)


def test_a_head_that_does_not_look_gives_labels_only(scenes):
  (found,) = predictor.Predictor(untrained("mean_pool"), threshold=0.0, batch_size=2).predict([scenes[0].image])
  assert found.regions == []
  assert {(label.step, label.box) for label in found.labels} == {(None, None)}
  assert len(found.labels) == 10


def test_files_bytes_and_pixels_are_one(small, scenes, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "scene.png").write_bytes(scenes[0].image)
  with Image.open(tmp_path / "scene.png") as image:
    pixels = np.asarray(image.convert("RGB"))
  monkeypatch.chdir(tmp_path)
  (tmp_path / "~$scene.png").write_bytes(scenes[0].image)  # of no user's home
  found = small.predict([tmp_path / "scene.png", "~/scene.png", "~$scene.png", scenes[0].image, pixels])
  assert len({str(each) for each in found}) == 1
  assert small.predict([]) == []


def test_images_of_every_kind_are_one(small, scenes, tmp_path):
  """Open files, what holds their bytes, Pillow's images, opaque and grey pixels, and what numpy makes an array of."""
  (tmp_path / "scene.png").write_bytes(scenes[0].image)
  grey = np.asarray(Image.open(io.BytesIO(scenes[0].image)).convert("L"))
  rgb = np.stack([grey] * 3, axis=-1)
  opaque = np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], axis=-1)
  deep = grey.astype(np.uint16) * 257
  deep[20:40, 20:40] = 65_535
  whitened = rgb.copy()
  whitened[20:40, 20:40] = 255
  same = [rgb, grey, grey[..., None], opaque, jax.numpy.asarray(rgb), Image.fromarray(grey), io.BytesIO(encoded(grey))]
  found = small.predict([*same, bytearray(encoded(grey)), deep, whitened])
  assert len({str(each) for each in found[:8]}) == 1
  assert str(found[8]) == str(found[9]) != str(found[0])
  with (tmp_path / "scene.png").open("rb") as file, Image.open(tmp_path / "scene.png") as image:
    found = small.predict([file, image, tmp_path / "scene.png"])
  assert len({str(each) for each in found}) == 1
  batch = small.predict(np.stack([rgb, whitened]))
  assert len(batch) == 2


def test_what_cannot_be_read_is_called_by_its_name_where_it_has_one(small, tmp_path):
  (tmp_path / "broken.png").write_bytes(b"no image")
  with (tmp_path / "broken.png").open("rb") as file, (tmp_path / "broken.png").open() as text:
    found = [str(each) for each in small.stream([file, text, io.BytesIO(b"no image"), [1, 2]])]
  assert found[0].startswith(f"{tmp_path / 'broken.png'}: not a readable image")
  assert found[1] == f"{tmp_path / 'broken.png'}: a file must be opened to be read as bytes: open(..., 'rb')"
  assert found[2].startswith("image 2: not a readable image")
  assert found[3].startswith("image 3: pixels must be uint8")


@pytest.mark.parametrize("kind", ["two", "ten"])
def test_more_views_are_those_of_the_evaluation_and_regions_those_of_the_centre(scenes, data_root, kind):
  trained = untrained()
  with trained.config.unlocked():
    trained.config.data.image_size, trained.config.data.crop_size = 80, 64  # half of what is left: two cells of 4
  sources = [scene.image for scene in scenes[:3]]
  one, more = (
    predictor.Predictor(trained, threshold=0.0, batch_size=2, views=each).predict(sources) for each in ("centre", kind)
  )
  model, views = (
    stages.build_model(trained.config, "stage_two", len(NAMES)),
    views_lib.from_config(trained.config, kind),
  )
  data = trained.config.data.copy_and_resolve_references()
  data.root = str(data_root)
  theirs = outputs_lib.compute_outputs(
    outputs_lib.make_forward(model, mesh_lib.make_mesh(), views),
    trained.params,
    splits.open_split(data, "test", 3),
    data=data,
    batch_size=2,
  )
  for index, (centre, found) in enumerate(zip(one, more, strict=True)):
    np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp(-theirs.scores[index].astype(float))), rtol=1e-4)
    assert not np.allclose(found.probabilities, centre.probabilities, rtol=1e-3)
    if kind == "two":  # the centre of ten views is cut from a map that feels what is around it
      np.testing.assert_allclose([r.box for r in found.regions], [r.box for r in centre.regions], atol=1e-3)
  with pytest.raises(UserError, match=r"evaluation\.views must be one of centre, two, five, ten, got 'tenn'"):
    predictor.Predictor(trained, views="tenn")


def test_a_single_pixel_is_an_image(small):
  (found,) = small.predict([np.full((1, 1, 3), 7, np.uint8)])
  assert (found.width, found.height) == (1, 1)
  assert all(0 <= side <= 1 for region in found.regions for side in region.box)


def test_the_broken_do_not_touch_the_others(small, scenes, tmp_path):
  sources = [scene.image for scene in scenes[:12]]
  missing = tmp_path / "missing.png"
  broken = {1: b"no image", 4: b"", 5: str(missing), 6: tmp_path}
  mixed = [broken.get(index, source) for index, source in enumerate(sources)]
  found = list(small.stream(mixed))
  errors = [(index, str(each)) for index, each in enumerate(found) if isinstance(each, Exception)]
  assert [index for index, _ in errors] == [1, 4, 5, 6]
  assert errors[0][1].startswith("image 1: not a readable image")
  assert errors[2][1] == f"{missing}: No such file or directory"
  assert errors[3][1] == f"{tmp_path}: Is a directory"
  whole = small.predict(sources)  # as many: another batch is another program, and may round otherwise
  for index, each in enumerate(found):
    assert index in broken or str(each) == str(whole[index])
  with pytest.raises(UserError, match="image 1: not a readable image"):
    small.predict(mixed)


def test_what_is_no_list_of_images_is_refused(small):
  with pytest.raises(UserError, match=r"predict\(\[image\]\)"):
    small.predict("photo.jpg")
  with pytest.raises(UserError, match=r"image 0: pixels must be uint8 .*, got float64"):
    small.predict([np.zeros((4, 4, 3))])
  for single in (Image.new("L", (4, 4)), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), io.BytesIO(b"x")):
    with pytest.raises(UserError, match=r"predict\(\[image\]\)"):
      small.predict(single)
  with pytest.raises(UserError, match=r"got uint8 \[4, 4, 2\]"):
    small.predict([np.zeros((4, 4, 2), np.uint8)])
  with pytest.raises(UserError, match=r"image 1: no array of pixels"):
    small.predict([np.zeros((4, 4, 3), np.uint8), [[1, 2], [3]]])
  with pytest.raises(UserError, match=r"image 0: pixels must be uint8 .*\[3, 0, 3\]"):
    small.predict([Image.new("RGB", (0, 3))])
  with pytest.raises(UserError, match="batch_size and threads must be at least 1, got 0"):
    predictor.Predictor(untrained(), batch_size=0)


def test_an_endless_stream_is_read_a_few_batches_ahead(small, scenes):
  taken = itertools.count()
  found = small.stream(scenes[next(taken) % 3].image for _ in itertools.count())
  first = [next(found) for _ in range(10)]
  assert all(isinstance(each, predictor.Prediction) for each in first)
  assert next(taken) <= 10 + 4 * 4 + 1  # four at a time on two devices, four batches begun
  found.close()


def test_thresholds_by_hand():
  make_thresholds = functools.partial(calibration.make_thresholds, "sigmoid", top_k=3)
  scores = np.log([[0.2, 0.6, 0.8, 0.4]]) - np.log(
    1 - np.array([[0.2, 0.6, 0.8, 0.4]])
  )  # probability -> sigmoid's score
  rule = make_thresholds({})
  np.testing.assert_allclose(rule.probabilities(scores), [[0.2, 0.6, 0.8, 0.4]], rtol=1e-5)

  def chosen(rule):
    return rule.chosen(scores)[0].tolist()

  assert chosen(rule) == [0, 1, 1, 0]
  assert chosen(make_thresholds({}, threshold=0.3)) == [0, 1, 1, 1]
  assert chosen(make_thresholds({}, top=1)) == [0, 0, 1, 0]
  assert chosen(make_thresholds({}, top=0)) == [0, 1, 1, 0]
  calibrated = {"thresholds": [-2.0, 0.3, 2.0, 0.0]}  # the scores are -1.4, 0.4, 1.4, -0.4
  assert chosen(make_thresholds(calibrated)) == [1, 1, 0, 0]
  assert chosen(make_thresholds(calibrated, threshold=0.5)) == [0, 1, 1, 0]
  cool = make_thresholds({"temperature": 2.0})
  np.testing.assert_allclose(cool.probabilities(scores)[0, 2], 2 / 3, rtol=1e-5)  # odds of 4 become 2

  make_thresholds = functools.partial(calibration.make_thresholds, "euclidean", top_k=3)
  softmax = make_thresholds({})
  np.testing.assert_allclose(softmax.probabilities(scores).sum(), 1, rtol=1e-6)
  assert chosen(softmax) == [0, 1, 1, 1]  # the top three
  # The odds are 1/4, 3/2, 4, 2/3 of 77/12; the softmax's log-odds log(3/74), log(18/59), log(48/29), log(8/69).
  assert chosen(make_thresholds({"thresholds": [-3.3, -1.1, 0.6, -2.1]})) == [1, 0, 0, 0]
  assert chosen(make_thresholds({"thresholds": [-3.1, -1.3, 0.4, -2.2]})) == [0, 1, 1, 1]
  assert chosen(make_thresholds({}, threshold=0.5)) == [0, 0, 1, 0]  # they are .04, .23, .62, .10
  with pytest.raises(UserError, match=r"between 0 and 1, got 1\.5"):
    make_thresholds({}, threshold=1.5)
  with pytest.raises(UserError, match="top must be 0"):
    make_thresholds({}, top=-1)


def test_a_threshold_for_each_class_by_its_name(tmp_path, scenes):
  trained = untrained("mean_pool")
  names = trained.class_names
  images = [scenes[0].image]
  (found,) = predictor.Predictor(trained, threshold=0.0, batch_size=2).predict(images)
  least = dict(zip(names, found.probabilities.tolist(), strict=True)) | {names[3]: 1.0}
  turned = {name: least[name] for name in reversed(names)}
  (given,) = predictor.Predictor(trained, threshold=turned, batch_size=2).predict(images)
  assert {label.name for label in given.labels} == {*names} - {names[3]}
  for wrong, message in (
    (
      {**least, "cow": 0.5},
      f"thresholds name the unknown class 'cow': they must name each of the {len(names)} classes",
    ),
    ({names[0]: 0.5}, f"thresholds lack '{sorted(names[1:])[0]}'"),
    ({**least, names[1]: "high"}, f"thresholds: that of '{names[1]}' must be a number, got 'high'"),
    ({**least, names[1]: 2.0}, "threshold must be a probability between 0 and 1, got 2.0"),
  ):
    with pytest.raises(UserError, match=re.escape(message)):
      predictor.Predictor(trained, threshold=wrong, batch_size=2)


def test_finding_images(tmp_path, capsys):
  for name in ("b.JPG", "a.png", "notes.txt", "README", "deep/er/c.webp"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  (tmp_path / "empty").mkdir()
  found = predict_files.find_images([str(tmp_path), str(tmp_path / "a.png")])
  assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.png", "b.JPG", "deep/er/c.webp"]
  assert capsys.readouterr().err == f"{tmp_path}: passed over, not named as images: 2 (.txt, no ending)\n"
  assert predict_files.find_images([str(tmp_path / "*.txt")]) == [tmp_path / "notes.txt"]
  assert predict_files.find_images([str(tmp_path / "d*")]) == [tmp_path / "deep/er/c.webp"]
  assert predict_files.find_images(["gone.png"]) == [pathlib.Path("gone.png")]  # reported when it is read
  with pytest.raises(UserError, match="empty holds no image: none of its 0 files"):
    predict_files.find_images([str(tmp_path / "empty")])
  with pytest.raises(UserError, match=r"\*.gif matches nothing"):
    predict_files.find_images([str(tmp_path / "*.gif")])


def test_folders_behind_links_are_looked_into_once(tmp_path):
  (tmp_path / "here").mkdir()
  (tmp_path / "far").mkdir()
  (tmp_path / "far/a.png").touch()
  for name in ("one", "two"):
    (tmp_path / "here" / name).symlink_to(tmp_path / "far")
  (tmp_path / "far/round").symlink_to(tmp_path / "here")
  (found,) = predict_files.find_images([str(tmp_path / "here")])
  assert found.parent.parent == tmp_path / "here"
  assert found.resolve() == tmp_path / "far/a.png"


def test_an_unreadable_folder_is_an_error(tmp_path, monkeypatch):
  def scandir(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr("os.scandir", scandir)  # root may read everything
  with pytest.raises(UserError, match=f"cannot read the folder {tmp_path}: Permission denied"):
    predict_files.find_images([str(tmp_path)])


@pytest.fixture
def mixed(tmp_path, scenes):
  """A folder of four good scenes, two of the same name, and two broken files."""
  folder = tmp_path / "mixed"
  (folder / "more").mkdir(parents=True)
  for name, scene in zip(("a.png", "a.jpg", "more/a.png", "ünïcode $x$.png"), scenes, strict=False):
    (folder / name).write_bytes(scene.image)
  (folder / "broken.png").write_bytes(scenes[0].image[:500])
  (folder / "text.jpg").write_text("no image")
  return folder


def test_csv_has_a_row_for_each_label_and_region(small, mixed, tmp_path, capsys):
  out = tmp_path / "found.csv"
  strict = copy.copy(small)
  strict.thresholds = small.thresholds._replace(scores_from=np.inf)
  assert predict_files.predict_files(strict, [str(mixed)], format="csv", out=out, with_regions=True) == 2
  assert capsys.readouterr().err.count("error: ") == 2
  lines = out.read_text().splitlines()
  assert lines[0] == "image,kind,label,probability,step,left,top,right,bottom"
  assert len(lines) == 1 + 4 * (1 + 6)
  assert lines[1] == f"{mixed / 'a.jpg'},none,,,,,,,"  # nothing is that sure
  assert [line.split(",")[4] for line in lines[2:8]] == list("123456")
  every = tmp_path / "every.csv"
  predict_files.predict_files(small, [str(mixed / "a.png")], format="csv", out=every)
  assert len(every.read_text().splitlines()) == 1 + 10


def test_pictures_have_their_own_places(small, mixed, tmp_path):
  predict_files.predict_files(small, [str(mixed)], out=tmp_path / "out", picture_folder=tmp_path / "drawn")
  drawn = sorted(path.relative_to(tmp_path / "drawn").as_posix() for path in (tmp_path / "drawn").rglob("*.png"))
  assert drawn == ["a.jpg.png", "a.png.png", "more/a.png.png", "ünïcode $x$.png.png"]


def test_nothing_is_written_over(small, mixed, tmp_path):
  out = tmp_path / "out"
  out.write_text("mine")
  with pytest.raises(UserError, match=r"out exists: remove it or name another file with --out=FILE"):
    predict_files.predict_files(small, [str(mixed)], out=out)
  assert out.read_text() == "mine"
  with pytest.raises(UserError, match=r"mixed exists and is no empty folder: name another with --pictures=OUT"):
    predict_files.predict_files(small, [str(mixed)], picture_folder=mixed)
  with pytest.raises(UserError, match=r"out exists and is no empty folder"):
    predict_files.predict_files(small, [str(mixed)], picture_folder=out)
  with pytest.raises(UserError, match=f"cannot write {tmp_path / 'no' / 'where'}: No such file or directory"):
    predict_files.predict_files(small, [str(mixed)], out=tmp_path / "no" / "where")
  with pytest.raises(UserError, match=f"cannot make the folder {out / 'in'}: Not a directory"):
    predict_files.predict_files(small, [str(mixed)], picture_folder=out / "in")


def predict(*arguments):
  return subprocess.run(
    [sys.executable, ROOT / "predict.py", *arguments], capture_output=True, text=True, timeout=300, check=False
  )


def test_the_command_on_good_and_broken_files(mixed):
  found = predict(str(mixed), "--regions")
  assert found.returncode == 1
  lines = [json.loads(line) for line in found.stdout.splitlines()]
  assert [pathlib.Path(line["image"]).name for line in lines] == ["a.jpg", "a.png", "a.png", "ünïcode $x$.png"]
  assert {(line["width"], line["height"]) for line in lines} == {(72, 72)}
  assert all(len(line["regions"]) >= 1 for line in lines)
  for name in ("broken.png", "text.jpg"):
    assert f"error: {mixed / name}: not a readable image" in found.stderr
  assert "2 of 6 files could not be read" in found.stderr
  assert "Traceback" not in found.stderr


def test_the_command_s_errors_are_sentences(tmp_path):
  found = predict(f"--workdir={tmp_path}", "photo.jpg")
  assert found.returncode == 1
  assert found.stderr.splitlines()[-1].startswith(f"error: {tmp_path} ")
  assert "Traceback" not in found.stderr


def test_the_shipped_model_is_small_and_reads_digits(scenes):
  assert sum(path.stat().st_size for path in (predictor.PRETRAINED / "digits-easy").iterdir()) < 5e6
  recognizer = rmam_jax.load("digits-easy", batch_size=40)
  found = recognizer.predict([scene.image for scene in scenes])
  labels = np.stack([scene.labels for scene in scenes])
  precisions = metrics.average_precisions(np.stack([each.probabilities for each in found]), labels)
  assert metrics.mean_average_precision(precisions) > 0.9


def test_the_shipped_recognizer_of_photographs_is_small_and_knows_a_cat_and_where_it_is():
  assert sum(path.stat().st_size for path in (predictor.PRETRAINED / "photographs").iterdir()) < 12e6
  cat, person = rmam_jax.load().predict([ROOT / "docs" / "cat.jpg", ROOT / "docs" / "astronaut.jpg"])
  assert [label.name for label in cat.labels] == ["cat"]
  assert [label.name for label in person.labels] == ["person"]
  assert min(cat.labels[0].probability, person.labels[0].probability) > 0.9
  left, top, right, bottom = cat.labels[0].box
  head = (20, 0, 380, 290)  # by eye
  inside = max(min(right, head[2]) - max(left, head[0]), 0) * max(min(bottom, head[3]) - max(top, head[1]), 0)
  union = (right - left) * (bottom - top) + (head[2] - head[0]) * (head[3] - head[1]) - inside
  assert inside / union > 0.5


def test_a_folder_of_a_shipped_recognizer_s_name_comes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert len(rmam_jax.load("digits-easy").class_names) == 10
  (tmp_path / "digits-easy").mkdir()
  with pytest.raises(UserError, match=r"digits-easy holds neither a model\.json"):
    rmam_jax.load("digits-easy")


def test_recognizers_are_compared_on_the_same_images(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(compare_looks.pictures, "draw", lambda path, panels, *, columns: drawn.append((panels, columns)))
  images = [str(pathlib.Path(__file__).parent.parent / "docs" / name) for name in ("scene.png", "cat.jpg")]
  compare_looks.compare(tmp_path / "looks.png", ["digits-easy", "photographs"], images)
  ((panels, columns),) = drawn
  assert columns == 2
  assert [panel.title for panel in panels] == [
    f"{name}: {image}" for name in ("digits-easy", "photographs") for image in ("scene", "cat")
  ]
  (verdict,) = panels[3].verdicts
  assert (verdict.label, verdict.step) == ("cat", 0)
  assert verdict.probability > 0.9
  top, left, bottom, right = panels[3].boxes[0]
  assert 0 <= top < bottom <= 1
  assert 0 <= left < right <= 1
