"""State, one pure train step, checkpoints and the loop."""
