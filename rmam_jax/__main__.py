"""`python -m rmam_jax NAME ...`: the same as `rmam-jax NAME ...`."""

from rmam_jax import commands

if __name__ == "__main__":
  commands.main()
