"""Make the data of this example: united-atom butane and octane, TraPPE's angles, torsions and Lennard-Jones terms, 300 K.

    python make_reference.py snapshots butane                 # exact Boltzmann samples; seconds
    python make_reference.py run       butane --out DIR       # true Brownian dynamics in OpenMM; half an hour; resumes
    python make_reference.py write     butane --out DIR       # the committed files

`snapshots` draws bonds, angles and torsions from their own Boltzmann distributions, which in a chain without branches are
independent, and for octane keeps a frame with the probability exp(-U_LJ/kT) of its non-bonded terms: exact, independent
frames in which no dynamics took part. `run` propagates copies of the same chain with OpenMM's BrownianIntegrator from
such frames, so from equilibrium. `write` makes

    NAME-reference.npz    statistics of 400,000 other exact frames; rates and torsion autocorrelation of the run
    NAME.pdb              topology
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENMM_CPU_THREADS", "1")
import numpy as np
import openmm as mm
from openmm import app, unit

from diffusim.report import statistics
from diffusim.report.ensemble import Ensemble, Molecule

HERE = Path(__file__).parent
GAS_CONSTANT = 0.00831446261815324  # kJ/(mol K)
TEMPERATURE = 300.0  # K
KT = GAS_CONSTANT * TEMPERATURE  # kJ/mol

# TraPPE-UA (Martin & Siepmann, J. Phys. Chem. B 102, 2569), energies there in K. Its rigid bonds are springs here.
BOND_LENGTH, BOND_STIFFNESS = 0.154, 2.6e5  # nm, kJ/(mol nm^2)
ANGLE, ANGLE_STIFFNESS = np.radians(114.0), 62500 * GAS_CONSTANT  # rad, kJ/(mol rad^2)
C1, C2, C3 = (c * GAS_CONSTANT for c in (355.03, -68.19, 791.32))
WELL_DEPTH = {"CH3": 98.0 * GAS_CONSTANT, "CH2": 46.0 * GAS_CONSTANT}
DIAMETER = {"CH3": 0.375, "CH2": 0.395}  # nm
FIRST_NON_BONDED = 4  # bonds between two beads that feel Lennard-Jones forces

MASS = 14.027  # amu; the same for all beads, so that all have the same D
DIFFUSION = 2e-3  # nm^2/ps, about that of a small molecule in a liquid
STEP = 2.5e-7 / DIFFUSION  # ps; effective step 2.5e-7 nm^2, a tenth of the stability limit
STEPS_PER_FRAME = 400  # a frame every 1e-4 nm^2
COPIES = 500

N_SNAPSHOTS, N_EXACT = 50_000, 1_000_000
SNAPSHOT_SEED, EXACT_SEED, START_SEED, DYNAMICS_SEED = 20261101, 20261102, 20261103, 20261104


@dataclass(frozen=True)
class Alkane:
    """A linear chain of `n_beads` CH3 and CH2 beads."""

    name: str
    residue: str
    n_beads: int

    @property
    def beads(self) -> list[str]:
        return ["CH3" if i in (0, self.n_beads - 1) else "CH2" for i in range(self.n_beads)]

    @property
    def torsions(self) -> list[tuple[int, int, int, int]]:
        return [(i, i + 1, i + 2, i + 3) for i in range(self.n_beads - 3)]

    @property
    def non_bonded(self) -> list[tuple[int, int, float, float]]:
        """(i, j, well depth, diameter) of the pairs far enough along the chain, Lorentz-Berthelot."""
        beads = self.beads
        return [
            (i, j, np.sqrt(WELL_DEPTH[beads[i]] * WELL_DEPTH[beads[j]]), (DIAMETER[beads[i]] + DIAMETER[beads[j]]) / 2)
            for i in range(self.n_beads)
            for j in range(i + FIRST_NON_BONDED, self.n_beads)
        ]


ALKANES = {"butane": Alkane("butane", "BUT", 4), "octane": Alkane("octane", "OCT", 8)}


def torsion_energy(phi: np.ndarray) -> np.ndarray:
    """TraPPE's torsion energy in kJ/mol; phi in radians, trans at pi."""
    return C1 * (1 + np.cos(phi)) + C2 * (1 - np.cos(2 * phi)) + C3 * (1 + np.cos(3 * phi))


def exact_frames(alkane: Alkane, n_frames: int, seed: int) -> np.ndarray:
    """Independent frames [n_frames, n_beads, 3] from the Boltzmann distribution, nm, centred, float32."""
    random = np.random.default_rng(seed)
    spread = np.sqrt(KT / BOND_STIFFNESS)
    length_grid = np.linspace(BOND_LENGTH - 8 * spread, BOND_LENGTH + 8 * spread, 4001)
    angle_grid = np.linspace(np.radians(60), np.radians(179.9), 4001)
    torsion_grid = np.linspace(-np.pi, np.pi, 7201)
    # The volume element of a chain in its bonds, angles and torsions: r^2 sin(angle).
    length_weight = length_grid**2 * np.exp(-0.5 * BOND_STIFFNESS * (length_grid - BOND_LENGTH) ** 2 / KT)
    angle_weight = np.sin(angle_grid) * np.exp(-0.5 * ANGLE_STIFFNESS * (angle_grid - ANGLE) ** 2 / KT)
    torsion_weight = np.exp(-torsion_energy(torsion_grid) / KT)
    deepest = sum(depth for _, _, depth, _ in alkane.non_bonded)
    kept, n_kept = [], 0
    while n_kept < n_frames:
        n = 50_000
        frames = _chain(
            _draw(random, length_grid, length_weight, (n, alkane.n_beads - 1)),
            _draw(random, angle_grid, angle_weight, (n, alkane.n_beads - 2)),
            _draw(random, torsion_grid, torsion_weight, (n, alkane.n_beads - 3)),
        )
        energy = np.full(n, deepest)  # so that no energy is negative
        for i, j, depth, diameter in alkane.non_bonded:
            power = (diameter / np.linalg.norm(frames[:, i] - frames[:, j], axis=1)) ** 6
            energy += 4 * depth * (power**2 - power)
        frames = frames[random.random(n) < np.exp(-energy / KT)] if alkane.non_bonded else frames
        kept.append(frames - frames.mean(axis=1, keepdims=True))
        n_kept += len(frames)
    return np.concatenate(kept)[:n_frames].astype(np.float32)


def _draw(random, grid: np.ndarray, weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Samples of the density `weight` on `grid`, taken as linear between its points, by inversion."""
    cumulative = np.concatenate([[0.0], np.cumsum((weight[1:] + weight[:-1]) / 2)])
    return np.interp(random.random(shape), cumulative / cumulative[-1], grid)


def _chain(lengths: np.ndarray, angles: np.ndarray, torsions: np.ndarray) -> np.ndarray:
    """Positions [n, n_beads, 3] of chains with these bonds [n, n_beads - 1], angles and torsions (radians)."""
    n, n_bonds = lengths.shape
    x = np.zeros((n, n_bonds + 1, 3))
    x[:, 1, 0] = lengths[:, 0]
    x[:, 2] = x[:, 1] + lengths[:, 1, None] * np.stack(
        [-np.cos(angles[:, 0]), np.sin(angles[:, 0]), np.zeros(n)], axis=1
    )
    for k in range(3, n_bonds + 1):
        first, second = x[:, k - 2] - x[:, k - 3], x[:, k - 1] - x[:, k - 2]
        along = second / np.linalg.norm(second, axis=1, keepdims=True)
        normal = np.cross(first, along)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        angle, torsion = angles[:, k - 2, None], torsions[:, k - 3, None]
        direction = -np.cos(angle) * along + np.sin(angle) * (
            np.cos(torsion) * np.cross(normal, along) + np.sin(torsion) * normal
        )
        x[:, k] = x[:, k - 1] + lengths[:, k - 1, None] * direction
    return x


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
    """Torsions [n_frames, n_torsions, copies] of true Brownian dynamics to DIR/NAME.npy, degrees, float16."""
    args.out.mkdir(parents=True, exist_ok=True)
    path, checkpoint = args.out / f"{alkane.name}.npy", args.out / f"{alkane.name}.chk"
    n_frames = round(args.length / (STEP * STEPS_PER_FRAME * DIFFUSION))
    integrator = mm.BrownianIntegrator(TEMPERATURE, KT / (MASS * DIFFUSION), STEP)
    integrator.setRandomNumberSeed(DYNAMICS_SEED)
    context = mm.Context(system(alkane, COPIES), integrator, mm.Platform.getPlatform("CPU" if alkane.non_bonded else "Reference"))
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
    frames = exact_frames(alkane, N_SNAPSHOTS, SNAPSHOT_SEED)
    np.savez(args.out / f"{alkane.name}.npz", positions=frames)
    with open(HERE / f"{alkane.name}.pdb", "w") as file:
        app.PDBFile.writeFile(topology(alkane), frames[0] * unit.nanometer, file, keepIds=True)
    print(f"{args.out / alkane.name}.npz  {len(frames):,} exact frames")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["snapshots", "run", "write"])
    parser.add_argument("alkane", choices=ALKANES)
    parser.add_argument("--out", type=Path, default=Path("out/alkanes"))
    parser.add_argument("--length", type=float, default=1.0, help="D x time of each of the 500 copies, nm^2")
    args = parser.parse_args()
    {"snapshots": snapshots, "run": run}[args.action](ALKANES[args.alkane], args)


if __name__ == "__main__":
    sys.exit(main())
