"""Where regions lie in the image that they were seen in: from a view's coordinates through crop and resize."""

from typing import Any

import numpy as np

from rmam_jax import backbones
from rmam_jax.data import batches
from rmam_jax.ops import spatial_transformer


def view_to_image(
  points: np.ndarray, *, image_size: int, crop_size: int, stride: int, align_corners: bool = True
) -> np.ndarray:
  """Normalised points [..., 2] of (x, y) on the centre view's feature map -> shares of the whole image.

  The view may be cropped from the pixels or cut from the whole image's map: the points are the same. The sizes and the
  map's stride are in pixels; `align_corners` is the grid's convention.
  """
  pixels = spatial_transformer.map_to_pixels(points, crop_size // stride, stride, align_corners=align_corners)
  return (np.asarray(pixels) + batches.centre_offset(image_size, crop_size)) / image_size


def region_boxes(thetas: np.ndarray, config: Any) -> np.ndarray:
  """What regions of the centre view sample, as shares of the whole image; it may reach beyond the image.

  A box runs between its region's coordinates -1 and 1, by the grid's own convention. That the image was resized to a
  square first changes nothing: shares are shares.

  Thetas [..., 4] of (s_x, s_y, t_x, t_y) -> [..., 4] of (top, left, bottom, right). A mirrored region has its top below
  its bottom or its left to the right of its right. `config` says how the view was made, in `data` and `model`.
  """
  thetas = np.asarray(thetas, np.float64)
  shares = view_to_image(
    np.stack([thetas[..., 2:] - thetas[..., :2], thetas[..., 2:] + thetas[..., :2]], axis=-2),
    image_size=config.data.image_size,
    crop_size=config.data.crop_size,
    stride=backbones.stride(config.model),
    align_corners=config.model.align_corners,
  )
  return shares[..., ::-1].reshape(*thetas.shape[:-1], 4)
