"""Torsion autocorrelation of butane: learned from shuffled frames, at three springs, against true Brownian motion.

The diffusion coefficient is that of the reference, so that steps of every spring lie on one axis of physical time.
"""

from pathlib import Path

import numpy as np
from alkanes import ALKANES, FRAME, Kinetics
from common import SEED, ratio, simulate
from figures import Row, canvas
from make_reference import DIFFUSION

import diffusim
from diffusim.report import plots, statistics
from diffusim.report.ensemble import Ensemble

NAME = "butane"
FOLDER = Path(__file__).resolve().parents[1] / "alkanes"
STEPS_PER_FRAME = {80: plots.SIMULATED, 40: plots.INDEPENDENT, 20: plots.SECOND}  # FRAME is 1e-4 nm^2
N_REPLICAS, BURN_IN, LENGTH, LONGEST_LAG = 400, 0.01, 0.2, 0.1  # nm^2
NANOSECONDS = 1 / (1000 * DIFFUSION)  # of one nm^2
DIRECTIONS = ("trans → gauche", "gauche → trans")


def measure(picture: Path) -> list[Row]:
    alkane = ALKANES["butane"]
    model = diffusim.Model(FOLDER / "butane.safetensors")
    true = Kinetics.load(FOLDER / "butane-reference.npz")
    reference = Ensemble.load(FOLDER / "butane-reference.npz")
    rows, found, spreads = [], {}, {}
    for every in STEPS_PER_FRAME:
        simulation = diffusim.Simulation(
            model,
            effective_step=FRAME / every,
            n_replicas=N_REPLICAS,
            seed=SEED,
            adapter="euler-maruyama",
        )
        n_frames = round(LENGTH / FRAME)
        torsions = np.empty((1, n_frames, N_REPLICAS), dtype=np.float32)
        lengths = np.empty((n_frames, N_REPLICAS, alkane.n_beads - 1), dtype=np.float32)

        def record(i: int, x: np.ndarray, torsions=torsions, lengths=lengths) -> None:
            torsions[:, i] = statistics.torsions(x, alkane.torsions).T
            lengths[i] = statistics.bond_lengths(x, [(b, b + 1) for b in range(alkane.n_beads - 1)])

        simulate(simulation, round(BURN_IN / FRAME) * every, n_frames, every, record)
        spring = simulation.statistics.spring
        found[every] = Kinetics.measure(torsions, LONGEST_LAG)
        spreads[every] = lengths.reshape(-1, alkane.n_beads - 1).std(axis=0) / reference.bond_std
        for i, direction in enumerate(DIRECTIONS):
            value, error = ratio(found[every].rates[i], found[every].rate_errors[i], true.rates[i], true.rate_errors[i])
            rows.append(Row(NAME, f"k = {spring:,.0f} /nm²: rate {direction} over the true one", value, error, 1.0))
        gap, gap_error = memory_gap(true, found[every])
        longest = 1000 * found[every].lags[-1] * NANOSECONDS
        rows.append(
            Row(
                NAME,
                f"k = {spring:,.0f} /nm²: largest gap to the true ⟨cos Δφ⟩, up to {longest:.0f} ps",
                gap,
                gap_error,
                0.0,
            )
        )
        text = f"k = {spring:,.0f} /nm²: spread of the widest bond over the true one"
        rows.append(Row(NAME, text, float(spreads[every].max()), None, 1.0))
    for i, direction in enumerate(DIRECTIONS):
        rows.append(
            Row(
                NAME,
                f"true Brownian motion: rate {direction} / ns⁻¹ at D = {DIFFUSION:g} nm²/ps",
                true.rates[i] / NANOSECONDS,
                true.rate_errors[i] / NANOSECONDS,
            )
        )
    _draw(picture, true, found)
    return rows


def memory_gap(true: Kinetics, found: Kinetics) -> tuple[float, float]:
    """Largest difference of the autocorrelations of the first torsion over common lags, and its standard error."""
    _, here, there = np.intersect1d(np.round(true.lags / FRAME), np.round(found.lags / FRAME), return_indices=True)
    gaps = np.abs(true.autocorrelation[0, here] - found.autocorrelation[0, there])
    errors = np.hypot(true.autocorrelation_errors[0, here], found.autocorrelation_errors[0, there])
    worst = int(gaps.argmax())
    return float(gaps[worst]), float(errors[worst])


def _draw(path: Path, true: Kinetics, found: dict[int, Kinetics]) -> None:
    title = "Butane: a score learned from shuffled frames, at three springs, against true Brownian motion"
    with canvas(path, title, 2) as axes:
        curves = [(true, "0.35", "--", "true Brownian motion")]
        curves += [
            (found[every], colour, "-", f"learned, k = {every / (2 * FRAME):,.0f} /nm²")
            for every, colour in STEPS_PER_FRAME.items()
        ]
        for kinetics, colour, style, label in curves:
            shown = (kinetics.lags > 0) & (kinetics.lags <= LONGEST_LAG)
            time = 1000 * kinetics.lags[shown] * NANOSECONDS
            y, error = kinetics.autocorrelation[0, shown], kinetics.autocorrelation_errors[0, shown]
            axes[0].fill_between(time, y - error, y + error, color=colour, alpha=0.2, lw=0)
            axes[0].plot(time, y, style, color=colour, label=label)
        axes[0].set(xscale="log", xlabel="time / ps", ylabel="⟨cos Δφ⟩")
        axes[0].set_title("Memory of the torsion")
        axes[0].legend(loc="lower left")
        for n, (kinetics, colour, _, _) in enumerate(curves):
            x = np.arange(2) + 0.2 * n - 0.3
            axes[1].bar(
                x, kinetics.rates / NANOSECONDS, 0.19, yerr=kinetics.rate_errors / NANOSECONDS, color=colour, capsize=3
            )
        axes[1].set_xticks(range(2), DIRECTIONS)
        axes[1].set_ylabel("rate / ns⁻¹")
        axes[1].set_title("Rates, same colours")
