"""Butane and octane against true Brownian dynamics of the same beads with the same D: populations, and rates."""

from math import ceil
from pathlib import Path

import matplotlib
import numpy as np
from alkanes import ALKANES, FRAME, Alkane, Kinetics, trans_populations
from common import EXAMPLES, SEED, Row, divergence, independent_frames, ratio, simulate
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import diffusim
from diffusim.report import plots, statistics
from diffusim.report.ensemble import TORSION_EDGES, Ensemble, Molecule, compare
from diffusim.terminal import describe_model, describe_step, say

CHAIN = {"butane": ALKANES["butane"], "alkane": ALKANES["octane"]}
N_REPLICAS, BURN_IN = 1_000, 0.01  # nm^2
LENGTH = {"butane": 0.2, "alkane": 0.1}  # nm^2 of each replica
LONGEST_LAG = {"butane": 0.1, "alkane": 0.03}  # nm^2
POSITIONS_EVERY = 10  # frames
RATE_RANGE = (0.9, 1.1)
POPULATION_ERROR = 0.01
WIDEST = 1.05
DIRECTIONS = ("trans → gauche", "gauche → trans")


def measure(system: str, picture: Path) -> list[Row]:
    alkane = CHAIN[system]
    folder = EXAMPLES / "alkanes"
    model = diffusim.Model(folder / f"{alkane.name}.safetensors")
    say("model", describe_model(model, f"{alkane.name}.safetensors"))
    molecule = Molecule.from_particles(model.metadata["particles"], model.metadata["bonds"])
    reference = Ensemble.load(folder / f"{alkane.name}-reference.npz")
    true = Kinetics.load(folder / f"{alkane.name}-reference.npz")

    every = ceil(FRAME / model.metadata["recommended_effective_step"])
    simulation = diffusim.Simulation(model, n_replicas=N_REPLICAS, seed=SEED, effective_step=FRAME / every)
    say("step", describe_step(simulation.statistics, simulation.adapter))
    n_frames = round(LENGTH[system] / FRAME)
    torsions = np.empty((len(alkane.torsions), n_frames, N_REPLICAS), dtype=np.float32)
    frames = np.empty((n_frames // POSITIONS_EVERY, N_REPLICAS, alkane.n_beads, 3), dtype=np.float32)

    def record(i: int, x: np.ndarray) -> None:
        torsions[:, i] = statistics.torsions(x, alkane.torsions).T
        if i % POSITIONS_EVERY == 0:
            frames[i // POSITIONS_EVERY] = x

    simulate(simulation, round(BURN_IN / FRAME) * every, n_frames, every, record)
    found = Kinetics.measure(torsions, LONGEST_LAG[system])
    ensemble = Ensemble.measure(frames.reshape(-1, alkane.n_beads, 3), molecule, like=reference)

    rows = []
    for i, direction in enumerate(DIRECTIONS):
        value, error = ratio(found.rates[i], found.rate_errors[i], true.rates[i], true.rate_errors[i])
        what = (
            f"{direction}: {found.rates[i]:.2f} ± {found.rate_errors[i]:.2f} /nm², "
            f"Brownian dynamics {true.rates[i]:.2f} ± {true.rate_errors[i]:.2f}"
        )
        rows.append(Row(system, "rate_ratio", value, error, RATE_RANGE, what=what))
    exact = trans_populations(reference)
    difference = np.abs(found.trans - exact)
    worst = int(difference.argmax())
    rows.append(
        Row(
            system,
            "population_error",
            float(difference[worst]),
            float(found.trans_errors[worst]),
            POPULATION_ERROR,
            what=f"trans, {_name(alkane, worst)}: {100 * found.trans[worst]:.2f} %, exact {100 * exact[worst]:.2f} %",
        )
    )
    gap = _memory_gap(true, found)
    rows.append(
        Row(system, "autocorrelation_error", *gap, what="largest difference of ⟨cos Δφ⟩ at any lag, any torsion")
    )
    replicas = torsions[:, ::POSITIONS_EVERY]
    rows.append(_torsion_divergence(system, "js_simulated", reference, alkane, replicas))
    independent = independent_frames(model)
    angles = statistics.torsions(independent, alkane.torsions)  # [frame, torsion]
    rows.append(_torsion_divergence(system, "js_iid", reference, alkane, angles.T[:, None]))
    spread = ensemble.bond_std / reference.bond_std
    rows.append(Row(system, "bond_std_ratio", float(spread.max()), None, WIDEST, what="the widest bond"))
    _draw(picture, alkane, reference, ensemble, true, found, compare(reference, ensemble))
    return rows


def _name(alkane: Alkane, torsion: int) -> str:
    return "–".join(str(i + 1) for i in alkane.torsions[torsion])


def _torsion_divergence(system: str, metric: str, reference: Ensemble, alkane: Alkane, angles: np.ndarray) -> Row:
    """That of the torsion which differs most; `angles` are [n_torsions, n_frames, n_replicas] or independent frames."""
    parts = 10
    rows = []
    for i, torsion in enumerate(angles):
        counts = np.stack([np.histogram(torsion[:, part::parts], bins=TORSION_EDGES)[0] for part in range(parts)])
        what = f"torsion {_name(alkane, i)}, {len(TORSION_EDGES) - 1} bins"
        rows.append(divergence(system, metric, reference.torsion_counts[i], counts, None, what))
    return max(rows, key=lambda row: row.value)


def _memory_gap(true: Kinetics, found: Kinetics) -> tuple[float, float]:
    """Largest difference of the autocorrelations over torsions and lags, and its standard error."""
    common = np.isin(np.round(true.lags / FRAME), np.round(found.lags / FRAME))
    where = np.searchsorted(found.lags, true.lags[common] - FRAME / 2)
    difference = np.abs(true.autocorrelation[:, common] - found.autocorrelation[:, where])
    errors = np.hypot(true.autocorrelation_errors[:, common], found.autocorrelation_errors[:, where])
    worst = np.unravel_index(difference.argmax(), difference.shape)
    return float(difference[worst]), float(errors[worst])


def _draw(path: Path, alkane: Alkane, reference: Ensemble, ensemble: Ensemble, true, found, numbers: dict) -> None:
    """Free energy of a torsion, memory, rates, and spreads of bonds and angles."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(12, 8), dpi=130, layout="constrained")
        figure.suptitle(
            f"{alkane.name}: {N_REPLICAS:,} replicas of a score learned from shuffled snapshots, "
            "against Brownian dynamics of the force field with the same D",
            x=0.012,
            ha="left",
            fontsize=13,
        )
        axes = figure.subplots(2, 2)
        centres = (TORSION_EDGES[1:] + TORSION_EDGES[:-1]) / 2
        middle = len(alkane.torsions) // 2
        shown = [(0, plots.SIMULATED)] if middle == 0 else [(0, plots.SIMULATED), (middle, plots.SECOND)]
        for i, colour in shown:
            name = _name(alkane, i)
            for source, style, alpha in ((reference, "--", 0.6), (ensemble, "-", 1.0)):
                counts = source.torsion_counts[i].astype(float)
                energy = -np.log(np.where(counts > 0, counts, np.nan) / counts.sum())
                if source is reference:
                    zero = np.nanmin(energy)
                label = f"{name} {'exact' if source is reference else 'learned'}"
                axes[0, 0].plot(centres, energy - zero, style, color=colour, alpha=alpha, label=label)
            for kinetics, style, alpha, label in ((true, "--", 0.6, "Brownian"), (found, "-", 1.0, "learned")):
                later = (kinetics.lags > 0) & (kinetics.lags <= found.lags[-1])
                y, error = kinetics.autocorrelation[i][later], kinetics.autocorrelation_errors[i][later]
                x = kinetics.lags[later]
                axes[0, 1].fill_between(x, y - error, y + error, color=colour, alpha=0.2, lw=0)
                axes[0, 1].plot(x, y, style, color=colour, alpha=alpha, label=f"{name} {label}")
        axes[0, 0].set(xlabel="torsion / °", xlim=(-180, 180), ylim=(-0.3, None), title="Free energy / kT")
        axes[0, 0].set_xticks(range(-180, 181, 60))
        axes[0, 1].set(xscale="log", xlabel="D t / nm²", title="Memory  ⟨cos Δφ⟩")
        for panel in (axes[0, 0], axes[0, 1]):
            panel.legend()
        _bars(axes[1, 0], alkane, true, found)
        kinds = (("bonds", reference.bond_std, ensemble.bond_std), ("angles", reference.angle_std, ensemble.angle_std))
        position = 0
        for (kind, known, measured), colour in zip(kinds, (plots.SIMULATED, plots.SECOND), strict=True):
            x = position + np.arange(len(known))
            axes[1, 1].plot(x, measured / known, "o", color=colour, label=kind)
            position += len(known) + 1
        axes[1, 1].axhline(1.0, color=plots.REFERENCE, lw=1)
        axes[1, 1].axhline(WIDEST, color=plots.REFERENCE, lw=1, ls=":")
        axes[1, 1].set(xticks=[], ylim=(0.95, 1.1), title="Spread, learned / exact")
        axes[1, 1].legend()
        FigureCanvasAgg(figure).print_png(path)


def _bars(axes, alkane: Alkane, true: Kinetics, found: Kinetics) -> None:
    """Rates of each torsion, one bar for the truth and one for the model."""
    names = [_name(alkane, i) for i in range(len(alkane.torsions))]
    x = np.arange(len(names))
    for j, (direction, colour) in enumerate(zip(DIRECTIONS, (plots.SIMULATED, plots.SECOND), strict=True)):
        for kinetics, shift, alpha, label in ((true, 0.0, 0.4, "Brownian"), (found, 0.2, 1.0, "learned")):
            axes.bar(
                x + 0.45 * j + shift - 0.3,
                kinetics.torsion_rates[:, j],
                0.19,
                yerr=kinetics.torsion_rate_errors[:, j],
                color=colour,
                alpha=alpha,
                label=f"{direction} {label}",
            )
    axes.set_xticks(x, names)
    axes.set_ylim(0, 1.5 * max(true.torsion_rates.max(), found.torsion_rates.max()))
    axes.set_title("Rates / nm⁻²  (per D t)")
    axes.legend(ncols=2)
