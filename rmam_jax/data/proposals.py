"""Object proposals, which the paper compares with its spatial transformer (Sec. 5.3.1, Table 3).

  jittered           the data set's own boxes, moved and resized, a stated share of them missing, among boxes of nothing:
                     a stand-in where images are too small for a real method
  selective_search   Uijlings et al. 2013, by OpenCV's contrib package (the extra `proposals`), its order partly random
  edge_boxes         Zitnick and Dollár 2014, the paper's rival, ranked by objectness, by the same package; it needs the
                     file of its edge detector, a structured forest (`data.edge_model`)

  objects            the data set's own boxes as they are: what a region proposal network learns from (`rmam_jax.ops.rpn`)

The first three give boxes of which none overlaps an earlier one by an IoU of more than `OVERLAP`. Boxes are (top, left,
bottom, right) as shares of the image.
"""

import concurrent.futures
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from rmam_jax.data.images import decode_image
from rmam_jax.data.record import Record
from rmam_jax.ops.boxes import WHOLE_IMAGE, box_iou, clip_boxes, suppress
from rmam_jax.runtime import files, progress
from rmam_jax.runtime.errors import UserError, check_name, os_errors

Propose = Callable[[Record], np.ndarray]  # from a record to its proposals, float32 [K, 4]

# For people: what each kind of `data.proposals` is.
KINDS = {
  "jittered": "the data set's own boxes, jittered",
  "selective_search": "selective search",
  "edge_boxes": "EdgeBoxes",
  "objects": "the data set's own boxes",
}
OVERLAP = 0.7  # IoU
RECALL = 0.8  # the share of the objects that `jittered` proposes, each with an IoU of at least 0.5
_TRIES = 64
_KEPT = 1_000  # images that are searched, after which what is found is saved
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


def _opencv() -> Any:
  try:
    import cv2
  except ModuleNotFoundError as error:
    raise UserError("object proposals need OpenCV's contrib package: pip install 'rmam_jax[proposals]'") from error
  return cv2


def selective_search(image: np.ndarray, count: int) -> np.ndarray:
  """The first boxes, float32 [count, 4], that the fast mode finds in uint8 [height, width, 3]; its order is partly random."""
  cv2 = _opencv()
  scale = _SIDE / max(image.shape[:2])
  small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
  height, width = small.shape[:2]
  search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
  search.setBaseImage(np.ascontiguousarray(small[:, :, ::-1]))
  search.switchToSelectiveSearchFast()
  return _first(_as_shares(search.process(), height, width), count)


def _as_shares(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
  """OpenCV's boxes, int [n, 4] of (left, top, width, height) in pixels -> float32 [n, 4]."""
  left, top, wide, tall = boxes.astype(np.float32).T
  return np.stack([top / height, left / width, (top + tall) / height, (left + wide) / width], axis=1)


def edge_detector(model: str) -> Any:
  """OpenCV's edge detector from the file of its structured forest; UserError if there is none or it is another file."""
  cv2, remedy = _opencv(), "it is the model.yml.gz that OpenCV's ximgproc samples use (docs/reproduce.md)"
  if not model:
    raise UserError(f"data.proposals=edge_boxes needs a structured forest's file in data.edge_model: {remedy}")
  model = os.path.expanduser(model)
  if not pathlib.Path(model).is_file():
    raise UserError(f"data.edge_model {model} is no file: {remedy}")
  # OpenCV ends the process where this is another file.
  try:
    stored = cv2.FileStorage(model, cv2.FILE_STORAGE_READ)
    whole = stored.isOpened() and stored.getNode("edgeBins").size() > 0
    trees = stored.getNode("options").getNode("numberOfTrees").real() if whole else 0
  except (cv2.error, SystemError) as error:
    raise UserError(f"data.edge_model {model} cannot be read ({error}): {remedy}") from error
  if not trees >= 1:
    raise UserError(f"data.edge_model {model} holds no structured forest: {remedy}")
  return cv2.ximgproc.createStructuredEdgeDetection(model)


def edge_boxes(image: np.ndarray, count: int, detector: Any) -> np.ndarray:
  """The surest boxes, float32 [count, 4], that EdgeBoxes finds in uint8 [height, width, 3]; the whole image for want of more."""
  edges = detector.detectEdges(np.ascontiguousarray(image, np.float32) / 255)
  directions = detector.computeOrientation(edges)
  return boxes_from_edges(detector.edgesNms(edges, directions), directions, count)


def boxes_from_edges(edges: np.ndarray, directions: np.ndarray, count: int) -> np.ndarray:
  """`edge_boxes` from thin edges, float32 [height, width] in [0, 1], and their directions in radians."""
  found, objectness = _opencv().ximgproc.createEdgeBoxes().getBoundingBoxes(edges, directions)
  boxes, sure = np.array([WHOLE_IMAGE], np.float32), np.array([-np.inf], np.float32)
  if len(found):
    boxes = np.concatenate([boxes, _as_shares(found, *edges.shape)])
    sure = np.concatenate([sure, objectness.ravel()])
  return suppress(boxes, sure, count=count, overlap=OVERLAP)[0]


def made_by(kind: str, model: str) -> str:
  """What tells the proposals of a kind from those of another file; "" for kinds that need none."""
  path = files.named(model)
  if kind != "edge_boxes" or not path.is_file():
    return ""
  return f"edge_boxes {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _search_all(
  search: Callable[[np.ndarray, int], np.ndarray], kind: str, by: str, source: Any, count: int, corrupt: str
) -> dict[str, np.ndarray]:
  """A search of every record, by id; found once and kept in a file, from which a stopped search goes on.

  The kind is one of `KINDS`, `by` is from `made_by`. An image that cannot be read raises a UserError, or with `corrupt`
  "skip" has boxes of zeros, and is tried again by the next search.
  """
  found: dict[str, np.ndarray] = {}
  path, made_by = source.proposals_path, f"{source.made_by} {count} {by}".rstrip()
  if by:
    path = path.with_stem(f"{path.stem}-{kind}")
  if path.exists():
    stored = files.read_npz(path, "delete it and run the same command again")
    if str(stored["made_by"]) == made_by:
      found = dict(zip(stored["ids"].tolist(), stored["boxes"], strict=True))

  ids = source.index.ids.tolist()

  def propose(position: int) -> tuple[str, np.ndarray]:
    try:
      with os_errors(f"{source.name}: cannot read {ids[position]}"):
        return ids[position], search(decode_image(source[position].image, ids[position]), count)
    except UserError:
      if corrupt == "error":
        raise
      return ids[position], np.zeros((count, 4), np.float32)

  left = [position for position, name in enumerate(ids) if name not in found or not found[name].any()]
  title = f"{KINDS[kind]}, kept in {path}"
  with (
    concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    progress.bar(None, title, len(ids), initial=len(ids) - len(left), leave=False, disable=not left) as bar,
  ):
    for start in range(0, len(left), _KEPT):
      for name, boxes in pool.map(propose, left[start : start + _KEPT]):
        found[name] = boxes
        bar.update()
      arrays = {"made_by": np.array(made_by), "ids": np.array(list(found)), "boxes": np.stack(list(found.values()))}
      files.write_npz(path, arrays, compressed=True)
  return found


def make(kind: str, count: int, source: Any, edge_model: str = "", corrupt: str = "error") -> Propose | None:
  """The function from a record to its proposals, float32 [count, 4]; None for the kind "".

  The source has all stored records, by position. What is searched for is kept beside the source's `proposals_path`.
  UserError for an unknown kind, as `edge_detector`, and for an image that cannot be read unless `corrupt` is "skip".
  """
  if not kind:
    return None
  check_name("data.proposals", kind, KINDS)
  if kind in ("jittered", "objects"):
    return functools.partial(jittered if kind == "jittered" else objects, count=count)
  search = selective_search
  if kind == "edge_boxes":
    search = functools.partial(edge_boxes, detector=edge_detector(edge_model))
  found = _search_all(search, kind, made_by(kind, edge_model), source, count, corrupt)
  return lambda record: found[record.id]
