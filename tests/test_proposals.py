"""Proposals: where they lie, through crop and flip, to what is sampled; and a run that looks at them."""

import gzip

import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from rmam_jax.data import batches
from rmam_jax.data import proposals as proposals_lib
from rmam_jax.data.images import decode_image
from rmam_jax.data.record import Record
from rmam_jax.data.splits import open_source, open_split
from rmam_jax.inference import predictor
from rmam_jax.ops import boxes as boxes_lib
from rmam_jax.ops import spatial_transformer
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import evaluate, pipeline


def test_suppression_by_hand():
  boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.8], [0, 0, 1, 0.6], [0, 0.6, 1, 1]])  # IoU with the first 0.8, 0.6, 0.4
  np.testing.assert_array_equal(proposals_lib._first(boxes, 3), boxes[[0, 2, 3]].astype(np.float32))
  np.testing.assert_array_equal(proposals_lib._first(boxes, 2), boxes[[0, 2]].astype(np.float32))


def record(name, boxes):
  classes = np.zeros(len(boxes), np.int32)
  return Record(name, b"", np.ones(1, np.float32), np.zeros(1, bool), np.array(boxes, np.float32), classes)


def test_jittered_proposals_reach_their_recall_and_depend_on_the_id_alone():
  boxes = np.array([[0.1, 0.1, 0.4, 0.3], [0.5, 0.6, 0.9, 0.9]])
  found = np.stack([proposals_lib.jittered(record(f"{i}", boxes), 5) for i in range(600)])
  assert found.shape == (600, 5, 4)
  assert found.min() >= 0
  assert found.max() <= 1
  recall = (boxes_lib.box_iou(found, boxes[None]).max(axis=1) >= 0.5).mean()
  assert abs(recall - proposals_lib.RECALL) < 0.06  # 1,200 objects; boxes of nothing hit a few more
  np.testing.assert_array_equal(found[7], proposals_lib.jittered(record("7", boxes), 5))
  assert not np.array_equal(found[7], found[8])
  for each in found[:20]:
    overlaps = boxes_lib.box_iou(each, each)[np.triu_indices(5, 1)]
    assert overlaps.max() <= proposals_lib.OVERLAP + 1e-6


def test_boxes_of_a_crop_by_hand():
  box = np.array([0.5, 0.25, 0.75, 0.5])  # of an image of 80: rows 40..60, columns 20..40
  np.testing.assert_allclose(batches.view_boxes(box, 80, 64, 8, 4, False), [0.5, 0.25, 52 / 64, 36 / 64])
  np.testing.assert_allclose(batches.view_boxes(box, 80, 64, 8, 4, True), [0.5, 28 / 64, 52 / 64, 0.75])


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_box_s_region_samples_from_edge_to_edge(align_corners):
  box = np.array([0.25, 0.5, 0.75, 1.0], np.float32)
  theta = spatial_transformer.boxes_to_thetas(box, (8, 16), align_corners=align_corners)
  ends = np.array([theta[2:] - theta[:2], theta[2:] + theta[:2]])  # (x, y) at -1 and 1
  pixels = [
    spatial_transformer.map_to_pixels(jnp.asarray(ends[:, axis]), cells, 4, align_corners=align_corners)
    for axis, cells in ((0, 16), (1, 8))
  ]
  np.testing.assert_allclose(pixels, [[32, 64], [8, 24]], atol=1e-4)


def config_of(data_root, **changes):
  config = digits.get_config("tiny:proposals")
  config.data.root = str(data_root)
  config.data.proposals, config.data.num_proposals = "jittered", 6
  config.model.vgg.blocks = ((4,), (8,), (8,))
  config.model.x_width = config.model.lstm_width = config.model.z_width = 16
  config.epoch_size = 32
  config.stage_one.epochs = config.stage_two.epochs = 1
  config.evaluation.svm_solver = ""
  config.evaluation.pictures = 1
  config.update_from_flattened_dict(changes)
  return config


@pytest.mark.slow
def test_a_run_looks_at_its_proposals(data_root, tmp_path):
  config = config_of(data_root)
  results = pipeline.train_and_evaluate(config, tmp_path)
  assert results["coverage"] > 0.75  # the grid and the untrained rules are below
  test = open_split(config.data, "test")
  wanted = np.mean(
    [
      (boxes_lib.box_iou(r.proposals, r.boxes).max(axis=0) >= 0.5).mean()
      for r in map(test.__getitem__, range(len(test)))
    ]
  )
  assert wanted > 0.6
  with pytest.raises(UserError, match="proposals are seen from the centre view alone"):
    evaluate.evaluate(tmp_path, {"views": "ten"})
  with pytest.raises(UserError, match="looks at proposals, which images alone do not have"):
    predictor.load(tmp_path)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.proposals": ""}, "set data.proposals, and data.num_proposals to the 6"),
    ({"data.num_proposals": 5}, "set data.proposals, and data.num_proposals to the 6"),
    ({"data.proposals": "edge_box"}, r"data\.proposals must be one of .*'edge_box'; did you mean 'edge_boxes'"),
    (
      {"data.edge_model": "model.yml.gz"},
      r"data\.edge_model is for data\.proposals=edge_boxes, got 'jittered'",
    ),
  ],
)
def test_proposals_that_cannot_be(data_root, tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    pipeline.train_and_evaluate(config_of(data_root, **changes), tmp_path)


@pytest.fixture
def source(data_root, tmp_path):
  found = open_source("digits/tiny", "test", str(data_root))
  found.proposals_path = tmp_path / "kept.npz"
  return found


def test_selective_search_goes_on_where_it_was_stopped(source, monkeypatch):
  seen = []

  def search(image, count):
    if len(seen) == 25:
      raise KeyboardInterrupt
    seen.append(1)
    return np.full((count, 4), image.mean(), np.float32)

  monkeypatch.setattr(proposals_lib, "selective_search", search)
  monkeypatch.setattr(proposals_lib, "_KEPT", 10)
  monkeypatch.setattr(proposals_lib.os, "cpu_count", lambda: 1)
  with pytest.raises(KeyboardInterrupt):
    proposals_lib.make("selective_search", 2, source)
  seen[:] = []
  propose = proposals_lib.make("selective_search", 2, source)
  assert len(seen) == len(source) - 20 == 20
  for record in (source[0], source[25]):
    np.testing.assert_allclose(propose(record), decode_image(record.image, "").mean(), rtol=1e-6)
  seen[:] = []
  proposals_lib.make("selective_search", 2, source)
  assert not seen


def test_a_search_leaves_out_an_image_that_cannot_be_read_where_it_may(source, monkeypatch):
  def search(image, count):
    return np.full((count, 4), 0.5, np.float32)

  def unreadable(record):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(proposals_lib, "selective_search", search)
  name, whole = source[3].id, type(source).__getitem__
  for broken, said in (
    (unreadable, "Permission denied"),
    (lambda record: record._replace(image=b"no image"), "not a readable image"),
  ):

    def read(self, position, broken=broken):
      return broken(whole(self, position)) if position == 3 else whole(self, position)

    with monkeypatch.context() as damaged:
      damaged.setattr(type(source), "__getitem__", read)
      with pytest.raises(UserError, match=f"{name}.*{said}"):
        proposals_lib.make("selective_search", 2, source)
      propose = proposals_lib.make("selective_search", 2, source, corrupt="skip")
    np.testing.assert_array_equal(propose(source[3]), np.zeros((2, 4)))
    np.testing.assert_array_equal(propose(source[4]), np.full((2, 4), 0.5))
  mended = proposals_lib.make("selective_search", 2, source)
  np.testing.assert_array_equal(mended(source[3]), np.full((2, 4), 0.5))


SQUARE = np.array([[60 / 240, 100 / 320, 140 / 240, 220 / 320]], np.float32)


def square():
  image = np.full((240, 320, 3), 200, np.uint8)
  image[60:140, 100:220] = (20, 40, 160)
  return image


@pytest.fixture
def cv2():
  return pytest.importorskip("cv2", reason="the `proposals` extra is not installed")


@pytest.mark.oracle
def test_selective_search_finds_a_square(cv2):
  found = proposals_lib.selective_search(square(), 5)
  assert found.shape == (5, 4)
  # The order is partly random: a box around the square may come first, and suppress the square itself.
  assert boxes_lib.box_iou(found, SQUARE).max() > proposals_lib.OVERLAP


def assert_suppressed(found, count):
  assert (found.shape, found.dtype) == ((count, 4), np.float32)
  assert boxes_lib.box_iou(found, found)[np.triu_indices(count, 1)].max() <= proposals_lib.OVERLAP


@pytest.mark.oracle
def test_edge_boxes_are_the_surest_of_opencv_s_without_near_copies(cv2):
  """From the edges of a square, as an edge detector would give them."""
  edges, directions = np.zeros((240, 320), np.float32), np.zeros((240, 320), np.float32)
  edges[60:140, [100, 219]] = 1
  edges[[60, 139], 100:220] = 1
  directions[[60, 139], 100:220] = np.pi / 2
  edges[40:200:20, 20:90:20] = 0.5  # specks
  found = proposals_lib.boxes_from_edges(edges, directions, 5)
  assert_suppressed(found, 5)
  assert boxes_lib.box_iou(found[:1], SQUARE)[0, 0] > 0.8
  theirs, objectness = cv2.ximgproc.createEdgeBoxes().getBoundingBoxes(edges, directions)
  left, top, wide, tall = theirs[objectness.argmax()] / np.array([320, 240, 320, 240])
  np.testing.assert_allclose(found[0], [top, left, top + tall, left + wide], atol=1e-6)
  empty = proposals_lib.boxes_from_edges(np.zeros_like(edges), directions, 3)
  np.testing.assert_array_equal(empty, [boxes_lib.WHOLE_IMAGE] * 3)


def write_forest(path, threshold=0.05):
  """A structured forest of one tree, our own: an edge in the middle of each patch whose gradient is steep there."""
  options = {
    "stride": 2,
    "shrinkNumber": 2,
    "patchSize": 32,
    "patchInnerSize": 16,
    "numberOfGradientOrientations": 4,
    "gradientSmoothingRadius": 0,
    "regFeatureSmoothingRadius": 2,
    "ssFeatureSmoothingRadius": 8,
    "gradientNormalizationRadius": 4,
    "selfsimilarityGridSize": 5,
    "numberOfTrees": 1,
    "numberOfTreesToEvaluate": 1,
  }
  middle = 8 * 16 + 8
  tree = {  # the root, which asks for channel 3, the gradient's length; a leaf without edges, a leaf with one
    "childs": [2, 0, 0],
    "featureIds": [3 * 16 * 16 + middle, 0, 0],
    "thresholds": [threshold, 0.0, 0.0],
    "edgeBoundaries": [0, 0, 0, 40],
    "edgeBins": [middle] * 40,
  }
  lines = ["%YAML:1.0", "---", "options:", *(f"   {name}: {value}" for name, value in options.items())]
  lines += [line for name, values in tree.items() for line in (f"{name}:", f"   - {values}")]
  path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
  return str(path)


@pytest.mark.oracle
def test_edge_boxes_find_a_square_by_a_toy_forest(cv2, tmp_path):
  detector = proposals_lib.edge_detector(write_forest(tmp_path / "toy.yml.gz"))
  found = proposals_lib.edge_boxes(square(), 5, detector)
  assert_suppressed(found, 5)
  assert boxes_lib.box_iou(found, SQUARE).max() > 0.7


@pytest.mark.oracle
@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("", r"needs a structured forest's file in data\.edge_model: it is the model\.yml\.gz that OpenCV's"),
    (None, r"data\.edge_model .*model\.yml\.gz is no file: it is the"),
    (b"%YAML:1.0\n---\noptions:\n   stride: 2\n", r"model\.yml\.gz holds no structured forest: it is the"),
    (b"junk", r"model\.yml\.gz (holds no structured forest|cannot be read)"),
  ],
)
def test_what_is_no_forest_is_refused_before_opencv_dies_of_it(cv2, tmp_path, content, message):
  path = tmp_path / "model.yml.gz"
  if content:
    path.write_bytes(content if content == b"junk" else gzip.compress(content))
  with pytest.raises(UserError, match=message):
    proposals_lib.edge_detector("" if content == "" else str(path))


@pytest.mark.parametrize("name", ["toy.yml.gz", "~/toy.yml.gz"])
def test_proposals_of_a_forest_are_told_from_those_of_none(tmp_path, monkeypatch, name):
  """Also where a shell did not expand the home folder's name."""
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  write_forest(tmp_path / "toy.yml.gz")
  assert proposals_lib.made_by("edge_boxes", name).startswith("edge_boxes ")
  assert proposals_lib.made_by("selective_search", name) == proposals_lib.made_by("edge_boxes", "") == ""


@pytest.mark.oracle
def test_boxes_of_another_forest_are_others(cv2, data_root, tmp_path):
  config = config_of(data_root, **{"data.proposals": "edge_boxes"})
  digests, folder = [], None
  for threshold in (0.05, 0.1, 0.05):
    config.data.edge_model = write_forest(tmp_path / "toy.yml.gz", threshold)
    split = open_split(config.data, "test")
    digests.append(split.digest())
    assert split[0].proposals.shape == (6, 4)
    folder = split._source.proposals_path.parent
  assert digests[0] == digests[2] != digests[1]
  kept = list(folder.glob("rmam-proposals-test-edge_boxes.npz"))
  assert len(kept) == 1
  kept[0].unlink()


@pytest.mark.slow
@pytest.mark.oracle
def test_a_run_says_which_proposals_it_looked_at(cv2, data_root, tmp_path, capsys):
  forest = write_forest(tmp_path / "toy.yml.gz")
  config = config_of(data_root, **{"data.proposals": "edge_boxes", "data.edge_model": forest})
  assert pipeline.train_and_evaluate(config, tmp_path / "run")["proposals"] == "edge_boxes"
  assert "head 'proposals' at EdgeBoxes, seed 0" in capsys.readouterr().out
