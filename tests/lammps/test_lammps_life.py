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
        lr.run(tmp_path, script + bias + lr.dump(200) + "run 90000\n", timeout=100)
        phi = dihedral(lr.frames(tmp_path)[:, np.array(atoms) - 1])
        visited[name] = np.histogram(phi, bins=12, range=(-180, 180))[0]
    assert (visited["biased"] > 0).all(), visited
    assert (visited["free"] == 0).sum() >= 4, visited


def test_outputs_stop_a_run(tmp_path):
    """fix halt on the number of steps taken, which the largest score and the others work like."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK))
    halt = "variable taken equal f_1[4]\nfix 3 all halt 10 v_taken >= 40 error continue\n"
    output = lr.run(tmp_path, network_script() + halt + "thermo_style custom step f_1[3] f_1[4]\nrun 200\n")
    last = lr.thermo(output)[-1]
    assert last[0] == last[2] == 40 and last[1] > 0


def test_the_example(tmp_path):
    """examples/ala2/in.ala2 as it stands, and the core's positions at its end."""
    model = diffusim.Model(lr.ALA2)
    script = (lr.ALA2.parent / "in.ala2").read_text()
    (tmp_path / lr.ALA2.name).write_bytes(lr.ALA2.read_bytes())
    write_data(tmp_path / "ala2.data", model)
    lr.run(tmp_path, script.replace("run             100000", lr.dump(2000) + "run 2000"))
    core = diffusim.Simulation(
        model, 300.0, friction_rate=0.01 * (1 / 1e-3), time_step=0.04 * 1e-3, masses=model.masses, seed=48291
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
