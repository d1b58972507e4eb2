"""Digit scenes: how they are drawn, the letters that stand in for another data set, and their TFDS builder."""
