"""sampler="time-parallel" (theory 12): step(n) takes many steps at once, where no Force is a bias."""

import copy

import numpy as np
import openmm
import pytest

import diffusim
import diffusim.openmm as dm
from systems import EXACT_PLATFORMS, NETWORK, context, network_integrator, positions_of

WINDOW, TOLERANCE = 24, 3e-7  # frames, nm
SWEEPS = {"sampler": "time-parallel", "window": WINDOW, "tolerance": TOLERANCE}


def one_line(**options):
    return dm.simulation(NETWORK, 310.0, 7.3, 0.0009, **({"seed": 48291} | options))


def core_of(**options) -> diffusim.Simulation:
    return diffusim.Simulation(NETWORK, 310.0, time_step=0.0009, friction_rate=7.3, seed=48291, **options)


def restraint():
    force = openmm.CustomExternalForce("35*(x-0.1)^2")
    force.addParticle(1)
    force.setForceGroup(4)
    return force


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_the_trajectory_is_that_of_the_core(platform):
    """Bit for bit that of its time-parallel sampler, and to the tolerance that of the sequential one."""
    simulation, core = one_line(copies=2, platform=platform, **SWEEPS), core_of(n_replicas=2, **SWEEPS)
    sequential = core_of(n_replicas=2)
    assert simulation.integrator.getSampler() == "time-parallel"
    for n_steps in (1, 150, 40):
        for each in (simulation.integrator, core, sequential):
            each.step(n_steps)
        found = positions_of(simulation.context).reshape(2, 5, 3)
        assert np.array_equal(found, core.positions)
        assert np.abs(found - sequential.positions).max() < 100 * TOLERANCE
    assert simulation.context.getStepCount() == 191
    assert simulation.integrator.getStepsPerSweep() == core.statistics.steps_per_sweep > 1.5


def test_the_engine_may_interfere_between_calls():
    simulation, core = one_line(**SWEEPS), core_of(**SWEEPS)
    start = diffusim.Model(NETWORK).start_positions[3]
    for each in (simulation.integrator, core):
        each.step(50)
    simulation.context.setPositions(start)
    core.positions = start
    for each in (simulation.integrator, core):
        each.step(50)
    assert np.array_equal(positions_of(simulation.context), core.positions[0])


def test_a_checkpoint_continues_bit_for_bit_and_a_state_to_the_tolerance():
    first, second, third, plain = one_line(**SWEEPS), one_line(**SWEEPS), one_line(**SWEEPS), one_line()
    first.integrator.step(61)
    checkpoint = first.context.createCheckpoint()
    second.integrator.step(5)
    second.context.loadCheckpoint(checkpoint)
    third.context.setState(first.context.getState(positions=True, integratorParameters=True))
    for each in (first, second, third):
        each.integrator.step(60)
    assert np.array_equal(positions_of(first.context), positions_of(second.context))
    assert np.abs(positions_of(first.context) - positions_of(third.context)).max() < 100 * TOLERANCE
    with pytest.raises(openmm.OpenMMException, match="checkpoint was written with another adapter or sampler"):
        first.context.loadCheckpoint(plain.context.createCheckpoint())
    with pytest.raises(openmm.OpenMMException, match="belongs to another model or to other settings"):
        one_line(**(SWEEPS | {"window": WINDOW + 1})).context.loadCheckpoint(checkpoint)


def test_a_bias_is_refused_and_never_dropped():
    model = diffusim.Model(NETWORK)
    system = dm.system(model)
    system.addForce(restraint())
    ends = []
    for sampler in ("sequential", "auto", "time-parallel"):
        integrator = network_integrator(sampler=sampler)
        simulation = context(system, integrator, model.start_positions[0])
        if sampler == "time-parallel":
            with pytest.raises(
                openmm.OpenMMException,
                match="'time-parallel' takes many steps at once, and the System has CustomExternalForce.*'auto'",
            ):
                integrator.step(20)
            assert simulation.getStepCount() == 0
            integrator.setIntegrationForceGroups({0})
        integrator.step(20)
        ends.append(positions_of(simulation))
    assert np.array_equal(ends[0], ends[1]) and not np.allclose(ends[1], ends[2], atol=1e-4)


def test_copies_of_the_integrator_keep_the_sampler():
    ends = []
    integrator = network_integrator(stepSize=0.0009, **SWEEPS)
    for each in (integrator, copy.copy(integrator)):
        simulation = context(dm.system(NETWORK), each, diffusim.Model(NETWORK).start_positions[0])
        each.step(70)
        ends.append((positions_of(simulation).tolist(), each.getStepsPerSweep()))
        assert each.getSampler() == "time-parallel"
    assert ends[0] == ends[1]


def test_arguments():
    with pytest.raises(
        openmm.OpenMMException, match="sampler 'parallel' is not known; expected 'sequential', .* or 'auto'"
    ):
        network_integrator(sampler="parallel")
    with pytest.raises(ValueError, match="window is 1 frames; expected 2 or more"):
        network_integrator(sampler="time-parallel", window=1)
    with pytest.raises(ValueError, match="tolerance is -1e-07; expected 0 or a positive number"):
        network_integrator(sampler="time-parallel", tolerance=-1e-7)
    for given in ({"window": 8}, {"tolerance": 1e-7}):
        with pytest.raises(openmm.OpenMMException, match="and the sampler is sequential, which has none; use"):
            one_line(**given)
    with pytest.raises(openmm.OpenMMException, match="time-parallel cannot take the steps of the adapter Heun"):
        one_line(adapter="heun", **SWEEPS)
