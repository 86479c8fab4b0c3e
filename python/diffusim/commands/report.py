"""`diffusim report`: is a model worth running? Simulated against the snapshots, as a picture and as numbers."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from diffusim.terminal import console, describe_model, describe_step, fail, progress, say

SAMPLED_AT_ONCE = 1000  # frames
RESIDUAL_FRAMES = 500


def report(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")],
    data: Annotated[Path, typer.Option(help="Snapshots to compare with: those of the training, or others.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Picture (.png) or page (.html) to write; numbers in a .json beside.")
    ] = Path("report.png"),
    topology: Annotated[
        Path | None, typer.Option(help="Topology (PDB) with the atoms of the snapshots.  [default: the model's]")
    ] = None,
    select: Annotated[str, typer.Option(help="Atoms of the model, in mdtraj's language: 'not element H'.")] = "all",
    beads: Annotated[Path | None, typer.Option(help="Bead file of the training, where there was one.")] = None,
    unit: Annotated[str | None, typer.Option(help="Length unit of the snapshots.")] = None,
    trajectory: Annotated[Path | None, typer.Option(help="Trajectory to judge, in place of a simulation.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Leave out the first frames of --trajectory.")] = 0,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Replicas to simulate, or that --trajectory holds in turn.  (default: 500, or 1)"),
    ] = None,
    steps: Annotated[int, typer.Option(min=200, help="Steps of each replica.")] = 20_000,
    independent: Annotated[
        int, typer.Option(min=0, help="Frames to sample independently, by reverse diffusion; 0: none.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    friction: Annotated[
        float | None, typer.Option(help="Friction rate of the simulation, 1/ps: times are given in ps, too.")
    ] = None,
    diffusion: Annotated[
        float | None, typer.Option(help="Diffusion coefficient of every particle, nm²/ps, in place of --friction.")
    ] = None,
    frame_time: Annotated[float | None, typer.Option(help="Time between the frames of --trajectory, ps.")] = None,
) -> None:
    """Compare simulated, independent and given frames: torsions, bonds, angles, size, slow modes, and the model itself.

    Of the simulated path also what it remembers: autocorrelations, independent frames, first passages.

    Writes a picture or a page, and its numbers as JSON. docs/training.md says how to read them.
    """
    if output.suffix not in (".png", ".html"):
        fail(f"--output is {output}; expected a name that ends in .png or .html.")
    if not output.parent.is_dir():
        fail(f"--output is {output}, and there is no directory {output.parent}. Make it first.")
    for name, value in (("--friction", friction), ("--diffusion", diffusion), ("--frame-time", frame_time)):
        if value is not None and not value > 0:
            fail(f"{name} is {value:g}; expected a positive number.")
    if friction is not None and diffusion is not None:
        fail("--friction and --diffusion both say how fast particles diffuse; give one of them.")
    if trajectory is None and frame_time is not None:
        fail("--frame-time belongs to --trajectory; a simulation takes its time from --friction or --diffusion.")
    if trajectory is not None and (friction is not None or diffusion is not None):
        fail("--friction and --diffusion are of a simulation; say --frame-time for a --trajectory.")
    from diffusim import snapshots
    from diffusim.core import Model, Simulation
    from diffusim.report import page, paths, plots, slow_modes
    from diffusim.report.ensemble import Ensemble, Molecule, compare

    loaded = Model(model)
    metadata = loaded.metadata
    if not metadata.get("particles"):
        fail(f"{model} does not name its particles, so there is nothing to compare with snapshots.")
    if metadata.get("periodic"):
        fail(f"{model} is of a periodic system; the report is about one molecule. Compare g(r) and pressure.")
    known = snapshots.read_for(loaded, data, topology, select, unit, beads=beads)
    say("model", describe_model(loaded, str(model)))
    say("data", f"{data}   {known.n_frames:,} frames")
    for note in known.notes:
        say("", note)

    if trajectory is not None:
        replicas = replicas or 1
        positions = _read_trajectory(trajectory, loaded.n_particles)[skip:]
        if len(positions) < 2 * replicas:
            fail(f"{trajectory} has {len(positions)} frames after --skip {skip}; expected thousands.")
        say("simulated", f"{trajectory}   {len(positions):,} frames")
        between, time_unit = (1.0, "frames") if frame_time is None else (frame_time, "ps")
        ps_per_unit = None
        whole = len(positions) // replicas * replicas
        trajectories = positions[:whole].reshape(-1, replicas, *positions.shape[1:])
    else:
        simulation = Simulation(
            loaded, seed=seed, n_replicas=replicas or 500, friction_rate=friction, diffusion_coefficient=diffusion
        )
        say("step", describe_step(simulation.statistics, simulation.adapter))
        trajectories, every = _simulate(simulation, steps)
        positions = trajectories.reshape(-1, *trajectories.shape[2:])
        clock = simulation.statistics
        between, time_unit = every * clock.effective_step, "nm²"  # steps × τ, the time at D = 1
        ps_per_unit = clock.time_step / clock.effective_step if clock.time_step else None
    sampled = _sample(loaded, independent, seed)

    molecule = Molecule.from_particles(metadata["particles"], metadata["bonds"])
    reference = Ensemble.measure(known.positions, molecule)
    simulated = Ensemble.measure(positions, molecule, like=reference)
    numbers = compare(reference, simulated)
    iid = None if sampled is None else Ensemble.measure(sampled, molecule, like=reference)
    numbers_iid = None if iid is None else compare(reference, iid)
    others = {"data": known.positions} | ({} if sampled is None else {"iid": sampled})
    modes = None
    try:
        modes = slow_modes.slow_modes(trajectories, between, time_unit, others, molecule)
    except slow_modes.NotInstalled as error:
        say("", str(error), "yellow")
    residuals = _residuals(model, metadata, known.positions)
    walked = paths.paths(trajectories, between, time_unit, molecule, reference, ps_per_unit)

    title = f"{model.name} against {data.name}"
    shown = plots.Comparison(title, molecule, reference, simulated, numbers, iid, numbers_iid, modes, residuals, walked)
    entry = numbers | {
        "iid": numbers_iid,
        "slow_modes": None if modes is None else modes.numbers(),
        "fokker_planck": [asdict(residual) for residual in residuals],
        "paths": None if walked is None else walked.numbers(),
    }
    picture = plots.draw(shown)
    how = shlex.join(["diffusim", *sys.argv[1:]])
    rows = table(numbers, numbers_iid, molecule)
    rows += [] if walked is None else path_rows(walked, n_columns=1 if iid is None else 2)
    written = page.html(shown, picture, rows, entry, how).encode()
    output.write_bytes(picture if output.suffix == ".png" else written)
    output.with_suffix(".json").write_text(json.dumps(entry, indent=1) + "\n")
    say("report", f"{output}   {output.with_suffix('.json')}")
    show_rows(rows)


def show(numbers: dict, molecule, numbers_iid: dict | None = None) -> None:
    """The numbers of a comparison as a short table."""
    show_rows(table(numbers, numbers_iid, molecule))


def show_rows(rows: list[tuple[str, ...]]) -> None:
    """Rows of a name, one or two values, and a note."""
    console.print()
    if len(rows[0]) > 3:
        console.print(f"  {'':<28}{'simulated':<15}{'independent':<15}", markup=False)
    for name, *values, note in rows:
        cells = "".join(f"{value:<15}" for value in values)
        console.print(f"  {name:<28}{cells}{note}".rstrip(), soft_wrap=True, markup=False)


def table(numbers: dict, numbers_iid: dict | None, molecule) -> list[tuple[str, ...]]:
    """Rows of a name, the value for the simulation, that for independent samples if there are any, and a note."""
    columns = [numbers] if numbers_iid is None else [numbers, numbers_iid]
    rows = []

    def row(name: str, note: str, value: Callable[[dict], str]) -> None:
        rows.append((name, *map(value, columns), note))

    if "js" in numbers:
        frames = " and ".join(f"{n['n_frames']:,}" for n in columns)
        floors = " and ".join(f"{n['js_floor']:.4f}" for n in columns)
        row(
            f"Ramachandran JS ({numbers['bins'].replace('x', '×')})",
            f"(floor for {frames} independent frames {floors})",
            lambda n: f"{n['js']:.4f}",
        )
        floors = " and ".join(f"{n['pmf_error_floor']:.2f}" for n in columns)
        row("PMF error", f"kT (floor {floors})", lambda n: f"{n['pmf_error']:.2f}")
        known = f"(reference {100 * numbers['phi_positive_reference']:.1f} %)"
        row("φ > 0 population", known, lambda n: f"{100 * n['phi_positive_simulated']:.1f} %")
    if "torsion_js" in numbers:
        worst = int(np.argmax(numbers["torsion_js"]))
        name = "–".join(molecule.names[i] for i in molecule.torsions[worst])
        floor = numbers["torsion_js_floor"][worst]
        row(
            f"worst torsion JS ({numbers['torsion_bins']} bins)",
            f"({name}; floor {floor:.4f})",
            lambda n: f"{n['torsion_js'][worst]:.4f}",
        )
    for kind, unit, factor in (("bond", "%", 100), ("angle", "°", 1)):
        if f"{kind}_std_ratio_min" in numbers:
            error, low, high = f"{kind}_mean_error_max", f"{kind}_std_ratio_min", f"{kind}_std_ratio_max"
            row(f"{kind} means", "", lambda n, e=error, f=factor, u=unit: f"within {f * n[e]:.2f} {u}")
            row(f"{kind} spreads", "× reference", lambda n, a=low, b=high: f"{n[a]:.2f} – {n[b]:.2f}")
    row("radius of gyration", "from the reference", lambda n: f"{100 * n['radius_of_gyration_error']:+.2f} %")
    return rows


def path_rows(walked, n_columns: int) -> list[tuple[str, ...]]:
    """Rows as of `table` about the path: the longest memory, and the slowest passage that was seen."""

    def clock(value: float) -> str:
        value *= walked.frame_time
        ps = "" if walked.ps_per_unit is None else f" = {value * walked.ps_per_unit:.3g} ps"
        return f"{value:.3g} {walked.unit}{ps}"

    rows = []
    name = walked.slowest
    one = walked.memories[name]
    resolved = np.isfinite(one.correlation_time)
    note = f"{name}; ± {100 * one.correlation_time_error / one.correlation_time:.0f} %" if resolved else (
        f"{name} is not forgotten within {clock(one.lags[-1])}"
    )  # fmt: skip
    rows.append(("longest correlation time", clock(one.correlation_time) if resolved else "not resolved", note))
    rows.append(("worth independent frames", f"{one.effective_frames:,.0f}", f"of {one.n_frames:,}, for {name}"))
    seen = [(name, one) for name, passages in walked.passages.items() for one in passages if one.count]
    if seen:
        name, one = max(seen, key=lambda pair: pair[1].time)
        note = f"{name}, core {one.start + 1} → {one.end + 1}; ± {100 * one.error / one.time:.0f} %, {one.count} seen"
        rows.append(("slowest first passage", clock(one.time), note))
    never = sum(not one.count for passages in walked.passages.values() for one in passages)
    if never:
        total = sum(map(len, walked.passages.values()))
        rows.append(("passages never seen", f"{never} of {total}", "between core sets of torsions"))
    return [(name, value, *[""] * (n_columns - 1), note) for name, value, note in rows]


def _simulate(simulation, steps: int) -> tuple[np.ndarray, int]:
    """Frames [n_frames, n_replicas, n_particles, 3], 100 times in the run, after its first tenth; and steps between."""
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
    return np.array(frames), every


def _sample(model, n_frames: int, seed: int) -> np.ndarray | None:
    """Independent frames [n_frames, n_particles, 3]; None, and a line that says why, where there are none."""
    if n_frames == 0:
        return None
    if not model.metadata.get("noise_levels"):
        say("", "no independent frames: this kind of model has no noise levels to come down from")
        return None
    if not hasattr(model, "sample"):
        say("", "no independent frames: this version of diffusim has no reverse diffusion", "yellow")
        return None
    positions = np.empty((n_frames, model.n_particles, 3), dtype=np.float32)
    with progress("sampling", f"{n_frames:,} independent frames", n_frames, "frames") as advance:
        for first in range(0, n_frames, SAMPLED_AT_ONCE):
            part = positions[first : first + SAMPLED_AT_ONCE]
            part[:] = model.sample(len(part), seed=seed, first_frame=first)
            advance(len(part))
    return positions


def _residuals(path: Path, metadata: dict, positions: np.ndarray) -> list:
    """The Fokker-Planck residual of a model along its noise levels, over some of the frames."""
    levels = metadata.get("noise_levels")
    if not levels:
        return []
    from diffusim.core import Model
    from diffusim.report.consistency import fokker_planck_residuals

    some = positions[:: -(-len(positions) // RESIDUAL_FRAMES)].astype(float)
    return fokker_planck_residuals(lambda level: Model(path, level), (levels["min"], levels["max"]), some)


def _read_trajectory(path: Path, n_particles: int) -> np.ndarray:
    """Positions [n_frames, n_particles, 3] in nm from a file of exactly the model's particles."""
    import mdtraj
    from mdtraj.core.element import virtual

    from diffusim.snapshot_files import load_quietly

    particles = mdtraj.Topology()
    residue = particles.add_residue("MOL", particles.add_chain())
    for i in range(n_particles):
        particles.add_atom(f"X{i}", virtual, residue)
    try:
        return load_quietly(path, top=particles).xyz
    except OSError:
        raise
    except Exception as error:  # mdtraj has no error class of its own
        fail(f"{path} cannot be read as a trajectory of {n_particles} particles: {str(error).splitlines()[0]}")
