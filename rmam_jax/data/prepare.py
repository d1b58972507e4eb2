"""VOC 2007 and MS-COCO 2014 by their TFDS builders, in array_record format. The only place for tensorflow."""

import pathlib
import shutil

from rmam_jax.data import stored
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError, check_name

ARCHIVES = {  # the official ones of each data set
  "voc/2007": ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"),
  "coco/2014": ("train2014.zip", "val2014.zip", "annotations_trainval2014.zip"),
}


def make_builder(name: str, root: pathlib.Path):
  """The TFDS builder of a data set; UserError for an unknown name, or where tensorflow is missing."""
  check_name("the data set", name, ARCHIVES)
  try:
    import tensorflow  # noqa: F401
  except ImportError as error:
    raise UserError(
      f"preparing {name} needs tensorflow, training does not: pip install 'rmam_jax[prepare]' (from a checkout: pip"
      " install -e '.[prepare]')"
    ) from error
  import tensorflow_datasets as tfds
  from tensorflow_datasets.object_detection import coco

  if name == "voc/2007":
    return tfds.builder(name, data_dir=root, file_format="array_record")
  # The two splits that have labels: TFDS's own configuration adds 20 GB of unlabelled test images.
  labelled = {tfds.Split.TRAIN: "train2014", tfds.Split.VALIDATION: "val2014"}
  boxes = coco.AnnotationType.BBOXES
  config = coco.CocoConfig(
    name="2014_trainval",
    description="MS-COCO 2014: the labelled splits.",
    splits=[coco.Split(split, images, "annotations_trainval2014", boxes) for split, images in labelled.items()],
  )
  return coco.Coco(config=config, data_dir=root, file_format="array_record")


def prepare(name: str, *, root: str = "", archives: str = "") -> pathlib.Path:
  """Prepares a data set of `ARCHIVES` below `stored.data_root(root)`, unless it is there, and returns its folder.

  `archives` is a folder with the official archives; if it is empty they are downloaded.

  Raises:
    UserError: the name is unknown, tensorflow is missing, or only a part of data prepared before is there; archives are
      missing, have another size (all are named) or another checksum; no space, or no network.
  """
  data_root = stored.data_root(root)
  builder = make_builder(name, data_root)
  folder = pathlib.Path(builder.data_dir)
  if stored.is_prepared(name, folder):
    return folder
  official = {url.rsplit("/", 1)[-1]: info.size for url, info in builder.url_infos.items()}
  sizes = {archive: official[archive] for archive in ARCHIVES[name]}  # in bytes
  problems, given = [], files.named(archives) if archives else None
  for path, size in [(given / archive, size) for archive, size in sizes.items()] if given else []:
    if not path.is_file():
      problems.append(f"{path} is missing")
    elif path.stat().st_size != size:
      problems.append(f"{path} has {path.stat().st_size:,} bytes, the official one has {size:,}")
  if problems:
    raise UserError(f"{'; '.join(problems)}. Put the official archives {', '.join(sizes)} there, unchanged.")
  data_root.mkdir(parents=True, exist_ok=True)
  needed = (2 if given else 3) * sum(sizes.values())  # unpacked, as records and, if downloaded, as archives
  if (free := shutil.disk_usage(data_root).free) < needed:
    raise UserError(
      f"{data_root} has {free / 1e9:,.1f} GB free and the data need {needed / 1e9:,.1f} GB. Free some, or name another"
      " folder with --data_root=DIR."
    )

  import tensorflow_datasets as tfds

  options = tfds.download.DownloadConfig(manual_dir=given and str(given))
  try:
    stored.build(builder, download_dir=str(data_root / "downloads"), download_config=options)
  except tfds.download.download_manager.NonMatchingChecksumError as error:
    raise UserError(f"an archive of {name} is not the official one, get it again: {error}") from error
  except ConnectionError as error:
    raise UserError(
      f"{name} could not be downloaded ({error}): get {', '.join(sizes)} and name their folder with --archives=DIR"
    ) from error
  return folder
