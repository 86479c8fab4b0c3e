"""fix diffusim on several ranks, through restarts, with thermostat-aware fixes, COLVARS, and how LAMMPS finds it."""

import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import lammps_runs as lr
import numpy as np
import pytest

import diffusim
from diffusim import _library
from diffusim.lammps import lmp_styles, plugin_directory, write_data


def network_script(boundary: str = "s s s") -> str:
    """Molecules that a constant force drags through the box and from rank to rank."""
    return (
        lr.header("net.data", boundary=boundary)
        + f"fix 1 all diffusim 331.0 48291 model {lr.NETWORK} spring auto\n"
        + "fix 2 all addforce 37.0 4.1 -3.3\n"
        + "thermo 20\nthermo_style custom step f_1 f_1[2] f_1[3]\nthermo_modify format float %.17g\n"
    )


@pytest.mark.parametrize(("boundary", "ranks"), [("s s s", [2]), ("p p p", [2, 3])])
def test_same_seed_same_trajectory_on_any_number_of_ranks(tmp_path, boundary, ranks):
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK), n_molecules=3)
    script = network_script(boundary) + "{}run 60\n"
    tables = {}
    for n_ranks in (1, *ranks):
        dump = lr.dump(20, f"{n_ranks}.dump", "x y z ix iy iz")
        tables[n_ranks] = lr.thermo(lr.run(tmp_path, script.format(dump), n_ranks))
    first = (tmp_path / "1.dump").read_bytes()
    for n_ranks in ranks:
        assert (tmp_path / f"{n_ranks}.dump").read_bytes() == first
        assert np.array_equal(tables[n_ranks], tables[1])
    images = np.array([row.split()[4:] for row in first.decode().splitlines()[-15:]], dtype=int)
    assert images.any() == (boundary == "p p p")  # the molecules did leave the box


@pytest.mark.parametrize("forces", [False, True])
def test_neighbour_lists_are_built_when_lammps_would(tmp_path, forces):
    """The fix says when; 'delay 1', which means the same, leaves it to LAMMPS. Afterwards LAMMPS does so again."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK), n_molecules=3)
    script = network_script("p p p")
    if not forces:
        script = "\n".join(line for line in script.splitlines() if "addforce" not in line) + "\n"
    script += f"neighbor 2.9 bin\n{{}}{lr.dump(10, columns='x y z ix iy iz')}run 90\nrun 60 pre no\n"
    script += "thermo_style one\nunfix 1\nvelocity all set 0.07 0.05 -0.11\nfix 3 all nve\nrun 30\n"
    found = []
    for n_ranks in (1, 2):
        for settings in ("", "neigh_modify delay 1\n"):
            output = lr.run(tmp_path, script.format(settings), n_ranks)
            lines = output.splitlines()
            builds = [int(line.split("=")[1]) for line in lines if line.startswith("Neighbor list builds")]
            found.append((builds, (tmp_path / "frames.dump").read_bytes()))
            assert all(found[-1][1] == dump for _, dump in found)
    builds = [b for b, _ in found]
    assert min(builds[0]) > 1 and builds[0][0] < 60
    assert builds == 4 * builds[:1]


def test_an_open_message_passing_model_moves_as_in_the_core_on_two_ranks(tmp_path):
    """It sees whole molecules, as the distance network does."""
    path = lr.NETWORK.with_name("message_passing_open.safetensors")
    model = diffusim.Model(path)
    write_data(tmp_path / "open.data", model, n_molecules=2)
    script = lr.header("open.data") + f"fix 1 all diffusim 331.0 48291 model {path} spring 2000.0\n"
    lr.run(tmp_path, script + lr.dump(20) + "run 40\n", n_ranks=2)
    core = diffusim.Simulation(model, 331.0, spring=2000.0 / lr.UNITS["real"][0] ** 2, seed=48291, n_replicas=2)
    for frame in lr.frames(tmp_path):
        assert np.array_equal(frame, (core.positions / lr.UNITS["real"][0]).reshape(-1, 3))
        core.step(20)


def test_a_restart_continues_bit_for_bit_on_another_number_of_ranks(tmp_path):
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK), n_molecules=2)
    script = network_script("p p p")
    lr.run(
        tmp_path,
        script + f"run 60\nwrite_restart two.restart\n{lr.dump(20, 'whole.dump', 'x y z ix iy iz')}run 60\n",
        n_ranks=2,
    )
    again = script.split("fix 1", 1)[1].replace("comm_modify cutoff 2.0", "")
    lr.run(
        tmp_path,
        "read_restart two.restart\ncomm_modify cutoff 2.0\nfix 1"
        + again
        + lr.dump(20, "continued.dump", "x y z ix iy iz")
        + "run 60\n",
    )
    assert (tmp_path / "continued.dump").read_bytes() == (tmp_path / "whole.dump").read_bytes()


def test_another_seed_after_a_restart_is_another_trajectory(tmp_path):
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK))
    define = "fix 1 all diffusim 331.0 {} model " + str(lr.NETWORK) + " spring auto\n"
    lr.run(
        tmp_path,
        lr.header("net.data") + define.format(48291) + "run 20\nwrite_restart one.restart\n",
    )
    last = []
    for seed in (48291, 5):
        lr.run(tmp_path, "read_restart one.restart\n" + define.format(seed) + lr.dump(20) + "run 20\n")
        last.append(lr.frames(tmp_path)[-1])
    assert np.abs(last[0] - last[1]).min() > 1e-6


def test_colvars_is_told_the_temperature(tmp_path):
    """Its extended system takes the temperature of the fix that `tstat` names, and its force acts as a bias."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK))
    (tmp_path / "cv.inp").write_text(
        "colvar {\nname d\nextendedLagrangian on\nextendedFluctuation 0.9\n"
        "distance {\ngroup1 {\natomNumbers 1\n}\ngroup2 {\natomNumbers 5\n}\n}\n}\n"
        "harmonic {\ncolvars d\ncenters 2.9\nforceConstant 0.07\n}\n"
    )
    output = lr.run(
        tmp_path,
        lr.header("net.data")
        + f"fix 1 all diffusim 331.0 7 model {lr.NETWORK} spring auto\n"
        + "fix 2 all colvars cv.inp output out tstat 1\nrun 50\n",
    )
    assert "bias: fix 2 (colvars)" in output
    assert "extendedTemp = 331" in output


def dihedral(positions: np.ndarray) -> np.ndarray:
    """Angle in degrees of positions [n_frames, 4, 3]."""
    b = np.diff(positions, axis=1)
    n, m = np.cross(b[:, 0], b[:, 1]), np.cross(b[:, 1], b[:, 2])
    y = np.linalg.norm(b[:, 1], axis=1) * (b[:, 0] * m).sum(axis=1)
    return np.degrees(np.arctan2(y, (n * m).sum(axis=1)))


def test_metadynamics_fills_the_basins(tmp_path):
    """COLVARS metadynamics on phi, unchanged, drives alanine dipeptide over barriers it does not cross by itself."""
    model = diffusim.Model(lr.ALA2)
    write_data(tmp_path / "ala2.data", model)
    atoms = (2, 4, 5, 7)  # C N CA C
    groups = "".join(f"group{i + 1} {{\natomNumbers {atom}\n}}\n" for i, atom in enumerate(atoms))
    (tmp_path / "phi.colvars").write_text(
        f"colvar {{\nname phi\nwidth 6.0\ndihedral {{\n{groups}}}\n}}\n"
        "metadynamics {\ncolvars phi\nhillWeight 0.25\nhillWidth 3.0\nnewHillFrequency 150\n}\n"
    )
    script = lr.header("ala2.data") + f"fix 1 all diffusim 300.0 48291 model {lr.ALA2} spring auto\n"
    visited = {}
    for name, bias in {"biased": "fix 2 all colvars phi.colvars output out\n", "free": ""}.items():
        lr.run(tmp_path, script + bias + lr.dump(200) + "run 110000\n", timeout=100)
        phi = dihedral(lr.frames(tmp_path)[:, np.array(atoms) - 1])
        visited[name] = np.histogram(phi, bins=12, range=(-180, 180))[0]
    assert (visited["biased"] > 0).all(), visited
    assert (visited["free"] == 0).sum() >= 4, visited


def test_triclinic_box(tmp_path):
    """Molecules cross its faces: the same dumps on any number of ranks, and the core's positions."""
    model = diffusim.Model(lr.NETWORK)
    write_data(tmp_path / "net.data", model, n_molecules=3)
    tilt = "change_box all triclinic\nchange_box all xy final 3.0 xz final -2.0 yz final 1.5\nfix 1 "
    script = network_script("p p p").replace("fix 1 ", tilt)
    for n_ranks in (1, 2):
        dumps = lr.dump(1, f"{n_ranks}.dump", "x y z ix iy iz") + lr.dump(1, f"{n_ranks}u.dump", "xu yu zu")
        lr.run(tmp_path, script + dumps + "run 60\n", n_ranks)
    first = (tmp_path / "1.dump").read_bytes()
    assert (tmp_path / "2.dump").read_bytes() == first
    images = {tuple(row.split()[4:]) for row in first.decode().splitlines()[-15:]}
    assert images != {("0", "0", "0")}

    core = diffusim.Simulation(model, 331.0, masses=model.masses, seed=48291, n_replicas=3)
    forces = np.broadcast_to(np.array([37.0, 4.1, -3.3]) * (4.184 / 0.1), (3, 5, 3))
    for frame in lr.frames(tmp_path, "2u.dump"):
        assert frame == pytest.approx(core.positions.reshape(-1, 3) / 0.1, rel=0, abs=1e-13)
        core.step_biased(forces)


def test_molecule_ids_with_gaps_on_two_ranks(tmp_path):
    """Molecules are numbered in the order of their IDs, so the noise goes with the ID and not with the atoms."""
    model = diffusim.Model(lr.NETWORK)
    write_data(tmp_path / "net.data", model, n_molecules=3)
    renumber = "set mol 2 mol 77\nset mol 1 mol 1000\n"
    script = (
        network_script("p p p").replace("fix 2 all addforce 37.0 4.1 -3.3\n", "").replace("fix 1", renumber + "fix 1")
    )
    lr.run(tmp_path, script + lr.dump(20, columns="xu yu zu") + "run 20\n", n_ranks=2)
    core = diffusim.Simulation(model, 331.0, masses=model.masses, seed=48291, n_replicas=3, particle_ids=range(10, 15))
    core.positions = model.start_positions[[2, 1, 0]] / 0.1 * 0.1
    core.step(20)
    found = lr.frames(tmp_path)[-1].reshape(3, 5, 3)[[2, 1, 0]]
    assert found == pytest.approx(core.positions / 0.1, rel=0, abs=1e-12)


def test_two_fixes_with_models_of_their_own(tmp_path):
    """Each molecule moves as it does alone."""
    network = diffusim.Model(lr.NETWORK)
    write_data(tmp_path / "net.data", network, n_molecules=2)
    lr.analytic(tmp_path / "m.safetensors", "harmonic", 5, stiffness=37.0)
    script = (
        lr.header("net.data")
        + "group first molecule 1\ngroup second molecule 2\n"
        + "{}"
        + "fix 2 second diffusim 345.0 12 model m.safetensors effective_step 0.4\n"
        + "{}run 60\n"
    )
    moving = f"fix 1 first diffusim 331.0 7 model {lr.NETWORK} spring auto\n"
    lr.run(tmp_path, script.format(moving, lr.dump(20, "both.dump")))
    lr.run(tmp_path, script.format("", lr.dump(20, "alone.dump")))
    both, alone = lr.frames(tmp_path, "both.dump"), lr.frames(tmp_path, "alone.dump")
    assert np.array_equal(both[:, 5:], alone[:, 5:])
    core = diffusim.Simulation(network, 331.0, masses=network.masses, seed=7)
    core.step(60)
    assert np.array_equal(both[-1, :5], core.positions[0] / 0.1)


def test_first_group(tmp_path):
    """`atom_modify first` keeps the group's atoms in front and changes nothing."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK))
    fix = f"fix 1 g diffusim 331.0 7 model {lr.NETWORK} spring auto\n"
    atoms = "mass 4 39.95\ncreate_atoms 4 single 7.0 7.0 7.0\n"
    for first in ("", "atom_modify first g\n"):
        header = lr.header("net.data").replace(
            "read_data net.data", first + "read_data net.data extra/atom/types 1 group g"
        )
        lr.run(tmp_path, header + atoms + fix + lr.dump(20, f"{len(first)}.dump") + "run 60\n")
    assert (tmp_path / "0.dump").read_bytes() == (tmp_path / "20.dump").read_bytes()


def test_runs_in_pieces_are_one_trajectory(tmp_path):
    """`pre no`, `run every`, write_restart in between and `run 0` change nothing."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK), n_molecules=2)
    last = []
    for runs in ("run 60", "run 20\nrun 0\nrun 20 pre no\nwrite_restart x.restart\nrun 20 every 7 'print x'"):
        lr.run(tmp_path, network_script() + runs + "\n" + lr.dump(1) + "run 0\n")
        last.append(lr.frames(tmp_path)[-1])
    assert np.array_equal(*last)


def test_rerun_gives_learned_energies(tmp_path):
    """Of the frames of a dump, by the fix as by the pair style."""
    model = diffusim.Model(lr.NETWORK)
    elements = write_data(tmp_path / "net.data", model)
    fix = f"fix 1 all diffusim 331.0 7 model {lr.NETWORK} spring auto\n"
    pair = f"pair_style diffusim\npair_coeff * * {lr.NETWORK} {' '.join(elements)}\n"
    lr.run(tmp_path, lr.header("net.data") + fix + lr.dump(5, columns="x y z") + "run 20\n")
    expected = model.evaluate(lr.frames(tmp_path) * 0.1)[1] * lr.BOLTZMANN * model.training_temperature / 4.184
    for style, column in ((fix, "f_1"), (pair, "pe")):
        output = lr.run(
            tmp_path,
            lr.header("net.data")
            + style
            + f"thermo 5\nthermo_style custom step {column}\nrerun frames.dump dump x y z\n",
        )
        assert lr.thermo(output)[:, 1] == pytest.approx(expected, rel=1e-6)


def test_outputs_after_atoms_changed_ranks(tmp_path):
    """`balance` between runs moves atoms in memory; the outputs find them again."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK), n_molecules=3)
    lines = 'run 5\nprint "ENERGY $(f_1) $(f_1[2])"\nbalance 1.0 shift x 10 1.0\nprint "ENERGY $(f_1) $(f_1[2])"\n'
    output = lr.run(tmp_path, network_script("p p p") + lines, n_ranks=2)
    before, after = [line for line in output.splitlines() if line.startswith("ENERGY")]
    assert before == after


def test_unload_and_clear(tmp_path):
    """The plugin goes while its styles are in use, and comes back; `clear` starts anew."""
    model = diffusim.Model(lr.NETWORK)
    elements = write_data(tmp_path / "net.data", model, n_molecules=3)
    fix = f"fix 1 all diffusim 331.0 7 model {lr.NETWORK} spring auto\n"
    pair = f"pair_style diffusim\npair_coeff * * {lr.NETWORK} {' '.join(elements)}\n"
    lr.run(
        tmp_path,
        lr.header("net.data")
        + fix
        + "run 5\nplugin unload fix diffusim\nfix 2 all nve\n"
        + pair
        + "run 5\nplugin unload pair diffusim\nrun 5\n"
        + f"plugin load {plugin_directory()}/diffusimplugin.so\nclear\n"
        + lr.header("net.data")
        + fix
        + lr.dump(20)
        + "run 20\n",
    )
    core = diffusim.Simulation(model, 331.0, masses=model.masses, seed=7, n_replicas=3)
    core.step(20)
    assert np.array_equal(lr.frames(tmp_path)[-1], core.positions.reshape(-1, 3) / 0.1)


@pytest.mark.parametrize(
    ("output", "limit"),
    [("f_1", 0.9), ("f_1[1]", 0.9), ("f_1[2]", 420.0), ("f_1[3]", 6.0), ("f_1[4]", 40)],
    ids=["energy", "energy by its number", "configurational temperature", "largest score", "steps"],
)
def test_outputs_stop_a_run(tmp_path, output, limit):
    """Every output goes into thermo, variables and fix halt, which stops at the first step that exceeds its limit."""
    model = diffusim.Model(lr.NETWORK)
    write_data(tmp_path / "net.data", model)
    printed = lr.run(
        tmp_path,
        lr.header("net.data")
        + f"""
fix 1 all diffusim 331.0 48291 model {lr.NETWORK} spring auto
variable value equal {output}
fix 3 all halt 1 v_value > {limit} error continue
thermo_style custom step {output} v_value
thermo_modify format float %.17g
thermo 1
{lr.dump(1)}run 400
""",
    )
    table = lr.thermo(printed)
    assert (table[:-1, 1] <= limit).all() and table[-1, 1] > limit and len(table) > 2
    assert np.array_equal(table[:, 1], table[:, 2])

    frames = lr.frames(tmp_path) * 0.1
    scores, energies = model.evaluate(frames)
    largest = np.maximum.accumulate(np.abs(scores).max(axis=(1, 2))) * 0.1
    expected = {
        "f_1": energies * (lr.BOLTZMANN * 310.0 / 4.184),
        "f_1[2]": [model.configurational_temperature(frame[None]) for frame in frames],
        "f_1[3]": np.concatenate([[0], largest[:-1]]),  # a step has the score of the frame before it
        "f_1[4]": np.arange(len(frames)),
    }
    expected["f_1[1]"] = expected["f_1"]
    assert table[:, 1] == pytest.approx(np.asarray(expected[output]), rel=1e-5)


def test_the_example(tmp_path):
    """examples/ala2/in.ala2 as it stands, and the core's positions at its end."""
    model = diffusim.Model(lr.ALA2)
    script = (lr.ALA2.parent / "in.ala2").read_text()
    (tmp_path / lr.ALA2.name).write_bytes(lr.ALA2.read_bytes())
    write_data(tmp_path / "ala2.data", model)
    lr.run(tmp_path, script.replace("run             100000", lr.dump(2000) + "run 2000"))
    core = diffusim.Simulation(
        model, 300.0, friction_rate=0.01 * (1 / 1e-3), time_step=0.03 * 1e-3, masses=model.masses, seed=48291
    )
    core.step(2000)
    assert np.array_equal(lr.frames(tmp_path)[-1], core.positions[0] / 0.1)


def lmp_without_plugin(directory: Path, script: str) -> str:
    """What a LAMMPS prints that was not told where the plugin is."""
    (directory / "in.test").write_text(script)
    environment = {name: value for name, value in os.environ.items() if name != "LAMMPS_PLUGIN_PATH"}
    environment["LD_LIBRARY_PATH"] = str(lr.BIN.parent / "lib")  # of MPI
    lmp = Path(util.find_spec("lammps").origin).parent / "lmp"
    result = subprocess.run(
        [lmp, "-in", "in.test"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.stdout + result.stderr


def test_lmp_finds_the_plugin_by_itself():
    version, styles = lmp_styles()
    assert version.startswith("22 Jul 2025") and styles == ["fix", "pair"]


def test_plugin_load_by_hand(tmp_path):
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK))
    script = network_script() + "run 5\n"
    assert "Unrecognized fix style 'diffusim'" in lmp_without_plugin(tmp_path, script)
    output = lmp_without_plugin(tmp_path, f"plugin load {plugin_directory()}/diffusimplugin.so\n" + script)
    assert "Loop time" in output, output


@pytest.mark.parametrize("mismatch", ["update", "layout"])
def test_another_lammps_is_refused(tmp_path, mismatch):
    """A plugin that was compiled for another update, or for classes with one virtual function more, does not load."""
    sources = Path(__file__).parents[2] / "plugin-lammps"
    library = _library.path().resolve()
    found = subprocess.run([sys.executable, sources / "find_lammps.py"], capture_output=True, text=True, check=True)
    headers, mpi, version, update = found.stdout.strip().split(";")
    if mismatch == "update":
        update = "2"
    else:
        headers = shutil.copytree(headers, tmp_path / "headers")
        text = (headers / "fix.h").read_text()
        (headers / "fix.h").write_text(
            text.replace("virtual int setmask() = 0;", "virtual int setmask() = 0;\nvirtual void added() {}")
        )
    subprocess.run(
        ["g++", "-std=c++17", "-O0", "-fPIC", "-shared", "-fvisibility=hidden", "-DLAMMPS_SMALLBIG"]
        + [f"-DDIFFUSIM_LAMMPS_VERSION={version}", f"-DDIFFUSIM_LAMMPS_UPDATE={update}"]
        + ["-I", sources.parent / "include", "-isystem", headers, "-isystem", mpi]
        + [*(sources / "src").glob("*.cpp"), library, f"-Wl,-rpath,{library.parent}"]
        + ["-o", tmp_path / "otherplugin.so"],
        check=True,
        timeout=120,
    )
    output = lmp_without_plugin(tmp_path, "plugin load ./otherplugin.so\nplugin list\n")
    line = next(
        line for line in output.splitlines() if line.startswith("WARNING: fix diffusim and pair_style diffusim")
    )
    assert f"built for LAMMPS 20250722 update {update} and found LAMMPS 20250722 (stable_22Jul2025_update4)" in line
    assert ("classes have another layout" in line) == (mismatch == "layout")
    assert "Currently loaded plugins: 0" in output
