"""The feature maps of a split under a backbone that is not trained: computed once, kept in the user's cache.

CACHE/maps/DIGEST/ holds `maps.npy`, float16 [N, 2, H, W, C], of each image, or of its centre view, and of its mirror
image, and `key.json`: what made them, how many are done, and which images could not be read. A computation that was
stopped goes on where it was. Anything there may be deleted at any time between two runs.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax import backbones, recognizer
from rmam_jax.data import batches
from rmam_jax.data.batches import StoredMaps
from rmam_jax.data.images import PIXELS
from rmam_jax.data.splits import Split
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation.views import Views
from rmam_jax.runtime import files, processes, progress
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError, os_errors
from rmam_jax.weights import tensors

FORMAT = 1
CHUNK = 256  # images, about, between two notes of how many are done
_FIELDS = ("backbone", "maps", "dtype", "pixel_mean", "pixel_std")  # of `model`, beside the backbone's own sections


def make_key(config: Any, split: Split, backbone: Any, views: Views) -> dict[str, Any]:
  """All that the maps depend on; `backbone` are its parameters."""
  sections = [name.removeprefix("model.") for name in backbones.get(config.model.backbone).defaults]
  fields = json.loads(config.model.to_json())
  return {
    "format": FORMAT,
    "pixels": PIXELS,
    "backbone": tensors.digest(tensors.flatten(jax.device_get(backbone))),
    "model": {name: fields[name] for name in (*_FIELDS, *sections)},
    "sizes": [config.data.image_size, views.pixels(config.data)],
    "images": len(split),
    "records": split.digest(),
  }


def of_split(
  model: recognizer.Recognizer, params: Any, split: Split, *, config: Any, mesh: jax.sharding.Mesh, views: Views
) -> StoredMaps:
  """The maps of every record of a split, read from disk as far as they are there; the rest is computed and kept.

  `params` are the recognizer's, of which the backbone's count. They are of the centre view, or of the whole image where
  the `views` are windows of it. Raises UserError: an image cannot be read, a map is not finite as float16, or there is
  no room on the disk.
  """
  key = make_key(config, split, params["backbone"], views)
  folder = files.cache_folder() / "maps" / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
  with os_errors(f"cannot use {folder}", "The environment variable XDG_CACHE_HOME names another place for it."):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
      if processes.is_first():
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be computing the same maps: they are computed once
      _compute(folder, key, model, params, split, config=config, mesh=mesh, pixels=views.pixels(config.data))
  unreadable = files.read_json(folder / "key.json")["unreadable"]
  maps = np.load(folder / "maps.npy", mmap_mode="r")
  return StoredMaps(maps, {int(index): reason for index, reason in unreadable.items()}, views.side)


def _compute(
  folder: pathlib.Path, key: Any, model: Any, params: Any, split: Split, *, config: Any, mesh: Any, pixels: int
) -> None:
  """Computes and writes what is not there yet, from images of so many `pixels` a side."""
  path, about, first = folder / "maps.npy", folder / "key.json", processes.is_first()
  if first and not (path.exists() and about.exists()):
    files.write_json(about, {"done": 0, "unreadable": {}, "made by": key})
  processes.wait_for_all(f"stored maps {folder}")  # only the first one waits for other runs
  if not about.exists():
    raise UserError(f"{folder} is not seen by all processes: XDG_CACHE_HOME must name a folder that they share")
  known = files.read_json(about)
  done, unreadable = known["done"], known["unreadable"]
  if unreadable and config.data.corrupt == "error":
    raise UserError(next(iter(unreadable.values())))
  if done == len(split):
    return

  def both(params, images):
    images = jnp.concatenate([images, images[:, :, ::-1]])
    maps = model.apply({"params": params}, images, method="feature_map").astype(jnp.float16)
    return maps.reshape(2, -1, *maps.shape[1:]).swapaxes(0, 1)

  replicated, by_example = mesh_lib.replicated(mesh), mesh_lib.by_example(mesh)
  program = jax.jit(both, in_shardings=(replicated, by_example), out_shardings=replicated)
  batch_size = config.evaluation.batch_size
  shape = jax.eval_shape(both, params, jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.uint8)).shape
  each = 2 * math.prod(shape)  # bytes
  needed = each * (len(split) - done)
  if (free := shutil.disk_usage(folder).free) < needed:
    raise UserError(
      f"{folder} has {free / 1e9:,.1f} GB free and the feature maps of {split.name} need {needed / 1e9:,.1f} GB: free"
      f" some (in {folder.parent} all maps may go: a run that needs them computes them again), or name another place by"
      " the environment variable XDG_CACHE_HOME"
    )
  if first:
    print(f"{split.name}: feature maps are computed once and kept in {folder} ({each * len(split) / 1e9:,.1f} GB)")
  chunk = max(CHUNK // batch_size, 1) * batch_size
  shown = {"unit": " images", "leave": False, "disable": not first}
  # Written, not mapped into memory: on a disk that is full, a write can say so.
  with (
    progress.bar(None, "feature maps", len(split), initial=done, **shown) as bar,
    path.open("r+b" if done else "wb") if first else contextlib.nullcontext() as file,
  ):
    if first:
      header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": (len(split), *shape[1:])}
      np.lib.format.write_array_header_1_0(file, header)
      file.seek(each * done, os.SEEK_CUR)
    for start in range(done, len(split), chunk):
      positions, written = range(start, min(start + chunk, len(split))), start
      for found, reasons in outputs_lib.ahead(_batches(program, params, split, positions, config, by_example, pixels)):
        found = np.asarray(found)[: len(reasons)]
        if (wrong := ~np.isfinite(found).all(axis=(1, 2, 3, 4))).any():
          record = split[written + int(wrong.argmax())]
          raise UserError(f"{split.name}, {record.id}: its feature map is not finite as float16")
        unreadable |= {str(written + place): reason for place, reason in enumerate(reasons) if reason}
        if first:
          file.write(found.tobytes())
        written += len(found)
        bar.update(len(found))
      if first:
        file.flush()
        os.fsync(file.fileno())
        files.write_json(about, {"done": written, "unreadable": unreadable, "made by": key})
  processes.wait_for_all(f"stored maps are whole {folder}")


def _batches(program, params, split, positions, config, sharding, pixels):
  """The maps of each batch, begun and not waited for, and why each of its images cannot be read."""
  for images, _, _, reasons in batches.evaluation_batches(
    split,
    positions,
    batch_size=config.evaluation.batch_size,
    image_size=config.data.image_size,
    crop_size=pixels,
    corrupt=config.data.corrupt,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  ):
    yield program(params, jax.make_array_from_process_local_data(sharding, images)), reasons
