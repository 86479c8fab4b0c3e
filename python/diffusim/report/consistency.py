"""Does a model blur as a density must? The Fokker-Planck residual along the noise levels (theory 18), from the core.

The model is asked for energies and scores only, so any kind that has noise levels can be judged, without JAX.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffusim.core import Model

N_LEVELS = 8
N_PROBES = 16
LOG_STEP = 0.05  # of the difference quotient in ln sigma
PROBE_STEP = 0.03  # of that along a probe, in units of sigma


@dataclass(frozen=True)
class Residual:
    """Mean square, per coordinate, of r = dE/d(ln sigma) - sigma^2 (laplacian E - |grad E|^2) - c(sigma); no unit."""

    noise_level: float  # nm
    value: float
    error: float  # standard error


def fokker_planck_residuals(
    load: Callable[[float], Model], noise_range: tuple[float, float], positions: np.ndarray, seed: int = 0
) -> list[Residual]:
    """Along noise levels (nm) in `noise_range`, over frames [n_frames, n_particles, 3] that are blurred by each.

    `load` gives the model at a noise level. The Laplacian is estimated with several probes, and only residuals of two
    different ones are multiplied, so that their noise does not enter the square. Derivatives are central difference
    quotients.
    """
    rng = np.random.default_rng(seed)
    low, high = noise_range[0] * np.exp(LOG_STEP), noise_range[1] * np.exp(-LOG_STEP)
    return [_residual(load, float(level), positions, rng) for level in np.geomspace(low, high, N_LEVELS)]


def _residual(load: Callable[[float], Model], noise: float, positions: np.ndarray, rng) -> Residual:
    x = positions + noise * rng.normal(size=positions.shape)
    after, before = (load(noise * np.exp(sign * LOG_STEP)).evaluate(x)[1] for sign in (1, -1))
    by_log_noise = (after - before) / (2 * LOG_STEP)
    model = load(noise)
    scores, _ = model.evaluate(x)
    step = PROBE_STEP * noise
    r = []
    for _ in range(N_PROBES):
        probe = rng.choice([-1.0, 1.0], size=x.shape)
        change = model.evaluate(x + step * probe)[0] - model.evaluate(x - step * probe)[0]
        laplacian = -np.sum(probe * change, axis=(1, 2)) / (2 * step)
        residual = by_log_noise - noise**2 * (laplacian - np.sum(scores**2, axis=(1, 2)))
        r.append(residual - residual.mean())
    n = len(x)
    of_pairs = (np.sum(r, axis=0) ** 2 - np.sum(np.square(r), axis=0)) / (N_PROBES * (N_PROBES - 1))
    products = of_pairs * n / (n - 1) / x[0].size
    return Residual(noise, float(products.mean()), float(products.std(ddof=1) / np.sqrt(n)))
