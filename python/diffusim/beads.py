"""Coarse-graining: a file that maps atoms to beads, and frames of atoms to frames of beads.

    centre = "mass"              # or "geometry"

    [[bead]]
    name = "BB"
    atoms = "name N CA C O"      # mdtraj's language, or a list of atom indices
    per = "residue"              # a bead in each residue that has such atoms; left out: one bead of all of them

    [[bead]]
    ...

    bonds = [[0, 1], [1, 2]]     # of beads, in the order above; left out: beads whose atoms are bonded

JSON with the same keys does as well. Each atom is in one bead at most.
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np

from diffusim.model_file import Particle
from diffusim.snapshot_files import SnapshotError, first_line

CENTRES = ("mass", "geometry")


@dataclass(frozen=True)
class BeadMap:
    """Beads of atoms: `weights` [n_beads, n_atoms] give the centres, `members` [n_beads, n_atoms] who belongs."""

    particles: list[Particle]
    bonds: list[tuple[int, int]]
    weights: np.ndarray
    members: np.ndarray

    def positions(self, atoms: np.ndarray) -> np.ndarray:
        """Centres [n_frames, n_beads, 3] of the beads."""
        return np.einsum("ba,fax->fbx", self.weights, atoms, optimize=True).astype(np.float32)

    def forces(self, atoms: np.ndarray) -> np.ndarray:
        """Forces [n_frames, n_beads, 3], summed over the atoms of a bead; their mean is the mean force (theory 16a)."""
        return np.einsum("ba,fax->fbx", self.members.astype(np.float32), atoms, optimize=True).astype(np.float32)


def read_beads(path: Path, top: mdtraj.Topology) -> BeadMap:
    """The mapping in `path` of the atoms of `top`. Raises SnapshotError."""
    if not path.is_file():
        raise SnapshotError(f"there is no bead file {path}.")
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:  # of both parsers, and of the encoding
        raise SnapshotError(f"{path.name} cannot be read: {first_line(error)}.") from None
    if not isinstance(content, dict) or not isinstance(content.get("bead"), list) or not content["bead"]:
        raise SnapshotError(f"{path.name} has no beads; expected [[bead]] with name and atoms, once or more.")
    _expect_keys(path, "the file", content, {"centre", "bead", "bonds"})
    centre = content.get("centre", "mass")
    if centre not in CENTRES:
        raise SnapshotError(f"{path.name} sets centre to '{centre}'; expected {' or '.join(CENTRES)}.")

    particles, members = [], []
    for number, entry in enumerate(content["bead"]):
        where = f"bead {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or "atoms" not in entry:
            raise SnapshotError(f"{path.name}, {where}: expected a name and atoms.")
        _expect_keys(path, where, entry, {"name", "atoms", "per"})
        if entry.get("per", "residue") != "residue":
            raise SnapshotError(f"{path.name}, {where}: per is '{entry['per']}'; expected 'residue', or nothing.")
        atoms = _atoms(path, entry, top)
        groups = [atoms]
        if "per" in entry:
            groups = [[i for i in atoms if top.atom(i).residue is residue] for residue in top.residues]
        for group in filter(None, groups):
            particles.append(_bead(entry["name"], [top.atom(i) for i in group]))
            members.append(np.isin(np.arange(top.n_atoms), group))
    members = np.array(members)
    shared = np.flatnonzero(members.sum(axis=0) > 1)
    if len(shared):
        first, second = np.flatnonzero(members[:, shared[0]])[:2]
        raise SnapshotError(
            f"{path.name} puts atom {top.atom(int(shared[0]))} (index {shared[0]}) into two beads, "
            f"{particles[first].name} ({first}) and {particles[second].name} ({second}); expected one at most."
        )
    masses = np.array([atom.element.mass if atom.element else 0.0 for atom in top.atoms])
    shares = members * (masses if centre == "mass" else 1.0)
    if not (shares.sum(axis=1) > 0).all():
        bead = particles[int(np.argmin(shares.sum(axis=1)))]
        raise SnapshotError(f'{path.name}: the atoms of bead {bead.name} have no masses. Set centre = "geometry".')
    return BeadMap(particles, _bonds(path, content, members, top), shares / shares.sum(axis=1, keepdims=True), members)


def _atoms(path: Path, entry: dict, top: mdtraj.Topology) -> list[int]:
    """Atom indices of one entry."""
    wanted = entry["atoms"]
    if isinstance(wanted, list):
        for i in wanted:
            if not isinstance(i, int) or not 0 <= i < top.n_atoms:
                raise SnapshotError(
                    f"{path.name}, bead {entry['name']}: there is no atom {i}; expected indices 0 to {top.n_atoms - 1}."
                )
        found = sorted(set(wanted))
    else:
        try:
            found = [int(i) for i in top.select(str(wanted))]
        except Exception as error:  # mdtraj's parser raises whatever its grammar raises
            raise SnapshotError(
                f"{path.name}, bead {entry['name']}: atoms = '{wanted}' is not understood ({first_line(error)})."
            ) from None
    if not found:
        raise SnapshotError(f"{path.name}, bead {entry['name']}: '{wanted}' are no atoms of this topology.")
    return found


def _bead(name: str, atoms: list) -> Particle:
    """A bead of one atom keeps its element, so that engines can check it."""
    element = atoms[0].element.symbol if len(atoms) == 1 and atoms[0].element else ""
    mass = float(sum(atom.element.mass if atom.element else 0.0 for atom in atoms))
    residue = atoms[0].residue
    return Particle(name, element, residue.name, residue.index, mass or 1.0)


def _bonds(path: Path, content: dict, members: np.ndarray, top: mdtraj.Topology) -> list[tuple[int, int]]:
    n_beads = len(members)
    if "bonds" in content:
        for pair in content["bonds"]:
            good = isinstance(pair, list) and len(pair) == 2 and len(set(pair)) == 2
            if not good or not all(isinstance(i, int) and 0 <= i < n_beads for i in pair):
                raise SnapshotError(f"{path.name}: bond {pair} joins no two of the beads 0 to {n_beads - 1}.")
        return sorted({(min(pair), max(pair)) for pair in content["bonds"]})
    bead_of = np.where(members.any(axis=0), members.argmax(axis=0), -1)
    pairs = {tuple(sorted((int(bead_of[a.index]), int(bead_of[b.index])))) for a, b in top.bonds}
    return sorted((i, j) for i, j in pairs if i >= 0 and i != j)


def _expect_keys(path: Path, where: str, entry: dict, known: set[str]) -> None:
    unknown = sorted(set(entry) - known)
    if unknown:
        raise SnapshotError(f"{path.name}, {where}: '{unknown[0]}' is no key; expected {', '.join(sorted(known))}.")
