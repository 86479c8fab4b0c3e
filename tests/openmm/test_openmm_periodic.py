"""A periodic model in the box of a Context."""

import numpy as np
import openmm
import pytest
from openmm import unit

import diffusim
import diffusim.openmm as dm
from systems import BOLTZMANN, NETWORK, context, positions_of

PERIODIC = NETWORK.parent / "message_passing_periodic.safetensors"
BOX = np.array([[1.2, 0.0, 0.0], [0.2, 1.3, 0.0], [-0.1, 0.3, 1.4]])


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_the_force_is_evaluated_in_the_box_of_the_context(platform):
    model = diffusim.Model(PERIODIC)
    system = dm.system(model)
    force = dm.DiffusionForce(PERIODIC)
    assert force.usesPeriodicBoundaryConditions()
    system.addForce(force)
    simulation = context(system, openmm.VerletIntegrator(0.001), model.start_positions[0], platform)
    for box in (model.start_cell, BOX):
        simulation.setPeriodicBoxVectors(*box)
        state = simulation.getState(energy=True, forces=True)
        scores, (expected,), _ = model.evaluate_in_cell(model.start_positions[:1], box)
        kt = BOLTZMANN * model.training_temperature
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        assert energy == pytest.approx(kt * expected, rel=1e-9)
        assert np.allclose(forces, kt * scores[0], rtol=1e-6, atol=1e-9)


def test_the_trajectory_is_that_of_the_core():
    model = diffusim.Model(PERIODIC)
    spring = 1 / (2 * 1.3e-5)
    integrator = dm.DiffusionIntegrator(
        PERIODIC, model.training_temperature * unit.kelvin, 7 / unit.picosecond, spring=spring / unit.nanometer**2
    )
    integrator.setRandomNumberSeed(41)
    simulation = context(dm.system(model), integrator, model.start_positions[0])
    simulation.setPeriodicBoxVectors(*BOX)
    integrator.step(50)
    core = diffusim.Simulation(model, seed=41, spring=spring, friction_rate=7.0)
    core.cell = BOX
    core.positions = model.start_positions[0]
    core.step(50)
    assert (positions_of(simulation) == core.positions[0]).all()


def test_a_box_too_small_for_the_cutoff_is_refused():
    model = diffusim.Model(PERIODIC)
    integrator = dm.DiffusionIntegrator(PERIODIC, model.training_temperature * unit.kelvin, 7 / unit.picosecond)
    simulation = context(dm.system(model), integrator, model.start_positions[0])
    simulation.setPeriodicBoxVectors(*(1.05 * np.eye(3)))
    with pytest.raises(Exception, match="needs twice that"):
        integrator.step(1)
