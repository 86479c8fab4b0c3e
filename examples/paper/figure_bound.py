"""Divergence of the path law against the number of steps, with the two terms of the bound (theory 13-15)."""

from pathlib import Path

import numpy as np
from alkanes import ALKANES
from figures import Row, canvas
from make_reference import system

import diffusim
from diffusim import bound
from diffusim.terminal import progress

NAME = "bound"
FOLDER = Path(__file__).resolve().parents[1] / "alkanes"
STIFFNESS, WRONG, N_PARTICLES = 37.0, 39.0, 3  # 1/nm^2
HORIZON, COUNTS, N_PATHS = 0.2, (4, 8, 16, 32, 64, 128, 256, 512), 400
BUTANE_HORIZON, BUTANE_COUNTS, BUTANE_PATHS = 2e-5, (4, 8, 16, 32, 64), 48  # nm^2
SEED = 48291


def measure(picture: Path) -> list[Row]:
    reference, wrong = (_harmonic(stiffness) for stiffness in (STIFFNESS, WRONG))
    n_coordinates = 3 * N_PARTICLES
    start = np.random.default_rng(SEED).normal(size=(N_PATHS, N_PARTICLES, 3)) / np.sqrt(STIFFNESS)
    oscillator = bound.path_divergence(
        wrong, reference, HORIZON, COUNTS, start=start, burn_in=0.1, n_paths=N_PATHS, seed=SEED
    )
    rows = []
    for found in oscillator.divergences:
        if found.n_steps in (8, 64, 512):
            steps = [found.effective_step] * found.n_steps
            rows.append(
                Row(
                    NAME,
                    f"oscillator, N = {found.n_steps}: KL from the step; expected: theory (15)",
                    *found.discretisation,
                    bound.ornstein_uhlenbeck(STIFFNESS, n_coordinates, steps),
                )
            )
    finest = oscillator.divergences[-1]
    exact = (WRONG - STIFFNESS) ** 2 * n_coordinates / STIFFNESS * HORIZON / 4
    rows.append(Row(NAME, f"oscillator, N = {COUNTS[-1]}: KL from the score; expected: exact", *finest.score, exact))
    rows.append(Row(NAME, "oscillator: slope of log KL from the step in log N", _slope(oscillator), None, -1.0))
    rows.append(Row(NAME, "oscillator: least bound (14) over KL, of all N", _least_ratio(oscillator), None, (1.0, 1e3)))

    model = diffusim.Model(FOLDER / "butane.safetensors")
    with progress("butane", f"{BUTANE_PATHS} paths of the force field", 1, "studies") as advance:
        truth = bound.engine_reference(system(ALKANES["butane"], 1), model, check_masses=False)
        butane = bound.path_divergence(
            model, truth, BUTANE_HORIZON, BUTANE_COUNTS, n_paths=BUTANE_PATHS, seed=SEED, n_threads=1
        )
        advance(1)
    coarse, fine = butane.divergences[0], butane.divergences[-1]
    for found in (coarse, fine):
        for part in ("discretisation", "score"):
            text = {"discretisation": "step", "score": "score"}[part]
            rows.append(
                Row(
                    NAME,
                    f"butane, {BUTANE_HORIZON:g} nm², N = {found.n_steps}: KL from the {text}",
                    *getattr(found, part),
                )
            )
    rows.append(Row(NAME, "butane: slope of log KL from the step in log N", _slope(butane), None, -1.0))
    rows.append(Row(NAME, "butane: least bound (14) over KL, of all N", _least_ratio(butane), None, (1.0, 1e6)))
    with canvas(picture, "KL divergence of the path law against the number of steps", 2) as axes:
        oscillator.draw(axes=axes[0])
        axes[0].set_title(f"Oscillator, score {100 * (WRONG / STIFFNESS - 1):.0f} % too steep, {HORIZON:g} nm²")
        butane.draw(axes=axes[1])
        axes[1].set_title(f"Learned butane, {BUTANE_HORIZON:g} nm²")
    return rows


def _harmonic(stiffness: float) -> diffusim.Model:
    return diffusim.Model.from_metadata(
        {"format_version": 1, "kind": "harmonic", "n_particles": N_PARTICLES, "length_unit": "nm",
         "training_temperature": 300.0, "hyperparameters": {"stiffness": stiffness}}
    )  # fmt: skip


def _slope(study: bound.Study) -> float:
    """Over the finer half of the numbers of steps."""
    finer = study.divergences[len(study.divergences) // 2 :]
    return float(np.polyfit(np.log([d.n_steps for d in finer]), np.log([d.discretisation[0] for d in finer]), 1)[0])


def _least_ratio(study: bound.Study) -> float:
    return min(row["bound_total"] / row["total"]["value"] for row in study.rows())
