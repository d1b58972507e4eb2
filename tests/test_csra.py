"""Class-specific residual attention against a formula by hand, and as a head against the authors' in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import small_model

from rmam_jax import heads, recognizer
from rmam_jax.ops.csra import class_features, csra
from rmam_jax.runtime.errors import UserError


def test_by_hand():
  scores = jnp.log(jnp.array([[[[1.0, 2.0], [4.0, 2.0]], [[1.0, 2.0], [2.0, 2.0]]]]))  # [1, 2, 2, 2]
  mean = (2 * np.log(2) + np.log(2)) / 4
  attended = (4 * 2 * np.log(2) + 2 * np.log(2)) / 8  # of weights 1, 4, 1, 2
  np.testing.assert_allclose(csra(scores, 0.5, 1.0), [[mean + 0.5 * attended, 1.5 * np.log(2)]], rtol=1e-6)
  np.testing.assert_allclose(csra(scores, 0.5, 0.0), 1.5 * csra(scores, 0.0, 3.0), rtol=1e-6)
  np.testing.assert_allclose(csra(scores, 1.0, 1e4)[0, 0], mean + 2 * np.log(2), rtol=1e-6)  # the maximum


def test_features_by_class_by_hand():
  feature_map = jnp.array([[[[3.0, 0.0], [3.0, 8.0]]]])  # [1, 1, 2, 2]; the mean is (3, 4)
  weights = jnp.array([[[[1.0, 0.75], [0.0, 0.25]]]])  # of two classes, which attend to (3, 0) and (3, 2)
  wanted = [[0.6 + 1, 0.8], [0.6 + 3 / 13**0.5, 0.8 + 2 / 13**0.5]]
  np.testing.assert_allclose(class_features(feature_map, weights)[0], wanted, rtol=1e-6)
  assert not class_features(0 * feature_map, weights).any()


def test_the_head_s_features_by_class_are_where_its_scores_attend():
  model = small_model()
  model.csra.temperature = 2.5
  head = recognizer.build(model, 4, head="csra").head
  feature_map = np.random.default_rng(0).normal(size=(3, 5, 6, 8)).astype(np.float32)
  params = head.init(jax.random.key(0), feature_map)
  found = heads.SPECS["csra"].class_features(head.apply(params, feature_map))
  cells = feature_map.reshape(3, 30, 8)
  for image, label in ((0, 0), (2, 3)):
    shown = np.exp(2.5 * cells[image] @ np.asarray(params["params"]["scores"]["kernel"][:, label]))
    mean, attended = cells[image].mean(axis=0), shown @ cells[image]
    wanted = mean / np.linalg.norm(mean) + attended / np.linalg.norm(attended)
    np.testing.assert_allclose(found[image, label], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.oracle
def test_the_head_in_torch():
  torch = pytest.importorskip("torch")
  model = small_model()
  model.csra.weight, model.csra.temperature = 0.7, 2.5
  head = recognizer.build(model, 4, head="csra").head
  feature_map = np.random.default_rng(0).normal(size=(3, 5, 6, 8)).astype(np.float32)
  params = head.init(jax.random.key(0), feature_map)
  params["params"]["scores"]["bias"] = jnp.arange(4.0)
  weights = params["params"]["scores"]
  layer = torch.tensor(np.asarray(weights["kernel"]).T[:, :, None, None])
  places = torch.nn.functional.conv2d(torch.tensor(feature_map.transpose(0, 3, 1, 2)), layer).flatten(2)
  wanted = places.mean(2) + 0.7 * (places.mul(2.5).softmax(2) * places).sum(2) + torch.arange(4.0)
  np.testing.assert_allclose(head.apply(params, feature_map).scores[0], wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_its_fields_are_those_of_both_heads_that_read_them():
  """So a run of either does not go on with others."""
  for head in ("csra", "two_stream"):
    assert "model.csra." not in heads.unused_sections([head])
  assert "model.csra." in heads.unused_sections(["mean_pool"])
  with pytest.raises(UserError, match=r"model\.head must be one of .*, got 'mean_poool'; did you mean 'mean_pool'"):
    heads.unused_sections(["mean_poool"])


def test_bad_fields():
  model = small_model()
  model.csra.temperature = -1.0
  for head in ("csra", "two_stream"):
    with pytest.raises(UserError, match=r"model\.csra\.temperature must be 0 or more, got -1\.0"):
      recognizer.build(model, 4, head=head)
