"""Flax modules that hold the parameters of the package's functions."""
