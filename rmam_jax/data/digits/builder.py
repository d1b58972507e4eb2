"""TFDS builder of the digit scenes: made locally, stored in array_record, features named as in `voc`."""

import contextlib
import functools
import io
import multiprocessing
import pathlib
from concurrent import futures
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rmam_jax.data.digits import scenes
from rmam_jax.runtime import progress

_CHUNK = 100  # scenes drawn by one task
_SERIAL = 2_000  # up to so many scenes, starting workers costs more than it saves


def _example(setting: scenes.Setting, split: str, index: int) -> dict:
  image, classes, boxes = scenes.draw_scene(setting, split, index)
  encoded = io.BytesIO()
  Image.fromarray(image).save(encoded, "PNG", compress_level=1)
  shares = [tfds.features.BBox(*map(float, box)) for box in boxes / setting.size]
  return {
    "image": encoded.getvalue(),
    "image/filename": f"{split}_{index:06d}.png",
    "labels": np.unique(classes),
    "objects": [{"label": label, "bbox": box} for label, box in zip(classes, shares, strict=True)],
  }


class Digits(tfds.core.GeneratorBasedBuilder):
  """Multi-label scenes of handwritten digits on photographs, with boxes."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name=name, description=f"Scenes of {setting.size} x {setting.size} pixels.")
    for name, setting in scenes.SETTINGS.items()
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    setting, features = scenes.SETTINGS[self.builder_config.name], tfds.features
    label = features.ClassLabel(names=setting.classes)
    return self.dataset_info_from_configs(
      description=scenes.LETTERS if setting.source else scenes.__doc__,  # part of a prepared data set's digest
      license="Photograph in the public domain (US Navy); fonts under the licences of DejaVu and STIX"
      if setting.source
      else "Photographs CC BY 2.0 (Ian Griggs, Neil Kandalgaonkar); digits CC BY 4.0 (UCI optdigits)",
      features=features.FeaturesDict(
        {
          "image": features.Image(shape=(None, None, 3), encoding_format="png"),
          "image/filename": features.Text(),
          "labels": features.Sequence(label),
          "objects": features.Sequence({"label": label, "bbox": features.BBoxFeature()}),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to download
    return {split: self._generate_examples(split) for split in scenes.SPLITS}

  def _generate_examples(self, split):
    setting = scenes.SETTINGS[self.builder_config.name]
    count = setting.train_scenes if split == "train" else setting.test_scenes
    with contextlib.ExitStack() as stack:
      run = map
      if count > _SERIAL:
        # Spawned workers: a forked copy of a process that runs jax may hang.
        pool = futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))
        run = functools.partial(stack.enter_context(pool).map, chunksize=_CHUNK)
      drawn = run(functools.partial(_example, setting, split), range(count))
      title = f"drawing digits/{self.builder_config.name} {split}"
      for example in progress.bar(drawn, title, count, unit=" scenes"):
        yield example["image/filename"], example


def make_builder(setting: str, root: pathlib.Path) -> Digits:
  """The builder of one setting below `root`, which draws and stores its scenes in seconds and without a download."""
  tfds.disable_progress_bar()  # `_generate_examples` shows its own
  return Digits(data_dir=root, config=setting, file_format="array_record")
