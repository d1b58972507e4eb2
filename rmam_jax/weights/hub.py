"""The Hugging Face hub, by its own library (the extra `hub`), with its errors in words."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from rmam_jax.runtime.errors import UserError
from rmam_jax.runtime.files import named, user_cache

REPOSITORY = r"[\w.-]+/[\w.-]+"  # OWNER/NAME, as a pattern
EXTRA = "pip install 'rmam_jax[hub]'"
UNREACHED = "and cannot be fetched from the Hugging Face hub"


def library(otherwise: str) -> Any:
  """The module `huggingface_hub`. Where it is not installed, raises a UserError of the sentence `otherwise`."""
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(otherwise) from error
  return huggingface_hub


def cache_folder() -> pathlib.Path:
  """Where the hub's library keeps what it has fetched."""
  home = os.environ.get("HF_HOME") or user_cache() / "huggingface"
  return named(os.environ.get("HF_HUB_CACHE") or pathlib.Path(home) / "hub")


@contextlib.contextmanager
def reported(repository: str, failed: str, remedy: str = "") -> Iterator[None]:
  """Within, what the hub's library raises becomes a UserError.

  Args:
    repository: "hf:OWNER/NAME", for the message.
    failed: what could not be done, e.g. "hf:a/b/c.bin cannot be fetched".
    remedy: what else can be done where the hub cannot be reached.
  """
  from huggingface_hub import errors

  remedy = remedy and f". {remedy}"
  try:
    yield
  except UserError:
    raise
  except errors.GatedRepoError as error:
    raise UserError(f"{repository} asks for consent: agree to its terms on its page, then `hf auth login`") from error
  except errors.RepositoryNotFoundError as error:
    raise UserError(
      f"{repository}: the hub has no such repository, or it is private, which needs `hf auth login`"
    ) from error
  except errors.RevisionNotFoundError as error:
    raise UserError(f"{repository} has no such revision: name a branch, a tag or a commit of it") from error
  except Exception as error:  # of many kinds: of names, the network, the disk
    offline = isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled)
    reason = "HF_HUB_OFFLINE is set" if offline else str(error).strip().partition("\n")[0]
    raise UserError(f"{failed} ({reason}){remedy}") from error


def fetch(repository: str, revision: str | None, names: Sequence[str]) -> pathlib.Path:
  """The folder, in the hub's own cache, with these files of one revision of "hf:OWNER/NAME", as far as it has them.

  `revision` is a branch, a tag or a commit; None: the main branch. Files that are there are not fetched again, and without
  a network those of the last time are taken. Raises UserError: it cannot be had, and why.
  """
  client = library(f"{repository} is on the Hugging Face hub, and {EXTRA} is needed to fetch it")
  remedy = "With a network the same command fetches it, once; or copy the recognizer's folder and name that"
  with reported(repository, f"{repository} is not here {UNREACHED}", remedy):
    found = client.snapshot_download(
      repository.removeprefix("hf:"), revision=revision, allow_patterns=list(names), cache_dir=cache_folder()
    )
  return pathlib.Path(found)
