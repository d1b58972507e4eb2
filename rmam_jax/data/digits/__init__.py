"""Digit scenes: how they are drawn, and their TFDS builder."""
