"""Which spring suits a model: where a step loses stability, and what it does to the stiffest mode (theory 2, 9, 10).

from diffusim.advice import advise

advice = advise(model)  # at its start frames and at those of a short run; or advise(model, frames)
advice.stability_limit, advice.effective_step, advice.spring  # nm^2, nm^2, 1/nm^2
"""

from dataclasses import dataclass

import numpy as np

from diffusim._library import DiffusimError, Status
from diffusim.core import Model, Simulation

# The recommended step in units of 1 / largest curvature; Leimkuhler-Matthews is stable below 2. Measured on alanine
# dipeptide, bond spreads at 0.1, 0.4, 0.8 and 1.2 agree within 1 %.
SAFE_STEP = 0.4
UNSTABLE = 2.0  # tau x largest curvature at which a step loses stability
N_FRAMES = 64  # that are measured
N_PARTICLES, N_REPLICAS = 2000, 16  # of the short run, at most: in all, and copies
N_PIECES, N_STEPS = 10, 40  # of it, and steps of each


@dataclass(frozen=True)
class Advice:
    """Largest eigenvalue of -grad s, 1/nm^2: in `n_frames` given frames, and in them and a short run from there.

    `frequency`: of the fastest mode there, 1/ps, where the model knows its masses.
    """

    curvature_of_frames: float
    curvature: float
    n_frames: int
    frequency: float | None = None

    @property
    def stability_limit(self) -> float:
        """tau at which the stiffest mode loses stability, nm^2."""
        return UNSTABLE / self.curvature

    @property
    def softest_spring(self) -> float:
        """k at which it does, 1/nm^2: every softer one is too soft."""
        return 0.5 / self.stability_limit

    @property
    def effective_step(self) -> float:
        """Recommended tau, nm^2."""
        return SAFE_STEP / self.curvature

    @property
    def spring(self) -> float:
        """Recommended k, 1/nm^2."""
        return 0.5 / self.effective_step

    @property
    def longest_time_step(self) -> float | None:
        """Time step at which the fastest mode loses stability with the adapter "langevin", ps."""
        return self.frequency and 2 / self.frequency

    @property
    def time_step(self) -> float | None:
        """Recommended time step of that adapter, ps: a tenth of the fastest period."""
        return self.frequency and 0.2 * np.pi / self.frequency


def advise(model: Model, positions: np.ndarray | None = None, seed: int = 1) -> Advice:
    """Measure `model` at `positions` [n_frames, n_particles, 3] (some of them, if there are many; the model's start
    frames by default) and after a short run from there. The model need not state its curvature, nor be a network.
    """
    frames = model.start_positions if positions is None else np.asarray(positions, dtype=float)
    if len(frames) == 0:
        raise DiffusimError(
            f"{model.name} has no start frames to measure; give some frames of its density", Status.INVALID_ARGUMENT
        )
    frames = frames[np.unique(np.linspace(0, len(frames) - 1, min(N_FRAMES, len(frames))).astype(int))]
    before = model.largest_curvature(frames)
    if not before > 0:
        raise DiffusimError(
            f"the largest curvature of {model.name} is {before:.3g} /nm^2 at these frames: nothing there is stiff, and "
            "no step is too long for it; give frames of its density",
            Status.INVALID_ARGUMENT,
        )
    n_replicas = int(np.clip(N_PARTICLES // model.n_particles, 1, N_REPLICAS))
    largest, tau = before, SAFE_STEP / before
    simulation = Simulation(model, effective_step=tau, seed=seed, n_replicas=n_replicas, allow_unstable=True)
    simulation.positions = np.resize(frames, (n_replicas, *frames.shape[1:]))
    for _ in range(N_PIECES):
        simulation.reconfigure(effective_step=tau)
        try:
            simulation.step(N_STEPS)
        except DiffusimError as error:
            if error.status is not Status.NOT_FINITE:
                raise
            tau /= 2  # where it went is stiffer than where it was
        largest = max(largest, model.largest_curvature(simulation.positions))
        tau = min(tau, SAFE_STEP / largest)
    try:
        frequency = model.largest_frequency(frames) * (largest / before) ** 0.5
    except DiffusimError as error:
        if error.status is not Status.INVALID_ARGUMENT:
            raise
        frequency = None  # the model knows no masses
    return Advice(before, largest, len(frames), frequency)


def relative_variance(adapter: str, reduced_step: float) -> float:
    """Variance of a harmonic mode over the exact one, at tau x its curvature = `reduced_step`; inf where unstable."""
    h = reduced_step
    stable = {
        "euler-maruyama": lambda: 1 / (1 - h / 2),
        "leimkuhler-matthews": lambda: 1.0,
        "heun": lambda: (1 - h / 2) / (1 - h / 2 + h * h / 4),
    }
    if adapter == "mala":
        return 1.0
    if adapter not in stable:
        raise DiffusimError(f"adapter is '{adapter}'; expected {', '.join(stable)} or mala", Status.INVALID_ARGUMENT)
    return stable[adapter]() if h < UNSTABLE else np.inf
