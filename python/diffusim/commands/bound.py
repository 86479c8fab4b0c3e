"""`diffusim bound`: how far the law of whole paths may be off, and how many steps bring it under a target."""

import json
import math
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from diffusim.terminal import console, describe_model, fail, say, show

HALVINGS = 6  # of the number of steps, in the table of a Monte Carlo estimate


def bound(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors), or the JSON of an analytic model.")],
    horizon: Annotated[
        str, typer.Option(help="Length of the paths: 100ps, 1ns (with --diffusion), or 0.02nm2 of D t.")
    ],
    diffusion: Annotated[float | None, typer.Option(help="Diffusion coefficient of every particle, nm²/ps.")] = None,
    target_kl: Annotated[float, typer.Option(help="Divergence that the steps wanted are to stay under.")] = 0.1,
    spring: Annotated[float | None, typer.Option(help="Step size as a spring, 1/nm².  [default: the model's]")] = None,
    effective_step: Annotated[float | None, typer.Option(help="Step size as τ, nm².")] = None,
    curvature: Annotated[
        float | None, typer.Option(help="L, 1/nm².  [default: measured at start frames and in a short run]")
    ] = None,
    score_error: Annotated[
        float, typer.Option(help="ε = root of E|s − s_model|², 1/nm, of all coordinates together.")
    ] = 0.0,
    system: Annotated[
        Path | None, typer.Option(help="Truth to measure against: an OpenMM System (.xml) of the model's particles.")
    ] = None,
    check_masses: Annotated[
        bool, typer.Option("--check-masses/--ignore-masses", help="Whether atoms of --system must weigh the model's.")
    ] = True,
    reference: Annotated[
        Path | None, typer.Option(help="Truth to measure against: another model (.safetensors or .json).")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of the finest chain that is measured; others have half, a quarter, …")
    ] = 64,
    paths: Annotated[int, typer.Option(min=2, help="Independent paths to measure.")] = 64,
    substeps: Annotated[int, typer.Option(min=1, help="Reference steps in one of the finest chain.")] = 8,
    burn_in: Annotated[float, typer.Option(min=0, help="Reference dynamics before the paths begin, nm².")] = 0.0,
    seed: Annotated[int, typer.Option(min=1, max=2**63 - 1, help="Of the paths.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Picture (.png) of the measurement; numbers in a .json beside."),
    ] = None,
) -> None:
    """Bound the error of the path law: KL divergence, total variation, and any time correlation.

    P is the exact diffusion of the true score, Q the Euler-Maruyama chain of the model from the same start. With
    --system or --reference the divergence is measured, too; a model can be its own reference, which shows the error of
    the step alone.
    """
    for flag, value in (
        ("--diffusion", diffusion), ("--target-kl", target_kl), ("--spring", spring),
        ("--effective-step", effective_step), ("--curvature", curvature),
    ):  # fmt: skip
        if value is not None and not 0 < value < math.inf:
            fail(f"{flag} is {value:g}; expected a positive number.")
    if not 0 <= score_error < math.inf:
        fail(f"--score-error is {score_error:g}; expected 0 or more.")
    if spring is not None and effective_step is not None:
        fail("--spring and --effective-step are two ways to say how large a step is; give one of them.")
    if system is not None and reference is not None:
        fail("--system and --reference are two truths; give one of them.")
    if output is not None and system is None and reference is None:
        fail("--output is for a measurement; give a truth with --system or --reference.")
    if output is not None and (output.suffix != ".png" or not output.parent.is_dir()):
        fail(f"--output is {output}; expected a name that ends in .png, in a directory that exists.")
    length = _horizon(horizon, diffusion)
    from diffusim import bound as theory

    loaded = _load(model)
    say("model", describe_model(loaded, str(model)))
    physical = "" if diffusion is None else f" = {length / diffusion:.4g} ps at D = {diffusion:g} nm²/ps"
    say("horizon", f"{length:.4g} nm² of D t{physical}")
    truth = _truth(loaded, model, system, check_masses, reference)
    curvature = curvature or _curvature(loaded)
    n_coordinates = 3 * loaded.n_particles
    say("stiffness", f"L = {curvature:.3g} /nm², d = {n_coordinates} coordinates")
    tau = effective_step or (0.5 / spring if spring else loaded.metadata.get("recommended_effective_step"))
    if tau:
        count = max(1, round(length / tau))
        found = theory.closed_form(curvature, n_coordinates, [length / count] * count, score_error)
        say("steps", f"{count:,} of τ = {length / count:.3g} nm², k = {0.5 * count / length:.3g} /nm²")
        say("bound", f"KL ≤ {found.score:.3g} (score) + {found.discretisation:.3g} (step) = {found.total:.3g}")
        say("", _meaning(theory, found.total))
    else:
        say("steps", f"{loaded.name} recommends none; say --spring or --effective-step to bound one")
    wanted = theory.steps_for(target_kl, curvature, n_coordinates, length)
    say("wanted", f"{wanted:,} steps, k = {0.5 * wanted / length:.3g} /nm²: error of the step ≤ {target_kl:g}")
    say("", _meaning(theory, target_kl))
    if truth is None:
        return

    counts = [steps // 2**i for i in range(HALVINGS) if steps % 2**i == 0]
    study = theory.path_divergence(
        loaded, truth, length, counts, burn_in=burn_in, n_paths=paths, substeps=substeps, seed=seed
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("N", "τ/nm²", "KL(P‖Q)", "step", "score", "cross", "bound", "TV"):
        table.add_column(heading, justify="right")
    for row in study.rows():
        parts = [
            f"{row[name]['value']:.3g}±{row[name]['error']:.1g}"
            for name in ("total", "discretisation", "score", "cross")
        ]
        table.add_row(
            f"{row['n_steps']:,}", f"{row['effective_step']:.2g}", *parts, f"{row['bound_total']:.3g}",
            f"{row['total_variation']:.2g}",
        )  # fmt: skip
    console.print()
    say("measured", f"{paths} paths of the reference, errors from them; L = {study.lipschitz:.3g} /nm² along them")
    show(table)
    console.print(
        "step: with the reference's own score; score: what a wrong score costs at any step; bound: of (14).",
        soft_wrap=True,
    )
    if output is not None:
        study.draw(output)
        numbers = output.with_suffix(".json")
        numbers.write_text(json.dumps({"horizon": study.horizon, "rows": study.rows()}, indent=1) + "\n")
        say("wrote", f"{output}, {numbers}")


def _horizon(text: str, diffusion: float | None) -> float:
    """nm² of D t, from a number and its unit."""
    parts = re.fullmatch(r"\s*([-+0-9.eE]+)\s*(ps|ns|nm2|nm²|nm\^2)\s*", text)
    try:
        value = float(parts[1]) if parts else math.nan
    except ValueError:
        value = math.nan
    if math.isnan(value):
        fail(f"--horizon is '{text}'; expected a number and its unit, such as 100ps, 1ns or 0.02nm2.")
    if not 0 < value < math.inf:
        fail(f"--horizon is {text}; expected a positive length.")
    if parts[2] not in ("ps", "ns"):
        return value
    if diffusion is None:
        fail(f"--horizon {text} is physical time and needs --diffusion, in nm²/ps; or give it in nm2 of D t.")
    return value * diffusion * (1000 if parts[2] == "ns" else 1)


def _load(path: Path):
    from diffusim.core import Model

    if path.suffix != ".json":
        return Model(path)
    try:
        return Model.from_metadata(json.loads(path.read_text()))
    except ValueError as error:
        fail(f"{path} is no JSON description of an analytic model ({error}).")


def _curvature(loaded) -> float:
    """L, where it is stated or can be measured."""
    from diffusim.advice import UNSTABLE, advise
    from diffusim.core import Simulation

    if len(loaded.start_positions):
        return advise(loaded).curvature
    limit = Simulation(loaded, effective_step=1e-12).statistics.stability_limit
    if limit is None:
        fail(f"{loaded.name} neither states its largest curvature nor has frames to measure it; say --curvature.")
    return UNSTABLE / limit


def _truth(loaded, model: Path, system: Path | None, check_masses: bool, reference: Path | None):
    from diffusim import bound as theory

    if reference is not None:
        return loaded if reference == model else _load(reference)
    if system is None:
        return None
    import openmm

    if not system.is_file():
        fail(f"there is no file {system}.")
    try:
        built = openmm.XmlSerializer.deserialize(system.read_text())
    except Exception as error:  # whatever is in that file
        fail(f"{system} is no System written by OpenMM's XmlSerializer ({error}).")
    if not isinstance(built, openmm.System):
        fail(f"{system} holds a {type(built).__name__}; expected a System written by OpenMM's XmlSerializer.")
    return theory.engine_reference(built, loaded, check_masses=check_masses)


def _meaning(theory, divergence: float) -> str:
    variation = theory.total_variation(divergence)
    if variation == 1:
        return "total variation ≤ 1: at this step the bound says nothing about whole paths"
    most = f"no time correlation of values within ±1 is off by more than {2 * variation:.3g}"
    return f"total variation ≤ {variation:.3g}: {most}"
