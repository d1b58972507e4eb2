"""Training crops from photographs: ours, torch's DataLoader with Pillow, and tf.data, in turn in one run.

    python -m benchmarks.input_pipeline                500 x 375 JPEGs -> 512 x 512 -> crops of 448, batches of 16

Images a second of processor time, all threads of the process together, and of the clock. Libraries that are not there
are left out. The JPEGs are smooth noise, made here; all sides resize bilinearly with antialiasing and mirror half.
"""

import importlib.util
import io
import os
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from benchmarks import machine
from rmam_jax.data import batches
from rmam_jax.data.record import Record

SIZE, CROP, BATCH = 512, 448, 16


def photographs(count: int) -> list[bytes]:
  """JPEGs of 500 x 375 pixels with about the detail of photographs."""
  rng = np.random.default_rng(0)
  encoded = []
  for _ in range(count):
    coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    fine = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (375, 500, 3))
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


def ours(encoded: list[bytes]) -> Iterator[np.ndarray]:
  options = {"batch_size": BATCH, "image_size": SIZE, "crop_size": CROP, "flip": True, "seed": 0}
  return (batch["image"] for batch in batches.train_batches(Photographs(encoded), **options))


def dataloader(encoded: list[bytes]) -> Iterator[np.ndarray]:
  import torch

  rng = np.random.default_rng(0)

  class Crops(torch.utils.data.Dataset):
    def __len__(self):
      return len(encoded)

    def __getitem__(self, index):
      with Image.open(io.BytesIO(encoded[index])) as image:
        image = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
      top, left = rng.integers(0, SIZE - CROP + 1, 2)
      image = image.crop((left, top, left + CROP, top + CROP))
      if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
      return torch.from_numpy(np.array(image))

  while True:
    for batch in torch.utils.data.DataLoader(Crops(), BATCH, shuffle=True):
      yield batch.numpy()


def tf_data(encoded: list[bytes]) -> Iterator[np.ndarray]:
  import tensorflow as tf

  def crop(content):
    image = tf.image.resize(tf.io.decode_jpeg(content, channels=3), (SIZE, SIZE), antialias=True)
    image = tf.image.random_flip_left_right(tf.image.random_crop(image, (CROP, CROP, 3)))
    return tf.cast(tf.round(image), tf.uint8)

  stream = tf.data.Dataset.from_tensor_slices(encoded).shuffle(len(encoded)).repeat()
  yield from stream.map(crop, num_parallel_calls=2).batch(BATCH).prefetch(2).as_numpy_iterator()


SIDES = {  # with the package that each needs
  "ours, 2 threads": (ours, "grain"),
  "torch DataLoader, in the process": (dataloader, "torch"),
  "tf.data, 2 parallel calls": (tf_data, "tensorflow"),
}


def main() -> None:
  parser = machine.make_parser(__doc__)
  parser.add_argument("--images", type=int, default=64, help="photographs, read again and again")
  parser.add_argument("--batches", type=int, default=12, help="batches in a round")
  parser.add_argument("--rounds", type=int, default=5)
  arguments = parser.parse_args()
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

  encoded = photographs(arguments.images)
  sides = {side: each for side, each in SIDES.items() if importlib.util.find_spec(each[1])}
  streams = {side: make(encoded) for side, (make, _) in sides.items()}
  for stream in streams.values():
    next(stream)
  measured = {side: [] for side in streams}
  for _ in range(arguments.rounds):  # in turn, so that a busy moment of the machine meets all
    for side, stream in streams.items():
      cpu, clock = time.process_time(), time.perf_counter()
      for _ in range(arguments.batches):
        next(stream)
      measured[side].append((time.process_time() - cpu, time.perf_counter() - clock))
  images = arguments.batches * BATCH
  print(machine.describe("pillow", *(package for _, package in sides.values())))
  print("\n" + machine.header("", "images/s of one core", "images/s", "ratio per core"))
  median = {side: np.median(rounds, axis=0) for side, rounds in measured.items()}
  for side, (cpu, clock) in median.items():
    ratio = next(iter(median.values()))[0] / cpu
    print(machine.row(side, f"{images / cpu:.0f}", f"{images / clock:.0f}", f"{ratio:.2f}"))


if __name__ == "__main__":
  main()
