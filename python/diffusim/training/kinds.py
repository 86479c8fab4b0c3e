"""What the trainer needs of a network, and the networks there are.

A new kind is a class with these methods and an arm in `network_of`; losses, trainer and export know nothing else.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from diffusim import model_file
from diffusim.snapshots import Snapshots, closest_distances, most_neighbours
from diffusim.training.config import SettingsError, TrainingSettings
from diffusim.training.network import DistanceNetwork

MOST_PAIRS = 300  # distances that tell frames of many particles apart
REPULSION = 0.9  # of the closest approach
SPARE_NEIGHBOURS = 1.2  # room for neighbours, relative to the most that were seen

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

    def weights(self, tensors: dict[str, np.ndarray]) -> Weights:
        """The weights in the tensors of a model file, the inverse of `tensors`."""

    def descriptors(self, positions: np.ndarray) -> np.ndarray:
        """What tells frames [n_frames, n_particles, 3] apart, [n_frames, n]; start frames are spread over it."""


@dataclass(frozen=True)
class MessagePassing:
    """The message-passing network as a Network: it learns nothing from the frames before the training."""

    inner: Any  # a MessagePassingNetwork
    kind: ClassVar[str] = "message-passing"
    translation_invariant: ClassVar[bool] = True

    def __getattr__(self, name: str):
        return getattr(object.__getattribute__(self, "inner"), name)

    def initial_weights(self, key: jax.Array, positions: np.ndarray) -> Weights:
        return self.inner.initial_weights(key)

    def descriptors(self, positions: np.ndarray) -> np.ndarray:
        """Some pair distances."""
        pairs = np.array(np.triu_indices(positions.shape[1], 1))
        some = np.sort(np.random.default_rng(0).permutation(pairs.shape[1])[:MOST_PAIRS])
        i, j = pairs[:, some]
        return np.linalg.norm(positions[:, i] - positions[:, j], axis=-1).astype(float)


def network_of(settings: TrainingSettings, snapshots: Snapshots) -> Network:
    """The network that complete `settings` ask for, or that they start from."""
    shape = {"noise_min": settings.noise_min, "noise_max": settings.noise_max}
    if settings.start_from is not None:
        shape |= {
            name: _tuple(value)
            for name, value in model_file.read(settings.start_from).hyperparameters.items()
            if name != "activation"
        }
    if settings.model == "message-passing":
        return _message_passing(settings, snapshots, shape)
    shape = {"quadruplets": settings.quadruplets, "hidden": settings.hidden} | shape
    return DistanceNetwork(snapshots.n_particles, **shape)


def _message_passing(settings: TrainingSettings, snapshots: Snapshots, shape: dict) -> MessagePassing:
    """A block of features for each width in `hidden`; species are elements, or names where there are none. `shape` is
    what is known already."""
    try:
        from diffusim.training.message_passing import MessagePassingNetwork
    except ImportError:
        raise SettingsError("--model message-passing is not in this version of diffusim; use distance.") from None
    names = [p.element or p.name for p in snapshots.particles]
    species = shape.get("species", tuple(sorted(set(names))))
    unknown = sorted(set(names) - set(species))
    if unknown:
        raise SettingsError(
            f"--start-from {settings.start_from} knows the species {' '.join(species)}, the snapshots have "
            f"{' '.join(unknown)} too. Start from a model that knows them."
        )
    chosen = {
        "species": species,
        "cutoff": settings.cutoff,
        "width": settings.hidden[0],
        "n_blocks": len(settings.hidden),
        "chiral": bool(snapshots.bonds),
    }
    if "repulsion" not in shape:
        chosen["repulsion"] = _repulsion(snapshots, species, names, settings.cutoff)
    within = most_neighbours(snapshots.positions, snapshots.cells, settings.cutoff + 4 * settings.noise_max)
    return MessagePassing(
        MessagePassingNetwork(
            particles=tuple(species.index(name) for name in names),
            max_neighbors=min(round(SPARE_NEIGHBOURS * within) + 2, snapshots.n_particles - 1),
            **(chosen | shape),
        )
    )


def _tuple(value: Any) -> Any:
    """Lists of a file as tuples."""
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _repulsion(snapshots: Snapshots, species: tuple, names: list, cutoff: float) -> tuple | None:
    """Reaches of the repulsion between species in a periodic system, nm: a little less than the closest that were seen.

    Where no snapshot ever is, nothing is learned; this keeps particles from getting there.
    """
    if snapshots.cells is None:
        return None
    kinds = np.array([species.index(name) for name in names])
    closest = closest_distances(snapshots.positions, snapshots.cells, kinds)
    return tuple(tuple(float(f"{REPULSION * r:.2g}") if r < cutoff else 0.0 for r in row) for row in closest.tolist())


def score(network: Network, weights: Weights, positions: jax.Array, log_noise: jax.Array, cell=None) -> jax.Array:
    """-grad E [n_particles, 3] of one frame, 1/nm."""
    return -jax.grad(network.energy, argnums=1)(weights, positions, log_noise, cell)
