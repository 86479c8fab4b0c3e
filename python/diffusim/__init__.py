"""Molecular dynamics from a learned score. Lengths in nm, times in ps, masses in amu, temperatures in kelvin.

    from diffusim import Model, Simulation

    simulation = Simulation(Model("ala2.safetensors"), n_replicas=100, seed=48291)
    simulation.step(10_000)
    simulation.positions  # [100, 10, 3], nm

`diffusim.openmm` drives openmm.app.Simulation with the same models; the command line is `diffusim --help`.
"""

from diffusim._library import DiffusimError, Status
from diffusim.core import Domain, Evaluator, Model, Simulation, Statistics, describe_device, devices

cmake_prefix_path: str = __path__[0]  # where CMake's find_package(diffusim) finds this library

__all__ = [
    "DiffusimError",
    "Domain",
    "Evaluator",
    "Model",
    "Simulation",
    "Statistics",
    "Status",
    "describe_device",
    "devices",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # of the library that is loaded, which is only then loaded
        from diffusim import _library

        return _library.version()
    raise AttributeError(f"module 'diffusim' has no attribute '{name}'")
