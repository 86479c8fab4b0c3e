"""The learned energy as a Force."""

import numpy as np
import openmm
import pytest
from openmm import unit

import diffusim
import diffusim.openmm as dm
from systems import BOLTZMANN, EXACT_PLATFORMS, NETWORK, PLATFORMS, context, positions_of


def energy_and_forces(context):
    state = context.getState(energy=True, forces=True)
    return (
        state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole),
        state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer),
    )


@pytest.mark.parametrize("platform", PLATFORMS)
def test_energy_and_forces_are_those_of_the_model(platform):
    model = diffusim.Model(NETWORK)
    system = dm.system(model)
    system.addForce(dm.DiffusionForce(NETWORK))
    simulation = context(system, openmm.VerletIntegrator(0.001), model.start_positions[1], platform)
    energy, forces = energy_and_forces(simulation)
    scores, (expected,) = model.evaluate(model.start_positions[1][None])
    unit_of_energy = BOLTZMANN * model.training_temperature
    tolerance = 1e-12 if platform in EXACT_PLATFORMS else 1e-5
    assert energy == pytest.approx(unit_of_energy * expected, rel=tolerance)
    assert np.allclose(forces, unit_of_energy * scores[0], rtol=tolerance, atol=0)


def test_newtons_equations_conserve_the_energy():
    model = diffusim.Model(NETWORK)
    system = dm.system(model)
    system.addForce(dm.DiffusionForce(model))
    integrator = openmm.VerletIntegrator(0.0002)
    simulation = context(system, integrator, model.start_positions[1])
    simulation.setVelocitiesToTemperature(310.0, 4)
    totals = []
    for _ in range(50):
        integrator.step(20)
        state = simulation.getState(energy=True)
        totals.append((state.getPotentialEnergy() + state.getKineticEnergy()).value_in_unit(unit.kilojoule_per_mole))
    kinetic = state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole)
    assert np.ptp(totals) < 0.01 * kinetic


def test_particles_of_a_larger_system_and_xml():
    model = diffusim.Model(NETWORK)
    particles = [6, 2, 3, 0, 5]
    system = openmm.System()
    for mass in (12.0, 40.0, 12.0, 12.0, 40.0, 16.0, 14.0):
        system.addParticle(mass)
    force = dm.DiffusionForce(model, particles)
    force.setForceGroup(4)
    force.setName("learned")
    system.addForce(force)
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    assert dm.cast(system.getForce(0)).getName() == "learned" and system.getForce(0).getForceGroup() == 4
    start = np.full((7, 3), 3.0)
    start[particles] = model.start_positions[1]
    simulation = context(system, openmm.VerletIntegrator(0.001), start)
    _, forces = energy_and_forces(simulation)
    scores, _ = model.evaluate(model.start_positions[1][None])
    assert np.allclose(forces[particles], BOLTZMANN * 310.0 * scores[0], rtol=1e-12, atol=0)
    assert (forces[[1, 4]] == 0).all()


def test_masses_are_checked():
    system = openmm.System()
    for mass in (14.0, 12.0, 12.0, 16.0, 12.0):
        system.addParticle(mass)
    system.addForce(dm.DiffusionForce(NETWORK))
    with pytest.raises(openmm.OpenMMException, match=r"particle 3 is CB \(carbon, 12.011 amu\) in the model"):
        openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    system.removeForce(0)
    system.addForce(dm.DiffusionForce(NETWORK, checkMasses=False))
    simulation = context(system, openmm.VerletIntegrator(0.001), diffusim.Model(NETWORK).start_positions[0])
    assert np.isfinite(positions_of(simulation)).all()
