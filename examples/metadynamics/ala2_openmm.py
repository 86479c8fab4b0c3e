"""Well-tempered metadynamics of a learned score with OpenMM's own Metadynamics, over phi and psi of alanine dipeptide.

    python ala2_openmm.py [--walkers 2] [--filling 4000000] [--steps 10000000] [-o openmm.npz]

Nothing in it knows that the force field is a network: variables, bias and walkers are OpenMM's. The walkers move by
Langevin dynamics, which goes through psi some ten times as fast as overdamped steps. Walkers, one thread
each, share their hills through a folder. When the basins are full no more hills are added, and every frame under the
bias V that stays counts exp(V/kT). `make paper FIGURE=metadynamics` compares what comes out with model_profile.py.
"""

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit
from profiles import positive, reweighted, with_error

import diffusim
import diffusim.openmm as dm
from diffusim.terminal import progress, say

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "ala2" / "ala2.safetensors"
PHI, PSI = (1, 3, 4, 6), (3, 4, 6, 8)  # C N CA C, N CA C N
TEMPERATURE, FRICTION_RATE, TIME_STEP = 300.0, 2 / unit.picosecond, 2 * unit.femtoseconds
HILL_WIDTH, HILL_HEIGHT, BIAS_FACTOR = 0.25, 0.6, 10.0  # rad, kJ/mol
HILL_EVERY, SHARE_EVERY, COUNTED_EVERY = 500, 25_000, 100  # steps
SEED = 48291


class Walker:
    """One molecule under the bias that all walkers build."""

    def __init__(self, number: int, folder: str):
        model = diffusim.Model(MODEL)
        system = dm.system(model)
        variables = []
        for atoms in (PHI, PSI):
            torsion = openmm.CustomTorsionForce("theta")
            torsion.addTorsion(*atoms)
            variables.append(app.BiasVariable(torsion, -np.pi, np.pi, HILL_WIDTH, periodic=True))
        self.metadynamics = app.Metadynamics(
            system, variables, TEMPERATURE, BIAS_FACTOR, HILL_HEIGHT, HILL_EVERY, SHARE_EVERY, folder
        )
        self.bias_group = {force.getForceGroup() for force in system.getForces()}
        integrator = dm.DiffusionIntegrator(
            model, TEMPERATURE, FRICTION_RATE, TIME_STEP, adapter="langevin", seed=SEED + number
        )
        platform = openmm.Platform.getPlatform("Reference")
        self.simulation = app.Simulation(dm.topology(model), system, integrator, platform)
        self.simulation.context.setPositions(model.start_positions[number])

    def fill(self, n_steps: int) -> None:
        """Metadynamics."""
        self.metadynamics.step(self.simulation, n_steps)

    def watch(self, n_steps: int) -> np.ndarray:
        """phi, psi (rad) and V (kJ/mol) of frames under the bias as it is, [n_frames, 3]."""
        rows = np.empty((n_steps // COUNTED_EVERY, 3))
        for row in rows:
            self.simulation.step(COUNTED_EVERY)
            row[:2] = self.metadynamics.getCollectiveVariables(self.simulation)
            state = self.simulation.context.getState(energy=True, groups=self.bias_group)
            row[2] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        return rows


def run(n_walkers: int, filling: int, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames [n_walkers, n_frames, 3] of phi, psi (rad) and V (kJ/mol) under the full bias, and the free energy
    [phi, psi] (kJ/mol) that the hills stand for. `filling` and `n_steps` are of all walkers together.
    """
    pieces = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(n_walkers) as threads:
        walkers = [Walker(number, folder) for number in range(n_walkers)]
        for label, total, work in (("filling", filling, Walker.fill), ("watching", n_steps, Walker.watch)):
            with progress(label, f"{total:,} steps of {n_walkers} walkers", total) as advance:
                for _ in range(0, total, n_walkers * SHARE_EVERY):
                    pieces.append(list(threads.map(work, walkers, n_walkers * [SHARE_EVERY])))
                    advance(n_walkers * SHARE_EVERY)
        hills = walkers[0].metadynamics.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole).T
    watched = [piece for piece in pieces if piece[0] is not None]
    return np.concatenate(watched, axis=1), hills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walkers", type=int, default=2)
    parser.add_argument("--filling", type=int, default=4_000_000, help="steps that add hills, of all walkers together")
    parser.add_argument("--steps", type=int, default=10_000_000, help="steps under the bias that stays")
    parser.add_argument("-o", "--output", type=Path, default=Path("openmm.npz"))
    args = parser.parse_args()
    frames, hills = run(args.walkers, args.filling, args.steps)
    np.savez_compressed(args.output, frames=frames.astype(np.float32), hills=hills.astype(np.float32))
    parts = reweighted(np.degrees(frames[..., 0]), frames[..., 2])
    energy, error = with_error(parts)
    share, share_error = positive(parts)
    say("wrote", str(args.output))
    say("φ > 0", f"{100 * share:.1f} ± {100 * share_error:.1f} %")
    say("error", f"{np.median(error):.2f} kJ/mol in the median bin, {np.ptp(energy):.0f} kJ/mol from lowest to highest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
