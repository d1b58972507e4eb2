"""The first batches with 0, 1 and 4 worker processes, which must be the same; run by `test_data.py`."""

import itertools
import tempfile

import numpy as np
from absl import app

from configs import common
from rmam_jax.data import batches, splits
from rmam_jax.data.augmentation import Augmentation


def main(argv):
  del argv
  changed = Augmentation(crop_scale=(0.3, 0.9), jitter=0.4, cutout=0.3)
  with tempfile.TemporaryDirectory() as root:
    config = common.get_config()
    config.data.name, config.data.root = "digits/tiny", root
    split = splits.open_split(config.data, "train")

    def first(workers):
      stream = batches.train_batches(
        split,
        batch_size=16,
        image_size=72,
        crop_size=64,
        flip=True,
        seed=3,
        start_step=2,
        workers=workers,
        augmentation=changed,
      )
      return list(itertools.islice(stream, 5))

    wanted = first(0)
    for workers in (1, 4):
      for one, other in zip(first(workers), wanted, strict=True):
        for name, array in other.items():
          np.testing.assert_array_equal(one[name], array)


if __name__ == "__main__":
  app.run(main)
