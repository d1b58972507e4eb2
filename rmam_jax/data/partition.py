"""One list of images as several splits that share out every label alike."""

import hashlib
from collections.abc import Sequence

import numpy as np

from rmam_jax.runtime.errors import UserError

PARTS = ("train", "validation", "test")  # what two or three shares make


def partition(labels: Sequence[Sequence[str]], ids: Sequence[str], shares: Sequence[float]) -> np.ndarray:
  """Which part each of N images goes to: int [N]. The same for the same images, in whatever order.

  By iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011): of the labels, the rarest first, each of whose
  images goes to the part that lacks most of that label, and among equals most of all images. Images without labels
  follow by the latter alone.

  Args:
    labels: of each image.
    ids: their names, by whose sha256 images are taken in turn.
    shares: the part of the images that each part shall have, two or three; their sum is 1.

  Raises:
    UserError: other shares; or images so few that a part would be empty.
  """
  wanted = np.array(shares, float)
  if len(wanted) not in (2, 3) or (wanted <= 0).any() or not np.isclose(wanted.sum(), 1):
    raise UserError(f"data.split must be two or three shares whose sum is 1, as in 0.8,0.1,0.1; got {tuple(shares)}")
  order = sorted(range(len(ids)), key=lambda place: hashlib.sha256(ids[place].encode()).digest())
  holders: dict[str, list[int]] = {}
  for place in order:
    for label in labels[place]:
      holders.setdefault(label, []).append(place)
  lacking = (wanted * len(ids)).tolist()  # images that each part still lacks
  lacking_of = {label: (wanted * len(places)).tolist() for label, places in holders.items()}
  left = {label: len(places) for label, places in holders.items()}
  part = [-1] * len(ids)

  def give(place: int, want: list[float]) -> None:
    best = max(range(len(lacking)), key=lambda each: (round(want[each], 9), round(lacking[each], 9), -each))
    part[place] = best
    lacking[best] -= 1
    for label in labels[place]:
      lacking_of[label][best] -= 1
      left[label] -= 1

  while any(left.values()):
    rarest = min((label for label in left if left[label]), key=lambda label: (left[label], label))
    for place in holders[rarest]:
      if part[place] < 0:
        give(place, lacking_of[rarest])
  for place in order:
    if part[place] < 0:
      give(place, lacking)
  if empty := [PARTS[each] for each in range(len(wanted)) if each not in part]:
    raise UserError(f"data.split {tuple(shares)} leaves nothing for {empty[0]}: {len(ids)} images are too few")
  return np.array(part)
