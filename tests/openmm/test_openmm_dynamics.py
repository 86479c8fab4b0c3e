"""The integrator samples what theory says it does, through a Context, on every platform that is here."""

import math

import numpy as np
import openmm
import pytest
from openmm import unit

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
    positions_of,
    standard_error_of_variance,
)

MASSES = (2.7, 12.4, 33.5)  # amu
FRICTION = 4.3  # 1/ps
TEMPERATURE = 350.0  # K, not that of the training
SIGMAS = 4.5  # a fixed seed makes each outcome final; the chance of it being this far off is 7e-6

pytestmark = pytest.mark.filterwarnings("ignore:the model was trained at")


def diffusion_step(mass: float, step_size: float) -> float:
    """tau = D dt of theory (3) at the training temperature, nm^2."""
    return BOLTZMANN * TRAINED / (mass * FRICTION) * step_size


def sample_variances(context, n_frames, interval, n_each):
    """<x^2> of the particles of each mass, about the origin."""
    integrator = context.getIntegrator()
    integrator.step(20 * interval)
    total = np.zeros(len(MASSES))
    for _ in range(n_frames):
        integrator.step(interval)
        total += (positions_of(context) ** 2).reshape(len(MASSES), n_each * 3).mean(axis=1)
    return total / n_frames


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("adapter", ["euler-maruyama", "leimkuhler-matthews"])
def test_harmonic_variance_is_that_of_the_adapter(adapter, platform):
    """Theory (2), (5), (10): (T/T0)/kappa under LM, and over (1 - kappa tau/2) under EM, for each mass."""
    stiffness, n_each, n_frames, interval = 37.0, 100, 400, 15
    step_size = 0.8 / stiffness / diffusion_step(MASSES[0], 1.0)  # the lightest feel kappa tau = 0.8
    integrator = dm.DiffusionIntegrator(
        analytic("harmonic", 3 * n_each, stiffness=stiffness),
        TEMPERATURE,
        FRICTION,
        step_size,
        adapter=adapter,
        seed=11,
    )
    masses = np.repeat(MASSES, n_each)
    found = sample_variances(
        context(beads(masses), integrator, np.zeros((len(masses), 3)), platform), n_frames, interval, n_each
    )
    for mass, variance in zip(MASSES, found, strict=True):
        decay = stiffness * diffusion_step(mass, step_size)
        expected = TEMPERATURE / TRAINED / stiffness
        if adapter == "euler-maruyama":
            expected /= 1 - decay / 2
        error = standard_error_of_variance(3 * n_each, n_frames, (1 - decay) ** interval)
        assert abs(variance / expected - 1) < SIGMAS * error, (mass, variance, expected, error)


@pytest.mark.parametrize("adapter", ["euler-maruyama", "leimkuhler-matthews"])
def test_msd_is_six_d_t(adapter):
    """Without a potential, <|x(t) - x(0)|^2> = 6 D t with D = kT/(m gamma), less 3 D dt under LM (theory 10)."""
    n_each, n_steps, step_size = 800, 60, 0.013
    masses = np.repeat(MASSES, n_each)
    integrator = dm.DiffusionIntegrator(
        analytic("free", len(masses)), TEMPERATURE, FRICTION, step_size, adapter=adapter, seed=12
    )
    start = np.random.default_rng(3).normal(size=(len(masses), 3))
    simulation = context(beads(masses), integrator, start)
    integrator.step(n_steps)
    time = simulation.getState().getTime().value_in_unit(unit.picosecond)
    assert time == pytest.approx(n_steps * step_size)
    found = ((positions_of(simulation) - start) ** 2).sum(axis=1).reshape(len(MASSES), n_each).mean(axis=1)
    for mass, msd in zip(MASSES, found, strict=True):
        diffusion_coefficient = BOLTZMANN * TEMPERATURE / (mass * FRICTION)
        if adapter == "leimkuhler-matthews":
            time = (n_steps - 0.5) * step_size
        assert msd == pytest.approx(6 * diffusion_coefficient * time, rel=SIGMAS * math.sqrt(2 / (3 * n_each)))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_forces_bias_the_learned_density(platform):
    """exp(-(U + V)/kT) with the learned U = kT0 kappa x^2/2 and the System's V = k x^2/2 (theory 6)."""
    stiffness, bias, n_each, n_frames, interval = 37.0, 130.0, 60, 300, 8
    step_size = 0.5 / stiffness / diffusion_step(MASSES[0], 1.0)
    masses = np.repeat(MASSES, n_each)
    system = beads(masses)
    restraint = openmm.CustomExternalForce("0.5*k*(x^2+y^2+z^2)")
    restraint.addGlobalParameter("k", bias)
    for i in range(len(masses)):
        restraint.addParticle(i)
    restraint.setForceGroup(3)
    system.addForce(restraint)
    model = analytic("harmonic", len(masses), stiffness=stiffness)

    biased = dm.DiffusionIntegrator(model, TEMPERATURE, FRICTION, step_size, seed=13)
    found = sample_variances(context(system, biased, np.zeros((len(masses), 3)), platform), n_frames, interval, n_each)
    curvature = stiffness + bias / (BOLTZMANN * TRAINED)
    for mass, variance in zip(MASSES, found, strict=True):
        decay = curvature * diffusion_step(mass, step_size)
        error = standard_error_of_variance(3 * n_each, n_frames, (1 - decay) ** interval)
        assert abs(variance * curvature * TRAINED / TEMPERATURE - 1) < SIGMAS * error, (mass, variance)


def test_forces_outside_the_integration_groups_do_not_act():
    free, restrained = beads(MASSES), beads(MASSES)
    restraint = openmm.CustomExternalForce("130*(x^2+y^2+z^2)")
    for i in range(len(MASSES)):
        restraint.addParticle(i)
    restraint.setForceGroup(3)
    restrained.addForce(restraint)
    frames = []
    for system in (free, restrained):
        integrator = dm.DiffusionIntegrator(
            analytic("harmonic", 3, stiffness=37.0), TEMPERATURE, FRICTION, 0.003, seed=14
        )
        integrator.setIntegrationForceGroups({0, 1, 2})
        simulation = context(system, integrator, np.full((3, 3), 0.4))
        integrator.step(50)
        frames.append(positions_of(simulation))
    assert np.array_equal(*frames)


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_same_seed_same_trajectory_as_the_core(platform):
    """Bit for bit, in steps of any number, with and without bias forces."""
    model = diffusim.Model(NETWORK)
    masses = [14.0, 12.3, 12.0, 11.9, 16.2]
    core = diffusim.Simulation(model, temperature=310.0, time_step=0.0052, friction_rate=7.3, masses=masses, seed=48291)
    core.positions = model.start_positions[2]
    integrator = network_integrator()
    simulation = context(beads(masses), integrator, model.start_positions[2], platform)
    for n_steps in (1, 7, 250):
        core.step(n_steps)
        integrator.step(n_steps)
        assert np.array_equal(positions_of(simulation), core.positions[0])

    system = beads(masses)
    restraint = openmm.CustomExternalForce("35*(x-0.1)^2 + 12*y^2")
    for i in range(model.n_particles):
        restraint.addParticle(i)
    restraint.setForceGroup(1)
    system.addForce(restraint)
    integrator = network_integrator()
    simulation = context(system, integrator, model.start_positions[2], platform)
    core.positions, core.step_count = model.start_positions[2], 0
    for _ in range(100):
        forces = simulation.getState(forces=True, groups={1}).getForces(asNumpy=True)
        core.step_biased(forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer)[None])
        integrator.step(1)
        assert np.array_equal(positions_of(simulation), core.positions[0])


def test_mass_zero_freezes_a_particle():
    model = diffusim.Model(NETWORK)
    integrator = network_integrator()
    simulation = context(beads([14.0, 0.0, 12.0, 12.0, 16.0]), integrator, model.start_positions[2])
    integrator.step(200)
    moved = np.abs(positions_of(simulation) - model.start_positions[2]).max(axis=1)
    assert moved[1] == 0 and (np.delete(moved, 1) > 1e-3).all()


def test_particles_of_a_larger_system():
    """The model's particles move as in a System of their own; the others diffuse freely."""
    model = diffusim.Model(NETWORK)
    particles, masses = [6, 2, 3, 0, 5], [12.0, 40.0, 12.0, 12.0, 40.0, 16.0, 14.0]
    start = np.zeros((7, 3))
    start[particles] = model.start_positions[1]
    start[[1, 4]] = [[5.0, 5.0, 5.0], [-5.0, 4.0, 3.0]]
    integrator = network_integrator(particles=particles)
    simulation = context(beads(masses), integrator, start)
    energy = integrator.getModelEnergy().value_in_unit(unit.kilojoule_per_mole)
    _, (expected,) = model.evaluate(model.start_positions[1][None])
    assert energy == pytest.approx(BOLTZMANN * 310.0 * expected)

    core = diffusim.Simulation(
        model.subset(7, particles), 310.0, time_step=0.0052, friction_rate=7.3, masses=masses, seed=48291
    )
    core.positions = start
    core.step(100)
    integrator.step(100)
    assert np.array_equal(positions_of(simulation), core.positions[0])
    assert np.abs(core.positions[0, [1, 4]] - start[[1, 4]]).min() > 1e-4


def test_step_size_and_spring_are_two_names_of_one_thing():
    integrator = network_integrator()
    lightest = 12.011  # of the model
    tau = BOLTZMANN * 310.0 / (lightest * 7.3) * 0.0052
    assert integrator.getSpring().value_in_unit(unit.nanometer**-2) == pytest.approx(0.5 / tau)
    integrator.setSpring(2.5e5 / unit.nanometer**2)
    expected = 0.5 / 2.5e5 / (BOLTZMANN * 310.0 / (lightest * 7.3))
    assert integrator.getStepSize().value_in_unit(unit.picosecond) == pytest.approx(expected)

    same = network_integrator(stepSize=5.2 * unit.femtosecond)
    assert same.getStepSize().value_in_unit(unit.picosecond) == pytest.approx(0.0052)

    # In a Context it is the System's lightest particle that counts, and time goes on with the step in use.
    simulation = context(beads([14.0, 11.7, 12.0, 12.0, 16.0]), integrator, diffusim.Model(NETWORK).start_positions[0])
    assert integrator.getStepSize().value_in_unit(unit.picosecond) == pytest.approx(expected * 11.7 / lightest)
    integrator.step(40)
    integrator.setStepSize(3.1 * unit.femtosecond)
    integrator.step(20)
    time = simulation.getState().getTime().value_in_unit(unit.picosecond)
    assert time == pytest.approx(40 * expected * 11.7 / lightest + 20 * 0.0031)
    assert simulation.getStepCount() == 60


def test_the_recommended_step_is_the_default():
    integrator = network_integrator(stepSize=None)
    spring = integrator.getSpring().value_in_unit(unit.nanometer**-2)
    assert spring == pytest.approx(0.5 / diffusim.Model(NETWORK).metadata["recommended_effective_step"])


def test_settings_change_on_the_way():
    """A run whose temperature, friction and spring change is the core's with the same changes."""
    model = diffusim.Model(NETWORK)
    integrator = network_integrator()
    simulation = context(dm.system(model), integrator, model.start_positions[0])
    core = diffusim.Simulation(model, 310.0, time_step=0.0052, friction_rate=7.3, seed=48291)
    core.positions = model.start_positions[0]
    integrator.step(10)
    core.step(10)
    integrator.setTemperature(340 * unit.kelvin)
    integrator.setFriction(9.1 / unit.picosecond)
    core.reconfigure(temperature=340.0, friction_rate=9.1)
    integrator.step(10)
    core.step(10)
    integrator.setSpring(1.9e4)
    core.reconfigure(time_step=None, spring=1.9e4)
    integrator.step(10)
    core.step(10)
    assert np.array_equal(positions_of(simulation), core.positions[0])
    assert integrator.getTemperature() == 340 * unit.kelvin
    assert integrator.getFriction() == 9.1 / unit.picosecond


def test_reported_temperature_is_the_configurational_one():
    """On average T, from one frame at a time; a harmonic model of n coordinates scatters by sqrt(2/n)."""
    n_particles, n_frames = 60, 300
    model = analytic("harmonic", n_particles, stiffness=37.0)
    simulation = context(
        beads([12.4] * n_particles),
        dm.DiffusionIntegrator(model, TEMPERATURE, FRICTION, spring=30.0, seed=15),
        np.zeros((n_particles, 3)),
    )
    integrator = simulation.getIntegrator()
    integrator.step(50)
    found = []
    for _ in range(n_frames):
        integrator.step(20)
        found.append(integrator.computeSystemTemperature().value_in_unit(unit.kelvin))
    error = TEMPERATURE * math.sqrt(2 / (3 * n_particles * n_frames))
    assert abs(np.mean(found) - TEMPERATURE) < SIGMAS * error
