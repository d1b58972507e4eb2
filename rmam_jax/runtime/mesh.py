"""One-dimensional device meshes: examples are shared out, everything else is on every device."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """A mesh of all devices, or of those given; one device is a mesh of one."""
  devices = devices or jax.devices()
  return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
  """The first dimension is shared out over the devices."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def by_class(mesh: Mesh) -> NamedSharding:
  """The second of two dimensions is shared out over the devices."""
  return NamedSharding(mesh, PartitionSpec(None, AXIS))
