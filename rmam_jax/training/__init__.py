"""The stages of a run, one pure train step, checkpoints and the loop."""
