"""Batches from records: decoding, resizing, cropping, flipping; in an order that depends on (seed, step) alone.

A batch is a dict of numpy arrays, B examples, L classes:
  image   uint8 [B, crop_size, crop_size, 3], red green blue; or in its place
  feature_map  float16 [B, H, W, C], where the maps of a backbone that is not trained are stored
  labels  float32 [B, L] of 0 and 1
  ignore  bool [B, L]
  mask    float32 [B], 1 for examples and 0 for padding
  proposals  float32 [B, K, 4] of (top, left, bottom, right) as shares of the crop, where the records have them

Training batches also have the records' `ids`, str [B], and say in `skipped`, str [n], why images that cannot be read were
left out.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from rmam_jax.data import augmentation as augmentation_lib
from rmam_jax.data.augmentation import Augmentation, Change
from rmam_jax.data.images import decode
from rmam_jax.data.record import Record
from rmam_jax.data.splits import Split
from rmam_jax.runtime.errors import UserError, check_name

Batch = dict[str, np.ndarray]

MOST_SKIPPED = 16  # in one batch; more, and it is not single images that are broken


class StoredMaps(NamedTuple):
  """Feature maps in place of a split's images."""

  maps: np.ndarray  # float16 [N, 2, H, W, C], on disk: of each image, or its centre view, and of its mirror image
  unreadable: dict[int, str]  # why an image could not be read, with `data.corrupt` "skip"
  side: int | None = None  # of the windows that training sees, in cells; None: all of a map

  def read(self, index: int) -> np.ndarray:
    """Both maps of an image, float16 [2, H, W, C]; raises a UserError for one that could not be read."""
    if index in self.unreadable:
      raise UserError(self.unreadable[index])
    return self.maps[index]

  def window(self, index: int, margin: int, rng: np.random.Generator, mirrored: bool) -> tuple[np.ndarray, list[int]]:
    """A random window of an image's map, and its top and left in the image, of which it leaves `margin` pixels a side."""
    whole = self.read(index)[int(mirrored)]
    side = self.side or len(whole)
    rest = len(whole) - side
    top, left = rng.integers(0, rest + 1, 2).tolist()
    start = rest - left if mirrored else left
    corner = [cell * margin // rest if rest else margin // 2 for cell in (top, left)]
    return whole[top : top + side, start : start + side], corner


def read_image(
  split: Split, index: int, needed: tuple[float, float] = (math.inf, math.inf)
) -> tuple[np.ndarray, Record]:
  """A record and its image, uint8 [height, width, 3]; UserError names split, index and file of one that cannot be read.

  Of large photographs no more pixels are decoded than `images.decode` takes for a resizing to `needed`.
  """
  record = split[index]
  return decode(record.image, f"{split.name} [{index}], {record.path or record.id}", needed).pixels, record


def view(image: np.ndarray, image_size: int, crop_size: int, top: int, left: int, flip: bool) -> np.ndarray:
  """Resizes to image_size x image_size (the aspect is not kept), cuts a window out and mirrors it if asked."""
  if image.shape[:2] != (image_size, image_size):
    image = np.asarray(Image.fromarray(image).resize((image_size, image_size), Image.Resampling.BILINEAR))
  window = image[top : top + crop_size, left : left + crop_size]
  return window[:, ::-1] if flip else window


def centre_offset(image_size: int, crop_size: int) -> int:
  """Where the centre view begins, in pixels from the top and from the left."""
  return (image_size - crop_size) // 2


def view_boxes(boxes: np.ndarray, image_size: int, crop_size: int, top: int, left: int, flip: bool) -> np.ndarray:
  """Boxes [..., 4], (top, left, bottom, right) as shares of the image, as shares of what `view` shows of it."""
  shown = (boxes * image_size - np.array([top, left, top, left])) / crop_size
  return np.stack([shown[..., 0], 1 - shown[..., 3], shown[..., 2], 1 - shown[..., 1]], -1) if flip else shown


def _changed(
  image: np.ndarray, boxes: np.ndarray, change: Change, shown: tuple[int, int, int, int, bool]
) -> tuple[np.ndarray, np.ndarray]:
  """An image and its boxes as a training batch has them; `shown` are the arguments of `view` after the image."""
  if change.window is None:
    image, boxes = view(image, *shown), view_boxes(boxes, *shown)
  else:
    *_, flip = shown
    image = augmentation_lib.resized_window(image, change.window, shown[1])
    image = image[:, ::-1] if flip else image
    boxes = augmentation_lib.window_boxes(boxes, change.window, flip)
  if change.colours:
    image = augmentation_lib.recoloured(np.ascontiguousarray(image), change.colours)
  return image if change.hidden is None else augmentation_lib.with_hidden(image, change.hidden), boxes


def arrays_of(batch: Mapping[str, np.ndarray]) -> Batch:
  """What of a batch goes to the devices: all but names."""
  return {name: array for name, array in batch.items() if name not in ("ids", "skipped")}


def check_batch(batch: Mapping[str, np.ndarray]) -> None:
  """Raises a UserError if images are not finite or not [B, height, width, 3], labels not 0 or 1, or shapes differ."""
  image, labels = np.asarray(batch["image"] if "image" in batch else batch["feature_map"]), np.asarray(batch["labels"])
  if image.ndim != 4 or ("image" in batch and image.shape[-1] != 3):
    raise UserError(f"image must have shape [B, height, width, 3], got {list(image.shape)}")
  if labels.ndim != 2 or len(labels) != len(image):
    raise UserError(f"labels must have shape [{len(image)}, L], got {list(labels.shape)}")
  if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
    bad = np.flatnonzero(~np.isfinite(image).all(axis=(1, 2, 3)))
    raise UserError(f"image holds values that are not finite, first in example {bad[0]} of the batch")
  if not np.isin(labels, (0, 1)).all():
    i, c = np.argwhere(~np.isin(labels, (0, 1)))[0]
    raise UserError(f"labels must be 0 or 1, got {labels[i, c]} for example {i}, class {c} of the batch")


def _share(batch_size: int, process_index: int, process_count: int, corrupt: str) -> range:
  """The places in a batch that are one process's; UserError for options out of their range."""
  if batch_size % process_count:
    raise UserError(f"batch_size {batch_size} is no multiple of the {process_count} processes")
  check_name("data.corrupt", corrupt, ("error", "skip"))
  share = batch_size // process_count
  return range(process_index * share, (process_index + 1) * share)


def train_batches(
  split: Split,
  *,
  batch_size: int,
  image_size: int,
  crop_size: int,
  flip: bool,
  seed: int,
  start_step: int = 0,
  threads: int = 2,
  workers: int = 0,
  corrupt: str = "error",
  process_index: int = 0,
  process_count: int = 1,
  maps: StoredMaps | None = None,
  augmentation: Augmentation = augmentation_lib.NONE,
) -> Iterator[Batch]:
  """Endless shuffled batches of random crops of a split's images, from `start_step` on.

  The batch of a step depends on (seed, step) alone, so that a run can go on anywhere in the stream.

  Args:
    batch_size: of all processes together; this one, `process_index`, yields its equal share of each batch.
    image_size, crop_size: N and the side of the crop, in pixels.
    flip: mirror half of the examples.
    threads: that read ahead; of each worker if there are any.
    workers: processes that do the reading; 0 does it in this one, as where there are `maps`. The batches are the same
      whatever their number.
    corrupt: "error", or "skip": an image that cannot be read is named in its batch's `skipped` and replaced by another
      that depends on (seed, position) alone.
    maps: read in place of the images; their windows in place of crops.
    augmentation: what else is done to the images; not with `maps`.

  Raises:
    UserError: an option is out of its range; or, later, an image cannot be read: names split, index and file.
  """
  import grain

  augmentation.check()
  mine = _share(batch_size, process_index, process_count, corrupt)

  def load(position: int, index: int, skipped: list[str]) -> tuple[np.ndarray, Record, np.ndarray]:
    rng = np.random.default_rng([seed, position])
    top, left = rng.integers(0, image_size - crop_size + 1, 2)
    mirrored = flip and rng.random() < 0.5
    shown, change = (image_size, crop_size, top, left, mirrored), augmentation.draw(rng)
    while True:
      try:
        if maps is not None:
          record = split.without_image(index)
          window, corner = maps.window(index, image_size - crop_size, rng, mirrored)
          return window, record, view_boxes(record.proposals, image_size, crop_size, *corner, mirrored)
        image, record = read_image(split, index, change.needed(image_size, crop_size))
        image, boxes = _changed(image, record.proposals, change, shown)
        return image, record, boxes
      except ValueError as error:
        skipped.append(str(error))
        if corrupt == "error" or len(skipped) > MOST_SKIPPED:
          raise
      index = int(rng.integers(len(split)))

  def collate(examples: list[tuple[int, int]]) -> Batch:
    skipped: list[str] = []
    images, records, proposals = zip(*(load(*examples[place], skipped) for place in mine), strict=True)
    batch = {
      "image" if maps is None else "feature_map": np.stack(images),
      "labels": np.stack([record.labels for record in records]),
      "ignore": np.stack([record.ignore for record in records]),
      "mask": np.ones(len(images), np.float32),
      "ids": np.array([record.id for record in records]),
    }
    if len(proposals[0]):
      batch["proposals"] = np.stack(proposals).astype(np.float32)
    return batch | ({"skipped": np.array(skipped)} if skipped else {})

  indices = grain.MapDataset.range(len(split)).seed(seed).shuffle().repeat()
  examples = indices.map_with_index(lambda position, index: (position, int(index)))
  batches = examples.batch(batch_size, batch_fn=lambda batch: batch).map(collate)[start_step:]
  stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
  if workers and maps is None:  # of which each would get a copy
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    stream = stream.mp_prefetch(options, worker_init_fn=_follow_the_trainer)
  try:
    yield from stream
  except RuntimeError as error:  # grain's, of a worker that was killed; what a worker raises comes as it is
    raise UserError(
      f"reading {split.name} failed: {error} Where a worker was killed, memory may have run out: lower data.workers and"
      " run the same command again."
    ) from error


def _follow_the_trainer(index: int, count: int) -> None:
  """In a worker: ends it when the trainer has ended, however that was, and leaves Ctrl-C to the trainer."""
  del index, count
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def follow() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def evaluation_batches(
  split: Split,
  positions: range,
  *,
  batch_size: int,
  image_size: int,
  crop_size: int,
  corrupt: str = "error",
  process_index: int = 0,
  process_count: int = 1,
  maps: StoredMaps | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray | None, list[Record], list[str]]]:
  """The centre view of the records at these positions of a split, in order, with the records.

  The options are those of `train_batches`; but with "skip", an image that cannot be read is black, and its record is
  `Split.blank`, which no measure counts.

  Yields:
    Images uint8 [b, crop_size, crop_size, 3], b = batch_size / process_count, or where there are `maps` both maps of
    each image, float16 [b, 2, H, W, C]; the last batch padded with zeros; their proposals [b, K, 4] as in training
    batches, or None; the records of the whole batch; and why each cannot be read, empty for those that can.

  Raises:
    UserError: see `read_image`; with "skip", where more than `MOST_SKIPPED` of a batch cannot be read.
  """
  mine = _share(batch_size, process_index, process_count, corrupt)
  offset = centre_offset(image_size, crop_size)
  shown, whole = (image_size, crop_size, offset, offset, False), (image_size, image_size)
  shape = (crop_size, crop_size, 3) if maps is None else maps.maps.shape[1:]
  for start in range(0, len(positions), batch_size):
    images = np.zeros((len(mine), *shape), np.uint8 if maps is None else maps.maps.dtype)
    records, reasons = [], []
    for place, index in enumerate(positions[start : start + batch_size]):
      image, reason = None, ""
      needed = place in mine or corrupt == "skip"  # all processes have to know which images cannot be read
      try:
        if maps is not None:
          image, record = maps.read(index), split[index]
        else:
          image, record = read_image(split, index, whole) if needed else (None, split[index])
      except ValueError as error:
        if corrupt == "error" or sum(map(bool, reasons)) >= MOST_SKIPPED:
          raise
        reason, record = str(error), split.blank(index)
      if place in mine and image is not None:
        images[place - mine.start] = image if maps is not None else view(image, *shown)
      records.append(record)
      reasons.append(reason)
    boxes = np.zeros((len(mine), *records[0].proposals.shape))
    for place, record in enumerate(records[mine.start : mine.stop]):
      boxes[place] = view_boxes(record.proposals, *shown)
    yield images, boxes if boxes.size else None, records, reasons
