"""The package's version, where the build can read it without importing jax."""

__version__ = "0.1.0"
