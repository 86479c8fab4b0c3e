"""`diffusim info`: what a model file says about itself."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from diffusim.terminal import console, say, seconds


def info(model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")]) -> None:
    """Show what is in a model file: particles, units, noise levels, steps, provenance, hash."""
    from diffusim.core import Model

    loaded = Model(model)
    metadata = loaded.metadata
    say("model", f"{model}, {len(loaded.bytes) / 1e6:.2f} MB, sha256 {loaded.sha256}")
    say("kind", f"{metadata['kind']}{_network(metadata)}")
    periodic = "periodic" if metadata.get("periodic") else "not periodic"
    bonds = len(metadata.get("bonds") or [])
    say("particles", f"{loaded.n_particles}, {bonds} bonds, lengths in {metadata['length_unit']}, {periodic}")
    say("trained", f"at {metadata['training_temperature']:g} K{_provenance(metadata)}")
    if levels := metadata.get("noise_levels"):
        say("noise", f"σ from {levels['min']:g} to {levels['max']:g} nm; simulations at {levels['simulation']:g} nm")
    if tau := metadata.get("recommended_effective_step"):
        say("step", f"recommended τ = {tau:.2g} nm²  ⇔  spring k = {0.5 / tau:.3g} /nm²")
    if curvature := metadata.get("largest_curvature"):
        say("stable", f"below τ = {2 / curvature:.2g} nm² (stiffest mode {curvature:.3g} /nm²)")
    say("starts", f"{len(loaded.start_positions):,} frames")
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
        console.print(table)


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
