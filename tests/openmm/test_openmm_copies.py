"""Several copies of the molecule in one System, moved as a batch."""

import copy

import mdtraj
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
    context,
    network_integrator,
    positions_of,
)

COPIES = 8  # more than the model file has start frames


def replicas(n_replicas=COPIES, **options) -> diffusim.Simulation:
    """What the core makes of them."""
    options = {"time_step": 0.0052, "friction_rate": 7.3, "seed": 48291, "n_replicas": n_replicas} | options
    return diffusim.Simulation(NETWORK, 310.0, **options)


def one_line(copies=COPIES, **options) -> app.Simulation:
    return dm.simulation(NETWORK, 310.0, 7.3, 0.0052, seed=48291, copies=copies, **options)


def frames_of(simulation, copies=COPIES):
    return positions_of(simulation.context).reshape(copies, -1, 3)


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
@pytest.mark.parametrize("adapter", ["leimkuhler-matthews", "heun", "mala"])
def test_copies_are_the_replicas_of_the_core(platform, adapter):
    """From the start frames on, bit for bit, in steps of any number."""
    core, simulation = replicas(adapter=adapter), one_line(adapter=adapter, platform=platform)
    assert simulation.integrator.getNumCopies() == COPIES
    for n_steps in (0, 1, 7, 250):
        core.step(n_steps)
        simulation.step(n_steps)
        assert np.array_equal(frames_of(simulation), core.positions)
    energies = simulation.integrator.getModelEnergies().value_in_unit(unit.kilojoule_per_mole)
    assert np.allclose(energies, BOLTZMANN * 310.0 * core.energies, rtol=1e-12)
    total = simulation.integrator.getModelEnergy().value_in_unit(unit.kilojoule_per_mole)
    assert total == pytest.approx(energies.sum())
    if adapter == "mala":
        assert 0 < simulation.integrator.getAcceptance() == core.statistics.acceptance < 1


def test_the_first_frame_may_be_another():
    simulation = one_line(copies=3, frame=4)
    start = diffusim.Model(NETWORK).start_positions
    assert np.array_equal(frames_of(simulation, 3), start[[4, 5, 0]])


def test_each_copy_is_a_chain_of_its_own(tmp_path):
    simulation = one_line(copies=3)
    model = diffusim.Model(NETWORK)
    assert [len(list(chain.atoms())) for chain in simulation.topology.chains()] == [5, 5, 5]
    bonds = [(a.index, b.index) for a, b in simulation.topology.bonds()]
    assert bonds == [(i + 5 * r, j + 5 * r) for r in range(3) for i, j in model.metadata["bonds"]]
    simulation.reporters.append(app.DCDReporter(str(tmp_path / "x.dcd"), 10))
    simulation.step(20)
    simulation.reporters.clear()
    written = mdtraj.load(str(tmp_path / "x.dcd"), top=mdtraj.Topology.from_openmm(simulation.topology)).xyz
    assert np.abs(written[-1].reshape(3, 5, 3) - frames_of(simulation, 3)).max() < 1e-6


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_each_copy_feels_the_forces_on_its_own_particles(platform):
    """Restraints of another strength on each copy, and a bond between two of them."""
    model = diffusim.Model(NETWORK)
    system = dm.system(model, 3)
    restraint = openmm.CustomExternalForce("k*(x-0.1)^2")
    restraint.addPerParticleParameter("k")
    for copy_number, k in enumerate((35.0, 0.0, 12.0)):
        for i in range(5):
            restraint.addParticle(5 * copy_number + i, [k])
    between = openmm.HarmonicBondForce()
    between.addBond(1, 11, 0.3, 40.0)
    for force in (restraint, between):
        force.setForceGroup(1)
        system.addForce(force)
    integrator = network_integrator(copies=3)
    simulation = context(system, integrator, model.start_positions[:3].reshape(-1, 3), platform)
    core, free = replicas(3), replicas(3)
    for _ in range(40):
        forces = simulation.getState(forces=True, groups={1}).getForces(asNumpy=True)
        core.step_biased(forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer).reshape(3, 5, 3))
        integrator.step(1)
    found = positions_of(simulation).reshape(3, 5, 3)
    assert np.array_equal(found, core.positions)
    free.step(40)
    assert [np.array_equal(a, b) for a, b in zip(found, free.positions, strict=True)] == [False, True, False]


def test_the_learned_energy_of_other_copies_is_a_bias():
    """The same model and particles within a copy, but one copy of the System in place of the integrator's two."""
    model = analytic("harmonic", 1, stiffness=37.0)

    def run(force):
        system = beads([12.0, 31.0, 12.0, 31.0])
        if force is not None:
            system.addForce(force)
        integrator = dm.DiffusionIntegrator(model, TRAINED, 4.3, 0.002, seed=4, particles=[0], copies=2)
        simulation = context(system, integrator, np.full((4, 3), 0.2))
        integrator.step(5)
        return positions_of(simulation)

    alone, learned, biased = (
        run(f)
        for f in (
            None,
            dm.DiffusionForce(model, particles=[0], copies=2),
            dm.DiffusionForce(model, particles=[0], copies=1),
        )
    )
    assert np.array_equal(learned, alone)
    assert np.array_equal(biased[1:], alone[1:])
    assert not np.array_equal(biased[0], alone[0])


def test_a_copy_that_runs_away_is_named_and_the_others_go_on():
    """The quartic term of a double well, from far out; the other copies are not touched by it."""
    model = analytic("double-well", 2, barrier=2.1, half_width=1.3, stiffness=37.0)
    start = np.full((4, 2, 3), 0.9)
    integrator = dm.DiffusionIntegrator(model, TRAINED, 4.3, spring=130.0, seed=5, copies=4)
    simulation = context(beads([12.0, 31.0] * 4), integrator, start.reshape(-1, 3))
    integrator.step(10)
    before = positions_of(simulation).reshape(4, 2, 3)
    away = before.copy()
    away[2, 1, 0] = 1e4
    simulation.setPositions(away.reshape(-1, 3))
    with pytest.raises(
        openmm.OpenMMException,
        match=r"ran away .* \(replica 2, particle 1\).*copy r of the molecule: its first particle is particle 2 r of",
    ):
        integrator.step(10)
    assert integrator.getLastStatus() is diffusim.Status.NOT_FINITE
    assert simulation.getStepCount() == 10
    assert np.array_equal(positions_of(simulation).reshape(4, 2, 3), away)
    simulation.setPositions(before.reshape(-1, 3))
    integrator.step(10)
    assert integrator.getLastStatus() is None
    undisturbed = diffusim.Simulation(
        model, TRAINED, spring=130.0, friction_rate=4.3, masses=[12.0, 31.0], n_replicas=4, seed=5
    )
    undisturbed.positions = start
    undisturbed.step(20)
    assert np.array_equal(positions_of(simulation).reshape(4, 2, 3), undisturbed.positions)


def test_a_bias_that_is_not_finite_names_the_copy():
    system = dm.system(NETWORK, 3)
    force = openmm.CustomExternalForce("sqrt(x-1000)")
    force.addParticle(12)
    system.addForce(force)
    start = diffusim.Model(NETWORK).start_positions[:3].reshape(-1, 3)
    simulation = context(system, network_integrator(copies=3), start)
    with pytest.raises(openmm.OpenMMException, match=r"bias force on particle 2 \(replica 2\) is NaN.*particle 5 r of"):
        simulation.getIntegrator().step(1)
    assert simulation.getIntegrator().getLastStatus() is diffusim.Status.INVALID_ARGUMENT


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_checkpoints_and_states_continue_bit_for_bit(platform, tmp_path):
    first = one_line(platform=platform)
    first.step(30)
    checkpoint = first.context.createCheckpoint()
    first.saveState(str(tmp_path / "state.xml"))
    first.step(40)
    second, third = one_line(platform=platform), one_line(platform=platform)
    second.context.loadCheckpoint(checkpoint)
    third.loadState(str(tmp_path / "state.xml"))
    for simulation in (second, third):
        simulation.step(40)
        assert np.array_equal(frames_of(simulation), frames_of(first))


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_the_energy_of_copies_as_a_force_is_the_sum(platform):
    model = diffusim.Model(NETWORK)
    system = dm.system(model, 3)
    force = dm.DiffusionForce(model, copies=3)
    system.addForce(force)
    simulation = context(system, openmm.VerletIntegrator(0.001), model.start_positions[:3].reshape(-1, 3), platform)
    state = simulation.getState(energy=True, forces=True)
    scores, energies = model.evaluate(model.start_positions[:3])
    kt = BOLTZMANN * 310.0
    assert state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) == pytest.approx(kt * energies.sum())
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    assert np.allclose(forces.reshape(3, 5, 3), kt * scores, rtol=1e-12, atol=0)


def test_particles_are_named_within_each_copy():
    """Two copies of three particles, of which the model moves the last two."""
    model = analytic("harmonic", 2, stiffness=37.0)
    integrator = dm.DiffusionIntegrator(model, TRAINED, 4.3, spring=900.0, particles=[2, 1], seed=9, copies=2)
    simulation = context(beads([40.0, 12.0, 15.0] * 2), integrator, np.full((6, 3), 0.2))
    core = diffusim.Simulation(
        model.subset(3, [2, 1]),
        TRAINED,
        spring=900.0,
        friction_rate=4.3,
        masses=[40.0, 12.0, 15.0],
        n_replicas=2,
        seed=9,
    )
    core.positions = np.full((3, 3), 0.2)
    core.step(20)
    integrator.step(20)
    assert np.array_equal(positions_of(simulation).reshape(2, 3, 3), core.positions)


def test_copies_that_nobody_spoke_of_are_moved_with_a_warning():
    system, start = dm.system(NETWORK, 3), diffusim.Model(NETWORK).start_positions[:3].reshape(-1, 3)
    integrator = network_integrator()
    with pytest.warns(UserWarning, match="15 particles are taken for 3 copies of the molecule .*with copies=3") as said:
        simulation = context(system, integrator, start)
    assert len(said) == 1
    core = replicas(3)
    core.step(20)
    integrator.step(20)
    assert np.array_equal(positions_of(simulation).reshape(3, 5, 3), core.positions)


def test_xml_and_copies_of_the_object_keep_the_number():
    for thing in (network_integrator(copies=3), dm.DiffusionForce(NETWORK, copies=3)):
        again = copy.copy(thing)
        system = dm.system(NETWORK, 4)
        integrator = again
        if isinstance(again, openmm.Force):
            system.addForce(again)
            integrator = openmm.VerletIntegrator(0.002)
        with pytest.raises(openmm.OpenMMException, match="has 20 particles, which is not 3 copies .*give copies=4"):
            openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))


def test_copies_that_are_not_alike_are_refused():
    masses = [14.007, 12.011, 12.011, 12.011, 15.999]
    wrong = beads(masses * 2 + [14.007, 12.011, 12.011, 15.999, 12.011])
    with pytest.raises(
        openmm.OpenMMException,
        match=r"Particle 3 of copy 2 \(particle 13 of the System\) weighs 15.999 amu, and that of copy 0 12.011 amu",
    ):
        context(wrong, network_integrator(copies=3), np.zeros((15, 3)))
    topology = dm.topology(NETWORK, 3)
    dm.check_topology(NETWORK, topology)
    network_integrator(topology=topology, copies=3)
    list(topology.atoms())[13].element = app.element.oxygen
    with pytest.raises(
        diffusim.DiffusimError,
        match=r"copy 2 \(atoms 10 to 14\): .* particle 3 is CB \(carbon\) in the model and CB \(oxygen\)",
    ):
        network_integrator(topology=topology, copies=3)
    with pytest.raises(
        diffusim.DiffusimError, match="the topology has 15 atoms, which is not 2 copies of equally many"
    ):
        network_integrator(topology=topology, copies=2)
    for wrong in (0, -2):
        with pytest.raises(ValueError, match=f"copies is {wrong}; expected a positive number"):
            one_line(copies=wrong)
    with pytest.raises(TypeError, match="float"):
        network_integrator(copies=1.5)
    with pytest.raises(openmm.OpenMMException, match="model moves 5 particles and the System has 7"):
        context(beads([12.0] * 14), network_integrator(copies=2), np.zeros((14, 3)))


def test_adapters_that_take_no_bias_say_so():
    system = dm.system(NETWORK)
    force = openmm.CustomExternalForce("35*x^2")
    force.addParticle(1)
    force.setForceGroup(3)
    system.addForce(force)
    for adapter in ("heun", "mala"):
        integrator = network_integrator(adapter=adapter)
        simulation = context(system, integrator, diffusim.Model(NETWORK).start_positions[0])
        message = (
            f"adapter '{adapter}' takes no bias, and the System has CustomExternalForce. Use 'leimkuhler-matthews'"
        )
        with pytest.raises(openmm.OpenMMException, match=message):
            integrator.step(1)
        assert simulation.getStepCount() == 0
        integrator.setIntegrationForceGroups({0, 1})
        integrator.step(3)
        assert simulation.getStepCount() == 3
