"""The one kind of error that commands show as a sentence."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(ValueError):
  """What a user can mend: names the file, record or field and says what to do. All other errors keep their traceback."""


@contextlib.contextmanager
def os_errors(what: str, remedy: str = "") -> Iterator[None]:
  """Within, an OSError becomes a `UserError`: what cannot be done, why, and what to do about it."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or error
    if error.filename and str(error.filename) not in what:
      reason = f"{reason} ({error.filename})"
    raise UserError(f"{what}: {reason}" + (f". {remedy}" if remedy else "")) from error


def check_name(what: str, name: str, known: Iterable[str]) -> None:
  """Raises a `UserError` unless `name` is known: it lists what is, and says which is nearest."""
  known = list(known)
  if name not in known:
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{what} must be one of {', '.join(known)}, got {name!r}{hint}")
