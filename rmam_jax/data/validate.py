"""Checks every line and every file of your own images before training, and lists all problems with their place.

    python -m rmam_jax.data.validate --config=configs/custom.py --config.data.train=train.csv ...

The exit status is 1 if there are any.
"""

import hashlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import tqdm
from absl import app
from ml_collections import config_flags

from rmam_jax.data import images, manifests
from rmam_jax.data.manifests import Entry, Problem
from rmam_jax.runtime.errors import UserError

SPLITS = ("train", "validation", "test")


def validate(data: Any) -> list[Problem]:
  """Everything that is wrong with the manifests of a configuration and the images that they name.

  Args:
    data: the `data` section; `data.name` is "custom".

  Raises:
    UserError: a manifest that is not there or has no known form.
  """
  named = {split: data[split] for split in SPLITS if data[split] or split == "train"}
  parsed = {split: manifests.parse(manifest, data.images) for split, manifest in named.items()}
  names = manifests.class_names(data, parsed["train"][0])
  problems: list[Problem] = []
  owners: dict[str, tuple[str, Entry]] = {}
  for split, (entries, found) in parsed.items():
    problems += found + manifests.unknown_labels(entries, names)
    problems += [Problem(entry.place, "no label") for entry in entries if not entry.labels and not entry.ignore]
    problems += _unused_classes(named[split], entries, names)
    problems += _check_images(split, entries, owners)
  return problems


def _unused_classes(manifest: str, entries: Sequence[Entry], names: Sequence[str]) -> list[Problem]:
  present = {name for entry in entries for name in entry.labels}
  return [Problem(manifest, f"class {name} has no image") for name in names if name not in present]


def _check_images(split: str, entries: Sequence[Entry], owners: dict[str, tuple[str, Entry]]) -> list[Problem]:
  """Images that cannot be read, and those that are there twice, in one split or in two, by their content.

  Args:
    split: the entries' split.
    entries: of a manifest.
    owners: content -> who has it first; added to.
  """
  problems = []
  for entry in tqdm.tqdm(entries, f"images of {split}", unit=" images", leave=False):
    try:
      content = entry.image.read_bytes()
    except OSError as error:
      problems.append(Problem(entry.place, f"cannot read {entry.image} ({error.strerror or error})"))
      continue
    try:
      images.decode_image(content, str(entry.image))
    except ValueError as error:
      problems.append(Problem(entry.place, str(error)))
    owner, first = owners.setdefault(hashlib.sha256(content).hexdigest(), (split, entry))
    if first is not entry:
      where = "" if owner == split else f", of the {owner} split: nothing may be in two"
      problems.append(Problem(entry.place, f"{entry.image} has the same content as {first.place}{where}"))
  return problems


def main(argv: list[str]) -> None:
  from rmam_jax.runtime import commands

  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  data = _CONFIG.value.data
  with commands.reported_errors():
    if data.name != "custom":
      raise UserError(f"validate checks your own images, data.name = 'custom', got {data.name!r}")
    problems = validate(data)
  for problem in problems:
    print(problem)
  print(f"{len(problems)} problems" if problems else "no problem found")
  sys.exit(bool(problems))


if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path.cwd()))  # a configuration imports others beside it
  _CONFIG = config_flags.DEFINE_config_file("config", "configs/custom.py", "Configuration that names the manifests.")
  app.run(main)
