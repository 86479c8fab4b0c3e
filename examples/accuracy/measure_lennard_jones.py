"""A Lennard-Jones fluid of 4,000 atoms, by a model of 256: g(r) and pressure, and whether ranks of LAMMPS agree."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from common import EXAMPLES, SEED, Row, simulate
from fluid import BAR, KT, cell_length, context, radial_distribution, unit
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.spatial import cKDTree

import diffusim
from diffusim.lammps import write_data
from diffusim.report import plots
from diffusim.terminal import describe_model, describe_step, say

N, BURN_IN, N_FRAMES, EVERY, PARTS = 4000, 1_500, 150, 20, 10
EQUILIBRATION = 3_000  # steps of the true potential before the first of the learned one: no lattice has to melt
TARGET = 0.02
RANK_STEPS, RANK_TARGET = 100, 1e-3
FOLDER = EXAMPLES / "lennard-jones"


def measure(system: str, picture: Path) -> list[Row]:
    path = FOLDER / "lennard-jones.safetensors"
    file = diffusim.Model(path)
    say("model", describe_model(file, path.name))
    fluid = context(N, seed=5)
    fluid.getIntegrator().step(EQUILIBRATION)
    model, length = file.for_species(["Ar"] * N), cell_length(N)
    simulation = diffusim.Simulation(model, seed=SEED)
    simulation.cell = length * np.eye(3)
    simulation.positions = fluid.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    say("step", describe_step(simulation.statistics, simulation.adapter))
    with np.load(FOLDER / "reference.npz") as data:
        reference = dict(data)
    edges, found, pressures = reference["edges"], np.empty((N_FRAMES, len(reference["g"]))), np.empty(N_FRAMES)

    def record(i: int, positions: np.ndarray) -> None:
        found[i] = radial_distribution(positions, length, edges)[0]
        _, _, virials = model.evaluate_in_cell(positions, simulation.cell)
        pressures[i] = (N + np.trace(virials[0]) / 3) * KT / length**3 * BAR

    simulate(simulation, BURN_IN, N_FRAMES, EVERY, record)
    value, at, error = largest_error(found, reference["g"], reference["g_error"])
    pressure, pressure_error = of_parts(pressures)
    difference = float(pressure - reference["pressure"])
    rows = [
        Row(
            system,
            "g(r)_max_relative_error",
            value,
            error,
            TARGET,
            what=f"at {(edges[at] + edges[at + 1]) / 2:.4f} nm, bins of {edges[1] - edges[0]:.3f} nm beyond the first "
            f"peak's half height, {N:,} atoms, {N_FRAMES} frames",
        ),
        Row(
            system,
            "pressure_error",
            abs(difference),
            float(np.hypot(pressure_error, reference["pressure_error"])),
            what=f"bar: {pressure:.0f} ± {pressure_error:.0f}, reference {float(reference['pressure']):.1f} ± "
            f"{float(reference['pressure_error']):.1f}; snapshots at one density do not tell it",
        ),
        ranks(system, path),
    ]
    draw(picture, edges, found, reference)
    return rows


def of_parts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of values [n_frames, ...] and its standard error, from consecutive parts."""
    parts = np.array([part.mean(axis=0) for part in np.array_split(values, PARTS)])
    return values.mean(axis=0), parts.std(axis=0, ddof=1) / np.sqrt(PARTS)


def largest_error(found: np.ndarray, expected: np.ndarray, expected_error: np.ndarray) -> tuple[float, int, float]:
    """Of g(r) of frames [n_frames, n_bins]: the largest relative error beyond the first peak's half height, its bin and
    its standard error."""
    g, g_error = of_parts(found)
    first = int(np.argmax(expected > expected.max() / 2))
    relative = np.abs(g[first:] / expected[first:] - 1)
    worst = first + int(relative.argmax())
    error = np.hypot(g_error[worst], g[worst] / expected[worst] * expected_error[worst]) / expected[worst]
    return float(relative.max()), worst, float(error)


def ranks(system: str, path: Path) -> Row:
    """g(r) of one frame of fix diffusim on one rank and on two."""
    places = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        model = diffusim.Model(path)
        write_data(Path(folder) / "box.data", model)
        script = f"""
            units real
            atom_style full
            read_data box.data
            replicate 2 2 4
            fix 1 all diffusim {model.training_temperature} {SEED} model {path.resolve()} spring auto types Ar
            dump 1 all custom {RANK_STEPS} frames.dump x y z
            dump_modify 1 sort id format float %.12g
            run {RANK_STEPS}
        """
        (Path(folder) / "in.fluid").write_text(script)
        distributions = []
        for n_ranks in (1, 2):
            command = [places / "mpirun", "-np", str(n_ranks), places / "lmp", "-in", "in.fluid", "-log", "none"]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
            if result.returncode:
                raise RuntimeError(result.stdout[-2000:] + result.stderr[-1000:])
            lines = (Path(folder) / "frames.dump").read_text().rsplit("ITEM: ATOMS", 1)[1].splitlines()[1:]
            frame = 0.1 * np.array([line.split() for line in lines], dtype=float)
            distributions.append(pairs_by_distance(frame, model.start_cell.diagonal() * [2, 2, 4]))
    one, two = distributions
    difference = float(np.abs(one - two).max() / one.max())
    what = f"g(r) of {len(frame):,} atoms after {RANK_STEPS} steps of fix diffusim on 1 and 2 ranks, over its maximum"
    return Row(system, "rank_difference", difference, None, RANK_TARGET, what=what)


def pairs_by_distance(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Numbers of pairs by distance, up to 1 nm in 200 bins, of a frame in a rectangular box."""
    tree = cKDTree(frame % box, boxsize=box)
    return np.diff(tree.count_neighbors(tree, np.linspace(0.2, 1.0, 201))).astype(float)


def draw(path: Path, edges: np.ndarray, found: np.ndarray, reference: dict) -> None:
    """g(r) of both, and their relative difference."""
    centres = (edges[1:] + edges[:-1]) / 2
    g, g_error = of_parts(found)
    expected = reference["g"]
    beyond = np.arange(len(g)) >= np.argmax(expected > expected.max() / 2)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(11, 4.6), dpi=130, layout="constrained")
        figure.suptitle(f"lennard-jones: {N:,} atoms by a model of 256, against the true potential", x=0.012, ha="left")
        left, right = figure.subplots(1, 2)
        left.plot(centres, expected, label="true potential")
        left.plot(centres, g, "--", label="learned")
        left.set(xlabel="r / nm", ylabel="g(r)")
        left.legend()
        ratio, error = 100 * (g[beyond] / expected[beyond] - 1), 100 * g_error[beyond] / expected[beyond]
        right.fill_between(centres[beyond], ratio - error, ratio + error, alpha=0.3)
        right.plot(centres[beyond], ratio)
        right.axhspan(-100 * TARGET, 100 * TARGET, alpha=0.1)
        right.set(xlabel="r / nm", ylabel="learned / true − 1, %")
        FigureCanvasAgg(figure).print_png(path)
