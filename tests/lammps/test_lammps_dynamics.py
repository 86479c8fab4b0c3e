"""fix diffusim: the closed forms of theory (2), (5), (6) and (10) in several units, and the trajectory of the core."""

import math

import lammps_runs as lr
import numpy as np
import pytest

import diffusim
from diffusim.lammps import write_data

SIGMAS = 4.5  # a right program fails one of these tests in a hundred thousand
TEMPERATURE, FRICTION = 345.0, 6.1  # K, 1/ps


def tau(mass, time_step, friction=FRICTION):
    """Effective step in nm^2 of a friction rate (1/ps), at the training temperature."""
    return lr.BOLTZMANN * lr.TRAINED / (mass * friction) * time_step


@pytest.mark.parametrize("units", ["real", "metal", "lj"])
@pytest.mark.parametrize("adapter", ["em", "lm"])
def test_harmonic_variance(tmp_path, units, adapter):
    """(T/T0)/kappa, under Euler-Maruyama divided by 1 - kappa tau/2 (theory 2, 5, 10); the reported temperature."""
    stiffness, n_molecules, n_frames, interval = 37.0, 500, 40, 12
    time_step = 0.6 / stiffness / tau(lr.MASSES[0], 1.0)  # ps
    lr.analytic(tmp_path / "m.safetensors", "harmonic", 3, stiffness=stiffness)
    lr.write_beads(tmp_path / "beads.data", np.zeros((n_molecules, 3, 3)), lr.MASSES, units)
    output = lr.run(
        tmp_path,
        lr.header("beads.data", units, "f f f")
        + f"""
timestep {time_step / lr.TIME[units]}
fix 1 all diffusim {TEMPERATURE / lr.KELVIN.get(units, 1)} 4711 model m.safetensors &
    friction {FRICTION * lr.TIME[units]} adapter {adapter} {lr.SCALE.get(units, "")}
run {14 * interval}
{lr.dump(interval)}thermo_style custom step f_1[2] f_1 f_1[5] f_1[6]
thermo_modify norm no
thermo {interval}
run {(n_frames - 1) * interval}
""",
    )
    positions = lr.frames(tmp_path) * lr.UNITS[units][0]
    assert positions.shape == (n_frames, 3 * n_molecules, 3)
    for i, mass in enumerate(lr.MASSES):
        decay = stiffness * tau(mass, time_step)
        expected = TEMPERATURE / lr.TRAINED / stiffness / (1 - decay / 2 if adapter == "em" else 1)
        error = lr.standard_error_of_variance(3 * n_molecules, n_frames, (1 - decay) ** interval)
        found = (positions[:, i::3] ** 2).mean()
        assert abs(found / expected - 1) < SIGMAS * error, (mass, found, expected, error)

    table = lr.thermo(output)
    if adapter == "lm":
        slowest = (1 - stiffness * tau(lr.MASSES[-1], time_step)) ** interval
        error = lr.standard_error_of_variance(9 * n_molecules, n_frames, slowest)
        assert abs(table[:, 1].mean() * lr.KELVIN.get(units, 1) / TEMPERATURE - 1) < SIGMAS * error
    energy = 0.5 * stiffness * (positions**2).sum(axis=(1, 2)) * lr.BOLTZMANN * lr.TRAINED / lr.ENERGY[units]
    assert table[:, 2] == pytest.approx(energy, rel=1e-6)
    spring = 0.5 / tau(lr.MASSES[0], time_step) * lr.UNITS[units][0] ** 2
    assert table[0, 3:] == pytest.approx([spring, time_step / lr.TIME[units]], rel=1e-6)


@pytest.mark.parametrize(
    ("units", "mobility"),
    [("real", "friction"), ("metal", "drag"), ("nano", "diffusion"), ("lj", "drag"), ("lj", "diffusion")],
)
def test_msd_is_six_d_t(tmp_path, units, mobility):
    """<|x(t) - x(0)|^2> = 6 D t with D = kT/(m gamma), kT/zeta, or as it is given."""
    n_molecules, n_steps, time_step = 800, 60, 0.013  # ps
    length, mass = lr.UNITS[units]
    time = lr.TIME[units]
    value, in_units, coefficients = {
        "friction": (FRICTION, time, [lr.BOLTZMANN * TEMPERATURE / (m * FRICTION) for m in lr.MASSES]),
        "drag": (88.0, time / mass, [lr.BOLTZMANN * TEMPERATURE / 88.0] * 3),
        "diffusion": (0.034, time / length**2, [0.034] * 3),
    }[mobility]
    start = np.random.default_rng(3).normal(size=(n_molecules, 3, 3))
    lr.analytic(tmp_path / "m.safetensors", "free", 3)
    lr.write_beads(tmp_path / "beads.data", start, lr.MASSES, units)
    lr.run(
        tmp_path,
        lr.header("beads.data", units, "p p p")
        + f"""
timestep {time_step / time}
fix 1 all diffusim {TEMPERATURE / lr.KELVIN.get(units, 1)} 12 model m.safetensors &
    {mobility} {value * in_units} adapter em {lr.SCALE.get(units, "")}
{lr.dump(n_steps, columns="xu yu zu")}run {n_steps}
""",
    )
    moved = (lr.frames(tmp_path)[-1] * length - start.reshape(-1, 3)) ** 2
    for found, coefficient in zip(moved.sum(axis=1).reshape(-1, 3).mean(axis=0), coefficients, strict=True):
        expected = 6 * coefficient * n_steps * time_step
        assert found == pytest.approx(expected, rel=SIGMAS * math.sqrt(2 / (3 * n_molecules)))


@pytest.mark.parametrize("units", ["real", "metal", "lj"])
def test_forces_bias_the_learned_density(tmp_path, units):
    """exp(-(U + V)/kT) with the learned U = kT0 kappa x^2/2 and LAMMPS's V = k x^2/2 (theory 6)."""
    stiffness, bias, n_molecules, n_frames, interval = 37.0, 130.0, 400, 40, 12  # 1/nm^2, kJ/(mol nm^2)
    curvature = stiffness + bias / (lr.BOLTZMANN * lr.TRAINED)
    time_step = 0.5 / curvature / tau(lr.MASSES[0], 1.0)
    length = lr.UNITS[units][0]
    lr.analytic(tmp_path / "m.safetensors", "harmonic", 3, stiffness=stiffness)
    lr.write_beads(tmp_path / "beads.data", np.zeros((n_molecules, 3, 3)), lr.MASSES, units)
    output = lr.run(
        tmp_path,
        lr.header("beads.data", units, "f f f")
        + f"""
timestep {time_step / lr.TIME[units]}
fix 1 all diffusim {TEMPERATURE / lr.KELVIN.get(units, 1)} 13 model m.safetensors &
    friction {FRICTION * lr.TIME[units]} {lr.SCALE.get(units, "")}
fix tether all spring/self {bias * length**2 / lr.ENERGY[units]}
run {14 * interval}
{lr.dump(interval)}run {(n_frames - 1) * interval}
""",
    )
    assert "bias: fix tether (spring/self)" in output
    positions = lr.frames(tmp_path) * length
    for i, mass in enumerate(lr.MASSES):
        decay = curvature * tau(mass, time_step)
        error = lr.standard_error_of_variance(3 * n_molecules, n_frames, (1 - decay) ** interval)
        found = (positions[:, i::3] ** 2).mean()
        assert abs(found * curvature * lr.TRAINED / TEMPERATURE - 1) < SIGMAS * error, mass


@pytest.mark.parametrize("units", ["real", "metal", "si", "nano", "electron"])
def test_same_seed_same_trajectory_as_the_core(tmp_path, units):
    """Bit for bit, for one molecule and for copies of it."""
    model = diffusim.Model(lr.NETWORK)
    (length, mass), time, time_step = lr.UNITS[units], lr.TIME[units], 0.0043
    friction, dt = 7.3 * time, time_step / time
    for n_molecules in (1, 3):
        elements = write_data(tmp_path / "net.data", model, units, n_molecules)
        lr.run(
            tmp_path,
            lr.header("net.data", units)
            + f"""
timestep {dt!r}
fix 1 all diffusim 331.0 48291 model {lr.NETWORK} friction {friction!r} types {" ".join(elements)}
{lr.dump(70)}run 210
""",
        )
        core = diffusim.Simulation(
            model,
            331.0,
            time_step=dt * time,
            friction_rate=friction * (1 / time),
            masses=model.masses / mass * mass,  # rounded as in the data file
            seed=48291,
            n_replicas=n_molecules,
        )
        for frame in lr.frames(tmp_path):
            assert np.array_equal(frame, (core.positions / length).reshape(-1, 3))
            core.step(70)


def test_bias_is_that_of_the_core(tmp_path):
    """A constant force is the core's biased step, bit for bit; a force of zero is no bias."""
    model = diffusim.Model(lr.NETWORK)
    write_data(tmp_path / "net.data", model)
    script = lr.header("net.data") + f"fix 1 all diffusim 331.0 5 model {lr.NETWORK} spring 40\n"
    lr.run(tmp_path, script + lr.dump(25, "none.dump") + "run 50\n")
    lr.run(tmp_path, script + "fix 2 all addforce 0 0 0\n" + lr.dump(25, "zero.dump") + "run 50\n")
    assert np.array_equal(lr.frames(tmp_path, "none.dump"), lr.frames(tmp_path, "zero.dump"))

    lr.run(tmp_path, script + "fix 2 all addforce 0.3 -0.2 0.7\n" + lr.dump(25, "force.dump") + "run 50\n")
    core = diffusim.Simulation(model, 331.0, spring=40 * (1 / (0.1 * 0.1)), masses=model.masses, seed=5)
    forces = np.broadcast_to(np.array([0.3, -0.2, 0.7]) * (4.184 / 0.1), (1, 5, 3))
    for frame in lr.frames(tmp_path, "force.dump"):
        assert np.array_equal(frame, core.positions[0] / 0.1)
        for _ in range(25):
            core.step_biased(forces)


def test_settings_change_between_runs(tmp_path):
    """`timestep`, a new temperature by hand, and a fix defined anew continue the noise, as the core does."""
    model = diffusim.Model(lr.NETWORK)
    write_data(tmp_path / "net.data", model)
    define = f"fix 1 all diffusim {{}} 48291 model {lr.NETWORK} friction 0.0073\n"
    lr.run(
        tmp_path,
        lr.header("net.data")
        + "timestep 3.0\n"
        + define.format(331.0)
        + "run 40\ntimestep 4.0\nrun 40\n"
        + define.format(305.0)
        + "run 40\n"
        + lr.dump(40)
        + "run 0\n",
    )
    options = {"friction_rate": 0.0073 * (1 / 1e-3), "masses": model.masses, "seed": 48291}
    core = diffusim.Simulation(model, 331.0, time_step=3.0 * 1e-3, **options)
    core.step(40)
    core.reconfigure(time_step=4.0 * 1e-3)
    core.step(40)
    core.reconfigure(temperature=305.0)
    # the fix defined anew reads LAMMPS's positions, which are rounded
    core.positions = core.positions / 0.1 * 0.1
    core.step(40)
    assert np.array_equal(lr.frames(tmp_path)[-1], core.positions[0] / 0.1)


def test_moved_atoms_are_taken_over(tmp_path):
    model = diffusim.Model(lr.NETWORK)
    write_data(tmp_path / "net.data", model, "nano")
    lr.run(
        tmp_path,
        lr.header("net.data", "nano")
        + f"fix 1 all diffusim 331.0 7 model {lr.NETWORK} spring auto\nrun 20\n"
        + f"displace_atoms all move 0.25 -0.5 0.125\n{lr.dump(20)}run 20\n",
    )
    core = diffusim.Simulation(model, 331.0, masses=model.masses, seed=7)
    core.step(20)
    core.positions = core.positions[0] + [0.25, -0.5, 0.125]
    core.step(20)
    assert np.array_equal(lr.frames(tmp_path)[-1], core.positions[0])


def test_a_group_beside_other_atoms(tmp_path):
    """Only the group moves, its noise keyed by its atom IDs; another integrator moves the rest."""
    model = diffusim.Model(lr.NETWORK)
    write_data(tmp_path / "net.data", model, "nano", n_molecules=2)
    lr.run(
        tmp_path,
        lr.header("net.data", "nano")
        + f"""
group second molecule 2
group first molecule 1
fix 1 second diffusim 331.0 7 model {lr.NETWORK} spring auto
fix 2 first nve
{lr.dump(50)}run 50
""",
    )
    first, last = lr.frames(tmp_path)
    core = diffusim.Simulation(model, 331.0, masses=model.masses, seed=7, particle_ids=range(5, 10))
    core.positions = model.start_positions[1]
    core.step(50)
    assert np.array_equal(last[5:], core.positions[0])
    assert np.array_equal(last[:5], first[:5])


@pytest.mark.parametrize(("adapter", "name"), [("heun", "heun"), ("mala", "mala")])
def test_adapters_that_take_no_bias(tmp_path, adapter, name):
    """The core's trajectory, on 1 rank and with molecules shared out over 2; an error where a force acts."""
    model = diffusim.Model(lr.NETWORK)
    write_data(tmp_path / "net.data", model, "nano", n_molecules=3)
    script = lr.header("net.data", "nano") + (
        f"fix 1 all diffusim 331.0 7 model {lr.NETWORK} effective_step 1.7e-4 adapter {adapter}\n"
        f"thermo_style custom step f_1[8] f_1[4]\nthermo 60\n{lr.dump(60)}"
    )
    core = diffusim.Simulation(model, 331.0, effective_step=1.7e-4, seed=7, n_replicas=3, adapter=name)
    core.step(60)
    for n_ranks in (1, 2):
        row = lr.thermo(lr.run(tmp_path, script + "run 60\n", n_ranks))[-1]
        assert np.array_equal(lr.frames(tmp_path)[-1], core.positions.reshape(-1, 3))
        acceptance = core.statistics.acceptance or 0.0
        assert row[1:] == pytest.approx([acceptance, 60], rel=1e-6)
        assert (acceptance > 0) == (adapter == "mala") and acceptance < 1
    error = lr.error_of(tmp_path, script + "fix 2 all addforce 0.3 0 0\nrun 5\n")
    assert "needs the bias at both ends" in error


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_blend_of_two_models(tmp_path, n_ranks):
    """E = (1 - lambda) E_a + lambda E_b with lambda from a variable: the core's trajectory, energy and derivative."""
    n_molecules, n_steps = 3, 40
    ends = [lr.analytic(tmp_path / f"{k}.safetensors", "harmonic", 3, stiffness=k) for k in (37.0, 61.0)]
    start = 0.3 * np.random.default_rng(5).normal(size=(n_molecules, 3, 3))
    lr.write_beads(tmp_path / "beads.data", start, lr.MASSES, "nano")
    script = (
        lr.header("beads.data", "nano", "f f f")
        + f"""
variable lambda equal 0.2+0.01*step
fix 1 all diffusim 345.0 4711 model 37.0.safetensors effective_step 0.0021 blend 61.0.safetensors v_lambda
thermo_style custom step f_1 f_1[7]
thermo_modify norm no
thermo {n_steps // 2}
{lr.dump(n_steps // 2)}run {n_steps}
"""
    )
    core = diffusim.Simulation(
        diffusim.Model.blend(*ends, 0.2), 345.0, effective_step=0.0021, seed=4711, n_replicas=n_molecules
    )
    core.positions = start
    output = lr.run(tmp_path, script, n_ranks)
    unit = lr.BOLTZMANN * lr.TRAINED / lr.ENERGY["nano"]
    for frame, row in zip(lr.frames(tmp_path), lr.thermo(output), strict=True):
        assert np.array_equal(frame, core.positions.reshape(-1, 3))
        a, b = core.component_energies.T
        expected = unit * np.array([core.energies.sum(), (b - a).sum()])
        assert row[1:] == pytest.approx(expected, rel=1e-6)
        for _ in range(n_steps // 2):
            core.lambda_ = 0.2 + 0.01 * (core.step_count + 1)
            core.step(1)
    for change, words in [
        ("v_lambda", ["variable 'other'", "style equal"]),
        ("0.2+0.01*step", ["lambda is 1.", "expected 0"]),
    ]:
        other = script.replace(change, {"v_lambda": "v_other"}.get(change, "0.9+0.01*step"))
        error = lr.error_of(tmp_path, other, n_ranks)
        assert all(word in error for word in ["fix diffusim: ", *words]), error


@pytest.mark.parametrize(("units", "n_ranks", "given"), [("real", 1, False), ("metal", 2, True)])
def test_langevin_has_velocities(tmp_path, units, n_ranks, given):
    """The core's positions and velocities, bit for bit; LAMMPS's temperature is the kinetic one; restart files."""
    n_molecules, time_step, friction = 4, 0.017, 3.3  # ps, 1/ps
    length, time = lr.UNITS[units][0], lr.TIME[units]
    model = lr.analytic(tmp_path / "m.safetensors", "harmonic", 3, stiffness=37.0)
    start = 0.2 * np.random.default_rng(6).normal(size=(n_molecules, 3, 3))
    lr.write_beads(tmp_path / "beads.data", start, lr.MASSES, units)
    fix = f"fix 1 all diffusim 345.0 4711 model m.safetensors friction {friction * time!r} adapter langevin\n"
    script = (
        lr.header("beads.data", units, "f f f")
        + ("velocity all create 200 99 loop geom mom no\n" if given else "")
        + f"timestep {time_step / time!r}\n{fix}"
    )
    output = f"""
compute_modify thermo_temp extra/dof 0
thermo_style custom step temp
thermo 30
{lr.dump(30)}{lr.dump(30, "v.dump", "vx vy vz")}run 30
"""
    table = lr.thermo(lr.run(tmp_path, script + output + "write_restart half.restart\nrun 30\n", n_ranks))
    frames, velocities = lr.frames(tmp_path), lr.frames(tmp_path, "v.dump")
    core = diffusim.Simulation(
        model,
        345.0,
        time_step=time_step / time * time,
        friction_rate=friction * time * (1 / time),
        masses=lr.MASSES,
        seed=4711,
        n_replicas=n_molecules,
        adapter="langevin",
    )
    core.positions = (start / length) * length
    unit = length / time
    if given:
        core.velocities = (velocities[0] * unit).reshape(core.velocities.shape)
    for frame, v in zip(frames, velocities, strict=True):
        assert frame.reshape(start.shape) == pytest.approx(core.positions / length, rel=1e-12)
        assert v.reshape(start.shape) == pytest.approx(core.velocities / unit, rel=1e-12)
        core.step(30)
    assert np.abs(frames[-1] - frames[0]).max() > 0.05 / length
    masses = np.array(lr.MASSES * n_molecules)
    kinetic = (masses * ((velocities[-1] * unit) ** 2).sum(axis=1)).sum() / (9 * n_molecules * lr.BOLTZMANN)
    assert table[-1, 1] == pytest.approx(kinetic, rel=1e-4)
    lr.run(tmp_path, "read_restart half.restart\n" + fix + output)
    assert np.array_equal(lr.frames(tmp_path)[-1], frames[-1])
    assert np.array_equal(lr.frames(tmp_path, "v.dump")[-1], velocities[-1])
