"""Reads batches with two worker processes until something stops it; run by `test_reliability.py`.

python -m tests.worker_faults DATA_ROOT [RECORD]      RECORD's image is damaged
"""

from absl import app

from configs import common
from rmam_jax import commands
from rmam_jax.data import batches, splits


class Damaged:
  """A split with one damaged image."""

  def __init__(self, split, index):
    self._split, self._index = split, index
    self.name = split.name

  def __len__(self):
    return len(self._split)

  def __getitem__(self, index):
    record = self._split[index]
    return record._replace(image=b"no image") if index == self._index else record


def main(argv):
  config = common.get_config()
  config.data.name, config.data.root = "digits/tiny", argv[1]
  split = splits.open_split(config.data, "train")
  if argv[2:]:
    split = Damaged(split, int(argv[2]))
  with commands.reported_errors():
    stream = batches.train_batches(
      split, batch_size=16, image_size=72, crop_size=64, flip=True, seed=3, threads=1, workers=2
    )
    for number, batch in enumerate(stream):
      print(number, *batch["ids"], flush=True)


if __name__ == "__main__":
  app.run(main)
