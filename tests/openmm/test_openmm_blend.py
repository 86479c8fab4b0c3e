"""Blends of two models: lambda as a parameter of the Context (theory 7)."""

import copy
import random

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
    positions_of,
)

STIFFNESS = (37.0, 95.0)  # kT0/nm^2
MASSES = (12.0, 31.0, 18.0)
SIGMAS = 4.5  # a fixed seed makes each outcome final
KT = BOLTZMANN * TRAINED


def wells(lambda_=0.3, n_particles=3) -> diffusim.Model:
    return diffusim.Model.blend(*(analytic("harmonic", n_particles, stiffness=k) for k in STIFFNESS), lambda_)


def integrator_of(model, **options) -> dm.DiffusionIntegrator:
    return dm.DiffusionIntegrator(model, TRAINED, 4.3, **({"spring": 260.0, "seed": 9} | options))


def in_context(model, copies=1, platform="Reference", force=None, **options) -> openmm.Context:
    """With lambda as a parameter, and dE/dlambda in its States."""
    system = beads(MASSES[: model.n_particles] * copies)
    force = force or dm.DiffusionForce(model, copies=copies)
    system.addForce(force)
    start = np.full((copies * model.n_particles, 3), 0.2)
    return context(system, integrator_of(model, copies=copies, **options), start, platform)


def energy_of(context) -> float:
    return context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
@pytest.mark.parametrize("biased", [False, True])
def test_the_integrator_follows_the_parameter(platform, biased):
    """Bit for bit as the core does when its lambda is moved on the way."""
    model = wells()
    simulation = in_context(model, 2, platform)
    core = diffusim.Simulation(
        model, TRAINED, spring=260.0, friction_rate=4.3, masses=list(MASSES), n_replicas=2, seed=9
    )
    core.positions = np.full((3, 3), 0.2)
    if biased:
        restraint = openmm.CustomExternalForce("35*(x-0.1)^2")
        for i in range(6):
            restraint.addParticle(i)
        restraint.setForceGroup(1)
        simulation.getSystem().addForce(restraint)
        simulation.reinitialize(preserveState=True)
    assert simulation.getParameter("diffusim_lambda") == 0.3
    for lambda_ in (0.3, 0.8, 0.0, 1.0):
        simulation.setParameter("diffusim_lambda", lambda_)
        core.lambda_ = lambda_
        for _ in range(12):
            if biased:
                forces = simulation.getState(forces=True, groups={1}).getForces(asNumpy=True)
                core.step_biased(forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer).reshape(2, 3, 3))
            else:
                core.step(1)
            simulation.getIntegrator().step(1)
        assert np.array_equal(positions_of(simulation).reshape(2, 3, 3), core.positions)
        energies = simulation.getIntegrator().getModelEnergies().value_in_unit(unit.kilojoule_per_mole)
        assert np.allclose(energies, KT * core.energies, rtol=1e-12)


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_energy_and_derivative_by_lambda(platform):
    """(1 - lambda) E_a + lambda E_b and E_b - E_a, of all copies; the derivative adds to that of another Force."""
    model = wells()
    force = dm.DiffusionForce(model, copies=2)
    force.addEnergyParameterDerivative("diffusim_lambda")
    simulation = in_context(model, 2, platform, force)
    simulation.getIntegrator().step(20)
    both = model.component_energies(positions_of(simulation).reshape(2, 3, 3)).sum(axis=0)
    for lambda_ in (0.3, 0.85):
        simulation.setParameter("diffusim_lambda", lambda_)
        assert energy_of(simulation) == pytest.approx(KT * ((1 - lambda_) * both[0] + lambda_ * both[1]))
        for _ in range(2):
            state = simulation.getState(parameterDerivatives=True)
            found = state.getEnergyParameterDerivatives()["diffusim_lambda"]
            assert found == pytest.approx(KT * (both[1] - both[0]))

    other = openmm.CustomBondForce("13*diffusim_lambda^2*r")
    other.addGlobalParameter("diffusim_lambda", 0.3)
    other.addEnergyParameterDerivative("diffusim_lambda")
    other.addBond(0, 4)
    simulation.getSystem().addForce(other)
    simulation.reinitialize(preserveState=True)
    x = positions_of(simulation)
    r = np.linalg.norm(x[0] - x[4])
    found = simulation.getState(parameterDerivatives=True).getEnergyParameterDerivatives()["diffusim_lambda"]
    assert found == pytest.approx(KT * (both[1] - both[0]) + 26 * 0.85 * r)


def test_one_line_for_a_blend_of_networks():
    """Lambda at either end is one of the two models, bit for bit."""
    first, second = diffusim.Model(NETWORK), diffusim.Model(NETWORK, noise_level=0.03)
    simulation = dm.simulation(diffusim.Model.blend(first, second, 0.0), 310.0, 7.3, 0.0052, seed=48291, copies=2)
    for lambda_, model in ((0.0, first), (1.0, second)):
        simulation.context.setParameter("diffusim_lambda", lambda_)
        alone = diffusim.Simulation(model, 310.0, time_step=0.0052, friction_rate=7.3, n_replicas=2, seed=48291)
        alone.positions = positions_of(simulation.context).reshape(2, 5, 3)
        alone.step_count = simulation.currentStep
        alone.step(25)
        simulation.step(25)
        assert np.array_equal(positions_of(simulation.context).reshape(2, 5, 3), alone.positions)
    derivatives = simulation.context.getState(parameterDerivatives=True).getEnergyParameterDerivatives()
    assert np.isfinite(derivatives["diffusim_lambda"])


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_checkpoints_and_states_keep_lambda(platform):
    first = in_context(wells(), platform=platform)
    first.setParameter("diffusim_lambda", 0.7)
    first.getIntegrator().step(15)
    checkpoint = first.createCheckpoint()
    state = first.getState(positions=True, parameters=True, integratorParameters=True)
    first.getIntegrator().step(15)
    second, third = in_context(wells(), platform=platform), in_context(wells(), platform=platform)
    second.loadCheckpoint(checkpoint)
    third.setState(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(state)))
    for each in (second, third):
        assert each.getParameter("diffusim_lambda") == 0.7
        each.getIntegrator().step(15)
        assert np.array_equal(positions_of(each), positions_of(first))


def test_xml_keeps_both_models_lambda_and_the_name():
    model = wells(0.4)
    force = dm.DiffusionForce(model, lambdaName="mixture")
    force.addEnergyParameterDerivative("mixture")
    integrator = integrator_of(model, lambdaName="mixture")
    ends = []
    for make in (lambda thing: thing, copy.copy):
        system, own = beads(MASSES), make(integrator)
        system.addForce(copy.copy(force))
        simulation = context(system, own, np.full((3, 3), 0.2))
        assert simulation.getParameters()["mixture"] == 0.4
        simulation.setParameter("mixture", 0.9)
        own.step(10)
        assert "mixture" in simulation.getState(parameterDerivatives=True).getEnergyParameterDerivatives()
        ends.append(positions_of(simulation))
    assert np.array_equal(*ends)


def test_lambda_of_another_force_and_lambda_of_none():
    """The name is what counts; a Context that does not know it leaves lambda where the model has it."""
    model = wells(0.3)
    ends = []
    for value, force in ((None, None), (0.3, openmm.CustomExternalForce("0")), (0.6, openmm.CustomExternalForce("0"))):
        system = beads(MASSES)
        if force:
            force.addGlobalParameter("diffusim_lambda", value)
            force.setForceGroup(5)
            system.addForce(force)
        integrator = integrator_of(model)
        integrator.setIntegrationForceGroups({0})
        simulation = context(system, integrator, np.full((3, 3), 0.2))
        integrator.step(10)
        ends.append(positions_of(simulation))
    assert np.array_equal(ends[0], ends[1]) and not np.array_equal(ends[0], ends[2])


def test_what_lambda_cannot_be():
    simulation = in_context(wells())
    for wrong in (1.2, -0.3, float("nan")):
        with pytest.raises(
            openmm.OpenMMException,
            match=r"parameter diffusim_lambda of the Context .* lambda is .*; expected 0 .* to 1",
        ):
            simulation.setParameter("diffusim_lambda", wrong)
        with pytest.raises(openmm.OpenMMException, match="parameter diffusim_lambda of the Context"):
            simulation.getIntegrator().step(1)
    simulation.setParameter("diffusim_lambda", 0.5)
    simulation.getIntegrator().step(1)
    with pytest.raises(
        openmm.OpenMMException, match="no derivative by 'lambda'; that of its blend is by 'diffusim_lambda'"
    ):
        dm.DiffusionForce(wells()).addEnergyParameterDerivative("lambda")
    with pytest.raises(openmm.OpenMMException, match="distance_small.safetensors is no blend of two models"):
        dm.DiffusionForce(NETWORK).addEnergyParameterDerivative()
    with pytest.raises(ValueError, match="lambdaName is empty"):
        dm.DiffusionForce(wells(), lambdaName="")


def test_replica_exchange_over_lambda_and_the_free_energy_between():
    """OpenMM's sampler over the parameter: the harmonic variance at every lambda, swaps at the rate of the exact
    densities, and, by thermodynamic integration (theory 7), the free energy (3 N/2) kT ln(k_b/k_a) between its ends.
    """
    n_particles, n_iterations = 12, 500
    nodes, weights = np.polynomial.legendre.leggauss(4)
    nodes, weights = (nodes + 1) / 2, weights / 2
    system, model = beads([14.0] * n_particles), wells(0.0, n_particles)
    force = dm.DiffusionForce(model)
    force.addEnergyParameterDerivative()
    system.addForce(force)
    simulation = app.Simulation(
        beads_topology(n_particles), system, integrator_of(model), openmm.Platform.getPlatform("Reference")
    )
    simulation.context.setPositions(np.zeros((n_particles, 3)))
    random.seed(4)
    sampler = app.ReplicaExchangeSampler([{"diffusim_lambda": x} for x in nodes], simulation, 25)
    sampler.exchangesPerIteration = 1
    sampler.simulate(20)
    squares, swaps = np.empty((n_iterations, len(nodes))), 0
    for i in range(n_iterations):
        before = list(sampler.replicaStateIndex)
        sampler.simulate(1)
        swaps += before != sampler.replicaStateIndex
        for conformation, state in zip(sampler.replicaConformation, before, strict=True):
            x = conformation.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
            squares[i, state] = (x**2).sum()
    stiffness = (1 - nodes) * STIFFNESS[0] + nodes * STIFFNESS[1]
    expected, n = 3 * n_particles / stiffness, 3 * n_particles
    error = expected * np.sqrt(2 / (n * n_iterations))  # frames 25 steps apart at kappa tau >= 0.08 are independent
    assert (abs(squares.mean(axis=0) - expected) < SIGMAS * 1.1 * error).all()

    rng = np.random.default_rng(6)
    exact = rng.chisquare(n, (100_000, len(nodes))) / stiffness
    rates = [
        np.minimum(1, np.exp(0.5 * (stiffness[b] - stiffness[a]) * (exact[:, b] - exact[:, a]))).mean()
        for a in range(4)
        for b in range(a)
    ]
    rate = np.mean(rates)
    assert abs(swaps / n_iterations - rate) < SIGMAS * np.sqrt(rate * (1 - rate) / n_iterations)

    derivative = 0.5 * (STIFFNESS[1] - STIFFNESS[0]) * squares  # kT0, of each frame
    found = derivative.mean(axis=0) @ weights
    error = np.sqrt((derivative.var(axis=0) * weights**2).sum() / n_iterations)
    exact_difference = 0.5 * n * np.log(STIFFNESS[1] / STIFFNESS[0])
    assert abs(found - exact_difference) < SIGMAS * 1.1 * error < 0.03 * exact_difference
