"""A bias is never silently dropped: what changes about the Forces of a System acts on the next step, or is an error.

Every step is compared, bit for bit, with one that the core takes under the forces which OpenMM reports.
"""

import numpy as np
import openmm
import pytest
from openmm import app, unit

import diffusim
import diffusim.openmm as dm
from systems import NETWORK, context, network_integrator, positions_of

KJ_PER_NM = unit.kilojoule_per_mole / unit.nanometer
BACKBONE = (0, 1, 2, 4)  # N CA C O of the fixture


class Watched:
    """A Context of the network under some Forces, and a simulation of the core that is told their forces.

    These come from a Context of their own, in which nothing is learned.
    """

    def __init__(self, *forces, groups=None, **options):
        model = diffusim.Model(NETWORK)
        self.system = dm.system(model)
        for force in forces:
            self.system.addForce(force)
        self.integrator = network_integrator(**options)
        if groups is not None:
            self.integrator.setIntegrationForceGroups(groups)
        self.context = context(self.system, self.integrator, model.start_positions[2])
        self.bias = context(self.system, openmm.VerletIntegrator(0.001), model.start_positions[2])
        self.core = diffusim.Simulation(model, 310.0, time_step=0.0052, friction_rate=7.3, seed=48291)
        self.core.positions = model.start_positions[2]

    @property
    def contexts(self):
        return self.context, self.bias

    def follows(self, groups=-1, n_steps=7) -> float:
        """Take steps and compare; gives the largest force that acted."""
        largest = 0.0
        for _ in range(n_steps):
            self.bias.setPositions(positions_of(self.context))
            state = self.bias.getState(forces=True, groups=groups)
            forces = state.getForces(asNumpy=True).value_in_unit(KJ_PER_NM)
            largest = max(largest, np.abs(forces).max())
            self.core.step_biased(forces[None])
            self.integrator.step(1)
            assert np.array_equal(positions_of(self.context), self.core.positions[0])
        return largest


def tether(strength=35.0, parameter=None):
    force = openmm.CustomExternalForce("0.5*strength*((x-0.1)^2 + 3*y^2 + z^2)")
    if parameter is None:
        force.addPerParticleParameter("strength")
    else:
        force.addGlobalParameter(parameter, strength)
        force.setEnergyFunction(force.getEnergyFunction().replace("strength", parameter))
    for i in range(5):
        force.addParticle(i, [strength] if parameter is None else [])
    return force


def torsion_variable():
    torsion = openmm.CustomTorsionForce("theta")
    torsion.addTorsion(*BACKBONE)
    return torsion


def bias_on_a_torsion():
    force = openmm.CustomCVForce("40*(1 - cos(angle - 0.7))")
    force.addCollectiveVariable("angle", torsion_variable())
    return force


def python_force():
    def compute(state):
        x = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        return 15 * float(np.sum(x**2)) * unit.kilojoule_per_mole, -30 * x * KJ_PER_NM

    return openmm.PythonForce(compute)


def periodic_torsion():
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(*BACKBONE, 3, 0.4, 11.0)
    return force


def bond():
    force = openmm.HarmonicBondForce()
    force.addBond(0, 4, 0.31, 900.0)
    return force


def spread():
    force = openmm.CustomCVForce("700*spread^2")
    force.addCollectiveVariable("spread", openmm.RMSDForce(diffusim.Model(NETWORK).start_positions[4]))
    return force


@pytest.mark.parametrize("group", [0, 17, 31])
@pytest.mark.parametrize("make", [tether, bias_on_a_torsion, python_force, periodic_torsion, bond, spread])
def test_forces_of_every_kind_and_group_act(make, group):
    force = make()
    force.setForceGroup(group)
    assert Watched(force).follows() > 0.5


def test_a_parameter_that_changes_acts_at_once():
    watched = Watched(tether(0.0, "k"))
    assert watched.follows() == 0
    for strength in (35.0, -20.0, 0.0):
        for each in watched.contexts:
            each.setParameter("k", strength)
        assert (watched.follows() > 0.5) == (strength != 0)


def test_parameters_updated_in_the_context_act_at_once():
    force = tether(0.0)
    watched = Watched(force)
    assert watched.follows() == 0
    for i in range(5):
        force.setParticleParameters(i, i, [35.0 + i])
    for each in watched.contexts:
        force.updateParametersInContext(each)
    assert watched.follows() > 0.5


def test_integration_groups_choose_the_forces_and_may_change_on_the_way():
    first, second = tether(), bias_on_a_torsion()
    first.setForceGroup(3)
    second.setForceGroup(9)
    watched = Watched(first, second, groups={3})
    watched.follows({3})
    for groups in ({9}, {3, 9}, {4}, {3}):
        watched.integrator.setIntegrationForceGroups(groups)
        assert (watched.follows(groups) > 0.5) == (groups != {4})
    first.setForceGroup(9)  # of a Force that the Context has
    watched.integrator.setIntegrationForceGroups({9})
    watched.follows({9})


def test_a_force_that_came_after_the_context_is_an_error_until_it_is_reinitialised():
    watched = Watched()
    watched.integrator.step(5)
    watched.core.step(5)
    for force in (tether(), bias_on_a_torsion()):
        watched.system.addForce(force)
        with pytest.raises(openmm.OpenMMException, match=f"The System's {force.getName()} came after .*reinitialize"):
            watched.integrator.step(1)
        for each in watched.contexts:
            each.reinitialize(preserveState=True)
        assert watched.follows() > 0.5


@pytest.mark.parametrize("adapter", ["heun", "mala"])
def test_adapters_that_take_no_bias_refuse_it(adapter):
    """Also where the force is zero at first."""
    for force in (tether(), tether(0.0, "k")):
        with pytest.raises(openmm.OpenMMException, match=f"(?i){adapter}.*bias"):
            watched = Watched(force, adapter=adapter)
            watched.integrator.step(1)
    outside = tether()
    outside.setForceGroup(4)
    watched = Watched(outside, adapter=adapter, groups={0})
    watched.integrator.step(3)
    watched.integrator.setIntegrationForceGroups({4})
    with pytest.raises(openmm.OpenMMException, match="bias"):
        watched.integrator.step(1)


def test_hills_act_from_the_step_after_they_were_added():
    """Metadynamics: the bias is that of the hills so far, whose force is the one that acts."""
    model = diffusim.Model(NETWORK)
    system = dm.system(model)
    variable = app.BiasVariable(torsion_variable(), -np.pi, np.pi, 0.35, periodic=True)
    metadynamics = app.Metadynamics(system, [variable], 310.0, 8.0, height=2.5, frequency=5)
    simulation = app.Simulation(
        dm.topology(model), system, network_integrator(), openmm.Platform.getPlatform("Reference")
    )
    simulation.context.setPositions(model.start_positions[2])
    core = diffusim.Simulation(model, 310.0, time_step=0.0052, friction_rate=7.3, seed=48291)
    core.positions = model.start_positions[2]
    group = {max(force.getForceGroup() for force in system.getForces())}
    for n_hills in range(6):
        for _ in range(5):
            state = simulation.context.getState(forces=True, groups=group)
            forces = state.getForces(asNumpy=True).value_in_unit(KJ_PER_NM)
            assert (np.abs(forces).max() > 0) == (n_hills > 0)
            core.step_biased(forces[None])
            metadynamics.step(simulation, 1)
            assert np.array_equal(positions_of(simulation.context), core.positions[0])
