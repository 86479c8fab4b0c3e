"""The adapter "langevin" (theory 11): the velocities of the Context are those of the core."""

import io

import numpy as np
import openmm
import pytest
from openmm import app, unit

import diffusim
import diffusim.openmm as dm
from systems import (
    BOLTZMANN,
    EXACT_PLATFORMS,
    NETWORK,
    PLATFORMS,
    TRAINED,
    analytic,
    beads,
    context,
    network_integrator,
    network_simulation,
    positions_of,
)

STEP, FRICTION = 0.004, 7.3  # ps, 1/ps
NM_PER_PS = unit.nanometer / unit.picosecond
SIGMAS = 4.5  # a fixed seed makes each outcome final

pytestmark = pytest.mark.filterwarnings("ignore:the model was trained at")


def one_line(**options) -> app.Simulation:
    return dm.simulation(NETWORK, 310.0, FRICTION, STEP, **({"adapter": "langevin", "seed": 48291} | options))


def core_of(**options) -> diffusim.Simulation:
    options = {"time_step": STEP, "friction_rate": FRICTION, "seed": 48291, "adapter": "langevin"} | options
    return diffusim.Simulation(NETWORK, 310.0, **options)


def velocities_of(context):
    return context.getState(velocities=True).getVelocities(asNumpy=True).value_in_unit(NM_PER_PS)


def kinetic_energy_of(context):
    return context.getState(energy=True).getKineticEnergy().value_in_unit(unit.kilojoule_per_mole)


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_positions_and_velocities_are_those_of_the_core(platform):
    """Bit for bit, with the velocities that both draw, in steps of any number, of several copies."""
    simulation, core = one_line(platform=platform, copies=4), core_of(n_replicas=4)
    assert kinetic_energy_of(simulation.context) == 0
    for n_steps in (1, 7, 250):
        simulation.step(n_steps)
        core.step(n_steps)
        assert np.array_equal(positions_of(simulation.context).reshape(4, 5, 3), core.positions)
        assert np.array_equal(velocities_of(simulation.context).reshape(4, 5, 3), core.velocities)
    assert kinetic_energy_of(simulation.context) == pytest.approx(4 * core.statistics.kinetic_energy)


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_forces_act_as_in_the_core(platform):
    model = diffusim.Model(NETWORK)
    system = dm.system(model)
    restraint = openmm.CustomExternalForce("35*(x-0.1)^2 + 12*y^2")
    for i in range(5):
        restraint.addParticle(i)
    restraint.setForceGroup(1)
    system.addForce(restraint)
    integrator = network_integrator(adapter="langevin", stepSize=STEP)
    simulation, core = context(system, integrator, model.start_positions[0], platform), core_of()
    for _ in range(60):
        forces = simulation.getState(forces=True, groups={1}).getForces(asNumpy=True)
        core.step_biased(forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer)[None])
        integrator.step(1)
    assert np.array_equal(positions_of(simulation), core.positions[0])
    assert np.array_equal(velocities_of(simulation), core.velocities[0])


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_velocities_that_are_set_are_used(platform):
    given = np.random.default_rng(3).normal(scale=0.4, size=(5, 3))
    simulation, core = one_line(platform=platform), core_of()
    simulation.context.setVelocities(given)
    core.velocities = given[None]
    assert np.array_equal(velocities_of(simulation.context), given)
    simulation.step(9)
    core.step(9)
    assert np.array_equal(positions_of(simulation.context), core.positions[0])
    simulation.context.setVelocitiesToTemperature(500.0, 7)
    core.velocities = velocities_of(simulation.context)[None]
    simulation.step(9)
    core.step(9)
    assert np.array_equal(positions_of(simulation.context), core.positions[0])
    assert np.array_equal(velocities_of(simulation.context), core.velocities[0])


def test_kinetic_energy_and_temperature_are_those_of_the_velocities():
    simulation = network_simulation(adapter="langevin", stepSize=STEP)
    table = io.StringIO()
    simulation.reporters.append(app.StateDataReporter(table, 40, kineticEnergy=True, temperature=True))
    simulation.step(40)
    masses = [simulation.system.getParticleMass(i)._value for i in range(5)]
    expected = 0.5 * np.sum(np.array(masses)[:, None] * velocities_of(simulation.context) ** 2)
    assert kinetic_energy_of(simulation.context) == pytest.approx(expected)
    temperature = expected / (0.5 * 15 * BOLTZMANN)
    assert simulation.integrator.computeSystemTemperature().value_in_unit(unit.kelvin) == pytest.approx(temperature)
    row = [float(x) for x in table.getvalue().splitlines()[1].split(",")]
    assert row == pytest.approx([expected, temperature])
    configurational = simulation.integrator.getConfigurationalTemperature().value_in_unit(unit.kelvin)
    assert abs(configurational / temperature - 1) > 1e-3

    simulation.context.setVelocities(np.zeros((5, 3)))
    assert kinetic_energy_of(simulation.context) == 0


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_checkpoints_and_states_continue_bit_for_bit(platform):
    first = one_line(platform=platform, copies=2)
    first.step(30)
    checkpoint = first.context.createCheckpoint()
    state = first.context.getState(positions=True, velocities=True, integratorParameters=True)
    first.step(40)
    second, third = (one_line(platform=platform, copies=2, seed=5) for _ in range(2))
    second.context.loadCheckpoint(checkpoint)
    third.context.setState(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(state)))
    for each in (second, third):
        each.step(40)
        assert np.array_equal(positions_of(each.context), positions_of(first.context))
        assert np.array_equal(velocities_of(each.context), velocities_of(first.context))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_harmonic_variance_and_kinetic_temperature(platform):
    """(T/T0)/kappa for every mass, and kT/m, at a step for which neither holds with velocities of another scheme."""
    temperature, stiffness, n_each, n_frames, interval = 350.0, 37.0, 60, 250, 20
    masses = np.repeat([2.7, 12.4], n_each)
    frequency = np.sqrt(BOLTZMANN * TRAINED * stiffness / masses[0])
    integrator = dm.DiffusionIntegrator(
        analytic("harmonic", len(masses), stiffness=stiffness),
        temperature,
        9.0,
        0.9 / frequency,
        adapter="langevin",
        seed=11,
    )
    simulation = context(beads(masses), integrator, np.zeros((len(masses), 3)), platform)
    integrator.step(20 * interval)
    squares = np.zeros((2, 2, n_frames))
    for frame in range(n_frames):
        integrator.step(interval)
        squares[0, :, frame] = (positions_of(simulation) ** 2).reshape(2, -1).mean(axis=1)
        squares[1, :, frame] = (velocities_of(simulation) ** 2).reshape(2, -1).mean(axis=1)
    expected = np.array(
        [[temperature / TRAINED / stiffness] * 2, BOLTZMANN * temperature / masses[[0, -1]]],
    )
    error = expected * np.sqrt(2 / (3 * n_each * n_frames))
    assert (abs(squares.mean(axis=2) - expected) < SIGMAS * 1.2 * error).all()  # 1.2: frames are somewhat correlated


def test_msd_of_free_particles():
    """Of thermal velocities that decay by a = exp(-gamma dt) in a step: dt^2 sum_ij w_i w_j 3 kT/m a^|i-j|, w = 1/2 at
    the ends and 1 between.
    """
    temperature, mass, n, n_steps, step = 350.0, 12.4, 1500, 40, 0.013
    integrator = dm.DiffusionIntegrator(analytic("free", n), temperature, FRICTION, step, adapter="langevin", seed=12)
    simulation = context(beads([mass] * n), integrator, np.zeros((n, 3)))
    integrator.step(n_steps)
    weights = np.ones(n_steps + 1)
    weights[[0, -1]] = 0.5
    lags = abs(np.subtract.outer(np.arange(n_steps + 1), np.arange(n_steps + 1)))
    correlation = np.exp(-FRICTION * step) ** lags
    expected = 3 * BOLTZMANN * temperature / mass * step**2 * weights @ correlation @ weights
    found = (positions_of(simulation) ** 2).sum(axis=1).mean()
    assert found == pytest.approx(expected, rel=SIGMAS * np.sqrt(2 / (3 * n)))


def test_a_motion_remover_removes_the_motion(recwarn):
    """Before every step; noise gives the centre some motion again within it."""
    speeds = []
    for remover in (False, True):
        system = beads([12.0] * 30)
        if remover:
            system.addForce(openmm.CMMotionRemover(1))
        integrator = dm.DiffusionIntegrator(analytic("free", 30), TRAINED, 0.2, 0.005, adapter="langevin", seed=3)
        simulation = context(system, integrator, np.zeros((30, 3)))
        simulation.setVelocities(np.full((30, 3), 0.7))
        integrator.step(50)
        speeds.append(np.abs(velocities_of(simulation).mean(axis=0)).max())
    assert speeds[1] < 0.1 < 0.4 < speeds[0]
    assert not recwarn.list


def test_what_langevin_needs():
    with pytest.raises(openmm.OpenMMException, match="takes its step as a time step"):
        dm.simulation(NETWORK, 310.0, FRICTION, adapter="langevin")
    with pytest.raises(openmm.OpenMMException, match="takes its step as a time step"):
        dm.simulation(NETWORK, 310.0, FRICTION, spring=9e4, adapter="langevin")
    with pytest.raises(openmm.OpenMMException, match="is too long for distance_small.safetensors"):
        dm.simulation(NETWORK, 310.0, FRICTION, 0.4, adapter="langevin")
    integrator = network_integrator(adapter="langevin", stepSize=STEP)
    model = diffusim.Model(NETWORK)
    simulation = context(beads([14.0, 0.0, 12.0, 12.0, 16.0]), integrator, model.start_positions[0])
    simulation.setVelocities(np.full((5, 3), 0.3))
    with pytest.raises(openmm.OpenMMException, match=r"velocity of particle 1 .* is 0.3; expected 0, as its mass is 0"):
        integrator.step(1)
    simulation.setVelocitiesToTemperature(310.0, 4)
    integrator.step(20)
    assert np.array_equal(positions_of(simulation)[1], model.start_positions[0][1])
