"""From trained weights to a model file: measured stiffness, step for molecular dynamics, start frames, provenance."""

from dataclasses import asdict
from importlib.metadata import version

import numpy as np

from diffusim.advice import SAFE_STEP
from diffusim.model_file import ModelFile, NoiseLevels
from diffusim.snapshots import Snapshots
from diffusim.training.config import TrainingSettings, as_dict
from diffusim.training.curvature import largest_curvature
from diffusim.training.kinds import Network
from diffusim.training.losses import Frames
from diffusim.training.trainer import TrainingResult

N_START = 1000  # most frames to start simulations from
START_PARTICLES = 100_000  # most particles in all start frames together, for a small file
N_CURVATURE = 64  # frames whose stiffest mode is measured


def model_of(
    snapshots: Snapshots, settings: TrainingSettings, network: Network, result: TrainingResult, how: dict
) -> tuple[ModelFile, dict[str, np.ndarray]]:
    """Header and tensors of the model file (`settings` complete); `how` it was run goes to its provenance."""
    order = np.random.default_rng(settings.seed).permutation(snapshots.n_frames)[:N_CURVATURE]
    frames = Frames(snapshots.positions, snapshots.cells).take(order)
    curvature = largest_curvature(network, result.weights, frames, settings.noise_simulation)
    header = ModelFile(
        kind=network.kind,
        n_particles=snapshots.n_particles,
        training_temperature=settings.temperature,
        hyperparameters=network.hyperparameters(),
        particles=snapshots.particles,
        bonds=snapshots.bonds,
        periodic=snapshots.cells is not None,
        noise_levels=NoiseLevels(settings.noise_min, settings.noise_max, settings.noise_simulation),
        recommended_effective_step=float(f"{SAFE_STEP / curvature:.2g}"),
        largest_curvature=float(f"{curvature:.3g}"),
        bond_ranges=snapshots.bond_ranges(),
        training={
            "snapshots": snapshots.source,
            "settings": as_dict(settings),
            "steps": result.step,
            "best_step": result.best_step,
            "stopped": result.stopped,
            "held_out_loss": result.held_out,
            "fokker_planck_residual": result.residual,
            "by_noise_level": [asdict(band) for band in result.bands],
            "versions": {name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
            **how,
        },
    )
    start = representatives(network.descriptors(snapshots.positions), _n_start(snapshots), settings.seed)
    tensors = network.tensors(result.weights) | {"start_positions": snapshots.positions[start]}
    if snapshots.cells is not None:
        tensors["start_cell"] = snapshots.cells[start[0]]
    return header, tensors


def _n_start(snapshots: Snapshots) -> int:
    """How many frames to start from: one where the cell varies, since a model file has one cell."""
    if snapshots.cells is not None and np.ptp(snapshots.cells, axis=0).max() > 1e-5:
        return 1
    return min(N_START, max(1, START_PARTICLES // snapshots.n_particles))


def representatives(descriptors: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Indices of `n` frames (or all, if fewer) by their `descriptors` [n_frames, n_features], in random order.

    The frames are halved again and again across the direction in which their shape varies most, until there are n
    cells of equal count; one frame is drawn from each. Populations of the basins then fluctuate far less than among n
    random frames, which matters where simulations are shorter than the crossing from basin to basin.
    """
    random = np.random.default_rng(seed)
    cells, chosen = [(np.arange(len(descriptors)), min(n, len(descriptors)))], []
    while cells:
        members, count = cells.pop()
        if count == 1:
            chosen.append(random.choice(members))
            continue
        deviations = descriptors[members] - descriptors[members].mean(axis=0)
        _, axes = np.linalg.eigh(deviations.T @ deviations)
        members = members[np.argsort(deviations @ axes[:, -1], kind="stable")]
        half = count // 2
        cut = round(len(members) * half / count)
        cells += [(members[:cut], half), (members[cut:], count - half)]
    return random.permutation(chosen)
