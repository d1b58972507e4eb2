"""Outputs on disk: WORKDIR/features/SPLIT/ holds .npz chunks with the images' ids, and `key.json`, what made them.

Extraction that was stopped goes on after its last whole chunk. Chunks that another checkpoint, configuration or data
set made are never mixed with new ones: they are noticed, removed and computed again.
"""

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
from rmam_jax.weights import tensors

FORMAT = 2  # of the chunks
CHUNK = 1_024  # images, about
DELETE = "delete it and run the same command again"


def digest_params(params: Any) -> str:
  """A digest of every parameter's name, type, shape and values."""
  return tensors.digest(tensors.flatten(jax.device_get(params)))


def make_key(config: Any, split: Split, params: str, views: Views = CENTRE) -> dict[str, Any]:
  """All that outputs depend on; `params` is from `digest_params`."""
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
) -> Outputs:
  """The outputs for a split: read from disk as far as they are there, the rest computed and written there.

  The folder is from `folder_of`, the key from `make_key`; `forward` is only called where a chunk is missing; `progress`
  is the progress bar's label. For the others see `outputs.compute_outputs`. Raises a UserError as that does, and for a
  chunk that cannot be read or written.
  """
  with processes.first_before_others(f"claim {folder}"):
    _claim(folder, key)
  chunks, done = [], 0
  for path in sorted(folder.glob("*-*.npz")):
    start, stop = map(int, path.stem.split("-"))
    if start != done:
      break
    chunks.append(path)
    done = stop
  size = max(CHUNK // batch_size, 1) * batch_size
  hidden = not processes.is_first()
  with tqdm.tqdm(total=len(split), initial=done, desc=progress, unit=" images", leave=False, disable=hidden) as bar:
    for start in range(done, len(split), size):
      positions = range(start, min(start + size, len(split)))
      arrays = outputs_lib.compute_arrays(
        forward, params, split, positions, data=data, batch_size=batch_size, advance=bar.update
      )
      chunks.append(folder / f"{start:08d}-{positions.stop:08d}.npz")
      if processes.is_first():
        files.write_npz(chunks[-1], arrays)
  processes.wait_for_all(f"extracted {folder}")
  parts = [files.read_npz(path, DELETE) for path in chunks]
  # One name after the other, so that no more than one of the arrays is in memory twice.
  return outputs_lib.from_arrays({name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])})
