"""Weights in and out: what the world publishes becomes a first state, a trained model becomes a folder to publish.

Inside there is one form: kernels HWIO, images red green blue, and the `pixel_mean` and `pixel_std` that belong to the
set beside it. Nothing here runs what a file contains, and sizes are checked before memory is taken.
"""
