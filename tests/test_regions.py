"""Regions find their way back into the image."""

import numpy as np

from configs import common
from rmam_jax.evaluation import regions


def test_region_boxes_by_hand():
  config = common.get_config()
  config.data.image_size, config.data.crop_size = 80, 64  # the centre view begins at pixel 8
  config.model.stages = ((4,), (4,), (4,), (4,), (4,))  # four cells of 16 pixels
  # -1 is pixel 8 of the view and 1 is pixel 56, so one unit is 24 pixels around 32: from the left 32 to 56, from the
  # top 14 to 26.
  thetas = np.array([[0.5, 0.25, 0.5, -0.5], [-0.5, 0.25, 0.5, -0.5]])
  found = regions.region_boxes(thetas, config) * 80
  np.testing.assert_allclose(found[0], [14 + 8, 32 + 8, 26 + 8, 56 + 8], rtol=1e-6)
  np.testing.assert_allclose(found[1], [14 + 8, 56 + 8, 26 + 8, 32 + 8], rtol=1e-6)  # mirrored in x
  config.model.align_corners = False  # -1 and 1 are the view's edges
  whole = regions.region_boxes(np.array([1.0, 1.0, 0.0, 0.0]), config) * 80
  np.testing.assert_allclose(whole, [8, 8, 72, 72], rtol=1e-6)
