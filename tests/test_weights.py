"""Weights: published sets against Keras and torch, files that are wrong or mean harm, and models that travel."""

import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import zipfile

import h5py
import jax
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
from test_training import tiny_config

import rmam_jax
from configs import digits, voc
from rmam_jax import recognizer
from rmam_jax.backbones import vgg
from rmam_jax.config import from_fields, get_config
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import exported, initial_weights, loop, stages
from rmam_jax.weights import files as weight_files
from rmam_jax.weights import tensors

ROOT = pathlib.Path(__file__).parent.parent
SHAPES = vgg.convolutions(vgg.BLOCKS["vgg16"])
STAGES = ((4,), (8,))  # of the tiny runs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "rmam_jax"


@pytest.fixture(scope="module")
def convolutions():
  """Random VGG-16 kernels (HWIO) and biases that keep activations in range."""
  rng = np.random.default_rng(0)
  return {
    layer: {
      "kernel": rng.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape).astype(np.float32),
      "bias": rng.normal(0, 0.1, shape[-1:]).astype(np.float32),
    }
    for layer, shape in SHAPES.items()
  }


def write_keras(path, layers):
  """The published layout; layers without weights are named in it too."""
  with h5py.File(path, "w") as file:
    names = ["input_1"]
    for layer in layers:
      names += [layer, f"{layer[:6]}_pool"] if layer in ("block1_conv2", "block5_conv3") else [layer]
    file.attrs["layer_names"] = [name.encode() for name in names]
    file.attrs["backend"] = b"tensorflow"
    for name in names:
      group = file.create_group(name)
      roles = {f"{name}_W_1:0": "kernel", f"{name}_b_1:0": "bias"} if name in layers else {}
      group.attrs["weight_names"] = [weight.encode() for weight in roles]
      for weight, role in roles.items():
        group.create_dataset(weight, data=layers[name][role])
  return path


def torch_names(convolutions):
  """The same tensors by torchvision's names and in its order of axes."""
  indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
  named = {}
  for index, layer in zip(indices, convolutions.values(), strict=True):
    named[f"features.{index}.weight"] = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
    named[f"features.{index}.bias"] = layer["bias"]
  return named


def backbone_of(weights):
  return initial_weights._from_file(weights).backbone


def test_keras_first_kernel_is_turned_to_red_green_blue_and_the_rest_stays(tmp_path, convolutions):
  weights = weight_files.read(write_keras(tmp_path / "notop.h5", convolutions))
  for layer, roles in backbone_of(weights).items():
    kernel = convolutions[layer]["kernel"]
    np.testing.assert_array_equal(roles["kernel"], kernel[:, :, [2, 1, 0]] if layer == "block1_conv1" else kernel)
    np.testing.assert_array_equal(roles["bias"], convolutions[layer]["bias"])
  assert (weights.pixel_mean, weights.pixel_std) == ((123.68, 116.779, 103.939), (1, 1, 1))
  assert len(weights.tensors) == 26


def test_plain_safetensors_with_torchvision_s_names(tmp_path, convolutions):
  safetensors.numpy.save_file(torch_names(convolutions), tmp_path / "vgg.safetensors")
  weights = weight_files.read(tmp_path / "vgg.safetensors")
  for layer, roles in backbone_of(weights).items():
    np.testing.assert_array_equal(roles["kernel"], convolutions[layer]["kernel"])
  np.testing.assert_allclose(weights.pixel_mean, (123.675, 116.28, 103.53))
  np.testing.assert_allclose(weights.pixel_std, (58.395, 57.12, 57.375))


def test_dense_rows_go_from_torch_s_order_to_ours_by_hand():
  # One output that reads two channels of 1x2 places; torch flattens channel first.
  kernel = np.array([[1.0, 2.0, 10.0, 20.0]])  # channel 0: 1 2; channel 1: 10 20
  np.testing.assert_array_equal(vgg.from_chw_rows(kernel, (1, 2)), [[1], [10], [2], [20]])
  as_convolution = kernel.reshape(1, 2, 1, 2)
  np.testing.assert_array_equal(vgg.from_chw_rows(as_convolution, (1, 2)), [[1], [10], [2], [20]])


def test_published_sets_have_their_numbers_of_parameters():
  counts = [sum(int(np.prod(shape)) for shape in layout.shapes.values()) for layout in vgg.LAYOUTS]
  assert counts == [138_357_544, 138_357_544, 138_357_544, 14_714_688, 14_714_688]  # the published numbers


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda layers: layers.pop("block3_conv2"), r"x\.h5: block3_conv2/kernel \(3, 3, 256, 256\) is missing"),
    (lambda layers: layers.update(extra=layers["block1_conv1"]), r"x\.h5: extra/bias \(64,\) is not expected there"),
    (
      lambda layers: layers.update(block1_conv2={**layers["block1_conv2"], "bias": np.zeros(63, np.float32)}),
      r"x\.h5: block1_conv2/bias has the shape \(63,\), not \(64,\)",
    ),
    (
      lambda layers: layers.update(block1_conv2={**layers["block1_conv2"], "bias": np.full(64, np.nan, np.float32)}),
      r"x\.h5: block1_conv2/bias holds values that are not finite",
    ),
    (
      lambda layers: layers.update(block1_conv2={**layers["block1_conv2"], "bias": np.zeros(64, np.int8)}),
      r"x\.h5: block1_conv2/bias is of type int8",
    ),
  ],
)
def test_a_tensor_that_is_wrong_is_named_with_its_file(change, message, tmp_path, convolutions, cache):
  layers = dict(convolutions)
  change(layers)
  with pytest.raises(UserError, match=message):
    weight_files.read(write_keras(tmp_path / "x.h5", layers))
  assert not cache.exists()


def _link(file, link):
  del file["conv"]["W"]
  file["conv"]["W"] = link


def _replace(file, **options):
  del file["conv"]["W"]
  file["conv"].create_dataset("W", **options)


def _virtual(file):
  del file["conv"]["W"]
  layout = h5py.VirtualLayout((4,), "f4")
  layout[:] = h5py.VirtualSource("elsewhere.h5", "W", (4,))
  file["conv"].create_virtual_dataset("W", layout)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda f: _link(f, h5py.ExternalLink("/etc/elsewhere.h5", "/W")), "refused: /conv/W is a link"),
    (lambda f: _link(f, h5py.SoftLink("/conv/b")), "refused: /conv/W is a link"),
    (lambda f: _replace(f, data=np.zeros(1 << 20, "f4"), compression="gzip"), "refused: conv/kernel is compressed"),
    (lambda f: _replace(f, shape=(1 << 38,), dtype="f4"), "claims values that the file does not hold"),
    (
      lambda f: _replace(f, shape=(4,), dtype="f4", external=[("/etc/hostname", 0, 16)]),
      "keeps its values in another file",
    ),
    (_virtual, "keeps its values in another file"),
    (lambda f: f["conv"].attrs.create("weight_names", [b"W"]), "has 1 tensors, not a kernel and a bias"),
    (lambda f: f["conv"].attrs.create("weight_names", [b"W", b"V"]), "/conv/V is missing"),
    (lambda f: f.create_group("hidden"), "hidden is not among its layer_names"),
    (lambda f: f.attrs.pop("layer_names"), "has no layer_names"),
  ],
)
def test_an_h5_that_is_not_plain_is_refused_before_memory_is_taken(change, message, tmp_path):
  path = tmp_path / "x.h5"
  with h5py.File(path, "w") as file:
    file.attrs["layer_names"] = [b"conv"]
    file.create_group("conv").attrs["weight_names"] = [b"W", b"b"]
    file["conv"]["W"] = file["conv"]["b"] = np.zeros(4, np.float32)
    change(file)
  assert _peak_of(lambda: _refused(path, message)) < 50e6


def _refused(path, message):
  with pytest.raises(UserError, match=message) as caught:
    weight_files.read(path)
  assert str(path) in str(caught.value)


def _peak_of(function):
  tracemalloc.start()
  try:
    function()
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


class Harmful:
  """Makes a file when unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (os.mkdir, (str(self.path),))


MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True}


def zip_layout(path, pickled, members=(), compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("vgg/data.pkl", pickled)
    for name, content in members:
      archive.writestr(f"vgg/{name}", content)
  return path


def legacy_layout(path, pickled, rest=b""):
  path.write_bytes(b"".join(pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, SYSTEM)) + pickled + rest)
  return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("layout", [zip_layout, legacy_layout])
def test_a_pickle_that_means_harm_is_refused_before_anything_runs(layout, protocol, tmp_path):
  made = tmp_path / "made"
  harmful = pickle.dumps({"features.0.weight": Harmful(made)}, protocol)
  pickle.loads(harmful)
  assert made.exists()  # the fixture is armed
  made.rmdir()
  _refused(layout(tmp_path / "x.pth", harmful), "refused: its pickle .*nothing of it was run")
  assert not made.exists()


@pytest.mark.parametrize("part", [0, 1, 2])
def test_harm_in_the_pickles_before_the_state_dict_is_refused_too(part, tmp_path):
  made = tmp_path / "made"
  values = [MAGIC, PROTOCOL, SYSTEM]
  values[part] = Harmful(made)
  (tmp_path / "x.pth").write_bytes(b"".join(pickle.dumps(value, 2) for value in values))
  _refused(tmp_path / "x.pth", "refused: its pickle .*refers to posix.mkdir" if part else "not a state dict of torch")
  assert not made.exists()


def two_of_one_storage(*sizes):
  """A state dict with two tensors, `w1` and `w2`, that disagree over the size of their storage."""
  first, second = (storage_pickle(size=size, name=f"w{number}") for number, size in enumerate(sizes, start=1))
  return first[:-2] + second[first.index(b"(X\x02") + 1 :]  # the items of both within one pair of brackets


def storage_pickle(kind=b"torch\nFloatStorage\n", shape=(2,), size=2, stride=(1,), offset=0, name="w"):
  """A state dict with one tensor, written instruction by instruction as torch writes it."""

  def number(value):
    return pickle.dumps(value, 2)[2:-1]

  def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"

  def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()

  storage = b"(" + text("storage") + b"c" + kind + text("0") + text("cpu") + number(size) + b"tQ"
  hooks = b"\x89" + b"ccollections\nOrderedDict\n)R"
  tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(shape) + numbers(stride) + hooks
  return b"\x80\x02ccollections\nOrderedDict\n)R(" + text(name) + tensor + b"tRu."


def by_python_2(pickled):
  """The same state dict as Python 2 wrote it: its items in a list of pairs."""
  return pickled.replace(b"OrderedDict\n)R(", b"OrderedDict\n]](", 1).replace(b"tRu.", b"tRea\x85R.")


def as_parameter(pickled):
  """The same state dict with its tensor within a parameter."""
  wrapped = pickled.replace(b"ctorch._utils\n_reb", b"ctorch.nn.parameter\nParameter\nctorch._utils\n_reb")
  return wrapped.replace(b"Ru.", b"R\x85Ru.")


DOUBLED = b")" + 24 * b"q\x00h\x00\x86"  # a tuple that holds itself twice, and so on: 16 million in 120 bytes
LONG = b"](" + 1_000 * b"]X\x01\0\0\0aaNa" + b"e"  # a list of pairs
KEYS = pickle.dumps(["0"], 2)
TWO = np.array([1, 2], "<f4").tobytes()


@pytest.mark.parametrize(
  ("write", "message"),
  [
    (lambda p: zip_layout(p, storage_pickle(shape=(3,))), r"w \(3,\) reaches past its storage of 2 elements"),
    (lambda p: zip_layout(p, storage_pickle(offset=1)), "reaches past its storage"),
    (lambda p: zip_layout(p, storage_pickle(stride=(-1,))), "w has no proper shape"),
    (lambda p: zip_layout(p, storage_pickle(kind=b"torch\nQInt8Storage\n")), "refers to torch.QInt8Storage"),
    (lambda p: zip_layout(p, storage_pickle(), [("byteorder", "big")]), "byte order is not little-endian"),
    (
      lambda p: zip_layout(p, storage_pickle(), compression=zipfile.ZIP_DEFLATED),
      "refused: vgg/data.pkl is compressed",
    ),
    (lambda p: zip_layout(p, pickle.dumps([1], 2)), "holds no state dict"),
    (lambda p: zip_layout(p, pickle.dumps({"w": 1}, 2)), "has an entry that is not a tensor"),
    (lambda p: zip_layout(p, b"X\xff\xff\xff\xffabc."), "refused: its pickle is not one of a state dict"),
    (lambda p: zip_layout(p, b"\x80\x02]q\x00"), "refused: "),
    (
      lambda p: legacy_layout(p, storage_pickle(), KEYS + (2).to_bytes(8, "little") + TWO[:7]),
      "truncated in storage 0",
    ),
    (lambda p: legacy_layout(p, storage_pickle(size=1 << 40), KEYS + (1 << 40).to_bytes(8, "little")), "truncated"),
    (lambda p: legacy_layout(p, storage_pickle(), KEYS + (3).to_bytes(8, "little") + TWO), "another size"),
    (lambda p: legacy_layout(p, storage_pickle(), pickle.dumps([], 2)), "list of storages does not match its tensors"),
    (lambda p: zip_layout(p, storage_pickle(), [("data/0", TWO[:7])]), "storage 0 of w is of 7 bytes, not 8"),
    (lambda p: zip_layout(p, storage_pickle()), "storage 0 of w is missing"),
    (
      lambda p: legacy_layout(p, two_of_one_storage(2, 1 << 40), KEYS + (2).to_bytes(8, "little") + TWO),
      "w2 disagrees with earlier tensors on the size of storage 0",
    ),
    (lambda p: zip_layout(p, b"\x80\x02}" + DOUBLED + b"Ns."), "a key that is neither a text nor a number"),
    (lambda p: zip_layout(p, b"\x80\x02}(" + DOUBLED + b"Nu."), "a key that is neither a text nor a number"),
    (
      lambda p: zip_layout(p, b"\x80\x02ccollections\nOrderedDict\n](" + DOUBLED + b"N\x86e\x85R."),
      "a key that is neither a text nor a number",
    ),
    (
      lambda p: legacy_layout(p, storage_pickle(), b"\x80\x02]" + DOUBLED + b"a."),
      "list of storages does not match its tensors",
    ),
    (
      lambda p: zip_layout(
        p, b"\x80\x02ccollections\nOrderedDict\nq\x01" + LONG + b"q\x02" + 2_000 * b"h\x01h\x02\x85R" + b"."
      ),
      "holds no state dict",
    ),
    (lambda p: zip_layout(p, as_parameter(as_parameter(storage_pickle()))), "has an entry that is not a tensor, 'w'"),
    (lambda p: zip_layout(p, storage_pickle(shape=(1,) * 65, stride=(0,) * 65)), "w has no proper shape"),
    (lambda p: p.write_text("not found\n"), "not a state dict of torch, or truncated"),
    (lambda p: p.write_bytes(b""), "not a state dict of torch, or truncated"),
  ],
)
def test_a_pth_that_is_damaged_is_refused_before_memory_is_taken(write, message, tmp_path):
  write(tmp_path / "x.pth")
  assert _peak_of(lambda: _refused(tmp_path / "x.pth", message)) < 50e6


@pytest.mark.parametrize("form", [bytes, by_python_2, as_parameter])
@pytest.mark.parametrize("layout", [zip_layout, legacy_layout])
def test_the_hand_written_state_dict_is_read_in_both_layouts(layout, form, tmp_path):
  rest = [("data/0", TWO)] if layout is zip_layout else KEYS + (2).to_bytes(8, "little") + TWO
  with weight_files.open_weights(layout(tmp_path / "x.pth", form(storage_pickle()), rest)) as (entries, _):
    np.testing.assert_array_equal(entries["w"].read(), [1, 2])


def test_a_zip_that_claims_more_than_it_has_is_refused(tmp_path):
  path = zip_layout(tmp_path / "x.pth", storage_pickle(), [("data/0", TWO)])
  content = bytearray(path.read_bytes())
  at = content.rfind(b"PK\x01\x02")  # the directory's entry of data/0
  content[at + 20 : at + 28] = (0x7FFFFFFF).to_bytes(4, "little") * 2
  path.write_bytes(content)
  assert _peak_of(lambda: _refused(path, "claims more bytes than the file has")) < 50e6
  path.write_bytes(content[:100])
  _refused(path, "damaged or cut short .*: fetch it again")


def test_truncated_h5_and_safetensors_are_named(tmp_path, convolutions):
  path = write_keras(tmp_path / "x.h5", convolutions)
  os.truncate(path, path.stat().st_size // 2)
  _refused(path, "damaged or cut short .*truncated file.*: fetch it again")
  safetensors.numpy.save_file({"w": np.zeros(1000, np.float32)}, tmp_path / "x.safetensors")
  os.truncate(tmp_path / "x.safetensors", 500)
  _refused(tmp_path / "x.safetensors", "damaged or cut short .*: fetch it again")
  header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
  (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
  assert _peak_of(lambda: _refused(tmp_path / "x.safetensors", "damaged or cut short .*: fetch it again")) < 50e6


@pytest.mark.parametrize(("place", "value"), [(8, 1 << 40), (24, (1 << 64) - 16)])
def test_a_heap_on_which_hdf5_loops_for_ever_or_takes_all_memory_is_refused(place, value, tmp_path, convolutions):
  path = write_keras(tmp_path / "x.h5", {"block1_conv1": convolutions["block1_conv1"]})
  content = bytearray(path.read_bytes())
  heap = content.find(b"GCOL")  # its size, then its first object: index, uses, size
  content[heap + place : heap + place + 8] = value.to_bytes(8, "little")
  path.write_bytes(content)
  _refused(path, f"its heap at {heap} is not as long as it says")


def test_conversions_are_cached_by_digest_and_verified_when_read(tmp_path, convolutions, cache, capsys, monkeypatch):
  path = write_keras(tmp_path / "x.h5", convolutions)
  first = weight_files.read(path)
  (kept,) = cache.iterdir()
  assert kept.name == f"{weight_files.checksum(path)}.safetensors"
  with monkeypatch.context() as patched:
    patched.setattr(weight_files, "identify", None)  # a second conversion would call it
    again = weight_files.read(path)
  assert again._replace(tensors={}) == first._replace(tensors={})
  assert all((again.tensors[name] == array).all() for name, array in first.tensors.items())
  content = bytearray(kept.read_bytes())
  content[-2] ^= 1
  kept.write_bytes(content)
  repaired = weight_files.read(path)
  assert "does not have the digest that it states" in capsys.readouterr().out
  assert tensors.digest(repaired.tensors) == tensors.digest(first.tensors)
  assert len(list(cache.iterdir())) == 1


def inner(path, stages=STAGES, seed=0):
  """A small file of the inner form."""
  rng = np.random.default_rng(seed)
  arrays = {}
  for layer, shape in vgg.convolutions(stages).items():
    arrays[f"{layer}/kernel"] = rng.normal(0, 0.1, shape).astype(np.float32)
    arrays[f"{layer}/bias"] = rng.normal(0, 0.1, shape[-1:]).astype(np.float32)
  weights = weight_files.Weights("a test", arrays, (10.0, 20.0, 30.0), (2.0, 3.0, 4.0), f"{seed:064d}")
  weight_files.write(path, weights)
  return weights


def test_the_inner_form_comes_back_and_damage_is_seen(tmp_path):
  path = tmp_path / "x.safetensors"
  weights = inner(path)
  found = weight_files.read(path)
  assert found._replace(tensors={}) == weights._replace(tensors={})
  assert all((found.tensors[name] == array).all() for name, array in weights.tensors.items())
  weight_files.write(path, weights._replace(pixel_std=(1.0, 0.0, 1.0)))
  _refused(path, "pixel_std above 0")


def test_a_run_begins_with_the_file_and_takes_its_preprocessing(tmp_path, data_root, monkeypatch, capsys):
  weights = inner(tmp_path / "w.safetensors")
  config = tiny_config(data_root, **{"weights": str(tmp_path / "w.safetensors"), "stage_one.learning_rate": 0.0})
  config.stage_one.epochs = config.stage_two.epochs = 1
  folder = tmp_path / "run"
  loop.train(config, folder)
  assert "stage_one begins with the backbone of" in capsys.readouterr().out
  saved = ml_collections.ConfigDict(json.loads((folder / "config.json").read_text()))
  assert (list(saved.model.pixel_mean), list(saved.model.pixel_std)) == ([10, 20, 30], [2, 3, 4])
  assert saved.weights_digest == weights.digest
  from rmam_jax.training import checkpoints

  restored = checkpoints.StageCheckpoints(folder / "checkpoints" / "stage_one")
  stage = stages.build(saved, "stage_one", num_classes=10, num_records=160)
  like = jax.eval_shape(lambda: loop.step_lib.init_params(stage.model, jax.random.key(0), 64))
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  params, _ = restored.restore_best(checkpoints.abstract(like, sharding))
  restored.close()
  for name, array in weights.tensors.items():  # a rate of zero: as they were
    np.testing.assert_array_equal(tensors.flatten(params["backbone"])[name], array)

  # Gone, with every stage begun: the run goes on. Moved: it goes on. Another file: it does not.
  (tmp_path / "w.safetensors").rename(tmp_path / "moved.safetensors")
  loop.train(config, folder)
  assert "is gone; the run goes on from its checkpoints" in capsys.readouterr().out
  config.weights = str(tmp_path / "moved.safetensors")
  loop.train(config, folder)
  inner(tmp_path / "other.safetensors", seed=1)
  config.weights = str(tmp_path / "other.safetensors")
  with pytest.raises(UserError, match="belongs to another configuration; it differs in weights_digest"):
    loop.train(config, folder)
  config.weights = str(tmp_path / "nowhere.h5")
  with pytest.raises(UserError, match=r"there is no .*nowhere\.h5\. Give a safetensors file or the folder of"):
    loop.train(config, folder)
  # Before stage two has begun, it may be needed; the run goes on from where the file was moved.
  config.weights = str(tmp_path / "moved.safetensors")
  (tmp_path / "moved.safetensors").unlink()
  shutil.rmtree(folder / "checkpoints" / "stage_two")
  with pytest.raises(UserError, match="a stage that still needs it has not begun: put it back"):
    loop.train(config, folder)


def test_weights_that_do_not_fit_leave_no_workdir(tmp_path, data_root):
  inner(tmp_path / "w.safetensors", ((4,), (6,)))
  config = tiny_config(data_root, weights=str(tmp_path / "w.safetensors"))
  with pytest.raises(
    ValueError,
    match=r"does not fit model\.backbone 'vgg_thin': block2_conv1/bias is \(6,\) there and \(8,\) in",
  ):
    loop.train(config, tmp_path / "run")
  config.weights = ""
  with pytest.raises(
    UserError, match=r"Give a safetensors file or .*: --config\.weights=FILE .* --config\.weights=none"
  ):
    loop.train(config, tmp_path / "run")
  with pytest.raises(UserError, match=r"is empty and voc/2007 .* Give --config\.weights=imagenet, which finds vgg16_w"):
    initial_weights.resolve(voc.get_config())
  assert not (tmp_path / "run").exists()
  assert voc.get_config().weights == ""
  assert digits.get_config().weights == "none"


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory):
  """A workdir, with choices, and what was exported from it."""
  folder = tmp_path_factory.mktemp("trained")
  config = tiny_config(data_root)
  config.stage_one.epochs = config.stage_two.epochs = 1
  loop.train(config, folder / "run")
  (folder / "run" / "selection.json").write_text('{"temperature": 1.5}')
  exported.export(folder / "run", folder / "out")
  return folder


def test_an_exported_model_is_the_workdir_s(trained):
  there, here = exported.load(trained / "run"), exported.load(trained / "out")
  assert here.class_names == there.class_names == tuple(map(str, range(10)))
  assert here.selection == there.selection == {"temperature": 1.5}
  assert (here.config.model, here.config.stage_two) == (there.config.model, there.config.stage_two)
  assert jax.tree.structure(here.params) == jax.tree.structure(there.params)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), here.params, there.params))
  model = recognizer.build(here.config.model, 10, head="saliency", auxiliary="score_map")
  images = np.zeros((1, 24, 24, 3), np.uint8)
  assert model.apply({"params": here.params}, images).attention.scores.shape == (3, 1, 10)


def test_an_export_in_half_precision_is_half_as_large_and_nearly_the_same(trained, tmp_path, monkeypatch):
  exported.export(trained / "run", tmp_path / "half", half=True)
  whole, half = (exported.load(folder) for folder in (trained / "out", tmp_path / "half"))
  for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(half.params), strict=True):
    assert b.dtype == np.float32
    np.testing.assert_allclose(b, a, rtol=5e-4 if a.ndim > 1 else 0, atol=1e-7 if a.ndim > 1 else 0)
  sizes = [(folder / "model.safetensors").stat().st_size for folder in (trained / "out", tmp_path / "half")]
  assert sizes[1] < 0.6 * sizes[0]
  large = whole._replace(params=jax.tree.map(lambda leaf: 1e6 * np.ones_like(leaf), whole.params))
  monkeypatch.setattr(exported, "_load_workdir", lambda folder: large)
  with pytest.raises(UserError, match="holds values beyond float16: export without --half"):
    exported.export(trained / "run", tmp_path / "beyond", half=True)
  assert not (tmp_path / "beyond").exists()


def nested(fields, section, **changes):
  return {**fields, section: {**fields[section], **changes}}


def test_an_export_that_was_changed_is_refused(trained, tmp_path):
  out = tmp_path / "out"
  with pytest.raises(UserError, match="exists and is not an empty folder"):
    exported.export(trained / "run", trained / "out")
  with pytest.raises(UserError, match=r"neither a model\.json"):
    exported.load(tmp_path)
  about = json.loads((trained / "out" / "model.json").read_text())
  for changes, message in (
    ({"class_names": about["class_names"][1:]}, r"model\.safetensors: .* has the shape .*10.*, not .*9"),
    ({"digest": "0"}, "does not have the digest"),
    ({"class_names": about["class_names"][::-1]}, "does not have the digest"),
    ({"selection": {**about["selection"], "temperature": 2.5}}, "does not have the digest"),
    ({"config": {}}, r"model\.safetensors: .* has the shape"),  # defaults, of another model
    ({"config": {**about["config"], "novel": 1}}, r"model\.json, which version 0\.1\.0 wrote: .* knows no field novel"),
    ({"config": {**about["config"], "seed": "0"}}, r"model\.json, which .*: seed must be of type int, got '0'"),
    ({"config": nested(about["config"], "model", vgg={"blocks": [1]})}, "describes no model of rmam_jax"),
    ({"format": 1}, "its format is not 4"),
    ({"class_names": 3}, "the field class_names is missing"),
  ):
    shutil.copytree(trained / "out", out, dirs_exist_ok=True)
    (out / "model.json").write_text(json.dumps({**about, **changes}))
    with pytest.raises(UserError, match=message):
      exported.load(out)
  shutil.copytree(trained / "out", out, dirs_exist_ok=True)
  os.truncate(out / "model.safetensors", 1000)
  with pytest.raises(UserError, match=r"model\.safetensors is damaged or cut short"):
    exported.load(out)


def test_an_export_holds_no_path_of_this_machine(trained, data_root, tmp_path):
  text = (trained / "out" / "model.json").read_text()
  assert str(data_root) not in text
  assert json.loads(text)["config"]["weights"] == "none"
  # As if trained on images of one's own, from a file of weights: its parameters are the same.
  run = tmp_path / "run"
  shutil.copytree(trained / "run", run)
  fields = json.loads((run / "config.json").read_text())
  fields["weights"] = str(tmp_path / "w.safetensors")
  splits = {split: str(tmp_path / f"{split}.csv") for split in ("train", "validation", "test", "final_train")}
  expected = [[splits["train"], 160]]
  fields = nested(fields, "data", name="custom", root=str(tmp_path), images=str(tmp_path), expected=expected, **splits)
  fields = nested(fields, "rpn", data="custom", train=splits["train"], validation=splits["validation"])
  (run / "config.json").write_text(json.dumps(fields))
  exported.export(run, tmp_path / "out")
  assert str(tmp_path) not in (tmp_path / "out" / "model.json").read_text()
  assert exported.load(tmp_path / "out").config.weights == "w.safetensors"
  image = np.full((64, 64, 3), 90, np.uint8)
  before, after = (rmam_jax.load(folder).predict([image])[0] for folder in (run, tmp_path / "out"))
  np.testing.assert_array_equal(before.probabilities, after.probabilities)


def test_fields_that_a_file_lacks_are_as_in_the_defaults_and_unknown_ones_are_named():
  wanted = get_config()
  wanted.model.recurrent.bias, wanted.model.region_size, wanted.loss.scale_weight = (1.0, 2.0, 3.0, 4.0), (5, 5), 2.0
  wanted.model.rpn.anchor_sizes = ((45, 90), (90, 45))
  fields = json.loads(wanted.to_json())
  assert from_fields(fields, "x.json") == wanted
  assert from_fields(fields, "x.json").model.rpn.anchor_sizes == ((45, 90), (90, 45))
  del fields["seed"], fields["model"]["head"], fields["loss"]["rarl"]
  fields["loss"]["scale_weight"] = 2  # a whole number is a number
  found = from_fields(fields, "x.json")
  assert found == wanted
  assert found.is_locked
  for section, changes, message in (
    ("model", {"depth": 3}, r"x\.json: rmam_jax .* knows no field model\.depth"),
    ("model", {"vgg": {"widths": []}}, r"x\.json: rmam_jax .* knows no field model\.vgg\.widths"),
    ("model", {"vgg": 3}, r"x\.json: model\.vgg must be of type ConfigDict, got 3"),
    ("model", {"region_size": 7}, r"x\.json: model\.region_size must be of type tuple, got 7"),
    ("model", {"num_regions": True}, r"x\.json: model\.num_regions must be of type int, got True"),
    ("data", {"root": None}, r"x\.json: data\.root must be of type str, got None"),
    ("data", {"root": {}}, r"x\.json: data\.root must be of type str, got {}"),
  ):
    with pytest.raises(UserError, match=message):
      from_fields(nested(fields, section, **changes), "x.json")


@pytest.mark.parametrize("kind", ["run", "out"])
def test_a_trained_model_begins_another_run(trained, kind, tmp_path, data_root):
  config = tiny_config(data_root, weights=str(trained / kind))
  resolved, first = initial_weights.resolve(config, tmp_path / "new")
  wanted = exported.load(trained / kind)
  assert resolved.weights_digest == tensors.digest(tensors.flatten(wanted.params))
  assert tuple(resolved.model.pixel_mean) == (90, 90, 90)
  stage = stages.build(config, "stage_two", num_classes=10, num_records=160)
  fresh = loop.step_lib.init_params(stage.model, jax.random.key(9), 64)
  heads = {"head": "saliency", "auxiliary": "score_map"}
  fill = {"heads": heads, "region_size": (5, 5)}
  params, taken = first.fill(fresh, class_names=wanted.class_names, **fill)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, wanted.params))
  assert taken == ["the backbone", "the head saliency", "the head score_map"]
  params, taken = first.fill(fresh, class_names=wanted.class_names[::-1], **fill)
  assert taken == ["the backbone"]
  assert params["head"] is fresh["head"]


def test_fc6_begins_w_fx_where_the_head_has_its_shape():
  config = voc.get_config()
  fresh = exported.param_shapes(config, 20)
  fc6 = {"kernel": jax.ShapeDtypeStruct((25_088, 4096), np.float32), "bias": jax.ShapeDtypeStruct((4096,), np.float32)}
  first = initial_weights.InitialWeights("a test", "", (), (), fresh["backbone"], fc6)
  named = {"heads": {"head": "recurrent"}, "class_names": (), "region_size": (7, 7)}
  params, taken = first.fill(fresh, **named)
  assert params["head"]["attention"]["fx"] is fc6
  assert params["head"]["attention"]["zs"] is fresh["head"]["attention"]["zs"]
  assert taken == ["the backbone", "fc6 as W_fx of recurrent"]
  config.model.x_width = 128
  assert first.fill(exported.param_shapes(config, 20), **named)[1] == ["the backbone"]


def call(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "rmam_jax", "weights", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
  )


@pytest.mark.slow
def test_the_command_describes_converts_and_exports(tmp_path, convolutions, trained):
  path = write_keras(tmp_path / "x.h5", convolutions)
  said = call(path, f"--out={tmp_path / 'new.safetensors'}")
  assert said.returncode == 0, said.stderr
  assert weight_files.read(tmp_path / "new.safetensors").digest == weight_files.checksum(path)
  said = call(path).stdout
  assert "block5_conv3/kernel  3x3x512x512  float32" in said
  assert f"sha256      {weight_files.checksum(path)}" in said
  assert "no: the published file has the md5 6d6bbae143d832006294945121d1f1fc" in said
  assert "Keras' VGG-16 without its top" in said
  assert call("export", trained / "run", tmp_path / "model").returncode == 0
  assert exported.load(tmp_path / "model").class_names == exported.load(trained / "run").class_names
  wrong = call(tmp_path / "nothing.h5")
  assert wrong.returncode == 1
  assert wrong.stderr.startswith("error: ")
  assert "Traceback" not in wrong.stderr


def conv5_3(weights, images):
  """Ours, from pixels: red green blue in 0..255."""
  model = vgg.VGG()
  pixels = (images - np.array(weights.pixel_mean, np.float32)) / np.array(weights.pixel_std, np.float32)
  return np.asarray(jax.jit(model.apply)({"params": backbone_of(weights)}, pixels))


SIZES = [(64, 64), (48, 97), (130, 80)]


def images_of(size):
  return np.random.default_rng(sum(size)).integers(0, 256, (1, *size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def keras():
  os.environ.setdefault("KERAS_BACKEND", "torch")
  pytest.importorskip("torch")
  return pytest.importorskip("keras")


# Of Keras' own, with torch beneath it and NumPy 2.
keras_warns = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.mark.oracle
@keras_warns
def test_conv5_3_equals_keras(tmp_path, convolutions, keras):
  path = write_keras(tmp_path / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", convolutions)
  theirs = keras.applications.VGG16(weights=None, include_top=False)
  theirs.load_weights(path)  # the fixture is what Keras takes for the published layout
  np.testing.assert_array_equal(
    theirs.get_layer("block3_conv2").get_weights()[0], convolutions["block3_conv2"]["kernel"]
  )
  features = keras.Model(theirs.input, theirs.get_layer("block5_conv3").output)
  weights = weight_files.read(path)
  for size in SIZES:
    images = images_of(size)
    wanted = keras.ops.convert_to_numpy(features(keras.applications.vgg16.preprocess_input(images.copy())))
    np.testing.assert_allclose(conv5_3(weights, images), wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)


@pytest.mark.oracle
@pytest.mark.parametrize(("zipped", "parameters"), [(True, False), (False, False), (False, True)])
def test_conv5_3_equals_torch(zipped, parameters, tmp_path, convolutions):
  torch = pytest.importorskip("torch")
  state = {name: torch.tensor(array) for name, array in torch_names(convolutions).items()}
  module = _torch_vgg(torch)
  module.load_state_dict(state)
  saved = dict(module.named_parameters()) if parameters else module.state_dict()
  torch.save(saved, tmp_path / "vgg.pth", _use_new_zipfile_serialization=zipped)
  weights = weight_files.read(tmp_path / "vgg.pth")
  mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
  for size in SIZES if not parameters else SIZES[:1]:
    images = images_of(size)
    with torch.no_grad():
      inputs = ((torch.tensor(images) / 255 - mean) / std).permute(0, 3, 1, 2)
      wanted = module(inputs).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(conv5_3(weights, images), wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)


def _torch_vgg(torch):
  """torchvision's `vgg16().features` up to conv5_3's ReLU, with its names."""
  layers, channels = [], 3
  for widths in vgg.BLOCKS["vgg16"]:
    for width in widths:
      layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
      channels = width
    layers += [torch.nn.MaxPool2d(2)]
  module = torch.nn.Module()
  module.features = torch.nn.Sequential(*layers)
  module.forward = lambda x: module.features[:-1](x)
  return module


@pytest.mark.oracle
@keras_warns
@pytest.mark.parametrize("source", ["keras", "torch"])
def test_fc6_equals_the_others_first_dense_layer(source, tmp_path, convolutions, request):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(1)
  kernel = rng.standard_normal((4096, 25_088), np.float32) / 100
  bias = rng.standard_normal(4096, np.float32)
  maps = rng.random((2, 7, 7, 512), np.float32)
  in_torch_s_order = torch.tensor(maps.transpose(0, 3, 1, 2).copy())
  small = {"weight": torch.zeros(1), "bias": torch.zeros(1)}
  if source == "keras":
    keras = request.getfixturevalue("keras")
    dense = keras.layers.Dense(4096)
    model = keras.Sequential([keras.Input((7, 7, 512)), keras.layers.Flatten(), dense])
    dense.set_weights([kernel.T, bias])
    wanted = keras.ops.convert_to_numpy(model(maps))
    shapes = {"fc2": (4096, 4096), "predictions": (4096, 1000)}
    top = {name: {"kernel": np.zeros(s, np.float32), "bias": np.zeros(s[1:], np.float32)} for name, s in shapes.items()}
    path = write_keras(tmp_path / "full.h5", {**convolutions, "fc1": {"kernel": kernel.T, "bias": bias}, **top})
  else:
    wanted = torch.nn.functional.linear(in_torch_s_order.flatten(1), torch.tensor(kernel), torch.tensor(bias)).numpy()
    state = {name: torch.tensor(array) for name, array in torch_names(convolutions).items()}
    state |= {"classifier.0.weight": torch.tensor(kernel), "classifier.0.bias": torch.tensor(bias)}
    for layer, out in (("classifier.3", 4096), ("classifier.6", 1000)):  # one element in the file, repeated
      state |= {f"{layer}.weight": small["weight"].expand(out, 4096), f"{layer}.bias": small["bias"].expand(out)}
    path = tmp_path / "full.pth"
    torch.save(state, path)
  fc6 = initial_weights._from_file(weight_files.read(path)).fc6
  found = maps.reshape(2, -1) @ fc6["kernel"] + fc6["bias"]
  np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)


@pytest.mark.oracle
def test_torch_saves_what_is_refused(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save({"state": {"w": torch.zeros(2)}}, tmp_path / "x.pth")
  _refused(tmp_path / "x.pth", "has an entry that is not a tensor")
  buffer = io.BytesIO()
  torch.save({"w": torch.zeros(2, 2).to_sparse()}, buffer)
  (tmp_path / "x.pth").write_bytes(buffer.getvalue())
  _refused(tmp_path / "x.pth", "refers to torch")
