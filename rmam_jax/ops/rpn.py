"""A fully convolutional region proposal network, as DenseCap's (Johnson, Karpathy and Fei-Fei, CVPR 2016, Sec. 3.2).

At each cell of a feature map lie k anchor boxes of different sizes. For each the layer gives a confidence that an
object is there and four offsets (t_x, t_y, t_w, t_h) that make the anchor box (x_a, y_a, w_a, h_a) a region:

    x = x_a + t_x w_a    y = y_a + t_y h_a    w = w_a e^{t_w}    h = h_a e^{t_h}

with (x, y) the centre. It learns from boxes, whatever is in them. RLSD takes its regions from such a layer.

Boxes are (top, left, bottom, right) as shares of what the map shows. Letters: H W cells of the map, k anchor boxes a
cell, N = H W k anchor boxes, n boxes of an image, K regions. All functions see one image.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmam_jax.ops.boxes import box_area, box_iou, suppress


def anchor_boxes(cells: tuple[int, int], sizes: Sequence[tuple[float, float]], stride: int) -> np.ndarray:
  """The anchor boxes around the centre of every cell of (H, W), by rows, columns and sizes: float32 [N, 4].

  Sizes are k of (width, height) in pixels of the image, the stride too. Some boxes reach beyond the image.
  """
  height, width = cells
  y, x = np.mgrid[:height, :width].reshape(2, -1, 1) + 0.5
  half_w, half_h = np.array(sizes, float).T / (2 * stride)  # in cells
  edges = [(y - half_h) / height, (x - half_w) / width, (y + half_h) / height, (x + half_w) / width]
  return np.stack(edges, axis=-1).reshape(-1, 4).astype(np.float32)


def _centre_and_size(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(x, y) and (w, h), [..., 2] each."""
  return ((boxes[..., :2] + boxes[..., 2:]) / 2)[..., ::-1], (boxes[..., 2:] - boxes[..., :2])[..., ::-1]


def apply_offsets(anchors: jax.Array, offsets: jax.Array) -> jax.Array:
  """Anchor boxes [..., 4] and offsets (t_x, t_y, t_w, t_h) [..., 4] -> regions [..., 4]."""
  centre, size = _centre_and_size(anchors)
  centre, half = centre + offsets[..., :2] * size, size * jnp.exp(offsets[..., 2:]) / 2
  return jnp.concatenate([(centre - half)[..., ::-1], (centre + half)[..., ::-1]], axis=-1)


def find_offsets(anchors: jax.Array, boxes: jax.Array) -> jax.Array:
  """The offsets that make anchor boxes [..., 4] boxes [..., 4] of positive area: the inverse of `apply_offsets`."""
  (centre, size), (wanted_centre, wanted_size) = _centre_and_size(anchors), _centre_and_size(boxes)
  return jnp.concatenate([(wanted_centre - centre) / size, jnp.log(wanted_size / size)], axis=-1)


def match(anchors: jax.Array, boxes: jax.Array, *, positive: float = 0.7, negative: float = 0.3):
  """Which anchor boxes stand for an object and which for none, bool [N], and for which of the boxes [n, 4], int [N].

  One whose IoU with some box is above `positive` stands for it, and so does the best one of each box; one whose IoU
  with all is below `negative` stands for none; the others are not learned from. Boxes of no area are padding.
  """
  present = box_area(boxes) > 0
  iou = jnp.where(present, box_iou(anchors, boxes), 0)
  best = (jnp.arange(len(anchors))[:, None] == iou.argmax(axis=0)) & present
  forced = best.any(axis=1)
  highest = iou.max(axis=1)
  stands_for = jnp.where(forced, best.argmax(axis=1), iou.argmax(axis=1))
  return forced | (highest > positive), ~forced & (highest < negative), stands_for


def _first(eligible: jax.Array, order: jax.Array, count: jax.Array | int) -> jax.Array:
  """Of the eligible, bool [N], the `count` of lowest order, float [N]: bool [N]."""
  places = jnp.argsort(jnp.where(eligible, order, jnp.inf))
  rank = jnp.zeros(len(places), int).at[places].set(jnp.arange(len(places)), unique_indices=True)
  return eligible & (rank < count)


def sample(noise: jax.Array, positive: jax.Array, negative: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """Draws `count` anchor boxes by uniform noise [N], at most half of them positive: those of each kind, bool [N]."""
  drawn = _first(positive, noise, count // 2)
  return drawn, _first(negative, noise, count - drawn.sum())


def layer_loss(
  scores: jax.Array,
  offsets: jax.Array,
  anchors: jax.Array,
  boxes: jax.Array,
  noise: jax.Array,
  *,
  positive: float = 0.7,
  negative: float = 0.3,
  samples: int = 256,
) -> tuple[jax.Array, jax.Array]:
  """What the layer gets wrong, by the anchor boxes drawn for the image; see `match` and `sample`.

  Scores [N, 2] are of nothing and of an object; boxes [n, 4] are within the image. Returns the mean cross-entropy of
  the confidence, and the mean over the positive anchor boxes of the smooth L1 distance of the offsets, summed over the
  four; 0 where there are none.
  """
  positives, negatives, stands_for = match(anchors, boxes, positive=positive, negative=negative)
  positives, negatives = sample(noise, positives, negatives, samples)
  drawn = positives | negatives
  entropy = optax.softmax_cross_entropy_with_integer_labels(scores, positives.astype(int))
  # A box of area for every anchor box, or its logarithm would be infinite and the gradient of what is left out nan.
  wanted = find_offsets(anchors, jnp.where(positives[:, None], boxes[stands_for], anchors))
  distance = optax.huber_loss(offsets, wanted).sum(axis=1)
  confidence = (entropy * drawn).sum() / jnp.maximum(drawn.sum(), 1)
  return confidence, (distance * positives).sum() / jnp.maximum(positives.sum(), 1)


def propose(
  scores: jax.Array, offsets: jax.Array, anchors: jax.Array, *, count: int, overlap: float
) -> tuple[jax.Array, jax.Array]:
  """The surest regions that differ [K, 4], within the image, and their confidence [K], as log-odds; see `suppress`."""
  boxes = jnp.clip(apply_offsets(anchors, offsets), 0, 1)
  confidence = jnp.where(box_area(boxes) > 0, scores[:, 1] - scores[:, 0], -jnp.inf)
  return suppress(boxes, confidence, count=count, overlap=overlap)
