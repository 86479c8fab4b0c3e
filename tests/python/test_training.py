"""Training: the losses against closed forms, the loop (resume, seeds, stops), and the command from file to file."""

import inspect
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from diffusim import model_file
from diffusim.snapshots import Snapshots, read

jax = pytest.importorskip("jax")
jnp = jax.numpy

from diffusim.cli import main  # noqa: E402
from diffusim.commands.train import train  # noqa: E402
from diffusim.report import statistics  # noqa: E402
from diffusim.training import chains, choices, config, curvature, export, trainer  # noqa: E402
from diffusim.training.even import even_draw  # noqa: E402
from diffusim.training.kinds import network_of as network_for  # noqa: E402
from diffusim.training.kinds import score  # noqa: E402
from diffusim.training.losses import Frames, denoising_loss, fokker_planck_loss, relative_entropy_loss, volume_loss  # noqa: E402  # noqa: E402
from diffusim.training.network import DistanceNetwork, Weights  # noqa: E402

ROOT = Path(__file__).parents[2]
PDB = ROOT / "examples/ala2/ala2.pdb"
FIXTURE = ROOT / "tests/fixtures/distance_small.safetensors"


def diatomic(n_frames: int, length: float, spread: float, seed: int) -> np.ndarray:
    """Frames [n_frames, 2, 3] of two particles, their distance normal, their direction uniform."""
    random = np.random.default_rng(seed)
    direction = random.normal(size=(n_frames, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    half = 0.5 * direction * random.normal(length, spread, size=(n_frames, 1))
    return np.stack([-half, half], axis=1).astype(np.float32)


def small_settings(**changes) -> config.TrainingSettings:
    defaults = {
        "steps": 60,
        "batch": 128,
        "hidden": (16, 12),
        "noise_min": 0.0011,
        "noise_max": 0.021,
        "noise_simulation": 0.0013,
        "fokker_planck_weight": 0.05,
        "fokker_planck_ramp": 0.3,
        "relative_entropy_weight": 0.0,
        "quadruplets": (),
        "evaluations": 6,
        "seed": 5,
    }
    return config.TrainingSettings(**(defaults | changes))


def network_of(settings: config.TrainingSettings, n_particles: int) -> DistanceNetwork:
    return DistanceNetwork(
        n_particles, settings.quadruplets, settings.noise_min, settings.noise_max, hidden=settings.hidden
    )


def load_fixture() -> tuple[DistanceNetwork, Weights, model_file.ModelFile, dict]:
    header, tensors = model_file.read(FIXTURE), model_file.read_tensors(FIXTURE)
    h = header.hyperparameters
    network = DistanceNetwork(
        header.n_particles,
        tuple(tuple(q) for q in h["quadruplets"]),
        header.noise_levels.min,
        header.noise_levels.max,
        tuple(h["hidden"]),
        h["softening"],
        h["signed_length"],
        h["harmonic"],
        h["n_frequencies"],
    )
    return network, network.weights(tensors), header, tensors


# The network


def test_the_fixture_is_what_the_network_gives():
    network, weights, _, _ = load_fixture()
    cases = json.loads(FIXTURE.with_suffix(".json").read_text())
    positions = np.array(cases["positions"], dtype=np.float32)
    for case in cases["cases"]:
        log_noise = np.log(case["noise_level"])
        energies = jax.jit(jax.vmap(network.energy, (None, 0, None)))(weights, positions, log_noise)
        scores = jax.jit(jax.vmap(partial(score, network), (None, 0, None)))(weights, positions, log_noise)
        np.testing.assert_allclose(energies, case["energies"], atol=2e-5)
        np.testing.assert_allclose(scores, case["scores"], atol=2e-3)


def test_energy_ignores_rigid_motion_but_knows_a_mirror_image():
    network, weights, _, tensors = load_fixture()
    x = tensors["start_positions"][0].astype(float)
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)
    energy = float(network.energy(weights, x, np.log(0.003)))
    moved = float(network.energy(weights, x @ rotation + [0.31, -0.17, 0.23], np.log(0.003)))
    mirrored = float(network.energy(weights, -x, np.log(0.003)))
    assert moved == pytest.approx(energy, abs=1e-4)
    assert abs(mirrored - energy) > 0.01


def test_largest_curvature_is_the_largest_eigenvalue_of_the_hessian():
    network, weights, header, tensors = load_fixture()
    frames = tensors["start_positions"]
    noise_level = header.noise_levels.simulation
    measured = curvature.largest_curvature(network, weights, Frames(frames), noise_level)
    blurred = frames + noise_level * jax.random.normal(jax.random.key(0), (2, *frames.shape))[0]
    hessian = jax.jit(jax.vmap(jax.hessian(network.energy, 1), (None, 0, None)))
    hessians = hessian(weights, blurred, np.log(noise_level))
    n = 3 * network.n_particles
    exact = np.linalg.eigvalsh(np.asarray(hessians).reshape(-1, n, n)).max()
    assert 0.98 * exact < measured < 1.001 * exact


# The losses against closed forms


SPREAD = 0.7  # nm


@dataclass(frozen=True)
class BlurredGaussian:
    """Exact energy of a normal density of spread 0.7 nm blurred by sigma; `rate` is 1 for the true blur."""

    rate: float = 1.0
    n_particles: int = 4
    noise_min: float = 0.11
    noise_max: float = 1.9

    def energy(self, weights, positions, log_noise, cell=None):
        variance = SPREAD**2 + self.rate * jax.numpy.exp(2 * log_noise)
        return 0.5 * jax.numpy.sum(positions**2) / variance


NOISE = (0.11, 1.9)


def gaussian_frames(n_frames: int) -> Frames:
    """Frames of that density with its exact forces."""
    x = SPREAD * jax.random.normal(jax.random.key(2), (n_frames, 4, 3))
    return Frames(x, forces=-x / SPREAD**2)


def test_fokker_planck_loss_is_zero_for_a_density_that_blurs_as_it_must():
    frames = gaussian_frames(400)
    true = float(fokker_planck_loss(BlurredGaussian(), None, frames, NOISE, jax.random.key(3)))
    wrong = float(fokker_planck_loss(BlurredGaussian(rate=0.6), None, frames, NOISE, jax.random.key(3)))
    assert abs(true) < 1e-8
    assert wrong > 1e-3


def test_fokker_planck_loss_is_its_closed_form_for_groups_of_any_size():
    """r = a (|y|^2 - mean), a = sigma^2 (1 - rate) / (spread^2 + rate sigma^2)^2; Var |y|^2 = 2 d variance^2."""
    rate, noise, frames = 0.6, 0.5, gaussian_frames(19_200)

    @partial(jax.jit, static_argnums=0)
    def loss(n_frames, key):
        few = jax.tree.map(lambda a: a.reshape(-1, n_frames, *a.shape[1:]), frames)
        keys = jax.random.split(key, len(few.positions))
        one = partial(fokker_planck_loss, BlurredGaussian(rate), None)
        return jax.vmap(lambda f, k: one(f, (noise, noise * 1.0001), k))(few, keys)

    a = noise**2 * (1 - rate) / (SPREAD**2 + rate * noise**2) ** 2
    expected = a**2 * 2 * 12 * (SPREAD**2 + noise**2) ** 2 / 12
    for n_frames in (2, 5, 64):
        found = np.asarray(loss(n_frames, jax.random.key(n_frames)))
        assert found.mean() == pytest.approx(expected, abs=4 * found.std() / np.sqrt(len(found)))


def test_denoising_loss_of_the_exact_score_is_its_closed_form():
    frames = gaussian_frames(20_000)._replace(forces=None)
    loss = float(denoising_loss(BlurredGaussian(), None, frames, NOISE, jax.random.key(3)))
    noise = np.exp(np.linspace(np.log(0.11), np.log(1.9), 4001))
    expected = np.mean(SPREAD**2 / (SPREAD**2 + noise**2))  # what sigma leaves unknown of the noise
    assert loss == pytest.approx(expected, abs=0.004)  # 240,000 coordinates: standard error below 0.001


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_forces_take_the_variance_out_of_the_target(share):
    """With q = v / (v + sigma^2), w = share q: the target misses the exact score by (w - q)^2 (1 / sigma^2 + 1 / v)."""
    frames, key = gaussian_frames(20_000), jax.random.key(3)
    loss = denoising_loss(BlurredGaussian(), None, frames, NOISE, key, share, SPREAD**2)
    noise = np.exp(np.linspace(np.log(0.11), np.log(1.9), 4001))
    q = SPREAD**2 / (SPREAD**2 + noise**2)
    w = share * q
    variance = (w - q) ** 2 * (1 / noise**2 + 1 / SPREAD**2)
    weight = 1 / ((1 - w) ** 2 / noise**2 + w**2 / SPREAD**2)
    assert float(loss) == pytest.approx(np.mean(weight * variance), abs=0.002)  # of the mean of |xi|^2


def test_forces_leave_the_best_score_what_it_was():
    """At one noise level the loss with forces differs from that without by a factor and a constant, for any energy."""
    frames, noise, v = gaussian_frames(40_000), 0.5, 0.3

    def gain(share):
        w = share * v / (v + noise**2)
        weight = 1 / ((1 - w) ** 2 / noise**2 + w**2 / v)
        right, wrong = (
            denoising_loss(BlurredGaussian(rate), None, frames, (noise, 1.0001 * noise), jax.random.key(5), share, v)
            for rate in (1.0, 0.3)
        )
        return float(wrong - right) / weight

    def mean_square_difference():
        exact, other = SPREAD**2 + noise**2, SPREAD**2 + 0.3 * noise**2
        return (1 / other - 1 / exact) ** 2 * exact

    for share in (0.0, 0.7, 1.0):
        assert gain(share) == pytest.approx(mean_square_difference(), rel=0.06)


def blurred_diatomic(noise: float, length: float, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid of distances rho, their density, and the exact radial score of the second particle, blurred by `noise`.

    Blurring both particles blurs their difference by a^2 = 2 noise^2. Over all directions the Gaussian kernel from the
    sphere r to a point at rho is exp(-(rho - r)^2 / 2 a^2) a^2 / (2 rho r), up to exp(-2 rho r / a^2).
    """
    a = np.sqrt(2) * noise
    r = np.linspace(length - 6 * spread, length + 6 * spread, 1201)
    reach = 6 * np.hypot(spread, a)
    rho = np.linspace(max(length - reach, 0.01), length + reach, 1201)
    weight = np.exp(-((r - length) ** 2) / (2 * spread**2)) / r
    density = np.exp(-((rho[:, None] - r) ** 2) / (2 * a**2)) @ weight / rho  # in space
    score = np.gradient(np.log(density), rho)
    radial = density * rho**2
    return rho, radial / radial.sum(), score


def test_training_reaches_the_exact_score_of_a_diatomic():
    length, spread = 0.15, 0.005
    frames = diatomic(40_000, length, spread, seed=8)
    settings = small_settings(
        steps=2000, batch=1024, hidden=(32, 32), noise_min=0.001, noise_max=0.02, noise_simulation=0.001
    )
    network = network_of(settings, 2)
    result = trainer.train(network, Frames(frames), settings)

    # what the exact score leaves of the noise, per coordinate: 1 - sigma^2 E|s|^2 / 6
    left = []
    for noise in np.exp(np.linspace(np.log(0.001), np.log(0.02), 41)):
        _, probability, exact = blurred_diatomic(noise, length, spread)
        left.append(1 - noise**2 * 2 * np.sum(probability * exact**2) / 6)
    assert result.held_out == pytest.approx(np.mean(left), abs=0.004)  # 2,000 frames: standard error 0.0015

    rho, _, exact = blurred_diatomic(0.001, length, spread)
    pairs = np.zeros((9, 2, 3), dtype=np.float32)
    pairs[:, 1, 0] = np.linspace(length - 1.5 * spread, length + 1.5 * spread, 9)
    scores = jax.vmap(partial(score, network), (None, 0, None))(result.weights, pairs, np.log(0.001))
    expected = np.interp(pairs[:, 1, 0], rho, exact)
    assert np.abs(np.asarray(scores)[:, 1, 0] - expected).max() < 0.08 / spread


# Frames drawn evenly over torsions


def torsion_chains(n_frames: int, seed: int) -> np.ndarray:
    """Frames [n_frames, 5, 3] of a bent chain with two torsions about the bond 1-2, one of two wells and one stiff."""
    random = np.random.default_rng(seed)
    wells = np.where(random.random(n_frames) < 0.8, -1.2, 1.9)
    soft, stiff = wells + 0.45 * random.normal(size=n_frames), 3.0 + 0.1 * random.normal(size=n_frames)

    def end(angle, side):
        return np.stack([np.full(n_frames, side), np.cos(angle), np.sin(angle)], axis=-1)

    b, c = np.zeros((n_frames, 3)), np.tile([1.4, 0.0, 0.0], (n_frames, 1))
    return 0.1 * np.stack([end(0 * soft, -0.6), b, c, end(soft, 2.0), end(stiff, 2.1)], axis=1)


SOFT_AND_STIFF = ((0, 1, 2, 3), (0, 1, 2, 4))


def test_frames_are_drawn_as_often_as_it_is_said_and_barriers_like_basins():
    frames, share = torsion_chains(20_000, seed=3), 0.6
    even = even_draw(frames, SOFT_AND_STIFF, share, (0.001, 0.02))
    assert even.quadruplets.tolist() == [[0, 1, 2, 3]]  # the other one has no barrier
    n = 400_000
    drawn = np.bincount(np.asarray(jax.jit(even.draw, static_argnums=1)(jax.random.key(4), n)), minlength=len(frames))
    expected = n / len(frames) * np.asarray(even.drawn)
    assert np.asarray(even.drawn).mean() == pytest.approx(1, abs=1e-5)
    assert np.mean((drawn - expected) ** 2 / expected) == pytest.approx(1, abs=4 * np.sqrt(2 / len(frames)))

    angle = statistics.torsions(frames, SOFT_AND_STIFF)[:, 0]
    bins = np.histogram(angle, bins=36, range=(-180, 180), weights=drawn)[0] / n
    there = np.histogram(angle, bins=36, range=(-180, 180))[0] / len(frames)
    visited = there > 0
    even_share = (bins - (1 - share) * there)[visited] / share * visited.sum()
    many = (there > 1 / (30 * visited.sum()))[visited]  # not limited by the greatest gain
    assert 10 < many.sum() < visited.sum() and np.ptp(even_share[many]) < 0.1
    assert (even_share[~many] < even_share[many].min()).all()


@dataclass(frozen=True)
class Barriers(BlurredGaussian):
    n_particles: int = 5

    def energy(self, weights, positions, log_noise, cell=None):
        return 2000 * positions[3, 1] ** 3  # its score is large at the barriers of torsion_chains()


def test_drawing_evenly_does_not_change_what_is_best():
    """<g_sigma(y) f(y)> over all snapshots is <f(y) g_sigma(y) / g(x)> over those that were drawn, for any f."""
    frames, n = torsion_chains(20_000, seed=3), 40_000
    even = even_draw(frames, SOFT_AND_STIFF, 0.6, (0.001, 0.02))
    chosen = np.asarray(even.draw(jax.random.key(5), n))
    twice = jnp.asarray(np.tile(frames, (2, 1, 1)), dtype=jnp.float32)

    @jax.jit
    def values(x, log_noise, key):
        y = x + jnp.exp(log_noise) * jax.random.normal(key, x.shape)
        f = jnp.stack([jnp.ones(len(y)), y[:, 3, 2] > 0, 100 * (y[:, 3, 2] - y[:, 4, 1]) ** 2])
        return f * jax.vmap(even.relevance, (0, None))(y, log_noise)

    for noise in (0.0011, 0.017):
        straight = values(twice, np.log(noise), jax.random.key(6))
        drawn = values(twice[chosen], np.log(noise), jax.random.key(7)) / even.drawn[chosen]
        errors = np.hypot(straight.std(axis=1), drawn.std(axis=1)) / np.sqrt(n)
        assert (np.abs(drawn.mean(axis=1) - straight.mean(axis=1)) < 4 * errors).all()
        assert (errors < 0.04 * straight.mean(axis=1)).all()

    # and in the loss: drawn frames, against all frames at their relevance
    loss = jax.jit(partial(denoising_loss, Barriers(), None, noise_range=(0.019, 0.02)))
    relevance = jax.tree_util.Partial(even.relevance)
    some = float(loss(Frames(twice[chosen]), key=jax.random.key(8), relevance=(relevance, even.drawn[chosen])))
    every = float(loss(Frames(twice), key=jax.random.key(9), relevance=(relevance, jnp.ones(n))))
    plain = float(loss(Frames(twice), key=jax.random.key(9)))
    assert some == pytest.approx(every, abs=0.001) and plain < every - 0.006


def test_a_blurred_frame_counts_by_its_torsion_at_that_noise():
    even = even_draw(torsion_chains(20_000, seed=3), SOFT_AND_STIFF, 0.6, (0.001, 0.1))
    x = torsion_chains(40, seed=11)
    angle = statistics.torsions(x, SOFT_AND_STIFF)[:, 0]
    for noise, level in ((0.001, 0), (0.1, 15), (0.0101, 8)):
        gains = np.asarray(even.gains[level, 0])[((angle + 180) // 10).astype(int)]
        found = jax.jit(jax.vmap(even.relevance, (0, None)))(x.astype(np.float32), np.log(noise))
        np.testing.assert_allclose(found, 0.4 + 0.6 * gains, rtol=1e-5)
    assert np.ptp(even.gains[15, 0]) < 0.2 * np.ptp(even.gains[0, 0])  # all angles are as frequent there


def test_without_a_soft_torsion_frames_are_drawn_as_they_come():
    frames = torsion_chains(200, seed=3)
    assert even_draw(frames, SOFT_AND_STIFF, 0.0, (0.001, 0.1)) is None
    assert even_draw(frames, SOFT_AND_STIFF[1:], 0.5, (0.001, 0.1)) is None
    assert even_draw(frames, (), 0.5, (0.001, 0.1)) is None


# The loop


def test_same_seed_same_weights():
    frames = Frames(diatomic(500, 0.17, 0.006, seed=1))
    settings = small_settings()
    network = network_of(settings, 2)
    first, second = (trainer.train(network, frames, settings) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first.weights, second.weights)


def test_interrupted_and_resumed_ends_in_the_same_weights(tmp_path):
    frames = Frames(diatomic(500, 0.17, 0.006, seed=1))
    settings = small_settings()
    network = network_of(settings, 2)
    checkpoint = tmp_path / "run.checkpoint"

    def interrupt(progress):
        if progress.step == 30:
            raise KeyboardInterrupt

    interrupted = trainer.train(network, frames, settings, checkpoint, report=interrupt)
    assert interrupted.stopped == "interrupted" and interrupted.step == 30
    resumed = trainer.train(network, frames, settings, checkpoint, resume=True)
    straight = trainer.train(network, frames, settings)
    assert resumed.stopped == "finished"
    jax.tree.map(np.testing.assert_array_equal, resumed.weights, straight.weights)
    assert resumed.held_out == straight.held_out

    with pytest.raises(config.SettingsError, match="made with learning_rate 0.002, this training has 0.004"):
        trainer.train(network, frames, replace(settings, learning_rate=0.004), checkpoint, resume=True)
    with pytest.raises(config.SettingsError, match="made with snapshots"):
        trainer.train(network, frames.take(slice(1, None)), settings, checkpoint, resume=True)
    with pytest.raises(config.SettingsError, match="no checkpoint"):
        trainer.train(network, frames, settings, tmp_path / "absent", resume=True)
    checkpoint.write_bytes(b"something else")
    with pytest.raises(config.SettingsError, match="not a training checkpoint"):
        trainer.train(network, frames, settings, checkpoint, resume=True)


def test_it_stops_early_when_nothing_is_gained():
    frames = Frames(diatomic(300, 0.17, 0.006, seed=1))
    settings = small_settings(steps=5000, evaluations=500, patience=1, learning_rate=1e-9)
    result = trainer.train(network_of(settings, 2), frames, settings)
    assert result.stopped == "early" and result.step < 5000


def test_frames_that_are_not_finite_stop_it_and_it_says_what_to_do():
    frames = diatomic(500, 0.17, 0.006, seed=1)
    frames[20:] = np.nan
    settings = small_settings()
    with pytest.raises(trainer.TrainingError, match="not finite at step 10, .* Lower --learning-rate") as stop:
        trainer.train(network_of(settings, 2), Frames(frames), settings)
    assert stop.value.result is None  # nothing was good before


@dataclass(frozen=True)
class Spring:
    """A network of one weight, the logarithm of a stiffness, that breaks below `limit`. In a cell: along its edges."""

    limit: float
    n_particles: int = 2
    noise_min: float = 0.0011
    noise_max: float = 0.021
    kind: str = "spring"
    translation_invariant: bool = True

    def initial_weights(self, key, positions):
        return {"log": jax.numpy.zeros(()), "fixed": jax.numpy.float32(0.37)}

    def energy(self, weights, positions, log_noise, cell=None):
        log = jax.numpy.where(weights["log"] < self.limit, jax.numpy.nan, weights["log"])
        difference = positions[1] - positions[0]
        if cell is not None:
            difference -= jax.numpy.rint(difference @ jax.numpy.linalg.inv(cell)) @ cell
        return 0.25 * jax.numpy.exp(log) * jax.numpy.sum(difference**2) / jax.numpy.exp(2 * log_noise)


def test_a_loss_that_is_not_finite_sends_it_back_with_half_the_learning_rate(tmp_path):
    """The weight falls by about the learning rate a step to its optimum above the limit; at full rate it overshoots."""
    frames = Frames(0.004 * np.random.default_rng(2).normal(size=(500, 2, 3)))
    settings = small_settings(fokker_planck_weight=0.0, learning_rate=0.9, warm_up=0.0, steps=300)
    notes = []
    result = trainer.train(
        Spring(limit=-1.7), frames, settings, tmp_path / "a.checkpoint",
        report=lambda progress: notes.append(progress.note) if progress.note else None,
    )  # fmt: skip
    assert result.stopped == "finished" and 1 <= result.recoveries <= trainer.MOST_RECOVERIES
    assert len(notes) == result.recoveries and "it goes on from step" in notes[0]
    assert np.isfinite(result.held_out)
    again = trainer.train(Spring(limit=-1.7), frames, settings)
    assert again.weights["log"] == result.weights["log"]


def test_a_periodic_system_trains_like_any_other():
    """Particles across a boundary are neighbours; without the cell the same frames look broken."""
    random = np.random.default_rng(3)
    cells = np.diag([2.1, 2.3, 2.6]) + random.normal(scale=0.01, size=(400, 3, 3))
    images = random.integers(-1, 2, size=(400, 1, 3)).astype(float)
    x = np.concatenate([np.zeros((400, 1, 3)), 0.004 * random.normal(size=(400, 1, 3)) + images @ cells], axis=1)
    settings = small_settings(fokker_planck_weight=0.0, steps=300, learning_rate=0.05)
    whole = trainer.train(Spring(limit=-9.0), Frames(x, cells), settings)
    broken = trainer.train(Spring(limit=-9.0), Frames(x), settings)
    assert whole.held_out < 0.93 and broken.held_out > 0.97
    assert whole.residual is None and whole.bands[0].fokker_planck is None  # its weight is 0
    assert whole.weights["fixed"] == np.float32(0.37)  # what has no gradient stays as it is


def test_the_last_report_says_how_good_it_is_along_the_noise_levels():
    settings = small_settings()
    result = trainer.train(network_of(settings, 2), Frames(diatomic(500, 0.17, 0.006, seed=1)), settings)
    assert len(result.bands) == trainer.BANDS
    assert result.bands[0].noise_min == pytest.approx(0.0011) and result.bands[-1].noise_max == pytest.approx(0.021)
    assert all(a.noise_max == pytest.approx(b.noise_min) for a, b in zip(result.bands, result.bands[1:], strict=False))
    mean = np.mean([band.denoising for band in result.bands])
    assert mean + settings.fokker_planck_weight * result.residual == pytest.approx(result.held_out, abs=0.03)


def test_the_fokker_planck_loss_reaches_as_far_as_it_is_told():
    """By default 20 times the least noise level, and never beyond the greatest."""
    for changes, greatest in (
        ({}, 0.021),
        ({"noise_max": 0.31}, 20 * 0.0011),
        ({"noise_max": 0.31, "fokker_planck_noise_max": 0.13}, 0.13),
    ):
        settings = small_settings(**changes)
        whole, some = trainer._noise_ranges(network_of(settings, 2), settings)
        assert whole == (0.0011, settings.noise_max)
        assert some == (0.0011, pytest.approx(greatest))


def test_the_fokker_planck_weight_grows_to_its_value():
    settings = small_settings(fokker_planck_weight=0.2, fokker_planck_ramp=0.5, steps=1000)
    weights = [float(trainer._fokker_planck_weight(settings, step)) for step in (0, 250, 500, 900)]
    assert weights == pytest.approx([0, 0.1, 0.2, 0.2])
    at_once = small_settings(fokker_planck_weight=0.2, fokker_planck_ramp=0.0)
    assert float(trainer._fokker_planck_weight(at_once, 0)) == pytest.approx(0.2)


@dataclass(frozen=True)
class Well:
    """The energy k |x|^2 / 2 at every noise level; the stiffness k (1/nm^2) is what is learned."""

    start: float
    n_particles: int = 3
    noise_min: float = NOISE[0]
    noise_max: float = NOISE[1]
    translation_invariant: bool = False

    def initial_weights(self, key, positions):
        return jnp.float32(self.start)

    def energy(self, weights, positions, log_noise, cell=None):
        return 0.5 * weights * jnp.sum(positions**2)


def test_chains_sample_the_network():
    """The middle scheme has the exact variance 1 / k of a harmonic well at any step; what runs away starts anew."""
    stiffness, n = 37.0, 2000
    key_start, key_fresh = jax.random.split(jax.random.key(11))
    fresh = Frames(0.3 * jax.random.normal(key_fresh, (n, 3, 3)))
    started = chains.start(fresh, jnp.arange(n), key_start)
    tuned = chains.tuned(Well(stiffness), jnp.float32(stiffness), started, 0.13)
    assert float(tuned.time_step) == pytest.approx(chains.PHASE / np.sqrt(stiffness), rel=0.01)
    nobody = jnp.zeros(n, bool)
    broken = tuned._replace(velocities=tuned.velocities.at[5].set(np.inf))
    mended = chains.advance(Well(stiffness), jnp.float32(stiffness), broken, 0.13, 2, fresh, nobody, jax.random.key(1))
    np.testing.assert_array_equal(mended.positions[5], fresh.positions[5])
    moved = chains.advance(Well(stiffness), jnp.float32(stiffness), tuned, 0.13, 2000, fresh, nobody, jax.random.key(1))
    variance = float(jnp.mean(moved.positions**2))
    assert variance == pytest.approx(1 / stiffness, rel=4 * np.sqrt(2 / (9 * n)))
    assert float(jnp.mean(moved.velocities**2)) == pytest.approx(1, rel=4 * np.sqrt(2 / (9 * n)))


def test_relative_entropy_has_its_closed_form_gradient():
    """Of k for normal densities, per coordinate: (variance of the blurred snapshots - that of the samples) / 2."""
    blurred, sampled = (Frames(s * jax.random.normal(jax.random.key(4), (5000, 3, 3))) for s in (0.7, 0.4))
    gradient = jax.grad(lambda k: relative_entropy_loss(Well(3.1), k, 0.13, blurred, sampled))(3.1)
    assert float(gradient) == pytest.approx((0.7**2 - 0.4**2) / 2, rel=4 * np.sqrt(2 / 45_000) * 1.5)


def test_relative_entropy_brings_the_samples_to_the_snapshots():
    """What denoising of so few frames at so large noise leaves open: the variance of snapshots at the lowest noise."""
    frames = Frames(0.7 * np.random.default_rng(6).normal(size=(4000, 3, 3)))
    settings = small_settings(
        noise_min=NOISE[0],
        noise_max=NOISE[1],
        noise_simulation=0.13,
        fokker_planck_weight=0.0,
        relative_entropy_weight=1e4,  # against a denoising loss with another minimum: one k for all noise levels
        relative_entropy_start=0.2,
        chains=400,
        steps=800,
        learning_rate=0.01,  # slow against the chains
    )
    result = trainer.train(Well(2.6), frames, settings)
    without = trainer.train(Well(2.6), frames, replace(settings, relative_entropy_weight=0.0))
    assert result.best_step == 800  # the last, whatever the held-out loss says
    exact = 1 / (0.7**2 + 0.13**2)
    assert float(result.weights) == pytest.approx(exact, rel=0.06)
    assert abs(float(without.weights) / exact - 1) > 0.2


def test_interrupted_while_chains_run_it_resumes_in_the_same_weights(tmp_path):
    frames = Frames(diatomic(500, 0.17, 0.006, seed=1))
    settings = small_settings(relative_entropy_weight=0.1, relative_entropy_start=0.35, chains=32)
    network, checkpoint = network_of(settings, 2), tmp_path / "run.checkpoint"

    def interrupt(progress):
        if progress.step == 40:
            raise KeyboardInterrupt

    assert trainer.train(network, frames, settings, checkpoint, report=interrupt).step == 40
    resumed = trainer.train(network, frames, settings, checkpoint, resume=True)
    straight = trainer.train(network, frames, settings)
    jax.tree.map(np.testing.assert_array_equal, resumed.weights, straight.weights)
    other = trainer.train(network, frames, replace(settings, relative_entropy_weight=0.0))
    assert float(other.weights.layers[0][0][0, 0]) != float(straight.weights.layers[0][0][0, 0])


@dataclass(frozen=True)
class Compressed:
    """The energy a N / V of N particles in a volume V, whose constant a (nm^3) is learned."""

    n_particles: int = 7

    def energy(self, weights, positions, log_noise, cell):
        return weights * self.n_particles / jnp.abs(jnp.linalg.det(cell))


def test_volumes_tell_the_pressure():
    """Snapshots of p(ln V) ~ V^(N+1) exp(-P V / kT - a N / V): the loss is least at the a that made them."""
    network, a, pressure = Compressed(), 2.3, 4.1
    log_volume = np.linspace(-3, 3, 20_001)
    volume = np.exp(log_volume)
    logarithm = (network.n_particles + 1) * log_volume - pressure * volume - a * network.n_particles / volume
    cumulative = np.cumsum(np.exp(logarithm - logarithm.max()))
    n = 40_000
    drawn = np.interp(np.random.default_rng(9).random(n), cumulative / cumulative[-1], volume)
    cells = (drawn ** (1 / 3))[:, None, None] * np.eye(3)
    frames = Frames(jnp.zeros((n, 7, 3)), jnp.asarray(cells, jnp.float32))

    def gradient(weight, key):
        loss = partial(volume_loss, network, noise_level=0.13, blurred=frames, log_volume_noise=0.02, pressure=pressure)
        return jax.grad(lambda w: loss(w, key=key))(jnp.float32(weight))

    found = np.array([float(gradient(a, jax.random.key(i))) for i in range(4)])
    slope = (float(gradient(a + 0.5, jax.random.key(0))) - found[0]) / 0.5
    # the minimum is where the gradient crosses 0; the snapshots themselves know a to 0.3 %
    assert abs(found.mean() / slope) < 0.01 * a
    assert slope > 0


def test_forces_are_worth_many_frames():
    """Of 300 frames: the score at small noise levels is nearer to the exact one with forces than without."""
    length, spread = 0.15, 0.005
    x = diatomic(300, length, spread, seed=8)
    between = x[:, 1] - x[:, 0]
    r = np.linalg.norm(between, axis=1, keepdims=True)
    pull = (-(r - length) / spread**2 - 2 / r) * between / r  # of exp(-(r - length)^2 / 2 spread^2) / r^2 in space
    forces = np.stack([-pull, pull], axis=1)
    settings = small_settings(
        steps=1500, hidden=(24,), noise_min=0.0002, learning_rate=0.005, fokker_planck_weight=0.0, evaluations=2
    )
    pairs = np.zeros((9, 2, 3), dtype=np.float32)
    pairs[:, 1, 0] = np.linspace(length - 1.5 * spread, length + 1.5 * spread, 9)
    network = network_of(settings, 2)
    scores = jax.jit(jax.vmap(partial(score, network), (None, 0, None)))

    def error(forces):
        weights = trainer.train(network, Frames(x, forces=forces), settings).weights
        errors = []
        for noise in (0.0002, 0.0007, 0.002):
            rho, _, exact = blurred_diatomic(noise, length, spread)
            found = np.asarray(scores(weights, pairs, np.log(noise)))[:, 1, 0]
            errors.append(np.abs(found - np.interp(pairs[:, 1, 0], rho, exact)).max() * spread)
        return max(errors)

    with_forces, without = error(forces), error(None)
    assert with_forces < 0.5 * without, (with_forces, without)


# Settings chosen from the data


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory) -> Snapshots:
    """Heavy atoms of alanine dipeptide, shaken."""
    return read(write_snapshots(tmp_path_factory.mktemp("data") / "ala2.npz"), PDB, "not element H")


def write_snapshots(path: Path) -> Path:
    one = mdtraj.load(str(PDB))
    shake = np.random.default_rng(11).normal(scale=0.003, size=(300, one.n_atoms, 3))
    np.savez(path, positions=(one.xyz + shake).astype(np.float32))
    return path


def test_noise_levels_and_signed_features_come_from_the_snapshots(snapshots):
    settings = choices.complete(config.TrainingSettings(), snapshots)
    spreads = snapshots.pair_spreads()
    assert 0.15 * spreads.min() < settings.noise_min < 0.25 * spreads.min()
    assert settings.noise_max >= spreads.max() and settings.noise_simulation == settings.noise_min
    names = {"-".join(snapshots.particles[i].name for i in q) for q in settings.quadruplets}
    assert {"C-N-CA-C", "N-CA-C-N"} < names  # phi and psi
    assert len(settings.quadruplets) == 7  # four central bonds; the centres C, CA, C
    centres = {q[1] for q in settings.quadruplets[4:]}
    assert centres == {1, 4, 6}


def test_a_constrained_distance_is_refused_with_the_fix(snapshots):
    rigid = snapshots.positions.copy()
    bond = rigid[:, 1] - rigid[:, 0]
    rigid[:, 1] = rigid[:, 0] + 0.151 * bond / np.linalg.norm(bond, axis=1, keepdims=True)
    with pytest.raises(config.SettingsError, match=r"CH3 of ACE 1 \(particle 0\) to C of ACE 1 .* is constrained"):
        choices.complete(config.TrainingSettings(), replace(snapshots, positions=rigid))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"noise_min": 0.02, "noise_max": 0.01}, "--noise-max is 0.01 nm"),
        ({"noise_simulation": 0.7}, "--noise-simulation is 0.7 nm"),
        ({"fokker_planck_noise_max": 0.7}, "--fokker-planck-noise-max is 0.7 nm; expected a value above --noise-min"),
        ({"quadruplets": ((0, 1, 2, 10),)}, "0-1-2-10; expected four different particles 0 to 9"),
        ({"quadruplets": ((0, 1, 1, 3),)}, "0-1-1-3"),
        ({"pressure": 300.0}, "--pressure is of periodic snapshots: add --periodic, or leave it out"),
    ],
)
def test_settings_that_do_not_fit_the_snapshots_are_refused(changes, match, snapshots):
    with pytest.raises(config.SettingsError, match=match):
        choices.complete(config.TrainingSettings(**changes), snapshots)


def test_the_size_of_the_network_follows_the_number_of_atoms(snapshots):
    def width(n):
        few = Snapshots(np.random.default_rng(n).normal(size=(9, n, 3)), snapshots.particles[:1] * n, [], {})
        return choices.complete(config.TrainingSettings(), few).hidden

    assert [width(n) for n in (2, 5, 10, 22, 60)] == [(64,) * 3, (128,) * 3, (192,) * 3, (320,) * 3, (384,) * 3]
    assert choices.complete(config.TrainingSettings(hidden=(7, 9)), snapshots).hidden == (7, 9)


# The settings


def test_flags_override_the_file_that_overrides_the_defaults(tmp_path):
    toml = tmp_path / "train.toml"
    toml.write_text(
        '[data]\nsnapshots = "x.npz"\n[model]\nhidden = [40, 30]\n[training]\nsteps = 700\nlearning_rate = 0.003\n'
    )
    data, settings = config.load(toml, {"steps": 900, "seed": None})
    assert (settings.steps, settings.learning_rate, settings.hidden, settings.seed) == (900, 0.003, (40, 30), 0)
    assert Path(data.snapshots) == tmp_path / "x.npz"  # relative to the file


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[training]\nstepz = 700", r"'stepz' in \[training\], which is no setting; it has steps, batch"),
        ("[noise]\nsteps = 700", r"'steps' in \[noise\]; it belongs into \[training\]"),
        ("steps = 700", r"'steps' outside of the sections; put it under \[training\]"),
        ("[trainings]\nsteps = 700", "has 'trainings' where sections are expected: data, model, noise, loss, training"),
        ("[training]\nsteps =", "cannot be read"),
        ("[training]\nsteps = 7000.0", "--steps is 7000.0; expected a whole number"),
        ("[training]\nsteps = 5", "--steps is 5; expected at least 10"),
        ("[training]\nsteps = true", "--steps is True; expected a whole number"),
        ('[training]\nlearning_rate = "fast"', "a setting has the wrong type"),
        ("[training]\nbatch = 33", "--batch is 33; expected an even number"),
        ("[training]\nwarm_up = 1.0", "--warm-up is 1.0; expected a fraction"),
        ("[loss]\nforce_weight = 2.0", "--force-weight is 2.0; expected 0 to 1"),
        ('[model]\nmodel = "painn"', "--model is painn; expected distance or message-passing"),
        ("[model]\nhidden = [1.5]", r"--hidden holds \(?\[?1.5.* expected a list of whole numbers"),
        ('[model]\nsymmetries = "some"', "--symmetries is some; expected auto, none, or permutations"),
    ],
)
def test_a_mistake_in_the_file_is_named(text, match, tmp_path):
    (tmp_path / "train.toml").write_text(text + "\n")
    with pytest.raises(config.SettingsError, match=match):
        config.load(tmp_path / "train.toml", {})


def test_the_completed_settings_make_a_file_that_gives_them_again(snapshots, tmp_path):
    settings = choices.complete(config.TrainingSettings(symmetries=(((0, 4),),), seed=7), replace(snapshots, bonds=[]))
    data = config.DataSettings(snapshots="data/x.npz", topology=str(tmp_path / "x.pdb"), select="name 'CA'")
    (tmp_path / "sub").mkdir()
    text = config.to_toml(data, settings, tmp_path / "sub")
    assert 'topology = "../x.pdb"' in text and "# unit =" in text
    (tmp_path / "sub" / "train.toml").write_text(text)
    again, settings_again = config.load(tmp_path / "sub" / "train.toml", {})
    assert settings_again == settings
    assert again.select == data.select and Path(again.topology).resolve() == tmp_path / "x.pdb"


def test_every_setting_is_a_flag_and_in_the_manual():
    manual = (ROOT / "docs/training.md").read_text()
    for name in config.settings():
        assert name in inspect.signature(train).parameters
        assert f"`{name}`" in manual


def test_the_example_in_the_manual_is_a_good_file(tmp_path):
    manual = (ROOT / "docs/training.md").read_text()
    (example,) = (part.split("```")[0] for part in manual.split("```toml\n") if part.startswith("[data]"))
    (tmp_path / "train.toml").write_text(example)
    data, settings = config.load(tmp_path / "train.toml", {})
    assert data.select == "not element H" and settings.temperature == 300.0


# Starting from a model


def write_model(path: Path, snapshots: Snapshots, **changes) -> Path:
    settings = choices.complete(small_settings(**{"quadruplets": None, "steps": 10} | changes), snapshots)
    network = network_for(settings, snapshots)
    result = trainer.train(network, Frames(snapshots.positions, snapshots.cells), settings)
    model_file.write(path, *export.model_of(snapshots, settings, network, result, {}))
    return path


@pytest.mark.parametrize("kind", ["distance", "message-passing"])
def test_training_starts_from_a_model(kind, snapshots, tmp_path):
    shape = {"model": kind, "hidden": (8, 8), "fokker_planck_weight": 0.0}
    first = write_model(tmp_path / "first.safetensors", snapshots, **shape, steps=30, cutoff=0.9)
    shape = dict.fromkeys(("hidden", "noise_min", "noise_max", "noise_simulation"))
    then = {"start_from": str(first), "learning_rate": 1e-12, "seed": 6, "fokker_planck_weight": 0.0, **shape}
    second = write_model(tmp_path / "second.safetensors", snapshots, **then)
    one, two = (model_file.read(path) for path in (first, second))
    assert (one.kind, one.hyperparameters, one.noise_levels.min) == (kind, two.hyperparameters, two.noise_levels.min)
    one, two = (model_file.read_tensors(path) for path in (first, second))
    for name in one.keys() - {"start_positions"}:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_start_that_does_not_fit_is_refused(snapshots, tmp_path):
    first = write_model(tmp_path / "first.safetensors", snapshots)

    def complete(some: Snapshots, **changes):
        settings = choices.complete(config.TrainingSettings(**{"start_from": str(first)} | changes), some)
        return network_for(settings, some)

    with pytest.raises(config.SettingsError, match="--hidden is 7-9, but --start-from .* has 16-12. Leave it"):
        complete(snapshots, hidden=(7, 9))
    swapped = replace(snapshots, particles=snapshots.particles[::-1])
    with pytest.raises(config.SettingsError, match="C C O N .* Start from a model of the same particles in the same"):
        complete(swapped)
    with pytest.raises(config.SettingsError, match="absent.safetensors: there is no such file"):
        complete(snapshots, start_from="absent.safetensors")
    analytic = tmp_path / "analytic.safetensors"
    model_file.write(analytic, model_file.ModelFile("double-well", 1, 300.0, {}))
    with pytest.raises(config.SettingsError, match="is an analytic model, double-well, which has no weights to train"):
        complete(snapshots, start_from=str(analytic))
    fluid = write_model(tmp_path / "fluid.safetensors", snapshots, model="message-passing", hidden=(8,), cutoff=0.9)
    argon = replace(snapshots, particles=[replace(p, element="Ar") for p in snapshots.particles])
    with pytest.raises(config.SettingsError, match="knows the species C N O, the snapshots have Ar too"):
        complete(argon, start_from=str(fluid))


# Networks


def test_a_message_passing_network_is_made_for_the_snapshots(snapshots):
    pytest.importorskip("diffusim.training.message_passing")
    settings = choices.complete(config.TrainingSettings(model="message-passing"), snapshots)
    network = network_for(settings, snapshots)
    assert network.kind == "message-passing" and network.n_particles == 10 and settings.hidden == (32, 32)
    assert settings.fokker_planck_weight == 0
    assert network.hyperparameters()["species"] == ["C", "N", "O"]
    assert network.cutoff > np.linalg.norm(snapshots.positions[:, 0] - snapshots.positions[:, 9], axis=-1).max()
    weights = network.initial_weights(jax.random.key(1), snapshots.positions)
    assert np.isfinite(network.energy(weights, snapshots.positions[0], np.log(settings.noise_min)))
    assert set(network.tensors(weights)) and network.descriptors(snapshots.positions).shape == (300, 45)


def test_the_cutoff_fits_the_cell_and_the_network_the_data(snapshots):
    cell = np.array([[1.6, 0, 0], [0.2, 1.5, 0], [-0.1, 0.3, 1.7]])
    periodic = replace(snapshots, cells=np.tile(cell, (300, 1, 1)))

    def complete(**changes):
        return choices.complete(config.TrainingSettings(**changes), periodic)

    half = 0.5 / np.linalg.norm(np.linalg.inv(cell), axis=0).max()
    chosen = complete(model="message-passing")
    assert 0.2 < chosen.cutoff < half and chosen.batch == 512
    with pytest.raises(config.SettingsError, match="--cutoff is 0.8 nm; expected at most half the least height"):
        complete(model="message-passing", cutoff=0.8)
    with pytest.raises(config.SettingsError, match="--hidden is 32-16; the blocks .* equally wide"):
        complete(model="message-passing", hidden=(32, 16))
    with pytest.raises(config.SettingsError, match="300 bar, but all cells have the same volume .* a barostat"):
        complete(model="message-passing", pressure=300.0)
    with pytest.raises(config.SettingsError, match="--periodic needs --model message-passing"):
        complete()


# Symmetry


@pytest.fixture(scope="module")
def all_atoms(tmp_path_factory) -> Snapshots:
    return read(write_snapshots(tmp_path_factory.mktemp("data") / "ala2.npz"), PDB)


def test_equivalent_atoms_are_found_and_chirality_is_kept(all_atoms):
    found = choices.choose_symmetries(all_atoms)
    names = {tuple(all_atoms.particles[i].name for i in cycle) for (cycle,) in found}
    assert names == {("H1", "H2", "H3"), ("HB1", "HB2", "HB3")} and len(found) == 3  # three methyls, cycles of three
    acetate = replace(
        all_atoms,
        positions=np.random.default_rng(5).normal(size=(400, 4, 3)).astype(np.float32),  # of either hand: it inverts
        particles=[all_atoms.particles[i] for i in (4, 0, 5, 5)],
        bonds=[(0, 1), (0, 2), (0, 3)],
    )
    assert choices.choose_symmetries(acetate) == (((2, 3),),)
    stiff = replace(acetate, positions=np.abs(acetate.positions) * [[[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]])
    assert choices.choose_symmetries(stiff) == ()


def test_a_permutation_that_no_motion_makes_is_refused(all_atoms):
    def refused(symmetries, match):
        with pytest.raises(config.SettingsError, match=match):
            choices.complete(config.TrainingSettings(symmetries=symmetries, noise_min=0.001), all_atoms)

    refused((((1, 2),),), r"turns CH3 of ACE 1 \(particle 0\) into its mirror image")
    refused((((1, 5),),), "not equivalent: they differ in element")
    refused((((1, 11),),), "moves a bond to where none is")
    refused((((1, 2, 22),),), "expected cycles of different particles 0 to 21")
    refused((((1, 2), (2, 3)),), "expected cycles of different particles")
    settings = choices.complete(config.TrainingSettings(symmetries="auto", noise_min=0.001), all_atoms)
    assert len(settings.symmetries) == 3


def test_frames_are_permuted_within_the_group(all_atoms):
    symmetries = choices.choose_symmetries(all_atoms)
    tables = tuple(choices.permutation_table(p, 22) for p in symmetries)
    x = all_atoms.positions
    moved = trainer._permuted(Frames(x, forces=2 * x), tables, jax.random.key(1))
    np.testing.assert_array_equal(moved.forces, 2 * moved.positions)
    seen = np.abs(np.asarray(moved.positions)[:, :, None] - x[:, None]).sum(axis=-1).argmin(axis=-1)  # who went where
    for (cycle,) in symmetries:
        where = {tuple(row) for row in seen[:, list(cycle)]}
        a, b, c = cycle
        assert where == {(a, b, c), (b, c, a), (c, a, b)}
    still = sorted(set(range(22)) - {i for (cycle,) in symmetries for i in cycle})
    np.testing.assert_array_equal(np.asarray(moved.positions)[:, still], x[:, still])


def test_a_permutation_of_two_cycles_has_the_order_of_both():
    table = choices.permutation_table(((0, 1), (2, 3, 4)), 6)
    assert table.shape == (6, 6) and len({tuple(row) for row in table}) == 6
    np.testing.assert_array_equal(table[0], np.arange(6))


# The start frames


def test_start_frames_keep_the_populations_better_than_random_ones():
    long = np.random.default_rng(4).permutation(4000) < 470  # two basins: 11.75 % of the molecules are stretched
    frames = np.where(long[:, None, None], diatomic(4000, 0.19, 0.002, 5), diatomic(4000, 0.15, 0.005, 6))
    descriptors = network_of(small_settings(), 2).descriptors(frames)
    counts = [long[export.representatives(descriptors, 300, seed)].sum() for seed in range(20)]
    assert np.std(counts) < 0.3 * np.sqrt(300 * 0.1175 * 0.8825)
    assert np.mean(counts) == pytest.approx(300 * 0.1175, abs=0.5)
    everyone = export.representatives(descriptors[:40], 300, seed=7)
    assert sorted(everyone) == list(range(40))


# The command


@pytest.fixture
def diffusim(monkeypatch, capsys):
    """The command line in this process: arguments to exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["diffusim", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    return run


def test_the_command_writes_a_model_file_that_says_all(diffusim, tmp_path):
    data = write_snapshots(tmp_path / "ala2.npz")
    model = tmp_path / "ala2.safetensors"
    arguments = ["train", data, "--topology", PDB, "--select", "not element H", "-o", model]
    arguments += ["--steps", 40, "--hidden", "24-16", "--batch", 128, "--temperature", 290, "--seed", 3]
    status, shown, failure = diffusim(*arguments)
    assert status == 0, failure
    assert "C-N-CA-C" in shown and "held-out" in shown

    header, tensors = model_file.read(model), model_file.read_tensors(model)
    assert header.kind == "distance" and header.n_particles == 10 and header.training_temperature == 290.0
    assert [p.name for p in header.particles] == "CH3 C O N CA CB C O N C".split()
    assert len(header.bonds) == len(header.bond_ranges) == 9
    assert all(0.1 < low < high < 0.18 for low, high in header.bond_ranges)
    assert 0 < header.recommended_effective_step < 2 / header.largest_curvature
    bands = header.training["by_noise_level"]
    assert len(bands) == 8 and set(bands[0]) == {"noise_min", "noise_max", "denoising", "fokker_planck"}
    assert "device    CPU" in shown and "FP resid." in shown
    assert header.training["snapshots"]["file"] == "ala2.npz" and header.training["settings"]["seed"] == 3
    n_features = 45 + 2 * 7
    assert {name: a.shape for name, a in tensors.items()} == {
        "feature_mean": (n_features,),
        "feature_spread": (n_features,),
        "layers.0.weight": (n_features + 9, 24),
        "layers.0.bias": (24,),
        "layers.1.weight": (24, 16),
        "layers.1.bias": (16,),
        "layers.2.weight": (16, 1),
        "layers.2.bias": (1,),
        "start_positions": (300, 10, 3),
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ala2.npz", "ala2.safetensors"]

    status, _, failure = diffusim(*arguments)
    assert status == 1 and "exists. Replace it with --force" in failure
    assert diffusim(*arguments, "--write-config", tmp_path / "train.toml")[0] == 0
    assert 'select = "not element H"' in (tmp_path / "train.toml").read_text()
    assert diffusim("train", "--config", tmp_path / "train.toml", "-o", model, "--force")[0] == 0
    assert model_file.read(model).weights_sha256 == header.weights_sha256


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["absent.npz", "--topology", PDB], "there is no file absent.npz"),
        (["absent.npz", "-o", "model.bin"], "ends in .safetensors"),
        (["absent.npz", "--steps", "0"], "--steps is 0; expected at least 10"),
        (["absent.npz", "--hidden", "wide"], "--hidden is 'wide'"),
        (["absent.npz", "--quadruplets", "1-2-x-4"], "--quadruplets is '1-2-x-4'"),
        (["absent.npz", "--symmetries", "1-x"], "--symmetries is '1-x'"),
        (["absent.npz", "--resume"], "no file absent.npz"),
        ([], "which snapshots? Give their file, or a --config"),
    ],
)
def test_a_foreseeable_mistake_is_one_sentence(arguments, match, diffusim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, shown, failure = diffusim("train", *arguments)
    assert (status, shown) == (1, "")
    assert failure.startswith("diffusim: ") and match in failure
