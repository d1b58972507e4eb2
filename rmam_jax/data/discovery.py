"""Which of a person's files are manifests, and of which splits: what `rmam-jax init` looks for.

Lists lie in a folder or in the folders right below it. A split is told by a name: of a list, of the folder that it lies
in where that is below the one that is looked at, of a table's column `split`, or of VOC's lists in ImageSets/Main. A
single list is that of training, whatever it is called.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rmam_jax import config as config_lib
from rmam_jax.data import classes as class_lib
from rmam_jax.data import images, manifests
from rmam_jax.data.partition import PARTS
from rmam_jax.runtime.errors import UserError, os_errors

NAMES = {
  "train": ("train", "training", "trn"),
  "validation": ("val", "valid", "validation", "dev"),
  "test": ("test", "testing", "tst"),
}
SPLIT = (0.8, 0.1, 0.1)  # of one list: training, validation, test
MOST_LISTS = 40  # in a folder; where there are more, each is probably one image's
_SHOWN = 3  # in an error
_COCO = "instances_"  # which of COCO's files for one split has the labels of all classes


class Manifest(NamedTuple):
  """A list that can be read."""

  name: str  # as `data.train` takes it, with an absolute path
  split: str  # "train", "validation", "test"; or "" where no name tells
  images: int
  labels: tuple[str, ...]  # sorted
  folder: str  # that its images lie in
  problems: tuple[str, ...]  # what `rmam-jax validate` will say


class Found(NamedTuple):
  """What is to be done with some folders and lists."""

  folder: pathlib.Path  # that all lists lie in
  manifests: tuple[Manifest, ...]  # those that are used, training first
  fields: dict[str, Any]  # of the `data` section
  passed_over: tuple[str, ...]  # a sentence for each other file that may have been meant


def look(places: Sequence[str]) -> Found:
  """Looks at folders, with those right below them, and at lists, each of which is meant.

  Raises UserError: nothing is there that can be read as a list, or so much that it does not tell which is meant.
  """
  paths = [pathlib.Path(os.path.abspath(os.path.expanduser(place))) for place in places]
  passed_over: list[str] = []
  found: list[Manifest] = []
  base = _common(paths)
  for path in paths:
    if not path.exists():
      raise UserError(f"there is no {path}: name a folder, or the lists that say which labels each image has")
    with os_errors(f"cannot look at {path}"):
      names = list(_in_folder(path, passed_over)) if path.is_dir() else [str(path)]
    found += [each for name in names for each in _read(name, base, passed_over)]
  found = list(dict.fromkeys(found))
  if not found:
    raise UserError(_nothing(paths, passed_over))
  chosen = _choose(found, passed_over)
  fields: dict[str, Any] = {each.split: each.name for each in chosen}
  if "validation" not in fields and not pathlib.Path(fields["train"]).exists():
    raise UserError(
      f"{fields['train']}: there are no images for validation, by which epochs and thresholds are chosen: call some of"
      " those of training val, not train"
    )
  if "validation" not in fields and "test" in fields:  # the parts are named, so that data.test keeps its own list
    shares = (round(SPLIT[0] + SPLIT[2], 6), SPLIT[1])
    fields |= {part: f"{fields['train']}:{part}" for part in PARTS[: len(shares)]} | {"split": shares}
  elif "validation" not in fields:
    fields["split"] = SPLIT
  one = len(paths) == 1 and paths[0].is_dir()
  folder = paths[0] if one else _common(_path_of(each.name) for each in chosen)
  return Found(folder, tuple(chosen), fields, tuple(passed_over))


def _common(paths: Iterable[pathlib.Path]) -> pathlib.Path:
  """The folder that all of these folders, or of these files, lie in; of one folder itself."""
  return pathlib.Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))


def _path_of(name: str) -> pathlib.Path:
  """A manifest's path, without the part that is named after it."""
  path = pathlib.Path(name)
  return path if path.exists() else pathlib.Path(name.rpartition(":")[0])


def _in_folder(folder: pathlib.Path, passed_over: list[str]) -> Iterator[str]:
  """What may be a manifest, in a folder and right below it."""
  if _is_voc(folder):
    yield from _of_voc(folder)
    yield from _lists(folder, passed_over)
    return
  yield from _lists(folder, passed_over)
  for below in sorted(folder.iterdir()):
    if below.is_dir() and not below.name.startswith("."):
      try:
        inside = [*(_of_voc(below) if _is_voc(below) else ()), *_lists(below, passed_over)]
      except OSError as error:  # as lost+found, at the top of a disk
        passed_over.append(f"{below}: cannot look at it ({error.strerror or error})")
      else:
        yield from inside


def _lists(folder: pathlib.Path, passed_over: list[str]) -> list[str]:
  files = sorted(each for each in folder.iterdir() if each.suffix.lower() in manifests.SUFFIXES and each.is_file())
  files = [
    each for each in files if not each.name.startswith(".") and (each.suffix.lower() != ".xml" or _is_cvat(each))
  ]
  if len(files) > MOST_LISTS:
    passed_over.append(f"{folder}: {len(files):,} files, which look like one for each image; a list holds all images")
    return []
  return list(map(str, files))


def _is_cvat(path: pathlib.Path) -> bool:
  with path.open("rb") as file:
    return b"<annotations" in file.read(2_048)


def _is_voc(folder: pathlib.Path) -> bool:
  inside = [folder / name for name in ("Annotations", "annotations")]
  if any(each.suffix.lower() == ".xml" for place in inside if place.is_dir() for each in place.rglob("*")):
    return True
  first = next((each for each in sorted(folder.iterdir()) if each.suffix.lower() == ".xml" and each.is_file()), None)
  return first is not None and not _is_cvat(first)


def _of_voc(folder: pathlib.Path) -> list[str]:
  """A folder as VOC has it, or its lists that name splits."""
  lists = sorted(path.stem for path in folder.glob("ImageSets/Main/*.txt"))
  return [f"{folder}:{name}" for names in NAMES.values() for name in names if name in lists] or [str(folder)]


def _split_of(name: str, base: pathlib.Path) -> str:
  """The split that a list's name tells, or its folder's below `base`; "" if none or several do."""
  path = pathlib.Path(os.path.relpath(name, base))
  part = "" if os.path.exists(name) else name.rpartition(":")[2]
  for text in (part,) if part else (path.stem, path.parent.name):
    words = {word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", text)}
    if told := [split for split, names in NAMES.items() if words & {*names}]:
      return told[0] if len(told) == 1 else ""
  return ""


def _read(name: str, base: pathlib.Path, passed_over: list[str]) -> list[Manifest]:
  data = config_lib.get_config().data
  try:
    parsed = manifests.parse(name, data)
  except UserError as error:
    passed_over.append(str(error))
    return []
  several = next((each for each in parsed.problems if isinstance(each, manifests.SeveralSplits)), None)
  if several is not None:
    if without := sum(not said.part for said in parsed.entries.said):
      passed_over.append(f"{name}: {without:,} images whose column `split` is empty")
    return [each for part in several.splits if part for each in _read(f"{name}:{part}", base, passed_over)]
  labels = {label for said in parsed.entries.kinds for label in said.labels}
  if not labels:
    why = parsed.problems[0] if parsed.problems else f"{name}: no image has a label"
    passed_over.append(str(why))
    return []
  problems = list(parsed.problems)
  try:
    class_lib.of_labels(parsed.entries, name, separator="")
  except UserError as error:
    problems.append(str(error))
  count = len(parsed.entries)
  split = _split_of(name, base)
  return [Manifest(name, split, count, tuple(sorted(labels)), parsed.folder, tuple(map(str, problems)))]


def _nothing(paths: Sequence[pathlib.Path], passed_over: Sequence[str]) -> str:
  shown = "; ".join(passed_over[:_SHOWN]) + (f"; and {len(passed_over) - _SHOWN} more" * (len(passed_over) > _SHOWN))
  classes = sorted(folder.name for path in paths if path.is_dir() for folder in path.iterdir() if _has_images(folder))
  hint = ""
  if len(classes) > 1:
    hint = (
      f" It holds images in {len(classes)} folders ({', '.join(classes[:_SHOWN])}{', ...' * (len(classes) > _SHOWN)}): if"
      f" each is a class, a line of the table is {classes[0]}/a.jpg,{classes[0]}."
    )
  looked = f" What was looked at: {shown}" if shown else ""
  return (
    f"{', '.join(map(str, paths))}: no list that says which labels each image has, there or in a folder right below. The"
    f" simplest is a table that begins with the line image,labels and goes on with a.jpg,cat|dog.{hint}{looked}"
  )


def _has_images(folder: pathlib.Path) -> bool:
  with contextlib.suppress(OSError):
    return folder.is_dir() and any(each.suffix.lower() in images.SUFFIXES for each in folder.iterdir())
  return False


def _choose(found: Sequence[Manifest], passed_over: list[str]) -> list[Manifest]:
  """The list of each split, training first; what else was found is passed over."""
  by_split = {split: [each for each in found if each.split == split] for split in (*NAMES, "")}
  unnamed = by_split.pop("")
  if len(found) == 1:
    by_split, unnamed = {"train": list(found)}, []
  elif not by_split["train"] and unnamed:
    by_split["train"], unnamed = unnamed, []
  chosen = []
  for split, those in by_split.items():
    if len(coco := [each for each in those if pathlib.Path(each.name).name.startswith(_COCO)]) == 1:
      passed_over += [f"{each.name}: {coco[0].name} is taken" for each in those if each is not coco[0]]
      those = coco
    if len(those) > 1:
      names = ", ".join(each.name for each in those[:_SHOWN]) + ", ..." * (len(those) > _SHOWN)
      raise UserError(
        f"{len(those)} lists may be that of {split}: {names}. Name those that you mean: rmam-jax init TRAIN VALIDATION"
        " TEST, or one that holds all images"
      )
    chosen += [each._replace(split=split) for each in those]
  if not by_split["train"]:
    names = ", ".join(each.name for each in chosen)
    raise UserError(
      f"no list is that of training; there is {names}: call one of them train, or name the one that is to be divided,"
      " rmam-jax init LIST"
    )
  passed_over += [f"{each.name}: its name tells no split" for each in unnamed]
  return chosen
