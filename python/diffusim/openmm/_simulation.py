"""One line to a running Simulation."""

from typing import NoReturn

import openmm
from openmm import app, unit

from diffusim._library import DiffusimError
from diffusim.openmm._integrator import DiffusionIntegrator
from diffusim.openmm._system import ModelLike, as_model, system, topology


class ModelSimulation(app.Simulation):
    """An openmm.app.Simulation of a model's molecule."""

    def minimizeEnergy(self, *args, **kwargs) -> NoReturn:
        """Refused: OpenMM minimises the energy of the Forces, to which a DiffusionIntegrator's model adds nothing."""
        raise DiffusimError(
            "minimizeEnergy() would minimise the bias forces alone and pull the molecule apart; start frames need no "
            "minimisation, so leave it out, or minimise the learned energy as a DiffusionForce with another integrator."
        )


def simulation(
    model: ModelLike,
    temperature: unit.Quantity | float | None = None,
    frictionCoeff: unit.Quantity | float = 10 / unit.picosecond,
    stepSize: unit.Quantity | float | None = None,
    *,
    spring: unit.Quantity | float | None = None,
    adapter: str = "leimkuhler-matthews",
    device: str = "auto",
    seed: int = 0,
    platform: openmm.Platform | str = "Reference",
    frame: int = 0,
) -> ModelSimulation:
    """A Simulation of the model's molecule, ready to step.

    temperature  kelvin; the training temperature by default
    platform     Reference by default: the score is computed by the core, and nothing is gained from another platform
                 until there are bias forces on many particles
    frame        which of the model file's start positions to begin with
    The other arguments are those of `DiffusionIntegrator`.
    """
    loaded = as_model(model)
    start = loaded.start_positions
    if not -len(start) <= frame < len(start):
        raise DiffusimError(f"frame is {frame}, but {loaded.name} has {len(start)} start frames")
    integrator = DiffusionIntegrator(
        model,
        loaded.training_temperature if temperature is None else temperature,
        frictionCoeff,
        stepSize,
        spring=spring,
        adapter=adapter,
        device=device,
        seed=seed,
    )
    if isinstance(platform, str):
        platform = openmm.Platform.getPlatform(platform)
    result = ModelSimulation(topology(loaded), system(loaded), integrator, platform)
    result.context.setPositions(start[frame])
    return result
