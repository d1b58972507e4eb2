"""Checks every line and every file of your own images before training, and lists all problems with their place."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import tqdm

from rmam_jax.data import images, manifests
from rmam_jax.data.manifests import Entry, Problem
from rmam_jax.runtime.errors import UserError


def validate(data: Any) -> list[Problem]:
  """Everything that is wrong with the manifests of a configuration's `data` section and the images that they name.

  Raises:
    UserError: the data are not your own images; or a manifest that is not there or has no known form.
  """
  if data.name != "custom":
    raise UserError(f"validate checks your own images, data.name = 'custom', got {data.name!r}")
  named = {split: data[split] for split in ("train", "validation", "test") if data[split] or split == "train"}
  parsed = {manifest: manifests.parse(manifest, data.images) for manifest in dict.fromkeys(named.values())}
  names = manifests.class_names(data, parsed[data.train][0])
  problems: list[Problem] = []
  owners: dict[str, tuple[str, Entry]] = {}
  for split, manifest in named.items():
    entries, found = parsed[manifest]
    problems += found + manifests.unknown_labels(entries, names)
    problems += [Problem(entry.place, "no label") for entry in entries if not entry.labels and not entry.ignore]
    present = {name for entry in entries for name in entry.labels}
    problems += [Problem(manifest, f"class {name} has no image") for name in names if name not in present]
    problems += _check_images(split, entries, owners)
  return problems


def _check_images(split: str, entries: Sequence[Entry], owners: dict[str, tuple[str, Entry]]) -> Iterator[Problem]:
  """Images that cannot be read, and those whose content occurs twice, in one split or in two.

  `owners` says of each content's sha256 which split and entry had it first; this split's are added.
  """
  for entry in tqdm.tqdm(entries, f"images of {split}", unit=" images", leave=False):
    try:
      content = entry.image.read_bytes()
    except OSError as error:
      yield Problem(entry.place, f"cannot read {entry.image} ({error.strerror or error})")
      continue
    try:
      images.decode_image(content, str(entry.image))
    except UserError as error:
      yield Problem(entry.place, str(error))
    owner, first = owners.setdefault(hashlib.sha256(content).hexdigest(), (split, entry))
    if first is not entry or owner != split:
      where = "" if owner == split else f", of the {owner} split: nothing may be in two"
      yield Problem(entry.place, f"{entry.image} has the same content as {first.place}{where}")
