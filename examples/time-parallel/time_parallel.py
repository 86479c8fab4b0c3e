"""Steps per round of the time-parallel sampler against the spring, on three systems.

    python examples/time-parallel/time_parallel.py     # out/time-parallel.json, out/time-parallel.png

A round is one batch of scores of a window of frames (theory 12). Each row is one system, step and method: steps per
round, scores evaluated for each step (1 in the sequential sampler), the largest deviation from the sequential
trajectory of the same seed, and how its speed and its processor time compare here, both samplers taking turns.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

from diffusim import Model, Simulation
from diffusim.report import plots
from diffusim.terminal import say

ROOT = Path(__file__).resolve().parents[2]
SEED = 48291
BURN_IN = 500
TOLERANCE = 1e-3  # noise amplitudes
METHODS = {"identity": "Picard", "diagonal": "diagonal quasi-Newton", "dense": "dense quasi-Newton"}
COLOURS = (plots.SECOND, plots.INDEPENDENT, plots.SIMULATED)


@dataclass(frozen=True)
class System:
    """What is run: at each of the steps `taus` (nm^2), `n_steps` steps of windows of `window` frames."""

    name: str
    model: Callable[[], Model]
    start: np.ndarray | None
    taus: tuple[float, ...]
    window: int
    n_steps: int


@dataclass(frozen=True)
class Row:
    """One system, step and method. `deviation` is in noise amplitudes; `speed` (by the clock) and `processor_time` are
    relative to the sequential sampler.
    """

    system: str
    window: int
    effective_step: float
    spring: float
    method: str
    steps_per_round: float
    evaluations_per_step: float
    deviation: float
    speed: float
    processor_time: float


def analytic(kind: str, n_particles: int, **hyperparameters) -> Model:
    return Model.from_metadata(
        {
            "format_version": 1,
            "kind": kind,
            "n_particles": n_particles,
            "length_unit": "nm",
            "training_temperature": 300.0,
            "hyperparameters": hyperparameters,
        }
    )


def icosahedron(radius: float) -> np.ndarray:
    """Thirteen positions: a centre and its twelve neighbours."""
    golden = (1 + 5**0.5) / 2
    corners = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    shells = np.array([np.roll(corner, shift) for shift in range(3) for corner in corners])
    return radius * np.vstack([np.zeros(3), shells / np.linalg.norm(shells[0])])


SYSTEMS = (
    System(
        "Müller–Brown, kT = 23",
        lambda: analytic("mueller-brown", 1, kT=23.0),
        np.array([[-0.558, 1.442, 0.0]]),
        (2.3e-3, 1e-3, 4e-4, 1e-4),
        256,
        10_000,
    ),
    System(
        "LJ13, kT = 1",
        lambda: analytic("lennard-jones-cluster", 13, well_depth=1.0, minimum_distance=1.0, stiffness=1.0),
        icosahedron(0.95),
        (2e-4, 1e-4, 5e-5, 2e-5),
        64,
        2_000,
    ),
    System(
        "alanine dipeptide",
        lambda: Model(ROOT / "examples" / "ala2" / "ala2.safetensors"),
        None,
        (6.4e-7, 4e-7, 2e-7, 1e-7, 3e-8),
        64,
        2_000,
    ),
)


def rows() -> list[Row]:
    """Everything, measured; minutes."""
    return [row for system in SYSTEMS for tau in system.taus for row in measure(system, tau)]


def measure(system: System, tau: float) -> list[Row]:
    model = system.model()
    options = {"effective_step": tau, "seed": SEED, "allow_unstable": True}
    amplitude = np.sqrt(2 * tau)
    warm = Simulation(model, **options)
    if system.start is not None:
        warm.positions = system.start
    warm.step(BURN_IN)
    start = warm.positions

    def run(**sampler) -> tuple[Simulation, np.ndarray, float, float]:
        simulation = Simulation(model, **options, **sampler)
        simulation.positions = start
        frames = []
        started, worked = time.perf_counter(), time.process_time()
        for _ in range(20):
            simulation.step(system.n_steps // 20)
            frames.append(simulation.positions[0])
        return simulation, np.array(frames), time.perf_counter() - started, time.process_time() - worked

    found = []
    for method in METHODS:
        sampler = {
            "sampler": "time-parallel",
            "window": system.window,
            "tolerance": TOLERANCE * amplitude,
            "jacobian": method,
        }
        pairs = [(run(), run(**sampler)) for _ in range(3)]
        (_, expected, *_), (simulation, frames, *_) = pairs[0]
        done = simulation.statistics
        found.append(
            Row(
                system.name,
                system.window,
                tau,
                0.5 / tau,
                method,
                done.steps_per_sweep,
                done.evaluations_per_step,
                float(np.abs(frames - expected).max() / amplitude),
                statistics.median(one[2] / other[2] for one, other in pairs),
                statistics.median(other[3] / one[3] for one, other in pairs),
            )
        )
    return found


def draw(found: list[Row], picture: Path) -> None:
    """Steps per round against the spring, a panel for each system."""
    systems = list(dict.fromkeys(row.system for row in found))
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.9 * len(systems), 4.2), dpi=110, layout="constrained")
        panels = figure.subplots(1, len(systems), squeeze=False)[0]
        for panel, system in zip(panels, systems, strict=True):
            for (method, label), colour in zip(METHODS.items(), COLOURS, strict=True):
                own = [row for row in found if row.system == system and row.method == method]
                springs, steps = [row.spring for row in own], [row.steps_per_round for row in own]
                panel.loglog(springs, steps, "o-", color=colour, markersize=4, label=label)
            panel.axhline(1, color=plots.REFERENCE, linewidth=1)
            panel.set(title=f"{system}, window {own[0].window}", xlabel="spring k / nm⁻²", ylim=(0.9, 100))
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.xaxis.set_major_locator(FixedLocator(springs))
            panel.xaxis.set_major_formatter("{x:.2g}")
            panel.yaxis.set_major_formatter("{x:g}")
        panels[0].set_ylabel("steps per round (sequential: 1)")
        panels[0].legend(frameon=False)
        FigureCanvasAgg(figure).print_png(picture)


def main() -> None:
    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    found = rows()
    (out / "time-parallel.json").write_text(
        json.dumps([asdict(row) for row in found], indent=1, ensure_ascii=False) + "\n"
    )
    draw(found, out / "time-parallel.png")
    for row in found:
        say(
            "",
            f"{row.system:<22} tau {row.effective_step:.1e}   {row.method:<9} {row.steps_per_round:6.2f} steps a round"
            f"   {row.evaluations_per_step:5.1f} scores a step   off by {row.deviation:.1e} noise amplitudes   "
            f"speed {row.speed:.2f}, processor time {row.processor_time:.1f}",
        )


if __name__ == "__main__":
    main()
