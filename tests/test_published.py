"""Published weights by name: where they are looked for, what is refused; files that others have wrapped or changed."""

import argparse
import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy
from test_training import tiny_config
from test_weights import (
  Harmful,
  _torch_vgg,
  conv5_3,
  inner,
  legacy_layout,
  torch_names,
  write_keras,
  zip_layout,
)

from rmam_jax import backbones
from rmam_jax.backbones import vgg
from rmam_jax.backbones.spec import Layout, Place
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import exported, initial_weights, loop
from rmam_jax.weights import files, published
from rmam_jax.weights.tensors import Entry

ROOT = pathlib.Path(__file__).parent.parent
REAL = os.environ.get(published.FOLDER, "")  # before the fixture below hides it
VGG16 = backbones.get("vgg16")


def arrays_of(seed=0):
  """The tensors of a network of two convolutions as torch would name them."""
  rng = np.random.default_rng(seed)
  shapes = {"net.0.weight": (4, 3, 3, 3), "net.0.bias": (4,), "net.2.weight": (8, 4, 3, 3), "net.2.bias": (8,)}
  shapes |= {"top.weight": (10, 8), "top.bias": (10,)}
  return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


ARRAYS = arrays_of()
BYTES = safetensors.numpy.save(ARRAYS)
SHA256 = hashlib.sha256(BYTES).hexdigest()
LAYERS = {"block1_conv1": "net.0", "block2_conv1": "net.2"}


def layout(title="the small set", checksum=f"sha256:{SHA256}", sources=("torch:small.pth", "hf:someone/small/m.bin")):
  places = {}
  for ours, theirs in LAYERS.items():
    places[f"{ours}/kernel"] = Place(f"{theirs}.weight", ARRAYS[f"{theirs}.weight"].shape, vgg.from_oihw)
    places[f"{ours}/bias"] = Place(f"{theirs}.bias", ARRAYS[f"{theirs}.bias"].shape)
  unused = {name: ARRAYS[name].shape for name in ("top.weight", "top.bias")}
  return Layout(title, places, unused, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), checksum, sources)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  """An empty home, without anything that says where weights lie."""
  for variable in ("TORCH_HOME", "KERAS_HOME", "HF_HOME", "HF_HUB_CACHE", published.FOLDER):
    monkeypatch.delenv(variable, raising=False)
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
  return tmp_path


@pytest.fixture
def small(monkeypatch):
  """The smallest backbone, published: in every kind of place."""
  sources = ("torch:small.pth", "keras:small.h5", "package:small-weights/small_weights/w.bin", "hf:someone/small/m.bin")
  spec = dataclasses.replace(backbones.get("vgg_thin"), layouts=(layout(sources=sources),), published="small.pth")
  monkeypatch.setitem(backbones.SPECS, spec.name, spec)
  return spec


def put(path, content=BYTES):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  return path


def put_package(root):
  """What pip leaves of a package, without its code."""
  put(root / "small_weights-1.0.dist-info" / "METADATA", b"Metadata-Version: 2.1\nName: small-weights\nVersion: 1.0\n")
  return put(root / "small_weights" / "w.bin")


def put_hub(root):
  kept = root / "models--someone--small"
  put(kept / "refs" / "main", b"abc")
  return put(kept / "snapshots" / "abc" / "m.bin")


def test_a_file_is_taken_from_the_first_place_that_has_it(home, small, monkeypatch):
  own = put(home / "own" / "any-name")
  put(home / "own" / "README.txt", b"weights\n")
  put(home / "own" / "other.bin", safetensors.numpy.save({"w": np.zeros(3, np.float32)}))
  monkeypatch.setenv(published.FOLDER, str(home / "own"))
  monkeypatch.syspath_prepend(home / "site")
  torch, keras = home / ".cache/torch/hub/checkpoints/small.pth", home / ".keras/models/small.h5"
  wanted = [own, put(torch), put(keras), put_package(home / "site"), put_hub(home / ".cache/huggingface/hub")]
  for path in wanted:
    assert published.find("imagenet", small) == path
    assert published.find("hf:someone/small/m.bin", small) == wanted[-1]
    path.unlink()
  assert published.find("imagenet", small, sha256=SHA256) is None


def test_the_variables_of_the_other_tools_are_respected(home, small, monkeypatch):
  for variable, inside, place in (
    ("TORCH_HOME", "hub/checkpoints/small.pth", put),
    ("KERAS_HOME", "models/small.h5", put),
    ("HF_HUB_CACHE", "", put_hub),
    ("HF_HOME", "hub", put_hub),
  ):
    with monkeypatch.context() as patched:
      patched.setenv(variable, str(home / variable))
      path = place(home / variable / inside)
      assert published.find("imagenet", small) == path


def test_of_several_own_files_the_best_layout_is_taken_whatever_their_names(home, monkeypatch):
  rng, kernels = np.random.default_rng(0), vgg.convolutions(vgg.BLOCKS["vgg16"])
  layers = {
    name: {"kernel": rng.random(shape, np.float32), "bias": rng.random(shape[-1:], np.float32)}
    for name, shape in kernels.items()
  }
  monkeypatch.setenv(published.FOLDER, str(home / "own"))
  safetensors.numpy.save_file(torch_names(layers), put(home / "own" / "a.safetensors"))
  assert published.find("imagenet", VGG16).name == "a.safetensors"
  write_keras(home / "own" / "b.h5", layers)  # before the bare convolutions in the list
  assert published.find("imagenet", VGG16).name == "b.h5"
  (home / "own" / "b.h5").unlink()
  converted = files.read(home / "own" / "a.safetensors")
  (home / "own" / "a.safetensors").unlink()
  files.write(home / "own" / "c.safetensors", converted)  # its own conversion
  files.write(home / "own" / "e.safetensors", converted._replace(title=VGG16.layouts[3].title + "; changed"))
  inner(home / "own" / "d.safetensors")  # of a small network
  assert published.find("imagenet", VGG16).name == "e.safetensors"
  (home / "own" / "e.safetensors").unlink()
  assert published.find("imagenet", VGG16).name == "c.safetensors"


def test_a_file_that_is_not_the_published_one_is_refused(home, small):
  path = put(home / ".cache/torch/hub/checkpoints/small.pth", BYTES[:-1])
  with pytest.raises(UserError, match=rf"small\.pth is not the small set as published, whose sha256 is {SHA256}"):
    published.find("imagenet", small)
  path.write_bytes(BYTES)
  assert published.find("imagenet", small) == path


def test_without_a_checksum_torch_s_names_tell_it(home, small):
  named = f"torch:small-{SHA256[:8]}.pth"
  spec = dataclasses.replace(small, layouts=(layout(checksum="", sources=(named, "torch:small-1.pth")),))
  other = put(home / ".cache/torch/hub/checkpoints/small-1.pth", BYTES[:-1])
  assert published.find("imagenet", spec) == other  # not known, not checked
  path = put(home / ".cache/torch/hub/checkpoints" / named.removeprefix("torch:"))
  assert published.find("imagenet", spec) == path
  path.write_bytes(BYTES[:-1])
  with pytest.raises(UserError, match=f"is not the small set as published, whose sha256 is {SHA256[:8]}:"):
    published.find("imagenet", spec)


def test_where_nothing_is_there_every_way_is_said(home, small, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
  with pytest.raises(UserError) as caught:
    published.find("imagenet", small)
  said = str(caught.value)
  assert "\n" not in said
  for part in (
    "no published weights of model.backbone=vgg_thin are on this machine",
    "pip install 'rmam_jax[hub]' is needed to fetch it",
    f"put small.pth into {home}/.cache/torch/hub/checkpoints",
    f"put small.h5 into {home}/.keras/models",
    "pip install small-weights",
    "hf:someone/small/m.bin",
    "RMAM_WEIGHTS",
    "--config.weights=FILE",
    "--config.weights=none",
  ):
    assert part in said
  monkeypatch.setenv(published.FOLDER, str(home / "own"))
  put(home / "own" / "cut.safetensors", BYTES[:99])
  with pytest.raises(UserError, match="no published weights"):
    published.find("imagenet", small)
  assert "not taken from RMAM_WEIGHTS: " in capsys.readouterr().out
  monkeypatch.setenv(published.FOLDER, str(home / "nowhere"))
  with pytest.raises(UserError, match=r"RMAM_WEIGHTS=.*nowhere cannot be read: No such file .* Set it to a folder"):
    published.find("imagenet", small)
  monkeypatch.undo()
  with pytest.raises(UserError, match=r"no weights are published for model\.backbone=vgg_thin"):
    published.find("imagenet", backbones.get("vgg_thin"))
  for name in ("hf:small", "hf:a/b/../../c", "hf:a b/c"):
    with pytest.raises(UserError, match=r"a file of the Hugging Face hub is hf:OWNER/REPO or hf:OWNER/REPO/FILE"):
      published.find(name, VGG16)


HUB_FILES = {"/someone/small/resolve/main/m.bin": BYTES, "/someone/old/resolve/main/pytorch_model.bin": BYTES}


class Hub(http.server.BaseHTTPRequestHandler):
  """A hub with two repositories, each with one file; `someone/secret` asks for consent."""

  def do_HEAD(self, content=None):
    content = HUB_FILES.get(self.path)
    repository = "/".join(self.path.split("/")[1:3])
    self.send_response(200 if content else 403 if repository == "someone/secret" else 404)
    if content is None:
      kind = {"someone/small": "EntryNotFound", "someone/old": "EntryNotFound", "someone/secret": "GatedRepo"}
      self.send_header("X-Error-Code", kind.get(repository, "RepoNotFound"))
    self.send_header("X-Repo-Commit", "a" * 40)
    self.send_header("ETag", f'"{SHA256}"')
    self.send_header("Content-Length", str(len(content or b"")))
    self.end_headers()
    return content

  def do_GET(self):
    self.wfile.write(self.do_HEAD() or b"")

  def log_message(self, *_):
    pass


@pytest.fixture
def hub():
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  yield f"http://127.0.0.1:{server.server_port}"
  server.shutdown()
  thread.join()
  server.server_close()


FETCH = """
import importlib, sys
from rmam_jax.runtime.errors import UserError
module, function, *names = sys.argv[1:]
find = getattr(importlib.import_module(module), function)
for name in names:
  try:
    print(find(name))
  except UserError as error:
    print("UserError", error)
"""


def fetch(*names, find=published.of_hub, **environment):
  """Each in turn, in a process of its own, since the hub's library reads the environment once: path or error."""
  command = [sys.executable, "-c", FETCH, find.__module__, find.__name__, *names]
  said = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
  assert said.returncode == 0, said.stderr
  return said.stdout.splitlines()


@pytest.mark.oracle
def test_files_of_the_hub_are_fetched_once(home, hub):
  pytest.importorskip("huggingface_hub")
  names = ["hf:someone/small/m.bin", "hf:someone/old", "hf:someone/small", "hf:no/such", "hf:someone/secret"]
  small, old, *errors = fetch(*names, HF_ENDPOINT=hub, HF_HUB_DISABLE_XET="1")
  assert small == f"{home}/.cache/huggingface/hub/models--someone--small/snapshots/{'a' * 40}/m.bin"
  assert pathlib.Path(small).read_bytes() == BYTES
  assert pathlib.Path(old).name == "pytorch_model.bin"
  assert errors == [
    "UserError hf:someone/small holds no model.safetensors and no pytorch_model.bin: name a file that it has,"
    " --config.weights=hf:someone/small/FILE",
    "UserError hf:no/such: the hub has no such repository, or it is private, which needs `hf auth login`",
    "UserError hf:someone/secret asks for consent: agree to its terms on its page, then `hf auth login`",
  ]
  again, offline = fetch(names[0], "hf:no/such", HF_HUB_OFFLINE="1")
  assert again == small
  assert offline == (
    "UserError hf:no/such/model.safetensors is not here and cannot be fetched from the Hugging Face hub (HF_HUB_OFFLINE"
    " is set)"
  )
  again, unreachable = fetch(names[0], "hf:no/such", HF_ENDPOINT="http://127.0.0.1:9")
  assert again == small
  assert unreachable.startswith("UserError hf:no/such/model.safetensors is not here and cannot be fetched from")


def test_the_command_lists_and_fetches(home, small, capsys, monkeypatch):
  from rmam_jax.commands import weights

  path = put(home / ".cache/torch/hub/checkpoints/small.pth")
  weights.show_places()
  rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
  assert ["vgg_thin", "torch:small.pth", str(path)] in rows
  assert ["vgg_thin", "hf:someone/small/m.bin", "not here"] in rows
  assert ["vgg16", "torch:vgg16-397923af.pth", "not here"] in rows
  monkeypatch.setattr(weights, "_OUT", argparse.Namespace(value=None))
  weights.main(["weights", "fetch", "vgg_thin"])
  assert capsys.readouterr().out == f"{path}\n"
  with pytest.raises(SystemExit, match=r"error: model\.backbone must be one of .*vgg_thin"):
    weights.main(["weights", "fetch", "vgg_thick"])


@pytest.mark.slow
def test_a_run_remembers_which_file_the_name_was(home, small, data_root, capsys):
  path = put(home / ".cache/torch/hub/checkpoints/small.pth")
  config = tiny_config(data_root, weights="imagenet")
  config.stage_one.epochs = config.stage_two.epochs = 1
  loop.train(config, home / "run")
  said = capsys.readouterr().out
  assert f"imagenet is {path}" in said
  assert "stage_one begins with the backbone of imagenet: the small set" in said
  saved = json.loads((home / "run" / "config.json").read_text())
  assert (saved["weights"], saved["weights_digest"]) == ("imagenet", SHA256)
  assert saved["model"]["pixel_mean"] == [1, 2, 3]
  exported.export(home / "run", home / "out")
  assert exported.load(home / "out").config.weights == "imagenet"
  hub = tiny_config(data_root, weights="hf:someone/small/m.bin")
  assert exported._without_paths(hub).weights == "hf:someone/small/m.bin"

  # Another file is found first now: the run still goes on with its own, wherever that is, and without it as with a path.
  other = safetensors.numpy.save(arrays_of(seed=1))
  os.environ[published.FOLDER] = str(put(home / "own" / "a.bin", other).parent)
  try:
    new, _ = initial_weights.resolve(config)
    assert new.weights_digest == hashlib.sha256(other).hexdigest()
    loop.train(config, home / "run")
    assert f"imagenet is {path}" in capsys.readouterr().out
    path.rename(home / "own" / "b.bin")
    loop.train(config, home / "run")
    assert f"imagenet is {home / 'own' / 'b.bin'}" in capsys.readouterr().out
    (home / "own" / "b.bin").unlink()
    loop.train(config, home / "run")
    assert "is gone; the run goes on from its checkpoints" in capsys.readouterr().out
    shutil.rmtree(home / "run" / "checkpoints" / "stage_two")
    resolved, first = initial_weights.resolve(config, home / "run")
    assert (resolved.weights_digest, first.title) == (SHA256, "the small set")  # its conversion
    shutil.rmtree(home / ".cache" / "rmam_jax")
    with pytest.raises(UserError, match=r"imagenet, which .* began with, is gone, and a stage that still needs it"):
      loop.train(config, home / "run")
  finally:
    del os.environ[published.FOLDER]


def test_weights_of_another_backbone_say_whose_they_are(home, small):
  config = tiny_config("", weights=str(put(home / "small.bin")))
  config.model.backbone = "vgg16"
  config.model.vgg.blocks = ()
  with pytest.raises(
    UserError,
    match=r"small\.bin holds the small set and does not fit model\.backbone 'vgg16': block1_conv1/bias is \(4,\) there"
    r" and \(64,\) in the configuration\. It fits --config\.model\.backbone=vgg_thin",
  ):
    initial_weights.resolve(config)
  put(home / "other.bin", safetensors.numpy.save({f"blocks.{n}.w": np.zeros(3, np.float32) for n in range(9)}))
  with pytest.raises(UserError, match=r"other\.bin holds no published weights of vgg16, vgg_thin.*: .* blocks\.0\.w"):
    files.read(home / "other.bin")


def named(shapes):
  """Tensors that nobody reads."""
  return {name: Entry(tuple(shape), "float32", None) for name, shape in shapes.items()}


def vgg_of(blocks, norm=False, classes=1000):
  """The tensors of torchvision's network, counted anew: its layers one after the other."""
  shapes, index, channels = {}, 0, 3
  for widths in blocks:
    for width in widths:
      shapes |= {f"features.{index}.weight": (width, channels, 3, 3), f"features.{index}.bias": (width,)}
      if norm:
        shapes |= {
          f"features.{index + 1}.{role}": (width,) for role in ("weight", "bias", "running_mean", "running_var")
        }
        shapes[f"features.{index + 1}.num_batches_tracked"] = ()
      index, channels = index + (3 if norm else 2), width
    index += 1
  for number, (out, into) in {0: (4096, 25_088), 3: (4096, 4096), 6: (classes, 4096)}.items():
    shapes |= {f"classifier.{number}.weight": (out, into), f"classifier.{number}.bias": (out,)}
  return shapes


SIXTEEN = vgg.BLOCKS["vgg16"]
NINETEEN = (*SIXTEEN[:2], *(4 * block[:1] for block in SIXTEEN[2:]))
ROLES = ("kernel", "bias")
PLACE = pathlib.Path("x.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "backbone."])
@pytest.mark.parametrize(
  ("shapes", "message"),
  [
    (
      {
        f"block{b}_conv{c}/{role}": (1,)
        for b, n in enumerate((2, 2, 4, 4, 4), 1)
        for c in range(1, n + 1)
        for role in ROLES
      },
      "this is Keras' VGG-19; ",
    ),
    (vgg_of(SIXTEEN, norm=True), r"this is VGG-16 with batch normalisation; model\.backbone=vgg16 has none"),
    (vgg_of(NINETEEN), r"this is VGG-19; model\.backbone=vgg16 is VGG-16"),
    (vgg_of(NINETEEN, norm=True, classes=20), "this is VGG-19 with batch normalisation"),
    (vgg_of([block[:1] for block in SIXTEEN[:2]] + [block[:2] for block in SIXTEEN[2:]]), "this is VGG-11;"),
  ],
)
def test_relatives_are_named(shapes, message, prefix):
  with pytest.raises(UserError, match=rf"x\.pth: {message}"):
    files.identify(named({prefix + name: shape for name, shape in shapes.items()}), PLACE)


def test_a_wrong_tensor_is_named_still():
  for change, message in (
    (lambda shapes: shapes.pop("features.5.bias"), r"features\.5\.bias \(128,\) is missing"),
    (
      lambda shapes: shapes.update({"features.5.bias": (64,)}),
      r"features\.5\.bias has the shape \(64,\), not \(128,\)",
    ),
    (lambda shapes: shapes.update({"extra": (1,)}), r"extra \(1,\) is not expected there"),
    (lambda shapes: shapes.update({"features.30.bias": (1,)}), r"features\.30\.bias \(1,\) is not expected there"),
  ):
    shapes = vgg_of(SIXTEEN)
    change(shapes)
    with pytest.raises(UserError, match=message):
      files.identify(named(shapes), PLACE)


def without(shapes, *prefixes):
  return {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
  ("shapes", "title", "fc6"),
  [
    (vgg_of(SIXTEEN), "torchvision's VGG-16", True),
    (
      vgg_of(SIXTEEN, classes=20),
      "torchvision's VGG-16; its own classifier.6.weight (20, 4096) and 1 more are not taken",
      True,
    ),
    (
      without(vgg_of(SIXTEEN), "classifier")
      | {"pre_logits.fc1.weight": (4096, 512, 7, 7), "pre_logits.fc1.bias": (4096,)}
      | {"pre_logits.fc2.weight": (4096, 4096, 1, 1), "pre_logits.fc2.bias": (4096,)}
      | {"head.fc.weight": (20, 4096), "head.fc.bias": (20,)},
      "torchvision's VGG-16 as timm names it (vgg16.tv_in1k); its own head.fc.weight (20, 4096) and 1 more are not taken",
      True,
    ),
    (
      without(vgg_of(SIXTEEN), "classifier.6"),
      "torchvision's VGG-16; classifier.6.weight and 1 more are absent",
      True,
    ),
    (without(vgg_of(SIXTEEN), "classifier"), "torchvision's VGG-16, convolutions only", False),
    (
      without(vgg_of(SIXTEEN), "classifier") | {"classifier.weight": (5, 512), "classifier.bias": (5,)},
      "torchvision's VGG-16, convolutions only; its own classifier.weight (5, 512) and 1 more are not taken",
      False,
    ),
    (  # a smaller one, of the published names
      vgg_of(SIXTEEN) | {"classifier.0.weight": (256, 25_088), "classifier.0.bias": (256,)},
      "torchvision's VGG-16; its own classifier.0.weight (256, 25088) and 1 more are not taken",
      False,
    ),
    (
      {f"backbone.{name}": shape for name, shape in without(vgg_of(SIXTEEN), "classifier").items()}
      | {"neck.weight": (9, 9)},
      "torchvision's VGG-16, convolutions only; its own neck.weight (9, 9) is not taken",
      False,
    ),
    (
      vgg_of(SIXTEEN) | {"features.0.num_batches_tracked": ()},
      "torchvision's VGG-16",
      True,
    ),
  ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_a_classifier_of_one_s_own_is_left_and_said(shapes, title, fc6, prefix):
  found = files.identify(named({prefix + name: shape for name, shape in shapes.items()}), PLACE)
  assert found.title == title.replace("own ", f"own {prefix}")
  assert ("fc6/kernel" in found.places) == fc6
  assert len(found.places) == (28 if fc6 else 26)
  assert all(found.entries[place.source].shape == place.shape for place in found.places.values())


def test_of_two_sets_with_the_same_names_shapes_and_then_the_checksum_decide(home, monkeypatch):
  first, second = layout("the first", "sha256:" + "0" * 64), layout("the second")
  wide = layout("the wide")
  wide.places["block2_conv1/bias"] = Place("net.2.bias", (16,))
  spec = dataclasses.replace(backbones.get("vgg_thin"), layouts=(wide, first, second))
  monkeypatch.setitem(backbones.SPECS, spec.name, spec)
  assert files.read(put(home / "a.bin")).title == "the second"
  assert files.read(put(home / "b.bin", safetensors.numpy.save(arrays_of(seed=1)))).title == "the first"


WRAPPED = [
  lambda state: {"state_dict": state},
  lambda state: {
    "epoch": 3,
    "model": state,
    "args": argparse.Namespace(rate=0.1, names=["a"], frozen={"b"}),
    "best": np.float64(3.5),
  },
  lambda state: {"model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "loss": 0.5},
  lambda state: {"state_dict": {f"model.backbone.{name}": tensor for name, tensor in state.items()}},
  lambda state: {"model": {"state_dict": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}}},
]


@pytest.mark.oracle
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_what_torch_saves_around_a_state_dict_is_taken_off(wrap, zipped, small, home):
  torch = pytest.importorskip("torch")
  state = {name: torch.tensor(array) for name, array in ARRAYS.items()}
  module = torch.nn.Linear(3, 2)
  optimizer = torch.optim.Adam(module.parameters())
  module(torch.ones(1, 3)).sum().backward()
  optimizer.step()
  wrapped = {"optimizer": optimizer.state_dict(), **wrap(state), "scheduler": {"base_lrs": [0.1], "last_epoch": 3}}
  wrapped["itself"] = [wrapped]
  schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])  # whose milestones are a Counter
  wrapped |= {"schedule": schedule.state_dict(), "random": torch.get_rng_state(), "on": torch.device("cpu")}
  torch.save(wrapped, home / "x.pth", _use_new_zipfile_serialization=zipped)
  weights = files.read(home / "x.pth")
  assert weights.title == "the small set"
  for ours, theirs in LAYERS.items():
    np.testing.assert_array_equal(weights.tensors[f"{ours}/kernel"], ARRAYS[f"{theirs}.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(weights.tensors[f"{ours}/bias"], ARRAYS[f"{theirs}.bias"])


@pytest.mark.parametrize("beside", ["args", "state_dict", "optimizer"])
@pytest.mark.parametrize("write", [zip_layout, legacy_layout])
def test_harm_anywhere_in_a_checkpoint_is_refused_before_anything_runs(write, beside, home):
  harmful = pickle.dumps({"state_dict": {}, beside: [argparse.Namespace(x={"y": Harmful(home / "made")})]}, 2)
  pickle.loads(harmful)
  (home / "made").rmdir()  # the fixture is armed
  with pytest.raises(UserError, match=r"refused: its pickle .*refers to posix\.mkdir.*nothing of it was run"):
    files.read(write(home / "x.pth", harmful))
  assert not (home / "made").exists()


def test_a_checkpoint_within_itself_ends(home):
  around = {}
  around["model"] = around
  with pytest.raises(UserError, match="has an entry that is not a tensor, 'model'"):
    files.read(zip_layout(home / "x.pth", pickle.dumps(around, 2)))
  with pytest.raises(UserError, match="has an entry that is not a tensor, 'model'"):
    files.read(legacy_layout(home / "y.pth", pickle.dumps(around, 2), pickle.dumps([], 2)))


def _real_file():
  if not REAL:
    pytest.skip(f"{published.FOLDER} names no folder of weights")
  os.environ[published.FOLDER] = REAL
  try:
    found = [path for path in published._own_files() if path.suffix in (".safetensors", ".pth", ".bin")]
    for path in found:
      try:
        with files.open_weights(path) as (entries, _):
          if "features.0.weight" in files.identify(entries, path, [VGG16]).entries:
            return path
      except UserError:
        continue
  finally:
    del os.environ[published.FOLDER]
  pytest.skip(f"{REAL} holds no VGG-16 of torchvision")


@pytest.mark.oracle
def test_conv5_3_of_photographs_by_the_published_weights_equals_torch():
  torch = pytest.importorskip("torch")
  from PIL import Image
  from sklearn import datasets

  path = _real_file()
  weights = files.read(path)
  # torchvision's own first numbers: the weights are the published ones.
  np.testing.assert_allclose(
    weights.tensors["block1_conv1/kernel"][0, :, 0, 0], (-0.5537306, 0.1427047, 0.5289615), 1e-6
  )
  module = _torch_vgg(torch)
  with files.open_weights(path) as (entries, _):
    read = files.identify(entries, path).entries
    module.load_state_dict({name: torch.tensor(read[name].read()) for name in module.state_dict()})
  mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
  photographs = datasets.load_sample_images()
  assert len(photographs.images) == 2
  for image in photographs.images:
    images = np.asarray(Image.fromarray(image).resize((320, 224)), np.float32)[None]
    with torch.no_grad():
      wanted = module(((torch.tensor(images) / 255 - mean) / std).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    found = conv5_3(weights, images)
    difference = np.abs(found - wanted).max() / np.abs(wanted).max()
    print(f"conv5_3 {found.shape}: largest {np.abs(wanted).max():.3f}, difference {difference:.2e} of it")
    assert difference < 1e-4
