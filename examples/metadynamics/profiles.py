"""Free energies of phi from weighted frames, their errors, and how far two of them are apart. kJ/mol and degrees."""

from pathlib import Path

import numpy as np

KT = 0.00831446261815324 * 300.0  # kJ/mol
EDGES = np.linspace(-180.0, 180.0, 37)  # 10 degrees a bin
POPULATED = 10.0  # kJ/mol (4 kT) above the minimum, up to which profiles are compared
KCAL = 4.184


def free_energy(weights: np.ndarray) -> np.ndarray:
    """-kT ln p of weights [n_bins]; inf where there are none."""
    with np.errstate(divide="ignore"):
        return -KT * np.log(weights / weights.sum())


def with_error(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Free energy of weights [n_parts, n_bins], and its error by leaving out one part at a time."""
    energy = free_energy(parts.sum(axis=0))
    left_out = np.array([free_energy(np.delete(parts, p, axis=0).sum(axis=0)) for p in range(len(parts))])
    finite = np.isfinite(left_out).all(axis=0)
    scatter = np.var(np.where(finite, left_out, 0.0), axis=0)
    return energy, np.where(finite, np.sqrt((len(parts) - 1) * scatter), np.inf)


def reweighted(phi: np.ndarray, bias: np.ndarray, n_parts: int = 5) -> np.ndarray:
    """Weights [n_walkers n_parts, n_bins] of frames [n_walkers, n_frames] of phi under a fixed bias V: exp(V/kT)."""
    weights = np.exp((bias - bias.max()) / KT)
    parts = []
    for angles, each in zip(phi, weights, strict=True):
        for some in np.array_split(np.arange(len(angles)), n_parts):
            parts.append(np.histogram(angles[some], EDGES, weights=each[some])[0])
    return np.array(parts)


def weights_of_replicas(phi: np.ndarray, bias: np.ndarray, n_parts: int = 10) -> np.ndarray:
    """Weights [n_parts, n_bins] of frames [n_frames, n_replicas] under a fixed bias V, of the replicas of each part."""
    weights = np.exp((bias - bias.max()) / KT)
    counted = [(phi[:, part::n_parts], weights[:, part::n_parts]) for part in range(n_parts)]
    return np.array([np.histogram(angles, EDGES, weights=each)[0] for angles, each in counted])


def positive(parts: np.ndarray) -> tuple[float, float]:
    """Population of phi > 0 and its error, of weights [n_parts, n_bins]."""
    half = parts.shape[1] // 2

    def share(weights) -> float:
        return float(weights[..., half:].sum() / weights.sum())

    left_out = [share(np.delete(parts, p, axis=0)) for p in range(len(parts))]
    return share(parts), float(np.sqrt((len(parts) - 1) * np.var(left_out)))


def difference(
    energy: np.ndarray, error: np.ndarray, true: np.ndarray, true_error: np.ndarray
) -> tuple[float, float, float]:
    """Root mean square and largest difference where the truth is populated, and the error of the largest.

    Both are free energies of normalised densities: there is no constant to fit.
    """
    populated = true < true.min() + POPULATED
    apart = np.abs(energy - true)[populated]
    worst = int(apart.argmax())
    return (
        float(np.sqrt(np.mean(apart**2))),
        float(apart[worst]),
        float(np.hypot(error, true_error)[populated][worst]),
    )


def read_colvars(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """phi, psi (degrees) and V (kJ/mol) of a trajectory of COLVARS with outputEnergy, in LAMMPS's units real."""
    _, phi, psi, bias = np.loadtxt(path, comments="#").T
    return phi, psi, bias * KCAL
