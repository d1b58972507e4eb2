"""What a recognizer says about a whole split, every example exactly once, and the cache of it on disk.

WORKDIR/features/SPLIT/ holds .npz chunks with the images' ids, and `key.json`, what made them. Extraction that was
stopped goes on after its last whole chunk. Chunks that another checkpoint, configuration or data set made are never
mixed with new ones: they are noticed, removed and computed again.
"""

import collections
import dataclasses
import itertools
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from rmam_jax.data import batches
from rmam_jax.data.images import PIXELS
from rmam_jax.data.splits import Split
from rmam_jax.evaluation import views as views_lib
from rmam_jax.ops.attention import Attention
from rmam_jax.runtime import files, processes
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime import progress as progress_lib
from rmam_jax.runtime.errors import UserError, check_name, os_errors
from rmam_jax.weights import tensors

CLASS = "class"
FEATURES = ("z", "h", "x", CLASS)  # of `attention.Attention`, and the head's own for each class
FORMAT = 2  # of the chunks
CHUNK = 1_024  # images, about
AHEAD = 2  # batches that have been begun when one is fetched: the devices never wait for the host to have it


class Outputs(NamedTuple):
  """Scores and regions of N images, K regions, L classes, and what is known of the images."""

  ids: list[str]
  scores: np.ndarray  # float32 [N, L], Eq. 6 in each view, the mean over the views
  # float32 [N, F], the maximum over the regions of each view, the mean over the views; of "class" [N, L, F], the mean
  features: np.ndarray
  region_scores: np.ndarray  # float32 [K, N, L], of every region of the centre view
  thetas: np.ndarray  # float32 [K, N, 4], of the centre view, in its coordinates
  auxiliary: np.ndarray | None  # float32 [N, L], the auxiliary head's scores, pooled as `scores`
  labels: np.ndarray  # float32 [N, L]
  ignore: np.ndarray  # bool [N, L]
  boxes: list[np.ndarray]  # N of [n, 4] (top, left, bottom, right), as shares of the image
  box_classes: list[np.ndarray]  # N of [n]
  skipped: list[str]  # why images could not be read, with `data.corrupt` "skip"; all their labels are ignored

  @property
  def readable(self) -> np.ndarray:
    """The positions of the images that could be read."""
    return np.flatnonzero(~self.ignore.all(axis=1))

  def objects(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Boxes and their classes, without those of classes that an image shows only as `difficult`."""
    kept = [labels[classes] == 1 for labels, classes in zip(self.labels, self.box_classes, strict=True)]
    return tuple([each[keep] for each, keep in zip(both, kept, strict=True)] for both in (self.boxes, self.box_classes))

  @property
  def winners(self) -> np.ndarray:
    """The region of the centre view that gives Eq. 6 its maximum, int [N, L]."""
    return self.region_scores.argmax(axis=0)


@dataclasses.dataclass(frozen=True)
class Forward:
  """One jitted program for all views: params, images -> arrays with a leading dimension of images."""

  views: views_lib.Views
  program: Callable[[Any, jax.Array, jax.Array | None], dict[str, jax.Array]]
  sharding: jax.sharding.NamedSharding  # of its images

  def __call__(self, params: Any, images: jax.Array, boxes: jax.Array | None = None) -> dict[str, jax.Array]:
    """Arrays as `Outputs` names them, of images [B, side, side, 3], and boxes [B, K, 4] for a head that needs them."""
    if boxes is not None and not self.views.is_centre:
      raise UserError("proposals are seen from the centre view alone: set evaluation.views=centre")
    found = self.program(params, images, boxes)
    for array in found.values():  # each is on its way to the host as soon as it is computed
      array.copy_to_host_async()
    return found


def make_forward(
  model: nn.Module,
  mesh: jax.sharding.Mesh,
  views: views_lib.Views = views_lib.CENTRE,
  *,
  feature: str = "z",
  class_features: Callable[[Attention], jax.Array] | None = None,
) -> Forward:
  """Jits a recognizer for a batch's views, its examples shared out over the mesh.

  `feature` is one of `FEATURES`; for "class", `class_features` are those of the head's spec.
  """
  check_name("evaluation.feature", feature, FEATURES)

  def forward(params, images, boxes):
    maps = views_lib.feature_maps(model, params, images, views)
    attention, auxiliary = model.apply({"params": params}, maps.reshape(-1, *maps.shape[2:]), boxes, method="recognize")

    def by_view(array_KVX):  # one row for every view of every image -> [K, B, V, X]
      return array_KVX.reshape(len(array_KVX), *maps.shape[:2], -1)

    def pooled(array_KVX):  # the maximum over the regions, the mean over the views
      return by_view(array_KVX).max(axis=0).mean(axis=1)

    arrays = {"scores": pooled(attention.scores)}
    if feature == CLASS:
      of_views = class_features(attention)  # one row for every view of every image
      arrays["features"] = of_views.reshape(*maps.shape[:2], *of_views.shape[1:]).mean(axis=1)
    else:
      arrays["features"] = pooled(getattr(attention, feature))
    for name, array in (("region_scores", attention.scores), ("thetas", attention.thetas)):
      arrays[name] = by_view(array)[:, :, 0].swapaxes(0, 1)
    return arrays if auxiliary is None else arrays | {"auxiliary": pooled(auxiliary.scores)}

  replicated, by_example = mesh_lib.replicated(mesh), mesh_lib.by_example(mesh)
  program = jax.jit(forward, in_shardings=(replicated, by_example, by_example), out_shardings=replicated)
  return Forward(views, program, by_example)


def ahead(items: Iterable, count: int = 1) -> Iterator:
  """The items, each given when so many more have been begun: devices and threads work on those meanwhile."""
  begun, items = collections.deque(), iter(items)
  begun.extend(itertools.islice(items, count))
  for item in items:
    begun.append(item)
    yield begun.popleft()
  yield from begun


def _compute_arrays(forward, params, split, positions, *, data, batch_size, maps, advance=lambda count: None) -> dict:
  """The records at these positions, as arrays with a leading dimension of images or boxes; `advance` counts images."""

  def begin(batch):  # starts the network: arrays, still padded, with why each image cannot be read; and the records
    images, boxes, of_batch, reasons = batch
    inputs = jax.tree.map(lambda x: jax.make_array_from_process_local_data(forward.sharding, x), (images, boxes))
    return {**forward(params, *inputs), "skipped": np.array(reasons)}, of_batch

  decoded = batches.evaluation_batches(
    split,
    positions,
    batch_size=batch_size,
    image_size=data.image_size,
    crop_size=forward.views.pixels(data) if maps is None else data.crop_size,
    corrupt=data.corrupt,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    maps=maps,
  )
  parts, records = [], []
  for arrays, of_batch in ahead(map(begin, decoded), AHEAD):  # the next are decoded while the devices work on this one
    parts.append({name: array[: len(of_batch)] for name, array in jax.device_get(arrays).items()})
    records += of_batch
    advance(len(of_batch))
  arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  wrong = ~np.isfinite(arrays["region_scores"]).all(axis=(1, 2)) | ~np.isfinite(arrays["scores"]).all(axis=1)
  if wrong.any():
    raise UserError(f"{split.name}, {records[wrong.argmax()].id}: its scores are not finite")
  return arrays | {
    "ids": np.array([record.id for record in records]),
    **{field: np.stack([getattr(record, field) for record in records]) for field in ("labels", "ignore")},
    **{field: np.concatenate([getattr(record, field) for record in records]) for field in ("boxes", "box_classes")},
    "box_counts": np.array([len(record.boxes) for record in records]),
  }


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Outputs:
  ends = np.cumsum(arrays["box_counts"])[:-1]
  return Outputs(
    ids=arrays["ids"].tolist(),
    region_scores=arrays["region_scores"].swapaxes(0, 1),
    thetas=arrays["thetas"].swapaxes(0, 1),
    auxiliary=arrays.get("auxiliary"),
    boxes=np.split(arrays["boxes"], ends),
    box_classes=np.split(arrays["box_classes"], ends),
    skipped=[reason for reason in arrays["skipped"].tolist() if reason],
    **{name: arrays[name] for name in ("scores", "features", "labels", "ignore")},
  )


def compute_outputs(
  forward: Forward,
  params: Any,
  split: Split,
  *,
  data: Any,
  batch_size: int,
  maps: batches.StoredMaps | None = None,
  limit: int = 0,
) -> Outputs:
  """Runs the views of every record of a split once, or of the first `limit`.

  `data` is that section of the configuration, `batch_size` a multiple of the number of devices: the last batch is
  padded, and the padding left out. `maps` are the split's, if they are stored. Raises a UserError that names the first
  record with a score that is not finite.
  """
  options = {"data": data, "batch_size": batch_size, "maps": maps}
  positions = range(len(split))[: limit or None]
  return _from_arrays(_compute_arrays(forward, params, split, positions, **options))


def digest_params(params: Any) -> str:
  """A digest of every parameter's name, type, shape and values."""
  return tensors.digest(tensors.flatten(jax.device_get(params)))


def make_key(config: Any, split: Split, params: str, views: views_lib.Views = views_lib.CENTRE) -> dict[str, Any]:
  """All that outputs depend on; `params` is from `digest_params`."""
  return {
    "format": FORMAT,
    "pixels": PIXELS,
    "checkpoint": params,
    "data set": split.name,
    "images": len(split),
    "records": split.digest(),
    "proposals": [config.data.proposals, config.data.num_proposals],
    "sizes": [config.data.image_size, config.data.crop_size],
    "views": json.loads(json.dumps(views)),
    "feature": config.evaluation.feature,
    "model": json.loads(config.model.to_json()),
  }


def folder_of(workdir_folder: pathlib.Path, split_name: str) -> pathlib.Path:
  """WORKDIR/features/SPLIT, the split's name made fit for a folder."""
  return workdir_folder / "features" / re.sub(r"[^A-Za-z0-9]+", "-", split_name).strip("-")


def _claim(folder: pathlib.Path, key: dict[str, Any]) -> None:
  """Makes the folder this key's: removes what another key left there, and says so."""
  path = folder / "key.json"
  if path.exists():
    theirs = files.read_json(path)
    differing = sorted(name for name in key | theirs if key.get(name) != theirs.get(name))
    if not differing:
      return
    print(f"{folder} was made with another {', '.join(differing)}: computed again")
  if folder.exists():
    shutil.rmtree(folder)
  folder.mkdir(parents=True)
  files.write_json(path, key)


def extract(
  folder: pathlib.Path,
  key: dict[str, Any],
  forward: Forward,
  params: Any,
  split: Split,
  *,
  data: Any,
  batch_size: int,
  progress: str,
  maps: Callable[[], batches.StoredMaps] | None = None,
) -> Outputs:
  """`compute_outputs`, read from disk as far as it is there; the rest is computed and written there.

  The folder is from `folder_of`, the key from `make_key`; `progress` is the progress bar's label. `maps` gives the
  split's stored ones, if there are any, and is called only where something is left to compute. Raises a UserError as
  that does, and for a chunk that cannot be read or written.
  """
  with processes.first_before_others(f"claim {folder}"), os_errors(f"cannot use {folder}", files.GO_ON):
    _claim(folder, key)
  chunks, done = [], 0
  for path in sorted(folder.glob("*-*.npz")):
    start, stop = map(int, path.stem.split("-"))
    if start != done:
      break
    chunks.append(path)
    done = stop
  size, options = max(CHUNK // batch_size, 1) * batch_size, {"data": data, "batch_size": batch_size}
  options["maps"] = maps() if maps and done < len(split) else None
  shown = {"unit": " images", "leave": False, "disable": not processes.is_first()}
  with progress_lib.bar(None, progress, len(split), initial=done, **shown) as bar:
    for start in range(done, len(split), size):
      positions = range(start, min(start + size, len(split)))
      arrays = _compute_arrays(forward, params, split, positions, advance=bar.update, **options)
      chunks.append(folder / f"{start:08d}-{positions.stop:08d}.npz")
      if processes.is_first():
        files.write_npz(chunks[-1], arrays)
  processes.wait_for_all(f"extracted {folder}")
  parts = [files.read_npz(path, "delete it and run the same command again") for path in chunks]
  # One name after the other, so that no more than one of the arrays is in memory twice.
  return _from_arrays({name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])})
