"""A head and a backbone of one's own: one registered spec each, and training, export and prediction work with them."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import tiny_config

import rmam_jax
from rmam_jax import backbones, heads
from rmam_jax.backbones.spec import BackboneSpec
from rmam_jax.heads.attending import attending_spec
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import exported, pipeline


class Patches(nn.Module):
  """A backbone of one layer: patches of 8 x 8 pixels, each a vector."""

  width: int

  @nn.compact
  def __call__(self, images, train=False):
    return nn.relu(nn.Conv(self.width, (8, 8), strides=(8, 8), name="embed")(images))


def look_at_the_corner(params, feature_map, *, scale):
  """A rule of one line: every region is the upper left corner, at a size of the configuration's."""

  def choose(memory, z, k):
    return memory, jnp.tile(jnp.array([scale, scale, -0.5, -0.5]), (len(z), 1))

  return (), choose


@pytest.fixture
def extended(monkeypatch):
  monkeypatch.setattr(heads, "SPECS", dict(heads.SPECS))
  monkeypatch.setattr(backbones, "SPECS", dict(backbones.SPECS))
  heads.register(
    attending_spec(
      "corner",
      lambda model: lambda params, feature_map: look_at_the_corner(params, feature_map, scale=model.corner.scale),
      defaults={"scale": 0.25},
    )
  )
  backbones.register(
    BackboneSpec(
      "patches",
      build=lambda model, remat=False: Patches(model.patches.width),
      stride=lambda model: 8,
      defaults={"model.patches": {"width": 6}},
    )
  )


@pytest.mark.slow
def test_one_spec_each_is_enough(extended, data_root, tmp_path):
  one_step = {"epoch_size": 16, "stage_one.epochs": 1, "stage_two.epochs": 1, "evaluation.pictures": 1}
  names = {"model.head": "corner", "model.backbone": "patches", "controls": ("corner",), "evaluation.views": "centre"}
  config = tiny_config(data_root, **one_step, **names, **{"model.corner.scale": 0.5})
  results = pipeline.train_and_evaluate(config, tmp_path / "run")
  assert results["head"] == "corner"
  assert results["redundancy"] == pytest.approx(1)  # all regions are the same
  assert set(results["controls"]) == {"corner"}

  exported.export(tmp_path / "run", tmp_path / "model")
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  (here,), (there,) = (rmam_jax.load(tmp_path / name).predict([image]) for name in ("run", "model"))
  np.testing.assert_array_equal(here.probabilities, there.probabilities)
  assert len(here.regions) == 3
  left, top, right, bottom = here.regions[0].box
  # Of 8 x 8 cells those from 0 to 3.5, centres 4 to 32 of the crop's pixels, which begins at 4 of the image's 72.
  assert (left, top, right, bottom) == pytest.approx(np.array([8, 8, 36, 36]) * 64 / 72)


def test_a_field_of_a_head_that_is_gone_is_named(extended, data_root, tmp_path, monkeypatch):
  config = tiny_config(data_root, **{"epoch_size": 16, "stage_one.epochs": 0, "stage_two.epochs": 1, "controls": ()})
  pipeline.train_and_evaluate(config, tmp_path / "run")
  monkeypatch.delitem(heads.SPECS, "corner")
  with pytest.raises(UserError, match="corner"):
    rmam_jax.load(tmp_path / "run")
