"""Two CPU devices for every test, and one small data set made once."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

import pytest


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
  """A folder with digits/tiny prepared by the real builder."""
  from rmam_jax.data import records

  root = tmp_path_factory.mktemp("data")
  records.prepare("digits/tiny", str(root))
  return root
