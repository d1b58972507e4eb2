"""A trained recognizer as a program that needs no rmam_jax: StableHLO, which runs by jax alone, or an ONNX graph.

Two files: the program, from pixels to probabilities and boxes with the weights in it, and `recognizer.json`, which says
what to give it and what its results mean. Only the centre view is seen, and the image is resized before: `input` there.
"""

import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from rmam_jax.data import batches
from rmam_jax.evaluation import views as views_lib
from rmam_jax.inference import onnx_graph, predictor
from rmam_jax.ops import boxes as boxes_lib
from rmam_jax.ops import losses
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError, check_name, os_errors
from rmam_jax.training import exported, stages
from rmam_jax.version import __version__

FORMATS = ("stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")  # that StableHLO is made for
CLOSE = 1e-4  # how far the program's probabilities may be from ours

_MEANINGS = {
  "probabilities": "float32 [batch, classes]: of each class, calibrated",
  "log_odds": "float32 [batch, classes]: what `labels.log_odds_from` compares with",
  "steps": "int32 [batch, classes]: the region that won the class, counted from 1",
  "boxes": "float32 [batch, regions, 4]: what each region saw, (left, top, right, bottom) as shares of the whole image;"
  " times its width and height they are pixels",
  "region_probabilities": "float32 [batch, regions, classes]: what each region alone would say",
}


def make_program(trained: exported.TrainedModel, *, half: bool = False) -> Callable[[jax.Array], dict[str, jax.Array]]:
  """The function from images uint8 [B, side, side, 3], the centre view, to the arrays that `_MEANINGS` explains.

  A head that does not look gives the first two alone. With `half`, what `exported.halved` halves is kept as float16 and
  computed with as float32. Raises UserError for a head that needs more than images.
  """
  config, params = trained.config, exported.halved(trained.params) if half else trained.params
  spec = predictor.check_head(config)
  model = stages.build_model(config, "stage_two", len(trained.class_names))
  kind, temperature = stages.classification_of(config, "stage_two"), predictor.thresholds_of(trained).temperature
  # A box is an affine function of its theta.
  origin = views_lib.region_boxes(np.zeros(4), config)
  edges = (views_lib.region_boxes(np.eye(4), config) - origin).astype(np.float32)

  def program(images):
    wide = jax.tree.map(lambda array: jnp.asarray(array).astype(jnp.float32), params)
    attention = model.apply({"params": wide}, images).attention
    scores_BL, scores_BKL = attention.scores.max(axis=0), attention.scores.swapaxes(0, 1)
    probabilities = losses.PROBABILITIES[kind]
    found = {"probabilities": probabilities(scores_BL / temperature), "log_odds": losses.LOG_ODDS[kind](scores_BL)}
    if spec.looks:
      boxes = jnp.matmul(attention.thetas.swapaxes(0, 1), edges, precision="highest") + origin.astype(np.float32)
      found |= {
        "steps": attention.scores.argmax(axis=0).astype(jnp.int32) + 1,
        "boxes": boxes_lib.clip_boxes(boxes)[..., jnp.array([1, 0, 3, 2])],
        "region_probabilities": probabilities(scores_BKL / temperature),
      }
    return found

  return program


def describe(trained: exported.TrainedModel, format: str, names: Collection[str]) -> dict[str, Any]:
  """What `recognizer.json` holds for a program, of a format in `FORMATS`, that returns arrays of these names."""
  data, thresholds = trained.config.data, predictor.thresholds_of(trained)
  offset, side = batches.centre_offset(data.image_size, data.crop_size), data.crop_size
  limits = np.broadcast_to(thresholds.scores_from, len(trained.class_names))
  return {
    "file": f"recognizer.{format}",
    "made_by": f"rmam_jax {__version__}",
    "head": trained.config.model.head,
    "class_names": list(trained.class_names),
    "input": {
      "name": "images",
      "is": f"uint8 [batch, {side}, {side}, 3]: red, green, blue in 0..255; the program normalises them itself",
      "resize_to": [data.image_size, data.image_size],  # width, height
      "resize_by": "bilinear with antialiasing, as Pillow's Image.resize(size, Image.Resampling.BILINEAR), upright, the"
      " aspect not kept",
      "then_crop": [offset, offset, offset + side, offset + side],  # left, top, right, bottom
    },
    "outputs": {name: _MEANINGS[name] for name in _MEANINGS if name in names},
    "labels": {
      "rule": "an image has a class where log_odds >= log_odds_from (null: any), probability >= probabilities_from, and"
      " at most `most` classes, the likeliest (0: any number)",
      "log_odds_from": [None if np.isneginf(limit) else float(limit) for limit in limits],
      "probabilities_from": thresholds.probabilities_from,
      "most": thresholds.top,
    },
  }


def export(trained: exported.TrainedModel, out: pathlib.Path, format: str, *, half: bool = False) -> float:
  """Writes `out/recognizer.FORMAT` and `out/recognizer.json`; `out` is new or empty.

  Before anything is written the program is run, by jax or by onnxruntime, on two images of noise. Returns how far its
  probabilities are from ours at most. Raises UserError: the format is unknown, the recognizer cannot be exported so, or
  the program says something else.
  """
  check_name("--format", format, FORMATS)
  exported.check_out(out)
  program, side = make_program(trained, half=half), trained.config.data.crop_size
  images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
  if format == "onnx":
    what = f"head {trained.config.model.head!r} on {trained.config.model.backbone!r}"
    content = onnx_graph.convert(program, images.shape[1:], what)
    theirs = onnx_graph.run(content, images, what)
  else:
    content = _to_stablehlo(program, side)
    theirs = jax.jit(jax.export.deserialize(bytearray(content)).call)(images)
  ours = jax.jit(program)(images)
  apart = float(np.abs(np.asarray(ours["probabilities"]) - np.asarray(theirs["probabilities"])).max())
  if not apart <= CLOSE:
    raise UserError(
      f"the program says something else than the recognizer, by {apart:.2g} in a probability: not written"
    )
  with os_errors(f"cannot export to {out}"):
    out.mkdir(parents=True, exist_ok=True)
  with files.whole_file(out / f"recognizer.{format}") as draft:
    draft.write_bytes(content)
  files.write_json(out / "recognizer.json", describe(trained, format, ours))
  return apart


def _to_stablehlo(program: Callable, side: int) -> bytes:
  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
  return bytes(jax.export.export(jax.jit(program), platforms=PLATFORMS)(images).serialize())
