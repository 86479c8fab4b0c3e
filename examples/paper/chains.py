"""Stationary densities of one-dimensional steps on a grid: no noise in the answer, whatever the step.

A step x -> x' is a matrix P[i, j], the probability of cell j after cell i. Energies are in kT, lengths have no unit.
"""

from collections.abc import Callable

import numpy as np

Score = Callable[[np.ndarray], np.ndarray]


def grid(half_range: float, n_cells: int = 1200) -> np.ndarray:
    """Centres of the cells."""
    edges = np.linspace(-half_range, half_range, n_cells + 1)
    return (edges[1:] + edges[:-1]) / 2


def gaussian_step(x: np.ndarray, mean: np.ndarray, spread: float) -> np.ndarray:
    """From every cell to a normal density around `mean` [n_cells]; what leaves the grid stays at its ends."""
    p = np.exp(-0.5 * ((x - mean[:, None]) / spread) ** 2)
    return _normalised(p)


def euler_maruyama(x: np.ndarray, score: Score, tau: float) -> np.ndarray:
    """Theory (2)."""
    return gaussian_step(x, x + tau * score(x), np.sqrt(2 * tau))


def heun(x: np.ndarray, score: Score, tau: float) -> np.ndarray:
    """Theory (9): the mean of the scores at both ends, the same noise."""
    noise, weight = np.polynomial.hermite_e.hermegauss(200)
    kick = np.sqrt(2 * tau) * noise
    p = np.zeros((len(x), len(x)))
    width = x[1] - x[0]
    for k, w in zip(kick, weight / weight.sum(), strict=True):
        start = score(x)
        end = x + 0.5 * tau * (start + score(x + tau * start + k)) + k
        place = np.clip((end - x[0]) / width, 0, len(x) - 1.000001)
        cell, share = place.astype(int), place % 1
        p[np.arange(len(x)), cell] += w * (1 - share)
        p[np.arange(len(x)), cell + 1] += w * share
    return p


def leimkuhler_matthews(x: np.ndarray, score: Score, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """Theory (10) as a step of y, and the density of x given y: x = y + sqrt(tau/2) xi, y' = 2 x - y + tau s(x)."""
    spread = np.sqrt(tau / 2)
    sums = 2 * x + tau * score(x)
    inside = np.gradient(sums, x) > 0.2  # y + y' as a function of x, where it still grows
    middle = np.flatnonzero(inside)
    low, high = middle[0], middle[-1]
    place = np.interp(x[:, None] + x, sums[low : high + 1], x[low : high + 1], left=np.nan, right=np.nan)
    slope = np.interp(place, x, np.gradient(sums, x))
    p = np.nan_to_num(np.exp(-0.5 * ((place - x[:, None]) / spread) ** 2) / slope)
    return _normalised(p), gaussian_step(x, x, spread)


def metropolis(x: np.ndarray, energy: np.ndarray, proposal: np.ndarray) -> np.ndarray:
    """Theory (8): the proposal, accepted or not."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.exp(energy[:, None] - energy) * proposal.T / proposal
    accepted = proposal * np.minimum(1.0, np.nan_to_num(ratio, nan=0.0, posinf=1.0))
    return accepted + np.diag(1 - accepted.sum(axis=1))


def stationary(p: np.ndarray) -> np.ndarray:
    """The density that a step leaves as it is, [n_cells], of sum 1: squarings until all rows agree."""
    for _ in range(60):
        p = _normalised(p @ p)
        if np.abs(p[0] - p[-1]).max() < 1e-13:
            break
    return p.mean(axis=0)


def mean_square(x: np.ndarray, density: np.ndarray) -> float:
    return float(np.sum(density * x**2) / density.sum())


def _normalised(p: np.ndarray) -> np.ndarray:
    return p / p.sum(axis=1, keepdims=True)
