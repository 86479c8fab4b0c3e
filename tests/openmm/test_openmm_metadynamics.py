"""OpenMM's Metadynamics on a learned score gives its free energy back, where that is exactly known."""

import numpy as np
import openmm
from openmm import app, unit

import diffusim.openmm as dm
from systems import BOLTZMANN, TRAINED, analytic, beads, beads_topology

BARRIER, HALF_WIDTH, STIFFNESS = 5.5, 0.7, 23.0  # kT, nm, kT/nm^2
KT = BOLTZMANN * TRAINED


def test_frames_under_the_final_bias_give_the_exact_free_energy():
    """F(x) = kT h ((x/a)^2 - 1)^2 within 1 kJ/mol up to 10 kJ/mol, by reweighting with exp(V/kT); the hills nearly."""
    model = analytic("double-well", 1, barrier=BARRIER, half_width=HALF_WIDTH, stiffness=STIFFNESS)
    position = openmm.CustomExternalForce("x")
    position.addParticle(0)
    system = beads([12.3])
    variable = app.BiasVariable(position, -1.4, 1.4, 0.12)
    metadynamics = app.Metadynamics(system, [variable], TRAINED, 7.0, height=1.3, frequency=50)
    integrator = dm.DiffusionIntegrator(model, TRAINED, 4.3, spring=200.0, seed=48291)
    simulation = app.Simulation(beads_topology(1), system, integrator, openmm.Platform.getPlatform("Reference"))
    simulation.context.setPositions(np.array([[-HALF_WIDTH, 0.02, -0.03]]))
    group = {system.getForce(0).getForceGroup()}
    metadynamics.step(simulation, 60_000)
    x, bias = np.empty((2, 20_000))
    for i in range(len(x)):
        simulation.step(8)
        (x[i],) = metadynamics.getCollectiveVariables(simulation)
        state = simulation.context.getState(energy=True, groups=group)
        bias[i] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    edges = np.linspace(-1.0, 1.0, 26)
    centres = (edges[1:] + edges[:-1]) / 2
    exact = KT * BARRIER * ((centres / HALF_WIDTH) ** 2 - 1) ** 2
    populated = exact < 10

    def differs(energy):
        """From the exact one, up to a constant that -ln of the exact density fixes."""
        p, q = np.exp(-energy / KT), np.exp(-exact / KT)
        return np.abs(energy + KT * np.log(p.sum()) - exact - KT * np.log(q.sum()))[populated].max()

    weights = np.histogram(x, edges, weights=np.exp(bias / KT))[0]
    assert differs(-KT * np.log(weights)) < 1.0
    hills = metadynamics.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole)
    assert differs(np.interp(centres, np.linspace(-1.4, 1.4, len(hills)), hills)) < 2.0
    assert populated[:3].any() and (exact > 10)[len(exact) // 2]  # two wells, and a barrier between them
