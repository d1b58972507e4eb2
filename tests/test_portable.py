"""Recognizers as programs: StableHLO by jax alone, ONNX by onnxruntime, both as rmam_jax predicts on photographs."""

import copy
import json
import pathlib
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_predictor import untrained

from rmam_jax import heads
from rmam_jax.inference import onnx_graph, portable, predictor
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import exported

ROOT = pathlib.Path(__file__).parent.parent
PHOTOGRAPHS = [ROOT / "docs" / "cat.jpg", ROOT / "docs" / "astronaut.jpg"]
HEADS = [name for name, spec in heads.SPECS.items() if spec.guide != heads.BOXES]
QUICK = ("mean_pool", "two_stream")


def photographs():
  """All their pixels: of a large file rmam_jax decodes no more than it needs."""
  return [Image.open(path).convert("RGB") for path in PHOTOGRAPHS]


def what_to_give(about):
  """The photographs as recognizer.json asks for them, by Pillow alone."""
  size, crop = about["input"]["resize_to"], about["input"]["then_crop"]
  return np.stack([np.asarray(image.resize(size, Image.Resampling.BILINEAR).crop(crop)) for image in photographs()])


def check_against_predictor(about, found, trained):
  """Compares what a program says of the photographs with what rmam_jax says; names of classes by recognizer.json."""
  found = {name: np.asarray(array) for name, array in found.items()}
  assert sorted(found) == sorted(about["outputs"])
  ours, images = predictor.Predictor(trained), photographs()
  every_label = copy.copy(ours)
  every_label.thresholds = predictor.thresholds_of(trained, threshold=0.0, top=0)
  limits, rule = (
    np.array([-np.inf if each is None else each for each in about["labels"]["log_odds_from"]]),
    about["labels"],
  )
  for index, (given, whole) in enumerate(zip(ours.predict(images), every_label.predict(images), strict=True)):
    probabilities = found["probabilities"][index]
    np.testing.assert_allclose(probabilities, whole.probabilities, atol=1e-4)
    allowed = (found["log_odds"][index] >= limits) & (probabilities >= rule["probabilities_from"])
    names = [about["class_names"][c] for c in np.argsort(-probabilities, kind="stable") if allowed[c]]
    assert names[: rule["most"] or None] == [label.name for label in given.labels]
    if "boxes" not in found:
      assert whole.regions == []
      continue
    pixels = found["boxes"][index] * ([whole.width, whole.height] * 2)
    np.testing.assert_allclose(pixels, [region.box for region in whole.regions], atol=1e-4 * whole.width)
    alone = found["region_probabilities"][index].max(axis=-1)
    np.testing.assert_allclose(alone, [region.probability for region in whole.regions], atol=1e-4)
    steps = {label.name: label.step for label in whole.labels}
    assert found["steps"][index].tolist() == [steps[name] for name in about["class_names"]]


def read(folder):
  about = json.loads((folder / "recognizer.json").read_text())
  return about, (folder / about["file"]).read_bytes()


@pytest.mark.parametrize(
  "head", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in HEADS]
)
def test_stablehlo_predicts_as_every_head_does(head, tmp_path):
  trained = untrained(head)
  assert portable.export(trained, tmp_path / "out", "stablehlo") < 1e-6
  about, content = read(tmp_path / "out")
  program = jax.export.deserialize(bytearray(content))
  assert set(program.platforms) == {"cpu", "cuda", "tpu"}
  check_against_predictor(about, program.call(what_to_give(about)), trained)


@pytest.mark.parametrize(
  ("kind", "selection"), [("euclidean", None), ("sigmoid", {"temperature": 2.0, "thresholds": [0.1] * 10})]
)
def test_thresholds_and_temperature_go_along(kind, selection, tmp_path):
  trained = untrained("mean_pool")
  trained.config.loss.classification = kind
  trained = trained._replace(selection=selection and {"prediction": selection})
  portable.export(trained, tmp_path / "out", "stablehlo")
  about, content = read(tmp_path / "out")
  program, images = jax.export.deserialize(bytearray(content)), what_to_give(about)
  found = program.call(images)
  check_against_predictor(about, found, trained)
  alone = program.call(images[1:])  # any number of images
  np.testing.assert_allclose(alone["probabilities"], found["probabilities"][1:], atol=1e-5)
  assert about["labels"]["most"] == (0 if selection else 3)


ALONE = """
import json, pathlib, sys
import numpy as np
from jax import export

folder = pathlib.Path(sys.argv[1])
program = export.deserialize(bytearray((folder / "recognizer.stablehlo").read_bytes()))
found = program.call(np.load(folder / "images.npy"))
np.savez(folder / "found.npz", **found)
assert not {"rmam_jax", "flax", "PIL", "ml_collections"} & set(sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["photographs", "digits-easy"])
def test_the_shipped_recognizers_run_by_jax_and_numpy_alone(name, half, tmp_path):
  trained = exported.load(predictor.PRETRAINED / name)
  portable.export(trained, tmp_path / "out", "stablehlo", half=half)
  about, content = read(tmp_path / "out")
  np.save(tmp_path / "out" / "images.npy", what_to_give(about))
  said = subprocess.run([sys.executable, "-c", ALONE, tmp_path / "out"], cwd=tmp_path, capture_output=True, text=True)
  assert said.returncode == 0, said.stderr
  found = dict(np.load(tmp_path / "out" / "found.npz"))
  if half and name == "digits-easy":  # shipped as float32
    ours = predictor.Predictor(trained).predict(photographs())
    np.testing.assert_allclose(found["probabilities"], [each.probabilities for each in ours], atol=1e-2)
  else:
    check_against_predictor(about, found, trained)
  assert len(content) < 1.1 * sum(leaf.size for leaf in jax.tree.leaves(trained.params)) * (2 if half else 4)


@pytest.mark.slow
def test_the_command_exports_a_shipped_recognizer(tmp_path):
  def call(*arguments):
    command = [sys.executable, "-m", "rmam_jax", "weights", "export", "digits-easy", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

  found = call(tmp_path / "out", "--format=stablehlo")
  written, checked = found.stdout.splitlines()
  assert written == f"wrote {tmp_path / 'out' / 'recognizer.stablehlo'} and {tmp_path / 'out' / 'recognizer.json'}"
  assert checked.startswith("on two images of noise its probabilities are those of rmam_jax, to ")
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["recognizer.json", "recognizer.stablehlo"]
  assert call(tmp_path / "again").stdout == f"wrote {tmp_path / 'again'}\n"
  assert exported.load(tmp_path / "again").class_names == tuple("0123456789")
  refused = call(tmp_path / "onnx", "--format=onnx", "--half")
  assert refused.stderr == "error: --half is for safetensors and stablehlo: ONNX's tools halve a graph\n"


def onnx_runner(content):
  onnxruntime = pytest.importorskip("onnxruntime")
  session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
  names = [output.name for output in session.get_outputs()]
  return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("name", [*HEADS, "shipped photographs", "shipped digits-easy"])
def test_onnx_predicts_as_every_head_does(name, tmp_path):
  pytest.importorskip("jax2onnx", reason="the extra `onnx` is not installed")
  onnx = pytest.importorskip("onnx")
  shipped = name.removeprefix("shipped ")
  trained = untrained(name) if shipped == name else exported.load(predictor.PRETRAINED / shipped)
  if heads.get(trained.config.model.head).guide == heads.RPN:
    with pytest.raises(UserError, match=r"jax2onnx cannot carry head 'rlsd.*export it with --format=stablehlo"):
      portable.export(trained, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
    return
  # Another runtime sums in another order, which moves where a recurrent head looks next by a little.
  assert portable.export(trained, tmp_path / "out", "onnx") < (1e-4 if shipped == name else 1e-5)
  about, content = read(tmp_path / "out")
  run, images = onnx_runner(content), what_to_give(about)
  check_against_predictor(about, run(images), trained)
  np.testing.assert_allclose(run(images[1:])["probabilities"], run(images)["probabilities"][1:], atol=1e-4)
  assert not {"If", "Loop", "Scan"} & {node.op_type for node in onnx.load_from_string(content).graph.node}


def test_a_flat_list_of_primitives_says_the_same():
  """Loops both ways, choices between platforms, calls, custom gradients and padding."""

  def function(x):
    def step(carry, item):
      carry = jax.nn.relu(carry) * item + 1
      return carry, (carry, item**2)

    forth = jax.lax.scan(step, x[0], x)
    back = jax.lax.scan(step, x[0], jnp.pad(x, ((1, 2), (0, 1)), constant_values=3)[:, :-1], reverse=True)
    chosen = jax.lax.platform_dependent(x, cpu=lambda x: x.sum(), default=lambda x: x.reshape(-1) @ jnp.ones(x.size))
    fewer = jax.lax.pad(x, 0.0, ((-1, 0, 0), (0, 1, 1)))
    return forth, back, chosen, jax.jit(jnp.sort)(x), fewer

  x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  wanted = jax.tree.leaves(function(x))
  traced = jax.make_jaxpr(function)(x)
  for found, each in zip(onnx_graph.evaluate(traced, [x]), wanted, strict=True):
    np.testing.assert_allclose(found, each, rtol=1e-6)
  flat = jax.make_jaxpr(lambda x: onnx_graph.evaluate(traced, [x]))(x)
  names = [equation.primitive.name for equation in flat.eqns]
  assert not {"scan", "cond", "jit", "custom_jvp_call", "platform_index"} & {*names}
  assert names.count("pad") == 1  # the one that also takes away
  assert "dot_general" in names  # of the form for no platform


def test_what_depends_on_no_input_is_a_constant():
  kernel = jnp.arange(12.0).reshape(3, 4)
  traced = jax.make_jaxpr(lambda x: x @ (jnp.exp(kernel) * 2).T.T)(np.ones((2, 3), np.float32))
  flat = jax.make_jaxpr(lambda x: onnx_graph.evaluate(traced, [x]))(np.ones((2, 3), np.float32))
  assert [equation.primitive.name for equation in flat.eqns] == ["dot_general"]


def test_what_cannot_be_exported_is_told_in_one_line(tmp_path, monkeypatch):
  trained = untrained("mean_pool")
  with pytest.raises(UserError, match="--format must be one of stablehlo, onnx, got 'tflite'"):
    portable.export(trained, tmp_path / "out", "tflite")
  with pytest.raises(UserError, match="head 'proposals' looks at proposals, which images alone do not have"):
    portable.export(untrained("proposals"), tmp_path / "out", "stablehlo")
  monkeypatch.setattr(portable, "CLOSE", -1.0)
  with pytest.raises(
    UserError, match=r"the program says something else than the recognizer, by 0 in a prob.*not written"
  ):
    portable.export(trained, tmp_path / "out", "stablehlo")
  monkeypatch.setitem(sys.modules, "jax2onnx", None)  # as if it were not installed
  with pytest.raises(UserError, match=r"--format=onnx needs jax2onnx: pip install 'rmam_jax\[onnx\]'"):
    portable.export(trained, tmp_path / "out", "onnx")
  assert not (tmp_path / "out").exists()
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "file").touch()
  with pytest.raises(UserError, match="full exists and is not an empty folder: name another"):
    portable.export(trained, tmp_path / "full", "stablehlo")
