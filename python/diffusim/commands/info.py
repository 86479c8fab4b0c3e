"""`diffusim info`: what a model file says about itself, and which step suits it."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from diffusim.terminal import console, counted, fail, say, seconds, show


def info(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")],
    advise: Annotated[
        bool, typer.Option("--advise", help="Measure the stiffest mode and advise on the step instead.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="Measure at these snapshots, not at the model's own.")] = None,
    topology: Annotated[Path | None, typer.Option(help="Topology (PDB) with the atoms of the snapshots.")] = None,
    select: Annotated[str, typer.Option(help="Atoms of the model, in mdtraj's language: 'not element H'.")] = "all",
    unit: Annotated[str | None, typer.Option(help="Length unit of the snapshots.")] = None,
    friction: Annotated[float | None, typer.Option(help="Friction rate, 1/ps: says time steps, too.")] = None,
    diffusion: Annotated[
        float | None, typer.Option(help="Diffusion coefficient of every particle, nm²/ps, in place of --friction.")
    ] = None,
    spring: Annotated[float | None, typer.Option(help="A spring to judge, 1/nm².")] = None,
) -> None:
    """Show what is in a model file: particles, units, noise levels, steps, provenance, hash.

    With --advise: the largest curvature of the learned energy, which springs are too soft for it, and what a step does
    to its stiffest mode.
    """
    given = {"--data": data, "--friction": friction, "--diffusion": diffusion, "--spring": spring}
    if not advise and (useless := [flag for flag, value in given.items() if value is not None]):
        fail(f"{useless[0]} is for --advise; add --advise, or leave it out.")
    for flag in ("--friction", "--diffusion", "--spring"):
        if given[flag] is not None and not 0 < given[flag] < math.inf:
            fail(f"{flag} is {given[flag]:g}; expected a positive number.")
    if friction is not None and diffusion is not None:
        fail("--friction and --diffusion both say how fast particles diffuse; give one of them.")
    from diffusim.core import Model

    loaded = Model(model)
    if advise:
        _advise(loaded, _frames(loaded, data, topology, select, unit), friction, diffusion, spring)
        return
    metadata = loaded.metadata
    say("model", f"{model}, {len(loaded.bytes) / 1e6:.2f} MB, sha256 {loaded.sha256}")
    say("kind", f"{metadata['kind']}{_network(metadata)}")
    periodic = "periodic" if metadata.get("periodic") else "not periodic"
    bonds = len(metadata.get("bonds") or [])
    say(
        "particles", f"{loaded.n_particles}, {counted(bonds, 'bond')}, lengths in {metadata['length_unit']}, {periodic}"
    )
    say("trained", f"at {metadata['training_temperature']:g} K{_provenance(metadata)}")
    if levels := metadata.get("noise_levels"):
        say("noise", f"σ from {levels['min']:g} to {levels['max']:g} nm; simulations at {levels['simulation']:g} nm")
    if tau := metadata.get("recommended_effective_step"):
        say("step", f"recommended τ = {tau:.2g} nm²  ⇔  spring k = {0.5 / tau:.3g} /nm²")
    if curvature := metadata.get("largest_curvature"):
        say("stable", f"below τ = {2 / curvature:.2g} nm² (stiffest mode {curvature:.3g} /nm²)")
    say("starts", counted(len(loaded.start_positions), "frame"))
    if particles := metadata.get("particles"):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading, justify in (("#", "right"), ("name", "left"), ("element", "left"), ("residue", "left")):
            table.add_column(heading, justify=justify)
        table.add_column("mass / amu", justify="right")
        table.add_column("bonded to")
        neighbours: dict[int, list[int]] = {i: [] for i in range(len(particles))}
        for i, j in metadata.get("bonds") or []:
            neighbours[i].append(j)
            neighbours[j].append(i)
        for i, p in enumerate(particles):
            residue = f"{p['residue']} {p['residue_index'] + 1}"
            bonded = " ".join(f"{particles[j]['name']}({j})" for j in sorted(neighbours[i]))
            table.add_row(str(i), p["name"], p["element"], residue, f"{p['mass']:.3f}", bonded)
        console.print()
        show(table)


def _frames(model, data: Path | None, topology: Path | None, select: str, unit: str | None):
    if data is None:
        return None
    from diffusim import snapshots

    return snapshots.read_for(model, data, topology, select, unit).positions


def _advise(model, frames, friction: float | None, diffusion: float | None, spring: float | None) -> None:
    from diffusim import advice

    found = advice.advise(model, frames)
    at = "start frames" if frames is None else "snapshots"
    of_frames = f"{found.curvature_of_frames:.3g} /nm² in {found.n_frames} {at}"
    say("stiffest", f"{of_frames}, {found.curvature:.3g} /nm² in a short run from there")
    stated = model.metadata.get("largest_curvature")
    if stated and found.curvature > 1.2 * stated:
        say(
            "warning",
            f"the file states {stated:.3g} /nm²; frames here are stiffer, so take the springs below",
            "yellow",
        )
    say("too soft", f"k below {found.softest_spring:.3g} /nm², τ above {found.stability_limit:.2g} nm²: unstable")
    say("advice", f"k = {found.spring:.3g} /nm², τ = {found.effective_step:.2g} nm²: a fifth of the limit")
    if found.frequency:
        say(
            "langevin",
            f"Δt below {found.longest_time_step:.2g} ps, all masses counted; a tenth of the fastest period is "
            f"{found.time_step:.2g} ps",
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    steps = [0.1 * found.effective_step, found.effective_step, found.stability_limit / 2, 0.9 * found.stability_limit]
    if spring is not None:
        steps = sorted([*steps, 0.5 / spring])
    times = [_time_step(model, tau, friction, diffusion) for tau in steps]
    headings = ["k / nm⁻²", "τ / nm²", "τ λ_max"] + ["Δt / ps"] * (times[0] is not None)
    for heading in [*headings, "euler-maruyama", "leimkuhler-matthews", "heun"]:
        table.add_column(heading, justify="right")
    for tau, time in zip(steps, times, strict=True):
        h = tau * found.curvature
        errors = [
            advice.relative_variance(adapter, h) - 1 for adapter in ("euler-maruyama", "leimkuhler-matthews", "heun")
        ]
        texts = [f"{error:+.1%}" if math.isfinite(error) else "unstable" for error in errors]
        cells = [f"{0.5 / tau:.3g}", f"{tau:.2g}", f"{h:.2g}"] + ([] if time is None else [f"{time:.2g}"])
        mine = spring is not None and tau == 0.5 / spring
        table.add_row(*cells, *texts, style="bold" if mine else "")
    console.print()
    show(table)
    console.print(
        "Percentages: error of the variance of the stiffest mode, λ_max, were it harmonic. Softer modes have less.",
        soft_wrap=True,
    )
    if spring is not None and spring <= found.softest_spring:
        fail(f"--spring {spring:g} /nm² is too soft: this model needs more than {found.softest_spring:.3g} /nm².")


def _time_step(model, tau: float, friction: float | None, diffusion: float | None) -> float | None:
    """ps, of the most mobile particle."""
    from diffusim.core import Simulation

    if friction is None and diffusion is None:
        return None
    simulation = Simulation(
        model, effective_step=tau, friction_rate=friction, diffusion_coefficient=diffusion, allow_unstable=True
    )
    return simulation.statistics.time_step


def _network(metadata: dict) -> str:
    hyperparameters = metadata.get("hyperparameters") or {}
    if hidden := hyperparameters.get("hidden"):
        signed = len(hyperparameters.get("quadruplets", []))
        return f", layers {'-'.join(map(str, hidden))}, {signed} signed features"
    return "".join(f", {name} {value:g}" for name, value in hyperparameters.items())


def _provenance(metadata: dict) -> str:
    training = metadata.get("training") or {}
    source = training.get("snapshots") or {}
    parts = []
    if "n_frames" in source:
        parts.append(f" on {source['n_frames']:,} snapshots of {source.get('file', 'an unnamed file')}")
    if "steps" in training:
        parts.append(f", {training['steps']:,} steps")
    if "seconds" in training:
        parts.append(f" in {seconds(training['seconds'])}")
    return "".join(parts)
