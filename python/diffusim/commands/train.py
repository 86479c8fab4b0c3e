"""`diffusim train`: a score model from snapshots."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn

from diffusim import model_file
from diffusim.terminal import LABEL_WIDTH, console, fail, say, seconds
from diffusim.training import config as configuration

SETTINGS = configuration.settings()


def _option(name: str, default: str | None = None):
    """The flag of a setting; help and default are those of the setting, so that they are said in one place."""
    setting = SETTINGS[name]
    if default is None:
        default = "from the data" if setting.default is None else str(setting.default)
    panel = setting.metadata["section"].capitalize()
    return typer.Option(help=setting.metadata["help"], show_default=default, rich_help_panel=panel)


def train(
    snapshots: Annotated[Path | None, typer.Argument(help=SETTINGS["snapshots"].metadata["help"])] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write.")] = Path("model.safetensors"),
    config: Annotated[Path | None, typer.Option(help="TOML file of these settings; flags override it.")] = None,
    write_config: Annotated[
        Path | None, typer.Option(help="Write the completed settings as a TOML file, and train nothing; - shows them.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training, exactly.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the model file, start anew.")] = False,
    topology: Annotated[Path | None, _option("topology", "none")] = None,
    select: Annotated[str | None, _option("select")] = None,
    beads: Annotated[Path | None, _option("beads", "none")] = None,
    unit: Annotated[str | None, _option("unit", "that of the file")] = None,
    force_unit: Annotated[str | None, _option("force_unit", "that of the file")] = None,
    stride: Annotated[int | None, _option("stride")] = None,
    periodic: Annotated[bool | None, _option("periodic", "no")] = None,
    temperature: Annotated[float | None, _option("temperature")] = None,
    pressure: Annotated[float | None, _option("pressure")] = None,
    held_out: Annotated[float | None, _option("held_out")] = None,
    model: Annotated[str | None, _option("model")] = None,
    start_from: Annotated[Path | None, _option("start_from", "random weights")] = None,
    hidden: Annotated[str | None, _option("hidden")] = None,
    cutoff: Annotated[float | None, _option("cutoff")] = None,
    quadruplets: Annotated[str | None, _option("quadruplets", "from the bonds")] = None,
    symmetries: Annotated[str | None, _option("symmetries", "none")] = None,
    noise_min: Annotated[float | None, _option("noise_min")] = None,
    noise_max: Annotated[float | None, _option("noise_max")] = None,
    noise_simulation: Annotated[float | None, _option("noise_simulation", "--noise-min")] = None,
    fokker_planck_weight: Annotated[float | None, _option("fokker_planck_weight", "0.05; message-passing 0")] = None,
    fokker_planck_ramp: Annotated[float | None, _option("fokker_planck_ramp")] = None,
    fokker_planck_noise_max: Annotated[float | None, _option("fokker_planck_noise_max", "20 × --noise-min")] = None,
    relative_entropy_weight: Annotated[float | None, _option("relative_entropy_weight")] = None,
    relative_entropy_start: Annotated[float | None, _option("relative_entropy_start")] = None,
    chains: Annotated[int | None, _option("chains", "2 × --batch")] = None,
    chain_steps: Annotated[int | None, _option("chain_steps")] = None,
    force_weight: Annotated[float | None, _option("force_weight")] = None,
    steps: Annotated[int | None, _option("steps")] = None,
    batch: Annotated[int | None, _option("batch")] = None,
    learning_rate: Annotated[float | None, _option("learning_rate")] = None,
    learning_rate_end: Annotated[float | None, _option("learning_rate_end")] = None,
    warm_up: Annotated[float | None, _option("warm_up")] = None,
    average: Annotated[float | None, _option("average")] = None,
    evaluations: Annotated[int | None, _option("evaluations")] = None,
    patience: Annotated[int | None, _option("patience")] = None,
    torsion_share: Annotated[float | None, _option("torsion_share")] = None,
    seed: Annotated[int | None, _option("seed")] = None,
) -> None:
    """Train a score model on snapshots of a molecule and write it as a model file. docs/training.md explains it all."""
    flags = {name: value for name, value in locals().items() if name in SETTINGS and value is not None}
    for name in configuration.PATHS:
        if name in flags:
            flags[name] = str(flags[name])
    for name in ("hidden", "quadruplets", "symmetries"):
        if name in flags:
            flags[name] = getattr(configuration, f"parse_{name}")(flags[name])
    source, settings = configuration.load(config, flags)
    if source.snapshots is None:
        fail("which snapshots? Give their file, or a --config that names it under [data].")
    if write_config is None:
        _check_output(output, output.with_suffix(".checkpoint"), resume, force)
    try:
        import jax  # noqa: F401
        import optax  # noqa: F401
    except ImportError as error:
        fail(f"training needs JAX and optax ({error}). Install them: pip install 'diffusim[train]'.")
    from diffusim.snapshots import read
    from diffusim.training.choices import complete

    data = read(
        Path(source.snapshots),
        source.topology and Path(source.topology),
        source.select,
        source.unit,
        source.stride,
        beads=source.beads and Path(source.beads),
        force_unit=source.force_unit,
        periodic=source.periodic,
    )
    settings = complete(settings, data)
    if write_config is not None:
        source = replace(source, unit=data.source["unit"], force_unit=data.source.get("force_unit"))
        _write_config(write_config, source, settings)
    else:
        _train(data, settings, output, resume)


def _train(data, settings, output: Path, resume: bool) -> None:
    from diffusim.training import export, trainer
    from diffusim.training.kinds import network_of
    from diffusim.training.losses import Frames

    checkpoint = output.with_suffix(".checkpoint")
    started = time.monotonic()
    forces = data.force_scores(settings.temperature) if settings.force_weight > 0 else None
    network = network_of(settings, data)
    _introduce(data, settings, network, forces is not None)
    failure = None
    try:
        with _progress(settings.steps) as show:
            frames = Frames(data.positions, data.cells, forces)
            result = trainer.train(network, frames, settings, checkpoint, resume, show)
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


def _write_config(path: Path, source, settings) -> None:
    """The completed settings, to the file or, for '-', to the terminal."""
    if str(path) == "-":
        print(configuration.to_toml(source, settings, Path()), end="")
        return
    try:
        path.write_text(configuration.to_toml(source, settings, path.parent))
    except OSError as error:
        fail(f"--write-config {path} cannot be written: {error.strerror}.")
    say("wrote", f"{path}; nothing was trained. Train with: diffusim train --config {path} -o MODEL.safetensors")


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


def _introduce(data, settings, network, with_forces: bool) -> None:
    """What was read and what was chosen, in a few lines."""
    what = "beads" if "beads" in data.source else "particles" if data.cells is not None else "atoms"
    say(
        "reading",
        f"{data.n_frames:,} frames, {data.n_particles} {what}  →  "
        f"σ from {settings.noise_min:g} to {settings.noise_max:g} nm, simulations at {settings.noise_simulation:g}",
    )
    for note in data.notes:
        say("", note)
    loss = ["denoising"]
    loss += ["Fokker–Planck"] if settings.fokker_planck_weight > 0 else []
    loss += ["relative entropy"] if settings.relative_entropy_weight > 0 else []
    loss += ["volumes"] if settings.pressure is not None else []
    loss += ["forces"] if with_forces else []
    widths = "-".join(map(str, settings.hidden))
    say("network", f"{network.kind}, {widths}, {network.n_weights / 1000:.0f}k weights;  loss: {' + '.join(loss)}")
    if network.kind == "distance":
        names = ["-".join(data.particles[i].name for i in quadruplet) for quadruplet in settings.quadruplets]
        without = "none: this model cannot tell mirror images apart; --quadruplets adds features"
        say("signed", "  ".join(names) or without)
    if settings.symmetries:
        groups = ("+".join("-".join(map(str, cycle)) for cycle in p) for p in settings.symmetries)
        say("symmetry", f"equivalent particles {'  '.join(groups)}")
    say("device", _device())


def _device() -> str:
    """Where JAX computes, in one line."""
    import jax

    first = jax.devices()[0]
    if first.platform == "cpu":
        return "CPU (JAX sees no GPU)"
    return f"{first.platform.upper()} {first.device_kind}, of {jax.device_count()}"


def _conclude(output: Path, header: model_file.ModelFile, result) -> None:
    """How it ended, what was reached along the noise levels, and what was written."""
    why = {"finished": "all steps", "early": "stopped early, no gain any more", "interrupted": "interrupted"}
    again = f", {result.recoveries} × half the learning rate" if result.recoveries else ""
    say(
        "trained",
        f"{why.get(result.stopped, 'failed')}{again}; best held-out {result.held_out:.4f} at step {result.best_step:,}"
        + ("" if result.residual is None else f", Fokker–Planck residual {result.residual:.4f}"),
    )
    rows = {
        "σ / nm": [f"{band.noise_min:.2g}–{band.noise_max:.2g}" for band in result.bands],
        "held-out": [f"{band.denoising:.4f}" for band in result.bands],
        "FP resid.": [f"{band.fokker_planck:.4f}" for band in result.bands if band.fokker_planck is not None],
    }
    width = max(len(text) for row in rows.values() for text in row) + 2
    for label, row in rows.items():
        if not row:
            continue
        say(label, "".join(f"{text:<{width}}" for text in row).rstrip())
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
        held_out = f"  held-out {report.held_out:.4f}" if report.held_out is not None else ""
        held_out += f"  FP residual {report.residual:.4f}" if report.residual is not None else ""
        line = f"epoch {report.epoch:.0f}  loss {report.loss:.4f}{held_out}"
        eta = ""
        if report.step > first[1]:
            remaining = (now - first[0]) / (report.step - first[1]) * (steps - report.step)
            eta = f"ETA {seconds(remaining)}"
        if report.note:
            say("", report.note, "yellow")
        if console.is_terminal:
            how_to_stop = f"{eta}   (Ctrl-C keeps the best so far)" if eta else ""
            bar.update(task, completed=report.step, description=f"{'training':<{LABEL_WIDTH}}{line}", eta=how_to_stop)
        elif report.step * 10 // steps > tenths:
            tenths = report.step * 10 // steps
            say(
                "",
                f"{line}  step {report.step:,} of {steps:,}{'  ' if tenths < 10 else ''}{eta if tenths < 10 else ''}",
            )

    if not console.is_terminal:
        yield show
        return
    with bar:
        task = bar.add_task(f"{'training':<{LABEL_WIDTH}}compiling", total=steps, eta="")
        yield show
