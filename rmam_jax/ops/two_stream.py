"""Two streams over fixed regions: what a region shows, and which regions show a class; beside them a score of what a
dense score attends to.

After Bilen, Vedaldi: "Weakly Supervised Deep Detection Networks" (CVPR 2016). Ours are the linear streams, the fixed set
of regions in place of proposals, the outcome "nothing", the other branches, and how a class's region is read off the
streams. That a region is weighed by its contrast with what surrounds it is after Kantorov et al.:
"ContextLocNet" (ECCV 2016): a part of an object has the rest of it around, the whole object has not.

Letters: B batch, H W C the feature map, P = H * W its cells, N regions of the fixed set, L classes, K regions shown.

The parameters are linear layers. "region" reads a region's mean or its contrast, "image" the mean of the whole map or, in
"dense", every cell, "class" the feature of each class (`csra.class_features`):

    {"what":  {"region": [C, L], "image": [C, L], "bias": [L]},   what a region shows
     "where": {"region": [C, L]},                                 which regions show a class, by their contrast
     "dense": {"image": [C, L], "bias": [L]},                     what the whole map shows, by residual attention
     "attended": {"class": [C, L], "bias": [L]}}                  what the cells show that "dense" attends to

"where" needs neither the image's mean nor a bias: it is to tell the regions of one image apart.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax.ops import attention, csra, losses, spatial_transformer
from rmam_jax.ops import boxes as boxes_lib
from rmam_jax.ops.attention import Attention, Params

SURE = 1e-6  # the regions' probability stays that far below 1, so that it has log-odds
MARGIN = 1.0  # in log-odds; see `recognize`
TINY = 1e-6  # fewer cells than this count as none
FINE_CELLS = 40  # a side of the map is resized to about so many cells before regions are read off it


class Branches(NamedTuple):
  """What each branch says of a class, in log-odds, and which regions say so."""

  regions: jax.Array  # [B, L]
  dense: jax.Array  # [B, L]
  attended: jax.Array  # [B, L]
  weights: jax.Array  # [B, N, L]; their sum over N is the probability that the regions' branch gives
  cells: jax.Array  # [2, B, H, W, L], what a cell adds to "what" and to "where"
  features: jax.Array  # [B, L, C], of each class's SVM


@functools.lru_cache
def fixed_regions(height: int, width: int, sizes: Sequence[float], step: float, most_oblong: float) -> np.ndarray:
  """Regions of several sizes and shapes, evenly spread over a map: int [N, 4] of (top, left, bottom, right) in cells.

  Args:
    height, width: H and W, at least 1.
    sizes: of their sides, as shares of the map's; every height is combined with every width.
    step: between neighbours of one size, about, as a share of the map's side.
    most_oblong: the largest ratio of a region's longer share to its shorter one.
  """

  def spans(length, size):  # along one axis
    cells = min(max(round(size * length), 1), length)
    starts = np.rint(np.linspace(0, length - cells, 1 + round((1 - size) / step))).astype(int)
    return [(start, start + cells) for start in starts.tolist()]

  found = {
    (top, left, bottom, right)
    for tall in sizes
    for wide in sizes
    if max(tall, wide) <= most_oblong * min(tall, wide)
    for top, bottom in spans(height, tall)
    for left, right in spans(width, wide)
  }
  return np.array(sorted(found))


def coverage(regions: jax.Array, height: int, width: int) -> jax.Array:
  """How much of every cell lies in regions [..., 4], (top, left, bottom, right) in cells: [..., H, W], in [0, 1]."""
  xp = regions.__array_namespace__()

  def along(start, end, length):
    cells = xp.arange(length)
    return xp.clip(xp.minimum(end[..., None], cells + 1) - xp.maximum(start[..., None], cells), 0, 1)

  top, left, bottom, right = xp.moveaxis(regions, -1, 0)
  return along(top, bottom, height)[..., :, None] * along(left, right, width)[..., None, :]


def surroundings(regions: np.ndarray, height: int, width: int, surround: float) -> np.ndarray:
  """How much of every cell lies around regions: as `coverage`, of each grown by `surround` without the region itself.

  Args:
    regions: as in `coverage`.
    surround: how many times as long and wide the grown regions are, about the same centre; what leaves the map is cut.
  """
  start, end = np.split(np.asarray(regions, float), 2, axis=-1)
  centre, half = (start + end) / 2, surround * (end - start) / 2
  grown = np.concatenate([np.maximum(centre - half, 0), np.minimum(centre + half, (height, width))], axis=-1)
  return coverage(grown, height, width) - coverage(regions, height, width)


def init(key: jax.Array, *, channels: int, num_classes: int, prior: float = 0.0) -> Params:
  """Parameters: Xavier uniform weights, zero biases; or as `attention.init_scores` has them, where there is a prior.

  Then the other two branches say the prior of each class, and the regions', whose softmax shares 1 among all classes and
  nothing, less.
  """
  if prior:
    zeros = jnp.zeros((channels, num_classes))
    bias = attention.init_scores(channels, num_classes, prior)["bias"]
    return {
      "what": {"region": zeros, "image": zeros, "bias": bias},
      "where": {"region": zeros},
      "dense": {"image": zeros, "bias": bias},
      "attended": {"class": zeros, "bias": bias},
    }
  xavier = jax.nn.initializers.glorot_uniform()
  what, where, dense, attended = jax.random.split(key, 4)
  region, image = jnp.split(xavier(what, (2 * channels, num_classes)), 2)
  return {
    "what": {"region": region, "image": image, "bias": jnp.zeros(num_classes)},
    "where": {"region": xavier(where, (channels, num_classes))},
    "dense": {"image": xavier(dense, (channels, num_classes)), "bias": jnp.zeros(num_classes)},
    "attended": {"class": xavier(attended, (channels, num_classes)), "bias": jnp.zeros(num_classes)},
  }


def read_cells(feature_map: jax.Array, still: jax.Array, teaching: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Two linear layers of every cell by one product, which reads the map once.

  Args:
    feature_map: [B, H, W, C].
    still: [C, S], of the layer whose gradient does not reach the map.
    teaching: [C, L], of the layer whose gradient does.

  Returns:
    [B, H, W, S] and [B, H, W, L], float32 or better.
  """
  product = functools.partial(jnp.matmul, preferred_element_type=spatial_transformer.wide_dtype(feature_map))
  silent = still.shape[1]

  @jax.custom_gradient
  def read(feature_map, kernels):
    every, back = jax.vjp(product, feature_map, kernels)

    def gradient(of_every):
      to_map, _ = back(of_every.at[..., :silent].set(0))
      _, to_kernels = back(of_every)
      return to_map, to_kernels

    return every, gradient

  every = read(feature_map, jnp.concatenate([still, teaching], axis=1).astype(feature_map.dtype))
  return every[..., :silent], every[..., silent:]


def branches(
  params: Params,
  feature_map: jax.Array,
  regions: np.ndarray,
  surround: float = 1.0,
  residual: Mapping[str, float] = {"weight": 0.0, "temperature": 0.0},
) -> Branches:
  """The three branches of the recognizer.

  The regions' probability of a class is the sum over the regions of a softmax over the regions ("where") times a softmax
  over the classes and nothing ("what"). Without nothing, whose score is 0, every region would have to show some class,
  and a single class would always be there. "Where" reads a region's mean less the mean of its surroundings, which is 0
  where there are none. A layer of a mean is the mean of the layer: the layers are applied to the cells, of which there
  are fewer, which is the same.

  The dense score attends to cells. "Attended" scores by a layer of its own what they show of a class: the map's mean plus
  the mean that is attended to, each of unit root mean square. No gradient flows through where it attends.

  Only the dense score's gradient reaches the map: a backbone that is trained, too, learns from it alone. Where all three
  branches taught it, rarer classes came out lower (docs/results/photographs.md).

  Args:
    params: see the module's docstring.
    feature_map: [B, H, W, C], float32 or bfloat16, of about unit root mean square.
    regions: int [N, 4], of `fixed_regions` for H and W.
    surround: as in `surroundings`, at least 1; 1: there are none.
    residual: the options of `csra.csra` for the dense score; weight 0: it is linear in the map's mean. The temperature is
      also that of the attention.

  Returns:
    The branches' log-odds, float32 or better, and what they are made of. The features are `csra.class_features` of two,
    summed: by the cells that the dense score attends to, and by the regions' weights.
  """
  _, height, width, channels = feature_map.shape
  wide = spatial_transformer.wide_dtype(feature_map)
  streams = jnp.concatenate([params["what"]["region"], params["where"]["region"]], axis=1)
  read, dense = read_cells(feature_map, streams, params["dense"]["image"])
  cells = jnp.split(read, 2, axis=-1)
  feature_map = jax.lax.stop_gradient(feature_map)
  mean = feature_map.mean(axis=(1, 2), dtype=wide)

  def shares(covered):  # whose sum over the cells is 1, or 0 where nothing is covered
    return covered / np.maximum(covered.sum(axis=(1, 2), keepdims=True), TINY)

  inside = shares(coverage(regions, height, width))
  around = shares(surroundings(regions, height, width, surround))
  averaging = jnp.asarray(np.stack([inside, inside - around]), wide)
  cells = jnp.stack(cells)
  what, where = jnp.einsum("snhw,sbhwl->sbnl", averaging, cells, precision="highest")
  what += (mean @ params["what"]["image"] + params["what"]["bias"])[:, None]
  log_what = what - jax.nn.logsumexp(jnp.pad(what, ((0, 0), (0, 0), (0, 1))), axis=-1, keepdims=True)
  log_weights = jax.nn.log_softmax(where, axis=1) + log_what
  log_probability = jax.nn.logsumexp(log_weights, axis=1)
  shown = jnp.einsum("bnl,nhw->bhwl", jax.nn.softmax(log_weights, axis=1), averaging[0], precision="highest")
  attending = jax.lax.stop_gradient(csra.attention(dense, residual["temperature"]))
  of_cells, of_regions = (csra.class_features(feature_map, weights) for weights in (attending, shown))
  attended = jnp.einsum("blc,cl->bl", of_cells, params["attended"]["class"], precision="highest")
  return Branches(
    regions=log_probability - jnp.log1p(-jnp.minimum(jnp.exp(log_probability), 1 - SURE)),
    dense=csra.csra(dense, **residual) + params["dense"]["bias"],
    attended=channels**0.5 * attended + params["attended"]["bias"],
    weights=jnp.exp(log_weights),
    cells=cells,
    features=of_cells + of_regions,
  )


def mean_probability(*scores: jax.Array) -> jax.Array:
  """The log-odds of the mean of probabilities that are given as log-odds, all of one shape."""
  every = jnp.stack(scores)
  present, absent = (jax.nn.logsumexp(jax.nn.log_sigmoid(sign * every), axis=0) for sign in (1, -1))
  return present - absent


def _scaled(maps: jax.Array) -> jax.Array:
  """[..., H, W], each map from its lowest value to its highest scaled to [0, 1]; all 1 where they are the same."""
  low, high = maps.min(axis=(-2, -1), keepdims=True), maps.max(axis=(-2, -1), keepdims=True)
  return jnp.where(high > low, (maps - low) / jnp.where(high > low, high - low, 1), 1)


def evidence(weights: jax.Array, cells: jax.Array, regions: np.ndarray, power: float) -> jax.Array:
  """Where the evidence for classes is: [..., H, W], in [0, 3].

  The sum of three maps, each scaled to [0, 1]: of the weights of the regions that cover a cell, and what the cell adds
  to each stream.

  Args:
    weights: [..., N], as in `Branches`.
    cells: [2, ..., H, W], as there.
    regions: int [N, 4], those of the weights.
    power: that the weights are raised to; below 1, or a class's most telling part would be all of it.
  """
  covering = jnp.asarray(coverage(regions, *cells.shape[-2:]), weights.dtype)
  weighed = jnp.einsum("...n,nhw->...hw", weights**power, covering, precision="highest")
  return _scaled(weighed) + _scaled(cells).sum(axis=0)


def extents(evidence: jax.Array, threshold: float) -> jax.Array:
  """The boxes that hold the evidence for classes: [..., H, W] -> [..., 4] of (top, left, bottom, right), as shares.

  A box reaches as far as the evidence, interpolated between the centres of the cells, is above `threshold` on the way
  from its lowest to its highest value. Where it is the same everywhere, that is all of the map.
  """
  *lead, height, width = evidence.shape
  finer = max(FINE_CELLS // max(height, width), 1)
  above = _scaled(jax.image.resize(evidence, (*lead, height * finer, width * finer), "bilinear")) >= threshold

  def ends(line):  # bool [..., length] -> the first and behind the last that is true, as shares
    length = line.shape[-1]
    return line.argmax(axis=-1) / length, 1 - line[..., ::-1].argmax(axis=-1) / length

  (top, bottom), (left, right) = ends(above.any(axis=-1)), ends(above.any(axis=-2))
  return jnp.stack([top, left, bottom, right], axis=-1)


def recognize(
  params: Params,
  feature_map: jax.Array,
  *,
  num_regions: int,
  sizes: Sequence[float],
  step: float,
  most_oblong: float,
  surround: float,
  residual: Mapping[str, float],
  power: float,
  threshold: float,
  align_corners: bool = True,
) -> Attention:
  """The recognizer: an image's scores, and regions that show where its likeliest classes are.

  A class's score is the log-odds of the mean of two probabilities, of the regions and of what is attended to; the dense
  score only says where to attend. The k-th region is that of the k-th likeliest class, the extent of the `evidence` for
  it. With fewer regions than classes the last one is the whole image and belongs to all classes that are left.

  A class has its score in the region that it belongs to; in another one `MARGIN` less than the lower of its score and of
  the likeliest class there. So Eq. 6 gives the image's scores and every class's own region, and each region by itself
  says the class that it was chosen for.

  Args:
    params, feature_map: as in `branches`.
    num_regions: K >= 1.
    sizes, step, most_oblong: of the fixed regions; see `fixed_regions`.
    surround, residual: see `branches`.
    power, threshold: see `evidence` and `extents`.
    align_corners: as in `rmam_jax.ops.spatial_transformer`.

  Returns:
    The K regions; no gradient flows through the thetas. x is the mean of the map inside a region, h and z that of all
    of it, all [K, B, C]; SVMs are no better with both. The memory is `Branches`, which `loss` needs.

  Raises:
    ValueError: K < 1, or a map that is not [B, H, W, C].
  """
  attention.check_arguments(feature_map, num_regions)
  batch, height, width, _ = feature_map.shape
  regions = fixed_regions(height, width, tuple(sizes), step, most_oblong)
  found = branches(params, feature_map, regions, surround, residual)
  scores_BL = mean_probability(found.regions, found.attended)

  num_classes = scores_BL.shape[1]
  order = jnp.argsort(scores_BL, axis=1, descending=True)
  located = num_classes if num_classes <= num_regions else num_regions - 1
  weights, cells = (  # [K', B, N] and [2, K', B, H, W]
    jnp.moveaxis(jnp.take_along_axis(each, jnp.expand_dims(order[:, :located], axes), axis=-1), -1, place)
    for each, axes, place in ((found.weights, 1, 0), (found.cells, (0, 2, 3), 1))
  )
  where = evidence(weights, cells, regions, power)
  whole_image = jnp.broadcast_to(jnp.asarray(boxes_lib.WHOLE_IMAGE), (num_regions - located, batch, 4))
  boxes_KB4 = jnp.concatenate([extents(where, threshold), whole_image])

  places = jnp.arange(num_regions)[:, None, None]
  owner_BL = jnp.minimum(jnp.argsort(order, axis=1), num_regions - 1)
  likeliest = jnp.take_along_axis(scores_BL, order, axis=1)[:, jnp.minimum(places[:, 0, 0], num_classes - 1)]
  elsewhere = jnp.minimum(scores_BL, likeliest.T[:, :, None]) - MARGIN

  covered = coverage(boxes_KB4 * jnp.asarray((height, width) * 2, boxes_KB4.dtype), height, width)
  inside = jnp.einsum("kbhw,bhwc->kbc", covered, feature_map) / covered.sum(axis=(2, 3))[..., None]
  image = jnp.broadcast_to(feature_map.mean(axis=(1, 2), dtype=inside.dtype), inside.shape)
  return Attention(
    scores=jnp.where(owner_BL == places, scores_BL, elsewhere),
    thetas=spatial_transformer.boxes_to_thetas(boxes_KB4, (height, width), align_corners=align_corners),
    x=inside,
    h=image,
    z=image,
    memory=found,
  )


def loss(
  found: Attention,
  labels: jax.Array,
  ignore: jax.Array,
  mask: jax.Array,
  *,
  classification: str = "sigmoid",
  options: Mapping[str, Any] = {},
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The head's loss (`heads.spec.HeadLoss`) of what `recognize` returns: the losses of the three branches, summed.

  Args:
    found: what `recognize` returns.
    labels: 0 or 1, [B, L].
    ignore: bool [B, L]; True: the label counts in no loss.
    mask: [B]; 0: the example is padding.
    classification: one of `losses.SIGMOIDS`.
    options: the arguments of that loss.

  Returns:
    The loss, a scalar, and its terms by name, "regions", "dense" and "attended".
  """
  of_branch = losses.CLASSIFICATION_LOSSES[classification]
  terms = {
    name: of_branch(getattr(found.memory, name), labels, ignore=ignore, example_mask=mask, **options)
    for name in ("regions", "dense", "attended")
  }
  return sum(terms.values()), terms
