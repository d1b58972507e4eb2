"""Damages files at random, again and again, and reads them: images, manifests, weights, published models, checkpoints.

    python -m benchmarks.fuzz --mutations=20000            # --only=checkpoints for one kind

Each mutation flips bits, overwrites, cuts out, doubles or inserts bytes, or puts an extreme number somewhere. It counts
what was refused, by a ValueError or OSError; what was read as if nothing had happened; and what was read otherwise,
which a reader cannot notice in an image or a list of labels, but must notice where a digest is stored. Failures, and
exit 1: any other exception, something read otherwise in spite of a digest, a path outside the folder, a file opened for
writing outside the folder, a reading that takes the peak memory up by more than `MOST` MB. A mutation depends on the
seed, its kind and its number alone.
"""

import contextlib
import faulthandler
import functools
import importlib.util
import io
import json
import math
import os
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from PIL import Image

from benchmarks import machine
from configs import common
from rmam_jax.backbones import vgg
from rmam_jax.data import manifests
from rmam_jax.data.images import decode_image
from rmam_jax.runtime import progress
from rmam_jax.training import checkpoints, exported
from rmam_jax.training import step as step_lib
from rmam_jax.weights import files as weight_files
from rmam_jax.weights import tensors

LONGEST = 60  # seconds for one reading; one that takes longer, within a library too, ends the command
MOST = 200  # MB by which one reading of these small files may take up the peak memory
SHIPPED = pathlib.Path(__file__).parent.parent / "rmam_jax" / "inference" / "pretrained" / "digits-easy"


class Target(NamedTuple):
  """A kind of file: `make` writes it into an empty folder, `read` says in a text all that it has read from there."""

  make: Callable[[pathlib.Path], None]
  read: Callable[[pathlib.Path], str]
  digested: bool = False  # whether a digest is stored with the content


def _digest(arrays) -> str:
  return tensors.digest({name: np.asarray(array) for name, array in arrays.items()})


def _write(name: str, text: str) -> Callable[[pathlib.Path], None]:
  def make(folder: pathlib.Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)

  return make


def _image(kind: str, mode: str = "RGB", **options) -> Target:
  def make(folder: pathlib.Path) -> None:
    noise = Image.effect_noise((20, 10), 90).convert("RGB").resize((24, 16))
    if kind in ("JPEG", "PNG", "WEBP"):
      options["exif"] = exif = Image.Exif()
      exif[0x0112], exif[0x010F] = 6, "maker"
    image = noise.convert("L").convert(mode) if mode == "I;16" else noise.convert(mode)
    image.save(folder / "image", kind, **options)

  def read(folder: pathlib.Path) -> str:
    found = decode_image((folder / "image").read_bytes(), "image")
    if found.dtype != np.uint8 or found.shape[2:] != (3,):
      raise AssertionError(f"an image of {found.dtype} {found.shape}")
    return _digest({"image": found})

  return Target(make, read)


IMAGES = {
  "png": _image("PNG"),
  "png, palette": _image("PNG", "P", transparency=3),
  "png, 16 bits": _image("PNG", "I;16"),
  "jpeg": _image("JPEG"),
  "jpeg, progressive": _image("JPEG", progressive=True),
  "jpeg, cmyk": _image("JPEG", "CMYK"),
  "gif": _image("GIF", "P"),
  "bmp": _image("BMP"),
  "tiff": _image("TIFF"),
  "tiff, lzw": _image("TIFF", compression="tiff_lzw"),
  "tiff, deflate": _image("TIFF", "RGBA", compression="tiff_adobe_deflate"),
  "webp": _image("WEBP"),
  "webp, lossless": _image("WEBP", "RGBA", lossless=True),
}

COCO = {
  "images": [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(3)],
  "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
  "annotations": [{"image_id": n, "category_id": 1 + n % 2, "bbox": [1, 2.5, 10, 9]} for n in range(3)],
}


def _voc(folder: pathlib.Path) -> None:
  box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
  for name in ("a", "b"):
    text = (
      f"<annotation><filename>{name}.jpg</filename><size><width>40</width><height>30</height></size>"
      f"<object><name>cat</name><difficult>0</difficult>{box}</object></annotation>"
    )
    _write(f"voc/Annotations/{name}.xml", text)(folder)
  _write("voc/ImageSets/Main/train.txt", "a\nb\n")(folder)


def _manifest(name: str, make: Callable[[pathlib.Path], None]) -> Target:
  def read(folder: pathlib.Path) -> str:
    data = common.get_config().data
    data.train, data.corrupt = f"{folder / name}", "skip"  # the images themselves are not there
    found = manifests.open_manifest(data.train, data, "fuzz")
    for entry in manifests.parse(data.train, data).entries:
      if not pathlib.Path(entry.image).is_relative_to(folder.resolve()):
        raise AssertionError(f"an image outside the folder: {entry.image}")
    return repr((found.class_names, found.index))

  return Target(make, read)


CSV = "image,labels,ignore\na.jpg,cat|dog,\nsub/b.jpg,dog,cat\n"
JSONL = '{"image": "a.jpg", "labels": ["cat", "dog"], "ignore": []}\n'
TASKS = [
  {"id": n, "data": {"image": f"{n}.jpg"}, "annotations": [{"result": [{"value": {"choices": ["cat", "dog"]}}]}]}
  for n in range(3)
]
CVAT = (
  "<annotations><image id='0' name='a.jpg' width='40' height='30'><tag label='cat'/>"
  "<box label='dog' xtl='1' ytl='2' xbr='30' ybr='20'/></image></annotations>"
)
MANIFESTS = {
  "csv": _manifest("list.csv", _write("list.csv", CSV)),
  "jsonl": _manifest("list.jsonl", _write("list.jsonl", JSONL * 3)),
  "coco": _manifest("list.json", _write("list.json", json.dumps(COCO))),
  "voc": _manifest("voc:train", _voc),
  "label studio": _manifest("tasks.json", _write("tasks.json", json.dumps(TASKS))),
  "cvat": _manifest("cvat.xml", _write("cvat.xml", CVAT)),
}


def _layers() -> dict[str, np.ndarray]:
  """The tensors of two small convolutions, by their inner names."""
  rng, found = np.random.default_rng(0), {}
  for layer, shape in vgg.convolutions(((4,), (8,))).items():
    found[f"{layer}/kernel"] = rng.normal(0, 0.1, shape).astype(np.float32)
    found[f"{layer}/bias"] = rng.normal(0, 0.1, shape[-1:]).astype(np.float32)
  return found


def _keras(folder: pathlib.Path) -> None:
  with h5py.File(folder / "weights", "w") as file:
    layers = sorted({name.split("/")[0] for name in _layers()})
    file.attrs["layer_names"] = [layer.encode() for layer in layers]
    for layer in layers:
      group = file.create_group(layer)
      roles = {f"{layer}_W_1:0": "kernel", f"{layer}_b_1:0": "bias"}
      group.attrs["weight_names"] = [name.encode() for name in roles]
      for name, role in roles.items():
        group.create_dataset(name, data=_layers()[f"{layer}/{role}"])


def _torch(folder: pathlib.Path, zipped: bool) -> None:
  import torch

  state = {name: torch.tensor(array) for name, array in _layers().items()}
  torch.save(state, folder / "weights", _use_new_zipfile_serialization=zipped)


def _read_weights(folder: pathlib.Path) -> str:
  path = folder / "weights"
  with weight_files.open_weights(path) as (entries, _):
    return _digest(tensors.read(entries, entries, path))


def _inner(folder: pathlib.Path) -> None:
  weights = weight_files.Weights("fuzz", _layers(), (10.0, 20.0, 30.0), (2.0, 3.0, 4.0), f"{0:064d}")
  weight_files.write(folder / "weights", weights)


def _read_inner(folder: pathlib.Path) -> str:
  found = weight_files.read(folder / "weights")
  return repr((found._replace(tensors={}), _digest(found.tensors)))


WEIGHTS = {
  "keras h5": Target(_keras, _read_weights),
  "safetensors": Target(lambda folder: safetensors.numpy.save_file(_layers(), folder / "weights"), _read_weights),
  "converted weights": Target(_inner, _read_inner, digested=True),
}
if importlib.util.find_spec("torch"):
  for kind, zipped in (("zip", True), ("legacy", False)):
    WEIGHTS[f"torch, {kind}"] = Target(functools.partial(_torch, zipped=zipped), _read_weights)


def _read_published(folder: pathlib.Path) -> str:
  found = exported.load(folder / "model")
  return repr((found.config.to_json(), found.class_names, found.selection, _digest(tensors.flatten(found.params))))


PUBLISHED = Target(lambda folder: shutil.copytree(SHIPPED, folder / "model"), _read_published, digested=True)


def _state() -> step_lib.TrainState:
  kernel = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16)), jnp.float32)
  return step_lib.TrainState(jnp.int32(7), {"kernel": kernel, "bias": jnp.zeros(5)}, ())


def _checkpoint(folder: pathlib.Path) -> None:
  with contextlib.closing(checkpoints.StageCheckpoints(folder, writing=True)) as saved:
    saved.save_last(_state(), {"best_loss": 0.25, "best_epoch": 3, "seconds": 1.5})


def _read_checkpoint(folder: pathlib.Path) -> str:
  with contextlib.closing(checkpoints.StageCheckpoints(folder)) as saved:
    found = saved.restore_last(jax.eval_shape(_state))
  if found is None:
    raise ValueError("no checkpoint")
  return repr((found[1], _digest(tensors.flatten(found[0]._asdict()))))


GROUPS = {  # with their share of all mutations
  "images": (0.55, IMAGES),
  "manifests": (0.2, MANIFESTS),
  "weights": (0.18, WEIGHTS),
  "published": (0.02, {"published": PUBLISHED}),
  "checkpoints": (0.05, {"checkpoint": Target(_checkpoint, _read_checkpoint, digested=True)}),
}


def mutate(content: bytes, rng: random.Random) -> bytes:
  """One to three changes; half of them near the beginning, where headers are."""
  changed = bytearray(content)
  for _ in range(rng.choice((1, 1, 2, 3))):
    end = len(changed) if rng.random() < 0.5 else min(len(changed), 256)
    place, length = rng.randrange(max(end, 1)), rng.choice((1, 2, 4, 16, 200))
    kind = rng.choice(("flip", "flip", "overwrite", "cut", "truncate", "double", "insert", "number"))
    if kind == "flip" and changed:
      changed[min(place, len(changed) - 1)] ^= 1 << rng.randrange(8)
    elif kind == "overwrite":
      changed[place : place + length] = rng.randbytes(min(length, len(changed) - place))
    elif kind == "cut":
      del changed[place : place + length]
    elif kind == "truncate":
      del changed[place:]
    elif kind == "double":
      changed[place:place] = changed[place : place + length]
    elif kind == "insert":
      changed[place:place] = rng.randbytes(length)
    elif kind == "number":
      number = rng.choice((b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\0" * 4, b"\xff" * 8))
      changed[place : place + len(number)] = number
  return bytes(changed)


def watch_writes(folder: pathlib.Path) -> list[str]:
  """A list that grows with everything that is written outside a folder, as Python's audit events tell of it."""
  outside = []

  def look(event: str, arguments: tuple) -> None:
    writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writing or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
      path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""
      if path and not path.startswith((str(folder), "/dev/")):
        outside.append(f"{event} {path}")

  sys.addaudithook(look)
  return outside


def _peak() -> float:
  """The most memory that this process has held, in MB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(name: str, target: Target, count: int, seed: int, folder: pathlib.Path) -> tuple[Counter, list[str]]:
  """Mutates and reads one target: counts, and the failures, each with what makes it again."""
  counts, failures = Counter(), []
  folder.mkdir()
  target.make(folder)
  paths = sorted(path for path in folder.rglob("*") if path.is_file())
  wanted = target.read(folder)
  for number in progress.bar(range(count), name, leave=False):
    rng = random.Random(f"{seed} {name} {number}")
    path = rng.choice(paths)
    content = path.read_bytes()
    changed = mutate(content, rng)
    path.write_bytes(changed)
    os.utime(path, ns=(number, number))  # a manifest of the same size and time is taken for the same
    started, before = time.monotonic(), _peak()
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    try:
      with contextlib.redirect_stdout(io.StringIO()):
        found = target.read(folder)
    except (ValueError, OSError):
      counts["refused"] += 1
    except Exception as error:
      counts["failed"] += 1
      failures.append(f"{name} {number}: {type(error).__name__}: {error}")
    else:
      kind = "the same" if found == wanted else "otherwise"
      counts[kind] += 1
      if target.digested and kind == "otherwise":
        failures.append(f"{name} {number}: {path.relative_to(folder)} changed and was read in spite of a digest")
    counts["slowest"] = max(counts["slowest"], round(1000 * (time.monotonic() - started)))
    counts["MB"] = max(counts["MB"], grown := round(_peak() - before))
    if grown > MOST:
      counts["failed"] += 1
      failures.append(f"{name} {number}: took {grown} MB more than anything before")
    faulthandler.cancel_dump_traceback_later()
    path.write_bytes(content)
  return counts, failures


def main() -> None:
  parser = machine.make_parser(__doc__)
  parser.add_argument("--mutations", type=int, default=20_000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", choices=GROUPS, help="one kind, with as many mutations as it would have had")
  arguments = parser.parse_args()
  faulthandler.enable()
  warnings.simplefilter("ignore")
  print(machine.describe("PIL", "h5py", "safetensors", "orbax"))
  row = "{:20}{:>10}{:>10}{:>10}{:>10}{:>12}{:>10}".format
  kinds = ("refused", "the same", "otherwise", "failed")
  print(row("", *kinds, "slowest, ms", "most, MB"))
  total, failures = Counter(), []
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    jax.config.update("jax_enable_compilation_cache", False)  # it may lie elsewhere
    outside = watch_writes(root)
    for share, targets in [GROUPS[arguments.only]] if arguments.only else GROUPS.values():
      for target_name, target in targets.items():
        count = math.ceil(arguments.mutations * share / len(targets))
        counts, failed = run(target_name, target, count, arguments.seed, root / target_name)
        print(row(target_name, *(counts[kind] for kind in kinds), counts["slowest"], counts["MB"]), flush=True)
        total += counts
        failures += failed
    failures += [f"written outside the folder: {place}" for place in outside]
  print(row("all", *(total[kind] for kind in kinds), "", ""))
  peak, mutations = _peak(), sum(total[kind] for kind in kinds)
  print(f"{mutations:,} mutations, seed {arguments.seed}; peak memory {peak:,.0f} MB; {len(failures)} failures")
  print("\n".join(failures))
  sys.exit(bool(failures))


if __name__ == "__main__":
  main()
