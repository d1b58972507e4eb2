"""Trains a recognizer; the same as `rmam-jax train`. rmam_jax/commands/train.py has its flags."""

from rmam_jax import commands

if __name__ == "__main__":
  commands.run("train")
