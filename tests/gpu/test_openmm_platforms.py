"""OpenMM's platforms of GPUs, in every precision: the Context's order of atoms, cells, rounding and fixed point.

CUDA needs a GPU and the wheel OpenMM-CUDA-12 or -13. OpenCL runs the same kernels and needs none where pocl is
installed (Debian: pocl-opencl-icd).
"""

import contextlib
import ctypes
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

openmm = pytest.importorskip("openmm")
dm = pytest.importorskip("diffusim.openmm", exc_type=ImportError)
sys.path.insert(0, str(Path(__file__).parents[1] / "openmm"))

from openmm import unit  # noqa: E402

import diffusim  # noqa: E402
from systems import NETWORK, TRAINED, analytic, beads, network_integrator, positions_of  # noqa: E402

PERIODIC = NETWORK.parent / "message_passing_periodic.safetensors"
PRECISIONS = ("single", "mixed", "double")
ROUNDING = {"single": 2.0**-23, "mixed": 2.0**-46, "double": 0.0}  # of a coordinate below 4 nm
UNDER_FORCES = {"single": 2e-6, "mixed": 2e-6, "double": 2e-8}  # nm: forces are rounded, and a network is in float32


def platform_named(name: str) -> openmm.Platform:
    """Skips where it is not, or has nothing to run on."""
    names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if name not in names:
        pytest.skip(f"OpenMM has no platform {name} here {openmm.Platform.getPluginLoadFailures()}")
    platform = openmm.Platform.getPlatform(name)
    try:
        openmm.Context(beads([2.0]), openmm.VerletIntegrator(0.002), platform)
    except openmm.OpenMMException as reason:
        pytest.skip(f"OpenMM's platform {name} does not run here: {reason}")
    return platform


@pytest.fixture(scope="module", params=["OpenCL", "CUDA"])
def gpu(request) -> openmm.Platform:
    return platform_named(request.param)


@pytest.fixture(params=PRECISIONS)
def precision(request) -> str:
    return request.param


def molecules(copies=3) -> tuple[openmm.System, np.ndarray]:
    """Copies of the network's five particles, at positions that every precision holds."""
    model = diffusim.Model(NETWORK)
    frames = model.start_positions[np.arange(copies) % len(model.start_positions)]
    return dm.system(model, copies), frames.reshape(-1, 3).astype(np.float32).astype(float)


def on(platform: openmm.Platform | None, precision, system, integrator, positions, **properties) -> openmm.Context:
    """A Context there, or on Reference."""
    if platform is None:
        context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    else:
        context = openmm.Context(system, integrator, platform, {"Precision": precision} | properties)
    context.setPositions(positions)
    return context


def both(gpu, precision, system, integrator, positions) -> list[openmm.Context]:
    """Contexts on Reference and on the GPU; `integrator` makes one."""
    return [on(platform, precision, system, integrator(), positions) for platform in (None, gpu)]


def velocities_of(context) -> np.ndarray:
    state = context.getState(velocities=True)
    return state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)


def integrator_of(context) -> dm.DiffusionIntegrator:
    return dm.cast(context.getIntegrator())


def largest_difference(contexts, what=positions_of) -> float:
    one, other = map(what, contexts)
    return np.abs(one - other).max()


@pytest.mark.parametrize("adapter", ["leimkuhler-matthews", "euler-maruyama", "heun", "mala", "langevin"])
def test_the_trajectory_is_that_of_reference(gpu, precision, adapter):
    """However the calls are cut, and what a Context shows is its rounding."""
    system, positions = molecules()
    contexts = both(gpu, precision, system, lambda: network_integrator(copies=3, adapter=adapter), positions)
    for context, cuts in zip(contexts, [(60,), (1, 0, 18, 1, 20, 20)], strict=True):
        for n_steps in cuts:
            context.getIntegrator().step(n_steps)
    assert largest_difference(contexts) <= ROUNDING[precision]
    assert contexts[1].getStepCount() == 60
    assert contexts[1].getTime()._value == pytest.approx(contexts[0].getTime()._value, rel=1e-12)
    rounding = 1e-6 if precision == "single" else 1e-12
    if adapter == "langevin":
        assert largest_difference(contexts, velocities_of) < rounding
    energies = [integrator_of(c).getModelEnergy()._value for c in contexts]
    assert energies[1] == pytest.approx(energies[0], abs=1e4 * rounding)
    states = [c.getState(energy=True, forces=True) for c in contexts]
    assert states[1].getPotentialEnergy()._value == pytest.approx(energies[1], rel=1e-9)
    assert states[1].getKineticEnergy()._value == pytest.approx(states[0].getKineticEnergy()._value, rel=10 * rounding)
    assert np.allclose(*(s.getForces(asNumpy=True)._value for s in states), atol=1e6 * rounding + 1e-4)


@pytest.mark.parametrize("adapter", ["leimkuhler-matthews", "langevin"])
def test_forces_of_the_platform_act_as_a_bias(gpu, precision, adapter):
    """But not those of a group that is left out."""
    free, positions = molecules()
    biased, _ = molecules()
    bond, other = openmm.HarmonicBondForce(), openmm.CustomExternalForce("9000*x")
    for i in range(0, free.getNumParticles(), 5):
        bond.addBond(i, i + 1, 0.17, 4310.0)
    other.addParticle(0)
    other.setForceGroup(7)
    biased.addForce(bond)
    biased.addForce(other)

    def integrator():
        made = network_integrator(copies=3, adapter=adapter)
        made.setIntegrationForceGroups({0})
        return made

    contexts = both(gpu, precision, biased, integrator, positions)
    contexts.append(on(gpu, precision, free, integrator(), positions))
    for context in contexts:
        context.getIntegrator().step(7)
        context.getIntegrator().step(13)
    assert largest_difference(contexts[:2]) < UNDER_FORCES[precision]
    assert largest_difference(contexts[1:]) > 1e-4


def test_atoms_in_another_order_and_in_other_cells(gpu, precision):
    """A Context with a cutoff reorders its atoms and wraps them; the core knows nothing of it."""
    n = 150
    rng = np.random.default_rng(41)
    start = (rng.uniform(-4.0, 4.0, (n, 1, 3)) + rng.normal(0, 0.2, (n, 2, 3))).reshape(-1, 3)
    start = start.astype(np.float32).astype(float)
    system = beads([7.0, 19.0] * n)
    system.setDefaultPeriodicBoxVectors((2.3, 0, 0), (0.3, 2.4, 0), (-0.2, 0.4, 2.5))
    force = openmm.CustomNonbondedForce("57*(1-r/0.7)^2")
    force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(0.7)
    for _ in range(2 * n):
        force.addParticle()
    system.addForce(force)

    def integrator():
        model = analytic("harmonic", 2, stiffness=0.017)
        return dm.DiffusionIntegrator(model, TRAINED, 7.3, 0.0021, copies=n, seed=977)

    with pytest.warns(UserWarning, match="the System is periodic and the model is not"):
        contexts = both(gpu, precision, system, integrator, start)
    for context in contexts:
        for n_steps in (240, 30, 260):
            context.getIntegrator().step(n_steps)
    assert np.abs(positions_of(contexts[1]) - start).max() > 0.3
    assert largest_difference(contexts) < {"single": 2e-4, "mixed": 2e-4, "double": 1e-9}[precision]


def test_a_mass_of_zero_freezes(gpu, precision):
    system, positions = molecules()
    for copy in range(3):
        system.setParticleMass(5 * copy + 4, 0.0)
    contexts = both(
        gpu, precision, system, lambda: network_integrator(copies=3, checkMasses=False, adapter="langevin"), positions
    )
    for context in contexts:
        context.getIntegrator().step(30)
    assert largest_difference(contexts) <= ROUNDING[precision]
    assert (positions_of(contexts[1])[4::5] == positions[4::5]).all()


def test_what_others_move_is_where_the_next_step_starts(gpu, precision):
    """The user, another integrator of a CompoundIntegrator, and a thermostat of velocities."""
    system, positions = molecules()
    system.addForce(openmm.CMMotionRemover(1))

    def integrator():
        compound = openmm.CompoundIntegrator()
        compound.addIntegrator(network_integrator(copies=3, adapter="langevin"))
        compound.addIntegrator(openmm.VerletIntegrator(0.0004))
        return compound

    contexts = both(gpu, precision, system, integrator, positions)
    moved = (1.01 * positions).astype(np.float32).astype(float)
    for context in contexts:
        compound = context.getIntegrator()
        compound.step(10)
        compound.setCurrentIntegrator(1)
        compound.step(3)
        compound.setCurrentIntegrator(0)
        compound.step(4)
        context.setPositions(moved)
        context.setVelocities((0.5 * velocities_of(context)).astype(np.float32).astype(float))
        compound.step(11)
    tolerance = 1e-5 if precision != "double" else 1e-7
    assert largest_difference(contexts) < tolerance
    assert largest_difference(contexts, velocities_of) < 100 * tolerance


def test_two_contexts_at_once_move_as_each_alone(gpu, precision):
    system, positions = molecules()
    together = [on(gpu, precision, system, network_integrator(copies=3, seed=seed), positions) for seed in (5, 6)]
    for _ in range(4):
        for context in together:
            context.getIntegrator().step(6)
    for seed, context in zip((5, 6), together, strict=True):
        alone = on(gpu, precision, system, network_integrator(copies=3, seed=seed), positions)
        alone.getIntegrator().step(24)
        assert (positions_of(alone) == positions_of(context)).all()


@pytest.mark.parametrize("adapter", ["leimkuhler-matthews", "langevin"])
def test_checkpoints_continue_bit_for_bit(gpu, precision, adapter):
    """Also what the Context rounds away."""
    system, positions = molecules()
    context = on(gpu, precision, system, network_integrator(copies=3, adapter=adapter), positions)
    context.getIntegrator().step(23)
    checkpoint = context.createCheckpoint()
    context.getIntegrator().step(40)
    expected = positions_of(context)
    other = on(gpu, precision, system, network_integrator(copies=3, adapter=adapter, seed=3), positions)
    for continued in (context, other):
        continued.loadCheckpoint(checkpoint)
        continued.getIntegrator().step(40)
        assert (positions_of(continued) == expected).all()
        assert continued.getStepCount() == 63
    other.loadCheckpoint(checkpoint)
    other.setPositions(positions)  # what is set after it holds
    other.getIntegrator().step(0)
    assert np.abs(positions_of(other) - positions).max() <= ROUNDING[precision]
    with pytest.raises(openmm.OpenMMException):
        other.loadCheckpoint(checkpoint[:-20])


def test_a_learned_force_under_another_integrator(gpu, precision):
    system, positions = molecules()
    system.addForce(dm.DiffusionForce(NETWORK, copies=3))
    contexts = both(gpu, precision, system, lambda: openmm.VerletIntegrator(0.0004), positions)
    for context in contexts:
        context.getIntegrator().step(20)
    assert largest_difference(contexts) < {"single": 1e-5, "mixed": 1e-6, "double": 1e-7}[precision]
    one, other = (c.getState(energy=True, forces=True) for c in contexts)
    assert other.getPotentialEnergy()._value == pytest.approx(one.getPotentialEnergy()._value, abs=1e-2)


def energy_and_forces(context) -> tuple[float, np.ndarray]:
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def test_a_learned_force_adds_to_the_others(gpu, precision):
    """Its energy is that of Reference, its forces but for the platform's fixed point, and what a State rounds."""
    system, positions = molecules()
    force = dm.DiffusionForce(NETWORK, copies=3)
    force.setForceGroup(3)
    system.addForce(force)
    contexts = both(gpu, precision, system, lambda: openmm.VerletIntegrator(0.0004), positions)
    alone = [energy_and_forces(context) for context in contexts]
    assert alone[1][0] == pytest.approx(alone[0][0], rel=1e-14)
    rounding = 2.0**-31 if precision == "double" else 1e-7 * np.abs(alone[0][1]).max()
    assert np.abs(alone[1][1] - alone[0][1]).max() <= rounding
    bond = openmm.HarmonicBondForce()
    bond.addBond(0, 6, 0.37, 4310.0)
    system.addForce(bond)
    other = on(gpu, precision, system, openmm.VerletIntegrator(0.0004), positions)
    by_bond = other.getState(forces=True, groups={0}).getForces(asNumpy=True)._value
    assert np.abs(by_bond).max() > 10
    together = other.getState(forces=True).getForces(asNumpy=True)._value
    assert np.abs(together - by_bond - alone[1][1]).max() <= 20 * rounding


def test_a_learned_force_in_a_periodic_box(gpu, precision):
    """Of atoms that the Context reorders and wraps, whose lists of neighbours are built anew, and in another box."""
    model = diffusim.Model(PERIODIC)
    system, start = dm.system(model), model.start_positions[0].astype(np.float32).astype(float)
    system.addForce(dm.DiffusionForce(PERIODIC))
    other = openmm.CustomNonbondedForce("0.31*(1-r/0.5)^2")
    other.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    other.setCutoffDistance(0.5)
    for _ in range(model.n_particles):
        other.addParticle()
    system.addForce(other)
    contexts = both(gpu, precision, system, lambda: openmm.VerletIntegrator(0.0004), start)
    for context in contexts:
        context.setVelocitiesToTemperature(300.0, 5)
    moved = start + 0.04 * np.sin(np.arange(start.size)).reshape(start.shape)
    for box, positions in ((model.start_cell, moved), (1.03 * model.start_cell, 1.03 * moved)):
        for context in contexts:
            context.setPeriodicBoxVectors(*box)
            context.setPositions(positions.astype(np.float32).astype(float))
            context.getIntegrator().step(10)
        (energy, forces), (other_energy, other_forces) = map(energy_and_forces, contexts)
        assert other_energy == pytest.approx(energy, abs=1e-2)
        assert np.abs(other_forces - forces).max() < 1e-3 * np.abs(forces).max()
        assert largest_difference(contexts) < 1e-5


def blend(lambda_: float) -> diffusim.Model:
    """Of the network at two noise levels."""
    return diffusim.Model.blend(diffusim.Model(NETWORK), diffusim.Model(NETWORK, noise_level=0.005), lambda_)


def test_lambda_of_a_blend_is_followed(gpu, precision):
    """By the integrator, and by the learned energy."""
    system, positions = molecules(1)
    system.addForce(dm.DiffusionForce(blend(0.2)))
    contexts = both(gpu, precision, system, lambda: network_integrator(blend(0.2)), positions)
    for context in contexts:
        for lambda_ in (0.7, 0.0, 0.4):
            context.getIntegrator().step(5)
            context.setParameter("diffusim_lambda", lambda_)
            context.getIntegrator().step(5)
    assert largest_difference(contexts) <= ROUNDING[precision]
    for context in contexts:
        context.setPositions(positions)
    energies = []
    for lambda_ in (0.0, 0.7, 1.0):
        for context in contexts:
            context.setParameter("diffusim_lambda", lambda_)
        energies.append([energy_and_forces(context)[0] for context in contexts])
        assert energies[-1][1] == pytest.approx(energies[-1][0], rel=1e-14)
    assert len(set(np.round(np.array(energies)[:, 0], 3))) == 3


def test_a_learned_force_that_has_no_kernel(gpu):
    """It is computed on the CPU, where one has to be told."""
    system, positions = molecules(1)
    system.addForce(dm.DiffusionForce(diffusim.Model.blend(blend(0.2), diffusim.Model(NETWORK), 0.7)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        contexts = both(gpu, "double", system, lambda: openmm.VerletIntegrator(0.0004), positions)
        energies = [energy_and_forces(context)[0] for context in contexts]
    assert energies[1] == pytest.approx(energies[0], rel=1e-14)
    told = [str(w.message) for w in caught if "the learned energy is computed on the CPU" in str(w.message)]
    assert all("no kernel for blends of blends" in sentence for sentence in told)
    assert len(told) == 1 or gpu.getName() != "CUDA"


@pytest.mark.parametrize("biased", [False, True])
def test_a_runaway_leaves_the_last_good_frame(gpu, precision, biased):
    system = beads([12.0, 31.0] * 3)
    if biased:
        force = openmm.CustomExternalForce("0.3*x^2")
        force.addParticle(0)
        system.addForce(force)
    model = analytic("double-well", 2, barrier=0.2, half_width=1.3, stiffness=37.0)
    positions = np.full((6, 3), 0.125)

    def integrator():
        return dm.DiffusionIntegrator(model, TRAINED, 4.3, spring=37.0 / 6, seed=4, copies=3)

    messages = []
    contexts = both(gpu, precision, system, integrator, positions)
    for context in contexts:
        made = integrator_of(context)
        made.step(3)
        with pytest.raises(openmm.OpenMMException, match="The last good frame") as caught:
            made.step(10_000)
        messages.append(str(caught.value))
        assert "copy r of the molecule" in messages[-1]
        assert made.getLastStatus() == diffusim.Status.NOT_FINITE
        assert context.getStepCount() == int(re.search(r"last good frame \(step (\d+)\)", messages[-1])[1])
        size = made.getStepSize()._value
        assert context.getTime()._value == pytest.approx(size * context.getStepCount())
        assert np.isfinite(positions_of(context)).all()
    assert re.search(r"at step \d+", messages[0])[0] == re.search(r"at step \d+", messages[1])[0]
    context.setPositions(positions)
    made.step(3)  # it goes on
    assert np.abs(positions_of(context) - positions).max() > 0


@pytest.mark.parametrize("changes", ["lambda", "box"])
def test_the_context_goes_back_with_the_core(gpu, precision, changes):
    """Also where it is a change of λ or of the box, by a Force, that waits for the steps which failed."""
    if changes == "lambda":
        model = blend(0.2)
        system, positions = molecules(1)
        system.addForce(dm.DiffusionForce(model))
    else:
        model = diffusim.Model(PERIODIC)
        system, positions = dm.system(model), model.start_positions[0].astype(np.float32).astype(float)
    contexts = []

    def compute(state):
        forces = np.zeros_like(positions)
        if state.getStepCount() == 2:
            forces[1] = 1e9
        if state.getStepCount() == 4 and changes == "lambda":
            with contextlib.suppress(openmm.OpenMMException):  # the next steps begin anew
                contexts[-1].setParameter("diffusim_lambda", 0.7)
        elif state.getStepCount() == 4:
            contexts[-1].setPeriodicBoxVectors(*(1.01 * vector for vector in system.getDefaultPeriodicBoxVectors()))
        return 0.0, forces

    system.addForce(openmm.PythonForce(compute))
    for platform in (None, gpu):
        integrator = dm.DiffusionIntegrator(model, model.training_temperature, 7.3, stepSize=1e-4, seed=4)
        contexts.append(on(platform, precision, system, integrator, positions))
        with pytest.raises(openmm.OpenMMException, match="The last good frame") as caught:
            integrator.step(10)
        reached = int(re.search(r"last good frame \(step (\d+)\)", str(caught.value))[1])
        assert contexts[-1].getStepCount() == reached <= 2
    if reached == 0:  # before all that were enqueued
        assert np.abs(positions_of(contexts[1]) - positions).max() <= ROUNDING[precision]
    contexts.clear()  # which the Force holds


# ---- CUDA alone, with a GPU


@pytest.fixture(scope="module")
def cuda() -> openmm.Platform:
    return platform_named("CUDA")


@pytest.fixture(scope="module")
def driver(cuda) -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def test_what_is_current_stays_current(cuda, driver):
    """The CUDA context of the thread, and with it the default stream."""

    def current() -> int | None:
        context = ctypes.c_void_p()
        assert driver.cuCtxGetCurrent(ctypes.byref(context)) == 0
        return context.value

    system, positions = molecules()
    before = current()
    context = on(cuda, "mixed", system, network_integrator(copies=3), positions)
    assert current() == before
    context.getIntegrator().step(5)
    context.getState(energy=True)
    assert current() == before
    del context
    assert current() == before


def test_the_core_is_on_the_gpu_of_the_platform(cuda, driver):
    """DeviceIndex names it, and so may device=."""
    count = ctypes.c_int()
    assert driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    system, positions = molecules()
    ends = []
    for index in range(count.value):
        for device in ("auto", "cuda", f"cuda:{index}", "cpu"):
            integrator = network_integrator(copies=3, device=device)
            context = on(cuda, "double", system, integrator, positions, DeviceIndex=str(index))
            integrator.step(20)
            ends.append(positions_of(context))
    assert all((end == ends[0]).all() for end in ends)


def test_memory_comes_back(cuda, driver):
    def free() -> int:
        bytes_free, total = ctypes.c_size_t(), ctypes.c_size_t()
        other = on(cuda, "single", beads([2.0]), openmm.VerletIntegrator(0.002), [[0, 0, 0]])
        context = ctypes.c_void_p()
        assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
        assert driver.cuCtxPushCurrent_v2(context) == 0
        assert driver.cuMemGetInfo_v2(ctypes.byref(bytes_free), ctypes.byref(total)) == 0
        assert driver.cuCtxPopCurrent_v2(ctypes.byref(context)) == 0
        assert driver.cuDevicePrimaryCtxRelease_v2(0) == 0
        del other
        return bytes_free.value

    system, positions = molecules(100)

    def once() -> None:
        context = on(cuda, "mixed", system, network_integrator(copies=100), positions)
        context.getIntegrator().step(2)
        context.getState(energy=True, forces=True)

    once()
    before = free()
    for _ in range(20):
        once()
    assert before - free() < 32 << 20


def test_a_model_without_a_kernel_is_computed_on_the_cpu(cuda):
    """By default with a warning; where the GPU was asked for it is an error."""
    nested = diffusim.Model.blend(blend(0.2), diffusim.Model(NETWORK), 0.3)
    with pytest.warns(UserWarning, match="the score is computed on the CPU"):
        simulation = dm.simulation(nested, 310.0, 7.3, 0.0052, seed=4, platform=cuda)
    reference = dm.simulation(nested, 310.0, 7.3, 0.0052, seed=4)
    for each in (simulation, reference):
        each.context.setPositions(molecules(1)[1])
        each.step(20)
    assert largest_difference([simulation.context, reference.context]) <= ROUNDING["single"]
    with pytest.raises(openmm.OpenMMException, match="has no kernel for"):
        dm.simulation(nested, 310.0, 7.3, 0.0052, device="cuda", platform=cuda)
