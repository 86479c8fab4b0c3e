"""Make the reference data of this example: alanine dipeptide, amber14 + GBSA-OBC2, 300 K, in OpenMM.

    python make_reference.py run   --out DIR [--walkers 8] [--nanoseconds 66]   # hours on 2 cores; resumes
    python make_reference.py write --out DIR                                    # the committed files

`run` propagates independent walkers (HMR, 4 fs, constrained hydrogens, LangevinMiddle at 1/ps) and stores the ten heavy
atoms every 1 ps, centred, float32, nm. `write` makes from them

    snapshots.npz    positions [24000, 10, 3], shuffled, nm, float32: what the model is trained on
    reference.npz    statistics of the whole data: Ramachandran counts, autocorrelations, bonds, angles, their errors
    ala2-heavy.pdb   topology of the ten heavy atoms
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OPENMM_CPU_THREADS", "1")
import numpy as np
import openmm as mm
from openmm import app, unit

from diffusim.report import statistics
from diffusim.report.ensemble import Ensemble, Molecule, backbone_torsions

HERE = Path(__file__).parent
TEMPERATURE = 300 * unit.kelvin
STEP = 0.004 * unit.picosecond
STEPS_PER_FRAME = 250  # 1 ps
FRAMES_PER_CHUNK = 1000
EQUILIBRATION_FRAMES = 200
N_SNAPSHOTS = 24_000
SNAPSHOT_SEED = 20261121


def build():
    """The all-atom System. The native GBSAOBCForce is 36 times faster here than implicit/obc2.xml."""
    pdb = app.PDBFile(str(HERE / "ala2.pdb"))
    field = app.ForceField("amber14/protein.ff14SB.xml")
    system = field.createSystem(
        pdb.topology,
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
        hydrogenMass=3 * unit.amu,
    )
    nonbonded = next(f for f in system.getForces() if isinstance(f, mm.NonbondedForce))
    nonbonded.setReactionFieldDielectric(1.0)
    from openmm.app.internal.customgbforces import GBSAOBC2Force

    obc = mm.GBSAOBCForce()
    obc.setSoluteDielectric(1.0)
    obc.setSolventDielectric(78.5)
    radii = GBSAOBC2Force.getStandardParameters(pdb.topology)
    for i, (radius, scale) in enumerate(radii):
        obc.addParticle(nonbonded.getParticleParameters(i)[0], radius, scale)
    system.addForce(obc)
    return pdb, system


def walk(args):
    index, n_frames, out = args
    path = out / f"walker{index}.npy"
    checkpoint = out / f"walker{index}.chk"
    pdb, system = build()
    integrator = mm.LangevinMiddleIntegrator(TEMPERATURE, 1 / unit.picosecond, STEP)
    integrator.setRandomNumberSeed(4711 + index)
    simulation = app.Simulation(pdb.topology, system, integrator, mm.Platform.getPlatform("Reference"))
    heavy = [a.index for a in pdb.topology.atoms() if a.element.symbol != "H"]
    done = 0
    if checkpoint.exists():
        frames = np.lib.format.open_memmap(path, mode="r+")
        simulation.loadCheckpoint(str(checkpoint))
        done = simulation.currentStep // STEPS_PER_FRAME - EQUILIBRATION_FRAMES
    else:
        frames = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_frames, len(heavy), 3))
        simulation.context.setPositions(pdb.positions)
        simulation.minimizeEnergy()
        simulation.context.setVelocitiesToTemperature(TEMPERATURE, 4711 + index)
        simulation.step(EQUILIBRATION_FRAMES * STEPS_PER_FRAME)
    start, first = time.time(), done
    while done < n_frames:
        for _ in range(min(FRAMES_PER_CHUNK, n_frames - done)):
            simulation.step(STEPS_PER_FRAME)
            state = simulation.context.getState(positions=True)
            x = state.getPositions(asNumpy=True)._value[heavy]
            frames[done] = x - x.mean(axis=0)
            done += 1
        frames.flush()
        simulation.saveCheckpoint(str(checkpoint))
        rate = (done - first) / (time.time() - start)
        eta = (n_frames - done) / rate / 60
        print(f"walker {index}  {done / 1000:.0f} of {n_frames / 1000:.0f} ns  ETA {eta:.0f} min", flush=True)
    return index


def run(args):
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [(i, args.nanoseconds * 1000, args.out) for i in range(args.walkers)]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for index in pool.map(walk, jobs):
            print(f"walker {index} finished", flush=True)


def heavy_topology():
    """Topology of the ten heavy atoms, and their positions in ala2.pdb."""
    pdb = app.PDBFile(str(HERE / "ala2.pdb"))
    heavy = app.Modeller(pdb.topology, pdb.positions)
    heavy.delete([a for a in heavy.topology.atoms() if a.element.symbol == "H"])
    return heavy.topology, heavy.positions


def write(args):
    paths = sorted(args.out.glob("walker*.npy"))
    if len(paths) < 2:
        sys.exit(f"{args.out} has {len(paths)} walkers; run '{Path(__file__).name} run --out {args.out}' first.")
    walkers = np.stack([np.load(path) for path in paths])  # [n_walkers, n_frames, 10, 3]
    unwritten = [path.name for path, x in zip(paths, walkers, strict=True) if not x[-1].any()]
    if unwritten:
        sys.exit(f"{unwritten[0]} is not complete; let 'run' finish it.")
    n_walkers, n_frames = walkers.shape[:2]
    frames = walkers.reshape(-1, *walkers.shape[2:])

    topology, positions = heavy_topology()
    with open(HERE / "ala2-heavy.pdb", "w") as file:
        app.PDBFile.writeFile(topology, positions, file, keepIds=True)
    order = np.random.default_rng(SNAPSHOT_SEED).choice(len(frames), N_SNAPSHOTS, replace=False)
    np.savez_compressed(HERE / "snapshots.npz", positions=frames[order])

    particles = [
        {"name": a.name, "residue_index": a.residue.index, "mass": a.element.mass.value_in_unit(unit.dalton)}
        for a in topology.atoms()
    ]
    molecule = Molecule.from_particles(particles, [(a.index, b.index) for a, b in topology.bonds()])
    ensemble = Ensemble.measure(frames, molecule)
    phi, psi = (t.reshape(n_walkers, n_frames) for t in backbone_torsions(frames, molecule))
    lags = statistics.log_lags(5000)
    phi_correlation, phi_error = statistics.autocorrelation(phi.T, lags)
    psi_correlation, psi_error = statistics.autocorrelation(psi.T, lags)
    positive_error = statistics.standard_error((phi > 0).mean(axis=1))
    nanoseconds = n_walkers * n_frames / 1000
    np.savez_compressed(
        HERE / "reference.npz",
        note="alanine dipeptide, ten heavy atoms, amber14 + GBSA-OBC2, 300 K, "
        f"{n_walkers} walkers of {n_frames / 1000:g} ns, frames 1 ps apart; "
        "nm, ps, degrees; errors are standard errors over walkers",
        nanoseconds=nanoseconds,
        bonds=molecule.bonds,
        angles=molecule.angles,
        torsions=molecule.torsions,
        ramachandran_edges=statistics.RAMACHANDRAN_EDGES,
        lags=lags,  # ps
        phi_autocorrelation=phi_correlation,
        phi_autocorrelation_error=phi_error,
        psi_autocorrelation=psi_correlation,
        psi_autocorrelation_error=psi_error,
        phi_positive_error=positive_error,
        **ensemble.arrays(),
    )

    exchange = statistics.exchange(phi.T)
    counts = [statistics.ramachandran_counts(phi[w], psi[w]) for w in range(n_walkers)]
    halves = statistics.jensen_shannon(sum(counts[::2]), sum(counts[1::2]))
    sample = statistics.ramachandran_counts(phi.ravel()[order], psi.ravel()[order])
    chosen = statistics.jensen_shannon(sample, ensemble.ramachandran_counts)
    print(f"{len(frames):,} frames of {n_walkers} walkers, {nanoseconds:g} ns")
    print(f"phi > 0: {100 * ensemble.phi_positive:.2f} +- {100 * positive_error:.2f} %")
    print(f"passages to phi > 0: {exchange.into_positive}, back: {exchange.out_of_positive}")
    print(f"Jensen-Shannon divergence, 60x60 bins, of even from odd walkers: {halves:.4f}")
    print(f"Jensen-Shannon divergence, 60x60 bins, of the snapshots from the whole: {chosen:.4f}")
    for name in ("snapshots.npz", "reference.npz", "ala2-heavy.pdb"):
        print(f"{HERE / name}  {(HERE / name).stat().st_size / 1e6:.2f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "write"])
    parser.add_argument("--out", type=Path, default=Path("out/ala2/reference"))
    parser.add_argument("--walkers", type=int, default=8)
    parser.add_argument("--nanoseconds", type=int, default=66, help="per walker")
    args = parser.parse_args()
    {"run": run, "write": write}[args.action](args)


if __name__ == "__main__":
    sys.exit(main())
