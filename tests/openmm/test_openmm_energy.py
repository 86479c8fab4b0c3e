"""The learned energy where OpenMM expects it: in States, minimisation, and replica exchange over temperature."""

import io
import random
import subprocess
import sys

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
    TRAINED,
    analytic,
    beads,
    beads_topology,
    context,
    network_integrator,
    network_simulation,
    positions_of,
)

SIGMAS = 4.5  # a fixed seed makes each outcome final


def energy_of(context, **options) -> float:
    return context.getState(energy=True, **options).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def restraint(group: int) -> openmm.CustomExternalForce:
    force = openmm.CustomExternalForce("35*(x-0.1)^2")
    for i in range(5):
        force.addParticle(i)
    force.setForceGroup(group)
    return force


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_a_state_has_the_learned_energy_and_that_of_the_bias(platform):
    model = diffusim.Model(NETWORK)
    system = dm.system(model)
    system.addForce(restraint(3))
    start = model.start_positions[1]
    simulation = context(system, network_integrator(), start, platform)
    scores, (learned,) = model.evaluate(start[None])
    kt = BOLTZMANN * 310.0
    bias = 35 * ((start[:, 0] - 0.1) ** 2).sum()
    assert energy_of(simulation) == pytest.approx(kt * learned + bias)
    assert energy_of(simulation, groups={0}) == pytest.approx(kt * learned)
    assert energy_of(simulation, groups={3}) == pytest.approx(bias)
    forces = simulation.getState(forces=True, groups={0}).getForces(asNumpy=True)
    found = forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    assert np.allclose(found, kt * scores[0], rtol=1e-12, atol=0)
    assert simulation.getState(energy=True).getKineticEnergy()._value == 0


def test_the_learned_energy_is_in_the_lowest_of_the_groups_that_are_integrated():
    integrator = network_integrator()
    integrator.setIntegrationForceGroups({2, 5})
    simulation = context(dm.system(NETWORK), integrator, diffusim.Model(NETWORK).start_positions[1])
    assert energy_of(simulation, groups={2}) == energy_of(simulation) != 0
    assert energy_of(simulation, groups={0, 1, 5}) == 0


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_the_learned_energy_as_a_force_is_not_counted_twice(platform):
    """Neither in the dynamics, with and without bias, nor in a State. That of another model is a bias."""
    for biased in (False, True):
        ends, energies = [], []
        for visible in (False, True):
            system = dm.system(NETWORK)
            if biased:
                system.addForce(restraint(0))
            if visible:
                system.addForce(dm.DiffusionForce(NETWORK))
            simulation = context(system, network_integrator(), diffusim.Model(NETWORK).start_positions[1], platform)
            simulation.getIntegrator().step(30)
            ends.append(positions_of(simulation))
            energies.append(energy_of(simulation))
        assert np.array_equal(*ends)
        assert energies[0] == pytest.approx(energies[1], rel=1e-12)
    system = dm.system(NETWORK)
    system.addForce(dm.DiffusionForce(analytic("harmonic", 5, stiffness=37.0), checkMasses=False))
    simulation = context(system, network_integrator(), diffusim.Model(NETWORK).start_positions[1], platform)
    free = context(dm.system(NETWORK), network_integrator(), diffusim.Model(NETWORK).start_positions[1], platform)
    for each in (simulation, free):
        each.getIntegrator().step(30)
    assert not np.array_equal(positions_of(simulation), positions_of(free))


def test_in_a_compound_integrator_the_energy_is_that_of_the_forces():
    """Its other integrators would be driven by the learned energy as well."""
    system = dm.system(NETWORK)
    compound = openmm.CompoundIntegrator()
    compound.addIntegrator(openmm.VerletIntegrator(0.001))
    compound.addIntegrator(network_integrator())
    simulation = context(system, compound, diffusim.Model(NETWORK).start_positions[1])
    assert energy_of(simulation) == 0
    compound.setCurrentIntegrator(1)
    compound.step(3)


def test_minimisation_goes_down_the_learned_energy():
    simulation = dm.simulation(NETWORK, copies=2, seed=48291)
    simulation.step(200)
    before = simulation.integrator.getModelEnergies()
    simulation.minimizeEnergy(maxIterations=100)
    after = simulation.integrator.getModelEnergies()
    assert all(after[r] < before[r] - 5 * unit.kilojoule_per_mole for r in range(2))
    simulation.step(10)


WELL = {"barrier": 2.6, "half_width": 0.4, "stiffness": 37.0}  # kT0, nm, 1/nm^2
TEMPERATURES = (280.0, 335.0)
N_PARTICLES = 20


def wells(seed: int) -> app.Simulation:
    """Particles in independent double wells, all of them in the left one."""
    integrator = dm.DiffusionIntegrator(
        analytic("double-well", N_PARTICLES, **WELL), TEMPERATURES[0], 4.3, spring=260.0, seed=seed
    )
    simulation = app.Simulation(
        beads_topology(N_PARTICLES), beads([12.4] * N_PARTICLES), integrator, openmm.Platform.getPlatform("Reference")
    )
    simulation.context.setPositions(np.tile([-WELL["half_width"], 0.0, 0.0], (N_PARTICLES, 1)))
    return simulation


def well_energy(x: np.ndarray) -> np.ndarray:
    """Of x, kT0."""
    return WELL["barrier"] * ((x / WELL["half_width"]) ** 2 - 1) ** 2


def exact(temperature: float, n_samples: int, rng) -> tuple[float, np.ndarray]:
    """Mean of `well_energy`, and independent energies of all particles (kJ/mol), under p^(1/upsilon)."""
    x = np.linspace(-1.5, 1.5, 20001)
    weight = np.exp(-well_energy(x) * TRAINED / temperature)
    weight /= weight.sum()
    along = well_energy(rng.choice(x, (n_samples, N_PARTICLES), p=weight)).sum(axis=1)
    across = 0.5 * temperature / TRAINED * rng.chisquare(2 * N_PARTICLES, n_samples)
    return weight @ well_energy(x), BOLTZMANN * TRAINED * (along + across)


@pytest.mark.filterwarnings("ignore:the model was trained at")
def test_replica_exchange_over_temperature():
    """OpenMM's own sampler: p^(1/upsilon) at each temperature (theory 5), and swaps at the rate that follows from the
    exact densities. Walkers that shared their noise, as they share their first State, would swap at another.
    """
    random.seed(8)
    n_iterations = 900
    sampler = app.ReplicaExchangeSampler([{"temperature": t * unit.kelvin} for t in TEMPERATURES], wells(31), 30)
    sampler.exchangesPerIteration = 1
    sampler.simulate(60)
    found, accepted = np.zeros((2, N_PARTICLES)), 0
    for _ in range(n_iterations):
        before = list(sampler.replicaStateIndex)
        sampler.simulate(1)
        accepted += before != sampler.replicaStateIndex
        for conformation, state in zip(sampler.replicaConformation, before, strict=True):
            x = conformation.getPositions(asNumpy=True).value_in_unit(unit.nanometer)[:, 0]
            found[state] += well_energy(x) / n_iterations
    rng = np.random.default_rng(5)
    means, energies = zip(*(exact(t, 100_000, rng) for t in TEMPERATURES), strict=True)
    for of_particles, expected in zip(found, means, strict=True):
        error = of_particles.std(ddof=1) / np.sqrt(N_PARTICLES)
        assert abs(of_particles.mean() - expected) < SIGMAS * error < 0.15 * expected
    beta = [1 / (BOLTZMANN * t) for t in TEMPERATURES]
    rate = np.minimum(1, np.exp((beta[0] - beta[1]) * (energies[0] - energies[1]))).mean()
    error = np.sqrt(rate * (1 - rate) / n_iterations)
    assert abs(accepted / n_iterations - rate) < SIGMAS * error
    assert 0.2 < rate < 0.8


@pytest.mark.filterwarnings("ignore:the model was trained at")
def test_replica_exchange_is_resumed_bit_for_bit():
    """From the States of the walkers, in another Context: each has a seed of its own by then."""
    states = [{"temperature": t * unit.kelvin} for t in (*TEMPERATURES, 390.0)]
    first = app.ReplicaExchangeSampler(states, wells(31), 10)
    random.seed(3)
    first.simulate(3)
    saved = [openmm.XmlSerializer.serialize(state) for state in first.replicaConformation]
    assert len({text.split('noiseSeed="')[1].split('"')[0] for text in saved}) == 3
    second = app.ReplicaExchangeSampler(states, wells(77), 10)
    second.replicaConformation = [openmm.XmlSerializer.deserialize(text) for text in saved]
    second.replicaStateIndex = list(first.replicaStateIndex)
    second._previousReplicaStateIndex = list(first._previousReplicaStateIndex)
    for sampler in (first, second):
        random.seed(4)
        sampler.simulate(4)
    for a, b in zip(first.replicaConformation, second.replicaConformation, strict=True):
        assert np.array_equal(a.getPositions(asNumpy=True)._value, b.getPositions(asNumpy=True)._value)


@pytest.mark.filterwarnings("ignore:the model was trained at")
def test_simulated_tempering():
    """OpenMM's own, with the exact weights of independent harmonic oscillators: every temperature is as likely."""
    temperatures, n = np.array([280.0, 310.0, 345.0]), 8
    integrator = dm.DiffusionIntegrator(analytic("harmonic", n, stiffness=37.0), 280.0, 4.3, spring=50.0, seed=2)
    simulation = app.Simulation(
        beads_topology(n), beads([12.4] * n), integrator, openmm.Platform.getPlatform("Reference")
    )
    simulation.context.setPositions(np.zeros((n, 3)))
    random.seed(5)
    tempering = app.SimulatedTempering(
        simulation,
        temperatures=list(temperatures * unit.kelvin),
        tempChangeInterval=25,
        weights=list(-1.5 * n * np.log(temperatures)),  # -ln Z, but for a constant
        reportFile=io.StringIO(),
    )
    visits = np.zeros(3)
    for _ in range(1500):
        tempering.step(25)
        visits[tempering.currentTemperature] += 1
    # A walk that stays with a probability of a half or so: its visits count for a third of independent ones.
    assert (abs(visits / 1500 - 1 / 3) < SIGMAS * np.sqrt(3 * 2 / 9 / 1500)).all()
    assert integrator.getTemperature() == temperatures[tempering.currentTemperature] * unit.kelvin


def test_the_example_of_replica_exchange_runs():
    root = NETWORK.parents[2]
    arguments = [sys.executable, root / "examples/python/replica_exchange.py", root / "examples/ala2/ala2.safetensors"]
    result = subprocess.run([*map(str, arguments), "3"], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 5 and all(" K: learned energy " in line for line in lines) and not result.stderr


def test_a_state_that_is_gone_on_from_twice_branches(caplog):
    """With noise of a seed of its own, the same whenever the whole is repeated; a checkpoint repeats the noise."""

    def ends():
        simulation = network_simulation()
        simulation.step(10)
        state = simulation.context.getState(positions=True, integratorParameters=True)
        checkpoint = simulation.context.createCheckpoint()
        simulation.step(10)
        result = [positions_of(simulation.context)]
        for _ in range(2):
            simulation.context.setState(state)
            simulation.step(10)
            result.append(positions_of(simulation.context))
        simulation.context.loadCheckpoint(checkpoint)
        simulation.step(10)
        return [*result, positions_of(simulation.context)]

    with caplog.at_level("INFO", "diffusim.openmm"):
        first, second, third, replayed = ends()
    assert sum("gone on from that State before, with noise seed 48291" in m for m in caplog.messages) == 2
    assert np.array_equal(first, replayed)
    assert not any(np.array_equal(a, b) for a, b in ((first, second), (second, third), (first, third)))
    assert all(np.array_equal(a, b) for a, b in zip(ends(), (first, second, third, replayed), strict=True))
