"""The harmonic adapter (1), sampled as a Gaussian, and the Euler-Maruyama step (2) are one step, to rounding."""

from pathlib import Path

import numpy as np
from alkanes import ALKANES
from figures import Row, canvas

import diffusim
from diffusim.report import plots

NAME = "equivalence"
EXAMPLES = Path(__file__).resolve().parents[1]
N_DRAWS = 1_000_000
N_STEPS, SEED = 2_000, 48291


def adapter(x, score, noise_scale, spring, noise):
    """Theory (1): p(x') ~ exp(s (x' - x) / 2 - k (x' - x)^2 / (2 beta)), by its offset and its precision."""
    offset, precision = noise_scale / (2 * spring) * score, spring / noise_scale
    return x + offset + noise / np.sqrt(precision)


def euler_maruyama(x, score, diffusion, time_step, noise):
    """Theory (2), (3): tau = D dt."""
    return x + diffusion * time_step * score + np.sqrt(2 * diffusion * time_step) * noise


def measure(picture: Path) -> list[Row]:
    random = np.random.default_rng(SEED)
    noise_scale, diffusion = random.uniform(0.01, 3, size=(2, N_DRAWS))
    time_step = np.exp(random.uniform(-12, 2, size=N_DRAWS))
    x, score, noise = random.normal(size=(3, N_DRAWS)) * [[3.0], [40.0], [1.0]]
    spring = noise_scale / (2 * diffusion * time_step)
    first, second = adapter(x, score, noise_scale, spring, noise), euler_maruyama(x, score, diffusion, time_step, noise)
    terms = np.abs(x) + np.abs(diffusion * time_step * score) + np.sqrt(2 * diffusion * time_step) * np.abs(noise)
    one_step = float(np.max(np.abs(first - second) / terms) / np.finfo(float).eps)

    model = diffusim.Model(EXAMPLES / "alkanes" / "butane.safetensors")
    tau = model.metadata["recommended_effective_step"]
    apart, length = along(model, tau)
    rows = [
        Row(NAME, f"one step, {N_DRAWS:,} random β, D, Δt, x, s, ξ: largest difference / machine precision", one_step,
            None, (0, 10)),
        Row(NAME, f"{N_STEPS:,} steps of the learned butane, core against adapter (1): largest difference / nm",
            float(apart[-1]), None, 0.0),
        Row(NAME, "the same over the distance moved", float(apart[-1] / length), None, 0.0),
    ]  # fmt: skip
    with canvas(picture, "The harmonic adapter is an Euler–Maruyama step", 2) as axes:
        difference = np.abs(first - second) / terms / np.finfo(float).eps
        axes[0].hist(difference, bins=np.arange(0, 6.1, 0.25), color=plots.SIMULATED, log=True)
        axes[0].set(xlabel="difference of one step / machine precision", ylabel="draws")
        axes[0].set_title("(1) and (2), random parameters")
        axes[1].plot(np.arange(1, N_STEPS + 1), np.maximum.accumulate(apart), color=plots.SIMULATED)
        axes[1].set(xlabel="steps", ylabel="largest difference so far / nm", yscale="log", ylim=(1e-18, 1e-13))
        axes[1].set_title(f"A trajectory of {ALKANES['butane'].name}")
    return rows


def along(model: diffusim.Model, tau: float) -> tuple[np.ndarray, float]:
    """Largest difference of positions after each step, nm, and how far the particles have moved, nm.

    The noise of the core is read off free particles with the same seed, which move by sqrt(2 tau) xi.
    """
    free = diffusim.Model.from_metadata(
        {"format_version": 1, "kind": "free", "n_particles": model.n_particles, "length_unit": "nm",
         "training_temperature": model.training_temperature, "hyperparameters": {}}
    )  # fmt: skip
    options = {"effective_step": tau, "seed": SEED, "adapter": "euler-maruyama"}
    core, noise = diffusim.Simulation(model, **options), diffusim.Simulation(free, **options)
    x = core.positions
    start = x.copy()
    apart = np.empty(N_STEPS)
    for n in range(N_STEPS):
        noise.positions = np.zeros_like(x)
        noise.step(1)
        xi = noise.positions / np.sqrt(2 * tau)
        scores, _ = model.evaluate(x)
        x = adapter(x, scores, 0.7, 0.7 / (2 * tau), xi)  # beta_n is not 1
        core.step(1)
        apart[n] = np.abs(core.positions - x).max()
    return apart, float(np.abs(core.positions - start).max())
