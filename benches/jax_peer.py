"""The `distance` network and its dynamics in JAX."""

from functools import partial

import jax
import jax.numpy as jnp
from pairs import MODEL

from diffusim import model_file
from diffusim.training.network import DistanceNetwork, Weights


def jax_dynamics(model, effective_step):
    """Leimkuhler-Matthews (theory 10) with the score of `model`, jitted: (positions, key, n_steps) -> positions."""
    metadata, tensors = model.metadata, model_file.read_tensors(MODEL)
    h, noise = metadata["hyperparameters"], metadata["noise_levels"]
    network = DistanceNetwork(
        n_particles=metadata["n_particles"],
        quadruplets=tuple(map(tuple, h["quadruplets"])),
        noise_min=noise["min"],
        noise_max=noise["max"],
        hidden=tuple(h["hidden"]),
        softening=h["softening"],
        signed_length=h["signed_length"],
        harmonic=h["harmonic"],
        n_frequencies=h["n_frequencies"],
    )
    n_layers = len(h["hidden"]) + 1
    layers = tuple((tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in range(n_layers))
    weights = jax.tree.map(jnp.asarray, Weights(tensors["feature_mean"], tensors["feature_spread"], layers))
    log_noise = jnp.log(jnp.float32(noise["simulation"]))
    gradient = jax.vmap(jax.grad(lambda x: network.energy(weights, x, log_noise)))

    @partial(jax.jit, static_argnums=2)
    def run(positions, key, n_steps):
        def step(carry, key):
            x, xi = carry
            following = jax.random.normal(key, x.shape, jnp.float32)
            x = x - effective_step * gradient(x) + jnp.sqrt(effective_step / 2) * (xi + following)
            return (x, following), None

        keys = jax.random.split(key, n_steps + 1)
        first = jax.random.normal(keys[0], positions.shape, jnp.float32)
        return jax.lax.scan(step, (positions, first), keys[1:])[0][0]

    return run
