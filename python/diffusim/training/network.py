"""The `distance` network in JAX: the energy of one molecule from its pair distances and signed shape (theory 9).

Features of a frame x [n_particles, 3] in nm, in this order:

    pairs i < j         r = sqrt(|x_i - x_j|^2 + softening^2)
    coordinates (i, c)  x_ic, for what lives in an external field: such a model has no symmetry
    quadruplets a-b-c-d S = b1 . (b2 x b3) / (l1 l2 l3),  C = (b1 x b2) . (b2 x b3) / (l1 l2^2 l3)
                        with b1 = x_b - x_a, b2 = x_c - x_b, b3 = x_d - x_c, l_k = sqrt(|b_k|^2 + softening^2)

S changes sign under reflection, so mirror images differ. With the noise level sigma blurring every feature,

    f = (feature - mean) / sqrt(spread^2 + s^2),  s = sigma (lengths: pairs and coordinates) or sigma / signed_length
    E(x, sigma) = harmonic / 2 * sum over lengths of f^2 + dense([f, embedding of ln sigma])    in kT0
    score = -grad_x E                                                                           in 1/nm

A single particle has no pairs; axes of it that `coordinates` leaves out feel no score and diffuse freely.

Everything is a smooth function of positions and sigma, so the score is conservative and has every derivative that the
Fokker-Planck residual (theory 18) needs.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

# Half the bytes, and one replica is bound by reading them. On alanine dipeptide the rounding changes energies by
# 0.01 kT0 (standard deviation) and no population beyond its statistical error.
WEIGHT_TYPE = ml_dtypes.bfloat16


class Weights(NamedTuple):
    """All numbers of a network: `feature_mean`, `feature_spread` [n_features]; per layer W [n_in, n_out], b [n_out].

    The first two describe the snapshots and are not trained.
    """

    feature_mean: jax.Array
    feature_spread: jax.Array
    layers: tuple[tuple[jax.Array, jax.Array], ...]


@dataclass(frozen=True)
class DistanceNetwork:
    """The shape of a `distance` network; lengths and noise levels in nm, `harmonic` in kT0."""

    n_particles: int
    quadruplets: tuple[tuple[int, int, int, int], ...]
    noise_min: float
    noise_max: float
    hidden: tuple[int, ...] = (192, 192, 192)
    softening: float = 0.01
    signed_length: float = 0.1
    harmonic: float = 0.3
    n_frequencies: int = 4
    coordinates: tuple[tuple[int, int], ...] = ()

    kind: ClassVar[str] = "distance"

    @property
    def n_pairs(self) -> int:
        return self.n_particles * (self.n_particles - 1) // 2

    @property
    def n_lengths(self) -> int:
        """Features that are lengths, the first ones: pairs and coordinates."""
        return self.n_pairs + len(self.coordinates)

    @property
    def n_features(self) -> int:
        return self.n_lengths + 2 * len(self.quadruplets)

    @property
    def translation_invariant(self) -> bool:
        return not self.coordinates

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Widths from the input (features and embedding) to the one output."""
        return (self.n_features + 2 * self.n_frequencies + 1, *self.hidden, 1)

    @property
    def n_weights(self) -> int:
        """Number of trained weights and biases."""
        return sum((n_in + 1) * n_out for n_in, n_out in zip(self.layer_sizes, self.layer_sizes[1:], strict=False))

    def hyperparameters(self) -> dict:
        """The `hyperparameters` entry of the model file."""
        return {
            "hidden": list(self.hidden),
            "activation": "silu",
            "coordinates": [list(c) for c in self.coordinates],
            "quadruplets": [list(q) for q in self.quadruplets],
            "softening": self.softening,
            "signed_length": self.signed_length,
            "harmonic": self.harmonic,
            "n_frequencies": self.n_frequencies,
        }

    def initial_weights(self, key: jax.Array, positions: np.ndarray) -> Weights:
        """Weights to start from; mean and spread of the features are those of frames [n_frames, n_particles, 3]."""
        features = np.asarray(self.features_of_all(positions), dtype=np.float64)
        mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
        return Weights(
            jnp.asarray(mean, dtype=jnp.float32), jnp.asarray(spread, dtype=jnp.float32), self.initial_layers(key)
        )

    def tensors(self, weights: Weights) -> dict[str, np.ndarray]:
        """The tensors of the model file."""
        tensors = {"feature_mean": weights.feature_mean, "feature_spread": weights.feature_spread}
        for i, (w, b) in enumerate(weights.layers):
            tensors |= {f"layers.{i}.weight": np.asarray(w).astype(WEIGHT_TYPE), f"layers.{i}.bias": b}
        return {name: np.asarray(array) for name, array in tensors.items()}

    def weights(self, tensors: dict[str, np.ndarray]) -> Weights:
        """The weights in the tensors of a model file."""
        layers = (
            tuple(jnp.asarray(tensors[f"layers.{i}.{part}"]) for part in ("weight", "bias"))
            for i in range(len(self.hidden) + 1)
        )
        return Weights(*(jnp.asarray(tensors[f"feature_{part}"]) for part in ("mean", "spread")), tuple(layers))

    def descriptors(self, positions: np.ndarray) -> np.ndarray:
        """What tells frames [n_frames, n_particles, 3] apart, [n_frames, n]: the features, all in nm."""
        descriptors = np.array(self.features_of_all(positions), dtype=np.float64)
        descriptors[:, self.n_lengths :] *= self.signed_length
        return descriptors

    def initial_layers(self, key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """Random layers: normal weights of variance 1 / n_in, zero biases."""
        sizes = list(zip(self.layer_sizes, self.layer_sizes[1:], strict=False))
        keys = jax.random.split(key, len(sizes))
        return tuple(
            (jax.random.normal(k, (n_in, n_out)) / np.sqrt(n_in), jnp.zeros(n_out))
            for k, (n_in, n_out) in zip(keys, sizes, strict=True)
        )

    def features(self, positions: jax.Array) -> jax.Array:
        """Features [n_features] of one frame [n_particles, 3]: lexicographic pairs, coordinates, signed ones."""
        first, second = np.triu_indices(self.n_particles, 1)
        difference = _difference_matrix(self.n_particles, first, second) @ positions
        lengths = self._soft_length(difference)
        if self.coordinates:
            particle, axis = np.asarray(self.coordinates).T
            lengths = jnp.concatenate([lengths, positions[particle, axis]])
        if not self.quadruplets:
            return lengths
        a, b, c, d = np.asarray(self.quadruplets).T
        b1 = _difference_matrix(self.n_particles, b, a) @ positions
        b2 = _difference_matrix(self.n_particles, c, b) @ positions
        b3 = _difference_matrix(self.n_particles, d, c) @ positions
        l1, l2, l3 = self._soft_length(b1), self._soft_length(b2), self._soft_length(b3)
        normal = jnp.cross(b2, b3)
        s = jnp.sum(b1 * normal, axis=-1) / (l1 * l2 * l3)
        c = jnp.sum(jnp.cross(b1, b2) * normal, axis=-1) / (l1 * l2**2 * l3)
        return jnp.concatenate([lengths, jnp.stack([s, c], axis=-1).ravel()])

    @partial(jax.jit, static_argnums=0)
    def features_of_all(self, positions: jax.Array) -> jax.Array:
        """Features [n_frames, n_features] of frames [n_frames, n_particles, 3]."""
        return jax.lax.map(self.features, positions, batch_size=1024)

    def energy(self, weights: Weights, positions: jax.Array, log_noise: jax.Array, cell: None = None) -> jax.Array:
        """Energy in kT0 of one frame [n_particles, 3] in nm at the noise level exp(`log_noise`) nm; it has no cell."""
        noise = jnp.exp(log_noise)
        blur = jnp.concatenate(
            [
                jnp.broadcast_to(noise, (self.n_lengths,)),
                jnp.broadcast_to(noise / self.signed_length, (2 * len(self.quadruplets),)),
            ]
        )
        mean, spread = jax.lax.stop_gradient((weights.feature_mean, weights.feature_spread))
        f = (self.features(positions) - mean) / jnp.sqrt(spread**2 + blur**2)
        h = jnp.concatenate([f, self._embedding(log_noise)])
        for w, b in weights.layers[:-1]:
            h = jax.nn.silu(h @ w + b)
        w, b = weights.layers[-1]
        return 0.5 * self.harmonic * jnp.sum(f[: self.n_lengths] ** 2) + (h @ w + b)[0]

    def _soft_length(self, vectors: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(vectors**2, axis=-1) + self.softening**2)

    def _embedding(self, log_noise: jax.Array) -> jax.Array:
        return noise_embedding(log_noise, self.noise_min, self.noise_max, self.n_frequencies)


def noise_embedding(log_noise: jax.Array, noise_min: float, noise_max: float, n_frequencies: int) -> jax.Array:
    """2t - 1, then sin and cos of k pi t / 2 for k = 1 ... n_frequencies; t is 0 at noise_min and 1 at noise_max."""
    t = (log_noise - np.log(noise_min)) / (np.log(noise_max) - np.log(noise_min))
    angles = t * np.arange(1, n_frequencies + 1) * (np.pi / 2)
    return jnp.concatenate([jnp.array([2 * t - 1]), jnp.sin(angles), jnp.cos(angles)])


def _difference_matrix(n_particles: int, plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
    """Matrix [n_rows, n_particles] that takes positions to x[plus] - x[minus]; its gradient is a product too."""
    matrix = np.zeros((len(plus), n_particles), dtype=np.float32)
    rows = np.arange(len(plus))
    matrix[rows, plus] += 1
    matrix[rows, minus] -= 1
    return matrix
