"""Snapshots of one molecule: read from the usual files, selected, converted to nm, and checked.

.npz .npy                positions [n_frames, n_atoms, 3], nm unless the npz has `unit`; the topology from a PDB
.dcd .xtc .trr .nc       through mdtraj, each in its own unit; the topology from a PDB
.h5 .pdb .cif .gro       through mdtraj; they bring their topology
.xyz .extxyz             species and positions, Angstrom; a topology adds names and bonds
"""

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import mdtraj
import numpy as np

from diffusim.model_file import Particle

NM_PER_UNIT = {"nm": 1.0, "angstrom": 0.1, "pm": 0.001, "bohr": 0.0529177210903}
ARRAYS = {".npz", ".npy"}
XYZ = {".xyz", ".extxyz"}
TRAJECTORIES = {".dcd", ".xtc", ".trr"}
SELF_DESCRIBING = {".h5", ".pdb", ".gro"}
IN_ANGSTROM = {".dcd", ".pdb"}
NEIGHBOUR_RANGE = (0.07, 0.8)  # nm: nearest neighbours, from a bonded hydrogen to coarse beads
BROKEN_BOND = 1.6  # times its median length: no thermal bond, but a bond across a cell


class SnapshotError(ValueError):
    """Snapshots that cannot be trained on; the message names the file, what is wrong and the fix."""


@dataclass(frozen=True)
class Snapshots:
    """Frames [n_frames, n_particles, 3] in nm (float32), what the particles are, and where it all came from.

    `notes` are sentences for the user about what was repaired or left out.
    """

    positions: np.ndarray
    particles: list[Particle]
    bonds: list[tuple[int, int]]
    source: dict
    notes: list[str] = field(default_factory=list)

    @property
    def n_frames(self) -> int:
        return self.positions.shape[0]

    @property
    def n_particles(self) -> int:
        return self.positions.shape[1]

    def label(self, i: int) -> str:
        """A particle as the user knows it: 'CA of ALA 2 (particle 4)'."""
        particle = self.particles[i]
        of = f" of {particle.residue} {particle.residue_index + 1}" if particle.residue else ""
        return f"{particle.name}{of} (particle {i})"

    def pair_spreads(self) -> np.ndarray:
        """Standard deviation of each pair distance, nm, pairs in lexicographic order."""
        pairs = zip(*np.triu_indices(self.n_particles, 1), strict=True)
        return np.array([_lengths(self.positions, [pair]).std(dtype=float) for pair in pairs])

    def bond_ranges(self) -> list[tuple[float, float]]:
        """Least and greatest length of each bond, nm."""
        return [(float(length.min()), float(length.max())) for length in _lengths(self.positions, self.bonds).T]


def read(
    path: Path, topology: Path | None = None, select: str = "all", unit: str | None = None, stride: int = 1
) -> Snapshots:
    """Read every `stride`-th frame of `path`, keep the atoms that `select` (mdtraj's language) chooses, and check them.

    `unit` overrides the length unit of the file. The topology has the atoms of the file, or those of the whole molecule
    where the file holds exactly the selected ones. Raises SnapshotError.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if unit is not None and unit not in NM_PER_UNIT:
        raise SnapshotError(f"--unit is '{unit}'; expected one of {', '.join(NM_PER_UNIT)}.")
    if stride < 1:
        raise SnapshotError(f"--stride is {stride}; expected 1 or more.")
    if not path.is_file():
        raise SnapshotError(f"there is no file {path}.")
    if kind in ARRAYS | TRAJECTORIES and topology is None:
        raise SnapshotError(f"{path.name} holds positions only; name its atoms with --topology FILE.pdb.")
    top = None if topology is None else _read_topology(Path(topology))

    cell = None
    if kind in ARRAYS:
        frames, stated_unit = _read_array(path)
        frames = frames[::stride]
    elif kind in XYZ:
        frames, own_top, stated_unit = *_read_xyz(path, stride), "angstrom"
        top = top or own_top
    elif kind in TRAJECTORIES | SELF_DESCRIBING:
        frames, cell, top = _read_mdtraj(path, top, select, stride)
        stated_unit = "angstrom" if kind in IN_ANGSTROM else "nm"
        frames = frames / np.float32(NM_PER_UNIT[stated_unit])  # mdtraj has converted to nm
    else:
        known = " ".join(sorted(ARRAYS | XYZ | TRAJECTORIES | SELF_DESCRIBING))
        raise SnapshotError(f"{path.name} is of the unknown kind '{kind}'; expected one of {known}.")

    chosen = _selection(top, select)
    if frames.shape[1] == top.n_atoms:
        frames = frames[:, chosen]
    elif frames.shape[1] != len(chosen):
        raise SnapshotError(
            f"{path.name} has {frames.shape[1]} atoms a frame, the topology {top.n_atoms} ({len(chosen)} selected). "
            "Give the topology of exactly these atoms, or fix --select."
        )
    if len(chosen) < 2:
        raise SnapshotError(f"--select '{select}' keeps {len(chosen)} atoms; expected 2 or more.")
    top = top.subset(chosen)

    factor = NM_PER_UNIT[unit or stated_unit]
    snapshots = Snapshots(
        positions=np.ascontiguousarray(frames * np.float32(factor), dtype=np.float32),
        particles=[_particle(atom) for atom in top.atoms],
        bonds=sorted((min(i, j), max(i, j)) for i, j in ((a.index, b.index) for a, b in top.bonds)),
        source={"file": path.name, "sha256": _sha256(path), "stride": stride, "unit": unit or stated_unit},
    )
    if cell is not None:
        cell = cell * (factor / NM_PER_UNIT[stated_unit])
    return _checked(snapshots, cell)


def _checked(snapshots: Snapshots, cell: np.ndarray | None) -> Snapshots:
    """The snapshots whole and without copies, or SnapshotError. `cell` is [n_frames, 3, 3] in nm (rows are vectors)."""
    name, x, notes = snapshots.source["file"], snapshots.positions, list(snapshots.notes)
    if len(x) < 2:
        raise SnapshotError(f"{name} has {len(x)} frames; training needs thousands.")
    if not np.isfinite(x).all():
        frame = int(np.argmin(np.isfinite(x).all(axis=(1, 2))))
        raise SnapshotError(f"{name} has a position that is not a number in frame {frame}. Leave that frame out.")

    if cell is not None and snapshots.bonds and _broken_bond(x, snapshots.bonds):
        x = _made_whole(x, snapshots.bonds, cell)
        notes.append("molecules that were broken across the periodic cell were made whole")
    nearest = _nearest_neighbour(x)
    if not NEIGHBOUR_RANGE[0] <= nearest <= NEIGHBOUR_RANGE[1]:
        raise SnapshotError(_unit_message(name, nearest, snapshots.source["unit"]))
    broken = _broken_bond(x, snapshots.bonds)
    if broken:
        frame, (i, j), length, median = broken
        raise SnapshotError(
            f"{name} has a broken molecule in frame {frame}: the bond {snapshots.label(i)} to {snapshots.label(j)} is "
            f"{length:.3g} nm, usually {median:.3g}. Write molecules whole, with no jump across the cell."
        )

    _, first = np.unique(x.reshape(len(x), -1), axis=0, return_index=True)
    if len(first) < len(x):
        notes.append(f"{len(x) - len(first):,} frames that repeat another one exactly were left out")
        x = x[np.sort(first)]
    x = x - x.mean(axis=1, keepdims=True)
    source = snapshots.source | {"n_frames": len(x)}
    return Snapshots(x, snapshots.particles, snapshots.bonds, source, notes)


def _lengths(x: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Distances [n_frames, n_pairs]."""
    first, second = np.array(pairs, dtype=int).reshape(-1, 2).T
    return np.linalg.norm(x[:, first] - x[:, second], axis=-1)


def _nearest_neighbour(x: np.ndarray) -> float:
    """Median, over particles and up to 200 frames, of the distance to the nearest other particle."""
    x = x[:: -(-len(x) // 200)]
    distances = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
    distances[:, np.arange(x.shape[1]), np.arange(x.shape[1])] = np.inf
    return float(np.median(distances.min(axis=-1)))


def _unit_message(name: str, nearest: float, unit: str) -> str:
    message = (
        f"{name} read in {unit}: nearest neighbours are {nearest:.3g} nm apart; "
        f"expected {NEIGHBOUR_RANGE[0]} to {NEIGHBOUR_RANGE[1]}."
    )
    for other in NM_PER_UNIT:
        scaled = nearest * NM_PER_UNIT[other] / NM_PER_UNIT[unit]
        if NEIGHBOUR_RANGE[0] <= scaled <= NEIGHBOUR_RANGE[1]:
            return f"{message} It looks like {other} (then {scaled:.3g} nm): add --unit {other}."
    return f"{message} Check the file and --unit."


def _broken_bond(x: np.ndarray, bonds: list[tuple[int, int]]) -> tuple[int, tuple[int, int], float, float] | None:
    """Frame, bond, length and usual length of the most stretched bond, if it is no longer a bond."""
    if not bonds:
        return None
    lengths = _lengths(x, bonds)
    median = np.minimum(np.median(lengths, axis=0), NEIGHBOUR_RANGE[1])
    frame, bond = np.unravel_index(np.argmax(lengths / median), lengths.shape)
    if lengths[frame, bond] <= BROKEN_BOND * median[bond]:
        return None
    return int(frame), bonds[bond], float(lengths[frame, bond]), float(median[bond])


def _made_whole(x: np.ndarray, bonds: list[tuple[int, int]], cell: np.ndarray) -> np.ndarray:
    """Each particle moved to the image next to the one it is bonded to, walking the bonds from particle 0."""
    x = x.copy()
    inverse = np.linalg.inv(cell)
    neighbours = {i: [] for i in range(x.shape[1])}
    for i, j in bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    placed: set[int] = set()
    for root in neighbours:
        reached = [] if root in placed else [root]
        placed.add(root)
        for i in reached:
            for j in neighbours[i]:
                if j not in placed:
                    images = np.rint(np.einsum("fa,fab->fb", x[:, j] - x[:, i], inverse))
                    x[:, j] -= np.einsum("fa,fab->fb", images, cell).astype(x.dtype)
                    placed.add(j)
                    reached.append(j)
    return x


def _selection(top: mdtraj.Topology, select: str) -> np.ndarray:
    try:
        return top.select(select)
    except Exception as error:  # mdtraj's parser raises whatever its grammar and Python's `compile` raise
        raise SnapshotError(
            f"--select '{select}' is not understood ({_first_line(error)}). Use mdtraj's language: 'not element H'."
        ) from None


def _read_topology(path: Path) -> mdtraj.Topology:
    if not path.is_file():
        raise SnapshotError(f"there is no topology file {path}.")
    try:
        return mdtraj.load_topology(str(path))
    except Exception as error:  # mdtraj has no error class of its own
        raise SnapshotError(f"{path.name} cannot be read as a topology: {_first_line(error)}.") from None


def _read_array(path: Path) -> tuple[np.ndarray, str]:
    """Positions and their unit."""
    unit = "nm"
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(data, np.lib.npyio.NpzFile):
            unit = str(data["unit"]) if "unit" in data else unit
            data = data["positions"]
    except KeyError:
        raise SnapshotError(f"{path.name} has no array 'positions'; it has {', '.join(data) or 'nothing'}.") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise _unreadable(path) from None
    if data.ndim != 3 or data.shape[2] != 3 or data.dtype.kind != "f":
        raise SnapshotError(
            f"{path.name} has positions of shape {list(data.shape)} and type {data.dtype}; "
            "expected [n_frames, n_atoms, 3] of floating point numbers."
        )
    if unit not in NM_PER_UNIT:
        raise SnapshotError(f"{path.name} states the unit '{unit}'; expected one of {', '.join(NM_PER_UNIT)}.")
    return data, unit


def _read_mdtraj(
    path: Path, top: mdtraj.Topology | None, select: str, stride: int
) -> tuple[np.ndarray, np.ndarray | None, mdtraj.Topology]:
    """Positions and cell [n_frames, 3, 3] or None, both in nm, and the topology."""
    if path.suffix.lower() == ".dcd" and b"CORD" not in _start(path):  # mdtraj would print what it found
        raise _unreadable(path)
    own_topology = path.suffix.lower() in SELF_DESCRIBING
    candidates = [{}] if own_topology else [{"top": top}, {"top": top.subset(_selection(top, select))}]
    for keywords in candidates:
        try:
            trajectory = mdtraj.load(str(path), stride=stride, **keywords)
        except Exception:  # mdtraj has no error class of its own
            continue
        return trajectory.xyz, trajectory.unitcell_vectors, trajectory.topology
    raise _unreadable(path, "" if own_topology else ", or its atoms are not those of the topology")


def _read_xyz(path: Path, stride: int) -> tuple[np.ndarray, mdtraj.Topology]:
    """Positions as in the file, and a topology of its species alone: every atom its own name, no bonds."""
    frames, species = [], None
    with open(path, errors="replace") as file:
        for index, (names, positions) in enumerate(_xyz_frames(path, file)):
            if species is not None and names != species:
                raise SnapshotError(
                    f"{path.name} changes its atoms in frame {index} ({len(names)} atoms, {len(species)} before); "
                    "all frames must hold the same atoms in the same order."
                )
            species = names
            if index % stride == 0:
                frames.append(positions)
    if not frames:
        raise SnapshotError(f"{path.name} has no frames.")
    top = mdtraj.Topology()
    residue = top.add_residue("MOL", top.add_chain())
    for i, symbol in enumerate(species):
        top.add_atom(f"{symbol}{i + 1}", _element(symbol), residue)
    return np.array(frames, dtype=np.float32), top


def _xyz_frames(path: Path, lines: Iterable[str]) -> Iterator[tuple[list[str], list[list[float]]]]:
    """Species and positions of each frame of an (extended) XYZ file; columns as its `Properties` says."""
    lines = iter(lines)
    for count in lines:
        if not count.strip():
            continue
        comment = next(lines, "")
        species, position = 0, 1
        if properties := re.search(r"Properties=(\S+)", comment):
            fields = properties[1].strip('"').split(":")
            columns, column = {}, 0
            for name, width in zip(fields[0::3], fields[2::3], strict=False):
                columns[name] = column
                column += int(width)
            species, position = columns.get("species", 0), columns.get("pos", 1)
        try:
            n_atoms = int(count)
            rows = [line.split() for line in islice(lines, n_atoms)]
            frame = [row[species] for row in rows], [[float(v) for v in row[position : position + 3]] for row in rows]
        except (ValueError, IndexError):
            raise _unreadable(path) from None
        if len(rows) != n_atoms:
            raise SnapshotError(f"{path.name} ends in the middle of a frame; leave that frame out.")
        yield frame


def _element(symbol: str) -> mdtraj.element.Element:
    try:
        return mdtraj.element.get_by_symbol(symbol)
    except KeyError:
        return mdtraj.element.virtual


def _particle(atom: mdtraj.core.topology.Atom) -> Particle:
    element = atom.element or mdtraj.element.virtual
    return Particle(
        name=atom.name,
        element=element.symbol,
        residue=atom.residue.name,
        residue_index=atom.residue.index,
        mass=float(element.mass),
    )


def _unreadable(path: Path, otherwise: str = "") -> SnapshotError:
    """What to say where a library found the file to be wrong, in words of its own that help nobody."""
    kind = path.suffix[1:].upper()
    return SnapshotError(f"{path.name} cannot be read as {kind}: it is damaged or of another kind{otherwise}.")


def _start(path: Path) -> bytes:
    """The first bytes, where files of most kinds say what they are."""
    with open(path, "rb") as file:
        return file.read(12)


def _first_line(error: Exception) -> str:
    """The start of a library's message, short enough for one sentence."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].rstrip(".")[:100]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
