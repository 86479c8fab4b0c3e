"""What it costs to bend a molecule: a free energy along lambda, with a learned score.

    python alchemy.py ../ala2/ala2.safetensors

OpenMM computes the tie U(x; lambda) = lambda k/2 (r - r0)^2 of two particles, and the learned energy cancels in the
swaps (theory 6). The answer is compared with -ln <exp(-U(x; 1)/kT)> over frames that were never tied.
"""

import sys

import numpy as np
import openmm

from diffusim import Model, Simulation, alchemy

LAMBDAS = [0.0, 0.2, 0.5, 1.0]
PARTICLES = (0, 3)  # the ends of an angle
STIFFNESS, LENGTH = 2e5, 0.252  # kJ/(mol nm^2), nm
LADDERS, FREE_REPLICAS = 6, 200
KT = alchemy.BOLTZMANN * 300.0  # kJ/mol


def tie(model: Model) -> openmm.Context:
    """A Context that holds the tie and nothing else."""
    system = openmm.System()
    for mass in model.masses:
        system.addParticle(mass)
    force = openmm.CustomBondForce("lambda * k/2 * (r - r0)^2")
    force.addGlobalParameter("lambda", 0.0)
    force.addGlobalParameter("k", STIFFNESS)
    force.addGlobalParameter("r0", LENGTH)
    force.addBond(*PARTICLES)
    system.addForce(force)
    return openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))


def main(path: str, rounds: int = 60) -> None:
    model = Model(path)
    bias = alchemy.engine_bias(tie(model), "lambda")
    ladders = []
    for i in range(LADDERS):
        first = i * len(LAMBDAS)
        exchange = alchemy.ReplicaExchange(model, LAMBDAS, bias=bias, steps=20, seed=48291, first_replica=first)
        exchange.run(10)
        ladders.append(exchange.run(rounds))
    free_energy, error = alchemy.free_energies(ladders)
    print("acceptance between neighbours", np.mean([ladder.acceptance for ladder in ladders], axis=0).round(2))

    simulation = Simulation(model, seed=48291, n_replicas=FREE_REPLICAS)
    weights = []
    for _ in range(rounds):
        simulation.step(50)
        r = np.linalg.norm(np.subtract(*simulation.positions[:, PARTICLES].transpose(1, 0, 2)), axis=1)
        weights.append(np.exp(-STIFFNESS / 2 * (r - LENGTH) ** 2 / KT))
    means = np.mean(weights, axis=0)  # of each replica
    free = -np.log(means.mean())
    free_error = means.std(ddof=1) / np.sqrt(FREE_REPLICAS) / means.mean()
    print(f"with the tie {free_energy[-1]:.3f} ± {error[-1]:.3f} kT, from free frames {free:.3f} ± {free_error:.3f} kT")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
