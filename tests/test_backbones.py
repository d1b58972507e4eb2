"""What every backbone promises, on the thin network of each family; batch normalisation in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import assert_trees_close, tiny_config

import rmam_jax
from configs import digits
from rmam_jax import backbones, heads, recognizer
from rmam_jax.backbones import layers
from rmam_jax.evaluation import views as views_lib
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import exported, initial_weights, loop, pipeline
from rmam_jax.training import step as step_lib
from rmam_jax.weights import files as weight_files
from rmam_jax.weights import tensors

THIN = tuple(name for name in backbones.SPECS if name.endswith("_thin"))
# Other tests run the VGG; of the others one is enough where time counts.
IN_TURN = [pytest.param(name, marks=[] if name == "mobilenet_thin" else pytest.mark.slow) for name in THIN]


def thin_config(backbone, **changes):
  config = digits.get_config("tiny")
  config.model.x_width = config.model.lstm_width = config.model.z_width = 16
  config.model.num_regions = 3
  config.update_from_flattened_dict({"model.backbone": backbone, **changes})
  return config


def images_of(size, count=2):
  return np.random.default_rng(0).normal(size=(count, *size, 3)).astype(np.float32)


@functools.cache
def initialized(backbone, **changes):
  """A module whose statistics are not those that it begins with, and its parameters."""
  module = backbones.build(thin_config(backbone, **changes).model)
  params = tensors.flatten(jax.jit(module.init)(jax.random.key(0), images_of((32, 32)))["params"])
  rng = np.random.default_rng(0)
  for name, shape in ((name, leaf.shape) for name, leaf in params.items() if name.endswith(("mean", "var"))):
    params[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32) - name.endswith("mean")
  like = jax.eval_shape(module.init, jax.random.key(0), images_of((32, 32)))["params"]
  return module, tensors.unflatten(like, params)


def test_every_family_has_a_thin_network():
  families = {type(backbones.get(name).build(thin_config(name).model)) for name in THIN}
  for name in backbones.SPECS:
    assert type(backbones.get(name).build(thin_config(name).model)) in families


@pytest.mark.parametrize("backbone", IN_TURN)
def test_the_map_has_the_stride_that_its_spec_says(backbone):
  module, params = initialized(backbone)
  stride = backbones.stride(thin_config(backbone).model)
  found = jax.jit(module.apply)({"params": params}, images_of((2 * stride, 4 * stride)))
  assert found.shape[:3] == (2, 2, 4)
  assert found.dtype == jnp.float32
  assert float(found.std()) > 1e-3
  if backbone != "vit_thin":  # which takes whole patches only
    odd = jax.eval_shape(module.apply, {"params": params}, images_of((stride + 1, 3 * stride - 1)))
    assert odd.shape[1:3] == tuple(
      backbones.cells(thin_config(backbone).model, side) for side in (stride + 1, 3 * stride - 1)
    )
  half = jax.eval_shape(
    initialized(backbone, **{"model.dtype": "bfloat16"})[0].apply, {"params": params}, images_of((32, 32))
  )
  assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("backbone", [each for each in IN_TURN if each.values != ("vit_thin",)])
def test_finer_maps_are_cut_from_the_same_network(backbone):
  _, params = initialized(backbone)
  stride, images = backbones.stride(thin_config(backbone).model), images_of((32, 48))

  def found(maps):
    module, own = initialized(backbone, **{"model.maps": maps})
    names = set(tensors.flatten(own))
    assert names <= set(tensors.flatten(params))
    return (
      jax.jit(module.apply)({"params": params}, images),
      names,
      backbones.stride(thin_config(backbone, **{"model.maps": maps}).model),
    )

  last, all_names, _ = found("")
  finer, names, finer_stride = found(str(stride // 2))
  fused, fused_names, fused_stride = found("fused")
  assert (finer_stride, fused_stride) == (stride // 2, stride // 2)
  assert names < all_names == fused_names
  assert finer.shape[1:3] == (32 * 2 // stride, 48 * 2 // stride)
  np.testing.assert_array_equal(fused[..., : finer.shape[-1]], finer)
  resized = jax.image.resize(last, (*finer.shape[:3], last.shape[-1]), "bilinear")
  np.testing.assert_allclose(fused[..., finer.shape[-1] :], resized, atol=1e-5)
  with pytest.raises(UserError, match=r"model\.maps must be one of .*fused.*got '5'"):
    found("5")


@pytest.mark.parametrize("backbone", IN_TURN)
def test_every_parameter_but_statistics_has_a_gradient_and_remat_the_same(backbone):
  module, params = initialized(backbone)
  images = images_of((32, 32))

  def gradients(module):
    def loss(params):
      found = module.apply({"params": params}, images)
      return (found * jnp.cos(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)).sum()

    program = jax.make_jaxpr(jax.grad(loss))(params)
    return jax.jit(jax.grad(loss))(params), str(program).count("remat")

  (found, plain), (again, blocks) = gradients(module), gradients(module.clone(remat=True))
  assert blocks > plain
  for name, gradient in tensors.flatten(found).items():
    assert (np.abs(gradient).max() > 0) != name.endswith(("mean", "var")), name
  scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found))
  assert_trees_close(again, found, 1e-4 * scale)


@pytest.mark.parametrize("backbone", IN_TURN)
def test_ten_views_are_windows_of_two_maps(backbone):
  stride = backbones.stride(thin_config(backbone).model)
  sizes = {"data.image_size": 6 * stride, "data.crop_size": 4 * stride, "evaluation.views": "ten"}
  config = thin_config(backbone, **sizes)
  model = recognizer.build(config.model, 4, head="mean_pool")
  images = np.random.default_rng(0).integers(0, 256, (2, 6 * stride, 6 * stride, 3), np.uint8)
  params = jax.jit(lambda key: step_lib.init_params(model, key, 4 * stride))(jax.random.key(0))
  maps = jax.jit(lambda p, x: views_lib.feature_maps(model, p, x, views_lib.from_config(config)))(params, images)
  assert maps.shape[:4] == (2, 10, 4, 4)
  whole = jax.jit(lambda p, x: model.apply({"params": p}, x, method="feature_map"))(params, images)
  np.testing.assert_allclose(maps[:, 0], whole[:, 1:5, 1:5], atol=1e-5)
  config.data.crop_size += 1
  with pytest.raises(UserError, match=f"multiples of the map's stride, {stride} pixels"):
    views_lib.from_config(config)


def test_a_region_lies_on_the_map_s_cells_where_the_stride_does_not_divide_the_crop():
  whole = np.array([1.0, 1.0, 0.0, 0.0])  # from the first cell's centre to the last one's
  for backbone, cells in (("mobilenet_thin", 3), ("convnext_thin", 2)):
    stride = backbones.stride(thin_config(backbone).model)
    config = thin_config(backbone, **{"data.image_size": 2 * stride + 2, "data.crop_size": 2 * stride + 2})
    box = views_lib.region_boxes(whole, config) * (2 * stride + 2)
    np.testing.assert_allclose(box, [stride / 2, stride / 2, *2 * [(cells - 0.5) * stride]])


def test_sides_of_broken_patches_are_refused():
  module, params = initialized("vit_thin")
  with pytest.raises(UserError, match=r"4 x 4 pixels, and images of 32 x 30 .* data\.crop_size"):
    module.apply({"params": params}, images_of((32, 30)))


@pytest.mark.parametrize("backbone", IN_TURN)
@pytest.mark.parametrize("head", ["recurrent", "rarl", "rlsd"])
def test_a_step_with_every_head_has_the_shapes_that_it_had(backbone, head):
  config = thin_config(backbone, **{"model.freeze_norm": False})
  model = recognizer.build(config.model, 4, head=head, auxiliary="score_map")
  spec, optimizer = heads.get(head), optax.adam(1e-3)
  objective = step_lib.Objective("sigmoid", head_loss=spec.loss(config, "sigmoid", {}) if spec.loss else None)
  state = jax.eval_shape(functools.partial(step_lib.init_state, model, optimizer, size=32), jax.random.key(0))
  batch = {
    "image": jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8),
    "labels": jax.ShapeDtypeStruct((4, 4), jnp.float32),
    "ignore": jax.ShapeDtypeStruct((4, 4), jnp.bool_),
    "mask": jax.ShapeDtypeStruct((4,), jnp.float32),
  }
  after, _ = jax.eval_shape(step_lib.make_train_step(model, optimizer, objective), state, batch)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("size", [3, 5, 7])
def test_depthwise_by_slices_equals_xla_s_forward_and_backward(size, same, stride):
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, 9, 12, 4)).astype(np.float32), rng.normal(size=(size, size, 1, 4)).astype(np.float32)
  around = tuple(layers.pads(side, size, stride, same) for side in x.shape[1:3])
  for ours, theirs in zip(
    *(
      (lambda y, vjp: (y, *vjp(jnp.cos(y))))(*jax.vjp(functools.partial(form, stride=stride, around=around), x, kernel))
      for form in (layers._by_slices, layers._by_groups)
    ),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.oracle
@pytest.mark.parametrize("momentum", [0.1, 0.01])
def test_batch_normalisation_in_training_equals_torch(momentum):
  torch = pytest.importorskip("torch")
  x = images_of((6, 5), 4)
  module = layers.Normed(7, 3, 2, norm=layers.Norm(1e-3, momentum, frozen=False), train=True)
  params = tensors.flatten(module.init(jax.random.key(0), x)["params"])
  rng = np.random.default_rng(0)
  params |= {name: rng.uniform(0.5, 1.5, 7).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
  cotangent = rng.normal(size=(4, 3, 3, 7)).astype(np.float32)

  def loss(params):
    found, learned = module.apply({"params": params}, x, mutable=["statistics"])
    return (found * cotangent).sum(), (found, learned["statistics"])

  gradients, (found, statistics) = jax.grad(loss, has_aux=True)(params)

  convolution = torch.nn.Conv2d(3, 7, 3, 2, 1, bias=False)
  norm = torch.nn.BatchNorm2d(7, 1e-3, momentum)
  with torch.no_grad():
    convolution.weight.copy_(torch.tensor(np.asarray(params["kernel"]).transpose(3, 2, 0, 1)))
    names = {"scale": norm.weight, "bias": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
    for name, theirs in names.items():
      theirs.copy_(torch.tensor(params[name]))
  theirs = norm(convolution(torch.tensor(x.transpose(0, 3, 1, 2)))).permute(0, 2, 3, 1)
  (theirs * torch.tensor(cotangent)).sum().backward()
  np.testing.assert_allclose(found, theirs.detach(), atol=1e-5)
  np.testing.assert_allclose(statistics["mean"], norm.running_mean, atol=1e-6)
  np.testing.assert_allclose(statistics["var"], norm.running_var, atol=1e-6)
  np.testing.assert_allclose(gradients["kernel"], convolution.weight.grad.permute(2, 3, 1, 0), atol=1e-4)
  for name in ("scale", "bias"):
    np.testing.assert_allclose(gradients[name], names[name].grad, atol=1e-4)


def normed_step(**options):
  config = thin_config("mobilenet_thin", **{"model.freeze_norm": options.pop("freeze_norm", False)})
  model, optimizer = (
    recognizer.build(config.model, 4, head="mean_pool", remat=options.pop("remat", False)),
    optax.sgd(0.1),
  )
  state = jax.jit(functools.partial(step_lib.init_state, model, optimizer, size=32))(jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
    "labels": np.eye(4, dtype=np.float32)[rng.integers(0, 4, 8)],
    "ignore": np.zeros((8, 4), bool),
    "mask": np.ones(8, np.float32),
  }
  objective = step_lib.Objective("sigmoid", localization_weight=0.0)
  return step_lib.make_train_step(model, optimizer, objective, **options), state, batch


def statistics_of(state):
  return {name: leaf for name, leaf in tensors.flatten(state.params).items() if name.endswith(("/mean", "/var"))}


@pytest.mark.slow
def test_statistics_are_those_of_all_devices():
  train_step, state, batch = normed_step()
  wanted, _ = jax.jit(train_step)(state, batch)
  before, after = statistics_of(state), statistics_of(wanted)
  assert min(float(np.abs(after[name] - before[name]).max()) for name in before if name.endswith("var")) > 1e-4

  two = mesh_lib.make_mesh()
  sharded = jax.device_put(batch, mesh_lib.by_example(two))
  by_jit, _ = jax.jit(train_step)(jax.device_put(state, mesh_lib.replicated(two)), sharded)
  assert_trees_close(by_jit, wanted, 1e-5)

  pmapped, _, _ = normed_step(axis_name="data")
  halves = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), batch)
  twice = jax.tree.map(lambda x: jnp.stack([x, x]), state)
  by_pmap, _ = jax.pmap(pmapped, axis_name="data")(twice, halves)
  for device in range(2):
    assert_trees_close(jax.tree.map(lambda x, d=device: x[d], by_pmap), wanted, 1e-5)

  again, _, _ = normed_step(remat=True)
  assert_trees_close(jax.jit(again)(state, batch)[0], wanted, 1e-5)


@pytest.mark.slow
def test_frozen_statistics_stay_and_parts_of_a_batch_give_their_mean():
  train_step, state, batch = normed_step(freeze_norm=True)
  frozen, _ = jax.jit(train_step)(state, batch)
  assert_trees_close(statistics_of(frozen), statistics_of(state), 0)

  train_step, _, _ = normed_step()
  parts = [jax.tree.map(lambda x, p=part: x[p::2], batch) for part in (0, 1)]  # as `accumulate` cuts it
  wanted = jax.tree.map(
    lambda a, b: (a + b) / 2, *(statistics_of(jax.jit(train_step)(state, part)[0]) for part in parts)
  )
  accumulated, _, _ = normed_step(accumulate=2)
  assert_trees_close(statistics_of(jax.jit(accumulated)(state, batch)[0]), wanted, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [name for name in THIN if name != "vgg_thin"])
def test_a_run_trains_evaluates_and_travels(backbone, data_root, tmp_path):
  stride = backbones.stride(thin_config(backbone).model)
  fields = {"model.backbone": backbone, "model.freeze_norm": False, "controls": (), "evaluation.views": "ten"}
  sizes = {"data.image_size": 6 * stride, "data.crop_size": 4 * stride}
  short = {"epoch_size": 16, "stage_one.epochs": 1, "stage_two.epochs": 1, "evaluation.pictures": 1}
  results = pipeline.train_and_evaluate(tiny_config(data_root, **fields, **sizes, **short), tmp_path / "run")
  assert 0 < results["mAP"] <= 1
  exported.export(tmp_path / "run", tmp_path / "model")
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  (here,), (there,) = (rmam_jax.load(tmp_path / name).predict([image]) for name in ("run", "model"))
  np.testing.assert_array_equal(here.probabilities, there.probabilities)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_its_statistics_bit_for_bit(data_root, tmp_path, monkeypatch):
  fields = {"model.backbone": "mobilenet_thin", "model.freeze_norm": False, "controls": (), "accumulate": 2}
  short = {"epoch_size": 16, "stage_one.epochs": 1, "stage_two.epochs": 2}
  config = tiny_config(data_root, **fields, **short)
  whole = loop.train(config, tmp_path / "whole")
  validate = loop._Trainer.validate

  def interrupt(trainer, stage, forward, params, maps):
    interrupt.epochs += 1
    if interrupt.epochs == 3:  # in stage two's last epoch
      raise KeyboardInterrupt
    return validate(trainer, stage, forward, params, maps)

  interrupt.epochs = 0
  monkeypatch.setattr(loop._Trainer, "validate", interrupt)
  with pytest.raises(KeyboardInterrupt):
    loop.train(config, tmp_path / "stopped")
  monkeypatch.setattr(loop._Trainer, "validate", validate)
  stopped = loop.train(config, tmp_path / "stopped")
  assert_trees_close(stopped, whole, 0)
  variances = [leaf for name, leaf in tensors.flatten(whole["backbone"]).items() if name.endswith("var")]
  assert min(np.abs(np.asarray(var) - 1).max() for var in variances) > 1e-2


def test_a_finer_map_takes_a_part_of_whole_weights(tmp_path):
  _, params = initialized("resnet_thin")
  whole = {name: np.asarray(leaf) for name, leaf in tensors.flatten(params).items()}
  weights = weight_files.Weights("a test's", whole, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "0" * 64)
  weight_files.write(tmp_path / "thin.safetensors", weights)
  config = thin_config("resnet_thin", **{"model.maps": "8", "weights": str(tmp_path / "thin.safetensors")})
  resolved, first = initial_weights.resolve(config)
  _, wanted = initialized("resnet_thin", **{"model.maps": "8"})
  assert resolved.model.pixel_std == (4.0, 5.0, 6.0)
  assert set(tensors.flatten(first.backbone)) == set(tensors.flatten(wanted)) < set(whole)
  np.testing.assert_array_equal(first.backbone["stem"]["kernel"], params["stem"]["kernel"])

  del whole["stage3_block1/conv1/bias"]  # not needed for this map
  weight_files.write(tmp_path / "part.safetensors", weights)
  config.weights = str(tmp_path / "part.safetensors")
  initial_weights.resolve(config)
  whole["stage2_block1/conv1/bias"] = np.zeros(3, np.float32)
  weight_files.write(tmp_path / "wrong.safetensors", weights)
  config.weights = str(tmp_path / "wrong.safetensors")
  with pytest.raises(UserError, match=r"stage2_block1/conv1/bias is \(3,\) there and \(8,\) in the configuration"):
    initial_weights.resolve(config)
