"""A learned Mueller-Brown surface and double well against exact populations, timescales and rates."""

from pathlib import Path

import matplotlib
import numpy as np
from common import EXAMPLES, SEED, Row, divergence, histograms, independent_frames, ratio, simulate
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from surfaces import BINS, GRID, N_TIMESCALES, SURFACES, Exact, Surface, exact

import diffusim
from diffusim.report import plots, statistics
from diffusim.terminal import describe_model, describe_step, say

N_REPLICAS, N_FRAMES, EVERY = 1_000, 10_000, 10
TARGET = 0.0108  # Jensen-Shannon divergence of ScoreMD on Mueller-Brown
TIMESCALE_RANGE, RATE_RANGE = (0.95, 1.05), (0.9, 1.1)
POPULATION_ERROR = 0.01
# nm^2 between frames: the particle moves by half the radius of a core set. A tenth of it, a fifth of the step that the
# model recommends, keeps the error of the step in the rates below 1 %.
FRAME = {"muller-brown": 0.005, "double-well": 0.001}
# Relaxations that are compared, by number, and lags in frames of about half their time. The second one of Mueller-Brown
# lives where nobody goes: at 10 kT and more.
LAGS = {"muller-brown": {0: 300, 2: 30}, "double-well": {0: 300, 1: 7}}


def measure(system: str, picture: Path) -> list[Row]:
    surface = SURFACES[system]
    true = exact(surface)
    path = EXAMPLES / "surfaces" / f"{system}.safetensors"
    model = diffusim.Model(path)
    say("model", describe_model(model, path.name))
    simulation = diffusim.Simulation(model, n_replicas=N_REPLICAS, seed=SEED, effective_step=FRAME[system] / EVERY)
    say("step", describe_step(simulation.statistics, simulation.adapter))
    x, y = np.empty((2, N_FRAMES, N_REPLICAS), dtype=np.float32)

    def record(i: int, positions: np.ndarray) -> None:
        x[i], y[i] = positions[:, 0, 0], positions[:, 0, 1]

    simulate(simulation, round(true.timescales[0] / FRAME[system]) * EVERY, N_FRAMES, EVERY, record)

    def counted(replicas):
        return np.histogram2d(x[:, replicas].ravel(), y[:, replicas].ravel(), bins=surface.edges)[0]

    what = f"{BINS}×{BINS} bins over the box"
    counts = histograms(counted, N_REPLICAS)
    rows = [divergence(system, "js_simulated", true.probability, counts, TARGET, what)]
    independent = independent_frames(model)
    parts = np.array_split(independent[:, 0, :2], 10)
    counts_iid = np.stack([np.histogram2d(*part.T, bins=surface.edges)[0] for part in parts])
    rows.append(divergence(system, "js_iid", true.probability, counts_iid, None, what))

    rows += [_timescale(surface, true, x, y, k, lag) for k, lag in LAGS[system].items()]
    cores = statistics.last_core(surface.core_of(x, y))
    for direction, (start, end) in enumerate(((0, 1), (1, 0))):
        counts_of, frames = statistics.passages(cores, start, end)
        rate = statistics.rate(counts_of, frames * FRAME[system])
        value, error = ratio(*rate, true.rates[direction])
        what = f"core {start} → {end}: {rate[0]:.4f} ± {rate[1]:.4f} /nm², exact {true.rates[direction]:.4f}"
        rows.append(Row(system, "rate_ratio", value, error, RATE_RANGE, what=what))
    inside = surface.in_second(x, y).mean(axis=0)
    rows.append(
        Row(
            system,
            "population_error",
            abs(float(inside.mean()) - true.population),
            statistics.standard_error(inside),
            POPULATION_ERROR,
            what=f"{surface.second}: {100 * inside.mean():.2f} %, exact {100 * true.population:.2f} %",
        )
    )
    _draw(picture, surface, true, counts.sum(axis=0), model)
    return rows


def _timescale(surface: Surface, true: Exact, x: np.ndarray, y: np.ndarray, k: int, lag: int) -> Row:
    """Relaxation time of the exact mode k in the simulation, over the true one, from its autocorrelation over `lag`."""
    (x0, x1), (y0, y1) = surface.box
    i, j = ((GRID * (v - a) / (b - a)).astype(int).clip(0, GRID - 1) for v, a, b in ((x, x0, x1), (y, y0, y1)))
    mode = true.modes[k][i, j]
    mode -= mode.mean()
    now, later = (mode[:-lag] * mode[lag:]).sum(axis=0), (mode[:-lag] ** 2 + mode[lag:] ** 2).sum(axis=0) / 2

    def time(replicas: np.ndarray) -> float:
        return -lag * FRAME[surface.name] / np.log(now[replicas].sum() / later[replicas].sum())

    replicas = np.arange(x.shape[1])
    value, error = ratio(time(replicas), statistics.jackknife(time, len(replicas)), true.timescales[k])
    what = f"relaxation {k + 1} of {N_TIMESCALES}, exact {true.timescales[k]:.4f} nm²"
    return Row(surface.name, "timescale_ratio", value, error, TIMESCALE_RANGE, what=what)


def _draw(path: Path, surface: Surface, true: Exact, counts: np.ndarray, model: diffusim.Model) -> None:
    """Free energy maps of the truth and of the simulation, and the error of the learned energy."""
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in surface.edges]
    x, y = np.meshgrid(*centres, indexing="ij")
    energy = surface.energy(x, y)
    weight = np.exp(energy.min() - energy)
    _, learned = model.evaluate(np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 1, 3))
    error = learned.reshape(x.shape) - energy
    error -= np.average(error, weights=weight)
    visited = energy < energy.min() + 10
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(14, 4.6), dpi=130, layout="constrained")
        figure.suptitle(
            f"{surface.name}: a score learned from snapshots, against the exact density", x=0.012, ha="left"
        )
        axes = figure.subplots(1, 3)
        for panel, p, title in (
            (axes[0], true.probability, "Exact"),
            (axes[1], counts / counts.sum(), f"Simulated   {counts.sum():,.0f} frames"),
        ):
            free = -np.log(np.where(p > 0, p, np.nan) / true.probability.max())
            image = panel.pcolormesh(*surface.edges, free.T, cmap="viridis", vmin=0, vmax=12, rasterized=True)
            panel.set_title(title)
        figure.colorbar(image, ax=axes[1], label="free energy / kT  (white: never)")
        shown = np.where(visited, error, np.nan)
        image = axes[2].pcolormesh(*surface.edges, shown.T, cmap="RdBu_r", vmin=-0.5, vmax=0.5, rasterized=True)
        axes[2].set_title("Learned − exact, below 10 kT")
        figure.colorbar(image, ax=axes[2], label="kT")
        for panel in axes:
            panel.set(xlabel="x / nm", ylabel="y / nm", aspect="equal")
        FigureCanvasAgg(figure).print_png(path)
