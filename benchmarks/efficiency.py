"""The paper's claim of efficiency: ten views of one image, in ms, by scale, ours beside what it prints.

    python -m benchmarks.efficiency                                  # VGG-16 as printed, at 512 and 640; 5 GB of memory
    python -m benchmarks.efficiency --heads=recurrent --batch=16     # in batches, for throughput

The paper: about 150 ms at 512 and 200 ms at 640 on a GeForce GTX TITAN X (Sec. 5.1), and 10 s for HCP, which looks at 500
proposals. Here one program on the first device, from uint8 pixels in the host's memory to scores and features there,
random weights: they change no time. The SVMs come after it, one product of 4,096 x L.
"""

import jax
import numpy as np

from benchmarks import machine
from configs import common, voc
from rmam_jax import heads, recognizer
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.training import step as step_lib

PAPER = {"512": "150", "640": "200"}  # ms, of `recurrent`


def seconds(scale: str, head: str, mirror: str, batch: int, width: int, repeats: int) -> float:
  """The median time of a call for ten views of a batch of images."""
  config = voc.get_config(f"{scale}:{head}")
  config.evaluation.mirror = mirror
  config.model.x_width = config.model.lstm_width = config.model.z_width = width
  spec = heads.get(head)
  auxiliary = config.stage_one.head if spec.guide == heads.DENSE_SCORES else ""
  model = recognizer.build(config.model, 20, head=head, auxiliary=auxiliary)
  size = config.data.image_size
  params = jax.jit(lambda key: step_lib.init_params(model, key, config.data.crop_size))(jax.random.key(0))
  forward = outputs_lib.make_forward(model, mesh_lib.make_mesh(jax.devices()[:1]), views_lib.from_config(config))
  images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
  jax.device_get(forward(params, images))  # compiled here
  return machine.medians({head: lambda: jax.device_get(forward(params, images))}, repeats)[head]


def main() -> None:
  able = [name for name, spec in heads.SPECS.items() if spec.guide != heads.BOXES]  # proposals have no ten views
  parser = machine.make_parser(__doc__, repeats=3)
  parser.add_argument("--heads", default="recurrent,rarl,mean_pool", help=f"some of {', '.join(able)}")
  parser.add_argument("--scales", default=",".join(common.SCALES))
  parser.add_argument("--mirror", choices=views_lib.MIRRORS, default="image")
  parser.add_argument("--batch", type=int, default=1, help="images in a call")
  parser.add_argument("--width", type=int, default=4096, help="of x, the LSTM and z")
  flags = parser.parse_args()
  names, scales = flags.heads.split(","), flags.scales.split(",")
  if unknown := sorted({*names} - {*able}):
    parser.error(f"--heads must be some of {', '.join(able)}, got {unknown[0]!r}")
  print(f"{machine.describe_device('flax', 'numpy')}. Ten views, mirrored {flags.mirror}, batches of {flags.batch};")
  print(f"ms an image, medians of {flags.repeats}.\n")
  print(machine.header("", *(f"N = {scale}" for scale in scales)))
  print(machine.row("the paper, TITAN X", *(PAPER.get(scale, "") for scale in scales)))
  options = {"mirror": flags.mirror, "batch": flags.batch, "width": flags.width, "repeats": flags.repeats}
  for head in names:
    found = [machine.milliseconds(seconds(scale, head, **options) / flags.batch) for scale in scales]
    print(machine.row(f"`{head}`", *found), flush=True)


if __name__ == "__main__":
  main()
