"""Outputs for a whole split, the tables made from them, and the SVMs fitted on region features."""
