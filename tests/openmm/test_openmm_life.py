"""Everything that a script does with an integrator besides stepping: reporters, checkpoints, XML, copies, threads."""

import copy
import io
import pickle
import threading

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
    beads_topology,
    context,
    network_integrator,
    network_simulation,
    positions_of,
)


def settings(integrator):
    return (
        integrator.getTemperature(),
        integrator.getFriction(),
        integrator.getStepSize(),
        integrator.getSpring(),
        integrator.getAdapter(),
        integrator.getRandomNumberSeed(),
        integrator.getIntegrationForceGroups(),
    )


def unusual_integrator():
    integrator = network_integrator(adapter="euler-maruyama", seed=2**40 + 7)
    integrator.setIntegrationForceGroups({2, 31})
    return integrator


def test_one_line_gives_a_running_simulation():
    simulation = dm.simulation(NETWORK, temperature=310 * unit.kelvin, frictionCoeff=7.3 / unit.picosecond, frame=3)
    model = diffusim.Model(NETWORK)
    assert np.array_equal(positions_of(simulation.context), model.start_positions[3])
    atoms = list(simulation.topology.atoms())
    assert [a.name for a in atoms] == ["N", "CA", "C", "CB", "O"]
    assert [a.element.symbol for a in atoms] == ["N", "C", "C", "C", "O"]
    assert [r.name for r in simulation.topology.residues()] == ["ALA"]
    assert [(a.index, b.index) for a, b in simulation.topology.bonds()] == [(0, 1), (1, 2), (1, 3), (2, 4)]
    simulation.step(100)
    assert simulation.context.getStepCount() == 100
    assert np.abs(positions_of(simulation.context) - model.start_positions[3]).max() > 1e-3


def test_reporters(tmp_path):
    simulation = network_simulation()
    table = io.StringIO()
    simulation.reporters += [
        app.DCDReporter(str(tmp_path / "x.dcd"), 50),
        app.StateDataReporter(table, 50, step=True, time=True, potentialEnergy=True, temperature=True, speed=True),
        app.CheckpointReporter(str(tmp_path / "x.chk"), 100),
    ]
    frames = []
    for _ in range(4):
        simulation.step(50)
        frames.append(positions_of(simulation.context))
    simulation.reporters.clear()

    topology = mdtraj.Topology.from_openmm(simulation.topology)
    written = mdtraj.load(str(tmp_path / "x.dcd"), top=topology).xyz
    assert np.abs(written - frames).max() < 1e-6
    rows = [line.split(",") for line in table.getvalue().splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [50, 100, 150, 200]
    assert float(rows[-1][1]) == pytest.approx(200 * 0.0052)
    assert float(rows[-1][3]) == integrator_temperature(simulation)
    simulation.loadCheckpoint(str(tmp_path / "x.chk"))
    assert np.array_equal(positions_of(simulation.context), frames[3])


def integrator_temperature(simulation):
    return simulation.integrator.computeSystemTemperature().value_in_unit(unit.kelvin)


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_a_checkpoint_continues_bit_for_bit(platform):
    """In another Simulation, whose own seed was drawn."""
    first = network_simulation(platform, seed=0)
    first.step(30)
    checkpoint = first.context.createCheckpoint()
    first.step(70)
    second = network_simulation(platform, seed=0)
    second.context.loadCheckpoint(checkpoint)
    second.step(70)
    assert np.array_equal(positions_of(first.context), positions_of(second.context))
    assert first.context.getTime() == second.context.getTime()
    assert first.currentStep == second.currentStep == 100
    assert first.integrator.getSeedInUse() == second.integrator.getSeedInUse()


def test_a_saved_state_continues_bit_for_bit(tmp_path):
    first = network_simulation(seed=0)
    first.step(30)
    first.saveState(str(tmp_path / "state.xml"))
    first.step(70)
    second = network_simulation(seed=0)
    second.loadState(str(tmp_path / "state.xml"))
    second.step(70)
    assert np.array_equal(positions_of(first.context), positions_of(second.context))


def test_a_new_seed_after_a_checkpoint_gives_another_continuation():
    simulation = network_simulation()
    simulation.step(10)
    checkpoint = simulation.context.createCheckpoint()
    ends = []
    for seed in (None, 5, 6, 5):
        simulation.context.loadCheckpoint(checkpoint)
        if seed is not None:
            simulation.integrator.setRandomNumberSeed(seed)
        simulation.step(10)
        ends.append(positions_of(simulation.context))
    assert np.array_equal(ends[1], ends[3])
    assert not np.array_equal(ends[0], ends[1]) and not np.array_equal(ends[1], ends[2])


def test_reinitialize_can_keep_the_state():
    simulation = network_simulation(seed=0)
    simulation.step(40)
    undisturbed = network_simulation(seed=0)
    undisturbed.context.loadCheckpoint(simulation.context.createCheckpoint())
    simulation.context.reinitialize(preserveState=True)
    for each in (simulation, undisturbed):
        each.step(40)
    assert np.array_equal(positions_of(simulation.context), positions_of(undisturbed.context))

    simulation.context.reinitialize()
    with pytest.raises(openmm.OpenMMException, match="Particle positions have not been set"):
        simulation.step(1)


def test_seed_zero_is_a_fresh_seed_for_every_context():
    first, second = network_simulation(seed=0), network_simulation(seed=0)
    assert first.integrator.getRandomNumberSeed() == 0
    assert 0 != first.integrator.getSeedInUse() != second.integrator.getSeedInUse() != 0


def test_xml_carries_the_model():
    integrator = unusual_integrator()
    restored = dm.cast(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(integrator)))
    assert settings(restored) == settings(integrator)
    model = diffusim.Model(NETWORK)
    ends = []
    for each in (integrator, restored):
        simulation = context(dm.system(model), each, model.start_positions[0])
        each.step(20)
        ends.append(positions_of(simulation))
    assert np.array_equal(*ends)


def test_the_noise_level_of_a_model_is_kept():
    model = diffusim.Model(NETWORK, noise_level=0.03)
    _, (expected,) = model.evaluate(model.start_positions[:1])
    integrator = network_integrator(model)
    for each in (integrator, copy.copy(integrator)):
        simulation = context(dm.system(model), each, model.start_positions[0])
        found = simulation.getIntegrator().getModelEnergy().value_in_unit(unit.kilojoule_per_mole)
        assert found == pytest.approx(BOLTZMANN * 310.0 * expected, rel=1e-12)


def test_xml_carries_an_analytic_model_and_its_particles():
    model = analytic("harmonic", 2, stiffness=37.0)
    integrator = dm.DiffusionIntegrator(model, TRAINED, 4.3, spring=900.0, particles=[3, 1], seed=9)
    xml = openmm.XmlSerializer.serialize(integrator)
    ends = []
    for each in (integrator, dm.cast(openmm.XmlSerializer.deserialize(xml))):
        simulation = context(beads([12.0] * 4), each, np.full((4, 3), 0.2))
        each.step(20)
        ends.append(positions_of(simulation))
    assert np.array_equal(*ends)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(duplicate):
    integrator = unusual_integrator()
    again = duplicate(integrator)
    assert type(again) is dm.DiffusionIntegrator
    assert settings(again) == settings(integrator)
    force = duplicate(dm.DiffusionForce(NETWORK))
    assert type(force) is dm.DiffusionForce and force.getName() == "DiffusionForce"


def test_cast_refuses_what_is_not_ours():
    with pytest.raises(TypeError, match="neither a DiffusionIntegrator nor a DiffusionForce"):
        dm.cast(openmm.VerletIntegrator(0.002))


@pytest.mark.parametrize("platform", EXACT_PLATFORMS)
def test_compound_integrator(platform):
    """Underdamped with the learned energy as a Force, then overdamped with it as the score, in one Context."""
    model = diffusim.Model(NETWORK)
    system = dm.system(model)
    force = dm.DiffusionForce(model)
    force.setForceGroup(1)
    system.addForce(force)
    compound = openmm.CompoundIntegrator()
    compound.addIntegrator(openmm.LangevinMiddleIntegrator(310, 5.0, 0.0005))
    ours = network_integrator()
    ours.setIntegrationForceGroups({0})
    compound.addIntegrator(ours)
    simulation = context(system, compound, model.start_positions[0], platform)
    compound.step(20)
    middle = positions_of(simulation)
    compound.setCurrentIntegrator(1)
    compound.step(20)
    core = diffusim.Simulation(model, 310.0, time_step=0.0052, friction_rate=7.3, seed=48291)
    core.positions = middle
    core.step(20)
    assert np.array_equal(positions_of(simulation), core.positions[0])
    assert dm.cast(compound.getIntegrator(1)).getRandomNumberSeed() == 48291


def test_several_simulations_on_several_threads():
    """Four at once, in slices, give what each gives alone."""
    seeds = (3, 5, 7, 11)

    def run(seed):
        simulation = network_simulation(seed=seed)
        simulation.step(2000)
        ends[seed] = positions_of(simulation.context)

    ends = {}
    for seed in seeds:
        run(seed)
    alone, ends = ends, {}
    threads = [threading.Thread(target=run, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(alone[seed], ends[seed]) for seed in seeds)


def test_step_releases_the_interpreter():
    """Another Python thread goes on counting while a long step runs."""
    simulation = network_simulation()
    counted = 0
    done = threading.Event()

    def count():
        nonlocal counted
        while not done.is_set():
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = counted
    simulation.integrator.step(300_000)
    during = counted - before
    done.set()
    thread.join()
    assert during > 1000


def test_the_engine_may_move_the_particles_between_steps():
    model = analytic("harmonic", 3, stiffness=37.0)
    integrator = dm.DiffusionIntegrator(model, TRAINED, 4.3, 0.002, seed=9)
    simulation = app.Simulation(beads_topology(3), beads([12.0] * 3), integrator)
    simulation.context.setPositions(np.zeros((3, 3)))
    simulation.step(5)
    simulation.context.setPositions(np.full((3, 3), 4.0))
    simulation.step(1)
    assert np.abs(positions_of(simulation.context) - 4.0).max() < 0.5


def test_metadynamics_biases_the_learned_score():
    """OpenMM's own Metadynamics, whose CustomCVForce pushes a torsion out of where it has been."""
    model = diffusim.Model(NETWORK)
    torsion = openmm.CustomTorsionForce("theta")
    torsion.addTorsion(0, 1, 2, 4)
    variable = app.BiasVariable(torsion, -np.pi, np.pi, 0.35, periodic=True)
    system = dm.system(model)
    metadynamics = app.Metadynamics(system, [variable], 310.0, 8.0, height=2.5, frequency=25)
    simulation = app.Simulation(
        dm.topology(model), system, network_integrator(), openmm.Platform.getPlatform("Reference")
    )
    simulation.context.setPositions(model.start_positions[0])
    metadynamics.step(simulation, 500)
    free_energy = metadynamics.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole)
    assert np.isfinite(free_energy).all() and np.ptp(free_energy) > 2.5
    unbiased = network_simulation()
    unbiased.context.setPositions(model.start_positions[0])
    unbiased.step(500)
    assert not np.array_equal(positions_of(simulation.context), positions_of(unbiased.context))
