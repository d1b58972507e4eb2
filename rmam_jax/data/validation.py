"""Your own images before training: everything that stops it, everything worth knowing, and a summary."""

import hashlib
import itertools
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmam_jax.data import manifests
from rmam_jax.data.annotations import Entry
from rmam_jax.data.classes import apply
from rmam_jax.data.entries import Entries
from rmam_jax.data.images import decode_image, header, upright_boxes
from rmam_jax.data.manifests import Missing
from rmam_jax.data.splits import DISJOINT, FIELDS
from rmam_jax.runtime import progress
from rmam_jax.runtime.errors import UserError

NOTHING = ("no finding", "background", "negative", "nothing", "n/a", "0")  # names that may mean that no class is there
RARE = 10  # training images, below which a class is called rare
_SIZE = 0.02  # by so much, as a share, may the stated ratio of width and height differ from the image's


class Report(NamedTuple):
  """What `validate` finds."""

  problems: list[str]  # what stops training, with its place
  notes: list[str]  # what is worth knowing
  summary: str


def validate(data: Any) -> Report:
  """Reads every line of the manifests that a `data` section names and decodes every image.

  Raises UserError: the data are not your own images; or a manifest that is not there or has no known form.
  """
  if data.name != "custom":
    raise UserError(f"validate checks your own images, data.name = 'custom', got {data.name!r}")
  named = {field: data[field] for field in FIELDS if data[field] or field == "train"}
  parsed = {manifest: manifests.parse(manifest, data) for manifest in named.values()}
  problems, notes = (  # the parts of one list have all of the list's
    list(dict.fromkeys(itertools.chain.from_iterable(getattr(each, kind) for each in parsed.values())))
    for kind in ("problems", "notes")
  )
  try:
    classes = manifests.classes_of(data)
  except UserError as error:  # the labels were read wrongly: what follows would say so of every image
    return Report([*problems, str(error)], notes, "")
  found: dict[str, Entries] = {}
  for field, manifest in named.items():
    found[field], wrong, said = apply(parsed[manifest].entries, classes)
    if manifest not in list(named.values())[: list(named).index(field)]:
      problems += wrong
      notes += [f"{manifest}: {each}" for each in said]
  problems += _shared(found)
  problems += [
    f"{named[field]}: no image has a label of a class: nothing can be learned from it or measured on it"
    for field, entries in found.items()
    if entries and not any(said.labels or (data.difficult == "positive" and said.ignore) for said in entries.kinds)
  ]
  counts = {field: Counter(name for said in entries.said for name in said.labels) for field, entries in found.items()}
  notes += [
    f"{named[field]}: class {name} has no image{'; it cannot be learned' if field == 'train' else ''}"
    for field in found
    for name in classes.names
    if not counts[field][name]
  ]
  notes += [
    f"class {name} reads as if there were nothing: leave it out of data.classes, and its images are negatives"
    for name in classes.names
    if name.casefold() in NOTHING
  ]
  rare = [name for name in classes.names if 0 < counts["train"][name] < RARE]
  if rare:
    shown = ", ".join(f"{name} ({counts['train'][name]})" for name in rare[:RARE])
    notes.append(f"rare, with fewer than {RARE} training images: {shown}{', ...' if len(rare) > RARE else ''}")
  owners: dict[bytes, tuple[str, str]] = {}  # of each content's sha256, the split and the image that had it first
  missing = [each for each in problems if isinstance(each, Missing)]
  for field, entries in found.items():
    for unreadable, text in _check_images(field, entries, owners):
      (problems if unreadable and data.corrupt == "error" else notes).append(text)
  if data.corrupt == "skip":
    notes += missing
    problems = [each for each in problems if not isinstance(each, Missing)]
  return Report(
    problems, notes, _summary(found, classes.names, counts, {f: parsed[m].folder for f, m in named.items()})
  )


def _shared(found: Mapping[str, Entries]) -> Iterator[str]:
  """Splits that share images; `final_train` may hold those of training and validation."""
  for one, other in DISJOINT:
    if one in found and other in found:
      images = {f"{found[one].folder}{name}" for name in found[one].ids}
      shared = (entry for entry in found[other] if entry.image in images)
      for entry in sorted(shared, key=lambda entry: entry.image):
        yield f"{entry.place}: {entry.image} is in {one} as well: an image may be in one alone"


def _check_images(field: str, entries: Entries, owners: dict[bytes, tuple[str, str]]) -> Iterator[tuple[bool, str]]:
  """(whether an image cannot be read, what) of those, of images that occur twice, of boxes of another frame."""
  for entry in progress.bar(entries, f"images of {field}", unit=" images", leave=False):
    try:
      content = pathlib.Path(entry.image).read_bytes()
    except FileNotFoundError:
      continue  # named before
    except OSError as error:
      yield True, f"{entry.place}: cannot read {entry.image} ({error.strerror or error})"
      continue
    try:
      shape = decode_image(content, entry.image).shape
    except UserError as error:
      yield True, f"{entry.place}: {error}"
    else:
      yield from ((False, f"{entry.place}: {text}") for text in _frame(entry, content, shape))
    owner, first = owners.setdefault(hashlib.sha256(content).digest(), (field, entry.image))
    if first != entry.image:
      where = "" if owner == field else f", of the {owner} split: what is trained on should not be measured on"
      yield False, f"{entry.place}: {entry.image} has the same content as {first}{where}"


def _frame(entry: Entry, content: bytes, shape: Sequence[int]) -> Iterator[str]:
  """What is amiss between an image and the size that its annotation states, where it has boxes."""
  wide, tall = entry.size
  if not entry.boxes or not wide or wide == tall == 100:  # of boxes in percent
    return
  boxes = np.array(entry.boxes, np.float32)
  turned = upright_boxes(boxes, np.array(entry.size), content)
  _, orientation = header(content)
  if not np.array_equal(turned, boxes):
    yield f"{entry.image} lies on its side and its boxes are stated so (EXIF orientation {orientation}): they are turned"
    wide, tall = tall, wide
  elif orientation in (2, 3, 4):
    yield f"{entry.image} has EXIF orientation {orientation}: its boxes are taken for those of the upright image"
  if abs(wide / tall / (shape[1] / shape[0]) - 1) > _SIZE:
    stated, real = f"{entry.size[0]:g} x {entry.size[1]:g}", f"{shape[1]} x {shape[0]}"
    yield f"{entry.image} is {real}, its annotation says {stated}: its boxes may be those of another image"


def _summary(
  found: Mapping[str, Entries],
  names: Sequence[str],
  counts: Mapping[str, Counter[str]],
  folders: Mapping[str, str],
) -> str:
  """Images, labels and classes of each split, in a few lines and a table."""
  lines = []
  for field, entries in found.items():
    total, negatives, boxes = len(entries), sum(not said.labels for said in entries.said), len(entries.box_labels)
    lines.append(
      f"{field}: {total:,} images in {folders[field]}, {sum(counts[field].values()) / max(total, 1):.2f} labels an image,"
      f" {negatives:,} without a label (negatives), {boxes:,} boxes"
    )
  width = max(map(len, (*names, "class")))
  lines += ["", "  ".join([f"{'class':<{width}}", *(f"{field:>11}" for field in found)])]
  shown = sorted(names, key=lambda name: -counts["train"][name])
  if len(shown) > 60:
    shown = [*shown[:50], *shown[-10:]]
    lines[-1] += "   (the 50 most frequent, and the 10 rarest)"
  lines += ["  ".join([f"{name:<{width}}", *(f"{counts[field][name]:>11,}" for field in found)]) for name in shown]
  return "\n".join(lines)
