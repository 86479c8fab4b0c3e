"""Make the data of this example: united-atom butane and octane (alkanes.py), 300 K.

    python make_reference.py snapshots butane [--out DIR]   # exact Boltzmann samples; seconds
    python make_reference.py run       butane [--out DIR]   # true Brownian dynamics in OpenMM; half an hour; resumes
    python make_reference.py write     butane [--out DIR]   # NAME-reference.npz

`snapshots` writes what the model is trained on, DIR/NAME.npz (positions [n_frames, n_beads, 3], nm): exact, independent
frames in which no dynamics took part; and the topology NAME.pdb beside this script. `run` propagates 500 copies of the
same chain with OpenMM's BrownianIntegrator from such frames, so from equilibrium. `write` makes NAME-reference.npz
from 400,000 other exact frames (distributions) and from the run (rates, torsion autocorrelation).
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENMM_CPU_THREADS", "1")
import numpy as np
import openmm as mm
from alkanes import (
    ALKANES,
    ANGLE,
    ANGLE_STIFFNESS,
    BOND_LENGTH,
    BOND_STIFFNESS,
    C1,
    C2,
    C3,
    FRAME,
    KT,
    TEMPERATURE,
    Alkane,
    Kinetics,
    exact_frames,
    trans_populations,
)
from openmm import app, unit

from diffusim.report import statistics
from diffusim.report.ensemble import Ensemble, Molecule

HERE = Path(__file__).parent
MASS = 14.027  # amu; the same for all beads, so that all have the same D
DIFFUSION = 2e-3  # nm^2/ps, about that of a small molecule in a liquid
STEP = 2.5e-7 / DIFFUSION  # ps; effective step 2.5e-7 nm^2, a tenth of the stability limit
STEPS_PER_FRAME = round(FRAME / DIFFUSION / STEP)
COPIES = 500
LONGEST_LAG = 0.1  # nm^2
N_SNAPSHOTS, N_EXACT = {"butane": 300_000, "octane": 200_000}, 400_000
SNAPSHOT_SEED, EXACT_SEED, START_SEED, DYNAMICS_SEED = 20261101, 20261102, 20261103, 20261104


def topology(alkane: Alkane) -> app.Topology:
    """Carbons named C1, C2, ... in one residue."""
    top = app.Topology()
    residue = top.addResidue(alkane.residue, top.addChain())
    atoms = [top.addAtom(f"C{i + 1}", app.element.carbon, residue) for i in range(alkane.n_beads)]
    for a, b in zip(atoms, atoms[1:], strict=False):
        top.addBond(a, b)
    return top


def molecule_of(alkane: Alkane) -> Molecule:
    particles = [{"name": a.name, "residue_index": 0, "mass": MASS} for a in topology(alkane).atoms()]
    return Molecule.from_particles(particles, [(i, i + 1) for i in range(alkane.n_beads - 1)])


def system(alkane: Alkane, copies: int) -> mm.System:
    """`copies` chains that do not feel each other."""
    system = mm.System()
    bonds, angles, torsions = mm.HarmonicBondForce(), mm.HarmonicAngleForce(), mm.RBTorsionForce()
    pairs = mm.CustomBondForce("4*depth*((diameter/r)^12 - (diameter/r)^6)")
    pairs.addPerBondParameter("depth")
    pairs.addPerBondParameter("diameter")
    # torsion_energy as powers of cos(psi), psi = phi - 180 degrees
    ryckaert_bellemans = (C1 + 2 * C2 + C3, 3 * C3 - C1, -2 * C2, -4 * C3, 0.0, 0.0)
    for first in range(0, copies * alkane.n_beads, alkane.n_beads):
        for _ in range(alkane.n_beads):
            system.addParticle(MASS)
        for i in range(first, first + alkane.n_beads - 1):
            bonds.addBond(i, i + 1, BOND_LENGTH, BOND_STIFFNESS)
        for i in range(first, first + alkane.n_beads - 2):
            angles.addAngle(i, i + 1, i + 2, ANGLE, ANGLE_STIFFNESS)
        for torsion in alkane.torsions:
            torsions.addTorsion(*(first + i for i in torsion), *ryckaert_bellemans)
        for i, j, depth, diameter in alkane.non_bonded:
            pairs.addBond(first + i, first + j, (depth, diameter))
    for force in (bonds, angles, torsions, *((pairs,) if alkane.non_bonded else ())):
        system.addForce(force)
    return system


def run(alkane: Alkane, args) -> None:
    """Torsions [n_frames, n_torsions, copies] of true Brownian dynamics to DIR/NAME.npy, degrees."""
    args.out.mkdir(parents=True, exist_ok=True)
    path, checkpoint = args.out / f"{alkane.name}.npy", args.out / f"{alkane.name}.chk"
    n_frames = round(args.length / FRAME)
    integrator = mm.BrownianIntegrator(TEMPERATURE, KT / (MASS * DIFFUSION), STEP)
    integrator.setRandomNumberSeed(DYNAMICS_SEED)
    platform = mm.Platform.getPlatform("CPU" if alkane.non_bonded else "Reference")  # the faster one
    context = mm.Context(system(alkane, COPIES), integrator, platform)
    done = 0
    if checkpoint.exists():
        torsions = np.lib.format.open_memmap(path, mode="r+")
        context.loadCheckpoint(checkpoint.read_bytes())
        done = round(context.getTime().value_in_unit(unit.picosecond) / (STEP * STEPS_PER_FRAME))
    else:
        shape = (n_frames, len(alkane.torsions), COPIES)
        torsions = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        torsions[:] = np.nan
        context.setPositions(exact_frames(alkane, COPIES, START_SEED).reshape(-1, 3))
    started, first = time.time(), done
    while done < len(torsions):
        integrator.step(STEPS_PER_FRAME)
        x = context.getState(positions=True).getPositions(asNumpy=True)._value.reshape(COPIES, alkane.n_beads, 3)
        torsions[done] = statistics.torsions(x, alkane.torsions).T
        done += 1
        if done % 100 == 0:
            torsions.flush()
            checkpoint.write_bytes(context.createCheckpoint())
            eta = (len(torsions) - done) * (time.time() - started) / (done - first) / 60
            print(f"{alkane.name}  frame {done:,} of {len(torsions):,}  ETA {eta:.0f} min", flush=True)


def snapshots(alkane: Alkane, args) -> None:
    """What the model is trained on, and its topology: DIR/NAME.npz and NAME.pdb beside this script."""
    args.out.mkdir(parents=True, exist_ok=True)
    frames = exact_frames(alkane, N_SNAPSHOTS[alkane.name], SNAPSHOT_SEED)
    np.savez(args.out / f"{alkane.name}.npz", positions=frames)
    with open(HERE / f"{alkane.name}.pdb", "w") as file:
        app.PDBFile.writeFile(topology(alkane), frames[0] * unit.nanometer, file, keepIds=True)
    print(f"{args.out / alkane.name}.npz  {len(frames):,} exact frames")


def write(alkane: Alkane, args) -> None:
    torsions = np.load(args.out / f"{alkane.name}.npy", mmap_mode="r")
    done = np.isfinite(torsions[:, 0, 0])
    torsions = np.moveaxis(torsions[: np.argmin(done) if not done.all() else len(done)], 1, 0)
    length = torsions.shape[1] * FRAME
    kinetics = Kinetics.measure(torsions, LONGEST_LAG)
    molecule = molecule_of(alkane)
    ensemble = Ensemble.measure(exact_frames(alkane, N_EXACT, EXACT_SEED), molecule)
    np.savez_compressed(
        HERE / f"{alkane.name}-reference.npz",
        note=f"united-atom {alkane.name}, 300 K: {N_EXACT:,} exact frames; rates and autocorrelation from {COPIES} x "
        f"{length:.3g} nm^2 of Brownian dynamics in OpenMM {mm.__version__}; nm, degrees, D t in nm^2",
        length=COPIES * length,
        **ensemble.arrays(),
        **kinetics.arrays(),
    )
    print(f"{alkane.name}: {COPIES} x {length:.4g} nm^2")
    for name, rate, error in zip(
        ("trans -> gauche", "gauche -> trans"), kinetics.rates, kinetics.rate_errors, strict=True
    ):
        print(f"  {name} {rate:.4f} +- {error:.4f} /nm^2")
    exact = trans_populations(ensemble)
    for i, (trans, error, true) in enumerate(zip(kinetics.trans, kinetics.trans_errors, exact, strict=True)):
        print(f"  torsion {i}: trans {trans:.4f} +- {error:.4f}, exact frames {true:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["snapshots", "run", "write"])
    parser.add_argument("alkane", choices=ALKANES)
    parser.add_argument("--out", type=Path, default=Path("out/alkanes"))
    parser.add_argument("--length", type=float, default=1.0, help="D x time of each of the 500 copies, nm^2")
    args = parser.parse_args()
    {"snapshots": snapshots, "run": run, "write": write}[args.action](ALKANES[args.alkane], args)


if __name__ == "__main__":
    sys.exit(main())
