"""Models and Systems of the OpenMM tests. No parameter is 1, so that none can be forgotten unseen."""

import math
from pathlib import Path

import openmm
from openmm import app, unit

import diffusim
import diffusim.openmm as dm

NETWORK = Path(__file__).parents[1] / "fixtures" / "distance_small.safetensors"
BOLTZMANN = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
TRAINED = 280.0  # K
EXACT_PLATFORMS = ("Reference", "CPU")  # they keep positions in double precision, as the core does


def usable(platform: openmm.Platform) -> bool:
    """Whether the machine has what the platform needs."""
    system = openmm.System()
    system.addParticle(2.0)
    try:
        openmm.Context(system, openmm.VerletIntegrator(0.002), platform)
    except openmm.OpenMMException:
        return False
    return True


PLATFORMS = tuple(
    platform.getName()
    for platform in map(openmm.Platform.getPlatform, range(openmm.Platform.getNumPlatforms()))
    if usable(platform)
)


def analytic(kind: str, n_particles: int, **hyperparameters) -> diffusim.Model:
    return diffusim.Model.from_metadata(
        {
            "format_version": 1,
            "kind": kind,
            "n_particles": n_particles,
            "length_unit": "nm",
            "training_temperature": TRAINED,
            "hyperparameters": hyperparameters,
        }
    )


def beads(masses) -> openmm.System:
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    return system


def beads_topology(n_particles: int) -> app.Topology:
    topology = app.Topology()
    chain = topology.addChain()
    for _ in range(n_particles):
        topology.addAtom("B", None, topology.addResidue("BEAD", chain))
    return topology


def context(system, integrator, positions, platform="Reference") -> openmm.Context:
    result = openmm.Context(system, integrator, openmm.Platform.getPlatform(platform))
    result.setPositions(positions)
    return result


def positions_of(context):
    return context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)


def network_integrator(model=NETWORK, **options) -> dm.DiffusionIntegrator:
    """The network at its training temperature."""
    options = {"stepSize": 0.0052, "seed": 48291} | options
    return dm.DiffusionIntegrator(model, 310.0, 7.3, **options)


def network_simulation(platform="Reference", **options) -> app.Simulation:
    model = diffusim.Model(NETWORK)
    simulation = app.Simulation(
        dm.topology(model), dm.system(model), network_integrator(**options), openmm.Platform.getPlatform(platform)
    )
    simulation.context.setPositions(model.start_positions[2])
    return simulation


def standard_error_of_variance(n_samples: int, n_frames: int, correlation: float) -> float:
    """Relative, of n_frames x n_samples Gaussian numbers whose frames are correlated by `correlation`."""
    squared = correlation**2
    return math.sqrt(2 / (n_samples * n_frames) * (1 + squared) / (1 - squared))
