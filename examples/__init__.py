"""Complete programs to begin from."""
