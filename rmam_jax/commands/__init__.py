"""The commands, one module each, and what they have in common. `rmam-jax NAME` and `python NAME.py` run the same.

Each module has its help as docstring, its flags, and `main(argv)`.
"""

import ast
import contextlib
import importlib
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app, flags, logging

from rmam_jax.runtime import files, processes
from rmam_jax.runtime.errors import UserError, check_name

NAMES = ("init", "train", "eval", "predict", "serve", "reproduce", "validate", "prepare", "weights", "push")
KEPT_BYTES = 2**30
KEPT_SECONDS = 0.1  # what compiles faster is compiled again
INTERRUPTED, TERMINATED = 130, 143  # exit statuses after Ctrl-C and SIGTERM, as shells have them


def main() -> NoReturn:
  """What `rmam-jax` and `python -m rmam_jax` call: the first argument is a command's name."""
  name, *arguments = sys.argv[1:] or ["--help"]
  if name in ("-h", "--help", "--helpshort", "--helpfull"):
    print("usage: rmam-jax NAME [--FLAG=VALUE ...]; rmam-jax NAME --help lists a command's flags\n")
    for each in NAMES:
      help_text = ast.get_docstring(ast.parse(pathlib.Path(__file__).with_name(f"{each}.py").read_text()))
      print(f"  {each:<10} {help_text.splitlines()[0]}")
    sys.exit()
  with _reported_flags():
    check_name("the command", name, NAMES)
  run(name, arguments)


def run(name: str, arguments: Sequence[str] | None = None) -> NoReturn:
  """Runs the command of this name; its arguments, without the program's name, are by default the process's."""

  def found(before: str, argument: str) -> str:
    argument = expand_home(argument)
    flag, equals, value = argument.partition("=")
    if before == "--config":
      return find_config(argument)
    return f"{flag}={find_config(value)}" if flag == "--config" and equals else argument

  def parse(argv: list[str]) -> list[str]:
    with _reported_flags():
      return flags.FLAGS(argv)

  with _reported_flags():
    # ml_collections reads the process's own arguments, already where a module defines its flags.
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.argv[1:] = map(found, ["", *arguments], arguments)
    module = importlib.import_module(f"rmam_jax.commands.{name}")
  sys.modules["__main__"].__doc__ = module.__doc__  # which --help shows, with the flags of these modules
  for defining in (module.__name__, __name__):
    for flag in flags.FLAGS.get_flags_for_module(defining):
      flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  sys.stdout.reconfigure(errors="backslashreplace")  # what is named may have bytes that are no text, as on stderr
  app.run(module.main, flags_parser=parse)


def expand_home(argument: str) -> str:
  """An argument with every path in it that begins with ~/ or ~NAME/ written out; shells leave those after = and commas."""
  return re.sub(r"(?<![^=,])~\w*(?=/)", lambda home: os.path.expanduser(home[0]), argument)


@contextlib.contextmanager
def _reported_flags() -> Iterator[None]:
  """Within, a flag or a field that does not exist or has a wrong value ends the process with one line."""
  try:
    yield
  except UserError as error:
    sys.exit(f"error: {error}")
  except flags.Error as error:
    text = str(error).strip()
    if "Traceback" in text:  # of the user's own configuration file
      if (found := re.search(r"UserError: (.*)", text)) is None:
        raise
      text = found[1]
    sys.exit(f"error: {text}")
  except (AttributeError, KeyError) as error:
    if "ml_collections" not in traceback.extract_tb(error.__traceback__)[-1].filename:
      raise
    field = re.search(r"'(\w+)\\?'", str(error))[1]
    flag = next((each.partition("=")[0] for each in sys.argv[1:] if re.search(rf"\.{field}\b", each)), field)
    near = re.search(r'Did you mean "(\w+)"', str(error))
    sys.exit(f"error: {flag}: there is no field {field!r}" + (f"; did you mean {near[1]!r}?" if near else ""))


def find_config(name: str) -> str:
  """FILE or FILE:VARIANT of a configuration as it is there, or else of this name among those of the package.

  Raises a UserError if there is none.
  """
  path, colon, variant = name.partition(":")
  package = pathlib.Path(__file__).parent.parent
  for folder in (pathlib.Path(), package, package.parent):
    if (folder / path).is_file():
      own = package if (package / "configs").is_dir() else package.parent  # a wheel's, or a checkout's
      # A configuration imports others beside it, and from `configs` those of the package.
      sys.path += [str((folder / path).absolute().parent.parent), str(own)]
      return f"{folder / path}{colon}{variant}"
  raise UserError(f"--config: there is no file {path}")


class Terminated(KeyboardInterrupt):
  """SIGTERM; otherwise as Ctrl-C."""


def _terminate(*_) -> NoReturn:
  raise Terminated


@contextlib.contextmanager
def reported_errors(*, interrupted: str = "the same command goes on from there") -> Iterator[None]:
  """Within, a `UserError` ends the process with its sentence and status 1; `--verbosity=1` adds the traceback.

  Any other error is a bug and keeps its traceback. Ctrl-C and SIGTERM end the process with `INTERRUPTED` and
  `TERMINATED`, and it prints `interrupted`; training finishes its step and saves it first.
  """
  verbose = logging.get_verbosity() >= logging.DEBUG
  if not verbose:
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
  before = signal.signal(signal.SIGTERM, _terminate)
  try:
    yield
  except UserError as error:
    if verbose:
      raise
    sys.exit(f"error: {error}")
  except KeyboardInterrupt as error:
    terminated = isinstance(error, Terminated)
    print(f"{'terminated' if terminated else 'interrupted'}: {interrupted}", file=sys.stderr)
    sys.exit(TERMINATED if terminated else INTERRUPTED)
  finally:
    signal.signal(signal.SIGTERM, before)


def no_arguments(argv: Sequence[str]) -> None:
  """Refuses arguments that are no flags."""
  if len(argv) > 1:
    sys.exit(f"error: unexpected argument {argv[1]!r}; --help lists the flags")


def define_processes() -> Callable[[], contextlib.AbstractContextManager[None]]:
  """Defines the flags of `processes.joined`; what is returned calls it with their values, once they are parsed."""
  coordinator = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first process, where several work together; or auto: ask the cluster."
  )
  others = (
    flags.DEFINE_integer("num_processes", None, "How many they are.", lower_bound=1),
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0),
    flags.DEFINE_integer(
      "heartbeat_seconds",
      60,
      "A process not heard of for so long is taken for dead, and all others end.",
      lower_bound=1,
    ),
  )
  return lambda: processes.joined(coordinator.value, **{flag.name: flag.value for flag in others})


def keep_compiled() -> None:
  """Keeps compiled programs in the user's cache folder, up to a gigabyte, so that the next command need not compile.

  With JAX_COMPILATION_CACHE_DIR they are kept there instead, and with JAX_ENABLE_COMPILATION_CACHE=0 nowhere.
  """
  import jax

  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(files.cache_folder() / "jit"))
    jax.config.update("jax_compilation_cache_max_size", KEPT_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_SECONDS)
