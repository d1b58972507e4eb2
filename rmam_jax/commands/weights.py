"""Finds and fetches published weights, looks into files of weights, converts them, and exports trained models.

    rmam-jax weights list                          # which published weights are on this machine, and where
    rmam-jax weights fetch BACKBONE                # finds those of a backbone, or fetches them; also hf:OWNER/REPO[/FILE]
    rmam-jax weights FILE                          # what the file is and every tensor in it
    rmam-jax weights FILE --out=NEW.safetensors    # converts it
    rmam-jax weights export MODEL OUT [--half]     # a trained model as a folder to publish
    rmam-jax weights export MODEL OUT --format=stablehlo   # as a program that runs by jax alone; or onnx (docs/export.md)

MODEL is what predict takes as --workdir: a workdir, an exported model, hf:OWNER/NAME, or the name of a shipped one.
Nothing that a file contains is run.
"""

import pathlib

from absl import app, flags

from rmam_jax import backbones, commands
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import exported
from rmam_jax.weights import files as weight_files
from rmam_jax.weights import published

# How many arguments there are with each verb, the command's name included.
_VERBS = {"": 2, "list": 2, "fetch": 3, "export": 4}
_OUT = flags.DEFINE_string("out", None, "Where to write the converted weights, as safetensors.")
_HALF = flags.DEFINE_bool("half", False, "Export matrices and kernels as float16: half the size.")
_FORMAT = flags.DEFINE_enum(
  "format",
  "safetensors",
  ["safetensors", "stablehlo", "onnx"],
  "What to export: weights and configuration, for rmam_jax; or a program, for jax alone or for ONNX runtimes.",
)


def describe(path: pathlib.Path) -> None:
  """Prints what a file is, its tensors, its preprocessing and its checksum; raises as `weight_files.read`."""
  sha256 = weight_files.checksum(path)
  with weight_files.open_weights(path) as (entries, metadata):
    rows = [(name, "x".join(map(str, entry.shape)), entry.dtype) for name, entry in entries.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
      print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"sha256      {sha256}")
    if metadata.get("format") == weight_files.FORMAT:
      print(f"converted by rmam_jax from a file of sha256 {metadata.get('source_sha256')}")
    else:
      layout = weight_files.identify(entries, path).layout
      kind, _, digits = layout.checksum.partition(":")
      if not digits:
        known = "unknown: no checksum of such a file is known here"
      elif weight_files.is_published(path, layout):
        known = f"yes: its {kind} is the published one"
      else:
        known = f"no: the published file has the {kind} {digits}"
      print(f"published   {known}")
  weights = weight_files.read(path)
  print(f"what        {weights.title}")
  print(f"pixel_mean  {weights.pixel_mean}  red, green, blue in 0..255")
  print(f"pixel_std   {weights.pixel_std}")
  print(f"fc6         {'yes: it can begin W_fx' if 'fc6/kernel' in weights.tensors else 'no'}")


def show_places() -> None:
  """Prints every published file of every backbone, and where it lies."""
  width = max(map(len, backbones.SPECS))
  for spec in backbones.SPECS.values():
    for place in published.places(spec):
      print(f"{spec.name:<{width}}  {place.source}  {place.path if place.is_there else 'not here'}")


def export(model: str, out: pathlib.Path) -> None:
  """Exports a trained model by the flags."""
  from rmam_jax.inference import portable, predictor

  if _FORMAT.value == "safetensors":
    exported.export(predictor.find(model), out, half=_HALF.value)
    print(f"wrote {out}")
  else:
    if _FORMAT.value == "onnx" and _HALF.value:
      raise UserError("--half is for safetensors and stablehlo: ONNX's tools halve a graph")
    apart = portable.export(exported.load(predictor.find(model)), out, _FORMAT.value, half=_HALF.value)
    print(f"wrote {out / 'recognizer'}.{_FORMAT.value} and {out / 'recognizer.json'}")
    print(f"on two images of noise its probabilities are those of rmam_jax, to {apart:.0e}")


def main(argv: list[str]) -> None:
  verb = argv[1] if argv[1:] and argv[1] in _VERBS else ""
  if len(argv) != _VERBS[verb] or (verb and _OUT.value):
    raise app.UsageError(
      "give FILE [--out=NEW.safetensors], list, fetch BACKBONE, fetch hf:OWNER/REPO[/FILE], or export MODEL OUT [--half]"
      " [--format=stablehlo|onnx]"
    )
  with commands.reported_errors():
    if verb == "export":
      export(argv[2], pathlib.Path(argv[3]))
    elif verb == "list":
      show_places()
    elif verb == "fetch":
      print(published.of_hub(argv[2]) if argv[2].startswith("hf:") else published.imagenet(backbones.get(argv[2])))
    elif _OUT.value:
      out = pathlib.Path(_OUT.value)
      if out.suffix != ".safetensors" or out.exists():
        raise UserError(f"--out={out}: name a file that does not exist yet and ends in .safetensors")
      weight_files.write(out, weight_files.read(pathlib.Path(argv[1])))
      print(f"wrote {out}")
    else:
      describe(pathlib.Path(argv[1]))
