"""pair_style diffusim: energy, forces and virial of the model, for LAMMPS's own integrators and minimisers."""

import lammps_runs as lr
import numpy as np
import pytest

import diffusim
from diffusim.lammps import write_data

PRESSURE = "compute p all pressure NULL virial\n"
COLUMNS = (
    "thermo_style custom step pe c_p[1] c_p[2] c_p[3] c_p[4] c_p[5] c_p[6] vol\nthermo_modify format float %.17g\n"
)
PASCAL = 1e30 / 6.02214076e23  # kJ/(mol nm^3) in Pa
UNIT_PRESSURE = {"real": 101325.0, "metal": 1e5}  # Pa


def expected(model, positions, units):
    """Energy, forces and virial pressures (times the volume in nm^3) of positions [n_frames, n, 3] in nm."""
    kt = lr.BOLTZMANN * model.training_temperature
    scores, energies = model.evaluate(positions)
    virial = kt * np.einsum("fic,fid->cd", positions, scores) * PASCAL / UNIT_PRESSURE[units]
    forces = kt * scores.reshape(-1, 3) * lr.UNITS[units][0] / lr.ENERGY[units]
    return kt * energies.sum() / lr.ENERGY[units], forces, virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("units", ["real", "metal"])
def test_energy_forces_and_virial(tmp_path, units, n_ranks):
    """In one molecule and in copies, split by the periodic box, beside atoms that feel nothing."""
    model = diffusim.Model(lr.NETWORK)
    n_molecules = 3
    elements = write_data(tmp_path / "net.data", model, units, n_molecules)
    length = lr.UNITS[units][0]
    output = lr.run(
        tmp_path,
        lr.header("net.data", units, "p p p")
        + f"""
displace_atoms all move {0.9 / length} 0 0
pair_style diffusim
pair_coeff * * {lr.NETWORK} {" ".join(elements)}
compute each all pe/atom
compute stress all stress/atom NULL virial
compute sums all reduce sum c_each c_stress[1] c_stress[2] c_stress[3] c_stress[4] c_stress[5] c_stress[6]
{PRESSURE}{COLUMNS.replace("vol", "vol c_sums[1] c_sums[2] c_sums[3] c_sums[4] c_sums[5] c_sums[6] c_sums[7]")}
{lr.dump(1, "forces.dump", "fx fy fz ix")}run 0
""",
        n_ranks,
    )
    positions = model.start_positions[:n_molecules] + [0.9, 0, 0]
    energy, forces, virial = expected(model, positions, units)
    row = lr.thermo(output)[0]
    volume = row[8] * length**3
    assert row[1] == pytest.approx(energy, rel=1e-7)
    assert row[2:8] * volume == pytest.approx(virial, rel=1e-6, abs=1e-6 * np.abs(virial).max())
    assert row[9] == pytest.approx(energy, rel=1e-7)
    assert row[10:] == pytest.approx(-row[2:8] * row[8], rel=1e-6, abs=1e-6 * np.abs(row[10:]).max())
    found = lr.frames(tmp_path, "forces.dump")[0]
    assert found == pytest.approx(forces, rel=1e-6, abs=1e-7 * np.abs(forces).max())


def test_the_fix_reports_the_same_energy_and_virial(tmp_path):
    """With fix_modify, the learned part of a run's energy and pressure is that of the pair style."""
    model = diffusim.Model(lr.NETWORK)
    elements = write_data(tmp_path / "net.data", model, n_molecules=2)
    rows = []
    for style in (
        f"pair_style diffusim\npair_coeff * * {lr.NETWORK} {' '.join(elements)}\n",
        f"fix 1 all diffusim 331.0 7 model {lr.NETWORK} spring auto\nfix_modify 1 energy yes virial yes\n",
    ):
        script = lr.header("net.data") + style + PRESSURE + COLUMNS + "run 0\n"
        rows.append(lr.thermo(lr.run(tmp_path, script))[0])
    assert rows[0] == pytest.approx(rows[1], rel=1e-9)


def test_energy_is_conserved(tmp_path):
    """Forces are the gradient of the energy: velocity Verlet drifts little, and four times less at half the step."""
    model = diffusim.Model(lr.NETWORK)
    elements = write_data(tmp_path / "net.data", model)
    fluctuations = []
    for time_step in (4.0, 2.0):
        output = lr.run(
            tmp_path,
            lr.header("net.data")
            + f"""
pair_style diffusim
pair_coeff * * {lr.NETWORK} {" ".join(elements)}
velocity all create 300 4711
fix 1 all nve
timestep {time_step}
thermo {int(40 / time_step)}
thermo_style custom step etotal pe
run {int(4000 / time_step)}
""",
        )
        table = lr.thermo(output)
        fluctuations.append(table[:, 1].std())
        assert fluctuations[-1] < 0.02 * table[:, 2].std()
    assert 2.5 < fluctuations[0] / fluctuations[1] < 6


def test_minimise_and_hybrid(tmp_path):
    """Elements of NULL stay out; the minimiser finds a place without force."""
    model = diffusim.Model(lr.NETWORK)
    elements = write_data(tmp_path / "net.data", model)
    lr.run(
        tmp_path,
        lr.header("net.data").replace("read_data net.data", "read_data net.data extra/atom/types 1")
        + f"""
mass 4 39.95
create_atoms 4 single 7.0 7.0 7.0
pair_style hybrid/overlay diffusim lj/cut 6.0
pair_coeff * * diffusim {lr.NETWORK} {" ".join(elements)} NULL
pair_coeff * 4 lj/cut 0.2 3.1
minimize 0 1e-5 2000 20000
{lr.dump(1, "forces.dump", "fx fy fz")}run 0
""",
    )
    assert np.abs(lr.frames(tmp_path, "forces.dump")).max() < 1e-3


@pytest.mark.parametrize("units", ["metal", "lj"])
def test_langevin_samples_the_model(tmp_path, units):
    """LAMMPS's own thermostat on a harmonic model: <x^2> = (T/T0)/kappa; the energy is that of the positions."""
    stiffness, n_molecules, n_frames, temperature = 37.0, 300, 60, 345.0
    lr.analytic(tmp_path / "m.safetensors", "harmonic", 3, stiffness=stiffness)
    lr.write_beads(tmp_path / "beads.data", np.zeros((n_molecules, 3, 3)), lr.MASSES, units)
    length, time, in_units = lr.UNITS[units][0], lr.TIME[units], temperature / lr.KELVIN.get(units, 1)
    output = lr.run(
        tmp_path,
        lr.header("beads.data", units, "f f f")
        + f"""
pair_style diffusim {lr.SCALE.get(units, "")}
pair_coeff * * m.safetensors A B C
fix 1 all nve
fix 2 all langevin {in_units} {in_units} {0.4 / time} 4711
timestep {0.01 / time}
thermo_style custom step pe
thermo_modify norm no
thermo 100
run 800
{lr.dump(100)}run {100 * (n_frames - 1)}
""",
    )
    squared = (lr.frames(tmp_path) * length) ** 2
    energies = 0.5 * stiffness * squared.sum(axis=(1, 2)) * lr.BOLTZMANN * lr.TRAINED / lr.ENERGY[units]
    assert lr.thermo(output)[:, 1] == pytest.approx(energies, rel=1e-6)
    found = squared.mean()
    error = lr.standard_error_of_variance(9 * n_molecules, n_frames, 0.5)
    assert abs(found * stiffness * lr.TRAINED / temperature - 1) < 4.5 * error
