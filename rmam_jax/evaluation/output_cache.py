"""Outputs on disk: WORKDIR/features/SPLIT/ holds .npz chunks with the images' ids, and `key.json`, what made them.

Extraction that was stopped goes on after its last whole chunk. Chunks that another checkpoint, configuration or data
set made are never mixed with new ones: they are noticed, removed and computed again.
"""

import hashlib
import json
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np
import tqdm

from rmam_jax.data.splits import Split
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation.outputs import Forward, Outputs
from rmam_jax.evaluation.views import CENTRE, Views
from rmam_jax.runtime import files, processes

FORMAT = 2  # of the chunks
CHUNK = 1_024  # images, about
DELETE = "delete it and run the same command again"

Key = dict[str, Any]


def digest_params(params: Any) -> str:
  """A digest of every parameter's name, type, shape and bytes."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8))
  return digest.hexdigest()


def make_key(config: Any, split: Split, params: str, views: Views = CENTRE) -> Key:
  """All that an answer depends on.

  Args:
    config: the configuration.
    split: the records.
    params: from `digest_params`.
    views: what is looked at.
  """
  return {
    "format": FORMAT,
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


def claim(folder: pathlib.Path, key: Key) -> None:
  """Makes the folder this key's; what another key left there is removed, and that is said."""
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


def _finished(folder: pathlib.Path) -> list[tuple[int, int, pathlib.Path]]:
  """The chunks there from the first image on, as (start, stop, path)."""
  chunks, stop = [], 0
  for path in sorted(folder.glob("*-*.npz")):
    start, end = map(int, path.stem.split("-"))
    if start != stop:
      break
    chunks.append((start, end, path))
    stop = end
  return chunks


def extract(
  folder: pathlib.Path,
  key: Key,
  forward: Forward,
  params: Any,
  split: Split,
  *,
  data: Any,
  batch_size: int,
  progress: str,
) -> Outputs:
  """The answers for a split, from disk as far as they are there, and on disk afterwards.

  Args:
    folder: from `folder_of`.
    key: from `make_key`.
    forward: from `answers.make_forward`; only called where a chunk is missing.
    params: the recogniser's.
    split: the records.
    data: that section of the configuration.
    batch_size: see `answers.compute_outputs`.
    progress: the progress bar's label.

  Raises:
    UserError: a chunk that cannot be read.
    UserError: a chunk that cannot be written.
    UserError: see `answers.compute_arrays`.
  """
  with processes.first_before_others(f"claim {folder}"):
    claim(folder, key)
  chunks = _finished(folder)
  start = chunks[-1][1] if chunks else 0
  size = max(CHUNK // batch_size, 1) * batch_size
  with tqdm.tqdm(
    total=len(split), initial=start, desc=progress, unit=" images", leave=False, disable=not processes.is_first()
  ) as bar:
    while start < len(split):
      stop = min(start + size, len(split))
      positions = range(start, stop)
      arrays = outputs_lib.compute_arrays(
        forward, params, split, positions, data=data, batch_size=batch_size, advance=bar.update
      )
      path = folder / f"{start:08d}-{stop:08d}.npz"
      if processes.is_first():
        files.write_npz(path, arrays)
      chunks.append((start, stop, path))
      start = stop
  processes.wait_for_all(f"extracted {folder}")
  return outputs_lib.from_arrays(_join([files.read_npz(path, DELETE) for _, _, path in chunks]))


def _join(chunks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Chunks to whole arrays, one name after the other so that no more than one is there twice."""
  return {name: np.concatenate([chunk.pop(name) for chunk in chunks]) for name in list(chunks[0])}
