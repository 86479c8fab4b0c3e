"""What the trainer needs of a network, and the networks there are.

A new kind is a class with these methods and an arm in `network_of`; losses, trainer and export know nothing else.
"""

from typing import Any, Protocol

import jax
import numpy as np

from diffusim.snapshots import Snapshots
from diffusim.training.config import TrainingSettings
from diffusim.training.network import DistanceNetwork

Weights = Any  # a pytree of arrays; what is not trained has no gradient


class Network(Protocol):
    """A hashable description of a network: the energy of a frame, in kT0, at a noise level. Lengths in nm."""

    kind: str  # as in the model file
    n_particles: int
    noise_min: float
    noise_max: float
    translation_invariant: bool  # then frames are centred and forces have no net force

    @property
    def n_weights(self) -> int:
        """Number of trained weights."""

    def initial_weights(self, key: jax.Array, positions: np.ndarray) -> Weights:
        """Random weights for frames like [n_frames, n_particles, 3]."""

    def energy(
        self, weights: Weights, positions: jax.Array, log_noise: jax.Array, cell: jax.Array | None = None
    ) -> jax.Array:
        """Energy of one frame [n_particles, 3] in the `cell` [3, 3] (rows are vectors), twice differentiable."""

    def hyperparameters(self) -> dict:
        """The entry of the model file."""

    def tensors(self, weights: Weights) -> dict[str, np.ndarray]:
        """The tensors of the model file."""

    def descriptors(self, positions: np.ndarray) -> np.ndarray:
        """What tells frames [n_frames, n_particles, 3] apart, [n_frames, n]; start frames are spread over it."""


def network_of(settings: TrainingSettings, snapshots: Snapshots) -> Network:
    """The network that complete `settings` ask for."""
    return DistanceNetwork(
        snapshots.n_particles, settings.quadruplets, settings.noise_min, settings.noise_max, settings.hidden
    )


def score(network: Network, weights: Weights, positions: jax.Array, log_noise: jax.Array, cell=None) -> jax.Array:
    """-grad E [n_particles, 3] of one frame, 1/nm."""
    return -jax.grad(network.energy, argnums=1)(weights, positions, log_noise, cell)
