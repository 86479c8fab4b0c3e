"""Alanine dipeptide, its ten heavy atoms or the five of its backbone, against 528 ns of all-atom simulation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from common import EXAMPLES, SEED, Row, divergence, histograms, independent_frames, ratio, simulate
from model_profile import under_one_bias
from profiles import positive, weights_of_replicas

import diffusim
from diffusim.report import plots, statistics
from diffusim.report.ensemble import Ensemble, Molecule, backbone_torsions, compare
from diffusim.terminal import describe_model, describe_step, say

N_REPLICAS, EVERY = 1_000, 100
# With velocities psi forgets in 10,000 steps what takes it more than 100,000 overdamped ones. 1/ps and ps.
LANGEVIN = {"adapter": "langevin", "friction_rate": 2.0, "time_step": 0.002}
BURN_IN, N_FRAMES = 20_000, 600
OVERDAMPED_BURN_IN, N_OVERDAMPED_FRAMES = 5_000, 250
HEAVY_ATOMS = {"ala2": range(10), "ala2-5bead": (1, 3, 4, 6, 8)}  # their indices among the ten of the reference
TARGET = {"ala2": 0.010, "ala2-5bead": 0.0086}  # Jensen-Shannon divergence; 0.0086 is ScoreMD's best (theirs: 5 beads)
WIDEST = 1.05  # of the spread of any bond
NO_WORSE_THAN_IID = 1.1
PARTS = 10  # of the replicas; each is left out in turn
LEAST_PASSAGES = 20  # in and out, for their balance to be known
BIASED = {"n_replicas": 400, "filling": 20_000, "steps": 40_000}
BINS = "Ramachandran, 60×60 bins"
NEGATIVE = np.repeat(statistics.RAMACHANDRAN_EDGES[1:, None] <= 0, statistics.RAMACHANDRAN_BINS, axis=1)  # phi < 0


def measure(system: str, picture: Path) -> list[Row]:
    path = EXAMPLES / "ala2" / f"{system}.safetensors"
    model = diffusim.Model(path)
    say("model", describe_model(model, path.name))
    molecule = Molecule.from_particles(model.metadata["particles"], model.metadata["bonds"])
    reference = reference_of(molecule, HEAVY_ATOMS[system])
    rama = reference.ramachandran_counts

    def divergences(metric: str, counts: np.ndarray, how: str, target: float | None = None) -> list[Row]:
        """Over the plane, and over its half phi < 0, which the population of the other half does not enter."""
        return [
            divergence(system, metric, rama, counts, target, f"{how}{BINS}"),
            divergence(system, metric, rama * NEGATIVE, counts * NEGATIVE, None, f"φ < 0 alone; {how}{BINS}"),
        ]

    frames = run(model, BURN_IN, N_FRAMES, **LANGEVIN)
    how = f"Langevin, {LANGEVIN['friction_rate']:g}/ps, {1000 * LANGEVIN['time_step']:g} fs; "
    phi, psi = angles_of(frames, molecule)
    simulated = divergences("js_simulated", ramachandran(phi, psi), how, TARGET[system])
    independent = np.stack(backbone_torsions(independent_frames(model), molecule))[..., 0]
    parts = independent.reshape(2, PARTS, -1)
    iid = divergences("js_iid", np.stack([statistics.ramachandran_counts(*parts[:, i]) for i in range(PARTS)]), "")
    rows = simulated + iid
    besides = [(simulated[0], iid[0], iid[0].value, "whole plane"), (simulated[1], iid[1], iid[1].value, "φ < 0 alone")]
    worth = round(statistics.independent_frames(phi, psi))
    if worth < independent.shape[1]:
        fair = divergence_of_fewer(rama, independent, worth)
        besides.insert(
            1, (simulated[0], iid[0], fair, f"as many frames as the simulated are worth, {worth:,}: {fair:.4f}")
        )
    for found, beside, value, what in besides:
        value, error = ratio(found.value, found.error, value, beside.error)
        rows.append(Row(system, "js_simulated_over_iid", value, error, NO_WORSE_THAN_IID, what=what))
    rows.append(widest_bond(system, frames, molecule, reference, how))
    rows.append(population(system, phi, reference))
    rows.append(population_in_equilibrium(system, model, molecule, reference))
    title = f"{system}: {N_REPLICAS:,} replicas of a learned score against 528 ns of all-atom OpenMM"
    ensemble = Ensemble.measure(frames.reshape(-1, model.n_particles, 3), molecule, like=reference)
    plots.write(picture, title, reference, ensemble, compare(reference, ensemble), molecule)

    frames = run(model, OVERDAMPED_BURN_IN, N_OVERDAMPED_FRAMES)
    how = "overdamped, correlated, φ > 0 as at the start; "
    counts = ramachandran(*angles_of(frames, molecule))
    return [*rows, *divergences("js_simulated", counts, how), widest_bond(system, frames, molecule, reference, how)]


def run(model: diffusim.Model, burn_in: int, n_frames: int, **step) -> np.ndarray:
    """Frames [n_frames, N_REPLICAS, n_particles, 3], nm, EVERY steps apart."""
    simulation = diffusim.Simulation(model, n_replicas=N_REPLICAS, seed=SEED, **step)
    say("step", describe_step(simulation.statistics, simulation.adapter))
    frames = np.empty((n_frames, N_REPLICAS, model.n_particles, 3), dtype=np.float32)
    simulate(simulation, burn_in, n_frames, EVERY, lambda i, x: frames.__setitem__(i, x))
    return frames


def angles_of(frames: np.ndarray, molecule: Molecule) -> np.ndarray:
    """phi and psi of frames [n_frames, n_replicas, n_particles, 3], [2, n_frames, n_replicas]."""
    return np.stack([np.stack(backbone_torsions(frame, molecule))[..., 0] for frame in frames], axis=1)


def ramachandran(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """Histograms of the replicas of each part, [PARTS, 60, 60]."""
    return histograms(lambda r: statistics.ramachandran_counts(phi[:, r], psi[:, r]), N_REPLICAS, PARTS)


def widest_bond(system: str, frames: np.ndarray, molecule: Molecule, reference: Ensemble, how: str) -> Row:
    """Largest spread of a bond over its true one, of frames [n_frames, n_replicas, n_particles, 3]."""
    lengths = np.stack([statistics.bond_lengths(frame, molecule.bonds) for frame in frames]).astype(np.float32)

    def spreads(replicas):
        chosen = lengths[:, replicas].reshape(-1, len(molecule.bonds))
        return chosen.std(axis=0, dtype=float) / reference.bond_std

    replicas = np.arange(frames.shape[1])
    found = spreads(replicas)
    widest = int(found.argmax())
    error = statistics.jackknife(lambda chosen: spreads(chosen)[widest], len(replicas), PARTS)
    bond = "–".join(molecule.names[i] for i in molecule.bonds[widest])
    what = f"the widest bond, {bond}; {how.removesuffix('; ')}"
    return Row(system, "bond_std_ratio", float(found[widest]), error, WIDEST, what=what)


def population(system: str, phi: np.ndarray, reference: Ensemble) -> Row:
    """Error of the population phi > 0 that the model has in equilibrium, from its rates of passage in and out.

    Of two basins that exchange at the rates a (in) and b (out), the share a / (a + b) is at phi > 0, in whichever of
    them the replicas began. Frames remember that; where passages are too few, theirs is given and held to no target.
    """
    states = statistics.last_core(statistics.phi_cores(phi))
    into, negative = statistics.passages(states, 0, 1)
    out, positive = statistics.passages(states, 1, 0)
    n_into, n_out = into.sum(), out.sum()

    def share(chosen):
        rates = into[chosen].sum() / negative[chosen].sum(), out[chosen].sum() / positive[chosen].sum()
        return rates[0] / sum(rates)

    replicas = np.arange(phi.shape[1])
    found = min(n_into, n_out) >= LEAST_PASSAGES
    if found:
        value, error = share(replicas), statistics.jackknife(share, len(replicas), PARTS)
        how = f"where passages in and out balance, {100 * (phi > 0).mean():.1f} % of these frames"
    else:
        value, error = (phi > 0).mean(), statistics.standard_error((phi > 0).mean(axis=0))
        how = "of these frames, which remember their starts"
    reference_error = phi_positive_error()
    return Row(
        system,
        "population_error",
        abs(float(value) - reference.phi_positive),
        float(np.hypot(error, reference_error)),
        reference_error if found else None,
        what=f"φ > 0: {100 * value:.1f} ± {100 * error:.1f} % {how}; {n_into} in, {n_out} out; "
        f"reference {100 * reference.phi_positive:.1f} ± {100 * reference_error:.1f} %, 4 in, 4 out",
    )


def population_in_equilibrium(system: str, model: diffusim.Model, molecule: Molecule, reference: Ensemble) -> Row:
    """Error of the population phi > 0 of the model's own density, from replicas that a bias takes everywhere."""
    share, error = positive(weights_of_replicas(*under_one_bias(model, **BIASED, torsions=molecule.backbone[0])))
    reference_error = phi_positive_error()
    return Row(
        system,
        "population_error",
        abs(share - reference.phi_positive),
        float(np.hypot(error, reference_error)),
        reference_error,
        what=f"φ > 0: {100 * share:.1f} ± {100 * error:.1f} % in equilibrium, by {BIASED['n_replicas']} replicas "
        f"under one bias; reference {100 * reference.phi_positive:.1f} ± {100 * reference_error:.1f} %",
    )


def phi_positive_error() -> float:
    """Standard error of the population phi > 0 of the reference."""
    with np.load(EXAMPLES / "ala2" / "reference.npz") as data:
        return float(data["phi_positive_error"])


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
