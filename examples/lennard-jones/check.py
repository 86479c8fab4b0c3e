"""Simulate 4,000 atoms with the learned model and hold g(r) and the pressure against the reference.

    python check.py [--steps 20000] [--out DIR]     # writes report.json and g.npz

The start is a liquid of the true potential, so that no lattice has to melt; a quarter of the steps is left out. The
figure is the largest relative error of g(r) beyond the first peak's half height, with the statistical error of both.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from make_reference import BAR, KT, cell_length, context, radial_distribution, unit

from diffusim import Model, Simulation

HERE = Path(__file__).parent
N = 4000
EQUILIBRATION = 3000  # steps of the true potential


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--model", type=Path, default=HERE / "lennard-jones.safetensors")
    args = parser.parse_args()
    fluid = context(N, seed=5)
    fluid.getIntegrator().step(EQUILIBRATION)
    start = fluid.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)

    file = Model(args.model)
    model = file.for_species(["Ar"] * N)
    length = cell_length(N)
    cell = length * np.eye(3)
    simulation = Simulation(model, seed=1)
    simulation.cell = cell
    simulation.positions = start
    reference = np.load(HERE / "reference.npz")
    edges, found, pressures, started = reference["edges"], [], [], time.monotonic()
    for step in range(args.every, args.steps + 1, args.every):
        simulation.step(args.every)
        if step > args.steps // 4:
            frame = simulation.positions
            found.append(radial_distribution(frame, length, edges)[0])
            _, _, virials = model.evaluate_in_cell(frame, cell)
            pressures.append((N + np.trace(virials[0]) / 3) * KT / length**3 * BAR)
        if step % (10 * args.every) == 0:
            print(f"step {step}, {time.monotonic() - started:.0f} s", flush=True)

    blocks = np.array([b.mean(axis=0) for b in np.array_split(found, 5)])
    g, g_error = blocks.mean(axis=0), blocks.std(axis=0, ddof=1) / np.sqrt(len(blocks))
    expected = reference["g"]
    peak = int(expected.argmax())
    first = int(np.argmax(expected > expected[peak] / 2))
    relative = np.abs(np.divide(g, expected, where=expected > 0, out=np.ones_like(g)) - 1)
    worst = first + int(relative[first:].argmax())
    p = np.array([b.mean() for b in np.array_split(pressures, 5)])
    report = {
        "n_atoms": N,
        "steps": args.steps,
        "g(r)_max_relative_error": float(relative[worst]),
        "at_nm": float((edges[worst] + edges[worst + 1]) / 2),
        "error": float(np.hypot(g_error[worst] / g[worst], reference["g_error"][worst] / expected[worst])),
        "pressure_bar": float(p.mean()),
        "pressure_error_bar": float(p.std(ddof=1) / np.sqrt(len(p))),
        "reference_pressure_bar": float(reference["pressure"]),
        "reference_pressure_error_bar": float(reference["pressure_error"]),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez(args.out / "g.npz", edges=edges, g=g, g_error=g_error, expected=expected)
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
