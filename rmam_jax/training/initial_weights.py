"""What a run begins with: `config.weights` found, checked and laid over fresh parameters."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rmam_jax import backbones
from rmam_jax.backbones.spec import FC6_REGION
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import exported, workdir
from rmam_jax.weights import files as weight_files
from rmam_jax.weights import tensors

NONE = "none"
HOW = (
  "vgg16_weights_tf_dim_ordering_tf_kernels.h5 of Keras, which the paper's weights are, with fc6 (or _notop.h5 without),"
  " vgg16-397923af.pth of torchvision, a safetensors file, or the folder of a model trained here; the README's section"
  ' "ImageNet weights" says where to get them. Name it with --config.weights=FILE, or train from random weights with'
  " --config.weights=none"
)


class InitialWeights(NamedTuple):
  """First parameters for some parts of a recogniser.

  Attributes:
    title: where they come from.
    digest: of the file, or of a model's tensors.
    pixel_mean, pixel_std: the preprocessing that belongs to them, of red, green, blue in 0..255.
    backbone: layer -> {kernel, bias}.
    fc6: {kernel [7*7*C, out], bias} or None.
    heads: name -> parameters; a trained model's.
    class_names: of those heads.
  """

  title: str
  digest: str
  pixel_mean: tuple[float, ...]
  pixel_std: tuple[float, ...]
  backbone: Any
  fc6: Any = None
  heads: Mapping[str, Any] = {}
  class_names: tuple[str, ...] = ()

  def fill(
    self, params: Any, *, heads: Mapping[str, str], class_names: Sequence[str], region_size: tuple[int, int]
  ) -> tuple[Any, list[str]]:
    """Lays all that fits over fresh parameters.

    Args:
      params: a recogniser's, with the parts "backbone", "head" and perhaps "auxiliary".
      heads: the name of the head in each part.
      class_names: of the data; a trained head is taken only if its classes are the same, in the same order.
      region_size: (h, w) that W_fx reads; fc6 is taken for it where the shapes are the same.

    Returns:
      The parameters, and what was taken in words.
    """
    filled, taken = {**params, "backbone": self.backbone}, ["the backbone"]
    for part in ("head", "auxiliary"):
      if part not in params:
        continue
      trained = self.heads.get(heads[part]) if tuple(class_names) == self.class_names else None
      if trained is not None and _shapes(trained) == _shapes(params[part]):
        filled[part] = trained
        taken.append(f"the head {heads[part]}")
      elif self.fc6 is not None and region_size == FC6_REGION:
        holder = params[part].get("attention", params[part])  # the attending head's parameters have one level more
        if _shapes(holder.get("fx")) == _shapes(self.fc6):
          holder = {**holder, "fx": self.fc6}
          filled[part] = {**params[part], "attention": holder} if "attention" in params[part] else holder
          taken.append(f"fc6 as W_fx of {heads[part]}")
    return filled, taken


def _shapes(tree: Any) -> Any:
  return jax.tree.map(jnp.shape, tree)


def resolve(
  config: ml_collections.ConfigDict, folder: pathlib.Path | None = None
) -> tuple[ml_collections.ConfigDict, InitialWeights | None]:
  """Finds and checks `config.weights`.

  Args:
    config: see `configs/common.py`.
    folder: the workdir, if there is one. A run whose stages have all begun goes on though the weights are gone: its checkpoints have
      what came of them.

  Returns:
    The configuration with the weights' preprocessing and digest in it, and the weights; None for random ones, and where
    they are gone and no longer needed.

  Raises:
    UserError: no weights are given, or they do not fit or are damaged.
    UserError: they are not there and still needed.
  """
  config = config.copy_and_resolve_references()
  if not config.weights:
    raise UserError(f"config.weights is empty and {config.data.name} is trained from ImageNet weights: {HOW}")
  config.weights_digest = ""
  if config.weights == NONE:
    return config, None
  path = pathlib.Path(config.weights).expanduser()
  if path.is_dir():
    first = _from_model(path)
  elif path.exists():
    first = _from_file(weight_files.read(path))
  else:
    first = _gone(config, folder)
    if first is None:
      recorded = workdir.read_config(folder)
      print(f"{path} is gone; the run goes on from its checkpoints")
      config.weights_digest = recorded.weights_digest
      config.model.update({field: tuple(recorded.model[field]) for field in ("pixel_mean", "pixel_std")})
      return config, None
  _check_backbone(first, config)
  config.weights_digest = first.digest
  config.model.pixel_mean, config.model.pixel_std = first.pixel_mean, first.pixel_std
  return config, first


def _gone(config: ml_collections.ConfigDict, folder: pathlib.Path | None) -> InitialWeights | None:
  """The weights of a run that began with them, from the cache; None where every stage has a checkpoint."""
  recorded = workdir.read_config(folder) if folder and (folder / "config.json").exists() else {}
  digest = recorded.get("weights_digest", "")
  if not digest or recorded.get("weights") != config.weights:
    raise UserError(f"config.weights: there is no {config.weights}. Give {HOW}")
  stages = [stage for stage in ("stage_one", "stage_two") if config[stage].epochs]
  if all(_begun(folder / "checkpoints" / stage / "last") for stage in stages):
    return None
  kept = weight_files.read_cached(digest)
  if kept is None:
    raise UserError(
      f"{config.weights}, which {folder} began with, is gone, and a stage that takes from it has not begun: put it back,"
      " or name its new place with --config.weights=FILE"
    )
  return _from_file(kept)


def _begun(last: pathlib.Path) -> bool:
  return last.is_dir() and any(step.name.isdigit() for step in last.iterdir())


def _from_file(weights: weight_files.Weights) -> InitialWeights:
  layers: dict[str, dict[str, np.ndarray]] = {}
  for name, array in weights.tensors.items():
    layer, role = name.split("/")
    layers.setdefault(layer, {})[role] = array
  fc6 = layers.pop("fc6", None)
  return InitialWeights(weights.title, weights.digest, weights.pixel_mean, weights.pixel_std, layers, fc6)


def _from_model(folder: pathlib.Path) -> InitialWeights:
  config, class_names, params, _ = exported.load(folder)
  heads = {config.model.head: params["head"]}
  if "auxiliary" in params:
    heads.setdefault(config.stage_one.head, params["auxiliary"])
  return InitialWeights(
    title=f"a model trained on {config.data.name}",
    digest=tensors.digest(tensors.flatten(params)),
    pixel_mean=tuple(config.model.pixel_mean),
    pixel_std=tuple(config.model.pixel_std),
    backbone=params["backbone"],
    heads=heads,
    class_names=class_names,
  )


def _check_backbone(first: InitialWeights, config: ml_collections.ConfigDict) -> None:
  """Compares the layers with the configured backbone's, before anything is trained."""
  size, module = config.data.crop_size, backbones.build(config.model)
  like = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))["params"]
  theirs, ours = (
    {name: tuple(jnp.shape(leaf)) for name, leaf in tensors.flatten(tree).items()} for tree in (first.backbone, like)
  )
  if differing := [name for name in sorted(theirs | ours) if theirs.get(name) != ours.get(name)]:
    name = differing[0]
    raise UserError(
      f"{config.weights} holds another backbone than model.backbone {config.model.backbone!r}: {name} is"
      f" {theirs.get(name, 'absent')} there and {ours.get(name, 'absent')} in the configuration"
    )
