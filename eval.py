"""Evaluates a trained workdir; the same as `rmam-jax eval`. rmam_jax/commands/eval.py has its flags."""

from rmam_jax import commands

if __name__ == "__main__":
  commands.run("eval")
