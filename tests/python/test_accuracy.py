"""The statistics behind `make accuracy`, against closed forms; nothing here simulates a learned model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import diffusim
from diffusim import terminal
from diffusim.report import statistics
from diffusim.report.ensemble import Ensemble

ROOT = Path(__file__).parents[2]
sys.path += [
    str(ROOT / "examples" / folder) for folder in ("accuracy", "alkanes", "lennard-jones", "metadynamics", "surfaces")
]

import alkanes  # noqa: E402
import barriers  # noqa: E402
import common  # noqa: E402
import fluid  # noqa: E402
import make_reference as alkane_reference  # noqa: E402
import measure_ala2  # noqa: E402
import measure_lennard_jones  # noqa: E402
import surfaces  # noqa: E402


def test_passages_are_counted_between_cores_only():
    cores = np.array([[-1, 0, -1, 0, -1, 1, -1, 1, 0], [1, -1, -1, 1, 1, -1, 0, -1, -1]]).T
    states = statistics.last_core(cores)
    assert states.T.tolist() == [[-1, 0, 0, 0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 0, 0, 0]]
    counts, frames = statistics.passages(states, 0, 1)
    assert (counts.tolist(), frames.tolist()) == ([1, 0], [4, 2])
    counts, frames = statistics.passages(states, 1, 0)
    assert (counts.tolist(), frames.tolist()) == ([1, 1], [3, 6])


def test_rates_of_a_two_state_chain():
    random = np.random.default_rng(11)
    leave = np.array([0.013, 0.037])  # probability per frame to leave state 0, state 1
    states = np.empty((6000, 300), dtype=int)
    states[0] = random.random(300) < leave[0] / leave.sum()
    for i in range(1, len(states)):
        states[i] = np.where(random.random(300) < leave[states[i - 1]], 1 - states[i - 1], states[i - 1])
    for start in (0, 1):
        counts, frames = statistics.passages(states, start, 1 - start)
        value, error = statistics.rate(counts, 0.7 * frames)
        assert abs(value - leave[start] / 0.7) < 4 * error
        # Passages of a Markov chain are all but Poissonian.
        assert error == pytest.approx(value / np.sqrt(counts.sum()), rel=0.15)


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(3).normal(size=60) ** 3
    error = statistics.jackknife(lambda chosen: values[chosen].mean(), 60, 60)
    assert error == pytest.approx(statistics.standard_error(values), rel=1e-12)


def test_floor_of_a_divergence_is_that_of_independent_samples():
    """To leading order (bins - 1) / (8 n)."""
    reference = np.random.default_rng(5).uniform(0.5, 1.5, 300)
    assert statistics.jensen_shannon_floor(reference, 40_000) == pytest.approx(299 / (8 * 40_000), rel=0.05)
    sample = np.random.default_rng(6).multinomial(4_000, reference / reference.sum(), size=10)
    row = common.divergence("system", "js_iid", reference, sample, None, "300 bins")
    assert row.value == pytest.approx(row.floor, rel=0.3)
    assert row.error < 0.2 * row.floor


def test_few_frames_diverge_by_their_noise():
    """Uniform angles: (bins - 1) / (8 n) for parts of n; a part that is larger than all frames is all frames."""
    angles = np.random.default_rng(8).uniform(-180, 180, (2, 500_000))
    for n, counted in ((200_000, 200_000), (900_000, 500_000)):
        found = measure_ala2.divergence_of_fewer(np.ones((60, 60)), angles, n)
        assert found == pytest.approx(3599 / (8 * counted), rel=0.04)


def test_population_is_that_of_the_passages_and_not_of_the_starts():
    """Two states left with the probabilities 0.011 and 0.023 per frame, all trajectories in the first at the start."""
    random, leave = np.random.default_rng(12), np.array([0.011, 0.023])
    states = np.zeros((200, 3_000), dtype=int)
    for i in range(1, len(states)):
        states[i] = np.where(random.random(3_000) < leave[states[i - 1]], 1 - states[i - 1], states[i - 1])
    phi = np.where(states == 1, 61.0, -97.0)
    reference = Ensemble.load(ROOT / "examples/ala2/reference.npz")
    row = measure_ala2.population("system", phi, reference)
    with np.load(ROOT / "examples/ala2/reference.npz") as data:
        own_error = np.sqrt(row.error**2 - data["phi_positive_error"] ** 2)
    expected = leave[0] / leave.sum()
    assert 0.001 < own_error < 0.02 and (phi > 0).mean() < expected - 5 * own_error
    assert abs(row.value - (expected - reference.phi_positive)) < 4 * own_error
    few = measure_ala2.population("system", phi[:3, :40], reference)
    assert row.target is not None and few.target is None
    assert "remember their starts" in few.what and few.value == pytest.approx(reference.phi_positive, abs=0.03)


def test_the_widest_bond_is_found_with_its_error():
    """A chain of three along x, whose bonds have the spreads 0.0031 and 0.0023 nm; the true ones are equal, 0.0029."""
    random = np.random.default_rng(13)
    steps = 0.14 + random.normal(size=(500, 40, 2)) * [0.0031, 0.0023]
    frames = np.zeros((500, 40, 3, 3))
    frames[:, :, 1:, 0] = np.cumsum(steps, axis=-1)
    particles = [{"name": name, "mass": 12.011, "residue_index": 0} for name in ("A", "B", "C")]
    molecule = measure_ala2.Molecule.from_particles(particles, [(0, 1), (1, 2)])
    reference = replace(Ensemble.measure(frames[0], molecule), bond_std=np.array([0.0029, 0.0029]))
    row = measure_ala2.widest_bond("system", frames, molecule, reference, "")
    expected = 31 / 29
    assert row.value == pytest.approx(expected, abs=4 * expected / np.sqrt(2 * 20_000))
    assert row.error == pytest.approx(expected / np.sqrt(2 * 20_000), rel=0.7)
    assert "A–B" in row.what


def test_exact_values_of_the_surfaces():
    """Mueller-Brown against the generator of tests/fixtures/make_mueller_brown.py (D = kT = 23); the motion along y of
    the double well relaxes in 1 / (2 * 35) nm^2, and its sides are alike."""
    known = json.loads((ROOT / "tests/fixtures/mueller_brown.json").read_text())
    mueller_brown = surfaces.exact(surfaces.MULLER_BROWN)
    assert mueller_brown.timescales[0] == pytest.approx(23 * known["timescale_1"], rel=1e-3)
    assert mueller_brown.population == pytest.approx(known["low_y"], abs=5e-4)
    assert 1 / mueller_brown.rates == pytest.approx([23 * known["mfpt_a_to_b"], 23 * known["mfpt_b_to_a"]], rel=0.03)
    double_well = surfaces.exact(surfaces.DOUBLE_WELL)
    assert double_well.timescales[1] == pytest.approx(1 / 70, rel=1e-3)
    assert double_well.population == pytest.approx(0.5, abs=1e-9)
    assert double_well.rates[0] == pytest.approx(double_well.rates[1], rel=1e-9)


def test_exact_frames_of_a_surface_fill_its_bins():
    surface = surfaces.MULLER_BROWN
    x = surfaces.exact_frames(surface, 40_000, seed=2)
    counts = np.histogram2d(x[:, 0, 0], x[:, 0, 1], bins=surface.edges)[0]
    probability = surfaces.exact(surface).probability
    assert counts.sum() == 40_000 and not x[:, 0, 2].any()
    divergence = statistics.jensen_shannon(probability, counts)
    assert divergence == pytest.approx(statistics.jensen_shannon_floor(probability, 40_000), rel=0.1)


def test_exact_frames_of_butane_have_the_populations_of_its_torsion():
    phi = np.linspace(-np.pi, np.pi, 200_001)
    weight = np.exp(-alkanes.torsion_energy(phi) / alkanes.KT)
    expected = weight[np.abs(phi) > 2 * np.pi / 3].sum() / weight.sum()
    x = alkanes.exact_frames(alkanes.ALKANES["butane"], 40_000, seed=4)
    trans = np.abs(statistics.torsions(x, [(0, 1, 2, 3)])) > 120
    assert trans.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 40_000))
    lengths = statistics.bond_lengths(x, [(0, 1), (1, 2), (2, 3)])
    assert lengths.std(axis=0) == pytest.approx(np.sqrt(alkanes.KT / alkanes.BOND_STIFFNESS), rel=0.02)


def test_alkane_force_field_is_the_same_in_openmm():
    import openmm as mm

    octane = alkanes.ALKANES["octane"]
    context = mm.Context(
        alkane_reference.system(octane, 1), mm.VerletIntegrator(0.001), mm.Platform.getPlatform("Reference")
    )
    frames = alkanes.exact_frames(octane, 3, seed=8).astype(float)
    for x, energy in zip(frames, alkanes.energy(octane, frames), strict=True):
        context.setPositions(x)
        assert context.getState(energy=True).getPotentialEnergy()._value == pytest.approx(energy, rel=1e-5)


def test_error_of_a_profile_is_what_was_added_to_the_energy():
    """A model whose energy is exact but for 0.3 kT (1 - cos 2 phi) of one torsion; also where all frames are equal."""
    octane = alkanes.ALKANES["octane"]

    class Model:
        def evaluate(self, x):
            phi = np.radians(statistics.torsions(x, octane.torsions))[:, 2]
            return x, 7.0 + alkanes.energy(octane, x) / alkanes.KT + 0.3 * (1 - np.cos(2 * phi))

    centres = np.radians((barriers.EDGES[1:] + barriers.EDGES[:-1]) / 2)
    found = barriers.profile_error(Model(), octane, 2, n_frames=20_000)
    added = 0.3 * (1 - np.cos(2 * centres))
    probability = np.exp(-alkanes.torsion_energy(centres) / alkanes.KT)
    np.testing.assert_allclose(found, added - np.average(added, weights=probability), atol=0.02)
    summary = barriers.summary(found)
    assert summary["barrier +"] - summary["trans"] == pytest.approx(0.3 * (1.5 - 0.02), abs=0.03)
    assert summary["gauche +"] == pytest.approx(summary["gauche -"], abs=0.03)


def test_kinetics_survive_their_file(tmp_path):
    random = np.random.default_rng(9)
    torsions = np.cumsum(random.normal(scale=15, size=(2, 3000, 40)), axis=1)
    kinetics = alkanes.Kinetics.measure((torsions + 180) % 360 - 180, 0.01)
    np.savez(tmp_path / "k.npz", **kinetics.arrays())
    again = alkanes.Kinetics.load(tmp_path / "k.npz")
    assert np.array_equal(again.rates, kinetics.rates) and kinetics.torsion_rates.shape == (2, 2)
    assert kinetics.rates == pytest.approx(kinetics.torsion_rates.mean(axis=0), rel=0.1)


def test_committed_references_agree_with_exact_frames():
    """Populations of the Brownian dynamics within four of their standard errors; both ways as many passages."""
    for name in ("butane", "octane"):
        path = ROOT / "examples" / "alkanes" / f"{name}-reference.npz"
        kinetics, exact = alkanes.Kinetics.load(path), alkanes.trans_populations(Ensemble.load(path))
        assert np.all(np.abs(kinetics.trans - exact) < 4 * kinetics.trans_errors), name


def test_rows_know_whether_they_meet_their_target():
    assert common.Row("s", "m", 0.0079, target=0.0086).met
    assert not common.Row("s", "m", 1.11, target=(0.9, 1.1)).met
    assert common.Row("s", "m", 1.0).met is None
    assert common.ratio(3.0, 0.3, 2.0, 0.4) == pytest.approx((1.5, 1.5 * np.hypot(0.1, 0.2)))


def test_unknown_systems_are_named():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "accuracy", "benzene"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "there is no system benzene; known are double-well" in done.stderr


def test_radial_distribution_and_its_largest_error():
    """Of an ideal gas it is 1 within its statistics; an error in one bin is found there, and none below the peak."""
    random, n, length = np.random.default_rng(8), 500, 1.7
    edges = np.linspace(0.2, 0.8, 25)
    gas = random.uniform(0, length, (40, n, 3))
    g = fluid.radial_distribution(gas, length, edges)
    pairs = 40 * n * (n - 1) / 2 * 4 / 3 * np.pi * np.diff(edges**3) / length**3
    assert np.abs(g.mean(axis=0) - 1) == pytest.approx(0, abs=4.5 / np.sqrt(pairs.min()))
    expected = np.where(np.arange(24) < 3, 0.1, 1.0)
    found = np.tile(expected, (50, 1)) + 0.001 * random.normal(size=(50, 24))
    found[:, 1] += 0.05
    found[:, 9] += 0.03
    value, at, error = measure_lennard_jones.largest_error(found, expected, np.full(24, 0.0007))
    assert at == 9 and abs(value - 0.03) < 4.5 * error
    assert error == pytest.approx(np.hypot(0.0007, 0.001 / np.sqrt(50)), rel=0.1)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/*.safetensors")), ids=lambda path: path.stem)
def test_every_example_can_be_described(path):
    assert path.name in terminal.describe_model(diffusim.Model(path), path.name)
