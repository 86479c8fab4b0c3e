"""Reading snapshots: every format gives the same positions in nm, and what cannot be trained on is refused by name."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest

from diffusim.snapshots import SnapshotError, read

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
