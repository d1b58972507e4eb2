"""The mathematics as pure functions of arrays: jax, optax and numpy only."""
