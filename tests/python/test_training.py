"""Training: the losses against closed forms, the loop (resume, seeds, stops), and the command from file to file."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from diffusim import model_file
from diffusim.snapshots import Snapshots, read

jax = pytest.importorskip("jax")

from diffusim.cli import main  # noqa: E402
from diffusim.training import config, export, trainer  # noqa: E402
from diffusim.training.losses import denoising_loss, fokker_planck_loss  # noqa: E402
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
    layers = tuple((tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in range(len(h["hidden"]) + 1))
    return network, Weights(tensors["feature_mean"], tensors["feature_spread"], layers), header, tensors


# The network


def test_the_fixture_is_what_the_network_gives():
    network, weights, _, _ = load_fixture()
    cases = json.loads(FIXTURE.with_suffix(".json").read_text())
    positions = np.array(cases["positions"], dtype=np.float32)
    for case in cases["cases"]:
        log_noise = np.log(case["noise_level"])
        energies = jax.jit(jax.vmap(network.energy, (None, 0, None)))(weights, positions, log_noise)
        scores = jax.jit(jax.vmap(network.score, (None, 0, None)))(weights, positions, log_noise)
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
    measured = trainer.largest_curvature(network, weights, frames, noise_level)
    blurred = frames + noise_level * jax.random.normal(jax.random.key(0), (2, *frames.shape))[0]
    hessian = jax.jit(jax.vmap(jax.hessian(network.energy, 1), (None, 0, None)))
    hessians = hessian(weights, blurred, np.log(noise_level))
    n = 3 * network.n_particles
    exact = np.linalg.eigvalsh(np.asarray(hessians).reshape(-1, n, n)).max()
    assert 0.98 * exact < measured < 1.001 * exact


# The losses against closed forms


@dataclass(frozen=True)
class BlurredGaussian:
    """Exact energy of a normal density of spread 0.7 nm blurred by sigma; `rate` is 1 for the true blur."""

    rate: float = 1.0
    n_particles: int = 4
    noise_min: float = 0.11
    noise_max: float = 1.9

    def energy(self, weights, positions, log_noise):
        variance = 0.7**2 + self.rate * jax.numpy.exp(2 * log_noise)
        return 0.5 * jax.numpy.sum(positions**2) / variance

    def score(self, weights, positions, log_noise):
        return -jax.grad(self.energy, 1)(weights, positions, log_noise)


def test_fokker_planck_loss_is_zero_for_a_density_that_blurs_as_it_must():
    frames = 0.7 * jax.random.normal(jax.random.key(2), (400, 4, 3))
    true = float(fokker_planck_loss(BlurredGaussian(), None, frames, 1.9, jax.random.key(3)))
    wrong = float(fokker_planck_loss(BlurredGaussian(rate=0.6), None, frames, 1.9, jax.random.key(3)))
    assert abs(true) < 1e-8
    assert wrong > 1e-3


def test_denoising_loss_of_the_exact_score_is_its_closed_form():
    frames = 0.7 * jax.random.normal(jax.random.key(2), (20_000, 4, 3))
    loss = float(denoising_loss(BlurredGaussian(), None, frames, jax.random.key(3)))
    noise = np.exp(np.linspace(np.log(0.11), np.log(1.9), 4001))
    expected = np.mean(0.7**2 / (0.7**2 + noise**2))  # what sigma leaves unknown of the noise
    assert loss == pytest.approx(expected, abs=0.004)  # 240,000 coordinates: standard error below 0.001


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
    result = trainer.train(network, frames, settings)

    # what the exact score leaves of the noise, per coordinate: 1 - sigma^2 E|s|^2 / 6
    left = []
    for noise in np.exp(np.linspace(np.log(0.001), np.log(0.02), 41)):
        _, probability, score = blurred_diatomic(noise, length, spread)
        left.append(1 - noise**2 * 2 * np.sum(probability * score**2) / 6)
    assert result.held_out == pytest.approx(np.mean(left), abs=0.004)  # 2,000 frames: standard error 0.0015

    rho, _, score = blurred_diatomic(0.001, length, spread)
    pairs = np.zeros((9, 2, 3), dtype=np.float32)
    pairs[:, 1, 0] = np.linspace(length - 1.5 * spread, length + 1.5 * spread, 9)
    scores = jax.vmap(network.score, (None, 0, None))(result.weights, pairs, np.log(0.001))
    expected = np.interp(pairs[:, 1, 0], rho, score)
    assert np.abs(np.asarray(scores)[:, 1, 0] - expected).max() < 0.08 / spread


# The loop


def test_same_seed_same_weights():
    frames = diatomic(500, 0.17, 0.006, seed=1)
    settings = small_settings()
    network = network_of(settings, 2)
    first, second = trainer.train(network, frames, settings), trainer.train(network, frames, settings)
    jax.tree.map(np.testing.assert_array_equal, first.weights, second.weights)


def test_interrupted_and_resumed_ends_in_the_same_weights(tmp_path):
    frames = diatomic(500, 0.17, 0.006, seed=1)
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
        trainer.train(network, frames[1:], settings, checkpoint, resume=True)
    with pytest.raises(config.SettingsError, match="no checkpoint"):
        trainer.train(network, frames, settings, tmp_path / "absent", resume=True)
    checkpoint.write_bytes(b"something else")
    with pytest.raises(config.SettingsError, match="not a training checkpoint"):
        trainer.train(network, frames, settings, checkpoint, resume=True)


def test_it_stops_early_when_nothing_is_gained():
    frames = diatomic(300, 0.17, 0.006, seed=1)
    settings = small_settings(steps=5000, evaluations=500, patience=1, learning_rate=1e-9)
    result = trainer.train(network_of(settings, 2), frames, settings)
    assert result.stopped == "early" and result.step < 5000


def test_a_loss_that_is_not_finite_stops_and_says_what_to_do():
    frames = diatomic(500, 0.17, 0.006, seed=1)
    frames[20:] = np.nan
    settings = small_settings()
    with pytest.raises(trainer.TrainingError, match="not finite at step 10. Lower --learning-rate") as stop:
        trainer.train(network_of(settings, 2), frames, settings)
    assert stop.value.result is None  # nothing was good before


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
    settings = config.complete(config.TrainingSettings(), snapshots)
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
        config.complete(config.TrainingSettings(), replace(snapshots, positions=rigid))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"noise_min": 0.02, "noise_max": 0.01}, "--noise-max is 0.01 nm"),
        ({"noise_simulation": 0.7}, "--noise-simulation is 0.7 nm"),
        ({"quadruplets": ((0, 1, 2, 10),)}, "0-1-2-10; expected four different particles 0 to 9"),
        ({"quadruplets": ((0, 1, 1, 3),)}, "0-1-1-3"),
    ],
)
def test_settings_that_do_not_fit_the_snapshots_are_refused(changes, match, snapshots):
    with pytest.raises(config.SettingsError, match=match):
        config.complete(config.TrainingSettings(**changes), snapshots)


def test_flags_override_the_file_that_overrides_the_defaults(tmp_path):
    toml = tmp_path / "train.toml"
    toml.write_text("steps = 700\nlearning-rate = 0.003\nhidden = [40, 30]\n")
    settings = config.load(toml, {"steps": 900, "seed": None})
    assert (settings.steps, settings.learning_rate, settings.hidden, settings.seed) == (900, 0.003, (40, 30), 0)
    toml.write_text("stepz = 700\n")
    with pytest.raises(config.SettingsError, match="'stepz', which is no setting"):
        config.load(toml, {})
    toml.write_text("steps = \n")
    with pytest.raises(config.SettingsError, match="cannot be read"):
        config.load(toml, {})
    with pytest.raises(config.SettingsError, match="--steps is 7000.0; expected a whole number"):
        config.load(None, {"steps": 7e3})
    with pytest.raises(config.SettingsError, match="--batch is 33; expected an even number"):
        config.load(None, {"batch": 33})


# The start frames


def test_start_frames_keep_the_populations_better_than_random_ones():
    long = np.random.default_rng(4).permutation(4000) < 470  # two basins: 11.75 % of the molecules are stretched
    frames = np.where(long[:, None, None], diatomic(4000, 0.19, 0.002, 5), diatomic(4000, 0.15, 0.005, 6))
    network = network_of(small_settings(), 2)
    counts = [long[export.representatives(network, frames, 300, seed)].sum() for seed in range(20)]
    assert np.std(counts) < 0.3 * np.sqrt(300 * 0.1175 * 0.8825)
    assert np.mean(counts) == pytest.approx(300 * 0.1175, abs=0.5)
    everyone = export.representatives(network, frames[:40], 300, seed=7)
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
    assert diffusim(*arguments, "--force")[0] == 0
    assert model_file.read(model).weights_sha256 == header.weights_sha256


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["absent.npz", "--topology", PDB], "there is no file absent.npz"),
        (["absent.npz", "-o", "model.bin"], "ends in .safetensors"),
        (["absent.npz", "--steps", "0"], "--steps is 0; expected at least 10"),
        (["absent.npz", "--hidden", "wide"], "--hidden is 'wide'"),
        (["absent.npz", "--quadruplets", "1-2-x-4"], "--quadruplets is '1-2-x-4'"),
        (["absent.npz", "--resume"], "no file absent.npz"),
    ],
)
def test_a_foreseeable_mistake_is_one_sentence(arguments, match, diffusim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, shown, failure = diffusim("train", *arguments)
    assert (status, shown) == (1, "")
    assert failure.startswith("diffusim: ") and match in failure
