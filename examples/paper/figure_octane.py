"""Radius of gyration of octane: its density and its memory, learned against true, on one physical time axis."""

from math import ceil
from pathlib import Path

import numpy as np
import openmm
from alkanes import ALKANES, FRAME, TEMPERATURE, exact_frames
from common import SEED, divergence, simulate
from figures import Row, canvas
from make_reference import DIFFUSION, KT, MASS, STEP, STEPS_PER_FRAME, molecule_of, system
from openmm import unit

import diffusim
from diffusim.report import paths, plots, statistics
from diffusim.report.ensemble import Ensemble
from diffusim.terminal import progress

NAME = "octane"
FOLDER = Path(__file__).resolve().parents[1] / "alkanes"
N_REPLICAS, N_COPIES, BURN_IN, LENGTH = 300, 150, 0.005, 0.08  # nm^2
PICOSECONDS = 1 / DIFFUSION  # of one nm^2


def measure(picture: Path) -> list[Row]:
    alkane = ALKANES["octane"]
    masses = molecule_of(alkane).masses
    model = diffusim.Model(FOLDER / "octane.safetensors")
    reference = Ensemble.load(FOLDER / "octane-reference.npz")
    every = ceil(FRAME / model.metadata["recommended_effective_step"])
    simulation = diffusim.Simulation(model, effective_step=FRAME / every, n_replicas=N_REPLICAS, seed=SEED)
    n_frames = round(LENGTH / FRAME)
    sizes = np.empty((n_frames, N_REPLICAS))
    simulate(
        simulation,
        round(BURN_IN / FRAME) * every,
        n_frames,
        every,
        lambda i, x: sizes.__setitem__(i, statistics.radius_of_gyration(x, masses)),
    )
    true = brownian(alkane, masses, n_frames)
    edges = reference.size_edges
    counts = np.stack([np.histogram(sizes[:, part::10], edges)[0] for part in range(10)])
    js = divergence(NAME, "", reference.size_counts, counts, None, "")
    means = sizes.mean(axis=0)
    rows = [
        Row(NAME, "mean radius of gyration, learned / nm; expected: 400,000 exact frames", float(means.mean()),
            statistics.standard_error(means), reference.size_mean),
        Row(NAME, f"Jensen–Shannon divergence of its density, {len(edges) - 1} bins; expected: the floor", js.value,
            js.error, js.floor),
    ]  # fmt: skip
    memories = {"learned": paths.memory(sizes), "true Brownian motion": paths.memory(true)}
    ps = FRAME * PICOSECONDS
    for name, x, expected in (("true Brownian motion", true, None), ("learned", sizes, True)):
        one = memories[name]
        value = one.running[-1] * ps
        error = statistics.jackknife(lambda t, x=x: paths.memory(x[:, t]).running[-1] * ps, x.shape[1])
        text = f"∫ρ dt of the radius of gyration up to {one.lags[-1] * ps:.3g} ps, {name} / ps"
        rows.append(Row(NAME, text, value, error, rows[-1].value if expected else None))
    title = "Octane: radius of gyration, learned from shuffled frames, against the force field"
    with canvas(picture, title, 2) as axes:
        centres, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
        true_density = reference.size_counts / reference.size_counts.sum() / width
        axes[0].fill_between(centres, true_density, color=plots.REFERENCE, alpha=0.55, lw=0, label="exact frames")
        axes[0].plot(centres, counts.sum(axis=0) / counts.sum() / width, color=plots.SIMULATED, label="learned")
        axes[0].set(xlabel="radius of gyration / nm", ylabel="density / nm⁻¹", ylim=(0, None))
        axes[0].set_title("Density")
        axes[0].legend(loc="upper left")
        for (name, one), colour, style in zip(memories.items(), (plots.SIMULATED, "0.35"), ("-", "--"), strict=True):
            later = one.lags > 0
            x, y, error = one.lags[later] * ps, one.rho[later], one.rho_error[later]
            axes[1].fill_between(x, y - error, y + error, color=colour, alpha=0.25, lw=0)
            axes[1].plot(x, y, style, color=colour, label=name)
        axes[1].axhline(0, color="0.6", lw=1)
        axes[1].set(xscale="log", xlabel="time / ps", ylabel="⟨δRg(0) δRg(t)⟩ / ⟨δRg²⟩", ylim=(-0.1, 1.02))
        axes[1].set_title(f"Memory, D = {DIFFUSION:g} nm²/ps for both")
        axes[1].legend()
    return rows


def brownian(alkane, masses: np.ndarray, n_frames: int) -> np.ndarray:
    """Radii of gyration [n_frames, N_COPIES] of true Brownian dynamics in OpenMM, from exact frames, every FRAME."""
    integrator = openmm.BrownianIntegrator(TEMPERATURE, KT / (MASS * DIFFUSION), STEP)
    integrator.setRandomNumberSeed(SEED)
    context = openmm.Context(system(alkane, N_COPIES), integrator, openmm.Platform.getPlatform("CPU"))
    context.setPositions(exact_frames(alkane, N_COPIES, SEED).reshape(-1, 3))
    sizes = np.empty((n_frames, N_COPIES))
    n_steps = n_frames * STEPS_PER_FRAME
    with progress("OpenMM", f"{N_COPIES} × {n_steps:,} steps of Brownian dynamics", n_steps) as advance:
        for row in sizes:
            integrator.step(STEPS_PER_FRAME)
            x = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
            row[:] = statistics.radius_of_gyration(x.reshape(N_COPIES, alkane.n_beads, 3), masses)
            advance(STEPS_PER_FRAME)
    return sizes
