"""Proposals: where they lie, through crop and flip, to what is sampled; and a run that looks at them."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from rmam_jax.data import batches
from rmam_jax.data import proposals as proposals_lib
from rmam_jax.data.record import Record
from rmam_jax.data.splits import open_split
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
    (
      {"data.proposals": "edge_boxes"},
      "data.proposals must be jittered, selective_search, objects or empty, got 'edge_boxes'",
    ),
  ],
)
def test_proposals_that_cannot_be(data_root, tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    pipeline.train_and_evaluate(config_of(data_root, **changes), tmp_path)


def test_selective_search_goes_on_where_it_was_stopped(data_root, tmp_path, monkeypatch):
  source = open_split(config_of(data_root, **{"data.proposals": ""}).data, "test")
  source.proposals_path, source.made_by = tmp_path / "kept.npz", "data"
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
    np.testing.assert_allclose(propose(record), batches.decode_image(record.image, "").mean(), rtol=1e-6)
  seen[:] = []
  proposals_lib.make("selective_search", 2, source)
  assert not seen


@pytest.mark.oracle
def test_selective_search_finds_a_square():
  pytest.importorskip("cv2", reason="the `proposals` extra is not installed")
  image = np.full((240, 320, 3), 200, np.uint8)
  image[60:140, 100:220] = (20, 40, 160)
  found = proposals_lib.selective_search(image, 5)
  assert found.shape == (5, 4)
  square = np.array([[60 / 240, 100 / 320, 140 / 240, 220 / 320]])
  assert boxes_lib.box_iou(found, square).max() > 0.9
