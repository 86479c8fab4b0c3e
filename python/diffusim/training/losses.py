"""What training minimises: denoising score matching (theory 16) and Fokker-Planck consistency (theory 18).

All draws come from the key that is passed in. Both losses are per coordinate and have no unit.

Where the snapshots come with forces F (theory 16a): the score of the blurred density is the mean, over the x that may
lie behind y = x + sigma xi, of -xi / sigma and also of F(x) / kT0. The blur needs no correction, so any mixture

    (1 - w) (-xi / sigma) + w F(x) / kT0,   w = force_weight v / (v + sigma^2),   1/v = <|F / kT0|^2> per coordinate

may be the target. For a Gaussian density of variance v, w with force_weight 1 makes it exact, without any variance: the
force rules at small sigma, where -xi / sigma is large and random, and the noise at large sigma. Noise levels count by
the inverse variance of such a target, were its two parts independent: 1 / ((1 - w)^2 / sigma^2 + w^2 / v), which is
sigma^2 without forces and v + sigma^2 with all of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusim.training.kinds import Network, Weights, score

GROUP = 16  # frames that share one noise level in the Fokker-Planck loss, and with it the constant c(sigma)


class Frames(NamedTuple):
    """Positions [n_frames, n_particles, 3] in nm; where there are any, cells [n_frames, 3, 3] in nm (rows are vectors)
    and forces as scores, F / kT0, [n_frames, n_particles, 3] in 1/nm.
    """

    positions: jax.Array
    cells: jax.Array | None = None
    forces: jax.Array | None = None

    def take(self, index) -> "Frames":
        """Some of the frames."""
        return jax.tree.map(lambda a: a[index], self)


def log_noise_levels(key: jax.Array, low: float, high: float, n: int) -> jax.Array:
    """n values of ln sigma, uniform in [ln low, ln high], one in each of n equal strata, for less variance."""
    u = (jnp.arange(n) + jax.random.uniform(key, (n,))) / n
    return jnp.log(low) + (jnp.log(high) - jnp.log(low)) * u


def denoising_loss(
    network: Network,
    weights: Weights,
    frames: Frames,
    noise_range: tuple[float, float],
    key: jax.Array,
    force_weight: float | jax.Array = 1.0,
    force_variance: float | jax.Array = 1.0,
    relevance: tuple[Callable[[jax.Array, jax.Array], jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Mean of |s(x + sigma xi, sigma) - target|^2 per coordinate, over frames and noise levels (nm), weighted as above.

    `force_variance` is v above, nm^2. Two things take most of the variance away and leave the mean: each frame is used
    with xi and with -xi, so that the term linear in xi cancels at small sigma; and |xi|^2 is replaced by its mean.
    `relevance` is g_sigma, a function of frame and ln sigma, and g of each frame: what was blurred counts
    g_sigma(x + sigma xi) / g(x) (even.py).
    """
    key_noise, key_xi = jax.random.split(key)
    log_noise = log_noise_levels(key_noise, *noise_range, len(frames.positions))
    xi = jax.random.normal(key_xi, frames.positions.shape)

    of_blurred, drawn = (None, jnp.ones(len(xi))) if relevance is None else relevance

    def one(frame, log_noise, xi, drawn):
        noise = jnp.exp(log_noise)
        blurred = frame.positions + noise * xi
        counts = 1.0 if of_blurred is None else of_blurred(blurred, log_noise) / drawn
        found = noise * score(network, weights, blurred, log_noise, frame.cells)
        if frame.forces is None:
            return 1 + counts * jnp.mean((found + xi) ** 2 - xi**2)
        w = force_weight * force_variance / (force_variance + noise**2)
        missed = found + (1 - w) * xi - w * noise * frame.forces
        weight = 1 / ((1 - w) ** 2 + w**2 * noise**2 / force_variance)
        return counts * weight * jnp.mean(missed**2 + (1 - w) ** 2 * (1 - xi**2))

    frames, log_noise, drawn = jax.tree.map(lambda a: jnp.concatenate([a, a]), (frames, log_noise, drawn))
    return jnp.mean(jax.vmap(one)(frames, log_noise, jnp.concatenate([xi, -xi]), drawn))


def fokker_planck_loss(
    network: Network, weights: Weights, frames: Frames, noise_range: tuple[float, float], key: jax.Array
) -> jax.Array:
    """Mean square, per coordinate, of r = dE/d(ln sigma) - sigma^2 (laplacian E - |grad E|^2) - c(sigma).

    Frames are blurred in groups of one noise level each, drawn in `noise_range` (nm); c(sigma) is the mean of its
    group. The Laplacian is estimated with two independent Rademacher probes whose residuals are multiplied, so that
    the noise of the probes does not enter the square.
    """
    key_noise, key_xi, key_probe = jax.random.split(key, 3)
    size = min(GROUP, len(frames.positions))
    n_groups = len(frames.positions) // size
    shape = (n_groups, size, *frames.positions.shape[1:])
    groups = jax.tree.map(lambda a: a[: n_groups * size].reshape(n_groups, size, *a.shape[1:]), frames)
    log_noise = log_noise_levels(key_noise, *noise_range, n_groups)
    blurred = groups.positions + jnp.exp(log_noise)[:, None, None, None] * jax.random.normal(key_xi, shape)
    probes = jax.random.rademacher(key_probe, (n_groups, size, 2, *shape[2:]), dtype=blurred.dtype)

    def residuals(x, log_noise, cell, probes):
        def gradient(x):
            return jax.grad(network.energy, argnums=(1, 2))(weights, x, log_noise, cell)

        def residual(probe):
            (by_x, by_log_noise), (hessian_probe, _) = jax.jvp(gradient, (x,), (probe,))
            return by_log_noise - jnp.exp(2 * log_noise) * (jnp.sum(probe * hessian_probe) - jnp.sum(by_x**2))

        return jax.vmap(residual)(probes)

    r = jax.vmap(jax.vmap(residuals, in_axes=(0, None, 0, 0)))(blurred, log_noise, groups.cells, probes)
    r -= jnp.mean(r, axis=1, keepdims=True)  # [group, frame, probe]
    return size / (size - 1) * jnp.mean(r[..., 0] * r[..., 1]) / (3 * network.n_particles)


def volume_loss(
    network: Network,
    weights: Weights,
    noise_level: float,
    blurred: Frames,
    log_volume_noise: jax.Array,
    pressure: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """Denoising of the volumes of isobaric frames, `blurred` by `noise_level` nm (theory 16c).

    `pressure` is P / kT0 in 1/nm^3, `log_volume_noise` the blur of ln V. As above each frame is used with xi and -xi;
    what does not depend on the weights is left out.
    """
    n = network.n_particles
    xi = jax.random.normal(key, (len(blurred.positions),))

    def one(frame, xi):
        volume = jnp.abs(jnp.linalg.det(frame.cells))

        def energy(log_ratio):
            scale = jnp.exp(log_ratio / 3)
            return network.energy(weights, scale * frame.positions, jnp.log(noise_level), scale * frame.cells)

        def of_log_volume(log_ratio):
            slope = jax.jvp(energy, (log_ratio,), (jnp.ones(()),))[1]
            return n + 1 - pressure * volume * jnp.exp(log_ratio) - slope

        plus, minus = (log_volume_noise * of_log_volume(sign * log_volume_noise * xi) for sign in (1.0, -1.0))
        return 0.5 * (plus**2 + minus**2) + (plus - minus) * xi

    return jnp.mean(jax.vmap(one)(blurred, xi))


def relative_entropy_loss(
    network: Network, weights: Weights, noise_level: float, blurred: Frames, sampled: Frames
) -> jax.Array:
    """Mean energy per coordinate of snapshots `blurred` by `noise_level` less that of what the network `sampled`.

    Its gradient is that of the relative entropy of the network's density to the snapshots' (theory 18a); its value
    is not, as `sampled` are taken as given.
    """

    def mean_energy(frames):
        of_all = jax.vmap(lambda x, cell: network.energy(weights, x, jnp.log(noise_level), cell))
        return jnp.mean(of_all(frames.positions, frames.cells))

    return (mean_energy(blurred) - mean_energy(sampled)) / (3 * network.n_particles)
