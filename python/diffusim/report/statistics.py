"""Geometry of frames, histograms and their divergence, time correlations, errors. NumPy only.

`positions` are [n_frames, n_particles, 3] in nm; angles and torsions are in degrees, torsions in [-180, 180).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

RAMACHANDRAN_BINS = 60
RAMACHANDRAN_EDGES = np.linspace(-180.0, 180.0, RAMACHANDRAN_BINS + 1)


@dataclass(frozen=True)
class Exchange:
    """Counts of passages between the phi < 0 and phi > 0 basins, and of the frames spent in each."""

    into_positive: int
    out_of_positive: int
    frames_negative: int
    frames_positive: int


def bond_lengths(positions: np.ndarray, bonds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Lengths [n_frames, n_bonds], nm."""
    i, j = _columns(bonds, 2)
    return np.linalg.norm(positions[:, j] - positions[:, i], axis=-1)


def bond_angles(positions: np.ndarray, triples: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Angles i-j-k at the middle particle j, [n_frames, n_triples], degrees."""
    i, j, k = _columns(triples, 3)
    u, v = positions[:, i] - positions[:, j], positions[:, k] - positions[:, j]
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(u, v), axis=-1), np.sum(u * v, axis=-1)))


def torsions(positions: np.ndarray, quadruplets: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    """Dihedral angles (IUPAC sign), [n_frames, n_quadruplets], degrees in [-180, 180)."""
    a, b, c, d = _columns(quadruplets, 4)
    b1, b2, b3 = (positions[:, q] - positions[:, p] for p, q in ((a, b), (b, c), (c, d)))
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    sine = np.sum(b1 * n2, axis=-1) * np.linalg.norm(b2, axis=-1)
    angle = np.degrees(np.arctan2(sine, np.sum(n1 * n2, axis=-1)))
    return np.where(angle >= 180.0, angle - 360.0, angle)


def radius_of_gyration(positions: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Mass-weighted radius of gyration of each frame, nm."""
    weights = np.asarray(masses, dtype=float) / np.sum(masses)
    centred = positions - np.einsum("i,fix->fx", weights, positions)[:, None]
    return np.sqrt(np.einsum("i,fix->f", weights, centred**2))


def angles_of(bonds: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Every angle between two bonds that share a particle."""
    neighbours = _neighbours(bonds)
    return [
        (i, j, k) for j, around in sorted(neighbours.items()) for m, i in enumerate(around) for k in around[m + 1 :]
    ]


def torsions_of(bonds: Iterable[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """One torsion about each bond that is not at an end of the molecule, through the neighbours of lowest index."""
    bonds = sorted({(min(i, j), max(i, j)) for i, j in bonds})
    neighbours = _neighbours(bonds)
    found = []
    for j, k in bonds:
        before = [i for i in neighbours[j] if i != k]
        after = [m for m in neighbours[k] if m != j and m not in before]
        if before and after:
            found.append((before[0], j, k, after[0]))
    return found


def ramachandran_counts(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """Counts [60, 60] over (phi, psi), 6 degrees a bin."""
    counts, _, _ = np.histogram2d(np.ravel(phi), np.ravel(psi), bins=(RAMACHANDRAN_EDGES, RAMACHANDRAN_EDGES))
    return counts


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two histograms of the same bins: 0 if equal, ln 2 if apart. No smoothing."""
    p, q = (np.ravel(h) / np.sum(h) for h in (p, q))
    middle = (p + q) / 2

    def relative_entropy(h):
        filled = h > 0
        return np.sum(h[filled] * np.log(h[filled] / middle[filled]))

    return float((relative_entropy(p) + relative_entropy(q)) / 2)


def jensen_shannon_floor(reference: np.ndarray, n_frames: float, repeats: int = 20) -> float:
    """Expected divergence from the histogram `reference` of `n_frames` independent samples of it: a perfect score."""
    rng = np.random.default_rng(20251117)
    p = np.ravel(reference) / np.sum(reference)
    return float(np.mean([jensen_shannon(rng.multinomial(round(n_frames), p), p) for _ in range(repeats)]))


def pmf_error(reference: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """How far the free energy -ln p of a histogram is from that of the histogram `reference`, in kT.

    Root mean square of the difference over the bins that both have visited, weighted with the reference's probability
    and free of the constant between the two. Second: the probability, in the reference, of bins never visited.
    """
    p, q = (np.ravel(h) / np.sum(h) for h in (reference, counts))
    both = (p > 0) & (q > 0)
    weight, difference = p[both] / p[both].sum(), np.log(p[both] / q[both])
    mean = np.sum(weight * difference)
    return float(np.sqrt(np.sum(weight * (difference - mean) ** 2))), float(p[(p > 0) & (q == 0)].sum())


def pmf_error_floor(reference: np.ndarray, n_frames: float, repeats: int = 20) -> float:
    """Expected PMF error of `n_frames` independent samples of the histogram `reference`: a perfect score."""
    rng = np.random.default_rng(20251117)
    p = np.ravel(reference) / np.sum(reference)
    return float(np.mean([pmf_error(p, rng.multinomial(round(n_frames), p))[0] for _ in range(repeats)]))


def autocorrelation(angles: np.ndarray, lags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """<cos(angle(t + lag) - angle(t))> of trajectories [n_frames, n_trajectories] in degrees at `lags` in frames.

    Returns the mean over the trajectories and its standard error (nan for one trajectory).
    """
    n_frames, n_trajectories = angles.shape
    phases = np.exp(1j * np.radians(angles))
    spectrum = np.fft.fft(phases, n=2 * n_frames, axis=0)
    products = np.fft.ifft(np.abs(spectrum) ** 2, axis=0)[lags].real
    curves = products / (n_frames - lags)[:, None]
    if n_trajectories == 1:
        return curves[:, 0], np.full(len(lags), np.nan)
    return curves.mean(axis=1), curves.std(axis=1, ddof=1) / np.sqrt(n_trajectories)


def exchange(phi: np.ndarray) -> Exchange:
    """Exchange between phi < 0 and phi > 0 in trajectories [n_frames, n_trajectories], by the core sets of phi_cores.

    A trajectory belongs to the core that it visited last, so brief recrossings of the border do not count.
    """
    state = last_core(phi_cores(phi))
    before, after = state[:-1], state[1:]
    return Exchange(
        into_positive=int(np.count_nonzero((before == 0) & (after == 1))),
        out_of_positive=int(np.count_nonzero((before == 1) & (after == 0))),
        frames_negative=int(np.count_nonzero(state == 0)),
        frames_positive=int(np.count_nonzero(state == 1)),
    )


def phi_cores(phi: np.ndarray) -> np.ndarray:
    """The core set that each phi is in: 0 in [-160, -40], 1 in [30, 100] degrees, -1 elsewhere."""
    return np.where((phi > 30) & (phi < 100), 1, np.where((phi > -160) & (phi < -40), 0, -1))


def last_core(cores: np.ndarray) -> np.ndarray:
    """The core set that each trajectory visited last, of the one it is in (0, 1, ...; -1: in none) at each frame.

    Both [n_frames, n_trajectories]; -1 before the first visit. Counting changes of this state in place of crossings of
    a border leaves out the recrossings (milestoning).
    """
    last = np.maximum.accumulate(np.where(cores >= 0, np.arange(len(cores))[:, None], -1), axis=0)
    return np.where(last >= 0, np.take_along_axis(cores, np.maximum(last, 0), axis=0), -1)


def passages(states: np.ndarray, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Changes from `start` to `end` in states [n_frames, n_trajectories] of last_core, and frames spent in `start`.

    Both [n_trajectories].
    """
    before, after = states[:-1], states[1:]
    return np.sum((before == start) & (after == end), axis=0), np.sum(before == start, axis=0)


def rate(counts: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """All counts over all times of independent trajectories, and its standard error (that of a ratio of means)."""
    n, total = len(counts), np.sum(times)
    value = np.sum(counts) / total
    return float(value), float(np.sqrt(n / (n - 1) * np.sum((counts - value * times) ** 2)) / total)


def independent_frames(phi: np.ndarray, psi: np.ndarray) -> float:
    """How many independent frames the Ramachandran histogram of independent trajectories [n_frames, n_trajectories] is
    worth: so many as would scatter the bins (each over its mean) as much as the trajectories do among themselves.
    """
    shares = np.array(
        [ramachandran_counts(*pair).ravel() / len(phi) for pair in zip(phi.T, psi.T, strict=True)], dtype=np.float32
    )
    mean = shares.mean(axis=0)
    filled = mean > 0
    variance = shares.var(axis=0, ddof=1)[filled] / len(shares)
    return float(np.sum(1 - mean[filled]) / np.sum(variance / mean[filled]))


def jackknife(estimate: Callable[[np.ndarray], float], n_trajectories: int, parts: int = 10) -> float:
    """Standard error of `estimate`, a function of indices of trajectories, by leaving out one of `parts` at a time."""
    part = np.arange(n_trajectories) % parts
    left_out = np.array([estimate(np.flatnonzero(part != p)) for p in range(parts)])
    return float(np.sqrt((parts - 1) * np.mean((left_out - left_out.mean(axis=0)) ** 2, axis=0)))


def log_lags(longest: int, count: int = 60) -> np.ndarray:
    """About `count` whole lags from 0 to `longest`, evenly spaced in the logarithm."""
    return np.unique(np.concatenate([[0], np.geomspace(1, max(longest, 1), count).round()])).astype(int)


def standard_error(parts: np.ndarray) -> float:
    """Standard error of the mean of independent, equally long parts."""
    return float(np.std(parts, ddof=1) / np.sqrt(len(parts)))


def _columns(indices: Sequence[tuple[int, ...]], width: int) -> np.ndarray:
    return np.array(indices, dtype=int).reshape(-1, width).T


def _neighbours(bonds: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    around: dict[int, set[int]] = {}
    for i, j in bonds:
        around.setdefault(i, set()).add(j)
        around.setdefault(j, set()).add(i)
    return {i: sorted(others) for i, others in around.items()}
