"""Opens a page on this machine: drop an image, see its labels and where they are; JSON by POST /predict.

    rmam-jax serve                                     # the shipped recognizer of photographs, at http://127.0.0.1:8000
    rmam-jax serve --workdir=runs/mine --port=8080
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/predict

It needs pip install 'rmam_jax[serve]'. No image is kept. There is no password: with --host=0.0.0.0 everyone who reaches
this machine can use it.
"""

from absl import flags

from rmam_jax import commands

_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "What predict takes: folder of a finished train.py run, or an exported model; hf:OWNER/NAME[@REVISION]; or a shipped"
  " one: photographs, digits-easy; by default photographs.",
)
_HOST = flags.DEFINE_string(
  "host", "127.0.0.1", "The address to listen at; by default this machine alone can reach it."
)
_PORT = flags.DEFINE_integer(
  "port", 8000, "The port to listen at; 0: any that is free.", lower_bound=0, upper_bound=65535
)
_MEGABYTES = flags.DEFINE_float("max_megabytes", 20.0, "Most megabytes that a file may have.", lower_bound=0.001)
_MEGAPIXELS = flags.DEFINE_float(
  "max_megapixels", 50.0, "Most megapixels that an image may have; more than 89 are never read.", lower_bound=0.001
)


def main(argv: list[str]) -> None:
  from rmam_jax.inference import predictor, serve

  commands.no_arguments(argv)
  commands.keep_compiled()
  with commands.reported_errors(interrupted="no longer served"):
    recognizer = predictor.load(_WORKDIR.value)
    title = _WORKDIR.value or predictor.DEFAULT
    limits = {"max_bytes": int(_MEGABYTES.value * 1e6), "max_pixels": int(_MEGAPIXELS.value * 1e6)}
    serve.serve(recognizer, title=title, host=_HOST.value, port=_PORT.value, **limits)
