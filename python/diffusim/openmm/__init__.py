"""diffusim in OpenMM: a learned score as integrator, or its energy as a force.

    import diffusim.openmm as dm
    from openmm.unit import kelvin, picosecond

    simulation = dm.simulation("ala2.safetensors", temperature=300*kelvin, frictionCoeff=10/picosecond)
    simulation.step(1_000_000)

or, in a script of your own, a `DiffusionIntegrator` in place of LangevinMiddleIntegrator: every Force of the System
then acts on top of the learned score. `DiffusionForce` is the learned energy as a Force, for any other integrator.
"""

from diffusim.openmm._integrator import DiffusionForce, DiffusionIntegrator, cast
from diffusim.openmm._plugin import BUILT_FOR
from diffusim.openmm._simulation import simulation
from diffusim.openmm._system import check_topology, system, topology

__all__ = [
    "BUILT_FOR",
    "DiffusionForce",
    "DiffusionIntegrator",
    "cast",
    "check_topology",
    "simulation",
    "system",
    "topology",
]
