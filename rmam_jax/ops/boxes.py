"""Boxes: (top, left, bottom, right) as shares of an image. Every function takes numpy arrays or jax arrays."""

WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)


def box_area(boxes):
  """[..., 4] -> [...]; 0 for a box whose edges are out of order."""
  xp = boxes.__array_namespace__()
  return xp.prod(xp.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def clip_boxes(boxes):
  """The part inside the image of boxes [..., 4]; mirrored ones are turned round."""
  xp = boxes.__array_namespace__()
  sides = xp.stack([boxes[..., :2], boxes[..., 2:]])
  return xp.clip(xp.concatenate([sides.min(axis=0), sides.max(axis=0)], axis=-1), 0, 1)


def box_iou(a, b):
  """Intersection over union of boxes [..., m, 4] with boxes [..., n, 4] -> [..., m, n] in [0, 1]; 0 if both are empty."""
  xp = a.__array_namespace__()
  a, b = a[..., :, None, :], b[..., None, :, :]
  corners = [xp.maximum(a[..., :2], b[..., :2]), xp.minimum(a[..., 2:], b[..., 2:])]
  shared = box_area(xp.concatenate(corners, axis=-1))
  union = box_area(a) + box_area(b) - shared
  return shared / xp.where(union > 0, union, 1)


def suppress(boxes, confidence, *, count: int, overlap: float):
  """Greedy non-maximum suppression in one image: the K surest boxes that overlap no surer one that is kept.

  Args:
    boxes: [N, 4].
    confidence: [N]; boxes at minus infinity are never kept.
    count: K.
    overlap: the IoU above which of two boxes only the surer one is kept.

  Returns:
    [K, 4] and their confidence [K], the surest first; the whole image at minus infinity where no box is left.
  """
  xp = boxes.__array_namespace__()
  whole_image, index = xp.asarray(WHOLE_IMAGE, dtype=boxes.dtype), xp.arange(len(boxes))
  kept, sure, left = [], [], confidence
  for _ in range(count):
    best = left.argmax()
    kept.append(xp.where(left[best] > -xp.inf, boxes[best], whole_image))
    sure.append(left[best])
    near = (box_iou(boxes[best][None], boxes)[0] > overlap) | (index == best)
    left = xp.where(near, -xp.inf, left)
  return xp.stack(kept), xp.stack(sure)
