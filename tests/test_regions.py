"""Regions find their way back into the image, and which of the outputs are counted and drawn."""

import numpy as np

from configs import common
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.visual import panels


def test_region_boxes_by_hand():
  config = common.get_config()
  config.data.image_size, config.data.crop_size = 80, 64  # the centre view begins at pixel 8
  config.model.vgg.blocks = ((4,), (4,), (4,), (4,), (4,))  # four cells of 16 pixels
  # -1 is pixel 8 of the view and 1 is pixel 56, so one unit is 24 pixels around 32: from the left 32 to 56, from the
  # top 14 to 26.
  thetas = np.array([[0.5, 0.25, 0.5, -0.5], [-0.5, 0.25, 0.5, -0.5]])
  found = views_lib.region_boxes(thetas, config) * 80
  np.testing.assert_allclose(found[0], [14 + 8, 32 + 8, 26 + 8, 56 + 8], rtol=1e-6)
  np.testing.assert_allclose(found[1], [14 + 8, 56 + 8, 26 + 8, 32 + 8], rtol=1e-6)  # mirrored in x
  config.model.align_corners = False  # -1 and 1 are the view's edges
  whole = views_lib.region_boxes(np.array([1.0, 1.0, 0.0, 0.0]), config) * 80
  np.testing.assert_allclose(whole, [8, 8, 72, 72], rtol=1e-6)


def some_outputs(**changes):
  names = outputs_lib.Outputs._fields
  return outputs_lib.Outputs(**{**dict.fromkeys(names), **changes})


def test_objects_of_classes_that_are_neither_are_not_counted():
  boxes, classes = [np.arange(12.0).reshape(3, 4), np.zeros((0, 4))], [np.array([0, 1, 0]), np.zeros(0, int)]
  found = some_outputs(labels=np.array([[1, 0], [0, 1]]), boxes=boxes, box_classes=classes).objects()
  np.testing.assert_array_equal(found[0][0], boxes[0][[0, 2]])
  np.testing.assert_array_equal(found[1][0], [0, 0])
  assert (found[0][1].shape, found[1][1].shape) == ((0, 4), (0,))


def test_pictures_of_files_of_one_name_are_two(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(panels, "panels", lambda evaluated, indices: iter(indices))
  monkeypatch.setattr(panels.pictures, "draw", lambda path, panels, **_: drawn.append((path.name, list(panels))))
  config = common.get_config()
  config.evaluation.pictures = 4
  ids = ["cat/001.png", "broken.png", "dog/001.png", "overview.png", f"{'é' * 200}.png", "e.png"]
  ignore = np.zeros((6, 2), bool)
  ignore[1] = True  # cannot be read
  evaluated = panels.EvaluatedSplit(config, "saliency", None, None, some_outputs(ids=ids, ignore=ignore))
  panels.draw_pictures(tmp_path, evaluated)
  assert drawn == [
    ("0000-001.png", [0]),
    ("0002-001.png", [2]),
    ("0003-overview.png", [3]),
    (f"0004-{'é' * 60}.png", [4]),
    ("overview.png", [0, 2, 3, 4]),
  ]
