"""Training of score models from snapshots, in JAX (the optional extra `train`)."""
