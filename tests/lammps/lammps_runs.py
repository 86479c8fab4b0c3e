"""Models, data files and runs of the LAMMPS tests. No parameter is 1, so that none can be forgotten unseen."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import diffusim
from diffusim import model_file
from diffusim.lammps import UNITS as REAL_UNITS

NETWORK = Path(__file__).parents[1] / "fixtures" / "distance_small.safetensors"  # 5 atoms, trained at 310 K
ALA2 = Path(__file__).parents[2] / "examples" / "ala2" / "ala2.safetensors"
BOLTZMANN = 0.00831446261815324  # kJ/(mol K)
TRAINED = 280.0  # K, of the analytic models
MASSES = (2.7, 12.4, 40.3)  # amu
LENGTH, WELL, MASS = 0.31, 0.85, 14.3  # nm, kJ/mol, amu of `units lj` in these tests
SCALE = {"lj": f"scale {LENGTH} {WELL} {MASS}"}
UNITS = REAL_UNITS | {"lj": (LENGTH, MASS)}  # nm, amu
ENERGY = {"real": 4.184, "metal": 96.4853321233, "nano": 0.602214076, "lj": WELL}  # kJ/mol per unit of energy
TIME = {"real": 1e-3, "metal": 1.0, "nano": 1e3, "electron": 1e-3, "si": 1e12}  # ps per unit of time
TIME["lj"] = LENGTH * (MASS / WELL) ** 0.5
KELVIN = {"lj": WELL / BOLTZMANN}  # per unit of temperature, where that is not one
BIN = Path(sys.prefix) / "bin"


def lammps(directory: Path, script: str, n_ranks: int = 1, timeout: float = 60) -> subprocess.CompletedProcess:
    """Run `script` in `directory` as a user would."""
    (directory / "in.test").write_text(script)
    command = [str(BIN / "lmp"), "-in", "in.test"]
    if n_ranks > 1:
        command = [str(BIN / "mpirun"), "-np", str(n_ranks), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )


def run(directory: Path, script: str, n_ranks: int = 1, timeout: float = 60) -> str:
    """What LAMMPS prints; it must succeed."""
    result = lammps(directory, script, n_ranks, timeout)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    return result.stdout


def error_of(directory: Path, script: str, n_ranks: int = 1) -> str:
    """The error that ends a run."""
    result = lammps(directory, script, n_ranks)
    output = result.stdout + result.stderr
    assert result.returncode != 0, output[-3000:]
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    assert errors, output[-3000:]
    return errors[0]


def analytic(path: Path, kind: str, n_particles: int, **hyperparameters) -> diffusim.Model:
    """A model file of a closed-form potential of unnamed particles."""
    model_file.write(path, model_file.ModelFile(kind, n_particles, TRAINED, hyperparameters))
    return diffusim.Model(path)


def write_beads(path: Path, positions: np.ndarray, masses: tuple[float, ...], units: str) -> None:
    """A data file of molecules [n_molecules, n_particles, 3] (nm), one atom type for each particle."""
    length, mass = UNITS[units]
    box = 1.1 * np.abs(positions).max() + 3
    lines = ["beads", "", f"{positions[..., 0].size} atoms", f"{len(masses)} atom types"]
    lines += [f"{-box / length} {box / length} {axis}lo {axis}hi" for axis in "xyz"]
    lines += ["", "Masses", "", *(f"{i + 1} {m / mass!r}" for i, m in enumerate(masses)), "", "Atoms # full", ""]
    for i, position in enumerate((positions / length).reshape(-1, 3).tolist()):
        molecule, particle = divmod(i, len(masses))
        lines.append(f"{i + 1} {molecule + 1} {particle + 1} 0 " + " ".join(map(repr, position)))
    path.write_text("\n".join(lines) + "\n")


def header(data: str, units: str = "real", boundary: str = "s s s") -> str:
    """The lines before the fix; `comm_modify` spares the warnings of a system without a pair style."""
    cutoff = 0.2 / UNITS.get(units, UNITS["nano"])[0]
    return f"units {units}\natom_style full\nboundary {boundary}\nread_data {data}\ncomm_modify cutoff {cutoff}\n"


def dump(every: int, name: str = "frames.dump", columns: str = "x y z") -> str:
    """Dump to the last bit."""
    return f"dump {name} all custom {every} {name} id {columns}\ndump_modify {name} sort id format float %.17g\n"


def frames(directory: Path, name: str = "frames.dump") -> np.ndarray:
    """Dumped positions [n_frames, n_atoms, 3] in LAMMPS's unit."""
    result = []
    for text in (directory / name).read_text().split("ITEM: TIMESTEP")[1:]:
        rows = text.split("ITEM: ATOMS", 1)[1].splitlines()[1:]
        result.append([[float(value) for value in row.split()[1:4]] for row in rows])
    return np.array(result)


def thermo(output: str) -> np.ndarray:
    """Rows of the thermo table of the last run."""
    lines = output.splitlines()
    first = max(i for i, line in enumerate(lines) if line.split()[:1] == ["Step"]) + 1
    last = next(i for i, line in enumerate(lines) if i > first and line.startswith("Loop time"))
    return np.array(
        [
            [float(v) for v in line.split()]
            for line in lines[first:last]
            if line.split()[:1] and line.split()[0].isdigit()
        ]
    )


def standard_error_of_variance(n_samples: int, n_frames: int, correlation: float) -> float:
    """Relative, of n_frames x n_samples Gaussian numbers whose frames are correlated by `correlation`."""
    squared = correlation**2
    return float(np.sqrt(2 / (n_samples * n_frames) * (1 + squared) / (1 - squared)))
