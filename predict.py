"""Says which labels images have and where it looked; the same as `rmam-jax predict`, see rmam_jax/commands/predict.py."""

from rmam_jax import commands

if __name__ == "__main__":
  commands.run("predict")
