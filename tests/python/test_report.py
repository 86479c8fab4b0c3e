"""Statistics against mdtraj and closed forms; comparisons of ensembles whose answer is known."""

import re
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from diffusim import Model
from diffusim.report import page, paths, plots, slow_modes, statistics
from diffusim.report.consistency import fokker_planck_residuals
from diffusim.report.ensemble import Ensemble, Molecule, backbone_torsions, compare

ROOT = Path(__file__).parents[2]
ALA2 = ROOT / "examples" / "ala2"


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


def test_pmf_error_is_that_of_a_known_shift():
    """Free energies that differ by a constant are equal; a bin lifted by f kT is off by f sqrt(p (1 - p))."""
    p = np.array([0.5, 0.3, 0.2, 0.0])
    assert statistics.pmf_error(p, 40 * p) == pytest.approx((0, 0), abs=1e-12)
    lifted = p * [1, 1, np.exp(-0.7), 1]
    assert statistics.pmf_error(p, lifted)[0] == pytest.approx(0.7 * np.sqrt(0.2 * 0.8))
    error, missed = statistics.pmf_error(p, [5, 3, 0, 4])
    assert (error, missed) == pytest.approx((0, 0.2))


def test_the_floor_of_the_pmf_error_is_what_exact_samples_score():
    """Each bin's -ln p has the variance 1 / (n p), and the mean is taken out: (bins - 1) / n in the square."""
    reference = np.random.default_rng(4).integers(200, 900, size=300)
    assert statistics.pmf_error_floor(reference, 90_000) == pytest.approx(np.sqrt(299 / 90_000), rel=0.05)


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


# Slow modes and consistency


def test_the_slowest_mode_is_found_with_its_timescale():
    """A torsion that jumps between two values with rate 1/40 per frame and way: relaxation time 20 frames."""
    pytest.importorskip("deeptime")
    random = np.random.default_rng(9)
    n_frames, n_trajectories = 600, 60
    jumps = np.cumsum(random.random((n_frames, n_trajectories)) < 0.5 * (1 - np.exp(-1 / 20)), axis=0) % 2
    angle = np.radians(70) + np.radians(100) * jumps + random.normal(scale=0.15, size=jumps.shape)
    x = np.zeros((n_frames, n_trajectories, 4, 3))
    x[..., 0, :], x[..., 2, :] = [0.1, -0.05, 0], [0, 0.15, 0]
    x[..., 3, 0], x[..., 3, 1], x[..., 3, 2] = 0.1 * np.cos(angle), 0.2, 0.1 * np.sin(angle)
    molecule = Molecule(list("ABCD"), np.ones(4), [(0, 1), (1, 2), (2, 3)], [], [(0, 1, 2, 3)], [])
    flat = x.reshape(-1, 4, 3)
    modes = slow_modes.slow_modes(x, 0.5, "ps", {"data": flat[::7], "iid": flat[::11]}, molecule)
    slowest = modes.timescales[:, 0]
    assert np.median(slowest) == pytest.approx(20 * 0.5, rel=0.15)
    assert modes.lags[0] == 0.5 and modes.counts["simulated"].sum() == 2 * len(flat)
    numbers = modes.numbers()
    assert numbers["js_iid"][0] < 3 * numbers["js_floor_iid"][0] and numbers["time_unit"] == "ps"
    assert slow_modes.slow_modes(x[:10], 0.5, "ps", {"data": flat}, molecule) is None


class Blurred:
    """A normal density of spread 0.7 nm blurred by sigma, where `rate` is 1; as a model at one noise level."""

    def __init__(self, noise: float, rate: float):
        self.variance = 0.7**2 + rate * noise**2

    def evaluate(self, x):
        return -x / self.variance, 0.5 * np.sum(x**2, axis=(1, 2)) / self.variance


def test_the_residual_is_its_closed_form():
    """r = a (|y|^2 - mean), a = sigma^2 (1 - rate) / (spread^2 + rate sigma^2)^2, so <r^2> / d = 2 a^2 variance^2."""
    x = np.random.default_rng(3).normal(scale=0.7, size=(5000, 4, 3))
    assert max(abs(r.value) for r in fokker_planck_residuals(lambda s: Blurred(s, 1.0), (0.1, 2.0), x)) < 1e-5
    for r in fokker_planck_residuals(lambda s: Blurred(s, 0.6), (0.1, 2.0), x):
        a = r.noise_level**2 * 0.4 / (0.7**2 + 0.6 * r.noise_level**2) ** 2
        expected = 2 * a**2 * (0.7**2 + r.noise_level**2) ** 2
        assert r.value == pytest.approx(expected, abs=4 * r.error + 0.003 * expected)


def test_the_residual_of_a_model_file_is_that_of_the_training(snapshots):
    """The core's difference quotients against the exact derivatives in JAX, of a random network."""
    jax = pytest.importorskip("jax")
    from diffusim import model_file
    from diffusim.training.losses import Frames, fokker_planck_loss
    from diffusim.training.network import DistanceNetwork, Weights

    path = ROOT / "tests/fixtures/distance_small.safetensors"
    header, tensors = model_file.read(path), model_file.read_tensors(path)
    h = header.hyperparameters
    levels = header.noise_levels
    network = DistanceNetwork(
        5, tuple(map(tuple, h["quadruplets"])), levels.min, levels.max, tuple(h["hidden"]),
        h["softening"], h["signed_length"], h["harmonic"], h["n_frequencies"],
    )  # fmt: skip
    layers = tuple((tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in range(len(h["hidden"]) + 1))
    weights = Weights(tensors["feature_mean"], tensors["feature_spread"], layers)
    start = tensors["start_positions"]
    x = start[np.random.default_rng(1).integers(0, len(start), 1600)]
    found = fokker_planck_residuals(lambda level: Model(path, level), (levels.min, levels.max), x.astype(float))[2]
    level = found.noise_level
    exact = jax.jit(lambda key: fokker_planck_loss(network, weights, Frames(x), (level, level * 1.0001), key))
    values = [float(exact(jax.random.key(i))) for i in range(6)]
    error = np.hypot(found.error, np.std(values, ddof=1) / np.sqrt(6))
    assert found.value == pytest.approx(np.mean(values), abs=4 * error)
    assert found.value > 8 * error


@pytest.mark.parametrize("with_backbone", [True, False])
def test_a_whole_report_is_drawn(snapshots, molecule, with_backbone):
    if not with_backbone:
        molecule = Molecule(**vars(molecule) | {"backbone": []})
    reference = Ensemble.measure(snapshots.xyz[::2], molecule)
    simulated, iid = (Ensemble.measure(snapshots.xyz[i::4], molecule, like=reference) for i in (1, 3))
    edges = np.linspace(-1, 1, 21)[None].repeat(2, axis=0)
    counts = np.arange(1, 41).reshape(2, 20)
    lags = np.geomspace(1, 50, 6)
    modes = slow_modes.SlowModes("nm²", lags, np.outer(lags**0.1, [90, 20, 4]), edges, {"data": counts, "iid": counts})
    numbers = compare(reference, simulated)
    shown = plots.Comparison(
        "a < b", molecule, reference, simulated, numbers, iid, compare(reference, iid), modes,
        fokker_planck_residuals(lambda s: Blurred(s, 0.6), (0.1, 2.0), snapshots.xyz[:50].astype(float)),
        paths.paths(snapshots.xyz[:1200].reshape(60, 20, 10, 3), 0.3, "nm²", molecule, reference, 2.7),
    )  # fmt: skip
    for each in (shown, replace(shown, iid=None, slow_modes=None, residuals=(), paths=None)):
        picture = plots.draw(each)
        assert picture.startswith(b"\x89PNG") and len(picture) > 80_000
        text = page.html(each, picture, [("JS", "0.1", "0.2", "(floor)")], numbers, "diffusim report")
        assert "a &lt; b" in text and "http" not in re.sub(r"base64,[\w+/=]*", "", text)
