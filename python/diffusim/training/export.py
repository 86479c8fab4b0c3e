"""From trained weights to a model file: measured stiffness, step for molecular dynamics, start frames, provenance."""

from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from diffusim.model_file import ModelFile, NoiseLevels
from diffusim.snapshots import Snapshots
from diffusim.training.config import TrainingSettings, as_dict
from diffusim.training.network import DistanceNetwork
from diffusim.training.trainer import TrainingResult, largest_curvature

N_START = 1000  # most frames to start simulations from
N_CURVATURE = 64  # frames whose stiffest mode is measured
# The recommended step in units of 1 / largest curvature; Leimkuhler-Matthews is stable below 2. At this value the
# spreads of stiff pairs are unbiased within 1 % (docs of examples/ala2).
SAFE_STEP = 0.2


@dataclass(frozen=True)
class Run:
    """How a training was run: wall seconds and the command line."""

    seconds: float
    command: str


def model_of(
    snapshots: Snapshots, settings: TrainingSettings, network: DistanceNetwork, result: TrainingResult, run: Run
) -> tuple[ModelFile, dict[str, np.ndarray]]:
    """Header and tensors of the model file of a training (`settings` complete)."""
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
            "seconds": round(run.seconds, 1),
            "command": run.command,
            "versions": {name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        },
    )
    tensors = {
        "feature_mean": result.weights.feature_mean,
        "feature_spread": result.weights.feature_spread,
        "start_positions": snapshots.positions[order[:N_START]],
    }
    for i, (w, b) in enumerate(result.weights.layers):
        tensors |= {f"layers.{i}.weight": w, f"layers.{i}.bias": b}
    return header, tensors
