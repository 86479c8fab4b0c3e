"""What goes wrong, and the sentence that says so."""

import logging
import re
import subprocess
import sys
import warnings

import numpy as np
import openmm
import pytest
from openmm import app, unit

import diffusim
import diffusim.openmm as dm
from systems import NETWORK, TRAINED, analytic, beads, context, network_integrator, network_simulation, positions_of


def network_system(*forces):
    system = dm.system(diffusim.Model(NETWORK))
    for force in forces:
        system.addForce(force)
    return system


def create(system, integrator=None):
    return openmm.Context(system, integrator or network_integrator(), openmm.Platform.getPlatform("Reference"))


def refuses(message, system, integrator=None):
    with pytest.raises(openmm.OpenMMException, match=message):
        create(system, integrator)


def test_constraints():
    system = network_system()
    system.addConstraint(1, 3, 0.15)
    system.addConstraint(0, 1, 0.15)
    refuses(
        r"it has 2 constraints \(the first between particles 1 and 3\).*constraints=None and rigidWater=False", system
    )


def test_virtual_sites():
    system = network_system()
    system.setParticleMass(2, 0.0)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.3, 0.7))
    refuses("particle 2 is a virtual site", system)


@pytest.mark.parametrize(
    "barostat",
    [
        openmm.MonteCarloBarostat(1.3, 300.0),
        openmm.MonteCarloAnisotropicBarostat(openmm.Vec3(1.3, 1.4, 1.5), 300.0),
        openmm.MonteCarloFlexibleBarostat(1.3, 300.0),
        openmm.MonteCarloMembraneBarostat(
            1.3, 2.1, 300.0, openmm.MonteCarloMembraneBarostat.XYIsotropic, openmm.MonteCarloMembraneBarostat.ZFixed
        ),
    ],
    ids=lambda barostat: barostat.getName(),
)
def test_barostats(barostat):
    periodic = openmm.PeriodicTorsionForce()
    periodic.setUsesPeriodicBoundaryConditions(True)
    refuses(
        f"its {barostat.getName()} changes the volume.*Remove the barostat",
        network_system(periodic, barostat),
    )


def test_thermostat():
    refuses(
        "its AndersenThermostat acts on velocities.*Remove it", network_system(openmm.AndersenThermostat(310.0, 2.0))
    )


def test_number_of_particles():
    system = network_system()
    system.addParticle(12.0)
    refuses(
        "distance_small.safetensors does not fit this System: the model moves 5 particles and the System has 6. "
        "Pass particles=",
        system,
    )
    refuses("4 particles were named, but the model moves 5", system, network_integrator(particles=[0, 1, 2, 3]))
    refuses(r"particles\[4\] is 6, but the system has only 6", system, network_integrator(particles=[0, 1, 2, 3, 6]))
    refuses(r"particles\[4\] names particle 2 a second time", system, network_integrator(particles=[0, 1, 2, 3, 2]))
    for kind in (network_integrator, dm.DiffusionForce):
        with pytest.raises(ValueError, match=r"particles\[1\] is -1; expected an index in the System"):
            kind(NETWORK, particles=[0, -1, 2, 3, 4])
        with pytest.raises(ValueError, match="particles is empty; expected the indices .*, or None for all"):
            kind(NETWORK, particles=[])
    with pytest.raises(ValueError, match=r"particles\[0\] is -1"):
        dm.check_topology(NETWORK, dm.topology(NETWORK), particles=[-1, 0, 1, 2, 3])


def test_order_of_particles_by_their_masses():
    system = beads([14.007, 12.011, 12.011, 15.999, 12.011])
    refuses(
        r"distance_small.safetensors does not fit this System: particle 3 is CB \(carbon, 12.011 amu\) in the model "
        "and weighs 15.999 amu in the System. Reorder the System",
        system,
    )
    create(system, network_integrator(checkMasses=False))


def test_order_of_particles_by_their_elements():
    model = diffusim.Model(NETWORK)
    topology = dm.topology(model)
    dm.check_topology(NETWORK, topology)
    wrong = app.Topology()
    residue = wrong.addResidue("ALA", wrong.addChain())
    for atom in [list(topology.atoms())[i] for i in (0, 1, 2, 4, 3)]:
        wrong.addAtom(atom.name, atom.element, residue)
    message = (
        r"distance_small.safetensors does not fit this System: particle 3 is CB \(carbon\) in the model and O "
        r"\(oxygen\) in the System. Reorder the System, or pass particles=\[…\] to say which particles the model moves."
    )
    with pytest.raises(diffusim.DiffusimError, match=message):
        network_integrator(topology=wrong)
    dm.check_topology(model, wrong, particles=[0, 1, 2, 4, 3])


def test_temperature_away_from_that_of_the_training():
    integrator = network_integrator()
    integrator.setTemperature(410.0)
    with pytest.warns(UserWarning, match="the model was trained at 310 K and is simulated at 410 K: its energy"):
        create(network_system(), integrator)


def test_forces_that_do_nothing_or_too_much():
    with pytest.warns(UserWarning, match="CMMotionRemover acts on velocities and does nothing here"):
        context_with_remover = create(network_system(openmm.CMMotionRemover()))
    context_with_remover.setPositions(diffusim.Model(NETWORK).start_positions[0])
    context_with_remover.getIntegrator().step(3)
    assert context_with_remover.getStepCount() == 3

    nonbonded = openmm.NonbondedForce()
    for _ in range(5):
        nonbonded.addParticle(0.1, 0.3, 0.5)
    with pytest.warns(UserWarning, match="NonbondedForce, which acts on top of the learned score.*force field"):
        create(network_system(nonbonded))

    torsion = openmm.PeriodicTorsionForce()
    torsion.setUsesPeriodicBoundaryConditions(True)
    with pytest.warns(UserWarning, match="the System is periodic and the model is not.*enforcePeriodicBox=False"):
        create(network_system(torsion))


def test_bias_and_seed_are_logged_and_nothing_else_is_said(caplog):
    with caplog.at_level(logging.INFO, "diffusim.openmm"), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        create(network_system(openmm.CustomExternalForce("x^2"), openmm.RMSDForce(np.zeros((5, 3)))))
    assert not warned
    assert caplog.messages == [
        "noise seed 48291",
        "forces that act as a bias on top of the learned score: CustomExternalForce, RMSDForce",
    ]


def test_arguments_in_the_order_of_other_integrators():
    """A line of LangevinMiddleIntegrator with the name changed, and the model forgotten."""
    with pytest.raises(TypeError, match=r"model is .*300 K.*; expected a model file, its bytes, or a diffusim.Model"):
        dm.DiffusionIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtoseconds)
    with pytest.raises(TypeError, match=r"model is None; expected a model file"):
        dm.simulation(None)


def test_a_step_too_coarse_for_the_model():
    refuses(
        r"spring 450 /nm².* is too soft for distance_small.safetensors: its stiffest mode \(\d+ /nm².*\) needs more",
        network_system(),
        network_integrator(stepSize=None, spring=450.0),
    )
    simulation = network_simulation()
    spring = simulation.integrator.getSpring()
    with pytest.raises(openmm.OpenMMException, match="too soft"):
        simulation.integrator.setSpring(450.0)
    assert simulation.integrator.getSpring() == spring
    simulation.step(3)


@pytest.mark.parametrize("biased", [False, True])
def test_the_last_good_frame_is_kept(biased):
    """A model that does not state its curvature, at kappa tau = 3 along y and z: those double with every step."""
    system = beads([12.0, 31.0])
    if biased:
        force = openmm.CustomExternalForce("0.3*x^2")
        force.addParticle(0)
        system.addForce(force)
    model = analytic("double-well", 2, barrier=0.2, half_width=1.3, stiffness=37.0)
    integrator = dm.DiffusionIntegrator(model, TRAINED, 4.3, spring=37.0 / 6, seed=4)
    simulation = context(system, integrator, np.full((2, 3), 0.1))
    integrator.step(3)
    with pytest.raises(openmm.OpenMMException, match="The last good frame") as error:
        integrator.step(10_000)
    step = int(re.search(r"last good frame \(step (\d+)\)", str(error.value)).group(1))
    assert simulation.getStepCount() == step
    time = simulation.getTime().value_in_unit(unit.picosecond)
    assert time == pytest.approx(step * integrator.getStepSize().value_in_unit(unit.picosecond))
    positions = positions_of(simulation)
    assert np.isfinite(positions).all()
    scores, _ = model.evaluate(positions[None])
    assert np.isfinite(scores).all()


def test_positions():
    simulation = app.Simulation(
        dm.topology(NETWORK), network_system(), network_integrator(), openmm.Platform.getPlatform("Reference")
    )
    with pytest.raises(openmm.OpenMMException, match="Particle positions have not been set"):
        simulation.step(1)
    with pytest.raises(openmm.OpenMMException, match="Particle positions have not been set"):
        simulation.integrator.getModelEnergy()
    positions = diffusim.Model(NETWORK).start_positions[0]
    positions[3, 1] = np.nan
    simulation.context.setPositions(positions)
    with pytest.raises(openmm.OpenMMException, match="position of particle 3 .* is NaN; expected finite numbers"):
        simulation.step(1)
    simulation.context.setPositions(diffusim.Model(NETWORK).start_positions[0])
    simulation.step(1)


def test_one_context_only():
    integrator = network_integrator()
    with pytest.raises(openmm.OpenMMException, match="not bound to a context"):
        integrator.step(1)
    first = create(network_system(), integrator)
    refuses("already bound to a context", network_system(), integrator)
    del first


def test_an_integrator_is_still_good_after_a_system_that_did_not_fit():
    integrator = network_integrator()
    refuses("does not fit", beads([12.0, 12.0]), integrator)
    simulation = context(network_system(), integrator, diffusim.Model(NETWORK).start_positions[0])
    integrator.step(5)
    assert simulation.getStepCount() == 5


def test_arguments():
    with pytest.raises(ValueError, match="give one of them"):
        network_integrator(spring=3e4)
    with pytest.raises(ValueError, match="stepSize is 0; expected a positive number"):
        network_integrator(stepSize=0)
    with pytest.raises(ValueError, match="spring is -3 /.*; expected a positive number"):
        network_integrator(stepSize=None, spring=-3 / unit.nanometer**2)
    with pytest.raises(openmm.OpenMMException, match="temperature is -5 K and the friction 7.3 /ps; expected positive"):
        dm.DiffusionIntegrator(NETWORK, -5 * unit.kelvin, 7.3, 0.005)
    with pytest.raises(openmm.OpenMMException, match="adapter 'rk4' is not known; expected 'leimkuhler-ma"):
        network_integrator(adapter="rk4")
    with pytest.raises(openmm.OpenMMException, match="seed is -3; expected a positive number, or 0"):
        network_integrator(seed=-3)
    with pytest.raises(openmm.OpenMMException, match=f"seed is {2**63}; .* the largest is {2**63 - 1}"):
        network_integrator(seed=2**63)
    with pytest.raises(openmm.OpenMMException, match=f"seed is {2**63}; .* the largest is {2**63 - 1}"):
        network_integrator().setRandomNumberSeed(2**63)
    assert network_integrator(seed=2**63 - 1).getRandomNumberSeed() == 2**63 - 1
    with pytest.raises(TypeError, match="adapter is None; expected 'euler-maruyama' or 'leimkuhler-matthews'"):
        network_integrator(adapter=None)
    with pytest.raises(openmm.OpenMMException, match="temperature is 0 K"):
        network_integrator().setTemperature(0)
    with pytest.raises(openmm.OpenMMException, match="not known before there is a Context.*masses"):
        dm.DiffusionIntegrator(analytic("free", 3), TRAINED, 4.3, 0.01).getSpring()
    with pytest.raises(openmm.OpenMMException, match="recommends no step"):
        create(beads([12.0] * 3), dm.DiffusionIntegrator(analytic("free", 3), TRAINED, 4.3))


def test_models(tmp_path):
    with pytest.raises(openmm.OpenMMException, match="cannot read model file .*missing.safetensors"):
        network_integrator(tmp_path / "missing.safetensors")
    with pytest.raises(openmm.OpenMMException, match="not a readable safetensors file"):
        network_integrator(NETWORK.read_bytes()[:500])
    with pytest.raises(ValueError, match="is a Python function, which a System cannot hold"):
        network_integrator(diffusim.Model.from_callable(3, lambda x: -x, 300.0))
    with pytest.raises(diffusim.DiffusimError, match="frame is 6, but distance_small.safetensors has 6 start frames"):
        dm.simulation(NETWORK, frame=6)
    with pytest.raises(diffusim.DiffusimError, match="harmonic does not say what its particles are"):
        dm.system(analytic("harmonic", 3, stiffness=37.0))


def test_damaged_xml():
    xml = openmm.XmlSerializer.serialize(network_integrator())
    with pytest.raises(openmm.OpenMMException, match="embedded in the XML is damaged: character 8 is not base64"):
        openmm.XmlSerializer.deserialize(re.sub(r'file="(.{8}).', r'file="\1*', xml))
    with pytest.raises(openmm.OpenMMException, match="was written by another diffusim: version 2"):
        openmm.XmlSerializer.deserialize(xml.replace('version="1"', 'version="2"'))


def test_checkpoint_of_another_integrator():
    system, positions = network_system(), diffusim.Model(NETWORK).start_positions[0]
    other = context(system, openmm.VerletIntegrator(0.001), positions)
    ours = context(system, network_integrator(), positions)
    with pytest.raises(openmm.OpenMMException, match="was not written with a DiffusionIntegrator"):
        ours.loadCheckpoint(other.createCheckpoint())


def test_another_version_of_openmm():
    """A fresh interpreter, in which OpenMM says that it is 8.5.2, is refused before the library is loaded."""
    code = "import openmm.version as v; v.short_version = '8.5.2'; import diffusim.openmm"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert f"was built for OpenMM {dm.BUILT_FOR} and found OpenMM 8.5.2" in last and "pip install openmm==" in last
