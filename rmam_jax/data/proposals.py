"""Object proposals, which the paper compares with its spatial transformer (Sec. 5.3.1, Table 3).

  jittered           the data set's own boxes, moved and resized, a stated share of them missing, among boxes of nothing:
                     a stand-in where images are too small for a real method
  selective_search   Uijlings et al. 2013, by OpenCV's contrib package (the extra `proposals`)

  objects            the data set's own boxes as they are: what a region proposal network learns from (`rmam_jax.ops.rpn`)

The first two give boxes of which none overlaps an earlier one by an IoU of more than `OVERLAP`. Boxes are (top, left,
bottom, right) as shares of the image.
"""

import concurrent.futures
import functools
import hashlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tqdm

from rmam_jax.data.images import decode_image
from rmam_jax.data.record import Record
from rmam_jax.ops.boxes import box_iou, clip_boxes, suppress
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError

Propose = Callable[[Record], np.ndarray]  # from a record to its proposals, float32 [K, 4]

OVERLAP = 0.7  # IoU
RECALL = 0.8  # the share of the objects that `jittered` proposes, each with an IoU of at least 0.5
_TRIES = 64
_KEPT = 1_000  # images of selective search, after which what is found is saved
_SIDE = 256  # pixels of the longer side that selective search sees


def _first(proposed: np.ndarray, count: int) -> np.ndarray:
  """The first `count` of the boxes [n, 4] that overlap no kept one by more than `OVERLAP`: float32 [count, 4]."""
  return suppress(proposed, -np.arange(len(proposed), dtype=float), count=count, overlap=OVERLAP)[0].astype(np.float32)


def jittered(record: Record, count: int) -> np.ndarray:
  """Boxes near `RECALL` of a record's, then boxes of nothing: float32 [count, 4], a function of its boxes and id alone."""
  rng = np.random.default_rng(np.frombuffer(hashlib.sha256(record.id.encode()).digest()[:8], np.uint64))
  found = []
  for box in record.boxes[rng.permutation(len(record.boxes))]:
    if rng.random() < RECALL:
      sides = np.tile(box[2:] - box[:2], 2)
      near = box + rng.normal(0, 0.15, (_TRIES, 4)) * sides
      fits = box_iou(near, box[None])[:, 0] >= 0.5
      found.append(near[fits.argmax()] if fits.any() else box)
  corners = np.sort(rng.random((_TRIES, 2, 2)), axis=1).reshape(_TRIES, 4)
  return _first(clip_boxes(np.concatenate([np.array(found).reshape(-1, 4), corners])), count)


def objects(record: Record, count: int) -> np.ndarray:
  """The first `count` of a record's boxes and, where there are fewer, boxes of no area: float32 [count, 4]."""
  return np.concatenate([record.boxes, np.zeros((count, 4), np.float32)])[:count]


def selective_search(image: np.ndarray, count: int) -> np.ndarray:
  """The first boxes, float32 [count, 4], that the fast mode finds in uint8 [height, width, 3]; its order is partly random."""
  try:
    import cv2
  except ModuleNotFoundError as error:
    raise UserError("selective search needs OpenCV's contrib package: pip install 'rmam_jax[proposals]'") from error

  scale = _SIDE / max(image.shape[:2])
  small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
  height, width = small.shape[:2]
  search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
  search.setBaseImage(np.ascontiguousarray(small[:, :, ::-1]))
  search.switchToSelectiveSearchFast()
  left, top, wide, tall = search.process().astype(np.float32).T
  boxes = np.stack([top / height, left / width, (top + tall) / height, (left + wide) / width], axis=1)
  return _first(boxes, count)


def _search_all(source: Any, count: int) -> dict[str, np.ndarray]:
  """Selective search of every record, by id; found once and kept in a file, from which a stopped search goes on."""
  found: dict[str, np.ndarray] = {}
  path, made_by = source.proposals_path, f"{source.made_by} {count}"
  if path.exists():
    stored = files.read_npz(path, "delete it and run the same command again")
    if str(stored["made_by"]) == made_by:
      found = dict(zip(stored["ids"].tolist(), stored["boxes"], strict=True))

  def propose(position: int) -> tuple[str, np.ndarray]:
    record = source[position]
    return record.id, selective_search(decode_image(record.image, record.id), count)

  total, done = len(source), len(found)
  title = f"selective search, kept in {path}"
  with (
    concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    tqdm.tqdm(total=total, initial=done, desc=title, leave=False, disable=done >= total) as bar,
  ):
    for start in range(done, total, _KEPT):
      for name, boxes in pool.map(propose, range(start, min(start + _KEPT, total))):
        found[name] = boxes
        bar.update()
      arrays = {"made_by": np.array(made_by), "ids": np.array(list(found)), "boxes": np.stack(list(found.values()))}
      files.write_npz(path, arrays, compressed=True)
  return found


def make(kind: str, count: int, source: Any) -> Propose | None:
  """The function from a record to its proposals, float32 [count, 4]; None for the kind "". UserError for an unknown kind.

  The source has all stored records, by position. Selective search keeps its boxes in the source's `proposals_path`.
  """
  if not kind:
    return None
  if kind == "selective_search":
    found = _search_all(source, count)
    return lambda record: found[record.id]
  if kind in ("jittered", "objects"):
    return functools.partial(jittered if kind == "jittered" else objects, count=count)
  raise UserError(f"data.proposals must be jittered, selective_search, objects or empty, got {kind!r}")
