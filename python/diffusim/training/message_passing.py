"""The `message-passing` network in JAX: the energy of any number of particles from their neighbours (theory 9).

A network of the PaiNN kind (Schuett et al., arXiv:2102.03150). Particle i has scalar features s_i [F] and vector
features v_i [3, F]. With d = x_j - x_i in nm (its nearest image in a periodic cell), r = |d|, n = d / r, cutoff c and e
the embedding of ln sigma:

    basis       b_k(r) = exp(-((r - k w) / w)^2 / 2),  k = 0 ... R - 1,  w = c / (R - 1)
    envelope    f(r) = 1 - 28 u^6 + 48 u^7 - 21 u^8,  u = r / c;  0 beyond the cutoff
    filter      W_ij = f(r) dense([b(r), e])
    at first    s_i = embedding of the species of i,  v_i = 0
    message     p_j = dense([s_j, e]), in parts p, p', p'' [F] each, as W has W, W', W''
                s_i += sum_j p_j W_ij,   v_i += sum_j n p'_j W'_ij + v_j p''_j W''_ij  (the last not in block 0)
    update      U v_i, V v_i, T v_i: mixtures of the channels;  g = dense([s_i, sqrt(1 + |V v_i|^2), e]) in parts
                s_i += g + g' (U v_i . V v_i) + g* (T v_i . (U v_i x V v_i)),  v_i += g'' U v_i  (not in the last)
    energy      E = sum_i [silu(s_i A + a), s_i] B + b  +  sum_{i<j} f(r) (d_ij^2 / (r^2 + (10 sigma)^2))^6

in kT0, where every dense([...]) is silu([...] A + a) B + b and the first a of the energy has e folded in as well. The
term with g* changes sign under reflection; it is there in a `chiral` network only. Without it mirror images are alike.
The last term keeps particles apart where there are no data; d_ij, the `repulsion` of the two species, is below every
distance in them. The blocks' message and update alternate `n_blocks` times.

Everything is smooth in positions and sigma up to the second derivative at the cutoff.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusim.training.network import noise_embedding

SOFTENING = 10.0  # noise levels by which the repulsion is softened

Weights = dict[str, jax.Array]


@dataclass(frozen=True)
class MessagePassingNetwork:
    """The shape of a `message-passing` network and the system that it is trained on; lengths in nm.

    `particles` has the species (an index into `species`) of each particle; `cell` the rows of a periodic cell at least
    two cutoffs wide; `max_neighbors` bounds the neighbours within the cutoff (None: all others). A frame with more
    neighbours has no finite energy.
    """

    species: tuple[str, ...]
    particles: tuple[int, ...]
    cutoff: float
    noise_min: float
    noise_max: float
    cell: tuple[tuple[float, float, float], ...] | None = None
    max_neighbors: int | None = None
    width: int = 32
    n_blocks: int = 2
    n_radial: int = 32
    radial_width: int = 32
    chiral: bool = True
    repulsion: tuple[tuple[float, ...], ...] | None = None
    n_frequencies: int = 4

    @property
    def n_particles(self) -> int:
        return len(self.particles)

    @property
    def n_weights(self) -> int:
        """Number of trained weights."""
        return sum(int(np.prod(shape)) for shape in self.shapes().values())

    def hyperparameters(self) -> dict:
        """The `hyperparameters` entry of the model file."""
        none = ((0.0,) * len(self.species),) * len(self.species)
        return {
            "species": list(self.species),
            "cutoff": self.cutoff,
            "width": self.width,
            "n_blocks": self.n_blocks,
            "n_radial": self.n_radial,
            "radial_width": self.radial_width,
            "chiral": self.chiral,
            "repulsion": [list(row) for row in self.repulsion or none],
            "n_frequencies": self.n_frequencies,
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the model file."""
        f, e = self.width, 2 * self.n_frequencies + 1

        def dense(name, n_in, hidden, n_out):
            return {
                f"{name}.0.weight": (n_in + e, hidden),
                f"{name}.0.bias": (hidden,),
                f"{name}.1.weight": (hidden, n_out),
                f"{name}.1.bias": (n_out,),
            }

        shapes = {"embedding": (len(self.species), f)}
        for block in range(self.n_blocks):
            first, last = block == 0, block == self.n_blocks - 1
            n_message = 2 if first else 3
            shapes |= dense(f"blocks.{block}.filter", self.n_radial, self.radial_width, n_message * f)
            shapes |= dense(f"blocks.{block}.message", f, f, n_message * f)
            shapes |= {f"blocks.{block}.mix": (f, (3 if self.chiral else 2) * f)}
            shapes |= dense(f"blocks.{block}.update", 2 * f, f, (2 + self.chiral + (not last)) * f)
        shapes |= {"readout.0.weight": (f + e, f), "readout.0.bias": (f,)}
        shapes |= {"readout.1.weight": (2 * f, 1), "readout.1.bias": (1,)}
        return shapes

    def initial_weights(self, key: jax.Array) -> Weights:
        """Random weights: normal of variance 1 / n_in, zero biases; sums over neighbours are of order 1."""
        shapes = self.shapes()
        neighbors = self.max_neighbors or max(1, self.n_particles - 1)
        weights = {}
        for (name, shape), k in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
            if name.endswith("bias"):
                weights[name] = jnp.zeros(shape)
                continue
            scale = 1.0 if name == "embedding" else 1 / np.sqrt(shape[0])
            if name.endswith("filter.1.weight"):
                scale /= np.sqrt(neighbors)
            weights[name] = scale * jax.random.normal(k, shape)
        return weights

    def tensors(self, weights: Weights) -> dict[str, np.ndarray]:
        """The tensors of the model file."""
        return {name: np.asarray(weights[name], dtype=np.float32) for name in self.shapes()}

    def weights(self, tensors: dict[str, np.ndarray]) -> Weights:
        """The weights in the tensors of a model file."""
        return {name: jnp.asarray(tensors[name]) for name in self.shapes()}

    def energy(
        self,
        weights: Weights,
        positions: jax.Array,
        log_noise: jax.Array,
        cell: jax.Array | None = None,
        neighbors: jax.Array | None = None,
    ) -> jax.Array:
        """Energy in kT0 of one frame [n_particles, 3] in nm at the noise level exp(`log_noise`) nm.

        `cell` [3, 3] in nm takes the place of the network's own, `neighbors` [n_particles, n_neighbors] that of the
        search: for each particle others, each once, among which are all within the cutoff.
        """
        e = noise_embedding(log_noise, self.noise_min, self.noise_max, self.n_frequencies)
        neighbors, difference = self._neighbors(positions, cell, neighbors)
        r2 = jnp.sum(difference**2, axis=-1)
        r = jnp.sqrt(r2)
        direction = difference / r[..., None]  # [i, neighbour, 3]
        u = jnp.minimum(r / self.cutoff, 1.0)
        envelope = 1 + u**6 * (-28 + u * (48 - 21 * u))
        spacing = self.cutoff / (self.n_radial - 1)
        basis = jnp.exp(-0.5 * (r[..., None] / spacing - np.arange(self.n_radial)) ** 2)

        species = np.asarray(self.particles)
        of_neighbor = jax.nn.one_hot(species, len(self.species), dtype=positions.dtype)[neighbors]
        s, v = weights["embedding"][species], None
        for block in range(self.n_blocks):
            name = f"blocks.{block}"
            filters = _dense(weights, f"{name}.filter", e, basis) * envelope[..., None]
            if v is None:
                p = of_neighbor @ _dense(weights, f"{name}.message", e, weights["embedding"])
            else:
                p = _dense(weights, f"{name}.message", e, s)[neighbors]
            messages = jnp.split(p * filters, 2 if v is None else 3, axis=-1)
            to_vectors = jnp.einsum("ijc,ijf->icf", direction, messages[1])
            s = s + jnp.sum(messages[0], axis=1)
            if v is None:
                v = to_vectors
            else:
                v = v + to_vectors + jnp.sum(v[neighbors] * messages[2][:, :, None], axis=1)

            mixed = jnp.split(v @ weights[f"{name}.mix"], 3 if self.chiral else 2, axis=-1)
            lengths = jnp.sqrt(1 + jnp.sum(mixed[1] ** 2, axis=1))
            gates = _dense(weights, f"{name}.update", e, s, lengths)
            gates = jnp.split(gates, gates.shape[-1] // self.width, axis=-1)
            s = s + gates[0] + gates[1] * jnp.sum(mixed[0] * mixed[1], axis=1)
            if self.chiral:
                s = s + gates[2] * jnp.sum(mixed[2] * jnp.cross(mixed[0], mixed[1], axis=1), axis=1)
            if block < self.n_blocks - 1:
                v = v + gates[-1][:, None] * mixed[0]
        hidden = jax.nn.silu(_first(weights, "readout", e, s))
        energies = jnp.concatenate([hidden, s], axis=-1) @ weights["readout.1.weight"] + weights["readout.1.bias"]
        total = jnp.sum(energies)
        if self.repulsion is not None:
            reach = jnp.asarray(self.repulsion, positions.dtype)[species]  # [i, species]
            reach = jnp.einsum("ijz,iz->ij", of_neighbor, reach)
            softening = (SOFTENING * jnp.exp(log_noise)) ** 2
            total += 0.5 * jnp.sum(envelope * (reach**2 / (r2 + softening)) ** 6)
        return total

    def score(
        self,
        weights: Weights,
        positions: jax.Array,
        log_noise: jax.Array,
        cell: jax.Array | None = None,
        neighbors: jax.Array | None = None,
    ) -> jax.Array:
        """Score -grad_x E [n_particles, 3] in 1/nm of one frame."""
        return -jax.grad(self.energy, argnums=1)(weights, positions, log_noise, cell, neighbors)

    def _neighbors(
        self, positions: jax.Array, cell: jax.Array | None, neighbors: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """For each particle its neighbours [n_particles, n_neighbors] and the differences x_j - x_i to their images."""
        n = self.n_particles
        if cell is None and self.cell is not None:
            cell = jnp.asarray(self.cell, positions.dtype)

        def differences(neighbors):
            d = positions[neighbors] - positions[:, None]
            if cell is not None:
                d = d - jax.lax.stop_gradient(jnp.round(d @ jnp.linalg.inv(cell))) @ cell
            return d

        if neighbors is not None:
            return neighbors, differences(neighbors)
        others = np.arange(n - 1) + (np.arange(n - 1) >= np.arange(n)[:, None])
        if self.max_neighbors is None or self.max_neighbors >= n - 1:
            return others, differences(others)
        squared = jax.lax.stop_gradient(jnp.sum(differences(others) ** 2, axis=-1))
        negative, chosen = jax.lax.top_k(-squared, self.max_neighbors + 1)
        overflow = jnp.any(negative[:, -1] > -(self.cutoff**2))
        neighbors = jnp.take_along_axis(jnp.asarray(others), chosen[:, :-1], axis=1)
        return neighbors, differences(neighbors) * jnp.where(overflow, jnp.nan, 1.0)


def nearest(positions: np.ndarray, n_neighbors: int, cell: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """The `n_neighbors` nearest others [n_particles, n_neighbors] of each particle of a frame [n_particles, 3].

    Also the least distance in nm of one that is left out.
    """
    d = np.asarray(positions, dtype=float)[:, None] - positions
    if cell is not None:
        d -= np.round(d @ np.linalg.inv(cell)) @ cell
    squared = np.sum(d**2, axis=-1)
    np.fill_diagonal(squared, -1.0)  # each particle first, to be left out
    order = np.argpartition(squared, (0, n_neighbors + 1), axis=1)
    left_out = np.take_along_axis(squared, order[:, n_neighbors + 1, None], axis=1)
    return order[:, 1 : n_neighbors + 1], float(np.sqrt(left_out.min()))


def _first(weights: Weights, name: str, e: jax.Array, *inputs: jax.Array) -> jax.Array:
    """[inputs, e] A + a; e, the same for all rows, enters as a bias."""
    x = jnp.concatenate(inputs, axis=-1)
    n = x.shape[-1]
    w = weights[f"{name}.0.weight"]
    return x @ w[:n] + (e @ w[n:] + weights[f"{name}.0.bias"])


def _dense(weights: Weights, name: str, e: jax.Array, *inputs: jax.Array) -> jax.Array:
    """silu([inputs, e] A + a) B + b."""
    return jax.nn.silu(_first(weights, name, e, *inputs)) @ weights[f"{name}.1.weight"] + weights[f"{name}.1.bias"]


@partial(jax.jit, static_argnums=0)
def energies_and_scores(
    network: MessagePassingNetwork, weights: Weights, positions: jax.Array, log_noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Energies [n_frames] and scores of frames [n_frames, n_particles, 3], one frame at a time."""

    def one(x):
        energy, gradient = jax.value_and_grad(network.energy, argnums=1)(weights, x, log_noise)
        return energy, -gradient

    return jax.lax.map(one, positions)
