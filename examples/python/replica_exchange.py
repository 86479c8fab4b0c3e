"""Replica exchange over temperature, by OpenMM's own sampler: python replica_exchange.py MODEL.safetensors [ITERATIONS]

Each walker takes the learned free energy at its temperature (the model keeps that of its snapshots, and only the noise
changes); what the hot ones find makes its way to the cold. Prints, per temperature, the mean learned energy and how
often its walker was another after the swaps of an iteration.
"""

import sys
import warnings

import numpy as np
import openmm
from openmm.app import ReplicaExchangeSampler
from openmm.unit import kelvin, kilojoule_per_mole, picosecond

import diffusim
import diffusim.openmm

TEMPERATURES = 300.0 * 1.07 ** np.arange(5)  # K
STEPS = 400  # per walker and iteration


def main(path: str, n_iterations: str = "100") -> None:
    n = int(n_iterations)
    warnings.filterwarnings("ignore", "the model was trained at")  # known, and meant
    simulation = diffusim.openmm.simulation(path, TEMPERATURES[0] * kelvin, 10 / picosecond, seed=48291)
    states = [{"temperature": t * kelvin} for t in TEMPERATURES]
    sampler = ReplicaExchangeSampler(states, simulation, STEPS)
    energies = np.zeros(len(states))
    moved = np.zeros(len(states))
    for _ in range(n):
        before = list(sampler.replicaStateIndex)
        sampler.simulate(1)
        for walker, state in enumerate(before):
            energies[state] += sampler.replicaStateEnergy[walker][state].value_in_unit(kilojoule_per_mole) / n
            moved[state] += (sampler.replicaStateIndex[walker] != state) / n
    for temperature, energy, fraction in zip(TEMPERATURES, energies, moved, strict=True):
        print(f"{temperature:5.1f} K: learned energy {energy:7.2f} kJ/mol, walker exchanged {fraction:.0%} of the time")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (diffusim.DiffusimError, openmm.OpenMMException) as error:
        sys.exit(f"diffusim: {error}")
