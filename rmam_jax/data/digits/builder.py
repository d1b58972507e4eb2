"""TFDS builder of the digit scenes: made locally, stored in array_record, features named as in `voc`."""

import contextlib
import fcntl
import functools
import io
import itertools
import multiprocessing
import pathlib
import shutil
from concurrent import futures
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image

from rmam_jax.data.digits import letters, scenes

_CHUNK = 100  # scenes drawn by one task
_SERIAL_CHUNKS = 20  # up to so many, starting workers costs more than it saves


def _examples(setting: scenes.Setting, split: str, indices: range) -> list[dict]:
  examples = []
  for index in indices:
    image, classes, boxes = scenes.draw_scene(setting, split, index)
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG", compress_level=1)
    shares = [tfds.features.BBox(*map(float, box)) for box in boxes / setting.size]
    examples.append(
      {
        "image": encoded.getvalue(),
        "image/filename": f"{split}_{index:06d}.png",
        "labels": np.unique(classes),
        "objects": [{"label": label, "bbox": box} for label, box in zip(classes, shares, strict=True)],
      }
    )
  return examples


class Digits(tfds.core.GeneratorBasedBuilder):
  """Multi-label scenes of handwritten digits on photographs, with boxes."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name=name, description=f"Scenes of {setting.size} x {setting.size} pixels.")
    for name, setting in scenes.SETTINGS.items()
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    setting, features = scenes.SETTINGS[self.builder_config.name], tfds.features
    names = setting.classes
    return self.dataset_info_from_configs(
      description=(letters if setting.source else scenes).__doc__,  # part of a prepared data set's digest
      license="Photograph in the public domain (US Navy); fonts under the licences of DejaVu and STIX"
      if setting.source
      else "Photographs CC BY 2.0 (Ian Griggs, Neil Kandalgaonkar); digits CC BY 4.0 (UCI optdigits)",
      features=features.FeaturesDict(
        {
          "image": features.Image(shape=(None, None, 3), encoding_format="png"),
          "image/filename": features.Text(),
          "labels": features.Sequence(features.ClassLabel(names=names)),
          "objects": features.Sequence({"label": features.ClassLabel(names=names), "bbox": features.BBoxFeature()}),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to download
    return {split: self._generate_examples(split) for split in scenes.SPLITS}

  def _generate_examples(self, split):
    setting = scenes.SETTINGS[self.builder_config.name]
    count = setting.train_scenes if split == "train" else setting.test_scenes
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    with contextlib.ExitStack() as stack:
      run = map
      if len(chunks) > _SERIAL_CHUNKS:
        # Spawned workers: a forked copy of a process that runs jax may hang.
        spawn = multiprocessing.get_context("spawn")
        run = stack.enter_context(futures.ProcessPoolExecutor(mp_context=spawn)).map
      drawn = itertools.chain.from_iterable(run(functools.partial(_examples, setting, split), chunks))
      title = f"drawing digits/{self.builder_config.name} {split}"
      for example in tqdm.tqdm(drawn, title, count, unit=" scenes"):
        yield example["image/filename"], example


def prepare(setting: str, root: pathlib.Path) -> None:
  """Draws and stores the scenes of one setting below `root`, unless they are there; in seconds, without a download.

  What a killed process left half made is removed, and a process that is at it waited for.
  """
  tfds.disable_progress_bar()  # `_generate_examples` shows its own
  builder = Digits(data_dir=root, config=setting, file_format="array_record")
  folder = pathlib.Path(builder.data_dir).parent
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / "lock").open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    for half_made in folder.glob("incomplete.*"):
      shutil.rmtree(half_made)
    builder.download_and_prepare()
