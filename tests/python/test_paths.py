"""Path observables against closed forms, with no parameter equal to 1."""

import numpy as np
import pytest
from scipy.signal import lfilter

from diffusim.report import paths
from diffusim.report.ensemble import TORSION_EDGES, Ensemble, Molecule

DECAY, SPREAD, MEAN = 0.83, 1.7, 2.3


def autoregressive(n_frames: int, n_trajectories: int, decay: float, seed: int) -> np.ndarray:
    """Stationary, of variance 1: rho(k) = decay^k."""
    random = np.random.default_rng(seed)
    kicks = np.sqrt(1 - decay**2) * random.normal(size=(n_frames, n_trajectories))
    kicks[0] = random.normal(size=n_trajectories)
    return lfilter([1.0], [1.0, -decay], kicks, axis=0)


@pytest.mark.parametrize(("n_frames", "n_trajectories"), [(4000, 50), (200_000, 1)])
def test_memory_of_an_autoregressive_process(n_frames, n_trajectories):
    """1/2 + sum of a^k = (1 + a) / (1 - a) / 2; as many independent frames as the variance of the mean says."""
    one = paths.memory(MEAN + SPREAD * autoregressive(n_frames, n_trajectories, DECAY, 11))
    exact = 0.5 * (1 + DECAY) / (1 - DECAY)
    assert one.correlation_time == pytest.approx(exact, abs=4 * one.correlation_time_error)
    assert 0.003 < one.correlation_time_error / exact < 0.05
    assert one.variance == pytest.approx(SPREAD**2, rel=0.03)
    assert one.green_kubo == pytest.approx(SPREAD**2 * exact, rel=0.06)
    assert one.effective_frames == pytest.approx(n_frames * n_trajectories / (2 * exact), rel=0.06)
    few = one.lags <= 8
    np.testing.assert_allclose(one.rho[few], DECAY ** one.lags[few], atol=0.02)


def test_the_error_of_a_correlation_time_is_its_scatter():
    found = [paths.memory(autoregressive(1500, 12, DECAY, seed)) for seed in range(40)]
    scatter = np.std([one.correlation_time for one in found], ddof=1)
    assert np.mean([one.correlation_time_error for one in found]) == pytest.approx(scatter, rel=0.35)


def test_effective_frames_say_how_far_a_mean_scatters():
    means, frames = [], []
    for seed in range(200):
        x = SPREAD * autoregressive(500, 2, DECAY, 1000 + seed)
        means.append(x.mean())
        frames.append(paths.memory(x).effective_frames)
    assert SPREAD**2 / np.var(means) == pytest.approx(np.mean(frames), rel=0.25)


def test_green_kubo_gives_the_diffusion_coefficient_of_an_oscillator():
    """D = <dq^2> / int rho dt of dq = -D kappa q dt + sqrt(2 D) dW; `numbers` counts in the unit of the frames."""
    stiffness, diffusion, frame = 37.0, 0.29, 0.004
    x = autoregressive(4000, 50, np.exp(-stiffness * diffusion * frame), 12) / np.sqrt(stiffness)
    numbers = paths.memory(x).numbers(frame)
    relative = 4 * numbers["correlation_time_error"] / numbers["correlation_time"]
    assert numbers["correlation_time"] == pytest.approx(1 / (stiffness * diffusion), rel=relative)
    assert numbers["diffusion"] == pytest.approx(diffusion, rel=relative)
    assert numbers["green_kubo"] == pytest.approx(1 / (stiffness**2 * diffusion), rel=relative)
    assert numbers["lags"][1] == pytest.approx(frame)


def test_memory_of_a_diffusing_angle_does_not_see_the_cut():
    """rho of exp(i phi) with free diffusion: exp(-D t), however often phi passes 180 degrees."""
    diffusion = 0.07
    steps = np.random.default_rng(13).normal(scale=np.sqrt(2 * diffusion), size=(3000, 80))
    start = np.random.default_rng(14).uniform(-np.pi, np.pi, size=80)
    one = paths.memory(np.exp(1j * (start + np.cumsum(steps, axis=0))))
    exact = 0.5 / np.tanh(diffusion / 2)
    assert one.correlation_time == pytest.approx(exact, abs=4 * one.correlation_time_error)


def test_what_is_not_forgotten_is_said_to_be():
    """Trajectories that stay where they began have as many independent frames as there are trajectories."""
    start = np.random.default_rng(15).normal(size=400)
    slow = paths.memory(start + 0.02 * autoregressive(300, 400, 0.5, 16))
    mixed = paths.memory(0.3 * start + autoregressive(300, 400, 0.5, 17))  # 8 % of the variance stays for ever
    for one in (slow, mixed):
        assert np.isnan(one.correlation_time) and one.numbers(0.3)["correlation_time"] is None
    assert slow.effective_frames == pytest.approx(400, rel=0.3)
    assert mixed.effective_frames == pytest.approx((0.09 + 1) / (0.09 / 400 + 3 / (300 * 400)), rel=0.3)
    with pytest.raises(ValueError, match="constant"):
        paths.memory(np.full((50, 3), 2.7))


def test_first_passages_of_an_oscillator_are_its_quadrature():
    """T(a -> b) = 1/D int_a^b dy exp(U(y)) int_-inf^y dz exp(-U(z)), kappa and D not 1.

    Looked at in steps dt, a boundary lies farther off by 0.5826 sqrt(2 D dt) (Siegmund).
    """
    stiffness, diffusion, frame, low, high = 37.0, 0.29, 2e-4, -0.11, 0.16
    n_frames, n_trajectories = 10_000, 150
    x = autoregressive(n_frames, n_trajectories, np.exp(-stiffness * diffusion * frame), 18) / np.sqrt(stiffness)
    cores = np.where(x < low, 0, np.where(x > high, 1, -1))
    there, back = paths.first_passages(cores, 2)
    shift = 0.5826 * np.sqrt(2 * diffusion * frame)
    z = np.linspace(-8 / np.sqrt(stiffness), 8 / np.sqrt(stiffness), 200_001)
    density = np.exp(-0.5 * stiffness * z**2)
    below = np.cumsum(density) * (z[1] - z[0])

    def exact(a, b):
        between = (z > a) & (z < b)
        return np.sum(below[between] / density[between]) * (z[1] - z[0]) / diffusion

    # The other core is entered beyond its own boundary too, by the same overshoot.
    for passage, time in ((there, exact(low - shift, high + shift)), (back, exact(-high - shift, -low + shift))):
        assert passage.count > 500
        assert passage.time * frame == pytest.approx(time, abs=4 * passage.error * frame)
        assert 0.01 < passage.error / passage.time < 0.05


def test_first_passages_go_through_other_cores():
    cores = np.array([0, -1, 1, 1, 0, -1, 1, 2, 2, -1, 0, 2])[:, None]
    found = {(one.start, one.end): (one.time, one.count) for one in paths.first_passages(cores, 4)}
    assert found[0, 1] == ((2 + 2 + 1) / 2, 2)
    assert found[0, 2] == ((7 + 1) / 2, 2)
    assert found[2, 0] == (3 / 1, 1)
    assert np.isnan(found[1, 3][0]) and found[1, 3][1] == 0


def histogram(energy) -> np.ndarray:
    centres = np.radians((TORSION_EDGES[1:] + TORSION_EDGES[:-1]) / 2)
    p = np.exp(-energy(centres))
    return np.round(1e6 * p / p.sum()).astype(int)


def test_core_sets_of_a_threefold_torsion():
    """Minima at 180 and +-60 degrees, 4.6 kT deep; cores within 1 kT of them, one of them over the cut."""
    cores = paths.core_sets(histogram(lambda phi: 2.3 * (1 + np.cos(3 * phi)) + 0.3 * np.cos(phi)))
    degrees = [paths.core_degrees(core) for core in cores]
    assert len(cores) == 3
    half = np.degrees(np.arccos(1 / 2.3 - 1)) / 3  # where a cosine of 2.3 kT has risen by 1 kT
    middles = sorted(((a + b + 360 * (a > b)) / 2 + 180) % 360 - 180 for a, b in degrees)
    np.testing.assert_allclose(np.abs(middles), [180, 60, 60], atol=5)
    assert all((b - a) % 360 == pytest.approx(360 / 3 - 2 * half, abs=11) for a, b in degrees)
    angles = np.array([180.0, -179.9, 179.9, -60.0, 60.0, 0.0, 120.0])
    found = paths.in_cores(angles - 360 * (angles == 180), cores)
    assert found[0] == found[1] == found[2] >= 0 and len({*found[[0, 3, 4]]}) == 3
    assert (found[5:] == -1).all()


def test_shallow_and_empty_basins_are_no_core_sets():
    assert len(paths.core_sets(histogram(lambda phi: 0.9 * np.cos(3 * phi)))) == 1  # barriers of 1.8 kT
    lonely = histogram(lambda phi: 40 * (1 - np.cos(phi)))
    lonely[3] = 5  # frames that strayed
    assert len(paths.core_sets(lonely)) == 1


def test_paths_of_a_molecule():
    """A torsion that jumps between two values at a known rate, in the units of the report."""
    random = np.random.default_rng(19)
    n_frames, n_trajectories, rate = 2000, 40, 1 / 23
    jumps = np.cumsum(random.random((n_frames, n_trajectories)) < rate, axis=0) % 2
    angle = np.radians(70) + np.radians(100) * jumps + random.normal(scale=0.15, size=jumps.shape)
    x = np.zeros((n_frames, n_trajectories, 4, 3))
    x[..., 0, :], x[..., 2, :] = [0.1, -0.05, 0], [0, 0.15, 0]
    x[..., 3, 0], x[..., 3, 1], x[..., 3, 2] = 0.1 * np.cos(angle), 0.2, 0.1 * np.sin(angle)
    molecule = Molecule(list("ABCD"), np.ones(4), [(0, 1), (1, 2), (2, 3)], [], [(0, 1, 2, 3)], [])
    reference = Ensemble.measure(x.reshape(-1, 4, 3), molecule)
    found = paths.paths(x, 0.5, "nm²", molecule, reference, ps_per_unit=3.1)
    assert len(found.cores["A–B–C–D"]) == 2
    times = {name: one.correlation_time for name, one in found.memories.items()}
    assert set(times) == {"A–B–C–D", "radius of gyration"} and times[found.slowest] == max(times.values())
    numbers = found.numbers()
    for passage in numbers["first_passages"]["A–B–C–D"]["passages"]:
        assert passage["time"] == pytest.approx(0.5 / rate, rel=0.1) and passage["count"] > 500
    torsion = numbers["observables"]["A–B–C–D"]
    jumping = np.sin(np.radians(50)) ** 2 / (np.sin(np.radians(50)) ** 2 + 1 - np.exp(-(0.15**2)))  # share of variance
    exact = 0.5 * (jumping / np.tanh(-np.log(1 - 2 * rate) / 2) + 1 - jumping)
    assert torsion["correlation_time"] == pytest.approx(0.5 * exact, rel=0.08)
    assert numbers["ps_per_time_unit"] == 3.1
    assert paths.paths(x[:10], 0.5, "nm²", molecule, reference) is None


def test_torsions_are_called_by_their_letters():
    quads = [(0, 1, 2, 3), (4, 1, 2, 3), (3, 4, 5, 1), (1, 3, 4, 0)]
    molecule = Molecule(list("ABCDEF"), np.ones(6), [], [], quads, [((5, 4, 3, 2), (0, 2, 1, 5))])
    assert paths.torsion_names(molecule) == ["ψ A–B–C–D", "ψ E–B–C–D", "D–E–F–B", "φ B–D–E–A"]
    alike = Molecule(list("CCCCC"), np.ones(5), [], [], [(0, 1, 2, 3), (1, 2, 3, 4)], [])
    assert paths.torsion_names(alike) == ["C–C–C–C", "C–C–C–C (2)"]
