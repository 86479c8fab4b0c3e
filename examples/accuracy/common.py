"""What every system needs: rows of results, replicas that are recorded, divergences with floors and errors."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import diffusim
from diffusim.report import statistics
from diffusim.terminal import progress

EXAMPLES = Path(__file__).resolve().parents[1]
SEED = 48291


@dataclass(frozen=True)
class Row:
    """One figure. `target` is the most that `value` may be, or the range (least, most) of it; None: nobody set one.

    `error` is one standard error. `floor` is what a perfect model would score: the expected divergence of as many
    independent frames. `what` tells rows of one metric apart and says how it was counted.
    """

    system: str
    metric: str
    value: float
    error: float | None = None
    target: float | tuple[float, float] | None = None
    floor: float | None = None
    what: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        least, most = self.target if isinstance(self.target, tuple) else (-np.inf, self.target)
        return bool(least <= self.value <= most)

    def entry(self) -> dict:
        return asdict(self) | {"met": self.met}


def simulate(
    simulation: diffusim.Simulation, burn_in: int, n_frames: int, every: int, record: Callable[[int, np.ndarray], None]
) -> None:
    """Steps all replicas and calls `record` with the number and the positions of each of `n_frames` frames."""
    n_replicas, n_steps = simulation.n_replicas, burn_in + n_frames * every
    text = f"{n_replicas:,} × {n_steps:,} steps"
    with progress("running", text, n_replicas * n_steps, "replica-steps") as advance:
        for _ in range(0, burn_in, every):
            simulation.step(every)
            advance(n_replicas * every)
        for index in range(n_frames):
            simulation.step(every)
            record(index, simulation.positions)
            advance(n_replicas * every)


def independent_frames(model: diffusim.Model, n_frames: int = 250_000) -> np.ndarray:
    """Frames [n_frames, n_particles, 3] by reverse diffusion."""
    with progress("sampling", f"{n_frames:,} frames by reverse diffusion", n_frames, "frames") as advance:
        frames = model.sample(n_frames, seed=SEED)
        advance(n_frames)
    return frames


def divergence(
    system: str,
    metric: str,
    reference: np.ndarray,
    counts: np.ndarray,
    target: float | None,
    what: str,
) -> Row:
    """Jensen-Shannon divergence from the histogram `reference` of histograms [n_parts, ...] of independent parts.

    The error is that of leaving out one part at a time.
    """
    total = counts.sum(axis=0)
    error = statistics.jackknife(
        lambda parts: statistics.jensen_shannon(reference, counts[parts].sum(axis=0)), len(counts), len(counts)
    )
    return Row(
        system,
        metric,
        statistics.jensen_shannon(reference, total),
        error,
        target,
        statistics.jensen_shannon_floor(reference, total.sum()),
        f"{what}, {total.sum():,.0f} frames",
    )


def histograms(count: Callable[[np.ndarray], np.ndarray], n_replicas: int, parts: int = 10) -> np.ndarray:
    """`count` of the indices of the replicas of each part, stacked."""
    return np.stack([count(np.arange(part, n_replicas, parts)) for part in range(parts)])


def ratio(value: float, error: float, true: float, true_error: float = 0.0) -> tuple[float, float]:
    """value / true and its standard error, both errors being independent."""
    return value / true, abs(value / true) * float(np.hypot(error / value, true_error / true))
