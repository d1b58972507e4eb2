"""Every published backbone against torchvision's, timm's and its package's network, from a file to the map."""

import functools
import importlib.metadata
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import common
from rmam_jax import backbones
from rmam_jax.weights import files as weight_files

SIZES = ((64, 96), (67, 101))
PATCHED = ((56, 98), (518, 518))  # of whole patches; for the second, positions are as they were trained


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def libraries():
  """What the benchmarks compare with, torchvision's models and timm; skips where one is not installed."""
  pytest.importorskip("torch")
  from benchmarks import peer

  try:
    return peer, *peer.libraries()
  except ImportError as error:
    pytest.skip(str(error))


def published_network(name):
  pytest.importorskip("efficientnet_lite_pytorch")
  return libraries()[0].backbone(name)


def of_torchvision(name, layers):
  """Up to a layer of its own."""
  model = getattr(libraries()[1], name)()
  parts = list(model.features if hasattr(model, "features") else model.children())[:layers]
  return model, lambda x: functools.reduce(lambda x, part: part(x), parts, x)


def of_timm(name):
  model = libraries()[2].create_model(name)
  return model, model.forward_features


# The configuration, a part of the layout's title, and the other network.
CASES = (
  ({"backbone": "efficientnet_lite0"}, "package", published_network),
  ({"backbone": "efficientnet_lite1"}, "package", published_network),
  ({"backbone": "efficientnet_lite2"}, "package", published_network),
  ({"backbone": "efficientnet_lite0"}, "timm", lambda name: of_timm("tf_efficientnet_lite0")),
  ({"backbone": "efficientnet_lite2"}, "timm", lambda name: of_timm("tf_efficientnet_lite2")),
  ({"backbone": "mobilenet_v2"}, "torchvision", published_network),
  ({"backbone": "mobilenet_v2", "maps": "16"}, "torchvision", lambda name: of_torchvision(name, 14)),
  ({"backbone": "mobilenet_v2", "maps": "8"}, "torchvision", lambda name: of_torchvision(name, 7)),
  ({"backbone": "mobilenet_v2"}, "timm", lambda name: of_timm("mobilenetv2_100")),
  ({"backbone": "resnet50"}, "timm", of_timm),
  ({"backbone": "resnet50", "maps": "16"}, "torchvision", lambda name: of_torchvision(name, -3)),
  ({"backbone": "resnet101"}, "torchvision", published_network),
  ({"backbone": "convnext_tiny"}, "torchvision", published_network),
  ({"backbone": "convnext_tiny", "maps": "16"}, "torchvision", lambda name: of_torchvision(name, -2)),
  ({"backbone": "convnext_tiny"}, "timm", of_timm),
  ({"backbone": "vit_small_dinov2"}, "timm", published_network),
)


def randomize(torch, model):
  """Random weights, and statistics unlike those that normalisation begins with."""
  generator = torch.Generator().manual_seed(0)
  for name, value in model.state_dict().items():
    if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
      torch.nn.init.uniform_(value, 0.5, 1.5, generator=generator)
    elif value.ndim == 1:
      torch.nn.init.normal_(value, 0, 0.2, generator=generator)
    elif value.ndim > 1:
      torch.nn.init.kaiming_normal_(value, nonlinearity="linear", generator=generator)


def published(title, spec):
  (layout,) = (layout for layout in spec.layouts if title in layout.title)
  return layout


def module_and_params(changes, tensors):
  """The backbone, and of the tensors those that it has."""
  config = common.get_config()
  with config.unlocked():
    config.model.update(changes)
  module = backbones.build(config.model)
  like = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))["params"]
  wanted = traverse_util.flatten_dict(like, sep="/")
  assert {name: tensors[name].shape for name in wanted} == {name: leaf.shape for name, leaf in wanted.items()}
  return module, {"params": traverse_util.unflatten_dict({name: tensors[name] for name in wanted}, sep="/")}


@pytest.mark.oracle
@pytest.mark.parametrize(
  ("changes", "title", "make"), CASES, ids=lambda case: "-".join(case.values()) if type(case) is dict else ""
)
def test_the_map_equals_the_others(changes, title, make, tmp_path):
  torch = pytest.importorskip("torch")
  model, features = make(changes["backbone"])
  randomize(torch, model.eval())
  torch.save(model.state_dict(), tmp_path / "published.pth")
  weights = weight_files.read(tmp_path / "published.pth")
  spec = backbones.get(changes["backbone"])
  layout = published(title, spec)
  assert (weights.title, weights.pixel_mean) == (layout.title, layout.pixel_mean)
  module, params = module_and_params(changes, weights.tensors)
  factor = module.maps.factors[0]  # of a finer map; see `layers.Maps`
  for size in PATCHED if "vit" in changes["backbone"] else SIZES:
    images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
    ours = np.asarray(jax.jit(module.apply)(params, images))
    with torch.no_grad():
      theirs = features(torch.tensor(images.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1) * factor
    assert np.abs(theirs).std() > 1e-3
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


CATS = range(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian cat


@pytest.mark.oracle
@pytest.mark.parametrize(
  ("name", "classifier"),
  [("efficientnet_lite0", "_fc"), ("efficientnet_lite2", "_fc"), ("mobilenet_v2", "classifier.1")],
)
def test_a_cat_is_a_cat(name, classifier):
  data = pytest.importorskip("skimage.data")
  spec = backbones.get(name)
  (source,) = (each for each in spec.layouts[0].sources if each.startswith("package:"))
  package, _, inside = source.removeprefix("package:").partition("/")
  try:
    path = pathlib.Path(importlib.metadata.distribution(package).locate_file(inside))
  except importlib.metadata.PackageNotFoundError:
    pytest.skip(f"{package} is not installed")
  weights = weight_files.read(path)
  assert spec.layouts[0].checksum == f"sha256:{weights.digest}"
  with weight_files.open_weights(path) as (entries, _):
    kernel, bias = (entries[f"{classifier}.{part}"].read() for part in ("weight", "bias"))
  cat = data.chelsea()[:, 75:375]
  image = jax.image.resize(cat.astype(np.float32), (224, 224, 3), "linear")[None]
  module, params = module_and_params({"backbone": name}, weights.tensors)
  feature_map = jax.jit(module.apply)(params, backbones.normalize(image, weights.pixel_mean, weights.pixel_std))
  assert int(jnp.argmax(feature_map.mean(axis=(0, 1, 2)) @ kernel.T + bias)) in CATS
