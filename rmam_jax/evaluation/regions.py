"""Where regions lie in the image that they were seen in: from a view's coordinates through crop and resize."""

from typing import Any

import numpy as np

from rmam_jax import backbones
from rmam_jax.evaluation import outputs as outputs_lib


def region_boxes(thetas: np.ndarray, config: Any) -> np.ndarray:
  """What regions of the centre view sample, as shares of the whole image; it may reach beyond the image.

  A box runs between its region's coordinates -1 and 1, by the grid's own convention. That the image was resized to a
  square first changes nothing: shares are shares.

  Args:
    thetas: [..., 4] of (s_x, s_y, t_x, t_y).
    config: the configuration; its `data` and `model` sections say how the view was made.

  Returns:
    [..., 4] of (top, left, bottom, right); a mirrored region has its top below its bottom or its left to the right of
    its right.
  """
  thetas = np.asarray(thetas, np.float64)
  ends = np.stack([thetas[..., 2:] - thetas[..., :2], thetas[..., 2:] + thetas[..., :2]], axis=-2)
  shares = outputs_lib.view_to_image(
    ends,
    image_size=config.data.image_size,
    crop_size=config.data.crop_size,
    stride=backbones.stride(config.model),
    align_corners=config.model.align_corners,
  )
  return shares[..., ::-1].reshape(*thetas.shape[:-1], 4)
