"""Statistics against mdtraj and closed forms; comparisons of ensembles whose answer is known."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest

from diffusim.report import plots, statistics
from diffusim.report.ensemble import Ensemble, Molecule, backbone_torsions, compare

ALA2 = Path(__file__).parents[2] / "examples" / "ala2"


@pytest.fixture(scope="module")
def snapshots() -> mdtraj.Trajectory:
    topology = mdtraj.load(ALA2 / "ala2-heavy.pdb").topology
    return mdtraj.Trajectory(np.load(ALA2 / "snapshots.npz")["positions"][:4000], topology)


@pytest.fixture(scope="module")
def molecule(snapshots) -> Molecule:
    particles = [
        {"name": a.name, "residue_index": a.residue.index, "mass": a.element.mass} for a in snapshots.topology.atoms
    ]
    return Molecule.from_particles(particles, [(a.index, b.index) for a, b in snapshots.topology.bonds])


def test_geometry_is_that_of_mdtraj(snapshots, molecule):
    x = snapshots.xyz
    bonds = mdtraj.compute_distances(snapshots, molecule.bonds)
    np.testing.assert_allclose(statistics.bond_lengths(x, molecule.bonds), bonds, atol=1e-6)
    angles = np.degrees(mdtraj.compute_angles(snapshots, molecule.angles))
    np.testing.assert_allclose(statistics.bond_angles(x, molecule.angles), angles, atol=0.01)
    torsions = np.degrees(mdtraj.compute_dihedrals(snapshots, molecule.torsions))
    np.testing.assert_allclose(statistics.torsions(x, molecule.torsions), torsions, atol=0.02)
    sizes = statistics.radius_of_gyration(x, np.full(10, 3.0))
    np.testing.assert_allclose(sizes, mdtraj.compute_rg(snapshots), rtol=1e-4)


def test_masses_weigh_the_radius_of_gyration():
    """Two particles a distance d apart: d sqrt(m1 m2) / (m1 + m2)."""
    pair = np.array([[[0.1, 0.2, 0.3], [0.1, 0.2, 0.8]]])
    assert statistics.radius_of_gyration(pair, np.array([2.0, 18.0])) == pytest.approx(0.5 * 6 / 20)


def test_the_backbone_is_found(snapshots, molecule):
    phi, psi = backbone_torsions(snapshots.xyz, molecule)
    np.testing.assert_allclose(phi, np.degrees(mdtraj.compute_phi(snapshots)[1]), atol=0.02)
    np.testing.assert_allclose(psi, np.degrees(mdtraj.compute_psi(snapshots)[1]), atol=0.02)


def test_angles_and_torsions_of_a_graph():
    ring = [(0, 1), (1, 2), (2, 0), (2, 3)]  # a triangle with a tail
    assert statistics.angles_of(ring) == [(1, 0, 2), (0, 1, 2), (0, 2, 1), (0, 2, 3), (1, 2, 3)]
    assert statistics.torsions_of(ring) == [(1, 0, 2, 3), (0, 1, 2, 3)]
    assert statistics.torsions_of([(3, 2), (2, 1), (1, 0)]) == [(0, 1, 2, 3)]
    assert statistics.torsions_of([]) == []


def test_jensen_shannon():
    p, q = np.array([3, 0, 5, 0]), np.array([0, 2, 0, 9])
    assert statistics.jensen_shannon(p, 7 * p) == pytest.approx(0, abs=1e-15)
    assert statistics.jensen_shannon(p, q) == pytest.approx(np.log(2))
    to_middle = 0.75 * np.log(0.75 / 0.625) + 0.25 * np.log(0.25 / 0.375)
    from_half = 0.5 * np.log(0.5 / 0.625) + 0.5 * np.log(0.5 / 0.375)
    assert statistics.jensen_shannon([3, 1], [1, 1]) == pytest.approx((to_middle + from_half) / 2)


def test_the_floor_is_what_exact_samples_score():
    """For many samples it is (filled bins - 1) / (8 n): the divergence is a chi-square over 8 n."""
    reference = np.random.default_rng(4).integers(200, 900, size=300)
    floor = statistics.jensen_shannon_floor(reference, 50_000)
    assert floor == pytest.approx(299 / (8 * 50_000), rel=0.05)
    sample = np.random.default_rng(5).multinomial(50_000, reference / reference.sum())
    assert statistics.jensen_shannon(reference, sample) == pytest.approx(floor, rel=0.3)


def test_autocorrelation_of_a_diffusing_angle():
    """<cos(a(t) - a(0))> = exp(-D t) with Var(a(t) - a(0)) = 2 D t."""
    rng = np.random.default_rng(6)
    diffusion = 0.01
    angles = np.cumsum(rng.normal(scale=np.sqrt(2 * diffusion), size=(3000, 200)), axis=0)
    lags = np.array([0, 7, 30, 90])
    mean, error = statistics.autocorrelation(np.degrees(angles), lags)
    assert mean[0] == pytest.approx(1)
    np.testing.assert_array_less(np.abs(mean - np.exp(-diffusion * lags))[1:], 4 * error[1:])
    assert 0 < error[-1] < 0.01
    assert np.isnan(statistics.autocorrelation(angles[:, :1], lags)[1]).all()


def test_log_lags_start_at_zero_and_grow():
    lags = statistics.log_lags(500, 20)
    assert lags[0] == 0 and lags[1] == 1 and lags[-1] == 500
    assert (np.diff(lags) > 0).all()


def test_independent_frames_are_counted_as_such():
    rng = np.random.default_rng(7)
    phi, psi = rng.normal(-70, 15, (200, 300)), rng.normal(140, 15, (200, 300))
    assert statistics.independent_frames(phi, psi) == pytest.approx(200 * 300, rel=0.1)
    repeated = [np.repeat(angle[:20], 10, axis=0) for angle in (phi, psi)]
    assert statistics.independent_frames(*repeated) == pytest.approx(20 * 300, rel=0.1)


def test_passages_are_counted_between_cores():
    phi = np.array([-70, -10, 10, -70, 60, 10, -10, 60, -70, -70.0])[:, None]
    found = statistics.exchange(phi)
    assert (found.into_positive, found.out_of_positive) == (1, 1)
    assert (found.frames_negative, found.frames_positive) == (6, 4)


def test_an_ensemble_equals_itself_and_survives_a_file(snapshots, molecule, tmp_path):
    ensemble = Ensemble.measure(snapshots.xyz, molecule)
    np.savez(tmp_path / "e.npz", note="more", **ensemble.arrays())
    loaded = Ensemble.load(tmp_path / "e.npz")
    numbers = compare(ensemble, loaded)
    assert numbers["js"] == pytest.approx(0, abs=1e-12)
    assert numbers["bond_mean_error_max"] == 0
    assert numbers["bond_std_ratio_min"] == numbers["angle_std_ratio_max"] == 1
    assert numbers["n_frames"] == 4000 and numbers["bins"] == "60x60"


def test_differences_are_measured(snapshots, molecule):
    reference = Ensemble.measure(snapshots.xyz, molecule)
    larger = Ensemble.measure(np.float32(1.02) * snapshots.xyz[::2], molecule, like=reference)
    numbers = compare(reference, larger)
    assert numbers["bond_mean_error_max"] == pytest.approx(0.02, abs=0.002)
    assert numbers["radius_of_gyration_error"] == pytest.approx(0.02, abs=0.002)
    assert numbers["bond_std_ratio_max"] == pytest.approx(1.02, abs=0.04)
    assert numbers["angle_mean_error_max"] < 0.3
    assert 0.5 * numbers["js_floor"] < numbers["js"] < 1.5 * numbers["js_floor"]
    mirrored = Ensemble.measure(snapshots.xyz * [1, 1, -1], molecule, like=reference)
    assert compare(reference, mirrored)["js"] > 0.5
    assert mirrored.phi_positive == pytest.approx(1 - reference.phi_positive)


def test_the_committed_reference_belongs_to_the_snapshots(molecule):
    """24,000 of its own 528,000 frames must look like it, at the floor of 24,000 frames."""
    reference = Ensemble.load(ALA2 / "reference.npz")
    positions = np.load(ALA2 / "snapshots.npz")["positions"]
    assert positions.shape == (24_000, 10, 3) and positions.dtype == np.float32
    numbers = compare(reference, Ensemble.measure(positions, molecule, like=reference))
    assert numbers["js"] == pytest.approx(numbers["js_floor"], rel=0.15)
    assert numbers["bond_mean_error_max"] < 0.001
    assert numbers["phi_positive_simulated"] == pytest.approx(numbers["phi_positive_reference"], rel=0.1)


@pytest.mark.parametrize("with_backbone", [True, False])
def test_a_picture_is_drawn(snapshots, molecule, tmp_path, with_backbone):
    if not with_backbone:
        molecule = Molecule(**vars(molecule) | {"backbone": []})
    reference = Ensemble.measure(snapshots.xyz[::2], molecule)
    simulated = Ensemble.measure(snapshots.xyz[1::2], molecule, like=reference)
    numbers = compare(reference, simulated)
    assert ("js" in numbers) == with_backbone
    times = np.arange(30)
    memory = plots.Correlation(times, *[np.exp(-times / 9), np.full(30, 0.01)] * 2)

    def corner(axes):
        plots.autocorrelation(axes, memory, memory, 0.7)

    corner = corner if with_backbone else None
    plots.write(tmp_path / "report.png", "halves", reference, simulated, numbers, molecule, corner)
    assert (tmp_path / "report.png").stat().st_size > 50_000
