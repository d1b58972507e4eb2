"""The views of one image (Sec. 5.1), and where the regions seen in them lie in the image.

Views are windows cut from the feature map of the whole image and of its mirror image. The paper cuts them so, and ten
views then cost two passes of the backbone. Crops of the pixels would differ at their borders: zeros surround a crop,
while a window of the map still feels the pixels around it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax import backbones, recognizer
from rmam_jax.data import batches
from rmam_jax.ops import spatial_transformer
from rmam_jax.runtime.errors import UserError, check_name

KINDS = ("centre", "two", "five", "ten")
MIRRORS = ("image", "map")


class Views(NamedTuple):
  """Which parts of an image a recognizer sees. The first view is the centre of the image as it is."""

  windows: Sequence[tuple[int, int]] = ((0, 0),)  # (top, left) on the map, in cells
  side: int | None = None  # of a window, in cells; None: all of the map
  mirror: str = ""  # "image": a second pass over the mirrored image; "map": the map mirrored; "": neither

  @property
  def is_centre(self) -> bool:
    """Whether it is the centre view alone, be it cropped from the pixels or cut from the map."""
    return len(self.windows) == 1 and not self.mirror

  def pixels(self, data: Any) -> int:
    """The side of the images that the backbone is given: the centre crop's, or N where the map is cut."""
    return data.crop_size if self.side is None else data.image_size


CENTRE = Views()  # one view, cropped from the pixels as in training


def from_config(config: Any, kind: str = "") -> Views:
  """The views that a configuration names, or of this kind; UserError for an unknown name, and windows between cells."""
  kind, mirror = kind or config.evaluation.views, config.evaluation.mirror
  check_name("evaluation.views", kind, KINDS)
  check_name("evaluation.mirror", mirror, MIRRORS)
  if kind in ("centre", "two"):
    return CENTRE._replace(mirror=mirror if kind == "two" else "")
  if (cells := _cells(config)) is None:
    raise UserError(
      f"{kind} views are cut from the feature map: data.crop_size {config.data.crop_size} and half of what it leaves of"
      f" data.image_size {config.data.image_size} must be multiples of the map's stride,"
      f" {backbones.stride(config.model)} pixels; or set evaluation.views='centre'"
    )
  end, side = cells
  windows = ((end // 2, end // 2), (0, 0), (0, end), (end, 0), (end, end))
  return Views(windows, side, mirror if kind in ("two", "ten") else "")


def of_frozen(config: Any) -> Views:
  """The view in which a head is validated whose backbone is not trained; training sees windows of the same side.

  A window of the whole image's map, as five and ten views are, where windows fit the map's cells and there is more than
  one; else the centre view.
  """
  end, side = _cells(config) or (0, 0)
  return Views(((end // 2, end // 2),), side) if end else CENTRE


def _cells(config: Any) -> tuple[int, int] | None:
  """What the crop leaves of a side of the whole image's map, and the crop's side, in cells.

  None where the crop, at the centre or at a border, does not begin and end between cells.
  """
  crop, stride = config.data.crop_size, backbones.stride(config.model)
  margin = config.data.image_size - crop
  return None if crop % stride or margin % (2 * stride) else (margin // stride, crop // stride)


def names(config: Any) -> dict[str, str]:
  """`evaluation.views` and, where it counts, `evaluation.mirror`."""
  kind = config.evaluation.views
  return {"views": kind, "mirror": config.evaluation.mirror if kind in ("two", "ten") else ""}


def in_words(named: Mapping[str, Any]) -> str:
  """For people: the "views" and "mirror" of `names`."""
  mirrored = f", mirrored {named['mirror']}" if named["mirror"] else ""
  return f"{named['views']} view{'s' * (named['views'] != 'centre')}{mirrored}"


def feature_maps(model: recognizer.Recognizer, params: Any, images: jax.Array, views: Views) -> jax.Array:
  """Images [B, height, width, 3] -> the maps of their views [B, V, h, w, C], the centre first.

  The images may be maps already: those of each image, or its centre view, and of its mirror image [B, 2, h, w, C].
  """
  if images.ndim == 5:
    maps = images if views.mirror == "image" else images[:, :1]
  else:
    images = jnp.stack([images, images[:, :, ::-1]] if views.mirror == "image" else [images], axis=1)
    maps = model.apply({"params": params}, images.reshape(-1, *images.shape[2:]), method="feature_map")
    maps = maps.reshape(*images.shape[:2], *maps.shape[1:])
  if views.mirror == "map":
    maps = jnp.concatenate([maps, maps[:, :, :, ::-1]], axis=1)
  side = views.side or maps.shape[2]
  cut = [maps[:, :, top : top + side, left : left + side] for top, left in views.windows]
  return jnp.stack(cut, axis=2).reshape(len(images), -1, side, side, maps.shape[-1])


def view_to_image(
  points: np.ndarray,
  *,
  image_size: int,
  crop_size: int,
  stride: int,
  cells: int | None = None,
  align_corners: bool = True,
) -> np.ndarray:
  """Normalised points [..., 2] of (x, y) on the centre view's feature map -> shares of the whole image.

  The view may be cropped from the pixels or cut from the whole image's map: the points are the same. `cells` are those
  of a side of its map; None: whole ones.
  """
  pixels = spatial_transformer.map_to_pixels(points, cells or crop_size // stride, stride, align_corners=align_corners)
  return (np.asarray(pixels) + batches.centre_offset(image_size, crop_size)) / image_size


def region_boxes(thetas: np.ndarray, config: Any) -> np.ndarray:
  """What regions of the centre view sample, as shares of the whole image; it may reach beyond the image.

  Thetas [..., 4] of (s_x, s_y, t_x, t_y) -> [..., 4] of (top, left, bottom, right): a box runs between its region's
  coordinates -1 and 1, by the grid's own convention. A mirrored region has its top below its bottom or its left to the
  right of its right. That the image was resized to a square first changes nothing: shares are shares.
  """
  thetas = np.asarray(thetas, np.float64)
  shares = view_to_image(
    np.stack([thetas[..., 2:] - thetas[..., :2], thetas[..., 2:] + thetas[..., :2]], axis=-2),
    image_size=config.data.image_size,
    crop_size=config.data.crop_size,
    stride=backbones.stride(config.model),
    cells=backbones.cells(config.model, config.data.crop_size),
    align_corners=config.model.align_corners,
  )
  return shares[..., ::-1].reshape(*thetas.shape[:-1], 4)
