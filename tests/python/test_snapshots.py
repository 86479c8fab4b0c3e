"""Reading snapshots: every format gives the same positions in nm, and what cannot be trained on is refused by name."""

import json
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from diffusim.snapshots import MOLAR_GAS_CONSTANT, SnapshotError, nearest_distances, read

PDB = Path(__file__).parents[2] / "examples/ala2/ala2.pdb"
HEAVY = "not element H"
HEAVY_BONDS = [(0, 1), (1, 2), (1, 3), (3, 4), (4, 5), (4, 6), (6, 7), (6, 8), (8, 9)]
N_FRAMES = 23


@pytest.fixture(scope="module")
def molecule() -> mdtraj.Trajectory:
    """Alanine dipeptide with all its atoms, shaken by 0.003 nm."""
    one = mdtraj.load(str(PDB))
    shake = np.random.default_rng(11).normal(scale=0.003, size=(N_FRAMES, one.n_atoms, 3))
    return mdtraj.Trajectory(one.xyz + shake.astype(np.float32), one.topology)


@pytest.fixture
def heavy_pdb(molecule, tmp_path) -> Path:
    path = tmp_path / "heavy.pdb"
    molecule[0].atom_slice(molecule.topology.select(HEAVY)).save_pdb(str(path))
    return path


def centred_heavy(molecule) -> np.ndarray:
    x = molecule.xyz[:, molecule.topology.select(HEAVY)]
    return x - x.mean(axis=1, keepdims=True)


def write_extxyz(path: Path, molecule: mdtraj.Trajectory, properties: str = "pos:R:3:species:S:1") -> None:
    lines = []
    for frame in molecule.xyz * 10:
        lines += [str(molecule.n_atoms), f'Properties={properties} energy=-3.7 Lattice="30 0 0 0 31 0 0 0 32"']
        lines += [
            f"{x:.5f} {y:.5f} {z:.5f} {a.element.symbol}"
            for a, (x, y, z) in zip(molecule.topology.atoms, frame, strict=True)
        ]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("kind", ["xtc", "dcd", "trr", "h5", "pdb", "gro", "npy", "npz", "npz in angstrom", "extxyz"])
def test_every_format_gives_the_same_positions_in_nm(kind, molecule, tmp_path):
    path = tmp_path / f"snapshots.{kind.split()[0]}"
    if kind == "npy":
        np.save(path, molecule.xyz)
    elif kind == "npz":
        np.savez_compressed(path, positions=molecule.xyz)
    elif kind == "npz in angstrom":
        np.savez(path, positions=molecule.xyz.astype(float) * 10, unit="angstrom")
    elif kind == "extxyz":
        write_extxyz(path, molecule)
    else:
        molecule.save(str(path))
    snapshots = read(path, topology=PDB, select=HEAVY)
    assert snapshots.positions.dtype == np.float32
    np.testing.assert_allclose(snapshots.positions, centred_heavy(molecule), atol=0.0012)  # xtc and gro round to 0.001
    assert [p.name for p in snapshots.particles] == "CH3 C O N CA CB C O N C".split()
    assert snapshots.particles[4].residue == "ALA" and snapshots.particles[4].mass == pytest.approx(12.011, abs=0.01)
    assert snapshots.bonds == HEAVY_BONDS
    assert snapshots.source["n_frames"] == N_FRAMES


def test_files_that_bring_their_topology_need_none(molecule, tmp_path):
    molecule.save(str(tmp_path / "a.pdb"))
    write_extxyz(tmp_path / "a.extxyz", molecule)
    assert read(tmp_path / "a.pdb", select=HEAVY).bonds == HEAVY_BONDS
    bare = read(tmp_path / "a.extxyz", select=HEAVY)
    assert "".join(p.element for p in bare.particles) == "CCONCCCONC" and bare.bonds == []


@pytest.mark.parametrize("kind", ["npz", "xtc"])
def test_a_file_of_the_selected_atoms_fits_the_topology_of_the_whole(kind, molecule, tmp_path):
    heavy = molecule.atom_slice(molecule.topology.select(HEAVY))
    path = tmp_path / f"heavy.{kind}"
    if kind == "npz":
        np.savez(path, positions=heavy.xyz)
    else:
        heavy.save(str(path))
    assert read(path, topology=PDB, select=HEAVY).bonds == HEAVY_BONDS


def test_stride_keeps_every_nth_frame(molecule, tmp_path):
    np.save(tmp_path / "a.npy", molecule.xyz)
    snapshots = read(tmp_path / "a.npy", topology=PDB, select=HEAVY, stride=5)
    np.testing.assert_allclose(snapshots.positions, centred_heavy(molecule)[::5], atol=1e-6)


@pytest.mark.parametrize(("factor", "unit"), [(10, "angstrom"), (1000, "pm")])
def test_a_wrong_unit_is_recognised_and_the_right_one_named(factor, unit, molecule, tmp_path):
    np.save(tmp_path / "a.npy", molecule.xyz * factor)
    with pytest.raises(SnapshotError, match=f"add --unit {unit}"):
        read(tmp_path / "a.npy", topology=PDB, select=HEAVY)
    snapshots = read(tmp_path / "a.npy", topology=PDB, select=HEAVY, unit=unit)
    np.testing.assert_allclose(snapshots.positions, centred_heavy(molecule), atol=1e-5)


def test_reading_a_dcd_says_nothing(molecule, tmp_path):
    """Also not at the end of the process, where mdtraj's C code would print what waits in its buffer."""
    molecule.save(str(tmp_path / "a.dcd"))
    code = (
        "import sys; from diffusim.snapshots import read; path, pdb, select = sys.argv[1:]; "
        "read(path, topology=pdb, select=select); print('read')"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "a.dcd"), str(PDB), HEAVY]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert result.stdout == "read\n"


def test_a_dcd_written_in_nm_is_recognised(molecule, tmp_path):
    in_nm = mdtraj.Trajectory(molecule.xyz / 10, molecule.topology)  # mdtraj multiplies by 10 on writing
    in_nm.save(str(tmp_path / "a.dcd"))
    with pytest.raises(SnapshotError, match="add --unit nm"):
        read(tmp_path / "a.dcd", topology=PDB, select=HEAVY)
    snapshots = read(tmp_path / "a.dcd", topology=PDB, select=HEAVY, unit="nm")
    np.testing.assert_allclose(snapshots.positions, centred_heavy(molecule), atol=1e-5)


def test_a_molecule_broken_across_the_cell_is_made_whole_or_refused(molecule, tmp_path):
    edge = 2.3
    broken = mdtraj.Trajectory(
        (molecule.xyz + 0.9) % edge,
        molecule.topology,
        unitcell_lengths=np.full((N_FRAMES, 3), edge),
        unitcell_angles=np.full((N_FRAMES, 3), 90.0),
    )
    shifts = np.linspace(0, edge, N_FRAMES)[:, None, None]
    broken.xyz = (broken.xyz + shifts) % edge
    broken.save(str(tmp_path / "a.xtc"))
    whole = read(tmp_path / "a.xtc", topology=PDB, select=HEAVY)
    np.testing.assert_allclose(whole.positions, centred_heavy(molecule), atol=0.0015)
    assert "made whole" in whole.notes[0]

    np.save(tmp_path / "a.npy", broken.xyz)
    with pytest.raises(SnapshotError, match="broken molecule in frame .* the bond .* usually 0.1"):
        read(tmp_path / "a.npy", topology=PDB, select=HEAVY)


def test_copies_of_a_frame_are_left_out_and_reported(molecule, tmp_path):
    np.save(tmp_path / "a.npy", np.concatenate([molecule.xyz, molecule.xyz[4:7]]))
    snapshots = read(tmp_path / "a.npy", topology=PDB, select=HEAVY)
    assert snapshots.n_frames == N_FRAMES
    assert "3 frames that repeat" in snapshots.notes[0]


def test_what_cannot_be_read_is_refused_with_the_fix(molecule, heavy_pdb, tmp_path):
    def refused(match, path, **arguments):
        with pytest.raises(SnapshotError, match=match):
            read(path, **arguments)

    good = tmp_path / "a.npy"
    np.save(good, molecule.xyz)
    refused("no file", tmp_path / "absent.npy", topology=PDB)
    refused("--topology FILE.pdb", good)
    refused("no topology file", good, topology=tmp_path / "absent.pdb")
    refused("--unit is 'feet'", good, topology=PDB, unit="feet")
    refused("--stride is 0", good, topology=PDB, stride=0)
    refused("--select 'nme CA' is not understood", good, topology=PDB, select="nme CA")
    refused("keeps 1 atoms", good, topology=PDB, select="name CA")
    refused("22 atoms a frame, the topology 10", good, topology=heavy_pdb)

    nan = molecule.xyz.copy()
    nan[17, 4, 1] = np.nan
    np.save(tmp_path / "nan.npy", nan)
    refused("frame 17", tmp_path / "nan.npy", topology=PDB)
    np.save(tmp_path / "flat.npy", molecule.xyz[0])
    refused(r"shape \[22, 3\]", tmp_path / "flat.npy", topology=PDB)
    np.savez(tmp_path / "a.npz", coordinates=molecule.xyz)
    refused("no array 'positions'; it has coordinates", tmp_path / "a.npz", topology=PDB)
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:3000])
    refused("cannot be read", tmp_path / "cut.npy", topology=PDB)
    for kind in ("dcd", "xtc", "trr", "h5", "pdb", "gro", "npz", "xyz"):
        junk = tmp_path / f"junk.{kind}"
        for content in (b"not a trajectory", b"\xff\xfe\x00"):
            junk.write_bytes(content)
            refused(
                rf"^junk.{kind} cannot be read as {kind.upper()}: it is damaged or of another kind"
                r"(, or its atoms are not those of the topology)?\.$",
                junk,
                topology=PDB,
            )
    (tmp_path / "a.docx").write_text("hello")
    refused("unknown kind '.docx'", tmp_path / "a.docx", topology=PDB)
    write_extxyz(tmp_path / "a.xyz", molecule)
    cut = (tmp_path / "a.xyz").read_text()[:-300]
    (tmp_path / "cut.xyz").write_text(cut)
    refused("ends in the middle of a frame|cannot be read as XYZ", tmp_path / "cut.xyz")


def test_the_backbone_can_be_selected(molecule, tmp_path):
    np.save(tmp_path / "a.npy", molecule.xyz)
    backbone = read(tmp_path / "a.npy", topology=PDB, select="backbone and resname ALA")
    assert [p.name for p in backbone.particles] == "N CA C O".split()
    assert backbone.bonds == [(0, 1), (1, 2), (2, 3)]


def test_a_stride_that_leaves_nothing_is_named(molecule, tmp_path):
    np.save(tmp_path / "a.npy", molecule.xyz)
    with pytest.raises(SnapshotError, match="has 1 frames with --stride 40"):
        read(tmp_path / "a.npy", topology=PDB, stride=40)


def test_a_trajectory_is_told_from_shuffled_frames(molecule, tmp_path):
    steps = np.random.default_rng(3).normal(scale=0.0008, size=(200, molecule.n_atoms, 3))
    walk = molecule.xyz[:1] + np.cumsum(steps, axis=0)
    np.save(tmp_path / "walk.npy", walk)
    np.save(tmp_path / "shuffled.npy", np.random.default_rng(4).permutation(walk))
    walking, shuffled = (read(tmp_path / name, topology=PDB, select=HEAVY) for name in ("walk.npy", "shuffled.npy"))
    assert "as in a trajectory" in walking.notes[0] and shuffled.notes == []


# Forces


KT = MOLAR_GAS_CONSTANT * 310.0


@pytest.fixture
def bound(tmp_path):
    """Particles of stiffness 20,000 kT/nm^2 about the sites of a molecule, and their forces: files of both."""
    one = mdtraj.load(str(PDB))
    away = np.random.default_rng(5).normal(scale=20_000**-0.5, size=(4000, one.n_atoms, 3))
    away -= away.mean(axis=1, keepdims=True)
    path = tmp_path / "a.npz"

    def write(factor=1.0, **more):
        np.savez(path, positions=(one.xyz + away).astype(np.float32), forces=-20_000 * KT * away * factor, **more)
        return path

    return write


def read_scores(path: Path, temperature: float = 310.0, **arguments) -> np.ndarray:
    return read(path, topology=PDB, **arguments).force_scores(temperature)


def test_forces_become_scores(bound):
    # the virial of this external field is that of the displacements alone
    scores = read_scores(bound())
    assert scores.shape == (4000, 22, 3)
    assert scores.std() == pytest.approx(20_000**0.5, rel=0.05)  # 1 / spread, 1/nm
    np.testing.assert_allclose(scores, read_scores(bound(1 / 41.84, force_unit="kcal/mol/angstrom")), rtol=1e-4)
    np.testing.assert_allclose(scores, read_scores(bound(1 / 964.85332, force_unit="eV/angstrom")), rtol=1e-4)
    np.testing.assert_allclose(scores, read_scores(bound(1 / 49614.75), force_unit="hartree/bohr"), rtol=1e-4)
    assert read(bound(), topology=PDB).source["force_unit"] == "kJ/mol/nm"


def test_forces_in_another_unit_are_recognised(bound):
    with pytest.raises(
        SnapshotError, match=r"virial is 0.02\d* ± .* looks like kcal/mol/angstrom .* --force-unit kcal"
    ):
        read_scores(bound(1 / 41.84))
    with pytest.raises(SnapshotError, match="Check the unit, --temperature, and that nothing was constrained"):
        read_scores(bound(0.4))
    with pytest.raises(SnapshotError, match="--force-unit is 'newton'; expected one of kJ/mol/nm"):
        read_scores(bound(), force_unit="newton")
    with pytest.raises(SnapshotError, match="states the unit 'newton'"):
        read_scores(bound(force_unit="newton"))


def test_forces_of_another_shape_are_refused(molecule, tmp_path):
    np.savez(tmp_path / "a.npz", positions=molecule.xyz, forces=molecule.xyz[:, :5])
    with pytest.raises(SnapshotError, match=r"forces of shape \[23, 5, 3\] for positions of shape \[23, 22, 3\]"):
        read(tmp_path / "a.npz", topology=PDB)
    forces = molecule.xyz.copy()
    forces[7, 3] = np.inf
    np.savez(tmp_path / "a.npz", positions=molecule.xyz, forces=forces)
    with pytest.raises(SnapshotError, match="force that is not a number in frame 7"):
        read(tmp_path / "a.npz", topology=PDB)


def test_extxyz_brings_forces_and_cell(molecule, tmp_path):
    lines = []
    for frame in molecule.xyz * 10:
        lines += ["22", 'Lattice="30 0 0 1 31 0 0 2 32" Properties=species:S:1:pos:R:3:forces:R:3 pbc="T T T"']
        lines += [
            f"{a.element.symbol} {x:.5f} {y:.5f} {z:.5f} {x / 7:.5f} {y / 7:.5f} {z / 7:.5f}"
            for a, (x, y, z) in zip(molecule.topology.atoms, frame, strict=True)
        ]
    (tmp_path / "a.extxyz").write_text("\n".join(lines))
    snapshots = read(tmp_path / "a.extxyz", topology=PDB, select=HEAVY, periodic=True)
    np.testing.assert_allclose(snapshots.cells[3], [[3, 0, 0], [0.1, 3.1, 0], [0, 0.2, 3.2]], atol=1e-6)
    expected = molecule.xyz[:, molecule.topology.select(HEAVY)] * 10 / 7 * 964.85332
    np.testing.assert_allclose(snapshots.forces, expected, atol=0.02)
    some = "\n".join(lines).replace("forces:R:3 ", "other:R:3 ", 1)
    (tmp_path / "a.extxyz").write_text(some)
    with pytest.raises(SnapshotError, match="has forces in some frames only"):
        read(tmp_path / "a.extxyz")


# Periodic systems


def fluid(n_frames: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Frames [n_frames, 64, 3] of a shaken lattice, wrapped into a triclinic cell [3, 3], nm."""
    cell = np.array([[1.6, 0, 0], [0.2, 1.5, 0], [-0.1, 0.3, 1.7]])
    sites = np.stack(np.meshgrid(*[np.arange(4) / 4] * 3), axis=-1).reshape(-1, 3) @ cell
    x = sites + np.random.default_rng(6).normal(scale=0.01, size=(n_frames, 64, 3)) + 0.37
    fractional = x @ np.linalg.inv(cell)
    return ((fractional - np.floor(fractional)) @ cell).astype(np.float32), cell


def write_argon(path: Path) -> Path:
    top = mdtraj.Topology()
    chain = top.add_chain()
    for _ in range(64):
        top.add_atom("Ar", mdtraj.element.argon, top.add_residue("AR", chain))
    mdtraj.Trajectory(fluid()[0][:1], top).save_pdb(str(path))
    return path


@pytest.mark.parametrize("kind", ["xtc", "npz", "h5", "dcd"])
def test_the_cell_of_a_periodic_system_is_kept(kind, tmp_path):
    x, cell = fluid()
    pdb = write_argon(tmp_path / "ar.pdb")
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(path, positions=x, cell=cell)
    else:
        trajectory = mdtraj.Trajectory(x, mdtraj.load(str(pdb)).topology)
        trajectory.unitcell_vectors = np.tile(cell, (len(x), 1, 1)).astype(np.float32)
        trajectory.save(str(path))
    snapshots = read(path, topology=pdb, periodic=True)
    assert snapshots.cells.shape == (30, 3, 3)
    lengths = np.linalg.norm(cell, axis=1)
    np.testing.assert_allclose(np.linalg.norm(snapshots.cells, axis=2), np.tile(lengths, (30, 1)), atol=2e-3)
    np.testing.assert_allclose(np.abs(np.linalg.det(snapshots.cells)), np.linalg.det(cell), rtol=2e-3)
    nearest = nearest_distances(snapshots.positions, snapshots.cells)
    assert 0.3 < nearest.min() < nearest.max() < 0.43  # with images; a surface would have none beyond it
    assert read(path, topology=pdb).cells is None


def test_a_periodic_system_needs_a_cell(tmp_path):
    x, cell = fluid()
    pdb = write_argon(tmp_path / "ar.pdb")
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(SnapshotError, match="has no cell, and --periodic needs one"):
        read(tmp_path / "a.npy", topology=pdb, periodic=True)
    np.savez(tmp_path / "a.npz", positions=x, cell=cell[:2])
    with pytest.raises(SnapshotError, match=r"cell of shape \[2, 3\]; expected \[3, 3\] or \[n_frames, 3, 3\]"):
        read(tmp_path / "a.npz", topology=pdb, periodic=True)
    np.savez(tmp_path / "a.npz", positions=x, cell=0 * cell)
    with pytest.raises(SnapshotError, match="cell without volume in frame 0"):
        read(tmp_path / "a.npz", topology=pdb, periodic=True)


# Beads


RESIDUE_BEADS = """
[[bead]]
name = "BB"
atoms = "name N CA C O CH3 and not element H"
per = "residue"
[[bead]]
name = "SC"
atoms = "name CB HB1 HB2 HB3"
"""


def write_beads(tmp_path: Path, text: str) -> Path:
    (tmp_path / "beads.toml").write_text(text)
    return tmp_path / "beads.toml"


def test_atoms_become_beads(molecule, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, positions=molecule.xyz, forces=molecule.xyz**2)
    beads = read(path, topology=PDB, beads=write_beads(tmp_path, RESIDUE_BEADS))
    assert [(p.name, p.residue, p.element) for p in beads.particles] == [
        ("BB", "ACE", ""), ("BB", "ALA", ""), ("BB", "NME", ""), ("SC", "ALA", "")
    ]  # fmt: skip
    assert beads.bonds == [(0, 1), (1, 2), (1, 3)]
    sidechain = molecule.topology.select("name CB HB1 HB2 HB3")
    masses = np.array([molecule.topology.atom(i).element.mass for i in sidechain])
    assert beads.particles[3].mass == pytest.approx(masses.sum())
    centre = np.einsum("i,fix->fx", masses / masses.sum(), molecule.xyz[:, sidechain])
    backbone = molecule.topology.select("resname ALA and name N CA C O")
    weights = np.array([molecule.topology.atom(i).element.mass for i in backbone])
    other = np.einsum("i,fix->fx", weights / weights.sum(), molecule.xyz[:, backbone])
    np.testing.assert_allclose(beads.positions[:, 3] - beads.positions[:, 1], centre - other, atol=1e-6)
    np.testing.assert_allclose(beads.forces[:, 3], (molecule.xyz**2)[:, sidechain].sum(axis=1), rtol=1e-5)
    assert "are in no bead" in beads.notes[-1]


def test_beads_by_index_geometry_and_json(molecule, tmp_path):
    np.save(tmp_path / "a.npy", molecule.xyz)
    (tmp_path / "beads.json").write_text(
        json.dumps({
            "centre": "geometry",
            "bead": [{"name": "A", "atoms": [0, 4, 5]}, {"name": "N", "atoms": [6]}, {"name": "C", "atoms": [8, 14]}],
            "bonds": [[1, 0], [0, 2]],
        })
    )  # fmt: skip
    beads = read(tmp_path / "a.npy", topology=PDB, beads=tmp_path / "beads.json")
    assert beads.bonds == [(0, 1), (0, 2)]
    assert [p.element for p in beads.particles] == ["", "N", ""]  # of one atom: engines can check it
    expected = molecule.xyz[:, [0, 4, 5]].mean(axis=1) - molecule.xyz[:, [8, 14]].mean(axis=1)
    np.testing.assert_allclose(beads.positions[:, 0] - beads.positions[:, 2], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "has no beads"),
        ('[[bead]]\nname = "A"', "bead 0: expected a name and atoms"),
        ('[[bead]]\nname = "A"\natoms = "name XX"', "'name XX' are no atoms"),
        ('[[bead]]\nname = "A"\natoms = "nme CA"', "bead A: atoms = 'nme CA' is not understood"),
        ('[[bead]]\nname = "A"\natoms = [0, 22]', "there is no atom 22; expected indices 0 to 21"),
        ('[[bead]]\nname = "A"\natoms = [0]\n[[bead]]\nname = "B"\natoms = [0, 1]', "into two beads, A .0. and B .1."),
        ('[[bead]]\nname = "A"\natoms = [0]\nper = "chain"', "per is 'chain'; expected 'residue'"),
        ('[[bead]]\nname = "A"\natoms = [0]\nmass = 3', "'mass' is no key; expected atoms, name, per"),
        ('centre = "middle"\n[[bead]]\nname = "A"\natoms = [0]', "centre to 'middle'; expected mass or geometry"),
        ('bonds = [[0, 5]]\n[[bead]]\nname = "A"\natoms = [0]', "bond .0, 5. joins no two of the beads 0 to 0"),
        ('[[bead]]\nname = "A"\natoms = [0]', "makes 1 bead; expected 2 or more"),
        ("[[bead]", "cannot be read"),
    ],
)
def test_a_mistake_in_a_bead_file_is_named(text, match, molecule, tmp_path):
    np.save(tmp_path / "a.npy", molecule.xyz)
    with pytest.raises(SnapshotError, match=match):
        read(tmp_path / "a.npy", topology=PDB, beads=write_beads(tmp_path, text))
