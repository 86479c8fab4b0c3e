"""The stiffest mode of a network, by power iteration: what bounds the step of a simulation."""

from functools import partial

import jax
import jax.numpy as jnp

from diffusim.training.kinds import Network, Weights
from diffusim.training.losses import Frames

POWER_ITERATIONS = 60


def largest_curvature(network: Network, weights: Weights, frames: Frames, noise_level: float) -> float:
    """Largest eigenvalue of -grad score, 1/nm^2, over frames blurred by `noise_level` nm."""
    xi, start = jax.random.normal(jax.random.key(0), (2, *frames.positions.shape))
    blurred = frames._replace(positions=frames.positions + noise_level * xi, forces=None)
    return float(jnp.max(curvatures(network, weights, blurred, start, jnp.log(noise_level))))


@partial(jax.jit, static_argnames="network")
@partial(jax.vmap, in_axes=(None, None, 0, 0, None))
def curvatures(network: Network, weights: Weights, frames: Frames, start: jax.Array, log_noise: jax.Array) -> jax.Array:
    """Largest eigenvalue of -grad score of each frame, 1/nm^2, from a `start` like its positions.

    Power iteration on Hessian-vector products; the Rayleigh quotient is a lower bound, within about 1 % by then.
    """

    def gradient(x):
        return jax.grad(network.energy, argnums=1)(weights, x, log_noise, frames.cells)

    def product(v):
        return jax.jvp(gradient, (frames.positions,), (v,))[1]

    def iterate(_, v):
        v = product(v)
        return v / jnp.linalg.norm(v)

    v = jax.lax.fori_loop(0, POWER_ITERATIONS, iterate, start / jnp.linalg.norm(start))
    return jnp.sum(v * product(v))
