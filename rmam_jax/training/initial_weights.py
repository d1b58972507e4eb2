"""What a run begins with: `config.weights` found, checked and laid over fresh parameters."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import traverse_util

from rmam_jax import backbones
from rmam_jax.backbones.spec import FC6_REGION
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import exported, workdir
from rmam_jax.weights import files as weight_files
from rmam_jax.weights import published, tensors

NONE = "none"


class InitialWeights(NamedTuple):
  """First parameters for some parts of a recognizer."""

  title: str  # where they come from
  digest: str  # of the file, or of a model's tensors
  pixel_mean: tuple[float, ...]  # the preprocessing that belongs to them, of red, green, blue in 0..255
  pixel_std: tuple[float, ...]
  backbone: Any  # layer -> {kernel, bias} and the like
  fc6: Any = None  # {kernel [7*7*C, out], bias}
  heads: Mapping[str, Any] = {}  # name -> parameters; a trained model's
  class_names: tuple[str, ...] = ()  # of those heads

  def fill(
    self, params: Any, *, heads: Mapping[str, str], class_names: Sequence[str], region_size: tuple[int, int]
  ) -> tuple[Any, list[str]]:
    """Lays all that fits over fresh parameters.

    `params` are a recognizer's, with the parts "backbone", "head" and perhaps "auxiliary"; `heads` has the name of the
    head in each. A trained head is taken only if its classes are `class_names`, the data's, in the same order; fc6 is
    taken for W_fx, which reads `region_size` (h, w), where the shapes are the same. Returns the parameters, and what was
    taken in words.
    """
    filled, taken = {**params, "backbone": self.backbone}, ["the backbone"]
    for part in [part for part in ("head", "auxiliary") if part in params]:
      trained = self.heads.get(heads[part]) if tuple(class_names) == self.class_names else None
      if trained is not None and _shapes(trained) == _shapes(params[part]):
        filled[part] = trained
        taken.append(f"the head {heads[part]}")
      elif self.fc6 is not None and region_size == FC6_REGION:
        holder = params[part].get("attention", params[part])  # those of heads that look are nested one level deeper
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

  A run whose stages have all begun, in the workdir `folder`, resumes from its checkpoints even if the weights are gone.
  Returns the configuration with the weights' preprocessing and digest in it, and the weights: None for random ones, and
  where they are gone and no longer needed. Raises UserError: no weights are given, they do not fit, are damaged, or are
  gone and still needed.
  """
  config = config.copy_and_resolve_references()
  config.weights_digest = ""
  if config.weights == NONE:
    return config, None
  spec = backbones.get(config.model.backbone)
  by_name = f"--config.weights={published.IMAGENET}, which finds {spec.published}; or give " if spec.published else ""
  how = (
    f"Give {by_name}a safetensors file or the folder of a model trained here: --config.weights=FILE (docs/weights.md says"
    " where to get one); or train from random weights: --config.weights=none"
  )
  if not config.weights:
    raise UserError(f"config.weights is empty and {config.data.name} is trained from ImageNet weights. {how}")
  recorded = workdir.read_config(folder) if folder and (folder / "config.json").exists() else None
  began_with = recorded.weights_digest if recorded and recorded.weights == config.weights else ""
  if published.is_name(config.weights):
    path = published.find(config.weights, spec, sha256=began_with)
    if path is not None:
      print(f"{config.weights} is {path}")
  else:
    path = files.named(config.weights)
    path = path if path.exists() else None
  if path is not None:
    first = _from_model(path) if path.is_dir() else _from_file(weight_files.read(path))
  elif not began_with:
    raise UserError(f"config.weights: there is no {config.weights}. {how}")
  else:
    stages = [stage for stage in ("stage_one", "stage_two") if config[stage].epochs]
    kept = [(folder / "checkpoints" / stage / "last").glob("*") for stage in stages]
    if all(any(step.name.isdigit() for step in steps) for steps in kept):
      print(f"the file of config.weights={config.weights} is gone; the run goes on from its checkpoints")
      config.weights_digest = began_with
      config.model.update({field: tuple(recorded.model[field]) for field in ("pixel_mean", "pixel_std")})
      return config, None
    cached = weight_files.read_cached(began_with)
    if cached is None:
      raise UserError(
        f"{config.weights}, which {folder} began with, is gone, and a stage that still needs it has not begun: put it"
        " back, or name its new place with --config.weights=FILE"
      )
    first = _from_file(cached)
  first = _fit_backbone(first, config)
  config.weights_digest = first.digest
  config.model.pixel_mean, config.model.pixel_std = first.pixel_mean, first.pixel_std
  return config, first


def _from_file(weights: weight_files.Weights) -> InitialWeights:
  layers = traverse_util.unflatten_dict(weights.tensors, sep="/")
  fc6 = layers.pop("fc6", None)
  return InitialWeights(weights.title, weights.digest, weights.pixel_mean, weights.pixel_std, layers, fc6)


def _from_model(folder: pathlib.Path) -> InitialWeights:
  config, class_names, params, *_ = exported.load(folder)
  heads = {config.model.head: params["head"]}
  if "auxiliary" in params:
    heads.setdefault(config.stage_one.head, params["auxiliary"])
  digest, pixels = tensors.digest(tensors.flatten(params)), (config.model.pixel_mean, config.model.pixel_std)
  title = f"a model trained on {config.data.name}"
  return InitialWeights(title, digest, *map(tuple, pixels), params["backbone"], heads=heads, class_names=class_names)


def _fit_backbone(first: InitialWeights, config: ml_collections.ConfigDict) -> InitialWeights:
  """Compares the layers with the configured backbone's, before anything is trained.

  Of a whole network's they are those that the map of `model.maps` needs.
  """
  last = config.model.copy_and_resolve_references()
  last.maps = ""
  ours, whole = (_backbone_shapes(model, config.data.crop_size) for model in (config.model, last))
  theirs = tensors.flatten(first.backbone)
  shapes = {name: jnp.shape(leaf) for name, leaf in theirs.items()}
  for name in sorted(shapes | ours):
    if shapes.get(name) != ours.get(name, whole.get(name)):
      fitting = [
        spec.name
        for spec in backbones.SPECS.values()
        if any(first.title.startswith(layout.title) for layout in spec.layouts)
      ]
      raise UserError(
        f"{config.weights} holds {first.title} and does not fit model.backbone {config.model.backbone!r}: {name} is"
        f" {shapes.get(name, 'absent')} there and {ours.get(name, 'absent')} in the configuration"
        + (f". It fits --config.model.backbone={fitting[0]}" if fitting else "")
      )
  taken = {name: theirs[name] for name in ours}
  return first._replace(backbone=traverse_util.unflatten_dict(taken, sep="/"))


def _backbone_shapes(model: ml_collections.ConfigDict, size: int) -> dict[str, tuple[int, ...]]:
  """The parameters of a `model` section's backbone by path, for images of a side of `size` pixels; takes no memory."""
  module = backbones.build(model)
  like = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))["params"]
  return {name: leaf.shape for name, leaf in tensors.flatten(like).items()}
