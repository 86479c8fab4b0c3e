"""`diffusim sample`: independent equilibrium frames from a model file, by reverse diffusion."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from diffusim.commands.run import LARGEST_SEED, write_topology
from diffusim.dcd import DcdWriter
from diffusim.terminal import counted, describe_model, fail, progress, say

FORMATS = (".npz", ".dcd", ".xtc")
FRAMES_PER_UPDATE = 1024


def sample(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Frames to write (.npz, .dcd or .xtc).")] = Path(
        "frames.npz"
    ),
    frames: Annotated[int, typer.Option("--frames", "-n", min=1, help="Frames to draw.")] = 10_000,
    seed: Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST_SEED, help="Of the noise; same seed, same frames.  [default: fresh]"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Steps of reverse diffusion, two scores each.")] = 32,
    start_level: Annotated[
        float | None,
        typer.Option(help="Noise level to start from, nm.  [default: half the greatest of the training]"),
    ] = None,
    corrector_steps: Annotated[int, typer.Option(min=0, help="Langevin steps at the end.")] = 100,
    force: Annotated[bool, typer.Option("--force", help="Replace the output.")] = False,
) -> None:
    """Draw independent equilibrium frames, without a simulation, and write them with a PDB of their topology.

    Frames start as the model's start frames blurred by the start level and are led down its noise levels: basins that
    the start level does not join keep the populations of the start frames.
    """
    if output.suffix not in FORMATS:
        fail(f"--output is {output}; expected a name that ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    if not output.parent.is_dir():
        fail(f"--output is {output}, and there is no directory {output.parent}. Make it first.")
    for path in (output, output.with_suffix(".pdb")):
        if path.is_dir():
            fail(f"{path} is a directory, and the frames would go to a file there. Choose another --output.")
    if output.exists() and not force:
        fail(f"{output} exists. Replace it with --force, or choose another --output.")

    from diffusim.core import Model, fresh_seed

    loaded = Model(model)
    seed = fresh_seed() if seed is None else seed
    say("model", describe_model(loaded, str(model)))
    say("levels", f"{steps} steps of reverse diffusion, {corrector_steps} of Langevin dynamics   seed {seed}")
    topology = write_topology(
        loaded, output.with_suffix(".pdb")
    )  # first: where it cannot be written, neither can frames
    positions = np.empty((frames, loaded.n_particles, 3), dtype=np.float32)
    with progress("sampling", f"{frames:,} frames", frames, "frames") as advance:
        for first in range(0, frames, FRAMES_PER_UPDATE):
            n = min(FRAMES_PER_UPDATE, frames - first)
            positions[first : first + n] = loaded.sample(
                n, seed, steps, start_level=start_level, corrector_steps=corrector_steps, first_frame=first
            )
            advance(n)
    try:
        _write(output, positions)
    except OSError as error:
        output.unlink(missing_ok=True)
        fail(f"{output} cannot be written: {error.strerror}.")
    say("wrote", f"{output}   {counted(frames, 'frame')}" + (f"   topology {topology}" if topology else ""))


def _write(path: Path, positions: np.ndarray) -> None:
    """Frames [n_frames, n_particles, 3] in nm. XTC rounds to 0.001 nm."""
    if path.suffix == ".npz":
        np.savez(path, positions=positions)
    elif path.suffix == ".dcd":
        writer = DcdWriter(path, positions.shape[1], 1, 0.0)
        writer.write(positions)
        writer.close()
    else:
        from mdtraj.formats import XTCTrajectoryFile

        with XTCTrajectoryFile(str(path), "w") as file:
            file.write(positions)
