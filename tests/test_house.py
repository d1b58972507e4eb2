"""The house as CONTRIBUTING.md draws it: who may import whom, who may name a head or a backbone, what the wheel holds."""

import ast
import configparser
import pathlib
import re

from rmam_jax import backbones, heads

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "rmam_jax"
# Each imports only from those before it, and from itself.
ROOMS = (
  *(
    "version",
    "runtime",
    "ops",
    "backbones",
    "heads",
    "recognizer",
    "config",
    "data",
    "weights",
    "evaluation",
    "visual",
  ),
  *("training", "inference", "reproduction", "commands", "__main__"),
)


def modules():
  for path in sorted(PACKAGE.rglob("*.py")):
    yield path, ast.parse(path.read_text())


def room_of(path):
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(tree):
  for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rmam_jax":
      parts = node.module.split(".")[1:]
      names = parts[:1] or [alias.name for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("rmam_jax.")]
    yield from names


def test_a_room_imports_only_from_those_before_it():
  wrong = []
  for path, tree in modules():
    if path.name == "__init__.py" and path.parent == PACKAGE:
      continue  # the functional API, and what `load` imports when it is called
    allowed = ROOMS[: ROOMS.index(room_of(path)) + 1]
    wrong += [
      f"{path.relative_to(ROOT)} imports {room}"
      for room in imported_rooms(tree)
      if room not in (*allowed, "__version__")
    ]
  assert not wrong


def test_nobody_compares_heads_or_backbones_by_name():
  """Outside `heads/` and `configs/` everyone asks a head's spec; tables as data may name their rows."""
  names = {*heads.SPECS, *backbones.SPECS}
  wrong = []
  for path, tree in modules():
    if room_of(path) in ("heads", "backbones"):
      continue
    for node in ast.walk(tree):
      operands = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
      found = {each.value for operand in operands for each in ast.walk(operand) if isinstance(each, ast.Constant)}
      wrong += [f"{path.relative_to(ROOT)}:{node.lineno} compares with {name!r}" for name in found & names]
  assert not wrong


def test_only_backbones_and_weights_know_of_the_vgg():
  texts = {path: path.read_text() for path, _ in modules() if room_of(path) not in ("backbones", "weights")}
  assert [
    str(path) for path, text in texts.items() if re.search("vgg", text.replace('"vgg16"', ""), re.IGNORECASE)
  ] == []


def test_the_map_and_the_wheel_know_every_room():
  rooms = {room_of(path) for path, _ in modules()} - {"__init__", "__main__", "version"}
  assert rooms <= {*ROOMS}
  drawn = re.findall(r"^\| (`.+?`(?:, `.+?`)*) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
  assert {name.strip("`/").removesuffix(".py") for row in drawn for name in row.split(", ")} == rooms
  metadata = configparser.ConfigParser()
  metadata.read(ROOT / "setup.cfg")
  packages = {path.parent for path, _ in modules()}
  wanted = {".".join(path.relative_to(ROOT).parts) for path in packages} | {"rmam_jax.configs"}
  assert set(metadata["options"]["packages"].split()) == wanted
