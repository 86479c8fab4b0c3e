"""Snapshots of a molecule or a periodic system: read, selected, converted to nm, checked, mapped to beads."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import mdtraj
import numpy as np

from diffusim.beads import read_beads
from diffusim.core import Model
from diffusim.model_file import Particle
from diffusim.snapshot_files import (
    FORCE_PER_UNIT,
    KINDS,
    NEED_TOPOLOGY,
    NM_PER_UNIT,
    SnapshotError,
    first_line,
    read_content,
    read_topology,
)

NEIGHBOUR_RANGE = (0.07, 0.8)  # nm: nearest neighbours, from a bonded hydrogen to coarse beads
BROKEN_BOND = 1.6  # times its median length: no thermal bond, but a bond across a cell
ALIKE = 0.5  # consecutive frames closer than this, relative to random pairs, follow one another in time
MOLAR_GAS_CONSTANT = 0.00831446261815324  # kJ/mol/K


@dataclass(frozen=True)
class Snapshots:
    """Frames [n_frames, n_particles, 3] in nm (float32), what the particles are, and where it all came from.

    `cells` [n_frames, 3, 3] in nm (rows are vectors) is that of a periodic system, `forces` like the positions are in
    kJ/mol/nm; None where there are none. `notes` are sentences for the user about what was repaired or left out.
    """

    positions: np.ndarray
    particles: list[Particle]
    bonds: list[tuple[int, int]]
    source: dict
    notes: list[str] = field(default_factory=list)
    cells: np.ndarray | None = None
    forces: np.ndarray | None = None

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

    def neighbours(self) -> list[list[int]]:
        """What each particle is bonded to."""
        return _neighbours(self.n_particles, self.bonds)

    def pair_spreads(self) -> np.ndarray:
        """Standard deviation of each pair distance, nm, pairs in lexicographic order."""
        pairs = zip(*np.triu_indices(self.n_particles, 1), strict=True)
        return np.array([_lengths(self.positions, [pair]).std(dtype=float) for pair in pairs])

    def bond_ranges(self) -> list[tuple[float, float]]:
        """Least and greatest length of each bond, nm."""
        return [(float(length.min()), float(length.max())) for length in _lengths(self.positions, self.bonds).T]

    def force_scores(self, temperature: float) -> np.ndarray | None:
        """The forces as scores F / kT, 1/nm. Raises SnapshotError where they contradict the positions.

        At equilibrium <-F . (x - centre)> = 3 (n - 1) kT for a molecule, whatever its energy (the virial): forces in
        another unit, of other atoms or without those of constraints give themselves away.
        """
        if self.forces is None:
            return None
        scores = self.forces / np.float32(MOLAR_GAS_CONSTANT * temperature)
        if self.cells is None:
            work = -np.sum(scores * self.positions, axis=(1, 2), dtype=float) / (3 * (self.n_particles - 1))
            ratio, error = float(work.mean()), float(work.std() / np.sqrt(len(work)))
            if abs(ratio - 1) > 0.2 + 5 * error:
                raise SnapshotError(_force_message(self.source, ratio, error, temperature))
        return scores


def read(
    path: Path,
    topology: Path | mdtraj.Topology | None = None,
    select: str = "all",
    unit: str | None = None,
    stride: int = 1,
    *,
    beads: Path | None = None,
    force_unit: str | None = None,
    periodic: bool = False,
) -> Snapshots:
    """Read every `stride`-th frame of `path`, keep the atoms that `select` (mdtraj's language) chooses, check them, and
    map them to the beads of the file `beads`, where there is one.

    `unit` and `force_unit` override those of the file. The topology has the atoms of the file, or those of the whole
    molecule where the file holds exactly the selected ones. `periodic`: a periodic system, whose cells are kept; of a
    molecule in a cell only the molecule is. Raises SnapshotError.
    """
    path = Path(path)
    for flag, value, known in (("unit", unit, NM_PER_UNIT), ("force-unit", force_unit, FORCE_PER_UNIT)):
        if value is not None and value not in known:
            raise SnapshotError(f"--{flag} is '{value}'; expected one of {', '.join(known)}.")
    if stride < 1:
        raise SnapshotError(f"--stride is {stride}; expected 1 or more.")
    if not path.is_file():
        raise SnapshotError(f"there is no file {path}.")
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise SnapshotError(f"{path.name} is of the unknown kind '{kind}'; expected one of {' '.join(sorted(KINDS))}.")
    if kind in NEED_TOPOLOGY and topology is None:
        raise SnapshotError(f"{path.name} holds positions only; name its atoms with --topology FILE.pdb.")
    top = topology if isinstance(topology, mdtraj.Topology | None) else read_topology(Path(topology))
    content = read_content(path, top, lambda top: _selection(top, select), stride)

    top = content.topology
    chosen = _selection(top, select)
    n_atoms = content.positions.shape[1]
    if n_atoms != top.n_atoms and n_atoms != len(chosen):
        raise SnapshotError(
            f"{path.name} has {n_atoms} atoms a frame, the topology {top.n_atoms} ({len(chosen)} selected). "
            "Give the topology of exactly these atoms, or fix --select."
        )
    if len(chosen) < 2:
        raise SnapshotError(f"--select '{select}' keeps {len(chosen)} atoms; expected 2 or more.")
    if periodic and content.cells is None:
        raise SnapshotError(f"{path.name} has no cell, and --periodic needs one in every frame.")

    def of_chosen(array: np.ndarray | None, factor: float) -> np.ndarray | None:
        if array is None:
            return None
        array = array[:, chosen] if n_atoms == top.n_atoms else array
        return np.ascontiguousarray(array * np.float32(factor), dtype=np.float32)

    unit, force_unit = unit or content.unit, force_unit or content.force_unit
    source = {"file": path.name, "sha256": _sha256(path), "stride": stride, "unit": unit}
    snapshots = Snapshots(
        positions=of_chosen(content.positions, NM_PER_UNIT[unit]),
        particles=[_particle(atom) for atom in top.subset(chosen).atoms],
        bonds=sorted((min(i, j), max(i, j)) for i, j in ((a.index, b.index) for a, b in top.subset(chosen).bonds)),
        source=source | ({} if content.forces is None else {"force_unit": force_unit}),
        cells=None if content.cells is None else np.asarray(content.cells * NM_PER_UNIT[unit], dtype=np.float32),
        forces=of_chosen(content.forces, FORCE_PER_UNIT[force_unit]),
    )
    snapshots = _checked(snapshots, periodic)
    return snapshots if beads is None else _coarse_grained(snapshots, Path(beads), top.subset(chosen))


def read_for(
    model: Model,
    path: Path,
    topology: Path | None = None,
    select: str = "all",
    unit: str | None = None,
    *,
    beads: Path | None = None,
) -> Snapshots:
    """Snapshots of the particles of `model`, in its order: DiffusimError names the first that is another.

    Arguments as of `read`; without a topology a file that holds positions only has exactly the model's particles.
    """
    path, assumed = Path(path), None
    if topology is None and beads is None and select == "all" and path.suffix.lower() in NEED_TOPOLOGY:
        assumed = _topology_of(model.metadata)
    snapshots = read(path, topology or assumed, select, unit, beads=beads)
    if assumed:
        note = f"{path.name} names no atoms: taken for the model's, in its order"
        return replace(snapshots, notes=[note, *snapshots.notes])
    model.check_particles([p.element for p in snapshots.particles], [p.name for p in snapshots.particles])
    return snapshots


def _topology_of(metadata: dict) -> mdtraj.Topology:
    """The particles and bonds that a model file describes."""
    top = mdtraj.Topology()
    chain = top.add_chain()
    residues: dict[int, mdtraj.core.topology.Residue] = {}
    for particle in metadata["particles"]:
        index = particle["residue_index"]
        residue = residues.get(index) or residues.setdefault(index, top.add_residue(particle["residue"], chain))
        try:
            element = mdtraj.element.get_by_symbol(particle["element"])
        except KeyError:  # a bead
            element = mdtraj.element.virtual
        top.add_atom(particle["name"], element, residue)
    atoms = list(top.atoms)
    for i, j in metadata.get("bonds", []):
        top.add_bond(atoms[i], atoms[j])
    return top


def nearest_distances(positions: np.ndarray, cells: np.ndarray | None = None) -> np.ndarray:
    """Distance of each particle to its nearest other, in up to 200 frames, nm; to nearest images in `cells`."""
    return np.concatenate([distances.min(axis=1) for distances in _some_distances(positions, cells)])


def most_neighbours(positions: np.ndarray, cells: np.ndarray | None, within: float) -> int:
    """The most others that any particle has within a distance (nm), in up to 200 frames."""
    return max(int((distances < within).sum(axis=1).max()) for distances in _some_distances(positions, cells))


def closest_distances(positions: np.ndarray, cells: np.ndarray | None, kinds: np.ndarray) -> np.ndarray:
    """The least distance between particles of each two `kinds` (0 ... n - 1), in up to 200 frames, nm, [n, n]."""
    n = int(kinds.max()) + 1
    least = np.full((n, n), np.inf)
    for distances in _some_distances(positions, cells):
        for a in range(n):
            for b in range(n):
                least[a, b] = min(least[a, b], distances[np.ix_(kinds == a, kinds == b)].min())
    return least


def _some_distances(positions: np.ndarray, cells: np.ndarray | None) -> Iterator[np.ndarray]:
    """All pair distances [n_particles, n_particles] of a frame, infinite to itself, for up to 200 frames."""
    for index in range(0, len(positions), -(-len(positions) // max(1, min(200, 2_000_000 // positions.shape[1] ** 2)))):
        difference = positions[index][:, None] - positions[index]
        if cells is not None:
            difference -= np.rint(difference @ np.linalg.inv(cells[index])) @ cells[index]
        distances = np.linalg.norm(difference, axis=-1)
        np.fill_diagonal(distances, np.inf)
        yield distances


def _checked(snapshots: Snapshots, periodic: bool) -> Snapshots:
    """The snapshots whole and without copies, or SnapshotError; cells are dropped unless `periodic`."""
    name, x, notes = snapshots.source["file"], snapshots.positions, list(snapshots.notes)
    cells, forces = snapshots.cells, snapshots.forces
    if len(x) < 2:
        stride = snapshots.source["stride"]
        of_stride = f" with --stride {stride}" if stride > 1 else ""
        raise SnapshotError(f"{name} has {len(x)} frames{of_stride}; training needs thousands.")
    for what, array in (("position", x), ("force", forces), ("cell", cells)):
        if array is not None and not np.isfinite(array).all():
            frame = int(np.argmin(np.isfinite(array).all(axis=(1, 2))))
            raise SnapshotError(f"{name} has a {what} that is not a number in frame {frame}. Leave that frame out.")
    if cells is not None and not (np.abs(np.linalg.det(cells)) > 0).all():
        frame = int(np.argmin(np.abs(np.linalg.det(cells))))
        if periodic:
            raise SnapshotError(f"{name} has a cell without volume in frame {frame}. Leave out --periodic, or fix it.")
        cells = None

    if cells is not None and snapshots.bonds and _broken_bond(x, snapshots.bonds):
        x = _made_whole(x, snapshots.bonds, cells)
        notes.append("molecules that were broken across the periodic cell were made whole")
    nearest = float(np.median(nearest_distances(x, cells if periodic else None)))
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
        first = np.sort(first)
        x, cells, forces = (None if a is None else a[first] for a in (x, cells, forces))
    if _follow_in_time(x):
        notes.append("consecutive frames are alike, as in a trajectory: the held-out loss will look better than it is")
    return replace(
        snapshots,
        positions=x - x.mean(axis=1, keepdims=True),
        cells=cells if periodic else None,
        forces=forces,
        source=snapshots.source | {"n_frames": len(x)},
        notes=notes,
    )


def _coarse_grained(snapshots: Snapshots, beads: Path, top: mdtraj.Topology) -> Snapshots:
    """The frames of the beads that the file `beads` makes of the atoms of `top`."""
    mapping = read_beads(beads, top)
    if len(mapping.particles) < 2:
        raise SnapshotError(f"{beads.name} makes {len(mapping.particles)} bead; expected 2 or more.")
    left_out = int(np.sum(~mapping.members.any(axis=0)))
    notes = [f"{left_out} atoms are in no bead"] if left_out else []
    positions = mapping.positions(snapshots.positions)
    return replace(
        snapshots,
        positions=positions - positions.mean(axis=1, keepdims=True),
        forces=None if snapshots.forces is None else mapping.forces(snapshots.forces),
        particles=mapping.particles,
        bonds=mapping.bonds,
        source=snapshots.source | {"beads": beads.name},
        notes=snapshots.notes + notes,
    )


def _follow_in_time(x: np.ndarray, n_frames: int = 1000, n_pairs: int = 200) -> bool:
    """Whether consecutive frames differ less in their distances than frames far apart."""
    if len(x) < 50:
        return False
    random = np.random.default_rng(0)
    i, j = np.triu_indices(x.shape[1], 1)
    some = random.permutation(len(i))[:n_pairs]
    pairs = list(zip(i[some], j[some], strict=True))
    first = random.permutation(len(x) - 1)[:n_frames]

    def difference(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean((_lengths(x[a], pairs) - _lengths(x[b], pairs)) ** 2))

    return difference(first, first + 1) < ALIKE * difference(first, random.permutation(first))


def _force_message(source: dict, ratio: float, error: float, temperature: float) -> str:
    message = (
        f"the forces of {source['file']} read in {source['force_unit']} do not belong to its positions at "
        f"{temperature:g} K: their virial is {ratio:.3g} ± {error:.1g} times what it must be."
    )
    for other, factor in FORCE_PER_UNIT.items():
        scaled = ratio * factor / FORCE_PER_UNIT[source["force_unit"]]
        if abs(scaled - 1) < 0.2:
            return f"{message} It looks like {other} (then {scaled:.2f}): add --force-unit {other}."
    return (
        f"{message} Check the unit, --temperature, and that nothing was constrained; or train without the forces: "
        "--force-weight 0."
    )


def _lengths(x: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Distances [n_frames, n_pairs]."""
    first, second = np.array(pairs, dtype=int).reshape(-1, 2).T
    return np.linalg.norm(x[:, first] - x[:, second], axis=-1)


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
    neighbours = _neighbours(x.shape[1], bonds)
    placed: set[int] = set()
    for root in range(x.shape[1]):
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


def _neighbours(n_particles: int, bonds: list[tuple[int, int]]) -> list[list[int]]:
    neighbours: list[list[int]] = [[] for _ in range(n_particles)]
    for i, j in bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    return neighbours


def _selection(top: mdtraj.Topology, select: str) -> np.ndarray:
    try:
        return top.select(select)
    except Exception as error:  # mdtraj's parser raises whatever its grammar and Python's `compile` raise
        raise SnapshotError(
            f"--select '{select}' is not understood ({first_line(error)}). Use mdtraj's language: 'not element H'."
        ) from None


def _particle(atom: mdtraj.core.topology.Atom) -> Particle:
    element = atom.element or mdtraj.element.virtual
    return Particle(
        name=atom.name,
        element=element.symbol,
        residue=atom.residue.name,
        residue_index=atom.residue.index,
        mass=float(element.mass),
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
