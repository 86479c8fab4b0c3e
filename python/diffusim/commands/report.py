"""`diffusim report`: is a model worth running? Simulated against the snapshots, as a picture and as numbers."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from diffusim.terminal import console, describe_model, describe_step, fail, progress, say


def report(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")],
    data: Annotated[Path, typer.Option(help="Snapshots to compare with: those of the training, or others.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Picture to write (.png); numbers in a .json beside.")
    ] = Path("report.png"),
    topology: Annotated[Path | None, typer.Option(help="Topology (PDB) with the atoms of the snapshots.")] = None,
    select: Annotated[str, typer.Option(help="Atoms of the model, in mdtraj's language: 'not element H'.")] = "all",
    unit: Annotated[str | None, typer.Option(help="Length unit of the snapshots.")] = None,
    trajectory: Annotated[Path | None, typer.Option(help="Trajectory to judge, in place of a simulation.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Leave out the first frames of --trajectory.")] = 0,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas to simulate.")] = 500,
    steps: Annotated[int, typer.Option(min=200, help="Steps of each replica.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
) -> None:
    """Compare a simulation with the snapshots: torsions, bonds, angles, size. Writes a PNG and a JSON."""
    if output.suffix != ".png":
        fail(f"--output is {output}; expected a name that ends in .png.")
    if not output.parent.is_dir():
        fail(f"--output is {output}, and there is no directory {output.parent}. Make it first.")
    from diffusim import snapshots
    from diffusim.core import Model, Simulation
    from diffusim.report import plots
    from diffusim.report.ensemble import Ensemble, Molecule, compare

    loaded = Model(model)
    metadata = loaded.metadata
    if not metadata.get("particles"):
        fail(f"{model} does not name its particles, so there is nothing to compare with snapshots.")
    known = snapshots.read(data, topology, select, unit)
    loaded.check_particles([p.element for p in known.particles], [p.name for p in known.particles])
    say("model", describe_model(loaded, str(model)))
    say("data", f"{data}   {known.n_frames:,} frames")

    if trajectory is not None:
        positions = _read_trajectory(trajectory, loaded.n_particles)[skip:]
        if len(positions) < 2:
            fail(f"{trajectory} has {len(positions)} frames after --skip {skip}; expected thousands.")
        say("simulated", f"{trajectory}   {len(positions):,} frames")
    else:
        simulation = Simulation(loaded, seed=seed, n_replicas=replicas)
        say("step", describe_step(simulation.statistics, simulation.adapter))
        positions = _simulate(simulation, steps)
    molecule = Molecule.from_particles(metadata["particles"], metadata["bonds"])
    reference = Ensemble.measure(known.positions, molecule)
    simulated = Ensemble.measure(positions, molecule, like=reference)
    numbers = compare(reference, simulated)
    plots.write(output, f"{model.name} against {data.name}", reference, simulated, numbers, molecule)
    output.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    say("report", f"{output}   {output.with_suffix('.json')}")
    show(numbers, molecule)


def show(numbers: dict, molecule) -> None:
    """The numbers of a comparison as a short table."""
    value = {name: f"{number:.4f}" for name, number in numbers.items() if isinstance(number, float)}
    rows = []
    if "js" in numbers:
        frames = f"{numbers['n_frames']:,} independent frames"
        bins = numbers["bins"].replace("x", "×")
        rows.append((f"Ramachandran JS ({bins})", value["js"], f"(floor for {frames} {value['js_floor']})"))
        simulated, known = (100 * numbers[f"phi_positive_{which}"] for which in ("simulated", "reference"))
        rows.append(("φ > 0 population", f"{simulated:.1f} %", f"(reference {known:.1f} %)"))
    elif "torsion_js" in numbers:
        worst = int(np.argmax(numbers["torsion_js"]))
        name = "–".join(molecule.names[i] for i in molecule.torsions[worst])
        js, floor = numbers["torsion_js"][worst], numbers["torsion_js_floor"][worst]
        rows.append((f"worst torsion JS ({numbers['torsion_bins']} bins)", f"{js:.4f}", f"({name}; floor {floor:.4f})"))
    for kind, unit, factor in (("bond", "%", 100), ("angle", "°", 1)):
        if f"{kind}_std_ratio_min" in numbers:
            rows.append((f"{kind} means", f"within {factor * numbers[f'{kind}_mean_error_max']:.2f} {unit}", ""))
            low, high = numbers[f"{kind}_std_ratio_min"], numbers[f"{kind}_std_ratio_max"]
            rows.append((f"{kind} spreads", f"{low:.2f} – {high:.2f}", "× reference"))
    rows.append(("radius of gyration", f"{100 * numbers['radius_of_gyration_error']:+.2f} %", "from the reference"))
    console.print()
    for name, number, note in rows:
        console.print(f"  {name:<26}{number:<14} {note}".rstrip(), soft_wrap=True, markup=False)


def _simulate(simulation, steps: int) -> np.ndarray:
    """Frames [n_frames, n_particles, 3] of all replicas, 100 times in the run, after its first tenth."""
    burn_in, every = steps // 10, max(1, steps // 110)
    frames = []
    with progress(
        "running", f"{simulation.n_replicas:,} × {steps:,} steps", simulation.n_replicas * steps, "replica-steps"
    ) as advance:
        simulation.step(burn_in)
        advance(simulation.n_replicas * burn_in)
        while simulation.step_count + every <= steps:
            simulation.step(every)
            frames.append(simulation.positions.astype(np.float32))
            advance(simulation.n_replicas * every)
    return np.concatenate(frames)


def _read_trajectory(path: Path, n_particles: int) -> np.ndarray:
    """Positions [n_frames, n_particles, 3] in nm from a file of exactly the model's particles."""
    import mdtraj
    from mdtraj.core.element import virtual

    particles = mdtraj.Topology()
    residue = particles.add_residue("MOL", particles.add_chain())
    for i in range(n_particles):
        particles.add_atom(f"X{i}", virtual, residue)
    try:
        with _silent_c_libraries():
            return mdtraj.load(str(path), top=particles).xyz
    except OSError:
        raise
    except Exception as error:  # mdtraj has no error class of its own
        fail(f"{path} cannot be read as a trajectory of {n_particles} particles: {str(error).splitlines()[0]}")


@contextmanager
def _silent_c_libraries() -> Iterator[None]:
    """mdtraj's DCD reader talks to stdout from C; nobody asked it to."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
