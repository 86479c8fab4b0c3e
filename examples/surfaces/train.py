"""Learn a surface from exact samples of it: writes NAME.safetensors beside this script.

    python train.py muller-brown      # about two minutes on one core
    python train.py double-well

The features of the network are the coordinates themselves, since an external field has no symmetry. The z axis is not
among them: it feels no score, and what it does means nothing.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from surfaces import SURFACES, exact_frames

from diffusim import model_file
from diffusim.snapshots import Snapshots
from diffusim.terminal import progress, say
from diffusim.training import export, trainer
from diffusim.training.config import TrainingSettings
from diffusim.training.losses import Frames
from diffusim.training.network import DistanceNetwork

HERE = Path(__file__).parent
N_SNAPSHOTS, SNAPSHOT_SEED = 200_000, 20261105
NOISE_MIN = {"muller-brown": 0.01, "double-well": 0.005}  # nm; the narrowest directions spread by 0.1 and 0.05
NOISE_MAX = 1.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surface", choices=SURFACES)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64, 64])
    parser.add_argument("--fokker-planck-weight", type=float, default=0.05)
    parser.add_argument("--noise-min", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    noise_min = args.noise_min or NOISE_MIN[args.surface]
    settings = TrainingSettings(
        steps=args.steps,
        hidden=args.hidden,
        noise_min=noise_min,
        noise_max=NOISE_MAX,
        noise_simulation=noise_min,
        fokker_planck_weight=args.fokker_planck_weight,
        relative_entropy_weight=0.0,  # denoising and the Fokker-Planck term are enough here
        quadruplets=(),
        batch=512,
        patience=50,  # the last steps, of low learning rate, are worth having
        seed=args.seed,
    )
    snapshots = Snapshots(
        positions=exact_frames(SURFACES[args.surface], N_SNAPSHOTS, SNAPSHOT_SEED),
        particles=[model_file.Particle("P", "", args.surface, 0, 1.0)],
        bonds=[],
        source={"made_by": "examples/surfaces/train.py", "n_frames": N_SNAPSHOTS, "seed": SNAPSHOT_SEED},
    )
    network = DistanceNetwork(
        1, (), settings.noise_min, settings.noise_max, settings.hidden, coordinates=((0, 0), (0, 1))
    )
    started, last = time.monotonic(), 0
    with progress("training", args.surface, settings.steps) as advance:

        def report(state):
            nonlocal last
            advance(state.step - last)
            last = state.step

        result = trainer.train(network, Frames(snapshots.positions), settings, report=report)
    how = {"seconds": round(time.monotonic() - started, 1), "command": shlex.join(["python", *sys.argv])}
    header, tensors = export.model_of(snapshots, settings, network, result, how)
    output = args.output or HERE / f"{args.surface}.safetensors"
    model_file.write(output, header, tensors)
    say("model", f"{output}, {output.stat().st_size / 1e3:.0f} kB; {result.stopped}, held-out {result.held_out:.4f}")


if __name__ == "__main__":
    sys.exit(main())
