"""The statistics of an ensemble of frames of one molecule, and how two ensembles differ."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from diffusim.report import statistics

N_BINS = 160  # of the histograms of lengths, angles and sizes
TORSION_EDGES = np.linspace(-180.0, 180.0, 73)  # 5 degrees a bin


@dataclass(frozen=True)
class Molecule:
    """What is measured: particle names [n], masses [n] (amu), bonds, angles, torsions and backbone (phi, psi) pairs."""

    names: list[str]
    masses: np.ndarray
    bonds: list[tuple[int, int]]
    angles: list[tuple[int, int, int]]
    torsions: list[tuple[int, int, int, int]]
    backbone: list[tuple[tuple[int, int, int, int], tuple[int, int, int, int]]]

    @classmethod
    def from_particles(cls, particles: Sequence[dict], bonds: Sequence[tuple[int, int]]) -> "Molecule":
        """From `particles` and `bonds` as a model file lists them."""
        bonds = sorted((min(i, j), max(i, j)) for i, j in bonds)
        return cls(
            names=[p["name"] for p in particles],
            masses=np.array([p["mass"] or 1.0 for p in particles]),  # beads may have none
            bonds=bonds,
            angles=statistics.angles_of(bonds),
            torsions=statistics.torsions_of(bonds),
            backbone=_backbone(particles),
        )


@dataclass(frozen=True)
class Ensemble:
    """Statistics of `n_frames` frames. Lengths in nm, angles in degrees.

    Mean and std [n] of each bond and angle; histograms [n, n_bins] over common edges. The Ramachandran histogram
    [60, 60] is over all (phi, psi) pairs; without any it is [0, 0] and `phi_positive`, the fraction phi > 0, is nan.
    """

    n_frames: int
    bond_mean: np.ndarray
    bond_std: np.ndarray
    bond_edges: np.ndarray
    bond_counts: np.ndarray
    angle_mean: np.ndarray
    angle_std: np.ndarray
    angle_edges: np.ndarray
    angle_counts: np.ndarray
    torsion_counts: np.ndarray
    size_edges: np.ndarray
    size_counts: np.ndarray
    size_mean: float
    ramachandran_counts: np.ndarray
    phi_positive: float

    @classmethod
    def measure(cls, positions: np.ndarray, molecule: Molecule, like: "Ensemble | None" = None) -> "Ensemble":
        """From positions [n_frames, n_particles, 3]; with the histogram edges of `like`, else edges that fit."""
        lengths = statistics.bond_lengths(positions, molecule.bonds)
        angles = statistics.bond_angles(positions, molecule.angles)
        torsions = statistics.torsions(positions, molecule.torsions)
        sizes = statistics.radius_of_gyration(positions, molecule.masses)
        phi, psi = backbone_torsions(positions, molecule)
        bond_edges = _edges(lengths) if like is None else like.bond_edges
        angle_edges = _edges(angles) if like is None else like.angle_edges
        size_edges = _edges(sizes) if like is None else like.size_edges
        return cls(
            n_frames=len(positions),
            bond_mean=lengths.mean(axis=0, dtype=float),
            bond_std=lengths.std(axis=0, dtype=float),
            bond_edges=bond_edges,
            bond_counts=_histograms(lengths, bond_edges),
            angle_mean=angles.mean(axis=0, dtype=float),
            angle_std=angles.std(axis=0, dtype=float),
            angle_edges=angle_edges,
            angle_counts=_histograms(angles, angle_edges),
            torsion_counts=_histograms(torsions, TORSION_EDGES),
            size_edges=size_edges,
            size_counts=_histograms(sizes[:, None], size_edges)[0],
            size_mean=float(sizes.mean(dtype=float)),
            ramachandran_counts=statistics.ramachandran_counts(phi, psi) if phi.size else np.zeros((0, 0)),
            phi_positive=float(np.mean(phi > 0)) if phi.size else float("nan"),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All fields by name, for np.savez."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def load(cls, path: Path) -> "Ensemble":
        """From an npz with the arrays of `arrays()`; it may hold more."""
        with np.load(path) as data:
            arrays = {f.name: data[f.name] for f in fields(cls)}
        return cls(**{name: array.item() if array.ndim == 0 else array for name, array in arrays.items()})


def compare(reference: Ensemble, simulated: Ensemble) -> dict:
    """How far `simulated` is from `reference`, in numbers; divergences with their sampling floors (see statistics).

    PMF errors are in kT, angles in degrees, the rest are ratios and fractions.
    """
    numbers: dict = {"n_frames": simulated.n_frames, "n_frames_reference": reference.n_frames}
    if simulated.ramachandran_counts.size:
        error, missed = statistics.pmf_error(reference.ramachandran_counts, simulated.ramachandran_counts)
        numbers |= {
            "bins": f"{statistics.RAMACHANDRAN_BINS}x{statistics.RAMACHANDRAN_BINS}",
            "js": statistics.jensen_shannon(reference.ramachandran_counts, simulated.ramachandran_counts),
            "js_floor": statistics.jensen_shannon_floor(
                reference.ramachandran_counts, simulated.ramachandran_counts.sum()
            ),
            "pmf_error": error,
            "pmf_error_floor": statistics.pmf_error_floor(
                reference.ramachandran_counts, simulated.ramachandran_counts.sum()
            ),
            "pmf_missed": missed,
            "phi_positive_simulated": simulated.phi_positive,
            "phi_positive_reference": reference.phi_positive,
        }
    if len(simulated.torsion_counts):
        pairs = list(zip(reference.torsion_counts, simulated.torsion_counts, strict=True))
        numbers |= {
            "torsion_bins": len(TORSION_EDGES) - 1,
            "torsion_js": [statistics.jensen_shannon(p, q) for p, q in pairs],
            "torsion_js_floor": [statistics.jensen_shannon_floor(p, q.sum()) for p, q in pairs],
            "torsion_pmf_error": [statistics.pmf_error(p, q)[0] for p, q in pairs],
            "torsion_pmf_error_floor": [statistics.pmf_error_floor(p, q.sum()) for p, q in pairs],
        }
    if len(simulated.bond_mean):
        ratio = simulated.bond_std / reference.bond_std
        numbers |= {
            "bond_mean_error_max": float(np.max(np.abs(simulated.bond_mean / reference.bond_mean - 1))),
            "bond_std_ratio_min": float(ratio.min()),
            "bond_std_ratio_max": float(ratio.max()),
        }
    if len(simulated.angle_mean):
        ratio = simulated.angle_std / reference.angle_std
        numbers |= {
            "angle_mean_error_max": float(np.max(np.abs(simulated.angle_mean - reference.angle_mean))),
            "angle_std_ratio_min": float(ratio.min()),
            "angle_std_ratio_max": float(ratio.max()),
        }
    numbers["radius_of_gyration_error"] = simulated.size_mean / reference.size_mean - 1
    return numbers


def backbone_torsions(positions: np.ndarray, molecule: Molecule) -> tuple[np.ndarray, np.ndarray]:
    """phi and psi, each [n_frames, n_pairs], degrees."""
    phi = statistics.torsions(positions, [phi for phi, _ in molecule.backbone])
    psi = statistics.torsions(positions, [psi for _, psi in molecule.backbone])
    return phi, psi


def _backbone(particles: Sequence[dict]) -> list:
    """The (phi, psi) quadruplets of every residue that has both, by atom names."""
    atoms = {(p["residue_index"], p["name"]): i for i, p in enumerate(particles)}
    pairs = []
    for residue in sorted({p["residue_index"] for p in particles}):
        chain = [(residue - 1, "C"), (residue, "N"), (residue, "CA"), (residue, "C"), (residue + 1, "N")]
        if all(key in atoms for key in chain):
            c_before, n, ca, c, n_after = (atoms[key] for key in chain)
            pairs.append(((c_before, n, ca, c), (n, ca, c, n_after)))
    return pairs


def _edges(values: np.ndarray) -> np.ndarray:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05
    return np.linspace(low - margin, high + margin, N_BINS + 1)


def _histograms(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts [n, n_bins] of values [n_frames, n]; what lies outside counts in the bins at the ends."""
    inside = np.clip(values, edges[0], edges[-1])
    return np.array([np.histogram(column, bins=edges)[0] for column in inside.T], dtype=np.int64).reshape(
        values.shape[1], len(edges) - 1
    )
