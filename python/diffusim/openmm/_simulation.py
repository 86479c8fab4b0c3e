"""One line to a running Simulation."""

import numpy as np
import openmm
from openmm import app, unit

from diffusim._library import DiffusimError
from diffusim.openmm._integrator import DiffusionForce, DiffusionIntegrator
from diffusim.openmm._system import ModelLike, as_model, system, topology

HAVE_DERIVATIVES = ("Reference", "CPU")  # a Force that is computed on the host can report dE/dlambda there


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
    copies: int = 1,
    sampler: str = "sequential",
    window: int | None = None,
    tolerance: unit.Quantity | float | None = None,
    targetAcceptance: float | None = None,
    burnInSteps: int = 0,
    matmulPrecision: str = "highest",
) -> app.Simulation:
    """A Simulation of the model's molecule, ready to step. The lambda of a blend of two models is the parameter
    `diffusim_lambda` of its Context, and its States report dE/dlambda (platforms Reference and CPU).

    temperature  kelvin; the training temperature by default
    platform     Reference by default: the score is computed by the core, and nothing is gained from another platform
                 until there are bias forces on many particles
    frame        which of the model file's start positions to begin with
    copies       copies of the molecule in the System, moved as a batch: copy r starts r frames after `frame`, in a
                 cycle, and goes the way of replica r of diffusim.Simulation
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
        copies=copies,
        sampler=sampler,
        window=window,
        tolerance=tolerance,
        targetAcceptance=targetAcceptance,
        burnInSteps=burnInSteps,
        matmulPrecision=matmulPrecision,
    )
    if isinstance(platform, str):
        platform = openmm.Platform.getPlatform(platform)
    made = system(loaded, copies)
    if loaded.parts:  # lambda becomes a parameter of the Context, and dE/dlambda known to its States
        force = DiffusionForce(loaded, copies=copies)
        if platform.getName() in HAVE_DERIVATIVES:
            force.addEnergyParameterDerivative()
        made.addForce(force)
    result = app.Simulation(topology(loaded, copies), made, integrator, platform)
    result.context.setPositions(start[(frame + np.arange(copies)) % len(start)].reshape(-1, 3))
    return result
