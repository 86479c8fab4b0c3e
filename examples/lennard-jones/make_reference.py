"""Make the data of this example: an argon-like Lennard-Jones fluid at 120 K and reduced density 0.8, in OpenMM.

python make_reference.py snapshots --out DIR   # 256 atoms, 6000 snapshots, minutes: what the model is trained on
python make_reference.py reference --out DIR   # 4000 atoms: g(r) and pressure to compare with, reference.npz
"""

import argparse
from pathlib import Path

import numpy as np
from fluid import cell_length, frames, pressures, radial_distribution

HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["snapshots", "reference"])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--frames", type=int)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "snapshots":
        found = frames(256, args.frames or 6000, 200, seed=20261121)
        order = np.random.default_rng(20261121).permutation(len(found))
        cell = np.eye(3) * cell_length(256)
        np.savez(args.out / "snapshots.npz", positions=found[order], cell=cell)
        p = pressures(found[::20], cell_length(256))
    else:
        n = 4000
        found = frames(n, args.frames or 300, 100, seed=20261122)
        edges = np.linspace(0.2, 1.6, 281)
        g = radial_distribution(found, cell_length(n), edges)
        p = pressures(found, cell_length(n))
        halves = np.array([half.mean(axis=0) for half in np.array_split(g, 10)])
        np.savez(
            args.out / "reference.npz",
            edges=edges,
            g=g.mean(axis=0),
            g_error=halves.std(axis=0, ddof=1) / np.sqrt(len(halves)),
            pressure=p.mean(),
            pressure_error=np.array([h.mean() for h in np.array_split(p, 10)]).std(ddof=1) / np.sqrt(10),
        )
    print(f"pressure {p.mean():.1f} bar, spread {p.std():.1f}")


if __name__ == "__main__":
    main()
