"""Views against a plain loop, features that survive a stop and notice a change, a selection that never sees the test split."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from test_training import tiny_config

from rmam_jax import heads, recognizer
from rmam_jax.config import get_config
from rmam_jax.data import splits, stored
from rmam_jax.data.record import Index, Record
from rmam_jax.data.splits import open_split
from rmam_jax.evaluation import metrics, report, svm
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import scores as scores_lib
from rmam_jax.evaluation import selection as selection_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.ops import spatial_transformer
from rmam_jax.runtime import files
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import evaluate, loop
from rmam_jax.training import step as step_lib

SIZE, CROP, STRIDE = 24, 16, 2


def view_config(data_root, **changes):
  config = tiny_config(data_root)
  with config.unlocked():
    config.data.image_size, config.data.crop_size = SIZE, CROP
  config.update_from_flattened_dict({f"evaluation.{name}": value for name, value in changes.items()})
  return config


@pytest.fixture(scope="module")
def small():
  """A recognizer that looks three times, its parameters, images, and its centre view as a program."""
  config = tiny_config(".")
  model = recognizer.build(config.model, 4, head="saliency", auxiliary="score_map")
  params = jax.jit(lambda key: step_lib.init_params(model, key, CROP))(jax.random.key(0))
  params["backbone"] = jax.tree.map(lambda x: x + 0.1, params["backbone"])  # so that zeros outside would show
  images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
  return model, params, images, outputs_lib.make_forward(model, mesh_lib.make_mesh())


def slow_views(model, params, image, mirror, feature):
  """One image, one window at a time, in the paper's words."""

  @jax.jit
  def recognize(f_map):
    return model.apply({"params": params}, f_map, method="recognize")

  def backbone(image):
    return np.asarray(model.apply({"params": params}, image[None], method="feature_map"))[0]

  whole = backbone(image)
  mirrored = backbone(image[:, ::-1]) if mirror == "image" else whole[:, ::-1]
  all_scores, all_features, all_auxiliary, centre = [], [], [], None
  for f_map in (whole, mirrored):
    for top, left in ((4, 4), (0, 0), (0, 8), (8, 0), (8, 8)):  # pixels
      rows, columns = (slice(start // STRIDE, (start + CROP) // STRIDE) for start in (top, left))
      attention, auxiliary = recognize(f_map[None, rows, columns])
      centre = centre or (np.asarray(attention.scores[:, 0]), np.asarray(attention.thetas[:, 0]))
      all_scores.append(np.max(attention.scores[:, 0], axis=0))
      all_features.append(np.max(getattr(attention, feature)[:, 0], axis=0))
      all_auxiliary.append(np.max(auxiliary.scores[:, 0], axis=0))
  return np.mean(all_scores, axis=0), np.mean(all_features, axis=0), np.mean(all_auxiliary, axis=0), *centre


@pytest.mark.parametrize(("mirror", "feature"), [("image", "z"), ("map", "h"), ("image", "x")])
def test_ten_views_are_a_slow_loop_s(small, data_root, mirror, feature):
  model, params, images, _ = small
  ten = views_lib.from_config(view_config(data_root, views="ten", mirror=mirror))
  forward = outputs_lib.make_forward(model, mesh_lib.make_mesh(), ten, feature=feature)
  found = jax.device_get(forward(params, images))
  for index, image in enumerate(images[:2]):
    wanted = slow_views(model, params, image, mirror, feature)
    for name, value in zip(("scores", "features", "auxiliary", "region_scores", "thetas"), wanted, strict=True):
      np.testing.assert_allclose(found[name][index], value, atol=2e-5, err_msg=name)


def test_features_by_class_are_the_mean_over_the_views(data_root):
  config = view_config(data_root, views="ten")
  model = recognizer.build(config.model, 4, head="csra")
  params = jax.jit(lambda key: step_lib.init_params(model, key, CROP))(jax.random.key(0))
  images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
  options = {"feature": "class", "class_features": heads.SPECS["csra"].class_features}
  ten = views_lib.from_config(config)
  found = outputs_lib.make_forward(model, mesh_lib.make_mesh(), ten, **options)(params, images)["features"]
  maps = views_lib.feature_maps(model, params, images, ten)
  every = [model.apply({"params": params}, maps[:, view], method="recognize").attention.memory for view in range(10)]
  assert every[0].shape == found.shape == (2, 4, maps.shape[-1])
  np.testing.assert_allclose(found, np.mean(every, axis=0), rtol=1e-4, atol=1e-6)


def test_ten_views_take_one_pass_of_the_backbone_over_an_image_and_its_mirror_image(small, data_root):
  model, params, images, _ = small
  ten = outputs_lib.make_forward(
    model, mesh_lib.make_mesh(), views_lib.from_config(view_config(data_root, views="ten"))
  )
  text = ten.program.trace(params, images, None).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("stablehlo.convolution") == len(params["backbone"]) == 2
  assert f"tensor<{2 * len(images)}x{SIZE}x{SIZE}x3xf32>" in text


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_items_are_given_when_so_many_more_have_been_begun(count):
  begun = []
  for given, item in enumerate(outputs_lib.ahead((begun.append(n) or n for n in range(5)), count)):
    assert item == given
    assert begun == list(range(min(given + count + 1, 5)))
  assert given == 4


def test_the_centre_view_is_the_pixels_crop(small):
  model, params, images, forward = small
  crops = images[:, 4:20, 4:20]
  found = jax.device_get(forward(params, crops))
  attention, _ = jax.jit(model.apply)({"params": params}, crops)
  np.testing.assert_allclose(found["scores"], attention.scores.max(axis=0), atol=1e-5)
  np.testing.assert_allclose(found["region_scores"].swapaxes(0, 1), attention.scores, atol=1e-5)


def test_windows_differ_from_cropped_pixels_at_their_border_only(small, data_root):
  model, params, images, _ = small
  five = views_lib.from_config(view_config(data_root, views="five"))
  cut = np.asarray(views_lib.feature_maps(model, params, images, five))
  for index, (top, left) in enumerate(((4, 4), (0, 0), (0, 8), (8, 0), (8, 8))):
    cropped = views_lib.feature_maps(model, params, images[:, top : top + CROP, left : left + CROP], views_lib.CENTRE)[
      :, 0
    ]
    difference = np.abs(cut[:, index] - cropped).max(axis=(0, 3))
    # Two convolutions with a pool between them feel three pixels around a cell: two cells from an inner border.
    inner = [2 * (top > 0), 8 - 2 * (top < 8), 2 * (left > 0), 8 - 2 * (left < 8)]
    assert difference[inner[0] : inner[1], inner[2] : inner[3]].max() < 1e-4
    assert difference.max() > 0.1


def test_the_centre_window_s_places_are_those_of_the_pixels_crop():
  points = np.random.default_rng(0).uniform(-1, 1, (5, 2))
  found = views_lib.view_to_image(points, image_size=SIZE, crop_size=CROP, stride=STRIDE)
  cells = (points + 1) * (CROP // STRIDE - 1) / 2 + 2  # the window begins at cell 2 of the whole map
  whole = cells / (SIZE // STRIDE - 1) * 2 - 1
  np.testing.assert_allclose(found, spatial_transformer.map_to_pixels(whole, SIZE // STRIDE, STRIDE) / SIZE, atol=1e-6)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"views": "twenty"}, r"evaluation\.views must be one of centre, two, five, ten, got 'twenty'"),
    ({"mirror": "none"}, r"evaluation\.mirror must be one of image, map, got 'none'"),
  ],
)
def test_unknown_views_are_refused(changes, message, data_root):
  with pytest.raises(UserError, match=message):
    views_lib.from_config(view_config(data_root, **changes))


def test_windows_between_cells_are_refused(data_root):
  config = view_config(data_root, views="five")
  config.data.image_size = SIZE + 2
  with pytest.raises(UserError, match=r"must be multiples of the map's stride, 2 pixels; or set .*'centre'"):
    views_lib.from_config(config)
  config.evaluation.views = "centre"
  assert views_lib.from_config(config) == views_lib.CENTRE


def test_only_ten_views_are_mirrored(data_root):
  assert views_lib.from_config(view_config(data_root, views="five")).mirror == ""
  assert views_lib.from_config(view_config(data_root, views="ten")).mirror == "image"


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory):
  """A workdir, trained and evaluated."""
  folder = tmp_path_factory.mktemp("trained") / "run"
  changes = {"stage_one.epochs": 0, "stage_two.epochs": 1, "evaluation.svm_c": (0.1, 10.0), "evaluation.pictures": 0}
  loop.train(tiny_config(data_root, **changes), folder)
  evaluate.evaluate(folder)
  return folder


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / "run")


def count_forwards(monkeypatch, fail_at=None):
  """Counts the images that go through the devices; raises at a number of batches."""
  seen = []
  call = outputs_lib.Forward.__call__

  def counted(forward, params, images, boxes=None):
    if len(seen) == fail_at:
      raise KeyboardInterrupt
    seen.append(len(images))
    return call(forward, params, images, boxes)

  monkeypatch.setattr(outputs_lib.Forward, "__call__", counted)
  return seen


def extract(folder, small, split, key):
  _, params, _, forward = small
  data = tiny_config(".").data
  return outputs_lib.extract(folder, key, forward, params, split, data=data, batch_size=10, progress="")


def test_extraction_that_was_stopped_goes_on(small, data_root, tmp_path, monkeypatch):
  monkeypatch.setattr(outputs_lib, "CHUNK", 20)
  _, params, _, forward = small
  split = open_split(tiny_config(data_root).data, "test")
  key = outputs_lib.make_key(tiny_config(data_root), split, outputs_lib.digest_params(params))
  whole = outputs_lib.compute_outputs(forward, params, split, data=tiny_config(".").data, batch_size=10)
  with monkeypatch.context() as patch:
    count_forwards(patch, fail_at=3)
    with pytest.raises(KeyboardInterrupt):
      extract(tmp_path / "f", small, split, key)
  assert len(list((tmp_path / "f").glob("*.npz"))) == 1
  seen = count_forwards(monkeypatch)
  found = extract(tmp_path / "f", small, split, key)
  assert sum(seen) == 20  # not 40
  for name, value in whole._asdict().items():
    if name in ("ids", "boxes", "box_classes"):
      assert all(np.array_equal(a, b) for a, b in zip(getattr(found, name), value, strict=True)), name
    else:
      np.testing.assert_allclose(getattr(found, name), value, atol=1e-6)
  extract(tmp_path / "f", small, split, key)
  assert sum(seen) == 20  # all from disk
  with np.load(min((tmp_path / "f").glob("*.npz")), allow_pickle=False) as stored:
    assert stored["ids"][0] == split[0].id


def test_features_of_something_else_are_noticed_and_computed_again(small, data_root, tmp_path, monkeypatch, capsys):
  _, params, _, _ = small
  config, split = tiny_config(data_root), open_split(tiny_config(data_root).data, "test")
  digest = outputs_lib.digest_params(params)
  key = outputs_lib.make_key(config, split, digest)
  extract(tmp_path / "f", small, split, key)
  seen = count_forwards(monkeypatch)
  changed = jax.tree.map(np.array, params)
  bias = changed["head"]["attention"]["zs"]["bias"]
  bias[0] = np.nextafter(bias[0], 1)
  other_split = open_split(tiny_config(data_root).data, "test", 20)
  other_config = tiny_config(data_root, **{"evaluation.feature": "h"})
  for name, other in (
    ("checkpoint", outputs_lib.make_key(config, split, outputs_lib.digest_params(changed))),
    ("images, records", outputs_lib.make_key(config, other_split, digest)),
    ("feature, images, records", outputs_lib.make_key(other_config, split, digest)),
  ):
    seen.clear()
    extract(tmp_path / "f", small, other_split if other["images"] == len(other_split) else split, other)
    assert sum(seen) == other["images"]
    assert f"was made with another {name}: computed again" in capsys.readouterr().out.replace(
      "checkpoint, images", "images"
    )


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("data.image_size", 80),
    ("data.crop_size", 56),
    ("data.proposals", "objects"),
    ("data.num_proposals", 2),
    ("model.align_corners", False),
    ("model.pixel_mean", (0.0, 0.0, 0.0)),
    ("evaluation.feature", "x"),
  ],
)
def test_whatever_changes_outputs_changes_their_key(data_root, field, value):
  split = open_split(tiny_config(data_root).data, "test")
  one, other = (outputs_lib.make_key(tiny_config(data_root, **each), split, "") for each in ({}, {field: value}))
  assert one != other
  assert one != outputs_lib.make_key(tiny_config(data_root), split, "", views_lib.Views(mirror="map"))


class Stored(stored.Stored):
  """Records that are held in memory, some of them changed."""

  def __init__(self, changes):
    self.class_names, self.made_by, self._changes = ("cat", "dog"), "a description", changes
    self.origin, self.notes = "memory", ()

  def __getitem__(self, position):
    labels = np.eye(2, dtype=np.float32)[position % 2]
    known = Record(str(position), b"image", labels, np.zeros(2, bool), np.zeros((1, 4), np.float32), np.zeros(1))
    return known._replace(**self._changes.get(position, {}))


def digest_with(changes):
  source = Stored(changes)
  rows = [(each.id, each.labels, each.ignore, True) for each in map(source.__getitem__, range(500))]
  source.index = Index(*map(np.array, zip(*rows, strict=True)))
  return splits.Split("stored", source, np.arange(500), "ignore").digest()


def test_any_changed_label_changes_a_split_s_digest():
  assert 3 not in np.linspace(0, 499, stored.SAMPLED).astype(int)  # its image is not looked at
  changes = [
    {},
    {3: {"labels": np.ones(2, np.float32)}},
    {3: {"ignore": np.array([True, False])}},
    {3: {"id": "x"}},
    {0: {"image": b"other"}},
    {499: {"boxes": np.ones((1, 4), np.float32)}},
  ]
  assert len(set(map(digest_with, changes))) == len(changes)
  assert digest_with({}) == digest_with({})


def test_a_damaged_chunk_is_named(small, data_root, tmp_path):
  split = open_split(tiny_config(data_root).data, "test")
  key = outputs_lib.make_key(tiny_config(data_root), split, "")
  extract(tmp_path / "f", small, split, key)
  chunk = next((tmp_path / "f").glob("*.npz"))
  chunk.write_bytes(chunk.read_bytes()[:-100])
  with pytest.raises(UserError, match=rf"{chunk} is damaged .*: delete it and run the same command again"):
    extract(tmp_path / "f", small, split, key)


def test_an_evaluation_chooses_before_it_sees_the_test_split(workdir, monkeypatch):
  extract = outputs_lib.extract
  (workdir / "selection.json").unlink()

  def blind(folder, key, forward, params, split, **options):
    if split.name.endswith(" test"):
      raise KeyboardInterrupt
    return extract(folder, key, forward, params, split, **options)

  monkeypatch.setattr(outputs_lib, "extract", blind)
  with pytest.raises(KeyboardInterrupt):
    evaluate.evaluate(workdir)
  monkeypatch.setattr(outputs_lib, "extract", extract)
  chosen = json.loads((workdir / "selection.json").read_text())
  assert chosen["chosen_on"] == "digits/tiny validation"
  assert chosen["svm_c"] == float(max(sorted(chosen["svm_mAP"], key=float), key=chosen["svm_mAP"].get))
  assert set(chosen["svm_mAP"]) == {"0.1", "10.0"}
  results = evaluate.evaluate(workdir)
  assert json.loads((workdir / "selection.json").read_text()) == chosen
  assert (results["svm_c"], results["calibration"]["temperature"]) == (chosen["svm_c"], chosen["temperature"])
  assert list(results["thresholded"]["thresholds"].values()) == chosen["thresholds"]
  assert sum(row["labels"] for row in results["calibration"]["reliability"]) == 40 * 10
  assert files.read_npz(workdir / "svm.npz", "")["class_names"].tolist() == list(results["AP"])


def test_a_softmax_s_images_are_ranked_by_its_probabilities_everywhere(workdir):
  config = json.loads((workdir / "config.json").read_text())
  config["loss"]["classification"] = "euclidean"
  (workdir / "config.json").write_text(json.dumps(config))
  found = evaluate.evaluate(workdir, {"views": "five"})
  chunks = [files.read_npz(path, "") for path in sorted((workdir / "features" / "digits-tiny-test").glob("*.npz"))]
  scores, labels = (np.concatenate([chunk[name] for chunk in chunks]).astype(float) for name in ("scores", "labels"))
  odds = np.exp(scores - scores.max(axis=1, keepdims=True))
  probabilities = odds / odds.sum(axis=1, keepdims=True)
  by_probability, raw = (metrics.average_precisions(each, labels) for each in (probabilities, scores))
  np.testing.assert_allclose(list(found["AP"].values()), by_probability, atol=1e-6)
  assert np.abs(by_probability - raw).max() > 0.01
  assert evaluate.print_protocols([workdir], ["csra"])[str(workdir)]["csra"]["mAP"] == pytest.approx(found["mAP"])
  np.testing.assert_allclose(1 / (1 + np.exp(-scores_lib.load(workdir).network)), probabilities, atol=1e-5)
  thresholds = 1 / (1 + np.exp(-np.array(list(found["thresholded"]["thresholds"].values()))))
  wanted = metrics.precision_recall_f1(probabilities >= thresholds, labels)
  assert found["thresholded"]["OF1"] == pytest.approx(wanted["OF1"])


def kept_features(workdir, split, normalize):
  """Features and labels that an evaluation has left on disk."""
  chunks = [files.read_npz(path, "") for path in sorted((workdir / "features" / f"digits-tiny-{split}").glob("*.npz"))]
  features, labels = (np.concatenate([chunk[name] for chunk in chunks]) for name in ("features", "labels"))
  return features / np.linalg.norm(features, axis=1, keepdims=True) if normalize else features, labels


def test_svms_see_features_of_length_1_unless_told_otherwise(workdir):
  found = []
  for normalize in (True, False):
    evaluate.evaluate(workdir, {"svm_normalize": normalize, "svm_c": (0.1,)})
    (machines,) = svm.fit(*kept_features(workdir, "train", normalize), [0.1])
    found.append(scores_lib.load(workdir).svm)
    np.testing.assert_allclose(found[-1], machines.margins(kept_features(workdir, "test", normalize)[0]), atol=1e-4)
  assert np.abs(found[0] - found[1]).max() > 0.01


def test_c_is_chosen_with_the_normalization_it_is_used_with(workdir):
  changes = {"svm_c": (1e-4, 1e-2, 1.0, 100.0)}
  found = []
  for normalize in (True, False):
    evaluate.evaluate(workdir, {**changes, "svm_normalize": normalize})
    found.append(json.loads((workdir / "selection.json").read_text())["svm_mAP"])
    features, labels = kept_features(workdir, "validation", normalize)
    (machines,) = svm.fit(*kept_features(workdir, "train", normalize), [1e-2])
    wanted = metrics.mean_average_precision(metrics.average_precisions(machines.margins(features), labels))
    assert found[-1]["0.01"] == pytest.approx(wanted, abs=1e-3)
  assert found[0] != found[1]


@pytest.mark.parametrize(
  ("c", "mAP", "end"),
  [
    (0.1, {"10.0": 0.5, "0.1": 0.6}, "lowest"),
    (10.0, {"10.0": 0.6, "0.1": 0.5, "1.0": 0.4}, "highest"),
    (1.0, {"10.0": 0.5, "0.1": 0.5, "1.0": 0.6}, ""),
    (1.0, {}, ""),
    (None, {}, ""),
  ],
)
def test_a_c_at_an_end_of_those_tried_is_told(workdir, c, mAP, end):
  selection = selection_lib.read(workdir, json.loads((workdir / "selection.json").read_text())["class_names"])
  note = selection_lib.at_an_end(selection._replace(svm_c=c, svm_mAP=mAP))
  assert f"C = {c:g} is best for the SVMs, and the {end} that was tried" in note if end else not note


def test_an_evaluation_tells_of_a_c_at_an_end(workdir, capsys):
  chosen = evaluate.evaluate(workdir, {"svm_c": (0.1, 10.0)})["svm_c"]  # either is
  assert f"C = {chosen:g} is best for the SVMs" in capsys.readouterr().out


def test_once_c_is_chosen_the_svms_may_learn_from_the_validation_images(workdir):
  plain = evaluate.evaluate(workdir)
  chosen = (workdir / "selection.json").read_bytes()
  results = evaluate.evaluate(workdir, {"svm_refit": True})
  assert (workdir / "selection.json").read_bytes() == chosen
  parts = [kept_features(workdir, split, normalize=True) for split in ("train", "validation")]
  assert (plain["svm_images"], results["svm_images"]) == (60, 60 + len(parts[1][0])) == (60, 100)
  (machines,) = svm.fit(*map(np.concatenate, zip(*parts, strict=True)), [results["svm_c"]])
  wanted = machines.margins(kept_features(workdir, "test", normalize=True)[0])
  np.testing.assert_allclose(scores_lib.load(workdir).svm, wanted, atol=1e-4)
  # Where the validation images are what is measured, nothing learns from them.
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["test"] = ""
  (workdir / "config.json").write_text(json.dumps(config))
  assert evaluate.evaluate(workdir, {"svm_refit": True})["svm_images"] == 60


def test_prediction_s_thresholds_are_chosen_on_what_it_sees(workdir):
  of_one_view = json.loads((workdir / "selection.json").read_text())
  assert of_one_view["prediction"] == {name: of_one_view[name] for name in ("temperature", "thresholds")}
  evaluate.evaluate(workdir, {"views": "five"})
  of_five = json.loads((workdir / "selection.json").read_text())
  assert of_five["prediction"] == of_one_view["prediction"]
  assert of_five["thresholds"] != of_one_view["thresholds"]
  assert (of_five["seen"]["views"], of_five["rule"]) == ("five", "per_class")


def test_without_a_validation_split_the_selection_of_another_run_is_used(workdir, capsys):
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["validation"] = ""
  (workdir / "config.json").write_text(json.dumps(config))
  (workdir / "selection.json").unlink()
  with pytest.raises(UserError, match=r"data\.validation is empty and .* holds no selection\.json: copy the one"):
    evaluate.evaluate(workdir)
  names = [str(digit) for digit in range(10)]
  seen = {"views": "centre", "mirror": "", "feature": "z"}
  calibrated = {"temperature": 2.0, "thresholds": [0.25] * 10}
  there = selection_lib.Selection("elsewhere", names, "per_class", seen, 0.5, {}, **calibrated, prediction=calibrated)
  (workdir / "selection.json").write_text(json.dumps(there._asdict()))
  results = evaluate.evaluate(workdir)
  assert (results["svm_c"], results["calibration"]["temperature"]) == (0.5, 2.0)
  assert results["thresholded"]["thresholds"] == dict.fromkeys(names, 0.25)
  (workdir / "selection.json").write_text(json.dumps(there._replace(svm_c=None)._asdict()))
  with pytest.raises(UserError, match=r"selection\.json has no C, as no SVMs were fitted where it was chosen"):
    evaluate.evaluate(workdir)
  capsys.readouterr()
  results = evaluate.evaluate(workdir, {"views": "five", "thresholds": "global", "svm_solver": ""})
  assert results["thresholded"]["rule"] == "per_class"
  assert (
    "were chosen on elsewhere with views centre (now five), thresholds per_class (now global)"
    in capsys.readouterr().out
  )
  assert not (workdir / "svm.npz").exists()  # that of the evaluation before
  (workdir / "selection.json").write_text(json.dumps(there._replace(class_names=["cat"])._asdict()))
  with pytest.raises(UserError, match=r"selection\.json was made for other classes \(cat"):
    evaluate.evaluate(workdir)
  config["data"]["validation"] = config["data"]["test"]
  (workdir / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="nothing may be chosen on the test split"):
    evaluate.evaluate(workdir)


def test_another_test_set_is_measured_with_what_was_chosen_before(workdir, data_root, tmp_path):
  (workdir / "selection.json").unlink()
  with pytest.raises(UserError, match=r"has not been evaluated, .*eval\.py --workdir=.* first"):
    evaluate.evaluate(workdir, test="train")
  own = evaluate.evaluate(workdir)
  kept = ("config.json", "results.json", "selection.json", "svm.npz", "scores.npz")
  before = {name: (workdir / name).read_bytes() for name in kept}
  same = evaluate.evaluate(workdir, test="test")  # named, it is the same set: whatever is measured must be the same
  for name in ("mAP", "svm_mAP", "svm_images", "svm_c", "thresholded", "calibration", "coverage"):
    assert same[name] == own[name], name
  other = evaluate.evaluate(workdir, test="train")
  assert (other["data"], other["test_images"], own["test_images"]) == ("digits/tiny train", 160, 40)
  assert str(data_root) in other["origin"]
  assert files.read_json(workdir / "tests" / "train" / "results.json")["mAP"] == other["mAP"]
  scores = scores_lib.load(workdir / "tests" / "train")
  machines = svm.load(workdir / "svm.npz")
  chunk = np.load(next((workdir / "features" / "digits-tiny-train-train").glob("*.npz")))
  np.testing.assert_allclose(scores.svm, machines.margins(svm.normalize(chunk["features"])), rtol=1e-6)
  assert {name: (workdir / name).read_bytes() for name in kept} == before
  table = evaluate.print_protocols([workdir], ["paper"], test="train")
  assert table[str(workdir)]["paper"]["mAP"] == pytest.approx(other["svm_mAP"])
  with pytest.raises(
    UserError, match=r"were fitted to the feature 'z', not 'h': eval\.py --workdir=.*feature=h fits them"
  ):
    evaluate.evaluate(workdir, {"feature": "h"}, test="train")
  with pytest.raises(UserError, match=r"data\.validation and data\.test are both 'validation'"):
    evaluate.evaluate(workdir, test="validation")


def test_test_sets_of_one_name_have_places_of_their_own(tmp_path):
  one, other = "/monday/new/test.csv", "/tuesday/new/test.csv"
  place = evaluate.place_of(tmp_path, one)
  assert place == evaluate.place_of(tmp_path, other) == tmp_path / "tests" / "new-test-csv"
  place.mkdir(parents=True)
  files.write_json(place / "results.json", {"config": {"data": {"test": one}}})
  assert evaluate.place_of(tmp_path, one) == place
  assert evaluate.place_of(tmp_path, other).name == "new-test-csv-" + hashlib.sha256(other.encode()).hexdigest()[:8]


def test_data_that_have_moved_are_found_by_the_folder_that_is_named(workdir, data_root, tmp_path):
  own = evaluate.evaluate(workdir)
  config = files.read_json(workdir / "config.json")
  config["data"]["root"] = str(tmp_path / "gone")
  files.write_json(workdir / "config.json", config)
  there = evaluate.evaluate(workdir, data_root=str(data_root))
  assert there["mAP"] == own["mAP"]
  assert files.read_json(workdir / "config.json") == config


def test_where_own_images_lie_by_now(tmp_path):
  new = tmp_path / "new"
  (new / "lists").mkdir(parents=True)
  (new / "images").mkdir()
  (new / "Annotations").mkdir()
  for name in ("lists/train.csv", "val.csv"):
    (new / name).touch()
  data = get_config().data
  data.update(name="custom", train="/old/cats/lists/train.csv", validation="~/cats/val.csv:validation", test="")
  data.images = "/old/cats/images"
  assert splits.moved(data, str(new)) == {
    "train": f"{new}/lists/train.csv",
    "validation": f"{new}/val.csv:validation",
    "images": f"{new}/images",
  }
  data.update(train="/old/new:train", validation="", images="")  # a folder as VOC has it, itself
  assert splits.moved(data, str(new)) == {"train": f"{new}:train"}
  data.train = "/old/cats/all.csv"
  with pytest.raises(UserError, match=r"--data_root=.*/new holds no all\.csv, which was /old/cats/all\.csv"):
    splits.moved(data, str(new))


def test_tables_come_from_saved_scores(workdir, monkeypatch, capsys):
  results = evaluate.evaluate(workdir, {"views": "five"})
  assert results["views"] == results["config"]["evaluation"]["views"] == "five"
  seen = count_forwards(monkeypatch)
  found = evaluate.print_protocols([workdir])[str(workdir)]
  assert seen == []
  assert found["csra"]["mAP"] == pytest.approx(results["mAP"])
  out = capsys.readouterr().out
  assert len(out.splitlines()) >= 2 + len(found)
  assert out.endswith(f"{workdir}: five views; SVMs (newton) on features z\n")
  with pytest.raises(UserError, match=r"--protocol must be one of paper, .*, got 'imagenet'"):
    evaluate.print_protocols([workdir], ["imagenet"])
  with pytest.raises(UserError, match="--fusion must be one of mean, max, rank, got 'median'"):
    evaluate.print_protocols([workdir, workdir], fusion="median")
  evaluate.evaluate(workdir, {"svm_solver": ""})
  assert "paper" not in evaluate.print_protocols([workdir])[str(workdir)]
  with pytest.raises(UserError, match="--protocol=paper measures SVMs and there are none"):
    evaluate.print_protocols([workdir], ["paper"])


def test_scores_of_another_checkpoint_are_measured_again(workdir, monkeypatch):
  stale = scores_lib.load(workdir)
  about = json.loads(str(stale.made_by)) | {"checkpoint": "another"}
  files.write_npz(workdir / "scores.npz", stale._replace(made_by=np.array(json.dumps(about)))._asdict())
  seen = count_forwards(monkeypatch)
  evaluate.print_protocols([workdir], ["csra"])
  assert seen == []  # the features are those of the right one
  assert json.loads(str(scores_lib.load(workdir).made_by))["checkpoint"] == json.loads(str(stale.made_by))["checkpoint"]


def test_two_runs_are_fused(workdir, tmp_path):
  other = shutil.copytree(workdir, tmp_path / "other")
  evaluate.evaluate(other, {"views": "five"})
  with pytest.raises(UserError, match=r"evaluated with another views, centre and five: evaluate both alike"):
    evaluate.print_protocols([workdir, other])
  evaluate.evaluate(other, {"svm_c": (10.0,) if evaluate.evaluate(workdir)["svm_c"] == 0.1 else (0.1,)})
  (workdir / "scores.npz").unlink()
  found = evaluate.print_protocols([workdir, other], ["paper", "csra"])  # evaluates the first again
  runs = [scores_lib.load(folder) for folder in (workdir, other)]
  fused = scores_lib.fuse(dict(zip("ab", runs, strict=True)))
  np.testing.assert_allclose(fused.svm, (runs[0].svm + runs[1].svm) / 2)
  assert found["mean of 2"]["paper"]["mAP"] == scores_lib.measure(fused, ["paper"])["paper"]["mAP"]
  assert found[str(other)]["paper"]["mAP"] != found[str(workdir)]["paper"]["mAP"]


def some_scores(**changes):
  values = {
    "ids": np.array(["a", "b", "c"]),
    "class_names": np.array(["cat", "dog"]),
    "labels": np.array([[1, 0], [0, 0], [1, 0]], np.float32),
    "ignore": np.zeros((3, 2), bool),
    "network": np.array([[3.0, 0.0], [1.0, 2.0], [2.0, 1.0]]),
    "svm": np.zeros((3, 0)),
    "made_by": np.array(json.dumps({**dict.fromkeys(scores_lib.ALIKE, ""), "ap_method": "all_point"})),
  }
  return scores_lib.Scores(**values | changes)


def test_fusions_by_hand():
  one, other = some_scores(), some_scores(network=np.array([[1.0, 8.0], [9.0, 0.0], [4.0, 7.0]]))
  wanted = {
    "mean": [[2, 4], [5, 1], [3, 4]],
    "max": [[3, 8], [9, 2], [4, 7]],
    "rank": [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]],
  }
  for fusion, value in wanted.items():
    np.testing.assert_allclose(scores_lib.fuse({"one": one, "other": other}, fusion).network, value)


@pytest.mark.parametrize(
  ("other", "fusion", "message"),
  [
    (
      {"ids": np.array(["a", "c", "b"])},
      "mean",
      "one and other differ in ids: they were not evaluated on the same split",
    ),
    ({"class_names": np.array(["cat", "cow"])}, "mean", "differ in class_names"),
    ({"svm": np.zeros((3, 2))}, "mean", "one has no SVMs"),
    ({}, "product", "--fusion must be one of mean, max, rank, got 'product'"),
  ],
)
def test_what_cannot_be_fused_is_refused(other, fusion, message):
  with pytest.raises(UserError, match=message):
    scores_lib.fuse({"one": some_scores(), "other": some_scores(**other)}, fusion)


def test_the_table_names_classes_that_are_undefined_or_never_predicted():
  found = {"run": scores_lib.measure(some_scores(network=np.array([[3.0, -1], [1, -2], [2, -3]])))}
  table = report.protocol_table(found, ["cat", "dog"])
  assert "| run | csra | network | 100.0 | 33.3 | 50.0 | 40.0 | 66.7 | 100.0 | 80.0 |" in table
  assert "run, csra: without positives, not in mAP: dog" in table
  assert "run, csra: never predicted, precision 0: dog" in table
