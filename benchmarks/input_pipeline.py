"""Training crops from photographs: ours, torch's DataLoader with Pillow, and tf.data, in turn in one run.

    python -m benchmarks.input_pipeline                        # 500 x 375 JPEGs -> 512 x 512 -> crops of 448
    python -m benchmarks.input_pipeline --photograph=4000x3000 --images=8 --batch=4 --rounds=3

Images a second of processor time, all threads of the process together, and of the clock. Libraries that are not there
are left out. The JPEGs are smooth noise, made here; all sides resize bilinearly with antialiasing and mirror half. Of a
large photograph ours decodes a part (`images.decode`); DataLoader does so where its user asks Pillow for it, which is a
side of its own. Each turn ends when the side has read as far ahead as it does, so that none works in another's turn.
"""

import importlib.util
import io
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import machine
from rmam_jax.data import batches
from rmam_jax.data.images import GAP
from rmam_jax.data.record import Record

IDLE = 0.05  # seconds without work, after which a side has read as far ahead as it does


def photographs(count: int, width: int, height: int) -> list[bytes]:
  """JPEGs with about the detail of photographs."""
  rng = np.random.default_rng(0)
  encoded = []
  for _ in range(count):
    coarse = rng.integers(0, 256, (48, 64, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    fine = np.asarray(smooth, np.int16) + rng.integers(-12, 13, (height, width, 3), np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(fine, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    encoded.append(file.getvalue())
  return encoded


class Photographs(list):
  """As much of a split as reading needs."""

  name = "photographs"

  def __getitem__(self, index: int) -> Record:
    none = np.zeros(20, np.float32)
    return Record(str(index), super().__getitem__(index), none, none > 0, np.zeros((0, 4)), np.zeros(0))


def ours(encoded: list[bytes], size: int, crop: int, batch: int) -> Iterator[np.ndarray]:
  options = {"batch_size": batch, "image_size": size, "crop_size": crop, "flip": True, "seed": 0}
  return (found["image"] for found in batches.train_batches(Photographs(encoded), **options))


def dataloader(encoded: list[bytes], size: int, crop: int, batch: int, *, draft: bool = False) -> Iterator[np.ndarray]:
  import torch

  torch.set_num_threads(1)  # as in DataLoader's workers: others would spin between two stackings
  rng = np.random.default_rng(0)

  class Crops(torch.utils.data.Dataset):
    def __len__(self):
      return len(encoded)

    def __getitem__(self, index):
      with Image.open(io.BytesIO(encoded[index])) as image:
        if draft:
          image.draft("RGB", (GAP * size, GAP * size))
        image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
      top, left = rng.integers(0, size - crop + 1, 2)
      image = image.crop((left, top, left + crop, top + crop))
      if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
      return torch.from_numpy(np.array(image))

  while True:
    for found in torch.utils.data.DataLoader(Crops(), batch, shuffle=True):
      yield found.numpy()


def drafting(*arguments: Any) -> Iterator[np.ndarray]:
  return dataloader(*arguments, draft=True)


def tf_data(encoded: list[bytes], size: int, crop: int, batch: int) -> Iterator[np.ndarray]:
  import tensorflow as tf

  def cut(content):
    image = tf.image.resize(tf.io.decode_jpeg(content, channels=3), (size, size), antialias=True)
    image = tf.image.random_flip_left_right(tf.image.random_crop(image, (crop, crop, 3)))
    return tf.cast(tf.round(image), tf.uint8)

  stream = tf.data.Dataset.from_tensor_slices(encoded).shuffle(len(encoded)).repeat()
  yield from stream.map(cut, num_parallel_calls=2).batch(batch).prefetch(2).as_numpy_iterator()


SIDES = {  # with the package that each needs
  "ours, 2 threads": (ours, "grain"),
  "torch DataLoader, in the process": (dataloader, "torch"),
  "the same, by Pillow's draft mode": (drafting, "torch"),
  "tf.data, 2 parallel calls": (tf_data, "tensorflow"),
}


def wait_until_idle() -> None:
  while True:
    before = time.process_time()
    time.sleep(IDLE)
    if time.process_time() - before < IDLE / 10:
      return


def main() -> None:
  parser = machine.make_parser(__doc__)
  parser.add_argument("--photograph", default="500x375", help="width x height in pixels")
  parser.add_argument("--size", type=int, default=512, help="to which images are resized; crops have 7/8 of it")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--images", type=int, default=64, help="photographs, read again and again")
  parser.add_argument("--batches", type=int, default=12, help="batches in a round")
  parser.add_argument("--rounds", type=int, default=5)
  arguments = parser.parse_args()
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

  encoded = photographs(arguments.images, *map(int, arguments.photograph.split("x")))
  sides = {side: each for side, each in SIDES.items() if importlib.util.find_spec(each[1])}
  sizes = arguments.size, arguments.size * 7 // 8, arguments.batch
  streams = {side: make(encoded, *sizes) for side, (make, _) in sides.items()}
  for stream in streams.values():
    next(stream)
    wait_until_idle()
  measured = {side: [] for side in streams}
  for _ in range(arguments.rounds):  # in turn, so that a busy moment of the machine meets all
    for side, stream in streams.items():
      cpu, clock = time.process_time(), time.perf_counter()
      for _ in range(arguments.batches):
        next(stream)
      wait_until_idle()
      measured[side].append((time.process_time() - cpu, time.perf_counter() - clock - IDLE))
  images = arguments.batches * arguments.batch
  print(machine.describe("pillow", *dict.fromkeys(package for _, package in sides.values())))
  print(f"JPEGs of {arguments.photograph}, {np.mean([*map(len, encoded)]) / 1e3:,.0f} kB; resized to {arguments.size}")
  print("\n" + machine.header("", "images/s of one core", "images/s", "ours to it, per core"))
  median = {side: np.median(rounds, axis=0) for side, rounds in measured.items()}
  for side, (cpu, clock) in median.items():
    ratio = cpu / next(iter(median.values()))[0]
    print(machine.row(side, f"{images / cpu:.1f}", f"{images / clock:.1f}", f"{ratio:.2f}"))


if __name__ == "__main__":
  main()
