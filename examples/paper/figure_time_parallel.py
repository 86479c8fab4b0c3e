"""Steps per round of batched scores in parallel in time (theory 12), against the spring."""

from pathlib import Path

import numpy as np
from figures import Row, canvas

import diffusim
from diffusim.report import plots
from diffusim.terminal import progress

NAME = "time-parallel"
ALA2 = Path(__file__).resolve().parents[1] / "ala2" / "ala2.safetensors"
WINDOW, N_STEPS = 64, 1_024
FRACTIONS = (0.5, 0.25, 0.1, 0.05, 0.02)  # of the stability limit
TOLERANCE = 1e-3  # of the noise of a step
METHODS = {"auto": "Newton", "identity": "Picard"}
SEED = 48291


def measure(picture: Path) -> list[Row]:
    rows, curves = [], {}
    systems = _systems()
    with progress("solving", f"{len(systems)} systems, {len(FRACTIONS)} springs, {len(METHODS)} methods",
                  len(systems) * len(FRACTIONS) * len(METHODS), "runs") as advance:  # fmt: skip
        for name, (model, start) in systems.items():
            limit = 2 / _curvature(model, start)
            for method, label in METHODS.items():
                found = []
                for fraction in FRACTIONS:
                    tau = fraction * limit
                    steps, evaluations, apart = _run(model, start, tau, method)
                    found.append((0.5 / tau, steps, evaluations))
                    if method == "auto":
                        text = f"{name}, k = {0.5 / tau:.3g} /nm² (τ = {fraction:g} of the limit): steps per round"
                        rows.append(Row(NAME, text, steps, None, (1.0, float(WINDOW))))
                        if fraction in (FRACTIONS[0], FRACTIONS[-1]):
                            rows.append(Row(NAME, "the same: scores evaluated for each step", evaluations))
                            text = "the same: distance from the sequential trajectory over the tolerance"
                            rows.append(Row(NAME, text, apart, None, (0.0, 10.0)))
                    advance(1)
                curves[name, label] = np.array(found)
    with canvas(picture, f"One trajectory in parallel in time, window of {WINDOW} frames", 2) as axes:
        colours = dict(zip(systems, (plots.INDEPENDENT, plots.SECOND, plots.SIMULATED), strict=True))
        for (name, label), found in curves.items():
            style = "o-" if label == "Newton" else "s--"
            limit_spring = found[0, 0] * FRACTIONS[0]  # k at the stability limit
            x = found[:, 0] / limit_spring
            alpha = 1.0 if label == "Newton" else 0.55
            axes[0].plot(x, found[:, 1], style, color=colours[name], alpha=alpha, label=f"{name}, {label}")
            axes[1].plot(x, found[:, 2], style, color=colours[name], alpha=alpha)
        for panel, title in ((axes[0], "Steps per round of scores"), (axes[1], "Scores evaluated for each step")):
            panel.set(xscale="log", yscale="log", xlabel="spring over that of the stability limit")
            panel.axhline(1, color="0.6", lw=1)
            panel.set_title(title)
        axes[0].legend(loc="upper left", fontsize=8.5)
    return rows


def _systems() -> dict[str, tuple[diffusim.Model, np.ndarray]]:
    """Models and where they start, [n_particles, 3]."""
    golden = (1 + np.sqrt(5)) / 2
    corners = [[0, a, b * golden] for a in (-1, 1) for b in (-1, 1)]
    corners = np.array([np.roll(corner, shift) for corner in corners for shift in range(3)])
    icosahedron = np.concatenate([np.zeros((1, 3)), 0.95 * corners / np.linalg.norm(corners[0])])
    ala2 = diffusim.Model(ALA2)
    return {
        "Müller–Brown": (_analytic("mueller-brown", 1, kT=23.0), np.array([[-0.55, 1.4, 0.3]])),
        "LJ13, kT = 1": (
            _analytic("lennard-jones-cluster", 13, well_depth=1.0, minimum_distance=1.0, stiffness=0.9), icosahedron
        ),
        "alanine dipeptide": (ala2, ala2.start_positions[0]),
    }  # fmt: skip


def _analytic(kind: str, n_particles: int, **hyperparameters) -> diffusim.Model:
    return diffusim.Model.from_metadata(
        {"format_version": 1, "kind": kind, "n_particles": n_particles, "length_unit": "nm",
         "training_temperature": 300.0, "hyperparameters": hyperparameters}
    )  # fmt: skip


def _curvature(model: diffusim.Model, start: np.ndarray) -> float:
    """Largest along a short run, which is what limits the step; or the one that the model file states."""
    if (stated := model.metadata.get("largest_curvature")) is not None:
        return stated
    simulation = diffusim.Simulation(model, effective_step=1e-5, seed=SEED, allow_unstable=True)
    simulation.positions = start
    simulation.step(20_000)
    frames = []
    for _ in range(20):
        simulation.step(1_000)
        frames.append(simulation.positions[0])
    return model.largest_curvature(np.array(frames))


def _run(model: diffusim.Model, start: np.ndarray, tau: float, jacobian: str) -> tuple[float, float, float]:
    """Steps per round, scores evaluated for each step, and the largest distance from the sequential trajectory over the
    tolerance."""
    tolerance = TOLERANCE * np.sqrt(2 * tau)
    options = {"effective_step": tau, "seed": SEED, "n_threads": 1, "allow_unstable": True}
    one = diffusim.Simulation(model, **options)
    other = diffusim.Simulation(
        model, sampler="time-parallel", window=WINDOW, tolerance=tolerance, jacobian=jacobian, **options
    )
    apart = 0.0
    for simulation in (one, other):
        simulation.positions = start
    for _ in range(0, N_STEPS, WINDOW):
        one.step(WINDOW)
        other.step(WINDOW)
        apart = max(apart, float(np.abs(one.positions - other.positions).max()))
    found = other.statistics
    return found.steps_per_sweep, found.evaluations_per_step, apart / tolerance
