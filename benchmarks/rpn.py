"""How many objects of its run's data a trained region proposal network finds with its K surest regions, and how fast.

    python -m benchmarks.rpn runs/digits-easy-rlsd runs/digits-easy-rlsd_ft_rpn
    python -m benchmarks.rpn --regions=4,6,10 --split=validation runs/digits-easy-rlsd

Recall: the share of the objects with which some region has an IoU of at least 0.5. The boxes are only measured against,
but those of training scenes by a region proposal network that has learned from them (`rpn.data` empty: RLSD+ft-RPN).
"""

import contextlib
import functools
import pathlib
import time

import jax

from benchmarks import machine
from rmam_jax.data.splits import open_split
from rmam_jax.heads import rpn as rpn_lib
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.training import checkpoints, workdir
from rmam_jax.training import rpn as rpn_training
from rmam_jax.training import step as step_lib


def load(config, folder: pathlib.Path, mesh: jax.sharding.Mesh):
  """The region proposal network's parameters in a workdir."""
  init = functools.partial(step_lib.init_params, rpn_lib.build(config.model), size=config.data.crop_size)
  like = checkpoints.abstract(jax.eval_shape(init, jax.random.key(0)), mesh_lib.replicated(mesh))
  with contextlib.closing(checkpoints.StageCheckpoints(folder / "checkpoints" / rpn_training.NAME)) as saved:
    restored = saved.restore_best(like)
  if restored is None:
    raise FileNotFoundError(f"{folder} holds no region proposal network: train there with the head rlsd or rlsd_ft_rpn")
  return restored[0]


def measure(config, params, regions: int, split: str, mesh: jax.sharding.Mesh) -> tuple[float, float]:
  """The recall with so many regions on a split of the run's own data, and the milliseconds that an image takes."""
  own = config.copy_and_resolve_references()
  own.model.num_regions, own.data.proposals, own.data.num_proposals = regions, "objects", config.rpn.num_boxes
  records = open_split(own.data, split)
  forward = rpn_training.make_forward(rpn_lib.build(own.model), mesh)
  options = {"data": own.data, "batch_size": config.evaluation.batch_size}
  find = functools.partial(rpn_training.recall, forward, params, records, **options)
  find()  # compiles
  started = time.perf_counter()
  return find(), 1e3 * (time.perf_counter() - started) / len(records)


def main() -> None:
  parser = machine.make_parser(__doc__)
  parser.add_argument("folders", nargs="+", type=pathlib.Path, help="workdirs")
  parser.add_argument("--regions", default="2,4,6,10,20", help="K, several with commas")
  parser.add_argument("--split", default="test")
  parser.add_argument("--overlap", type=float, help="of the suppression; as configured if left out")
  flags = parser.parse_args()
  mesh = mesh_lib.make_mesh()
  print(machine.describe("jax"))
  print("\n" + machine.header("", "learned from", "K", "recall at IoU 0.5", "ms an image, decoding included"))
  for folder in flags.folders:
    config = workdir.read_config(folder)
    with config.unlocked():
      config.model.rpn.overlap = flags.overlap or config.model.rpn.overlap
    params = load(config, folder, mesh)
    for regions in map(int, flags.regions.split(",")):
      share, milliseconds = measure(config, params, regions, flags.split, mesh)
      source = config.rpn.data or f"{config.data.name} itself"
      print(machine.row(folder.name, source, regions, f"{100 * share:.1f}", f"{milliseconds:.2f}"))


if __name__ == "__main__":
  main()
