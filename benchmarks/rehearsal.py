"""The paper's system at full size on digit scenes drawn at 512 x 512: does it fit, how fast is it, does it learn?

    python -m benchmarks.rehearsal --minutes=10                        # VGG-16, N = 512, K = 5, batch 16: for a GPU
    python -m benchmarks.rehearsal --minutes=2 --small                 # a thin model at 96 pixels

Both stages from random weights, each for half of the time, on scenes that are drawn before the clock runs and kept in
memory; random crops of N - 64, not mirrored. Prints throughput, memory, the loss over time, and the network's mAP on
test scenes before and after each stage.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine, roofline, steps
from configs import common, voc
from rmam_jax.data.digits import scenes
from rmam_jax.evaluation import metrics
from rmam_jax.runtime import progress
from rmam_jax.training import stages
from rmam_jax.training import step as step_lib

SMALL = {
  "model.backbone": "vgg_thin",
  **{f"model.{name}_width": 128 for name in ("x", "lstm", "z")},
  **{"model.region_size": (5, 5), "model.region_pool": 1, "data.image_size": 96, "data.crop_size": 88},
}
TEST_SCENES = 512
LINES = 10  # of the loss, for each stage


def draw_scenes(size: int, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Scenes of `easy` drawn at another size: uint8 [n, size, size, 3] and labels float32 [n, L]."""
  easy = scenes.SETTINGS["easy"]
  sides = {
    name: tuple(length * size // easy.size for length in getattr(easy, name))
    for name in ("object_size", "fragment_size")
  }
  setting = dataclasses.replace(easy, size=size, **sides)
  images = np.empty((count, size, size, 3), np.uint8)
  labels = np.zeros((count, len(scenes.CLASSES)), np.float32)
  with concurrent.futures.ProcessPoolExecutor() as pool:
    drawn = pool.map(functools.partial(scenes.draw_scene, setting, split), range(count), chunksize=16)
    for index, (image, present, _) in enumerate(progress.bar(drawn, f"drawing {split}", count, unit=" scenes")):
      images[index], labels[index, present] = image, 1
  return images, labels


def crops(images, labels, batch_size: int, side: int, rng: np.random.Generator):
  """Endless batches of random crops, on the device."""
  while True:
    chosen = rng.integers(len(images), size=batch_size)
    tops, lefts = rng.integers(0, images.shape[1] - side + 1, (2, batch_size))
    cut = [images[i, top : top + side, left : left + side] for i, top, left in zip(chosen, tops, lefts, strict=True)]
    marks = {"labels": labels[chosen], "ignore": np.zeros((batch_size, labels.shape[1]), bool)}
    yield jax.device_put({"image": np.stack(cut), "mask": np.ones(batch_size, np.float32), **marks})


def mean_ap(stage, params, images, labels, side: int, batch_size: int) -> float:
  """All-point mAP of the network's scores on centre crops."""
  start = (images.shape[1] - side) // 2

  @jax.jit
  def scores(params, images):
    return stage.model.apply({"params": params}, images)[0].scores.max(axis=0)

  centre = images[:, start : start + side, start : start + side]
  every = [np.asarray(scores(params, centre[i : i + batch_size])) for i in range(0, len(images), batch_size)]
  return metrics.mean_average_precision(metrics.average_precisions(np.concatenate(every), labels))


def peak_gigabytes() -> str:
  """Of the device's memory, where it tells, else of this process."""
  told = jax.devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in told:
    return f"{told['peak_bytes_in_use'] / 1e9:.1f} GB of the device"
  return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.1f} GB of the process"


def train(stage, params, batches, seconds: float):
  """Steps for so long: parameters, (seconds, loss) of every step, the operations of one."""
  state = jax.tree.map(jnp.array, step_lib.TrainState(np.int32(0), params, stage.optimizer.init(params)))
  first = next(batches)
  counted, program = steps.count(stage, state, first), steps.compile_step(stage, state, first)
  waiting, told = collections.deque(), []
  started, bar = time.perf_counter(), progress.bar(None, stage.name, round(seconds), unit=" s")
  while (now := time.perf_counter() - started) < seconds or not told:
    state, found = program(state, next(batches))
    waiting.append(found["loss"])
    if len(waiting) > 1:  # the host stays one step ahead of the device
      told.append((time.perf_counter() - started, float(waiting.popleft())))
    bar.update(int(min(now, seconds)) - bar.n)
  bar.close()
  return state.params, told, counted


def main() -> None:
  parser = machine.make_parser(__doc__)
  parser.add_argument("--minutes", type=float, default=10, help="of training, both stages together")
  parser.add_argument("--scenes", type=int, default=4_000, help="to train on")
  parser.add_argument("--head", default="recurrent", choices=("recurrent", "saliency", *common.POOLS))
  parser.add_argument("--rate", type=float, default=1e-4, help="of Adam, for random weights")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--small", action="store_true")
  arguments = parser.parse_args()
  config = voc.get_config(arguments.head)
  config.model.dtype = arguments.dtype
  config.model.pixel_mean, config.model.pixel_std = (90.0,) * 3, (64.0,) * 3  # the digit scenes'
  if arguments.small:
    config.update_from_flattened_dict(SMALL)
  for section in (config.stage_one, config.stage_two):
    section.learning_rate, section.warmup_steps = arguments.rate, 100
  size, side = config.data.image_size, config.data.crop_size
  train_scenes = draw_scenes(size, "train", arguments.scenes)
  test_scenes = draw_scenes(size, "test", TEST_SCENES)
  batches = crops(*train_scenes, config.batch_size, side, np.random.default_rng(0))

  print(f"{machine.describe_device('flax', 'optax')}. Head {arguments.head},")
  print(f"crops of {side} from {size}, batch {config.batch_size}, {arguments.dtype}, Adam {arguments.rate:g}.\n")
  rows, curves, params = [], [], None
  for name in stages.NAMES:
    stage = stages.build(config, name, num_classes=len(scenes.CLASSES), num_records=arguments.scenes)
    fresh = jax.jit(functools.partial(step_lib.init_params, stage.model, size=side))(jax.random.key(0))
    params = fresh if params is None else stages.take_over(fresh, params, stages.kept_head(config))
    before = mean_ap(stage, params, *test_scenes, side, config.batch_size)
    params, told, counted = train(stage, params, batches, 30 * arguments.minutes)
    after = mean_ap(stage, params, *test_scenes, side, config.batch_size)
    intervals = np.diff([seconds for seconds, _ in told][len(told) // 2 :])
    each = float(np.median(intervals)) if len(intervals) else told[-1][0] / len(told)
    rate = f"{config.batch_size / each:,.1f}"
    rows.append(machine.row(name, len(told), rate, f"{1e3 * each:,.0f}", f"{before:.3f}", f"{after:.3f}"))
    parts = np.array_split(np.array(told), min(LINES, len(told)))
    curves += [machine.row(name, f"{part[-1, 0]:,.0f}", f"{part[:, 1].mean():.4f}") for part in parts]
  print(machine.header("", "steps", "images/s", "ms a step", "test mAP before", "after"))
  print("\n".join(rows) + f"\n\nPeak memory: {peak_gigabytes()}. A step of {name},")
  print(f"{roofline.by_operations(counted, each, arguments.dtype)}. {roofline.ceilings(arguments.dtype)}\n")
  print(machine.header("", "seconds", "mean loss since the line before"))
  print("\n".join(curves))


if __name__ == "__main__":
  main()
