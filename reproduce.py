"""Makes the paper's tables; the same as `rmam-jax reproduce`. rmam_jax/commands/reproduce.py has its flags."""

from rmam_jax import commands

if __name__ == "__main__":
  commands.run("reproduce")
