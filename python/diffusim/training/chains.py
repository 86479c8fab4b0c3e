"""Chains that sample the network while it learns, for the relative-entropy term (theory 18a).

A chain is a frame with velocities that follows the middle scheme (theory 11) in the network's energy at the noise level
of simulations, with masses and kT of 1: lengths in nm, velocities without unit, times in nm. It is continued from one
optimizer step to the next, so that it samples what the network has become (persistent contrastive divergence, Tieleman,
ICML 2008).

A chain is held against the very snapshot that it started from, and starts again from another one now and then. So a
basin that chains do not leave has the same share of both averages, and its depth stays what the other losses make of
it. With snapshots drawn anew, the chance number of chains in such a basin would pull at it for ever.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusim.training.curvature import curvatures
from diffusim.training.kinds import Network, Weights, score
from diffusim.training.losses import Frames

PHASE = 0.6  # of the stiffest mode per step; stability ends at 2
FRICTION = 0.005  # per step
LIFETIME = 2_500  # steps of a chain, on average; a quarter of what the slowest torsion of alanine dipeptide takes
FASTEST = 12.0  # velocity component that no chain at equilibrium has


class Chains(NamedTuple):
    """Positions [n_chains, n_particles, 3] in nm, velocities like them, cells or None, the step in nm; which snapshots
    they started from [n_chains].
    """

    positions: jax.Array
    velocities: jax.Array
    cells: jax.Array | None
    time_step: jax.Array
    origins: jax.Array


def start(frames: Frames, origins: jax.Array, key: jax.Array) -> Chains:
    """Chains from `frames`, which are the snapshots `origins`; at rest until `tuned`."""
    velocities = jax.random.normal(key, frames.positions.shape)
    return Chains(frames.positions, velocities, frames.cells, jnp.zeros(()), origins)


def tuned(network: Network, weights: Weights, chains: Chains, noise_level: float) -> Chains:
    """The chains with the step that the network's stiffest mode allows."""
    key = jax.random.key(0)
    some = jax.tree.map(lambda a: a[:64], Frames(chains.positions, chains.cells))
    largest = jnp.max(
        curvatures(network, weights, some, jax.random.normal(key, some.positions.shape), jnp.log(noise_level))
    )
    return chains._replace(time_step=PHASE / jnp.sqrt(largest))


def renewed(chains: Chains, steps: int, n_frames: int, key: jax.Array) -> tuple[Chains, jax.Array]:
    """The chains, some with another snapshot of `n_frames` to start from, and which [n_chains]: so many in `steps`."""
    key_which, key_origins = jax.random.split(key)
    which = jax.random.uniform(key_which, chains.origins.shape) < steps / LIFETIME
    origins = jax.random.randint(key_origins, chains.origins.shape, 0, n_frames)
    return chains._replace(origins=jnp.where(which, origins, chains.origins)), which


def advance(
    network: Network,
    weights: Weights,
    chains: Chains,
    noise_level: float,
    steps: int,
    origins: Frames,
    anew: jax.Array,
    key: jax.Array,
) -> Chains:
    """`steps` steps of all chains. Those `anew` [n_chains] then start from their frames `origins`, as does one that
    runs away."""
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
    anew |= ~jnp.all(jnp.isfinite(x) & (jnp.abs(v) < FASTEST), axis=(1, 2))
    thermal = jax.random.normal(jax.random.fold_in(key, steps), v.shape)
    x, v = (jnp.where(anew[:, None, None], b, a) for a, b in ((x, origins.positions), (v, thermal)))
    cells = None if chains.cells is None else jnp.where(anew[:, None, None], origins.cells, chains.cells)
    return chains._replace(positions=x, velocities=v, cells=cells)
