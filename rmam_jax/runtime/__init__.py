"""What every room may use: several processes as one run, device meshes, whole files, errors, commands."""
