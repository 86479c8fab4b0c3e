"""Periodic models in LAMMPS: atoms shared out over ranks, with ghosts; forces and trajectories of the core."""

import lammps_runs as lr
import numpy as np
import pytest
from test_lammps_pair import COLUMNS, PASCAL, PRESSURE, UNIT_PRESSURE

import diffusim
from diffusim.lammps import write_data

SMALL = lr.NETWORK.with_name("message_passing_periodic.safetensors")  # 18 atoms, three blocks, a skewed cell
ARGON = lr.ALA2.parents[1] / "lennard-jones" / "lennard-jones.safetensors"  # 256 atoms, one block
HEADER = "units {units}\nboundary p p p\natom_style full\nread_data box.data\n{more}\n"


def header(more: str = "", units: str = "real") -> str:
    return HEADER.format(units=units, more=more)


def pair(path, elements) -> str:
    return f"pair_style diffusim\npair_coeff * * {path} {' '.join(elements)}\n"


def in_cell(path, copies, positions, cell, virial_unit="real"):
    """Energy (kcal/mol), forces and virial pressures times volume, as the core has them, of positions in nm."""
    species = [p["element"] or p["name"] for p in diffusim.Model(path).metadata["particles"]]
    model = diffusim.Model(path).for_species(species * copies)
    scores, energies, virials = model.evaluate_in_cell(positions[None], cell)
    kt = lr.BOLTZMANN * model.training_temperature / lr.ENERGY["real"]
    pressures = kt * lr.ENERGY["real"] * virials[0] * PASCAL / UNIT_PRESSURE[virial_unit]
    return kt * energies[0], kt * scores[0] * 0.1, pressures[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]


@pytest.mark.parametrize(
    ("path", "copies", "n_ranks"),
    [(SMALL, (1, 1, 1), 1), (SMALL, (1, 1, 1), 2), (SMALL, (2, 2, 1), 3), (ARGON, (1, 1, 1), 1), (ARGON, (1, 1, 1), 2)],
)
def test_energy_forces_and_virial(tmp_path, path, copies, n_ranks):
    """Those of the core, in all and by atom, in cells as small as allowed and larger, whatever the ghosts are."""
    model = diffusim.Model(path)
    elements = write_data(tmp_path / "box.data", model)
    replicate = "replicate {} {} {}\ndisplace_atoms all random 0.07 0.07 0.07 4711\n".format(*copies)
    output = lr.run(
        tmp_path,
        header(replicate)
        + pair(path, elements)
        + f"""
compute each all pe/atom
compute stress all stress/atom NULL virial
compute sums all reduce sum c_each c_stress[1] c_stress[2] c_stress[3] c_stress[4] c_stress[5] c_stress[6]
{PRESSURE}{COLUMNS.replace("vol", "vol c_sums[1] c_sums[2] c_sums[3] c_sums[4] c_sums[5] c_sums[6] c_sums[7]")}
thermo_modify norm no
{lr.dump(1)}{lr.dump(1, "forces.dump", "fx fy fz")}run 0
""",
        n_ranks,
    )
    positions = lr.frames(tmp_path)[0] * 0.1
    cell = model.start_cell * np.array(copies)[:, None]
    energy, forces, virial = in_cell(path, int(np.prod(copies)), positions, cell)
    row = lr.thermo(output)[0]
    assert row[1] == pytest.approx(energy, rel=1e-6)
    assert lr.frames(tmp_path, "forces.dump")[0] == pytest.approx(forces, abs=1e-6 * np.abs(forces).max())
    volume = row[8] * 1e-3
    assert row[2:8] * volume == pytest.approx(virial, rel=2e-6, abs=3e-6 * np.abs(virial).max())
    assert row[9] == pytest.approx(energy, rel=1e-6)
    assert row[10:] == pytest.approx(-row[2:8] * row[8], rel=1e-6, abs=1e-6 * np.abs(row[10:]).max())


def test_atoms_that_cross_ranks_and_a_box_that_changes(tmp_path):
    """Velocity Verlet in a barostat, with many new neighbour lists: the core's forces at the end, on 1 and 2 ranks."""
    model = diffusim.Model(ARGON)
    elements = write_data(tmp_path / "box.data", model)
    script = (
        header()
        + pair(ARGON, elements)
        + f"""
velocity all create 240 4711 loop geom
fix 1 all npt temp 240 240 200 iso 500 500 500
timestep 4
variable edge equal lx
run 300
print "edge $(v_edge:%.17g)"
{lr.dump(1)}{lr.dump(1, "forces.dump", "fx fy fz")}run 0 post no
"""
    )
    for n_ranks in (1, 2):
        output = lr.run(tmp_path, script, n_ranks)
        builds = [int(line.split("=")[1]) for line in output.splitlines() if line.startswith("Neighbor list builds")]
        assert builds[0] > 3
        edge = float(output.split("edge ")[-1].split()[0]) * 0.1
        assert abs(edge / model.start_cell[0, 0] - 1) > 1e-4
        _, forces, _ = in_cell(ARGON, 1, lr.frames(tmp_path)[0] * 0.1, edge * np.eye(3))
        assert lr.frames(tmp_path, "forces.dump")[0] == pytest.approx(forces, abs=1e-6 * np.abs(forces).max())


def core(path, copies, temperature, **options) -> diffusim.Simulation:
    """The core's simulation of `copies` of the model's frame along x."""
    file = diffusim.Model(path)
    frame, cell = file.start_positions[0], file.start_cell
    species = [p["element"] or p["name"] for p in file.metadata["particles"]] * copies
    simulation = diffusim.Simulation(file.for_species(species), temperature, **options)
    simulation.cell = cell * np.array([[copies], [1], [1]])
    simulation.positions = np.concatenate([frame + n * cell[0] for n in range(copies)])
    return simulation


# Ranks, how they share the box, and what else must not matter.
LAYOUTS = [(1, ""), (2, "processors 2 1 1"), (2, "processors 1 2 1\natom_modify sort 3 0.9"), (3, "processors 1 3 1")]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("units", "path", "adapter"), [("real", SMALL, "lm"), ("metal", ARGON, "em")])
def test_the_trajectory_of_the_core(tmp_path, units, path, adapter, bias):
    """To the bit, on 1, 2 and 3 ranks and in any order of atoms, over steps long enough for atoms to change ranks."""
    n_steps, effective_step, force = 60, 2.3e-5 if path == ARGON else 1.7e-5, [31.0, -17.0, 44.0]  # nm^2, kJ/(mol nm)
    friction = 7.1  # 1/ps
    length = lr.UNITS[units][0]
    elements = write_data(tmp_path / "box.data", diffusim.Model(path), units)
    in_units = [f * length / lr.ENERGY[units] for f in force]
    script = (
        header("replicate 2 1 1", units)
        + f"""
neighbor 0.4 bin
fix 1 all diffusim 331.0 48291 model {path} adapter {adapter} friction {friction * lr.TIME[units]!r} &
    effective_step {effective_step / length**2!r} types {" ".join(elements)}
{f"fix 2 all addforce {in_units[0]!r} {in_units[1]!r} {in_units[2]!r}" if bias else ""}
thermo_style custom step f_1 f_1[1] f_1[3] f_1[4] f_1[5]
thermo {n_steps}
variable cell string "$(lx:%.17g) 0 0 $(xy:%.17g) $(ly:%.17g) 0 $(xz:%.17g) $(yz:%.17g) $(lz:%.17g)"
print "cell ${{cell}}"
{lr.dump(n_steps // 3, columns="xu yu zu id proc")}{lr.dump(n_steps // 3, "bits.dump", "x y z ix iy iz")}run {n_steps}
"""
    )
    dumps = []
    for n_ranks, layout in LAYOUTS:
        first, *rest = layout.split("\n")
        laid_out = script.replace("atom_style full\n", "\n".join(["atom_style full", *rest, ""]))
        output = lr.run(tmp_path, f"{first}\n{laid_out}", n_ranks)
        builds = [int(line.split("=")[1]) for line in output.splitlines() if line.startswith("Neighbor list builds")]
        assert builds[-1] > 3
        dumps.append((tmp_path / "bits.dump").read_bytes())
        assert dumps[-1] == dumps[0], layout
        owners = np.array(
            [
                [row.split()[5] for row in text.split("ITEM: ATOMS", 1)[1].splitlines()[1:]]
                for text in (tmp_path / "frames.dump").read_text().split("ITEM: TIMESTEP")[1:]
            ]
        )
        assert (owners[0] != owners[-1]).any() == (n_ranks > 1)

    # The core in the same cell from the same positions; LAMMPS's own are rounded.
    found = lr.frames(tmp_path) * length
    simulation = core(
        path,
        2,
        331.0,
        seed=48291,
        effective_step=effective_step,
        friction_rate=friction,
        adapter={"lm": "leimkuhler-matthews", "em": "euler-maruyama"}[adapter],
    )
    printed = next(line for line in output.splitlines() if line.startswith("cell "))
    simulation.cell = np.array([float(x) * length for x in printed.split()[1:]]).reshape(3, 3)
    simulation.positions = found[0]
    for _ in range(n_steps):
        if bias:
            simulation.step_biased(np.broadcast_to(force, simulation.positions.shape))
        else:
            simulation.step(1)
    expected = simulation.positions[0]
    assert np.abs(found[-1] - expected).max() < 1e-13 and np.abs(found[0] - expected).max() > 0.02
    energy = lr.BOLTZMANN * simulation.model.training_temperature * simulation.energies[0] / lr.ENERGY[units]
    row = lr.thermo(output)[-1]
    assert row[1] == pytest.approx(energy, rel=1e-7) and row[2] == row[1] and row[4] == n_steps
    assert row[5] == pytest.approx(0.5 / effective_step * length**2, rel=1e-6)


@pytest.mark.parametrize("path", [SMALL, ARGON])
def test_the_pair_style_on_any_ranks(tmp_path, path):
    """Bits of forces and trajectories do not depend on ranks, order of atoms, nor Newton's third law."""
    elements = write_data(tmp_path / "box.data", diffusim.Model(path))
    script = (
        header("replicate 2 1 1")
        + pair(path, elements)
        + f"""
variable vx atom 0.0041*sin(1.7*id)
variable vy atom 0.0037*sin(2.3*id+0.4)
variable vz atom 0.0043*sin(2.9*id+0.9)
velocity all set v_vx v_vy v_vz
fix 1 all nve
timestep 5.2
neighbor 0.4 bin
{lr.dump(20, "bits.dump", "x y z fx fy fz")}run 60
"""
    )
    # ('velocity create' would sum over ranks, in the order of ranks.)
    dumps = []  # LAMMPS rounds positions when it sorts atoms in a skewed box
    layouts = [
        (n, layout.split("\n")[0] + "\natom_modify sort 0 0" if path == SMALL else layout) for n, layout in LAYOUTS
    ]
    for (n_ranks, layout), newton in zip(layouts, ["on", "on", "off", "on"], strict=True):
        first, *rest = layout.split("\n")
        laid_out = script.replace("atom_style full\n", "\n".join(["atom_style full", *rest, ""]))
        output = lr.run(tmp_path, f"{first}\nnewton {newton}\n{laid_out}", n_ranks)
        builds = [int(line.split("=")[1]) for line in output.splitlines() if line.startswith("Neighbor list builds")]
        assert builds[0] > 2
        dumps.append((tmp_path / "bits.dump").read_bytes())
        assert dumps[-1] == dumps[0], layout


def test_pressure_of_the_fix_and_restart(tmp_path):
    """fix_modify gives the pair style's energy and virial; a restart file of two ranks continues on one."""
    elements = write_data(tmp_path / "box.data", diffusim.Model(ARGON))
    types = " ".join(elements)
    rows = []
    fix = f"fix 1 all diffusim 120 7 model {ARGON} spring auto types {types}\n"
    for style in (pair(ARGON, elements), fix + "fix_modify 1 energy yes virial yes\n"):
        stress = "compute stress all stress/atom NULL virial\ncompute sum all reduce sum c_stress[1] c_stress[4]\n"
        columns = COLUMNS.replace("vol", "vol c_sum[1] c_sum[2]")
        rows.append(lr.thermo(lr.run(tmp_path, header() + style + stress + PRESSURE + columns + "run 0\n", 2))[0])
    assert rows[0] == pytest.approx(rows[1], rel=1e-6, abs=1e-6 * np.abs(rows[0]).max())

    end = lr.dump(40, columns="xu yu zu")
    lr.run(tmp_path, header() + fix + "run 20\nwrite_restart half.restart\n" + end + "run 20\n", 2)
    expected = (tmp_path / "frames.dump").read_bytes()
    for n_ranks in (1, 3):
        lr.run(tmp_path, "read_restart half.restart\n" + fix + end + "run 20\n", n_ranks)
        assert (tmp_path / "frames.dump").read_bytes() == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("boundary p p p", "boundary p p f"), ["is a periodic model", "boundary p p p"]),
        ((" types Ar", ""), ["is a periodic model", "say with 'types El1 El2 ...'"]),
        ((" types Ar", " types Xe"), ["'Xe'", "it knows Ar"]),
        ((" types Ar", " types NULL"), ["say with 'types"]),
        (("types Ar", "types Ar adapter heun"), ["adapter Heun", "LeimkuhlerMatthews"]),
        (("types Ar", "types Ar device cuda:0"), ["CPU only", "cuda:0"]),
        (("fix 1 all", "mass 1 20.2\nfix 1 all"), ["particle 0 is Ar", "weighs 20.2", "atom types"]),
        (("fix 1 all", "change_box all x final 0 15 remap units box\nfix 1 all"), ["cell is", "needs twice that"]),
        (("run 5", 'run 5\nprint "$(f_1[2])"'), ["output 2", "not known for periodic models"]),
        (("fix 1 all", "neighbor 1 multi\ncomm_modify mode multi\nfix 1 all"), ["mode multi", "mode single"]),
    ],
)
def test_what_cannot_be(tmp_path, change, words):
    write_data(tmp_path / "box.data", diffusim.Model(ARGON))
    script = header() + f"fix 1 all diffusim 120 7 model {ARGON} spring auto types Ar\nrun 5\n"
    assert change[0] in script
    error = lr.error_of(tmp_path, script.replace(*change))
    assert "fix diffusim: " in error, error
    for word in words:
        assert word in error


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_an_id_that_two_atoms_have(tmp_path, n_ranks):
    """They are far apart, on two ranks that do not know of each other's atom."""
    model = diffusim.Model(ARGON)
    write_data(tmp_path / "box.data", model)
    text = (tmp_path / "box.data").read_text()
    rows = text.split("Atoms # full\n\n")[1].splitlines()[: model.n_particles]
    by_x = sorted(rows, key=lambda row: float(row.split()[4]))
    first, last = by_x[0], by_x[-1]
    same = " ".join([first.split()[0], *last.split()[1:]])
    (tmp_path / "box.data").write_text(text.replace(last, same))
    script = header().replace("read_data", f"processors {n_ranks} 1 1\nread_data")
    script += f"fix 1 all diffusim 120 7 model {ARGON} spring auto types Ar\nrun 5\n"
    error = lr.error_of(tmp_path, script, n_ranks)
    assert f"fix diffusim: atom ID {first.split()[0]} is there twice" in error and "'reset_atoms id'" in error


def test_langevin_in_a_fluid(tmp_path):
    """With velocities, at first LAMMPS's own, on 1 and 2 ranks: the core's frames, and the temperature."""
    time_step, friction, n_steps = 0.008, 2.1, 50  # ps, 1/ps
    write_data(tmp_path / "box.data", diffusim.Model(ARGON), "metal")
    script = (
        header(units="metal")
        + f"""
velocity all create 100 4711 loop geom
timestep {time_step}
fix 1 all diffusim 120 48291 model {ARGON} friction {friction} adapter langevin types Ar
thermo_style custom step temp
thermo {n_steps}
{lr.dump(n_steps, columns="xu yu zu")}{lr.dump(n_steps, "v.dump", "vx vy vz")}run {n_steps}
"""
    )
    simulation = core(ARGON, 1, 120.0, seed=48291, time_step=time_step, friction_rate=friction, adapter="langevin")
    for n_ranks in (1, 2):
        table = lr.thermo(lr.run(tmp_path, script, n_ranks))
        velocities = 0.1 * lr.frames(tmp_path, "v.dump")
        if n_ranks == 1:
            simulation.velocities = velocities[0][None]
            simulation.step(n_steps)
        assert velocities[-1] == pytest.approx(simulation.velocities[0], abs=1e-4)
        difference = (0.1 * lr.frames(tmp_path)[-1] - simulation.positions[0]) / simulation.cell[0, 0]
        assert np.abs(difference - np.round(difference)).max() < 1e-5
        assert 90 < table[-1, 1] < 150
