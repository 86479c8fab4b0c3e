"""United-atom butane and octane: the force field, exact samples of it, and what is counted in their motion.

Angles, torsions and Lennard-Jones terms are TraPPE's; its rigid bonds are springs here. All degrees of freedom are
kept, so the true dynamics of the beads is known. Lengths are nm, energies kJ/mol; time is D t in nm^2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from diffusim.report import statistics
from diffusim.report.ensemble import TORSION_EDGES, Ensemble

GAS_CONSTANT = 0.00831446261815324  # kJ/(mol K)
TEMPERATURE = 300.0  # K
KT = GAS_CONSTANT * TEMPERATURE  # kJ/mol

# TraPPE-UA (Martin & Siepmann, J. Phys. Chem. B 102, 2569), energies there in K. Its rigid bonds are springs here.
BOND_LENGTH, BOND_STIFFNESS = 0.154, 2.6e5  # nm, kJ/(mol nm^2)
ANGLE, ANGLE_STIFFNESS = np.radians(114.0), 62500 * GAS_CONSTANT  # rad, kJ/(mol rad^2)
C1, C2, C3 = (c * GAS_CONSTANT for c in (355.03, -68.19, 791.32))
WELL_DEPTH = {"CH3": 98.0 * GAS_CONSTANT, "CH2": 46.0 * GAS_CONSTANT}
DIAMETER = {"CH3": 0.375, "CH2": 0.395}  # nm
FIRST_NON_BONDED = 4  # bonds between two beads that feel Lennard-Jones forces

FRAME = 1e-4  # nm^2 of D x time between the frames that rates are counted on
TRANS, GAUCHE = (150.0, 180.0), (36.0, 96.0)  # degrees: core sets in |torsion|


@dataclass(frozen=True)
class Alkane:
    """A linear chain of `n_beads` CH3 and CH2 beads."""

    name: str
    residue: str
    n_beads: int

    @property
    def beads(self) -> list[str]:
        return ["CH3" if i in (0, self.n_beads - 1) else "CH2" for i in range(self.n_beads)]

    @property
    def torsions(self) -> list[tuple[int, int, int, int]]:
        return [(i, i + 1, i + 2, i + 3) for i in range(self.n_beads - 3)]

    @property
    def non_bonded(self) -> list[tuple[int, int, float, float]]:
        """(i, j, well depth, diameter) of the pairs far enough along the chain, Lorentz-Berthelot."""
        beads = self.beads
        return [
            (i, j, np.sqrt(WELL_DEPTH[beads[i]] * WELL_DEPTH[beads[j]]), (DIAMETER[beads[i]] + DIAMETER[beads[j]]) / 2)
            for i in range(self.n_beads)
            for j in range(i + FIRST_NON_BONDED, self.n_beads)
        ]


ALKANES = {"butane": Alkane("butane", "BUT", 4), "octane": Alkane("octane", "OCT", 8)}


def torsion_energy(phi: np.ndarray) -> np.ndarray:
    """TraPPE's torsion energy in kJ/mol; phi in radians, trans at pi."""
    return C1 * (1 + np.cos(phi)) + C2 * (1 - np.cos(2 * phi)) + C3 * (1 + np.cos(3 * phi))


def energy(alkane: Alkane, positions: np.ndarray) -> np.ndarray:
    """Energies [n_frames] of frames [n_frames, n_beads, 3], kJ/mol."""
    positions = np.asarray(positions, dtype=float)
    lengths = statistics.bond_lengths(positions, [(i, i + 1) for i in range(alkane.n_beads - 1)])
    angles = np.radians(statistics.bond_angles(positions, [(i, i + 1, i + 2) for i in range(alkane.n_beads - 2)]))
    bonded = 0.5 * BOND_STIFFNESS * np.sum((lengths - BOND_LENGTH) ** 2, axis=1)
    bonded += 0.5 * ANGLE_STIFFNESS * np.sum((angles - ANGLE) ** 2, axis=1)
    torsional = torsion_energy(np.radians(statistics.torsions(positions, alkane.torsions))).sum(axis=1)
    return bonded + torsional + _non_bonded_energy(alkane, positions)


def _non_bonded_energy(alkane: Alkane, positions: np.ndarray) -> np.ndarray:
    energy = np.zeros(len(positions))
    for i, j, depth, diameter in alkane.non_bonded:
        power = (diameter / np.linalg.norm(positions[:, i] - positions[:, j], axis=1)) ** 6
        energy += 4 * depth * (power**2 - power)
    return energy


def exact_frames(alkane: Alkane, n_frames: int, seed: int, even: int | None = None) -> np.ndarray:
    """Independent frames [n_frames, n_beads, 3] from the Boltzmann distribution, nm, centred, float32.

    The torsion number `even` is drawn as if it had no energy of its own: its barriers are as frequent as its basins.
    """
    random = np.random.default_rng(seed)
    spread = np.sqrt(KT / BOND_STIFFNESS)
    length_grid = np.linspace(BOND_LENGTH - 8 * spread, BOND_LENGTH + 8 * spread, 4001)
    angle_grid = np.linspace(np.radians(60), np.radians(179.9), 4001)
    torsion_grid = np.linspace(-np.pi, np.pi, 7201)
    # The volume element of a chain in its bonds, angles and torsions: r^2 sin(angle).
    length_weight = length_grid**2 * np.exp(-0.5 * BOND_STIFFNESS * (length_grid - BOND_LENGTH) ** 2 / KT)
    angle_weight = np.sin(angle_grid) * np.exp(-0.5 * ANGLE_STIFFNESS * (angle_grid - ANGLE) ** 2 / KT)
    torsion_weight = np.exp(-torsion_energy(torsion_grid) / KT)
    deepest = sum(depth for _, _, depth, _ in alkane.non_bonded)
    kept, n_kept = [], 0
    while n_kept < n_frames:
        n = 50_000
        lengths = _draw(random, length_grid, length_weight, (n, alkane.n_beads - 1))
        angles = _draw(random, angle_grid, angle_weight, (n, alkane.n_beads - 2))
        torsions = _draw(random, torsion_grid, torsion_weight, (n, alkane.n_beads - 3))
        if even is not None:
            torsions[:, even] = random.uniform(-np.pi, np.pi, n)
        frames = _chain(lengths, angles, torsions)
        if alkane.non_bonded:  # with the deepest energy there may be as zero, so that none is negative
            frames = frames[random.random(n) < np.exp(-(deepest + _non_bonded_energy(alkane, frames)) / KT)]
        kept.append(frames - frames.mean(axis=1, keepdims=True))
        n_kept += len(frames)
    return np.concatenate(kept)[:n_frames].astype(np.float32)


def _draw(random, grid: np.ndarray, weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Samples of the density `weight` on `grid`, taken as linear between its points, by inversion."""
    cumulative = np.concatenate([[0.0], np.cumsum((weight[1:] + weight[:-1]) / 2)])
    return np.interp(random.random(shape), cumulative / cumulative[-1], grid)


def _chain(lengths: np.ndarray, angles: np.ndarray, torsions: np.ndarray) -> np.ndarray:
    """Positions [n, n_beads, 3] of chains with these bonds [n, n_beads - 1], angles and torsions (radians)."""
    n, n_bonds = lengths.shape
    x = np.zeros((n, n_bonds + 1, 3))
    x[:, 1, 0] = lengths[:, 0]
    x[:, 2] = x[:, 1] + lengths[:, 1, None] * np.stack(
        [-np.cos(angles[:, 0]), np.sin(angles[:, 0]), np.zeros(n)], axis=1
    )
    for k in range(3, n_bonds + 1):
        first, second = x[:, k - 2] - x[:, k - 3], x[:, k - 1] - x[:, k - 2]
        along = second / np.linalg.norm(second, axis=1, keepdims=True)
        normal = np.cross(first, along)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        angle, torsion = angles[:, k - 2, None], torsions[:, k - 3, None]
        direction = -np.cos(angle) * along + np.sin(angle) * (
            np.cos(torsion) * np.cross(normal, along) + np.sin(torsion) * normal
        )
        x[:, k] = x[:, k - 1] + lengths[:, k - 1, None] * direction
    return x


@dataclass(frozen=True)
class Kinetics:
    """What the torsions do. Rates, 1/nm^2, are trans -> gauche and back, of all torsions and of each [n_torsions, 2].

    `autocorrelation` [n_torsions, n_lags] is <cos(phi(t + lag) - phi(t))> at `lags`, nm^2; `trans` [n_torsions] the
    fraction of frames with |phi| > 120 degrees. Errors are standard errors over independent copies.
    """

    rates: np.ndarray
    rate_errors: np.ndarray
    torsion_rates: np.ndarray
    torsion_rate_errors: np.ndarray
    lags: np.ndarray
    autocorrelation: np.ndarray
    autocorrelation_errors: np.ndarray
    trans: np.ndarray
    trans_errors: np.ndarray

    @classmethod
    def measure(cls, torsions: np.ndarray, longest_lag: float) -> "Kinetics":
        """From torsions [n_torsions, n_frames, n_copies] in degrees, one frame every FRAME nm^2."""
        size = np.abs(torsions)
        cores = np.where(size > TRANS[0], 0, np.where((size > GAUCHE[0]) & (size < GAUCHE[1]), 1, -1))
        passages = np.array([_passages(statistics.last_core(core)) for core in cores])  # torsion, direction, what, copy
        each = np.array([[statistics.rate(*direction) for direction in torsion] for torsion in passages])
        pooled = np.array([statistics.rate(*direction) for direction in passages.sum(axis=0)])
        lags = statistics.log_lags(round(longest_lag / FRAME))
        curves = np.array([statistics.autocorrelation(torsion, lags) for torsion in torsions])
        trans = np.mean(size > 120.0, axis=1)
        return cls(
            rates=pooled[:, 0],
            rate_errors=pooled[:, 1],
            torsion_rates=each[..., 0],
            torsion_rate_errors=each[..., 1],
            lags=lags * FRAME,
            autocorrelation=curves[:, 0],
            autocorrelation_errors=curves[:, 1],
            trans=trans.mean(axis=1),
            trans_errors=np.array([statistics.standard_error(copies) for copies in trans]),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All fields by name, for np.savez."""
        return {f"kinetics_{f.name}": getattr(self, f.name) for f in fields(self)}

    @classmethod
    def load(cls, path: Path) -> "Kinetics":
        """From an npz with the arrays of `arrays()`; it may hold more."""
        with np.load(path) as data:
            return cls(**{f.name: data[f"kinetics_{f.name}"] for f in fields(cls)})


def trans_populations(ensemble: Ensemble) -> np.ndarray:
    """Fraction of |torsion| > 120 degrees, [n_torsions], from the histograms of an ensemble."""
    centres = (TORSION_EDGES[1:] + TORSION_EDGES[:-1]) / 2
    return ensemble.torsion_counts[:, np.abs(centres) > 120.0].sum(axis=1) / ensemble.torsion_counts.sum(axis=1)


def _passages(states: np.ndarray) -> Sequence:
    """Counts and times of trans -> gauche and of gauche -> trans, for each copy."""
    return [(counts, frames * FRAME) for counts, frames in (statistics.passages(states, *d) for d in ((0, 1), (1, 0)))]
