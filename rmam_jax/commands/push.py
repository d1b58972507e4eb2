"""Publishes a trained recognizer on the Hugging Face hub, with a model card written from its results.

    rmam-jax push --workdir=runs/mine --repo=OWNER/NAME --card_only       # only prints the card
    rmam-jax push --workdir=runs/mine --repo=OWNER/NAME --private
    rmam-jax push --workdir=exported --repo=OWNER/NAME --license=apache-2.0

Then `rmam-jax predict --workdir=hf:OWNER/NAME` and `rmam_jax.load("hf:OWNER/NAME")` have it. It needs the extra `hub`,
and `hf auth login` once.
"""

import pathlib
import tempfile

from absl import flags

from rmam_jax import commands

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a train.py run, or an exported model.", required=True)
_REPO = flags.DEFINE_string("repo", None, "OWNER/NAME; made where it is not there.", required=True)
_PRIVATE = flags.DEFINE_bool("private", False, "Only you, or your organisation, may see the repository.")
_LICENSE = flags.DEFINE_string("license", "", "As the hub names it, e.g. apache-2.0; by default the card states none.")
_HALF = flags.DEFINE_bool("half", False, "Publish matrices and kernels as float16: half the size.")
_CARD_ONLY = flags.DEFINE_bool("card_only", False, "Print the model card, and publish nothing.")


def main(argv: list[str]) -> None:
  from rmam_jax.inference import push

  commands.no_arguments(argv)
  folder, options = pathlib.Path(_WORKDIR.value), {"license": _LICENSE.value, "half": _HALF.value}
  with commands.reported_errors(interrupted="the same command publishes it"):
    push.check_repository(_REPO.value)
    if _CARD_ONLY.value:
      with tempfile.TemporaryDirectory() as place:
        print(push.prepare(folder, _REPO.value, pathlib.Path(place, "model"), **options), end="")
    else:
      print(push.push(folder, _REPO.value, private=_PRIVATE.value, **options))
