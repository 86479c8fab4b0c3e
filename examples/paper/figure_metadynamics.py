"""Metadynamics on the learned score by OpenMM and by COLVARS in LAMMPS, against replicas under one bias in the core."""

import shutil
import subprocess
import sys
from pathlib import Path

import ala2_openmm
import model_profile
import numpy as np
import profiles
from figures import Row, canvas

import diffusim
from diffusim.report import plots
from diffusim.terminal import progress

NAME = "metadynamics"
FOLDER = Path(__file__).resolve().parents[1] / "metadynamics"
WITHIN = 1.0  # kJ/mol
WALKERS, FILLING, STEPS = 2, 4_000_000, 10_000_000


def measure(picture: Path) -> list[Row]:
    true = model_s_own(picture.parent / NAME)
    frames, hills = ala2_openmm.run(WALKERS, FILLING, STEPS)
    phi, bias = lammps(picture.parent / NAME)
    found = {
        "OpenMM": profiles.reweighted(np.degrees(frames[..., 0]), frames[..., 2]),
        "LAMMPS": profiles.reweighted(phi[None], bias[None], 10),
    }
    rows = [
        Row(NAME, "the model's own population of φ > 0 / %", 100 * float(true["positive"]),
            100 * float(true["positive_error"])),
        Row(NAME, "the model's own F(φ): rms difference of two halves of the run / kJ/mol", float(true["halves_apart"]),
            None, (0.0, WITHIN)),
    ]  # fmt: skip
    energies = {}
    for name, parts in found.items():
        energy, error = energies[name] = profiles.with_error(parts)
        rms, worst, worst_error = profiles.difference(energy, error, true["free_energy"], true["error"])
        population, population_error = profiles.positive(parts)
        tool = {"OpenMM": "Metadynamics of OpenMM", "LAMMPS": "COLVARS in LAMMPS"}[name]
        where = f"where F < {profiles.POPULATED:g} kJ/mol"
        rows += [
            Row(NAME, f"{tool}: rms difference of F(φ) / kJ/mol, {where}", rms, None, (0.0, WITHIN)),
            Row(NAME, f"{tool}: largest difference of F(φ) / kJ/mol, {where}", worst, worst_error, (0.0, WITHIN)),
            Row(NAME, f"{tool}: population of φ > 0 / %", 100 * population, 100 * population_error,
                100 * float(true["positive"])),
        ]  # fmt: skip
    _draw(picture, true, energies, profiles.free_energy(np.exp(-(hills - hills.min()) / profiles.KT).sum(axis=1)))
    return rows


def model_s_own(folder: Path) -> dict:
    """The arrays of profile.npz in `folder`, which is made where there is none of the present model."""
    path = folder / "profile.npz"
    if not path.exists() or str(np.load(path)["model_sha256"]) != diffusim.Model(ala2_openmm.MODEL).sha256:
        folder.mkdir(parents=True, exist_ok=True)
        model_profile.main(["--output", str(path)])
    with np.load(path) as data:
        return dict(data)


def lammps(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """phi (degrees) and V (kJ/mol) of the frames of in.ala2, run in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("in.ala2", "fill.colvars", "frozen.colvars"):
        shutil.copy(FOLDER / name, folder)
    command = [str(Path(sys.prefix) / "bin" / "lmp"), "-in", "in.ala2", "-log", "none"]
    settings = {"filling": FILLING, "steps": STEPS, "folder": FOLDER.parent / "ala2"}
    for name, value in settings.items():
        command += ["-var", name, str(value)]
    with progress("LAMMPS", f"{FILLING + STEPS:,} steps", FILLING + STEPS) as advance:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        advance(FILLING + STEPS)
    if result.returncode:
        raise SystemExit(f"lmp failed in {folder}:\n{result.stdout[-2000:]}{result.stderr[-1000:]}")
    phi, _, bias = profiles.read_colvars(folder / "frozen.colvars.traj")
    return phi, bias


def _draw(path: Path, true: dict, energies: dict, hills: np.ndarray) -> None:
    centres = (profiles.EDGES[1:] + profiles.EDGES[:-1]) / 2
    zero = true["free_energy"].min()
    title = "Alanine dipeptide: the learned free energy of φ by metadynamics, and by the core"
    with canvas(path, title, 2) as axes:
        true_energy, true_error = true["free_energy"] - zero, true["error"]
        axes[0].fill_between(
            centres, true_energy - true_error, true_energy + true_error, color=plots.REFERENCE, alpha=0.55, lw=0,
            label="replicas under one bias in the core, ± error",
        )  # fmt: skip
        shift = np.linspace(-180, 180, len(hills))
        of_hills = hills - hills.min()
        axes[0].plot(shift, of_hills, color=plots.INDEPENDENT, lw=1, ls=":", label="hills of OpenMM alone")
        names = {"OpenMM": "OpenMM Metadynamics", "LAMMPS": "LAMMPS and COLVARS"}
        for (name, (energy, error)), colour in zip(energies.items(), (plots.SIMULATED, plots.SECOND), strict=True):
            axes[0].plot(centres, energy - zero, color=colour, label=f"{names[name]}, reweighted")
            shown = true_energy < profiles.POPULATED
            total = np.hypot(error, true_error)
            axes[1].errorbar(
                centres[shown], (energy - zero - true_energy)[shown], total[shown], fmt="o", color=colour, capsize=2,
                ms=4, label=names[name],
            )  # fmt: skip
        axes[0].set(xlabel="φ / °", ylabel="F / kJ/mol", xlim=(-180, 180), ylim=(-1, 55))
        axes[0].set_title("Free energy")
        axes[0].legend(loc="upper left", fontsize=8.5)
        axes[1].axhspan(-WITHIN, WITHIN, color="0.92", lw=0)
        axes[1].axhline(0, color="0.6", lw=1)
        axes[1].set(xlabel="φ / °", ylabel="F − F(core) / kJ/mol", xlim=(-180, 180), ylim=(-4, 4))
        axes[1].set_title(f"Difference where F < {profiles.POPULATED:g} kJ/mol")
        axes[1].legend(loc="upper left")
        for panel in axes:
            panel.set_xticks(range(-180, 181, 60))
