"""A JAX function as an ONNX graph, by jax2onnx (the extra `onnx`), to which it is given as one flat list of primitives.

Calls are inlined, loops are unrolled, and of a choice between platforms the form for no platform in particular is taken:
the graph has neither `Loop` nor `If`, which not every runtime carries. What depends on no input, such as a kernel times
the scale of its normalisation, becomes a constant.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from rmam_jax.runtime.errors import UserError

# Primitives that only wrap a function, and the parameter that holds it.
_CALLS = {
  primitives.jit_p: "jaxpr",
  primitives.closed_call_p: "call_jaxpr",
  primitives.custom_jvp_call_p: "call_jaxpr",
  primitives.custom_vjp_call_p: "call_jaxpr",
  primitives.remat_p: "jaxpr",
}
_PLATFORM = "platform_index"  # what `jax.lax.platform_dependent` chooses by; it has no public name


def convert(recognize: Callable[[jax.Array], Mapping[str, jax.Array]], shape: Sequence[int], what: str) -> bytes:
  """The file of a function that returns named arrays, for any number of images.

  Args:
    recognize: images uint8 [B, height, width, 3] -> arrays by name, each [B, ...].
    shape: of one image, (height, width, 3).
    what: what the function is, for errors, e.g. "head 'saliency' on 'resnet50'".

  Raises UserError: jax2onnx is not installed, or cannot carry the function.
  """
  try:
    import jax2onnx
  except ImportError as error:
    raise UserError(
      "--format=onnx needs jax2onnx: pip install 'rmam_jax[onnx]', in an environment of its own"
    ) from error

  def of_one(image):
    return {name: array[0] for name, array in recognize(image[None]).items()}

  # Traced before jax2onnx sets its own functions in the place of JAX's, and for one image: only what `jax.vmap` adds
  # has a size that is not known.
  traced, out = jax.make_jaxpr(of_one, return_shape=True)(jax.ShapeDtypeStruct(shape, jnp.uint8))
  logger = logging.getLogger("onnx_ir")
  level = logger.level
  with reported(what):
    try:
      logger.setLevel(logging.ERROR)
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that it asks for and JAX does not have
        model = jax2onnx.to_onnx(
          lambda images: tuple(jax.vmap(lambda image: evaluate(traced, [image]))(images)),
          [jax.ShapeDtypeStruct(("batch", *shape), jnp.uint8)],
          model_name="rmam_jax",
          input_names=["images"],
          output_names=sorted(out),  # as JAX orders a dict
        )
      return model.SerializeToString()
    finally:
      logger.setLevel(level)


def run(content: bytes, images: np.ndarray, what: str) -> dict[str, np.ndarray]:
  """What onnxruntime makes of images [B, height, width, 3], by the outputs' names. Raises UserError: it cannot."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 4  # what is fatal
  with reported(what):
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
  """Within, any error becomes a UserError that says that `what` cannot be carried: jax2onnx raises all kinds."""
  try:
    yield
  except Exception as error:
    reason = str(error).partition("\n")[0][:200]
    raise UserError(f"jax2onnx cannot carry {what} ({reason}): export it with --format=stablehlo") from error


def evaluate(traced: core.ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
  """What a traced function returns for these inputs, primitive by primitive; see the module's docstring."""
  return _evaluate(traced.jaxpr, traced.consts, inputs)


def _evaluate(jaxpr: core.Jaxpr, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
  known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

  def read(atom):
    return atom.val if isinstance(atom, core.Literal) else known[atom]

  def inner(jaxpr, values):
    return _evaluate(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), values)

  for equation in jaxpr.eqns:
    primitive, params, values = equation.primitive, equation.params, [read(atom) for atom in equation.invars]
    fixed = not any(isinstance(value, jax.core.Tracer) for value in values)
    if primitive in _CALLS:
      found = inner(params[_CALLS[primitive]], values)
    elif primitive.name == _PLATFORM:
      found = [len(params["platforms"]) - 1]  # the default is the last
    elif primitive is primitives.cond_p and not isinstance(values[0], jax.core.Tracer):
      found = inner(params["branches"][int(values[0])], values[1:])
    elif primitive is primitives.scan_p:
      found = _unrolled(inner, values, params)
    elif primitive is primitives.pad_p:
      found = [_padded(*values, params["padding_config"])]
    else:
      with jax.ensure_compile_time_eval() if fixed else contextlib.nullcontext():
        found = primitive.bind(*values, **params)
      found = found if primitive.multiple_results else [found]
    known.update(zip(equation.outvars, found, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _unrolled(inner: Callable, values: Sequence[Any], params: Mapping[str, Any]) -> list[Any]:
  """A scan, step by step."""
  ends = params["num_consts"], params["num_consts"] + params["num_carry"]
  constants, carry, sequences = values[: ends[0]], values[ends[0] : ends[1]], values[ends[1] :]
  steps, order = [], range(params["length"])
  for step in reversed(order) if params["reverse"] else order:
    at_step = [jax.lax.index_in_dim(sequence, step, keepdims=False) for sequence in sequences]
    found = inner(params["jaxpr"], [*constants, *carry, *at_step])
    carry = found[: len(carry)]
    steps.append(found[len(carry) :])
  if params["reverse"]:
    steps.reverse()
  stacked = (
    jax.lax.concatenate([jax.lax.expand_dims(each, [0]) for each in every], 0) for every in zip(*steps, strict=True)
  )
  return [*carry, *stacked]


def _padded(array: jax.Array, filling: jax.Array, config: Sequence[tuple[int, int, int]]) -> jax.Array:
  """`jax.lax.pad`, by concatenation where it only adds at the ends: jax2onnx pads no batch of unknown size."""
  if any(low < 0 or high < 0 or between for low, high, between in config):
    return jax.lax.pad(array, filling, config)
  for axis, (low, high, _) in enumerate(config):
    before, after = (
      [jax.lax.full((*array.shape[:axis], count, *array.shape[axis + 1 :]), filling, array.dtype)] if count else []
      for count in (low, high)
    )
    array = jax.lax.concatenate([*before, array, *after], axis)
  return array
