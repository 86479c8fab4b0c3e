"""Chains that sample the network while it learns, for the relative-entropy term (theory 18a).

A chain is a frame with velocities that follows the middle scheme (theory 11) in the network's energy at the noise level
of simulations, with masses and kT of 1: lengths in nm, velocities without unit, times in nm. It is continued from one
optimizer step to the next, so that it samples what the network has become (persistent contrastive divergence, Tieleman,
ICML 2008).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusim.training.curvature import curvatures
from diffusim.training.kinds import Network, Weights, score
from diffusim.training.losses import Frames

PHASE = 0.6  # of the stiffest mode per step; stability ends at 2
FRICTION = 0.005  # per step
FASTEST = 12.0  # velocity component that no chain at equilibrium has


class Chains(NamedTuple):
    """Positions [n_chains, n_particles, 3] in nm, velocities like them, cells or None, and the step in nm."""

    positions: jax.Array
    velocities: jax.Array
    cells: jax.Array | None
    time_step: jax.Array


def start(frames: Frames, key: jax.Array) -> Chains:
    """Chains from `frames`, at rest until `tuned`."""
    velocities = jax.random.normal(key, frames.positions.shape)
    return Chains(frames.positions, velocities, frames.cells, jnp.zeros(()))


def tuned(network: Network, weights: Weights, chains: Chains, noise_level: float) -> Chains:
    """The chains with the step that the network's stiffest mode allows."""
    key = jax.random.key(0)
    some = jax.tree.map(lambda a: a[:64], Frames(chains.positions, chains.cells))
    largest = jnp.max(
        curvatures(network, weights, some, jax.random.normal(key, some.positions.shape), jnp.log(noise_level))
    )
    return chains._replace(time_step=PHASE / jnp.sqrt(largest))


def advance(
    network: Network, weights: Weights, chains: Chains, noise_level: float, steps: int, fresh: Frames, key
) -> Chains:
    """`steps` steps of all chains. One that runs away starts again from its frame of `fresh`."""
    log_noise, dt, keep = jnp.log(noise_level), chains.time_step, 1.0 - FRICTION
    of_all = jax.vmap(lambda x, cell: score(network, weights, x, log_noise, cell))

    def one(i, carry):
        x, v = carry
        v += dt * of_all(x, chains.cells)
        x += 0.5 * dt * v
        v = keep * v + jnp.sqrt(1 - keep**2) * jax.random.normal(jax.random.fold_in(key, i), x.shape)
        return x + 0.5 * dt * v, v

    x, v = jax.lax.fori_loop(0, steps, one, (chains.positions, chains.velocities))
    if network.translation_invariant:
        x -= jnp.mean(x, axis=1, keepdims=True)
    sound = jnp.all(jnp.isfinite(x) & (jnp.abs(v) < FASTEST), axis=(1, 2), keepdims=True)
    x = jnp.where(sound, x, fresh.positions)
    v = jnp.where(sound, v, jax.random.normal(jax.random.fold_in(key, steps), v.shape))
    return chains._replace(positions=x, velocities=v)
