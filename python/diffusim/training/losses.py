"""What training minimises: denoising score matching (theory 16) and Fokker-Planck consistency (theory 18).

All draws come from the key that is passed in. Both losses are per coordinate and have no unit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffusim.training.network import DistanceNetwork, Weights

GROUP = 16  # frames that share one noise level in the Fokker-Planck loss, and with it the constant c(sigma)


def log_noise_levels(key: jax.Array, low: float, high: float, n: int) -> jax.Array:
    """n values of ln sigma, uniform in [ln low, ln high], one in each of n equal strata, for less variance."""
    u = (jnp.arange(n) + jax.random.uniform(key, (n,))) / n
    return np.log(low) + (np.log(high) - np.log(low)) * u


def denoising_loss(network: DistanceNetwork, weights: Weights, frames: jax.Array, key: jax.Array) -> jax.Array:
    """Mean of |sigma s(x + sigma xi, sigma) + xi|^2 per coordinate, over frames [n, n_particles, 3] and noise levels.

    Two things take most of its variance away and leave its mean: each frame is used with xi and with -xi, so that the
    term linear in xi cancels at small sigma; and |xi|^2 is replaced by its mean.
    """
    key_noise, key_xi = jax.random.split(key)
    log_noise = log_noise_levels(key_noise, network.noise_min, network.noise_max, len(frames))
    xi = jax.random.normal(key_xi, frames.shape)

    def one(frame, log_noise, xi):
        noise = jnp.exp(log_noise)
        return 1 + jnp.mean((noise * network.score(weights, frame + noise * xi, log_noise) + xi) ** 2 - xi**2)

    def twice(a):
        return jnp.concatenate([a, a])

    return jnp.mean(jax.vmap(one)(twice(frames), twice(log_noise), jnp.concatenate([xi, -xi])))


def fokker_planck_loss(
    network: DistanceNetwork, weights: Weights, frames: jax.Array, noise_max: float, key: jax.Array
) -> jax.Array:
    """Mean square, per coordinate, of r = dE/d(ln sigma) - sigma^2 (laplacian E - |grad E|^2) - c(sigma).

    frames [n, n_particles, 3] are blurred in groups of one noise level each, drawn in [noise_min, `noise_max`] nm;
    c(sigma) is the mean of its group. The Laplacian is estimated with two independent Rademacher probes whose residuals
    are multiplied, so that the noise of the probes does not enter the square.
    """
    key_noise, key_xi, key_probe = jax.random.split(key, 3)
    frames = frames[: len(frames) // GROUP * GROUP].reshape(-1, GROUP, *frames.shape[1:])
    log_noise = log_noise_levels(key_noise, network.noise_min, noise_max, len(frames))
    blurred = frames + jnp.exp(log_noise)[:, None, None, None] * jax.random.normal(key_xi, frames.shape)
    probes = jax.random.rademacher(key_probe, (*frames.shape[:2], 2, *frames.shape[2:]), dtype=frames.dtype)

    def residuals(x, log_noise, probes):
        def gradient(x):
            return jax.grad(network.energy, argnums=(1, 2))(weights, x, log_noise)

        def residual(probe):
            (by_x, by_log_noise), (hessian_probe, _) = jax.jvp(gradient, (x,), (probe,))
            return by_log_noise - jnp.exp(2 * log_noise) * (jnp.sum(probe * hessian_probe) - jnp.sum(by_x**2))

        return jax.vmap(residual)(probes)

    r = jax.vmap(jax.vmap(residuals, in_axes=(0, None, 0)))(blurred, log_noise, probes)  # [group, frame, probe]
    r -= jnp.mean(r, axis=1, keepdims=True)
    return GROUP / (GROUP - 1) * jnp.mean(r[..., 0] * r[..., 1]) / (3 * network.n_particles)
