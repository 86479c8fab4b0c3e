"""Alanine dipeptide, its ten heavy atoms or the five of its backbone, against 528 ns of all-atom simulation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from common import EXAMPLES, SEED, Row, divergence, histograms, independent_frames, ratio, simulate

import diffusim
from diffusim.report import plots, statistics
from diffusim.report.ensemble import Ensemble, Molecule, backbone_torsions, compare
from diffusim.terminal import describe_model, describe_step, say

N_REPLICAS, BURN_IN, N_FRAMES, EVERY = 1_000, 5_000, 250, 100
HEAVY_ATOMS = {"ala2": range(10), "ala2-5bead": (1, 3, 4, 6, 8)}  # their indices among the ten of the reference
TARGET = {"ala2": 0.010, "ala2-5bead": 0.0086}  # Jensen-Shannon divergence; 0.0086 is ScoreMD's best (theirs: 5 beads)
WIDEST = 1.05  # of the spread of any bond
NO_WORSE_THAN_IID = 1.1


def measure(system: str, picture: Path) -> list[Row]:
    path = EXAMPLES / "ala2" / f"{system}.safetensors"
    model = diffusim.Model(path)
    say("model", describe_model(model, path.name))
    molecule = Molecule.from_particles(model.metadata["particles"], model.metadata["bonds"])
    reference = reference_of(molecule, HEAVY_ATOMS[system])
    simulation = diffusim.Simulation(model, n_replicas=N_REPLICAS, seed=SEED)
    say("step", describe_step(simulation.statistics, simulation.adapter))
    frames = np.empty((N_FRAMES, N_REPLICAS, model.n_particles, 3), dtype=np.float32)
    simulate(simulation, BURN_IN, N_FRAMES, EVERY, lambda i, x: frames.__setitem__(i, x))

    flat = frames.reshape(-1, model.n_particles, 3)
    phi, psi = (angle.reshape(N_FRAMES, N_REPLICAS) for angle in backbone_torsions(flat, molecule))
    counts = histograms(lambda r: statistics.ramachandran_counts(phi[:, r], psi[:, r]), N_REPLICAS)
    rama = reference.ramachandran_counts
    what = "Ramachandran, 60×60 bins"
    simulated = divergence(system, "js_simulated", rama, counts, TARGET[system], what)
    rows = [simulated]
    independent = independent_frames(model)
    angles = np.stack(backbone_torsions(independent, molecule)).reshape(2, 10, -1)
    counts = np.stack([statistics.ramachandran_counts(*angles[:, part]) for part in range(10)])
    iid = divergence(system, "js_iid", rama, counts, None, what)
    worth = round(statistics.independent_frames(phi, psi))
    fair = divergence_of_fewer(rama, angles.reshape(2, -1), worth)
    rows.append(iid)
    for frames_of, beside in (
        ("as many independent frames", iid.value),
        (f"as many independent frames as the simulated ones are worth, {worth:,}: {fair:.4f}", fair),
    ):
        value, error = ratio(simulated.value, simulated.error, beside, iid.error)
        rows.append(Row(system, "js_simulated_over_iid", value, error, NO_WORSE_THAN_IID, what=frames_of))

    ensemble = Ensemble.measure(flat, molecule, like=reference)
    spread = ensemble.bond_std / reference.bond_std
    rows.append(Row(system, "bond_std_ratio", float(spread.max()), None, WIDEST, what="the widest bond"))
    with np.load(EXAMPLES / "ala2" / "reference.npz") as data:
        reference_error = float(data["phi_positive_error"])
    positive = (phi > 0).mean(axis=0)
    rows.append(
        Row(
            system,
            "population_error",
            abs(float(positive.mean()) - reference.phi_positive),
            float(np.hypot(statistics.standard_error(positive), reference_error)),
            reference_error,
            what=f"φ > 0: {100 * positive.mean():.1f} %, reference {100 * reference.phi_positive:.1f} ± "
            f"{100 * reference_error:.1f} %; no passages, the starts remember it",
        )
    )
    title = f"{system}: {N_REPLICAS:,} replicas of a learned score against 528 ns of all-atom OpenMM"
    plots.write(picture, title, reference, ensemble, compare(reference, ensemble), molecule)
    return rows


def divergence_of_fewer(reference: np.ndarray, angles: np.ndarray, n: int) -> float:
    """Mean divergence of `n` frames from the histogram `reference`, over parts of independent ones [2, n_frames].

    Histograms of few frames diverge by their noise alone. What a simulation's frames are worth, `n`, is what its
    divergence may be compared with.
    """
    parts = max(1, angles.shape[1] // n)
    each = (statistics.ramachandran_counts(*angles[:, k * n : (k + 1) * n]) for k in range(parts))
    return float(np.mean([statistics.jensen_shannon(reference, counts) for counts in each]))


def reference_of(molecule: Molecule, atoms) -> Ensemble:
    """The committed statistics of all heavy atoms, as those of the bonds and angles among `atoms` alone.

    phi and psi are the same torsions in both. Of the radius of gyration nothing is known where atoms are left out: that
    of the snapshots takes its place.
    """
    path = EXAMPLES / "ala2" / "reference.npz"
    whole = Ensemble.load(path)
    with np.load(path) as data:
        known = {name: [tuple(row) for row in data[name].tolist()] for name in ("bonds", "angles", "torsions")}
    if len(molecule.bonds) == len(known["bonds"]):
        return whole
    with np.load(EXAMPLES / "ala2" / "snapshots.npz") as data:
        snapshots = Ensemble.measure(data["positions"][:, list(atoms)], molecule)

    def rows(name: str, wanted: list) -> list[int]:
        named = [tuple(atoms[i] for i in one) for one in wanted]
        return [known[name].index(one if one in known[name] else one[::-1]) for one in named]

    bonds, angles = rows("bonds", molecule.bonds), rows("angles", molecule.angles)
    return replace(
        snapshots,
        n_frames=whole.n_frames,
        bond_mean=whole.bond_mean[bonds],
        bond_std=whole.bond_std[bonds],
        bond_edges=whole.bond_edges,
        bond_counts=whole.bond_counts[bonds],
        angle_mean=whole.angle_mean[angles],
        angle_std=whole.angle_std[angles],
        angle_edges=whole.angle_edges,
        angle_counts=whole.angle_counts[angles],
        ramachandran_counts=whole.ramachandran_counts,
        phi_positive=whole.phi_positive,
    )
