"""What is wrong with the barriers of a learned alkane, in kT, without any simulation.

    python barriers.py butane [MODEL]     # seconds; the model beside this script, or another

For each torsion: exact frames in which it is drawn evenly, and the free energy along it that exp(-E_learned) gives
them, less the exact one. Rates follow the barriers: 0.1 kT too high makes a rate 10 % too low.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from alkanes import ALKANES, KT, Alkane, energy, exact_frames, torsion_energy

import diffusim
from diffusim.report import statistics

HERE = Path(__file__).parent
EDGES = np.linspace(-180.0, 180.0, 73)
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
REGIONS = {  # degrees
    "trans": lambda phi: np.abs(phi) > 165,
    "barrier +": lambda phi: np.abs(phi - 120) < 5,
    "barrier -": lambda phi: np.abs(phi + 120) < 5,
    "gauche +": lambda phi: np.abs(phi - 65) < 10,
    "gauche -": lambda phi: np.abs(phi + 65) < 10,
    "cis": lambda phi: np.abs(phi) < 5,
}
SEED = 20261105


def profile_error(model: diffusim.Model, alkane: Alkane, torsion: int, n_frames: int = 100_000) -> np.ndarray:
    """Learned less exact free energy in the bins EDGES of a torsion, kT; 0 in the mean over the torsion's energy."""
    frames = exact_frames(alkane, n_frames, SEED, even=torsion).astype(float)
    difference = model.evaluate(frames)[1] - energy(alkane, frames) / KT
    weight = np.exp(difference.mean() - difference)
    phi = statistics.torsions(frames, [alkane.torsions[torsion]])[:, 0]
    sums, counts = (np.histogram(phi, bins=EDGES, weights=w)[0] for w in (weight, None))
    error = -np.log(sums / counts)
    return error - np.average(error, weights=np.exp(-torsion_energy(np.radians(CENTRES)) / KT))


def summary(error: np.ndarray) -> dict[str, float]:
    """Its means over the basins and on the barriers."""
    return {name: float(error[inside(CENTRES)].mean()) for name, inside in REGIONS.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("alkane", choices=ALKANES)
    parser.add_argument("model", nargs="?", type=Path)
    args = parser.parse_args()
    alkane = ALKANES[args.alkane]
    model = diffusim.Model(args.model or HERE / f"{args.alkane}.safetensors")
    print("learned less exact free energy / kT")
    print(f"{'torsion':<10}" + "".join(f"{name:>11}" for name in REGIONS))
    for i, torsion in enumerate(alkane.torsions):
        found = summary(profile_error(model, alkane, i))
        print(f"{'-'.join(str(k + 1) for k in torsion):<10}" + "".join(f"{value:>11.3f}" for value in found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
