"""Looks at a folder of your own images and writes a configuration for it, to be read and changed.

    rmam-jax init FOLDER                            # NAME_config.py, here; NAME is the folder's
    rmam-jax init all.csv                           # one list, which becomes three: training, validation, test
    rmam-jax init train.csv val.csv test.csv        # those that you mean, where a folder holds more
    rmam-jax init FOLDER --out=configs/mine.py

Lists may lie in the folder or in the folders right below it; docs/data.md says what they may look like. Their names, or
those of their folders, tell the splits: train, val, test. An image is not opened: `rmam-jax validate` does that.
"""

import json
import pathlib
import re
import sys

from absl import flags

from rmam_jax import commands
from rmam_jax.data import discovery
from rmam_jax.runtime import files
from rmam_jax.runtime.errors import UserError

_OUT = flags.DEFINE_string("out", None, "File to write; by default NAME_config.py.")

_SHOWN = 5  # files that were passed over, and labels in the written file

_TEMPLATE = '''\
"""{title}, as `rmam-jax init` found them: {found}.

    rmam-jax validate --config={file}                        # reads every line and every image
    rmam-jax train --config={file} --workdir=runs/{name}
    rmam-jax eval --workdir=runs/{name} --gallery={name}.html
    rmam-jax predict --workdir=runs/{name} photo.jpg more/

--config={file}:tuned trains the backbone, too; :thin needs no file of weights, and so no internet.
A line below that begins with # shows what holds now: change it and take the # away.
"""

from configs import custom

FOLDER = {folder}


def get_config(variant: str = ""):
  """`variant` is that of configs/custom.py: BACKBONE:RECIPE:SCALE:HEAD, each of which may be left out."""
  config = custom.get_config(variant)
  data = config.data
{fields}

  # data.classes = {classes}
  # data.images = {images}
  # data.corrupt = "error"  # or "skip": images that cannot be read are left out and listed
  # config.stage_two.epochs = {epochs}
  # config.model.num_regions = {regions}  # how many regions are looked at
  return config
'''


def _quoted(text: str) -> str:
  return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)  # e.g. a name that is no UTF-8


def _printable(text: str) -> str:
  return text.encode(errors="replace").decode()


def _relative(name: str, folder: pathlib.Path) -> str:
  """A path as Python: below the folder where it is."""
  own = str(folder)
  if name == own:
    return "FOLDER"
  return f"FOLDER + {_quoted(name[len(own) :])}" if name.startswith((f"{own}/", f"{own}:")) else _quoted(name)


def _write(out: pathlib.Path, found: discovery.Found, name: str) -> None:
  commands.find_config("configs/custom.py")  # puts it where it can be imported from
  from configs import custom

  default, train = custom.get_config(), found.manifests[0]
  lines = [
    f"  data.{field} = {value if field == 'split' else _relative(value, found.folder)}"
    for field, value in found.fields.items()
  ]
  shown = ", ".join(map(_quoted, train.labels[:_SHOWN])) + "," * (len(train.labels) == 1)
  first = f"the first of {len(train.labels)}; " if len(train.labels) > _SHOWN else ""
  text = _TEMPLATE.format(
    title=_printable(f"The images of {found.folder}").replace("\\", "/").replace('"""', "'''"),
    found="; ".join(f"{each.images:,} for {each.split}" for each in found.manifests),
    file=_printable(str(out)),
    name=name,
    folder=_quoted(str(found.folder)),
    fields="\n".join(lines),
    classes=f"({shown})  # {first}labels that are not named are left out",
    images=f"{_relative(train.folder, found.folder)}  # that the lists' names of images are relative to",
    epochs=default.stage_two.epochs,
    regions=default.model.num_regions,
  )
  files.write_text(out, text)


def main(argv: list[str]) -> None:
  if len(argv) < 2:
    sys.exit("error: name a folder or a list of your own images")
  with commands.reported_errors():
    found = discovery.look(argv[1:])
    named = pathlib.Path(argv[1])
    first = found.folder if len(argv) > 2 or named.is_dir() else named
    name = re.sub(r"\W+", "_", first.stem).strip("_").lower() or "my"
    out = pathlib.Path(_OUT.value or f"{name}_config.py")
    if out.suffix != ".py":
      raise UserError(f"--out={out}: a configuration is a file of Python, NAME.py")
    if out.exists():
      raise UserError(f"{out} exists: remove it or name another file with --out=FILE")
    for each in found.manifests:
      print(f"{each.split}: {each.name}, {each.images:,} images in {each.folder}, {len(each.labels)} labels")
      if each.problems:
        more = f" (and {len(each.problems) - 1:,} more)" if len(each.problems) > 1 else ""
        print(f"  problem: {each.problems[0]}{more}")
    if "split" in found.fields:
      print(f"data.split = {found.fields['split']} divides the list of training")
    for each in found.passed_over[:_SHOWN]:
      print(f"passed over: {each}")
    if len(found.passed_over) > _SHOWN:
      print(f"passed over: {len(found.passed_over) - _SHOWN} files more")
    _write(out, found, name)
    print(f"wrote {out}; next: rmam-jax validate --config={out}")
