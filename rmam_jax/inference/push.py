"""Publishes a trained recognizer on the Hugging Face hub, with a model card."""

import pathlib
import re
import shutil
import sys
import tempfile
from typing import Any

from rmam_jax.inference import model_card
from rmam_jax.runtime.errors import UserError, os_errors
from rmam_jax.training import exported
from rmam_jax.weights import hub, tensors

CARD = "README.md"


def push(
  folder: pathlib.Path,
  repository: str,
  *,
  private: bool = False,
  license: str = "",
  half: bool = False,
  api: Any = None,
) -> str:
  """Publishes a workdir's best epoch or an exported model as OWNER/NAME, which is made where it is not there.

  One commit holds `exported.FILES` and the card; what else the repository has stays.

  Args:
    folder: a workdir or an exported model.
    repository: OWNER/NAME.
    private: whether only its owner may see the repository; one that is there and public is then refused.
    license, half: see `prepare`.
    api: a `huggingface_hub.HfApi`; by default one for the user who has logged in.

  Returns:
    The commit's address.

  Raises UserError: the folder holds no model, the hub cannot be reached or refuses.
  """
  client = hub.library(f"push speaks to the hub by huggingface_hub, and {hub.EXTRA} is needed for it")
  check_repository(repository)
  api = api or client.HfApi()
  with tempfile.TemporaryDirectory() as place:
    prepare(folder, repository, pathlib.Path(place, "model"), license=license, half=half)
    with hub.reported(
      f"hf:{repository}", f"hf:{repository} was not written", "`hf auth login` tells the hub who you are"
    ):
      api.create_repo(repository, private=private, exist_ok=True)
      if private and not api.repo_info(repository).private:
        raise UserError(f"hf:{repository} is there and public: make it private on its page, or push without --private")
      return str(
        api.upload_folder(
          repo_id=repository, folder_path=str(pathlib.Path(place, "model")), commit_message="A recognizer of rmam_jax"
        ).commit_url
      )


def prepare(folder: pathlib.Path, repository: str, out: pathlib.Path, *, license: str = "", half: bool = False) -> str:
  """Makes the folder that `push` uploads; returns the card.

  Args:
    folder: a workdir or an exported model.
    repository: OWNER/NAME.
    out: a new or empty folder.
    license: as the hub names it; "": the card states none.
    half: see `exported.export`.
  """
  if half or not (folder / exported.FILES[0]).exists():
    exported.export(folder, out, half=half)
  else:
    out.mkdir(parents=True, exist_ok=True)
    for name in exported.FILES:
      with os_errors(f"cannot copy {folder / name} to {out}"):
        shutil.copyfile(folder / name, out / name)
  trained = exported.load(out)  # without paths of this machine
  if trained.results is None:
    print(f"{folder} has no results for the card: eval.py measures those of a workdir", file=sys.stderr)
  with tensors.open_safetensors(out / exported.FILES[1]) as (entries, _):
    halved = any(entry.dtype == "float16" for entry in entries.values())
  card = model_card.write(trained, repository, license=license, halved=halved)
  (out / CARD).write_text(card, encoding="utf-8")
  return card


def check_repository(name: str) -> None:
  """Raises UserError unless it is OWNER/NAME."""
  if not re.fullmatch(hub.REPOSITORY, name):
    raise UserError(f"--repo must be OWNER/NAME, got {name!r}")
