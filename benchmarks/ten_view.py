"""The ten-view program, which cuts views from feature maps, against ten passes over cropped pixels.

    python -m benchmarks.ten_view                        # VGG-16 at 512, batch 1, random weights
    python -m benchmarks.ten_view --scale=640 --mirror=map

Both sides are one jitted program over the same images, with the same head. Beside the times stand the operations of
each by formula: their ratio is what the times could show at best.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine, operations, roofline
from configs import common, voc
from rmam_jax import recognizer
from rmam_jax.evaluation import outputs as outputs_lib
from rmam_jax.evaluation import views as views_lib
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.training import step as step_lib


def ten_passes(model, params, images, *, size: int, crop: int):
  """Ten crops of each image, each through the whole recognizer, one batch of crops after the other."""
  end = size - crop

  def one(params, crops):
    attention, _ = model.apply({"params": params}, crops)
    return attention.scores.max(axis=0), attention.z.max(axis=0)

  corners = ((end // 2, end // 2), (0, 0), (0, end), (end, 0), (end, end))
  crops = [images[:, top : top + crop, left : left + crop] for top, left in corners]
  crops = jnp.stack(crops + [each[:, :, ::-1] for each in crops])
  scores, features = jax.lax.map(lambda each: one(params, each), crops)
  return scores.mean(axis=0), features.mean(axis=0)


def main() -> None:
  parser = machine.make_parser(__doc__, repeats=3)
  parser.add_argument("--scale", choices=common.SCALES, default="512")
  parser.add_argument("--mirror", choices=views_lib.MIRRORS, default="image")
  parser.add_argument("--batch", type=int, default=1, help="images in a call")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--width", type=int, default=4096, help="of x, the LSTM and z")
  arguments = parser.parse_args()
  config = voc.get_config(arguments.scale)
  config.evaluation.mirror, config.model.dtype = arguments.mirror, arguments.dtype
  config.model.x_width = config.model.lstm_width = config.model.z_width = arguments.width
  size, crop = config.data.image_size, config.data.crop_size
  model = recognizer.build(config.model, 20, head=config.model.head)
  params = jax.jit(lambda key: step_lib.init_params(model, key, crop))(jax.random.key(0))
  images = np.random.default_rng(0).integers(0, 256, (arguments.batch, size, size, 3), np.uint8)

  forward = outputs_lib.make_forward(model, mesh_lib.make_mesh(jax.devices()[:1]), views_lib.from_config(config))
  programs = {
    "ten views cut from feature maps": lambda params, images: forward.program(params, images, None),
    "ten passes over cropped pixels": functools.partial(ten_passes, model, size=size, crop=crop),
  }
  images = jax.device_put(images)
  counts = {name: operations.count(program, params, images) for name, program in programs.items()}
  work = {
    name: functools.partial(machine.finish, jax.jit(program), params, images) for name, program in programs.items()
  }
  for each in work.values():
    each()  # compiled here
  found = machine.medians(work, arguments.repeats)
  print(f"{size} x {size}, {arguments.batch} image(s), {config.model.dtype}, mirrored {arguments.mirror}.")
  print(f"{machine.describe_device('flax', 'numpy')}. Medians of {arguments.repeats}.\n")
  print(machine.header("", "ms", "reached"))
  for name, seconds in found.items():
    reached = roofline.by_operations(counts[name], seconds, config.model.dtype)
    print(machine.row(name, machine.milliseconds(seconds), reached))
  (cut, separate), (few, many) = found.values(), counts.values()
  print(machine.row("ratio", f"{separate / cut:.2f}", f"{many / few:.2f} by formula"))
  print(f"\n{roofline.ceilings(config.model.dtype)}")


if __name__ == "__main__":
  main()
