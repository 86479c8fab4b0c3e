"""From trained weights to a model file: measured stiffness, step for molecular dynamics, start frames, provenance."""

from importlib.metadata import version

import ml_dtypes
import numpy as np

from diffusim.model_file import ModelFile, NoiseLevels
from diffusim.snapshots import Snapshots
from diffusim.training.config import TrainingSettings, as_dict
from diffusim.training.network import DistanceNetwork
from diffusim.training.trainer import TrainingResult, largest_curvature

N_START = 1000  # most frames to start simulations from
N_CURVATURE = 64  # frames whose stiffest mode is measured
# The recommended step in units of 1 / largest curvature; Leimkuhler-Matthews is stable below 2. Measured on alanine
# dipeptide, bond spreads at 0.1, 0.4, 0.8 and 1.2 agree within 1 %.
SAFE_STEP = 0.4
# Half the bytes, and one replica is bound by reading them. On alanine dipeptide the rounding changes energies by 0.01 kT0
# (standard deviation) and no population beyond its statistical error.
WEIGHT_TYPE = ml_dtypes.bfloat16


def model_of(
    snapshots: Snapshots, settings: TrainingSettings, network: DistanceNetwork, result: TrainingResult, how: dict
) -> tuple[ModelFile, dict[str, np.ndarray]]:
    """Header and tensors of the model file (`settings` complete); `how` it was run goes to its provenance."""
    order = np.random.default_rng(settings.seed).permutation(snapshots.n_frames)
    curvature = largest_curvature(
        network, result.weights, snapshots.positions[order[:N_CURVATURE]], settings.noise_simulation
    )
    header = ModelFile(
        kind="distance",
        n_particles=snapshots.n_particles,
        training_temperature=settings.temperature,
        hyperparameters=network.hyperparameters(),
        particles=snapshots.particles,
        bonds=snapshots.bonds,
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
            "versions": {name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
            **how,
        },
    )
    tensors = {
        "feature_mean": result.weights.feature_mean,
        "feature_spread": result.weights.feature_spread,
        "start_positions": snapshots.positions[representatives(network, snapshots.positions, N_START, settings.seed)],
    }
    for i, (w, b) in enumerate(result.weights.layers):
        tensors |= {f"layers.{i}.weight": np.asarray(w).astype(WEIGHT_TYPE), f"layers.{i}.bias": np.asarray(b)}
    return header, tensors


def representatives(network: DistanceNetwork, positions: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Indices of `n` frames (or all, if fewer) of [n_frames, n_particles, 3], in random order.

    The frames are halved again and again across the direction in which their shape varies most, until there are n
    cells of equal count; one frame is drawn from each. Populations of the basins then fluctuate far less than among n
    random frames, which matters where simulations are shorter than the crossing from basin to basin.
    """
    random = np.random.default_rng(seed)
    shapes = np.array(network.features_of_all(positions), dtype=np.float64)
    shapes[:, network.n_lengths :] *= network.signed_length  # all in nm
    cells, chosen = [(np.arange(len(positions)), min(n, len(positions)))], []
    while cells:
        members, count = cells.pop()
        if count == 1:
            chosen.append(random.choice(members))
            continue
        deviations = shapes[members] - shapes[members].mean(axis=0)
        _, axes = np.linalg.eigh(deviations.T @ deviations)
        members = members[np.argsort(deviations @ axes[:, -1], kind="stable")]
        half = count // 2
        cut = round(len(members) * half / count)
        cells += [(members[:cut], half), (members[cut:], count - half)]
    return random.permutation(chosen)
