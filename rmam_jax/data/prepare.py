"""Prepares VOC 2007 or MS-COCO 2014 by their TFDS builders, in array_record format. The only place for tensorflow.

    python -m rmam_jax.data.prepare voc/2007 --archives=DIR     from the official archives in DIR, without network
    python -m rmam_jax.data.prepare coco/2014                   downloads them first

The same command again goes on: archives that were verified and unpacked are used again, a half-made data set is removed.
"""

import pathlib
import shutil

from absl import app, flags

from rmam_jax.data import splits
from rmam_jax.runtime.errors import UserError

INSTALL = "pip install 'rmam_jax[prepare]' (from a checkout: pip install -e '.[prepare]')"


def _voc(root: pathlib.Path):
  import tensorflow_datasets as tfds

  return tfds.builder("voc/2007", data_dir=root, file_format="array_record")


def _coco(root: pathlib.Path):
  """TFDS's builder with the two splits that have labels; its own configuration adds 20 GB of unlabelled test images."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.object_detection import coco

  def split(name, images):
    return coco.Split(name, images, "annotations_trainval2014", coco.AnnotationType.BBOXES)

  config = coco.CocoConfig(
    name="2014_trainval",
    description="MS-COCO 2014: the labelled splits.",
    splits=[split(tfds.Split.TRAIN, "train2014"), split(tfds.Split.VALIDATION, "val2014")],
  )
  return coco.Coco(config=config, data_dir=root, file_format="array_record")


# Each data set's builder, and its official archives.
BUILDERS = {
  "voc/2007": (_voc, ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar")),
  "coco/2014": (_coco, ("train2014.zip", "val2014.zip", "annotations_trainval2014.zip")),
}


def make_builder(name: str, root: pathlib.Path):
  """The TFDS builder of a data set.

  Raises:
    UserError: an unknown name.
    UserError: tensorflow is missing.
  """
  if name not in BUILDERS:
    raise UserError(f"the data set must be one of {', '.join(BUILDERS)}, got {name!r}")
  try:
    import tensorflow  # noqa: F401
  except ImportError as error:
    raise UserError(f"preparing {name} needs tensorflow, training does not: {INSTALL}") from error
  return BUILDERS[name][0](root)


def _sizes(builder, name: str) -> dict[str, int]:
  """The official archives and their sizes in bytes."""
  known = {url.rsplit("/", 1)[-1]: info.size for url, info in builder.url_infos.items()}
  return {archive: known[archive] for archive in BUILDERS[name][1]}


def _check_archives(folder: pathlib.Path, sizes: dict[str, int]) -> None:
  problems = []
  for archive, size in sizes.items():
    path = folder / archive
    if not path.is_file():
      problems.append(f"{path} is missing")
    elif path.stat().st_size != size:
      problems.append(f"{path} has {path.stat().st_size:,} bytes, the official one has {size:,}")
  if problems:
    raise UserError(f"{'; '.join(problems)}. Put the official archives {', '.join(sizes)} there, unchanged.")


def _check_space(root: pathlib.Path, sizes: dict[str, int], download: bool) -> None:
  needed = (2 + download) * sum(sizes.values())  # unpacked, as records and, where they come by network, as archives
  free = shutil.disk_usage(root).free
  if free < needed:
    raise UserError(
      f"{root} has {free / 1e9:,.1f} GB free and the data need {needed / 1e9:,.1f} GB. Free some, or name another folder"
      " with --data_root=DIR."
    )


def prepare(name: str, *, root: str = "", archives: str = "") -> pathlib.Path:
  """Prepares a data set unless it is there.

  Args:
    name: of `BUILDERS`.
    root: see `splits.data_root`.
    archives: folder with the official archives; empty downloads them.

  Returns:
    The folder of the prepared data set.

  Raises:
    UserError: an unknown name, or an archive whose checksum is not the official one.
    UserError: archives that are missing or have another size, all named; or something is left only of data
      prepared before.
    UserError: no space, or no network.
    UserError: tensorflow is missing.
  """
  data_root = splits.data_root(root)
  builder = make_builder(name, data_root)
  folder = pathlib.Path(builder.data_dir)
  if (folder / "dataset_info.json").exists():
    return folder
  splits.refuse_remains(name, folder)
  sizes = _sizes(builder, name)
  if archives:
    _check_archives(pathlib.Path(archives).expanduser(), sizes)
  data_root.mkdir(parents=True, exist_ok=True)
  _check_space(data_root, sizes, download=not archives)
  for half_made in folder.parent.glob("incomplete.*"):
    shutil.rmtree(half_made)

  import tensorflow_datasets as tfds

  options = tfds.download.DownloadConfig(manual_dir=str(pathlib.Path(archives).expanduser()) if archives else None)
  try:
    builder.download_and_prepare(download_dir=str(data_root / "downloads"), download_config=options)
  except tfds.download.download_manager.NonMatchingChecksumError as error:
    raise UserError(f"an archive of {name} is not the official one, get it again: {error}") from error
  except ConnectionError as error:
    raise UserError(
      f"{name} could not be downloaded ({error}): get {', '.join(sizes)} and name their folder with --archives=DIR"
    ) from error
  return folder


_ARCHIVES = flags.DEFINE_string("archives", "", "Folder with the official archives; by default they are downloaded.")
_DATA_ROOT = flags.DEFINE_string(
  "data_root", "", "Folder of prepared data; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."
)


def main(argv: list[str]) -> None:
  from rmam_jax.runtime import commands

  if len(argv) != 2:
    raise app.UsageError(f"name one data set: {' or '.join(BUILDERS)}")
  with commands.reported_errors():
    print(f"prepared {prepare(argv[1], root=_DATA_ROOT.value, archives=_ARCHIVES.value)}")


if __name__ == "__main__":
  app.run(main)
