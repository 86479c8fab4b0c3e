"""The files that snapshots come in, each read as it is: no selection, no checks, no change of unit.

.npz             `positions` [n_frames, n_atoms, 3], nm or as `unit` says; it may have `cell` [3, 3] or [n_frames, 3, 3]
                 in the same unit, and `forces` like the positions, kJ/mol/nm or as `force_unit` says
.npy             positions, nm; for both the topology comes from a PDB
.dcd .xtc .trr   through mdtraj, each in its own unit; the topology from a PDB
.h5 .pdb .gro    through mdtraj; they bring their topology
.xyz .extxyz     species and positions, Angstrom, and where they have them `Lattice` and `forces`, eV/Angstrom;
                 a topology adds names and bonds
"""

import ctypes
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import mdtraj
import numpy as np

NM_PER_UNIT = {"nm": 1.0, "angstrom": 0.1, "pm": 0.001, "bohr": 0.0529177210903}
# kJ/mol/nm; eV and hartree by the CODATA 2018 values of e N_A and E_h N_A
FORCE_PER_UNIT = {
    "kJ/mol/nm": 1.0,
    "kcal/mol/angstrom": 41.84,
    "eV/angstrom": 964.8533212,
    "hartree/bohr": 2625.4996395 / 0.0529177210903,
}
ARRAYS = {".npz", ".npy"}
XYZ = {".xyz", ".extxyz"}
TRAJECTORIES = {".dcd", ".xtc", ".trr"}
SELF_DESCRIBING = {".h5", ".pdb", ".gro"}
KINDS = ARRAYS | XYZ | TRAJECTORIES | SELF_DESCRIBING
NEED_TOPOLOGY = ARRAYS | TRAJECTORIES
IN_ANGSTROM = {".dcd", ".pdb"}


class SnapshotError(ValueError):
    """Snapshots that cannot be trained on; the message names the file, what is wrong and the fix."""


@dataclass(frozen=True)
class Content:
    """What a file holds: positions [n_frames, n_atoms, 3] and cells [n_frames, 3, 3] (rows are vectors) in `unit`,
    forces like the positions in `force_unit`, and the topology; cells and forces are None where there are none.
    """

    positions: np.ndarray
    unit: str
    topology: mdtraj.Topology
    cells: np.ndarray | None = None
    forces: np.ndarray | None = None
    force_unit: str = "kJ/mol/nm"


def read_content(
    path: Path, topology: mdtraj.Topology | None, select: Callable[[mdtraj.Topology], np.ndarray], stride: int
) -> Content:
    """Every `stride`-th frame of `path`.

    Where a trajectory does not fit the topology, it is read as one of those atoms alone that `select` gives.
    """
    kind = path.suffix.lower()
    if kind in ARRAYS:
        return _read_array(path, topology, stride)
    if kind in XYZ:
        content = _read_xyz(path, stride)
        return content if topology is None else replace(content, topology=topology)
    return _read_mdtraj(path, topology, select, stride)


def read_topology(path: Path) -> mdtraj.Topology:
    """The atoms and bonds of a PDB or whatever else mdtraj takes."""
    if not path.is_file():
        raise SnapshotError(f"there is no topology file {path}.")
    try:
        return mdtraj.load_topology(str(path))
    except Exception as error:  # mdtraj has no error class of its own
        raise SnapshotError(f"{path.name} cannot be read as a topology: {first_line(error)}.") from None


def first_line(error: Exception) -> str:
    """The start of a library's message, short enough for one sentence."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].rstrip(".")[:100]


def _read_array(path: Path, topology: mdtraj.Topology, stride: int) -> Content:
    arrays = {}
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(data, np.lib.npyio.NpzFile):
            known = ("positions", "unit", "cell", "forces", "force_unit")
            arrays = {name: data[name] for name in known if name in data}
            if "positions" not in arrays:
                raise SnapshotError(
                    f"{path.name} has no array 'positions'; it has {', '.join(data) or 'nothing'}. Rename the array."
                )
        else:
            arrays = {"positions": data}
    except SnapshotError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise _unreadable(path) from None

    positions = arrays["positions"]
    _expect_frames(path, "positions", positions)
    forces, cells = arrays.get("forces"), arrays.get("cell")
    if forces is not None:
        _expect_frames(path, "forces", forces)
        if forces.shape != positions.shape:
            raise SnapshotError(
                f"{path.name} has forces of shape {list(forces.shape)} for positions of shape {list(positions.shape)}; "
                "expected one force for each position."
            )
        forces = forces[::stride]
    if cells is not None:
        if cells.shape[-2:] != (3, 3) or cells.shape[:-2] not in ((), (len(positions),)):
            raise SnapshotError(
                f"{path.name} has a cell of shape {list(cells.shape)}; expected [3, 3] or [n_frames, 3, 3]."
            )
        cells = np.broadcast_to(cells, (len(positions), 3, 3))[::stride]
    unit, force_unit = str(arrays.get("unit", "nm")), str(arrays.get("force_unit", "kJ/mol/nm"))
    for name, known in ((unit, NM_PER_UNIT), (force_unit, FORCE_PER_UNIT)):
        if name not in known:
            raise SnapshotError(f"{path.name} states the unit '{name}'; expected one of {', '.join(known)}.")
    return Content(positions[::stride], unit, topology, cells, forces, force_unit)


def _expect_frames(path: Path, name: str, array: np.ndarray) -> None:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind != "f":
        raise SnapshotError(
            f"{path.name} has {name} of shape {list(array.shape)} and type {array.dtype}; "
            "expected [n_frames, n_atoms, 3] of floating point numbers."
        )


def load_quietly(path: Path, **keywords) -> mdtraj.Trajectory:
    """As mdtraj.load, whose C code prints on the terminal of every DCD file what kind it is."""
    with _silent_stdout():
        return mdtraj.load(str(path), **keywords)


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """What anything in this process writes to standard output meanwhile, C included, is dropped."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _read_mdtraj(
    path: Path, top: mdtraj.Topology | None, select: Callable[[mdtraj.Topology], np.ndarray], stride: int
) -> Content:
    kind = path.suffix.lower()
    if kind == ".dcd" and b"CORD" not in _start(path):  # mdtraj would print what it found
        raise _unreadable(path)
    own_topology = kind in SELF_DESCRIBING
    candidates = [{}] if own_topology else [{"top": top}, {"top": top.subset(select(top))}]
    for keywords in candidates:
        try:
            trajectory = load_quietly(path, stride=stride, **keywords)
        except Exception:  # mdtraj has no error class of its own
            continue
        unit = "angstrom" if kind in IN_ANGSTROM else "nm"
        scale = np.float32(1 / NM_PER_UNIT[unit])  # mdtraj has converted to nm
        cells = trajectory.unitcell_vectors
        content_top = top or trajectory.topology
        return Content(trajectory.xyz * scale, unit, content_top, None if cells is None else cells * scale)
    raise _unreadable(path, "" if own_topology else ", or its atoms are not those of the topology")


def _read_xyz(path: Path, stride: int) -> Content:
    """The topology is that of the species alone: every atom its own name, no bonds."""
    frames, species = [], None
    with open(path, errors="replace") as file:
        for index, frame in enumerate(_xyz_frames(path, file)):
            if species is not None and frame.species != species:
                raise SnapshotError(
                    f"{path.name} changes its atoms in frame {index} ({len(frame.species)} atoms, {len(species)} "
                    "before); all frames must hold the same atoms in the same order."
                )
            species = frame.species
            if index % stride == 0:
                frames.append(frame)
    if not frames:
        raise SnapshotError(f"{path.name} has no frames.")
    top = mdtraj.Topology()
    residue = top.add_residue("MOL", top.add_chain())
    for i, symbol in enumerate(species):
        top.add_atom(f"{symbol}{i + 1}", _element(symbol), residue)

    def collected(name: str) -> np.ndarray | None:
        values = [getattr(frame, name) for frame in frames]
        missing = sum(value is None for value in values)
        if 0 < missing < len(values):
            raise SnapshotError(f"{path.name} has {name} in some frames only; give all of them {name}, or none.")
        return None if missing else np.array(values, dtype=np.float32)

    return Content(
        collected("positions"), "angstrom", top, collected("cell"), collected("forces"), force_unit="eV/angstrom"
    )


@dataclass(frozen=True)
class _XyzFrame:
    species: list[str]
    positions: list[list[float]]
    cell: np.ndarray | None
    forces: list[list[float]] | None


def _xyz_frames(path: Path, lines: Iterable[str]) -> Iterator[_XyzFrame]:
    """The frames of an (extended) XYZ file; columns as its `Properties` says."""
    lines = iter(lines)
    for count in lines:
        if not count.strip():
            continue
        comment = next(lines, "")
        columns = {"species": 0, "pos": 1}
        if properties := re.search(r"Properties=(\S+)", comment):
            fields, columns, column = properties[1].strip('"').split(":"), {}, 0
            for name, width in zip(fields[0::3], fields[2::3], strict=False):
                columns[name] = column
                column += int(width) if width.isdigit() else 0
        try:
            n_atoms = int(count)
            rows = [line.split() for line in islice(lines, n_atoms)]

            def vectors(rows: list[list[str]], column: int | None) -> list[list[float]] | None:
                return None if column is None else [[float(row[column + k]) for k in range(3)] for row in rows]

            lattice = re.search(r'Lattice="([^"]*)"', comment)
            frame = _XyzFrame(
                species=[row[columns.get("species", 0)] for row in rows],
                positions=vectors(rows, columns.get("pos", 1)),
                cell=np.array(lattice[1].split(), dtype=float).reshape(3, 3) if lattice else None,
                forces=vectors(rows, columns.get("forces", columns.get("force"))),
            )
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


def _unreadable(path: Path, otherwise: str = "") -> SnapshotError:
    """What to say where a library found the file to be wrong, in words of its own that help nobody."""
    kind = path.suffix[1:].upper()
    return SnapshotError(f"{path.name} cannot be read as {kind}: it is damaged or of another kind{otherwise}.")


def _start(path: Path) -> bytes:
    """The first bytes, where files of most kinds say what they are."""
    with open(path, "rb") as file:
        return file.read(12)
