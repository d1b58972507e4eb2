"""Heads on a backbone that is not trained: maps are computed once, and training reads them in place of images."""

import multiprocessing
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmam_jax import recognizer
from rmam_jax.data import batches
from rmam_jax.data.splits import open_split
from rmam_jax.evaluation import outputs, stored_maps, views
from rmam_jax.runtime import files
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import evaluate, loop, pipeline, stages
from rmam_jax.training import step as step_lib
from tests.test_files import thin_config, write_csv
from tests.test_training import assert_trees_close, tiny_config

FROZEN = {"stage_one.backbone_rate": 0.0, "stage_two.backbone_rate": 0.0, "evaluation.views": "two"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "rmam_jax" / "maps"


def made(config):
  split, mesh = open_split(config.data, "train", 50), mesh_lib.make_mesh()
  model = recognizer.build(config.model, 10, head="mean_pool")  # other heads choose, and rounding may change a choice
  params = step_lib.init_params(model, jax.random.key(0), config.data.crop_size)
  return model, params, split, mesh


def maps_of(config, model, params, split, mesh, seen=views.CENTRE):
  return stored_maps.of_split(model, params, split, config=config, mesh=mesh, views=seen)


def windowed_config(data_root, **changes):
  """Images of 16 pixels, crops of 12: on a map of stride 2, windows of 6 of 8 cells."""
  config = tiny_config(data_root, **changes)
  config.data.image_size, config.data.crop_size = 16, 12
  return config


def test_the_maps_are_those_of_the_centre_view_and_of_its_mirror(data_root, cache):
  config = tiny_config(data_root)
  model, params, split, mesh = made(config)
  stored = maps_of(config, model, params, split, mesh)
  options = {"image_size": config.data.image_size, "crop_size": config.data.crop_size}
  ((images, _, _, _),) = batches.evaluation_batches(split, range(50), batch_size=50, **options)
  for side, seen in enumerate((images, images[:, :, ::-1])):
    wanted = model.apply({"params": params}, seen, method="feature_map")
    np.testing.assert_allclose(stored.maps[:, side], wanted, rtol=2e-3, atol=1e-4)
  assert np.abs(stored.maps[:, 0].astype("f") - stored.maps[:, 1]).max() > 0.1
  # Outputs from the maps are those from the images, with the mirror image and without.
  for seen in (views.CENTRE, views.CENTRE._replace(mirror="image"), views.CENTRE._replace(mirror="map")):
    forward = outputs.make_forward(model, mesh, seen)
    by_images, by_maps = (
      outputs.compute_outputs(forward, params, split, data=config.data, batch_size=20, maps=maps)
      for maps in (None, stored)
    )
    np.testing.assert_allclose(by_maps.scores, by_images.scores, atol=5e-3)
    assert by_maps.ids == by_images.ids


def test_a_computation_that_was_stopped_goes_on_and_other_weights_have_maps_of_their_own(data_root, cache, monkeypatch):
  config = tiny_config(data_root)
  model, params, split, mesh = made(config)
  monkeypatch.setattr(stored_maps, "CHUNK", 20)
  real, asked = batches.evaluation_batches, []

  def stopping(split, positions, **options):
    if positions.start == 20:
      raise KeyboardInterrupt
    return real(split, positions, **options)

  monkeypatch.setattr(batches, "evaluation_batches", stopping)
  with pytest.raises(KeyboardInterrupt):
    maps_of(config, model, params, split, mesh)

  def counting(split, positions, **options):
    asked.append(positions.start)
    return real(split, positions, **options)

  monkeypatch.setattr(batches, "evaluation_batches", counting)
  stored = maps_of(config, model, params, split, mesh)
  assert asked == [20, 40]
  maps_of(config, model, params, split, mesh)
  assert asked == [20, 40]  # read from disk
  other = jax.tree.map(lambda leaf: 2 * leaf, params)
  others = maps_of(config, model, other, split, mesh)
  assert asked == [20, 40, 0, 20, 40]
  assert len(list(cache.iterdir())) == 2
  assert (np.abs(others.maps.astype("f") - stored.maps).reshape(50, -1).max(axis=1) > 0.1).all()
  changed = config.copy_and_resolve_references()
  changed.model.pixel_mean = (1.0, 2.0, 3.0)
  keys = [stored_maps.make_key(each, split, params["backbone"], views.CENTRE) for each in (changed, config)]
  assert keys[0] != keys[1]


def test_where_windows_fit_the_cells_training_sees_them_at_random_and_ten_views_need_no_second_pass(data_root, cache):
  config = windowed_config(data_root)
  model, params, split, mesh = made(config)
  seen = views.of_frozen(config)
  assert (seen.windows, seen.side) == (((1, 1),), 6)
  stored = maps_of(config, model, params, split, mesh, seen)
  assert stored.maps.shape[1:4] == (2, 8, 8)
  for kind in ("five", "ten"):
    of_kind = views.from_config(config, kind)
    forward = outputs.make_forward(model, mesh, of_kind)
    by_images, by_maps = (
      outputs.compute_outputs(forward, params, split, data=config.data, batch_size=20, maps=maps)
      for maps in (None, maps_of(config, model, params, split, mesh, of_kind))
    )
    np.testing.assert_allclose(by_maps.scores, by_images.scores, atol=5e-3)
  assert len(list(cache.iterdir())) == 1  # one set of maps for training and for both
  options = {"batch_size": 25, "image_size": 16, "crop_size": 12, "flip": True, "seed": 0}
  stream, places = batches.train_batches(split, maps=stored, **options), set()
  for batch in (next(stream) for _ in range(8)):
    for window, name in zip(batch["feature_map"], batch["ids"], strict=True):
      both = stored.maps[next(index for index in range(50) if split[index].id == name)]
      found = {
        (side, top, left)
        for side in (0, 1)
        for top in range(3)
        for left in range(3)
        if np.array_equal(window, both[side, top : top + 6, left : left + 6])
      }
      assert len(found) == 1
      places |= found
  assert len(places) == 2 * 3 * 3

  config.data.image_size = 14  # half of what the crop leaves is no whole cell
  assert views.of_frozen(config) == views.CENTRE
  config.data.image_size = config.data.crop_size
  assert views.of_frozen(config) == views.CENTRE


def test_boxes_follow_the_windows(data_root):
  """The same cells of the image, whichever window and side: where they are in the window, and where the box says."""
  config = windowed_config(data_root, **{"data.proposals": "jittered", "data.num_proposals": 2})
  split = open_split(config.data, "train", 50)
  cells = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), axis=-1).astype(np.float16)
  every = np.stack([cells, cells[:, ::-1]])  # a map of each cell's (row, column), and its mirror image
  stored = batches.StoredMaps(np.broadcast_to(every, (50, *every.shape)), {}, 6)
  options = {"batch_size": 50, "image_size": 16, "crop_size": 12, "flip": True, "seed": 0}
  batch, mirrored = next(batches.train_batches(split, maps=stored, **options)), 0
  for window, boxes, name in zip(batch["feature_map"], batch["proposals"], batch["ids"], strict=True):
    record = next(split.without_image(index) for index in range(50) if split[index].id == name)
    top, left = window[..., 0].min(), window[..., 1].min()
    wanted = (record.proposals * 8 - np.array([top, left, top, left])) / 6  # as shares of the window
    if window[0, 0, 1] > window[0, -1, 1]:
      wanted, mirrored = (
        np.stack([wanted[:, 0], 1 - wanted[:, 3], wanted[:, 2], 1 - wanted[:, 1]], axis=-1),
        mirrored + 1,
      )
    np.testing.assert_allclose(boxes, wanted, atol=1e-6)
  assert 10 < mirrored < 40

  # A head that looks at boxes is validated in the window at the centre, where the boxes are its own, too.
  asked = []

  def program(params, maps, boxes):
    asked.append(np.asarray(boxes))
    scores = jnp.zeros((len(maps), 10))
    return {
      "scores": scores,
      "features": scores,
      "region_scores": scores[:, None],
      "thetas": jnp.zeros((len(maps), 1, 4)),
    }

  forward = outputs.Forward(views.of_frozen(config), program, mesh_lib.by_example(mesh_lib.make_mesh()))
  outputs.compute_outputs(forward, None, split, data=config.data, batch_size=50, maps=stored)
  records = [split.without_image(index) for index in range(50)]
  np.testing.assert_allclose(asked[0], [(record.proposals * 16 - 2) / 12 for record in records], atol=1e-6)


def test_a_disk_without_room_is_refused_and_one_that_fills_up_loses_nothing(data_root, cache, monkeypatch):
  config = tiny_config(data_root)
  model, params, split, mesh = made(config)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1000))
    with pytest.raises(
      UserError, match=r"maps/\w+ has 0\.0 GB free and the feature maps of digits.tiny train need .*maps may go"
    ):
      maps_of(config, model, params, split, mesh)
  monkeypatch.setattr(stored_maps, "CHUNK", 20)
  wanted = maps_of(config, model, params, split, mesh).maps
  (whole,) = cache.glob("*/maps.npy")
  before = whole.read_bytes()
  shutil.rmtree(cache)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (30 * wanted[0].nbytes, hard))
  try:
    with pytest.raises(UserError, match=r"cannot use .*maps/\w+: File too large\. .*XDG_CACHE_HOME"):
      maps_of(config, model, params, split, mesh)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert files.read_json(whole.parent / "key.json")["done"] == 20
  np.testing.assert_array_equal(maps_of(config, model, params, split, mesh).maps, wanted)
  assert whole.read_bytes() == before


def test_processes_share_one_cache_and_one_that_sees_another_is_told(data_root, cache, monkeypatch):
  config = tiny_config(data_root)
  about = made(config)
  monkeypatch.setattr(stored_maps.processes, "wait_for_all", lambda name: None)
  with monkeypatch.context() as patch:
    patch.setattr(stored_maps.processes, "is_first", lambda: False)
    with pytest.raises(UserError, match="not seen by all processes: XDG_CACHE_HOME must name a folder that they share"):
      maps_of(config, *about)
  wanted = np.array(maps_of(config, *about).maps)
  monkeypatch.setattr(stored_maps.processes, "is_first", lambda: False)
  np.testing.assert_array_equal(maps_of(config, *about).maps, wanted)


def test_maps_that_were_deleted_alone_are_computed_anew(data_root, cache, monkeypatch):
  config = tiny_config(data_root)
  model, params, split, mesh = made(config)
  monkeypatch.setattr(stored_maps, "CHUNK", 20)
  wanted = maps_of(config, model, params, split, mesh).maps
  (whole,) = cache.glob("*/maps.npy")
  whole.unlink()

  def stopping(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:  # before a chunk is done: what key.json said is no longer so
    patch.setattr(batches, "evaluation_batches", stopping)
    with pytest.raises(KeyboardInterrupt):
      maps_of(config, model, params, split, mesh)
  np.testing.assert_array_equal(maps_of(config, model, params, split, mesh).maps, wanted)


def test_an_image_that_cannot_be_read_stops_or_is_noted_and_what_was_computed_stays(tmp_path, cache, monkeypatch):
  manifest = write_csv(tmp_path, "train")
  config = thin_config([manifest] * 3)
  config.evaluation.batch_size = 2
  split, mesh = open_split(config.data, manifest), mesh_lib.make_mesh()
  pathlib.Path(split[4].path).write_bytes(b"no image")
  model = recognizer.build(config.model, len(split.class_names), head="mean_pool")
  params = step_lib.init_params(model, jax.random.key(0), config.data.crop_size)
  monkeypatch.setattr(stored_maps, "CHUNK", 2)
  real, asked = batches.evaluation_batches, []

  def counting(split, positions, **options):
    asked.append(positions.start)
    return real(split, positions, **options)

  monkeypatch.setattr(batches, "evaluation_batches", counting)
  with pytest.raises(UserError, match="not a readable image"):
    maps_of(config, model, params, split, mesh)
  assert asked == [0, 2, 4]
  config.data.corrupt = "skip"
  assert list(maps_of(config, model, params, split, mesh).unreadable) == [4]
  assert asked[3:] == list(range(4, len(split), 2))  # the first four were there
  config.data.corrupt = "error"
  with pytest.raises(UserError, match="not a readable image"):
    maps_of(config, model, params, split, mesh)


def test_windows_of_maps_are_read_in_one_process(data_root, cache):
  config = tiny_config(data_root)
  model, params, split, mesh = made(config)
  options = {"batch_size": 10, "image_size": 16, "crop_size": 16, "flip": True, "seed": 0}
  stream = batches.train_batches(split, **options, maps=maps_of(config, model, params, split, mesh), workers=2)
  next(stream)
  assert not multiprocessing.active_children()  # each would get a copy of all maps
  stream.close()


def test_a_map_beyond_float16_is_refused(data_root, cache):
  config = tiny_config(data_root)
  model, params, split, mesh = made(config)
  params = jax.tree.map(lambda leaf: 1e4 * leaf, params)
  with pytest.raises(UserError, match=r"digits/tiny train, .*: its feature map is not finite as float16"):
    maps_of(config, model, params, split, mesh)


@pytest.mark.slow
def test_a_frozen_run_trains_its_heads_alone_and_resumes_bit_for_bit(data_root, cache, tmp_path, monkeypatch):
  config = tiny_config(data_root, **FROZEN)
  pipeline.train_and_evaluate(config, tmp_path / "whole")
  first = step_lib.init_params(
    stages.build_model(config, "stage_one", 10), jax.random.fold_in(jax.random.key(0), 0), config.data.crop_size
  )
  params = loop.train(config, tmp_path / "whole")
  assert_trees_close(params["backbone"], first["backbone"], 0)

  real, decoded = batches.decode, []
  monkeypatch.setattr(batches, "decode", lambda *args: decoded.append(args) or real(*args))
  real_step = loop._settle

  def stopping(place, *args):
    if place == "stage_two, step 3":
      raise KeyboardInterrupt
    return real_step(place, *args)

  monkeypatch.setattr(loop, "_settle", stopping)
  with pytest.raises(KeyboardInterrupt):
    loop.train(config, tmp_path / "stopped")
  monkeypatch.setattr(loop, "_settle", real_step)
  assert_trees_close(loop.train(config, tmp_path / "stopped"), params, 0)
  assert not decoded  # every map was there
  evaluate.evaluate(tmp_path / "stopped", {"views": "centre"})

  shutil.rmtree(cache)  # what was evaluated is kept, and needs no map
  evaluate.evaluate(tmp_path / "stopped", {"views": "centre"})
  assert not cache.exists()


def test_rates_decay_and_clipping_are_those_of_optax(data_root):
  """A stage's optimizer against the same written by hand, on a backbone and a head of one kernel and one bias each."""
  changes = {
    "l2": 0.05,
    "backbone_rate": 0.1,
    "weight_decay": 0.3,
    "clip_norm": 0.5,
    "learning_rate": 0.2,
    "schedule": "step",
  }
  config = tiny_config(data_root, **{f"stage_two.{name}": value for name, value in changes.items()})
  config.stage_two.warmup_steps = 0
  ours = stages.build(config, "stage_two", num_classes=10, num_records=50).optimizer
  params = {part: {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 5.0)} for part in ("backbone", "head")}
  gradients = jax.tree.map(lambda leaf: leaf - 9 + jnp.arange(leaf.size).reshape(leaf.shape), params)
  updates, _ = ours.update(gradients, ours.init(params), params)
  norm = np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(gradients)))
  for part, rate in (("backbone", 0.02), ("head", 0.2)):
    for name, decay in (("kernel", 0.3), ("bias", 0.0)):
      gradient, value = (np.asarray(tree[part][name], np.float64) for tree in (gradients, params))
      clipped = gradient * 0.5 / norm
      if (part, name) == ("head", "kernel"):  # of 0.05 times the square; half of it would not turn all signs
        assert (clipped < -0.05 * value).any()
        clipped += 0.1 * value
        assert (clipped > 0).all()
      wanted = -rate * (clipped / (np.abs(clipped) + 1e-8) + decay * value)  # Adam's first step is the sign
      np.testing.assert_allclose(updates[part][name], wanted, rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("stage_two.backbone_rate", -1.0, "stage_two.backbone_rate must be 0 or more, got -1.0"),
    ("stage_one.drop_share", 30.0, r"stage_one.drop_share must be a share of the epochs, in \[0, 1\], got 30.0"),
    ("stage_two.clip_norm", -0.5, "stage_two.clip_norm must be 0 or more"),
  ],
)
def test_bad_values_are_named(data_root, field, value, message):
  config = tiny_config(data_root, **{field: value})
  with pytest.raises(UserError, match=message):
    stages.build(config, field.split(".")[0], num_classes=10, num_records=50)
