"""Two surfaces on which everything is known: exact samples, and populations, timescales and rates of Brownian motion.

One particle moves at temperature T0 with the diffusion coefficient 1, so that time is D t in nm^2. Energies are in kT0.

    muller-brown    the surface of Müller & Brown (Theor. Chim. Acta 53, 75) divided by 23, its lengths read as nm
    double-well     h ((x/a)^2 - 1)^2 + kappa/2 y^2

    python surfaces.py     # prints the exact values
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import eigsh, spsolve

BINS = 100  # along each axis, of the histograms that are compared
GRID = 400  # cells along each axis, of the exact solution
N_TIMESCALES = 3


@dataclass(frozen=True)
class Surface:
    """An energy (kT0) of x and y (nm), the box that holds what is ever visited, and two circular core sets (nm)."""

    name: str
    energy: Callable[[np.ndarray, np.ndarray], np.ndarray]
    box: tuple[tuple[float, float], tuple[float, float]]
    cores: tuple[tuple[float, float], tuple[float, float]]
    core_radius: float
    in_second: Callable[[np.ndarray, np.ndarray], np.ndarray]  # the region whose population is reported
    second: str

    @property
    def edges(self) -> list[np.ndarray]:
        return [np.linspace(low, high, BINS + 1) for low, high in self.box]

    def core_of(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """0 or 1 within a core set, -1 elsewhere."""
        inside = [(x - a) ** 2 + (y - b) ** 2 < self.core_radius**2 for a, b in self.cores]
        return np.where(inside[0], 0, np.where(inside[1], 1, -1))


@dataclass(frozen=True)
class Exact:
    """What the Fokker-Planck equation gives: `probability` [BINS, BINS] of the bins, the population of the second
    region, relaxation times (nm^2, slowest first) and the core-set rates 0 -> 1 and 1 -> 0 (1/nm^2).

    `modes` [n_timescales, GRID, GRID] are the functions of x and y, on the cells of a grid over the box, whose
    autocorrelation decays exponentially with these times.
    """

    probability: np.ndarray
    population: float
    timescales: np.ndarray
    rates: np.ndarray
    modes: np.ndarray


def _mueller_brown(x, y):
    height, a, b, c = (-200, -100, -170, 15), (-1, -1, -6.5, 0.7), (0, 0, 11, 0.6), (-10, -10, -6.5, 0.7)
    x0, y0 = (1, 0, -0.5, -1), (0, 0.5, 1.5, 1)
    terms = zip(height, a, b, c, x0, y0, strict=True)
    return (
        sum(h * np.exp(a * (x - u) ** 2 + b * (x - u) * (y - v) + c * (y - v) ** 2) for h, a, b, c, u, v in terms) / 23
    )


def _double_well(x, y):
    return 4.2 * ((x / 0.25) ** 2 - 1) ** 2 + 35.0 * y**2


MULLER_BROWN = Surface(
    "muller-brown",
    _mueller_brown,
    box=((-1.8, 1.4), (-0.8, 2.4)),
    cores=((-0.558, 1.442), (0.623, 0.028)),
    core_radius=0.2,
    in_second=lambda x, y: y < 0.75,
    second="y < 0.75 nm",
)
DOUBLE_WELL = Surface(
    "double-well",
    _double_well,
    box=((-0.64, 0.64), (-0.64, 0.64)),
    cores=((-0.25, 0.0), (0.25, 0.0)),
    core_radius=0.1,
    in_second=lambda x, y: x > 0,
    second="x > 0",
)
SURFACES = {surface.name: surface for surface in (MULLER_BROWN, DOUBLE_WELL)}


def exact_frames(surface: Surface, n_frames: int, seed: int) -> np.ndarray:
    """Independent samples [n_frames, 1, 3] of exp(-energy) by rejection, nm, float32; z is 0."""
    random = np.random.default_rng(seed)
    (x0, x1), (y0, y1) = surface.box
    lowest = surface.energy(*np.meshgrid(np.linspace(x0, x1, 2001), np.linspace(y0, y1, 2001))).min() - 0.01
    kept, n_kept = [], 0
    while n_kept < n_frames:
        x, y = random.uniform(x0, x1, 1_000_000), random.uniform(y0, y1, 1_000_000)
        accepted = random.random(len(x)) < np.exp(lowest - surface.energy(x, y))
        kept.append(np.stack([x[accepted], y[accepted], np.zeros(accepted.sum())], axis=-1))
        n_kept += int(accepted.sum())
    return np.concatenate(kept)[:n_frames, None].astype(np.float32)


@cache
def exact(surface: Surface) -> Exact:
    """The values of Brownian motion, from its generator on grids of two spacings, extrapolated (error of order h^2)."""
    coarse, fine = (_kinetics(surface, n) for n in (GRID // 2, GRID))
    timescales, rates = ((4 * f - c) / 3 for c, f in zip(coarse[:2], fine[:2], strict=True))
    n = 16 * BINS
    centres = [np.linspace(low, high, n, endpoint=False) + (high - low) / (2 * n) for low, high in surface.box]
    x, y = np.meshgrid(*centres, indexing="ij")
    density = np.exp(-surface.energy(x, y))
    population = density[surface.in_second(x, y)].sum() / density.sum()
    probability = density.reshape(BINS, n // BINS, BINS, n // BINS).sum(axis=(1, 3))
    return Exact(probability / probability.sum(), float(population), timescales, rates, fine[2])


def _kinetics(surface: Surface, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timescales, both rates and the modes [N_TIMESCALES, n, n] on n x n cells.

    The generator is discretised by the square-root approximation (Donati, Weber & Keller, J. Phys. Condens. Matter 33,
    115902). The rate 0 -> 1 is the flux of reactive paths over the share of time whose last core set was 0, both from
    the committor: what counting transitions between core sets measures in an endless trajectory.
    """
    (x0, x1), (y0, y1) = surface.box
    hx, hy = (x1 - x0) / n, (y1 - y0) / n
    x, y = np.meshgrid(x0 + hx * (np.arange(n) + 0.5), y0 + hy * (np.arange(n) + 0.5), indexing="ij")
    energy = surface.energy(x, y)
    inside = energy < energy.min() + 25.0
    index = np.where(inside, np.cumsum(inside).reshape(inside.shape) - 1, -1)
    energy, x, y = energy[inside], x[inside], y[inside]
    p = np.exp(-energy)
    p /= p.sum()
    rows, columns, fluxes = [], [], []  # p_i q_ij, symmetric
    for i, j, h in ((index[:-1], index[1:], hx), (index[:, :-1], index[:, 1:], hy)):
        both = (i >= 0) & (j >= 0)
        i, j = i[both], j[both]
        flux = np.sqrt(p[i] * p[j]) / h**2
        rows += [i, j]
        columns += [j, i]
        fluxes += [flux, flux]
    i, j, flux = (np.concatenate(a) for a in (rows, columns, fluxes))
    exchange = coo_matrix((flux, (i, j)), shape=(len(p), len(p))).tocsr()
    exchange = exchange - diags(np.asarray(exchange.sum(axis=1)).ravel())
    root = diags(1 / np.sqrt(p))
    values, vectors = eigsh((root @ exchange @ root).tocsc(), k=N_TIMESCALES + 1, sigma=1e-3)
    slowest = np.argsort(values)[::-1][1:]
    timescales = -1 / values[slowest]
    modes = np.zeros((N_TIMESCALES, n, n))
    modes[:, inside] = (vectors[:, slowest] / np.sqrt(p)[:, None]).T

    core = surface.core_of(x, y)
    free = core < 0
    committor = (core == 1).astype(float)
    committor[free] = spsolve(exchange[free][:, free].tocsc(), -exchange[free] @ committor)
    reactive = float(np.sum(flux * (committor[j] - committor[i]) ** 2) / 2)
    rates = reactive / np.array([np.sum(p * (1 - committor)), np.sum(p * committor)])
    return timescales, rates, modes


if __name__ == "__main__":
    for surface in SURFACES.values():
        values = exact(surface)
        print(f"{surface.name}: population of {surface.second} {values.population:.6f}")
        print(f"  relaxation times {values.timescales} nm^2, rates {values.rates} /nm^2")
