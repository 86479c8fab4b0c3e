"""`diffusim train`: a score model from snapshots."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn

from diffusim import model_file
from diffusim.terminal import LABEL_WIDTH, console, fail, say, seconds


def train(
    snapshots: Annotated[Path, typer.Argument(help="Snapshots: npz, npy, dcd, xtc, trr, h5, pdb, gro, extxyz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write.")] = Path("model.safetensors"),
    topology: Annotated[Path | None, typer.Option(help="Topology (PDB) with the atoms of the snapshots.")] = None,
    select: Annotated[str, typer.Option(help="Atoms to learn, in mdtraj's language: 'not element H'.")] = "all",
    unit: Annotated[str | None, typer.Option(help="Length unit of the file: nm, angstrom, pm, bohr.")] = None,
    stride: Annotated[int, typer.Option(help="Use every n-th frame.")] = 1,
    temperature: Annotated[float | None, typer.Option(help="Temperature of the snapshots, K.  [default: 300]")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.  [default: 20000]")] = None,
    hidden: Annotated[str | None, typer.Option(help="Widths of the layers.  [default: 192-192-192]")] = None,
    noise_min: Annotated[float | None, typer.Option(help="Least noise level, nm.  [default: from the data]")] = None,
    noise_max: Annotated[float | None, typer.Option(help="Greatest noise level, nm.  [default: from the data]")] = None,
    noise_simulation: Annotated[
        float | None, typer.Option(help="Noise level that simulations use, nm.  [default: --noise-min]")
    ] = None,
    fokker_planck_weight: Annotated[
        float | None, typer.Option(help="Weight of the Fokker-Planck loss.  [default: 0.05]")
    ] = None,
    quadruplets: Annotated[
        str | None, typer.Option(help="Signed features, such as 0-1-3-4,1-3-4-6, or none.  [default: from the bonds]")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Blurred frames per step.  [default: 512]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Greatest learning rate.  [default: 0.002]")] = None,
    patience: Annotated[int | None, typer.Option(help="Evaluations without gain before it stops early.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same machine: same model.  [default: 0]")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of these settings; flags override it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training, exactly.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the model file, start anew.")] = False,
) -> None:
    """Train a score model on snapshots of a molecule and write it as a model file."""
    try:
        import jax  # noqa: F401
        import optax  # noqa: F401
    except ImportError as error:
        fail(f"training needs JAX and optax ({error}). Install them: pip install 'diffusim[train]'.")
    from diffusim.snapshots import read
    from diffusim.training import config as configuration
    from diffusim.training import export, trainer
    from diffusim.training.network import DistanceNetwork

    checkpoint = output.with_suffix(".checkpoint")
    started = time.monotonic()
    flags = {
        "temperature": temperature,
        "steps": steps,
        "hidden": None if hidden is None else configuration.parse_hidden(hidden),
        "noise_min": noise_min,
        "noise_max": noise_max,
        "noise_simulation": noise_simulation,
        "fokker_planck_weight": fokker_planck_weight,
        "quadruplets": None if quadruplets is None else configuration.parse_quadruplets(quadruplets),
        "batch": batch,
        "learning_rate": learning_rate,
        "patience": patience,
        "seed": seed,
    }
    settings = configuration.load(config, flags)
    _check_output(output, checkpoint, resume, force)
    data = read(snapshots, topology, select, unit, stride)
    settings = configuration.complete(settings, data)
    network = DistanceNetwork(
        data.n_particles, settings.quadruplets, settings.noise_min, settings.noise_max, settings.hidden
    )
    _introduce(data, settings, network)
    failure = None
    try:
        with _progress(settings.steps) as show:
            result = trainer.train(network, data.positions, settings, checkpoint, resume, show)
    except trainer.TrainingError as error:
        if error.result is None:
            raise
        result, failure = error.result, error

    how = {"seconds": round(time.monotonic() - started, 1), "command": shlex.join(["diffusim", *sys.argv[1:]])}
    header, tensors = export.model_of(data, settings, network, result, how)
    try:
        model_file.write(output, header, tensors)
    except OSError as error:
        fail(f"{output} cannot be written: {error.strerror}. The training is in {checkpoint}: --resume continues it.")
    _conclude(output, header, result)
    if failure is not None:
        fail(f"{failure} The best model before, of step {result.best_step:,}, is in {output}.")
    if result.stopped == "interrupted":
        say("", f"interrupted at step {result.step:,}; the same command with --resume continues it")
    else:
        checkpoint.unlink(missing_ok=True)


def _check_output(output: Path, checkpoint: Path, resume: bool, force: bool) -> None:
    if output.suffix != ".safetensors":
        fail(f"--output is {output}; expected a name that ends in .safetensors.")
    if not output.parent.is_dir():
        fail(f"--output is {output}, and there is no directory {output.parent}. Make it first.")
    if resume or force:
        return
    if checkpoint.exists():
        fail(f"{checkpoint} is of an interrupted training. Continue it with --resume, or start anew with --force.")
    if output.exists():
        fail(f"{output} exists. Replace it with --force, or choose another --output.")


def _introduce(data, settings, network) -> None:
    """What was read and what was chosen, in a few lines."""
    stiffest = float(data.pair_spreads().min())
    say(
        "reading",
        f"{data.n_frames:,} frames, {data.n_particles} atoms, stiffest pair spreads by {stiffest:.2g} nm  →  "
        f"σ from {settings.noise_min:g} to {settings.noise_max:g} nm, simulations at {settings.noise_simulation:g}",
    )
    for note in data.notes:
        say("", note)
    loss = "denoising + Fokker–Planck" if settings.fokker_planck_weight > 0 else "denoising"
    widths = "-".join(map(str, settings.hidden))
    say("network", f"distance, {widths}, {network.n_weights / 1000:.0f}k weights;  loss: {loss}")
    names = ["-".join(data.particles[i].name for i in quadruplet) for quadruplet in settings.quadruplets]
    say("signed", "  ".join(names) or "none: this model cannot tell mirror images apart; --quadruplets adds features")


def _conclude(output: Path, header: model_file.ModelFile, result) -> None:
    """How it ended and what was written."""
    why = {"finished": "all steps", "early": "stopped early, no gain any more", "interrupted": "interrupted"}
    say(
        "trained",
        f"{why.get(result.stopped, 'failed')}; best held-out {result.held_out:.4f} at step {result.best_step:,}",
    )
    say(
        "model",
        f"{output}, {output.stat().st_size / 1e6:.2f} MB;  stiffest mode {header.largest_curvature:.3g} /nm²  →  "
        f"recommended τ = {header.recommended_effective_step:.2g} nm²",
    )


@contextmanager
def _progress(steps: int) -> Iterator[Callable]:
    """Gives the function that shows a report: as a bar in a terminal, as a line every tenth of the way elsewhere."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[eta]}"), console=console
    )
    first = None
    tenths = 0

    def show(report) -> None:
        nonlocal first, tenths
        now = time.monotonic()
        first = first or (now, report.step)  # the first report comes after compilation
        held_out = f"  held-out {report.held_out:.4f}  FP residual {report.residual:.4f}" if report.held_out else ""
        line = f"epoch {report.epoch:.0f}  loss {report.loss:.4f}{held_out}"
        if console.is_terminal:
            eta = ""
            if report.step > first[1]:
                remaining = (now - first[0]) / (report.step - first[1]) * (steps - report.step)
                eta = f"ETA {seconds(remaining)}   (Ctrl-C keeps the best so far)"
            bar.update(task, completed=report.step, description=f"{'training':<{LABEL_WIDTH}}{line}", eta=eta)
        elif report.step * 10 // steps > tenths:
            tenths = report.step * 10 // steps
            say("", f"{line}  step {report.step:,} of {steps:,}")

    if not console.is_terminal:
        yield show
        return
    with bar:
        task = bar.add_task(f"{'training':<{LABEL_WIDTH}}compiling", total=steps, eta="")
        yield show
