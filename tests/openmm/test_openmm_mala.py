"""Burn-in of the adapter "mala" through OpenMM: the core's, kept by checkpoints, States and XML."""

import copy

import numpy as np
import openmm
import pytest
from openmm import app

import diffusim
import diffusim.openmm as dm
from systems import NETWORK, network_integrator, positions_of

BURN_IN = {"adapter": "mala", "targetAcceptance": 0.7, "burnInSteps": 130}
COPIES = 3


def one_line(**options) -> app.Simulation:
    given = {"temperature": 310.0, "seed": 48291, "copies": COPIES}
    return dm.simulation(NETWORK, frictionCoeff=7.3, stepSize=0.0052, **(given | BURN_IN | options))


def state_of(simulation):
    integrator = simulation.integrator
    return positions_of(simulation.context).tolist(), list(integrator.getStepFactors()), integrator.getAcceptance()


def test_burn_in_is_that_of_the_core():
    core = diffusim.Simulation(
        NETWORK, 310.0, time_step=0.0052, friction_rate=7.3, seed=48291, n_replicas=COPIES, adapter="mala",
        target_acceptance=0.7, burn_in_steps=130,
    )  # fmt: skip
    simulation = one_line()
    for n_steps in (50, 100, 60):
        core.step(n_steps)
        simulation.step(n_steps)
        positions, factors, acceptance = state_of(simulation)
        assert np.array_equal(np.reshape(positions, core.positions.shape), core.positions)
        assert np.array_equal(factors, core.step_factors) and len(set(factors)) == COPIES
        assert acceptance == core.statistics.acceptance
    plain = one_line(targetAcceptance=None, burnInSteps=0)
    assert list(plain.integrator.getStepFactors()) == [1.0] * COPIES


@pytest.mark.parametrize("n_steps", [70, 170])
def test_checkpoints_and_states_continue_in_the_middle_of_burn_in_and_after(n_steps):
    """Positions, tuned steps and the count of acceptance; a State in a fresh Context, as of a restarted script."""
    first, second, third = one_line(), one_line(), one_line()
    first.step(n_steps)
    second.step(33)
    second.context.loadCheckpoint(first.context.createCheckpoint())
    state = first.context.getState(positions=True, integratorParameters=True)
    third.context.setState(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(state)))
    assert state_of(second) == state_of(third) == state_of(first)
    for simulation in (first, second, third):
        simulation.step(90)
    assert state_of(second) == state_of(third) == state_of(first)


def test_the_state_of_another_temperature_leaves_the_tuned_steps(caplog):
    """As in a replica exchange over temperature."""
    first, second = one_line(), one_line(temperature=340.0)
    first.step(200)
    second.step(150)
    before = list(second.integrator.getStepFactors())
    with caplog.at_level("INFO", "diffusim.openmm"):
        second.context.setState(first.context.getState(positions=True, integratorParameters=True))
    assert "no steps tuned for these settings, and those of this Context stay" in caplog.text
    assert list(second.integrator.getStepFactors()) == before
    assert np.array_equal(positions_of(second.context), positions_of(first.context))
    second.step(5)


def test_copies_of_the_integrator_keep_the_burn_in():
    integrator = network_integrator(**BURN_IN)
    again = copy.copy(integrator)
    for each in (integrator, again):
        xml = openmm.XmlSerializer.serialize(each)
        assert 'targetAcceptance=".7"' in xml and 'burnInSteps="130"' in xml


def test_arguments():
    for given, words in (
        ({"burnInSteps": 0}, "target acceptance 0.7 was asked for and no burn-in"),
        ({"targetAcceptance": None}, "burn-in of 130 steps was asked for and no target acceptance"),
        ({"targetAcceptance": 1.5}, "target acceptance is 1.5; expected a number between 0 and 1"),
        ({"targetAcceptance": -0.2}, "target acceptance is -0.2; expected a number between 0 and 1"),
        ({"adapter": "heun"}, "target acceptance 0.7 is for adapter Mala, and adapter Heun rejects no step"),
        ({"burnInSteps": -4}, "The steps of burn-in are -4; expected 0 or more"),
    ):
        with pytest.raises(openmm.OpenMMException, match=words):
            one_line(**given)
    with pytest.raises(diffusim.DiffusimError, match="target acceptance is 0; expected"):
        one_line(targetAcceptance=0)
    with pytest.raises(openmm.OpenMMException, match="not bound to a context"):
        network_integrator(**BURN_IN).getStepFactors()
