"""Run a molecule from its model file in OpenMM: python ala2_openmm.py MODEL.safetensors [STEPS]"""

import sys

import openmm
from openmm.unit import kelvin, nanometer, picosecond

import diffusim
import diffusim.openmm


def main(path: str, n_steps: str = "100000") -> None:
    # An openmm.app.Simulation; the size of a step is the one the model recommends.
    simulation = diffusim.openmm.simulation(path, temperature=300 * kelvin, frictionCoeff=10 / picosecond, seed=48291)
    simulation.step(int(n_steps))
    state = simulation.context.getState(positions=True)
    for x, y, z in state.getPositions(asNumpy=True).value_in_unit(nanometer):
        print(f"{x:.20f} {y:.20f} {z:.20f}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (diffusim.DiffusimError, openmm.OpenMMException) as error:
        sys.exit(f"diffusim: {error}")
