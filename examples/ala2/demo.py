"""The main job, end to end: a learned score moves alanine dipeptide in OpenMM, and 1,000 replicas of it in the core.

    python examples/ala2/demo.py          # two to three minutes on two cores; writes out/ala2/

The model was trained on 24,000 shuffled snapshots (train.sh), from which nobody can read an order in time. What it does
in motion is compared with the 528 ns of all-atom OpenMM that the snapshots come from (make_reference.py).
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

import diffusim
import diffusim.openmm
from diffusim.commands.report import show
from diffusim.report import plots, statistics
from diffusim.report.ensemble import Ensemble, Molecule, backbone_torsions, compare
from diffusim.terminal import console, describe_model, describe_step, progress, say, seconds

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = ROOT / "out" / "ala2"
MODEL = HERE / "ala2.safetensors"

FRICTION = 10.0  # 1/ps
SEED = 48291
OPENMM_STEPS = 2_000_000
OPENMM_EVERY = 1_000
# Many replicas for populations, and fewer but longer ones for what is remembered over time.
N_REPLICAS, REPLICA_STEPS, BURN_IN, EVERY = 1_000, 30_000, 5_000, 100
N_LONG, LONG_STEPS, LONG_EVERY = 128, 300_000, 100


def run_openmm(model: diffusim.Model) -> tuple[float, bool]:
    """One trajectory through openmm.app.Simulation; steps per second, and whether the core gives the same one."""
    simulation = diffusim.openmm.simulation(
        MODEL,
        temperature=model.training_temperature * unit.kelvin,
        frictionCoeff=FRICTION / unit.picosecond,
        seed=SEED,
    )
    platform = simulation.context.getPlatform().getName()
    say("OpenMM", f"{openmm.__version__}, platform {platform}, friction {FRICTION:g} /ps, seed {SEED}")
    state = simulation.context.getState(positions=True)
    with open(OUT / "topology.pdb", "w") as file:
        app.PDBFile.writeFile(simulation.topology, state.getPositions(), file)
    log = app.StateDataReporter(str(OUT / "log.csv"), 10_000, step=True, time=True, temperature=True, speed=True)
    simulation.reporters += [app.DCDReporter(str(OUT / "trajectory.dcd"), OPENMM_EVERY), log]
    started = time.perf_counter()
    with progress("running", f"{OPENMM_STEPS:,} steps", OPENMM_STEPS) as advance:
        for _ in range(0, OPENMM_STEPS, 20_000):
            simulation.step(20_000)
            advance(20_000)
    rate = OPENMM_STEPS / (time.perf_counter() - started)

    core = diffusim.Simulation(model, friction_rate=FRICTION, seed=SEED)
    core.step(OPENMM_STEPS)
    last = simulation.context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    return rate, bool(np.array_equal(core.positions[0], last))


def run_core(label: str, simulation: diffusim.Simulation, n_steps: int, every: int) -> tuple[np.ndarray, float]:
    """Frames [n_saved, n_replicas, n_particles, 3], and replica-steps per second."""
    n_replicas = simulation.n_replicas
    frames = np.empty((n_steps // every, n_replicas, simulation.model.n_particles, 3), dtype=np.float32)
    started = time.perf_counter()
    with progress(label, f"{n_replicas:,} × {n_steps:,} steps", n_replicas * n_steps, "replica-steps") as advance:
        for frame in frames:
            simulation.step(every)
            frame[:] = simulation.positions
            advance(n_replicas * every)
    return frames, n_replicas * n_steps / (time.perf_counter() - started)


def torsions_of(frames: np.ndarray, molecule: Molecule) -> list[np.ndarray]:
    """phi and psi [n_saved, n_replicas] of frames [n_saved, n_replicas, n_particles, 3], degrees."""
    flat = backbone_torsions(frames.reshape(-1, *frames.shape[2:]), molecule)
    return [torsion.reshape(frames.shape[:2]) for torsion in flat]


def correlation(phi: np.ndarray, psi: np.ndarray, frame_length: float) -> plots.Correlation:
    """Of torsions [n_frames, n_trajectories] whose frames are `frame_length` apart."""
    lags = statistics.log_lags(len(phi) // 2)
    return plots.Correlation(
        lags * frame_length, *statistics.autocorrelation(phi, lags), *statistics.autocorrelation(psi, lags)
    )


def reference_correlation() -> plots.Correlation:
    """As stored with the reference, times in ps."""
    with np.load(HERE / "reference.npz") as data:
        curves = [data[f"{angle}_autocorrelation{what}"] for angle in ("phi", "psi") for what in ("", "_error")]
        return plots.Correlation(data["lags"].astype(float), *curves)


def scale_of(reference: plots.Correlation, simulated: plots.Correlation) -> float:
    """nm^2 per ps at which psi is forgotten equally fast, in the middle of what both curves resolve."""
    level = (reference.psi[1] + max(reference.psi.min(), simulated.psi.min())) / 2

    def when(curve):
        return np.interp(-level, -np.minimum.accumulate(curve.psi), curve.times)

    return when(simulated) / when(reference)


def main() -> int:
    started = time.perf_counter()
    OUT.mkdir(parents=True, exist_ok=True)
    model = diffusim.Model(MODEL)
    molecule = Molecule.from_particles(model.metadata["particles"], model.metadata["bonds"])
    short, long = (
        diffusim.Simulation(model, friction_rate=FRICTION, n_replicas=n, seed=SEED) for n in (N_REPLICAS, N_LONG)
    )
    tau = short.statistics.effective_step
    say("model", describe_model(model, str(MODEL.relative_to(ROOT))))
    say("step", describe_step(short.statistics, short.adapter))

    rate, identical = run_openmm(model)
    say("core", f"same seed, same steps: {'identical' if identical else 'DIFFERENT'} positions after {OPENMM_STEPS:,}")
    frames, replica_rate = run_core("replicas", short, REPLICA_STEPS, EVERY)
    frames = frames[BURN_IN // EVERY :]
    long_frames, _ = run_core("memory", long, LONG_STEPS, LONG_EVERY)

    reference = Ensemble.load(HERE / "reference.npz")
    positions = frames.reshape(-1, model.n_particles, 3)
    simulated = Ensemble.measure(positions, molecule, like=reference)
    numbers = compare(reference, simulated)
    phi, psi = torsions_of(frames, molecule)
    independent = statistics.independent_frames(phi, psi)
    phi_long, psi_long = torsions_of(long_frames, molecule)
    theirs = reference_correlation()
    ours = correlation(phi_long, psi_long, LONG_EVERY * tau)
    exchange = statistics.exchange(phi_long)
    report = numbers | {
        "steps": OPENMM_STEPS,
        "steps_per_second": rate,
        "identical_in_core": identical,
        "replicas": N_REPLICAS,
        "replica_steps": REPLICA_STEPS,
        "replica_steps_per_second": replica_rate,
        "long_replicas": N_LONG,
        "long_steps": LONG_STEPS,
        "effective_step": tau,
        "adapter": short.adapter,
        "friction_rate": FRICTION,
        "seed": SEED,
        "independent_frames": independent,
        "js_floor_independent": statistics.jensen_shannon_floor(reference.ramachandran_counts, independent),
        "phi_positive_simulated_error": statistics.standard_error((phi > 0).mean(axis=0)),
        "phi_positive_reference_error": float(np.load(HERE / "reference.npz")["phi_positive_error"]),
        "passages_into_phi_positive": exchange.into_positive,
        "passages_out_of_phi_positive": exchange.out_of_positive,
        "nm2_per_ps_by_psi": scale_of(theirs, ours),
        "configurational_temperature": model.configurational_temperature(positions[:: len(positions) // 200]),
    }
    plots.write(
        OUT / "report.png",
        f"Alanine dipeptide: {N_REPLICAS:,} replicas × {REPLICA_STEPS:,} steps of a score learned from snapshots, "
        f"against {reference.n_frames / 1000:,.0f} ns of all-atom OpenMM",
        reference,
        simulated,
        numbers,
        molecule,
        corner=lambda axes: plots.autocorrelation(axes, theirs, ours, report["nm2_per_ps_by_psi"]),
    )
    report["seconds"] = time.perf_counter() - started
    (OUT / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    say("report", "out/ala2/report.png  report.json  trajectory.dcd  topology.pdb  log.csv")
    show(numbers, molecule)
    explain(report)
    return 0 if identical else 1


def explain(report: dict) -> None:
    """What the numbers do not say by themselves."""

    def percent(which: str) -> str:
        return f"{100 * report[f'phi_positive_{which}']:.1f} ± {100 * report[f'phi_positive_{which}_error']:.1f} %"

    lines = (
        "{n_frames:,} frames scatter like {independent_frames:,.0f} independent ones; their floor is "
        "{js_floor_independent:.4f}.",
        f"φ > 0: simulated {percent('simulated')}, reference {percent('reference')}. The replicas start from training",
        "snapshots; {long_replicas} × {long_steps:,} steps saw {passages_into_phi_positive} passages into φ > 0 and "
        "{passages_out_of_phi_positive} out of it: the starts are remembered.",
        "Overdamped time is no physical time: ψ forgets in {nm2_per_ps_by_psi:.2g} nm² as in 1 ps of the reference.",
        "OpenMM {steps_per_second:,.0f} steps/s, replicas {replica_steps_per_second:,.0f} steps/s, "
        f"in all {seconds(report['seconds'])}.",
    )
    console.print()
    for line in lines:
        console.print(f"  {line.format(**report)}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())
