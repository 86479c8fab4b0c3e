"""The argon-like Lennard-Jones fluid of this example, in OpenMM, and what is measured of it.

Lengths in nm, energies in kJ/mol, pressure in bar. The potential is cut at 2.5 diameters, switched off from 2.2.
"""

import os
import time

os.environ.setdefault("OPENMM_CPU_THREADS", "1")
import numpy as np
import openmm as mm
from openmm import unit
from scipy.spatial import cKDTree

TEMPERATURE = 120.0  # K
MASS = 39.948  # amu
DIAMETER = 0.3405  # nm
WELL_DEPTH = 0.99607  # kJ/mol: 119.8 K
REDUCED_DENSITY = 0.8
CUTOFF, SWITCH = 2.5 * DIAMETER, 2.2 * DIAMETER  # nm
STEP = 0.01  # ps
STEPS_PER_FRAME = 100  # 1 ps: atoms have moved by a third of their diameter
KT = 0.008314462618 * TEMPERATURE
BAR = 16.6053906717  # bar in kJ/(mol nm^3)


def cell_length(n_atoms: int) -> float:
    """Edge of the cubic cell, nm."""
    return (n_atoms * DIAMETER**3 / REDUCED_DENSITY) ** (1 / 3)


def lattice(n_atoms: int) -> np.ndarray:
    """Face-centred cubic positions [n_atoms, 3]; n_atoms is four times a cube."""
    n = round((n_atoms / 4) ** (1 / 3))
    if 4 * n**3 != n_atoms:
        raise SystemExit(f"{n_atoms} atoms do not fill a face-centred cubic lattice; take 4 n^3, such as 256 or 4000")
    corners = np.stack(np.meshgrid(*3 * [np.arange(n)], indexing="ij"), axis=-1).reshape(-1, 1, 3)
    basis = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    return (corners + basis).reshape(-1, 3) * cell_length(n_atoms) / n


def context(n_atoms: int, seed: int) -> mm.Context:
    """The fluid on its lattice, with velocities."""
    system = mm.System()
    system.setDefaultPeriodicBoxVectors(*np.eye(3) * cell_length(n_atoms))
    force = mm.NonbondedForce()
    force.setNonbondedMethod(mm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(CUTOFF)
    force.setUseSwitchingFunction(True)
    force.setSwitchingDistance(SWITCH)
    force.setUseDispersionCorrection(False)
    for _ in range(n_atoms):
        system.addParticle(MASS)
        force.addParticle(0.0, DIAMETER, WELL_DEPTH)
    system.addForce(force)
    integrator = mm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, STEP)
    integrator.setRandomNumberSeed(seed)
    made = mm.Context(system, integrator, mm.Platform.getPlatform("CPU"))
    made.setPositions(lattice(n_atoms))
    made.setVelocitiesToTemperature(TEMPERATURE, seed)
    return made


def frames(n_atoms: int, n_frames: int, n_equilibration: int, seed: int) -> np.ndarray:
    """Snapshots [n_frames, n_atoms, 3], nm, float32, wrapped into the cell."""
    fluid = context(n_atoms, seed)
    found = np.empty((n_frames, n_atoms, 3), dtype=np.float32)
    fluid.getIntegrator().step(n_equilibration * STEPS_PER_FRAME)
    start = time.monotonic()
    for i in range(n_frames):
        fluid.getIntegrator().step(STEPS_PER_FRAME)
        state = fluid.getState(positions=True, enforcePeriodicBox=True)
        found[i] = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        if (i + 1) % max(1, n_frames // 10) == 0:
            print(f"{i + 1} of {n_frames} frames, {time.monotonic() - start:.0f} s", flush=True)
    return found


def pair_virial(r: np.ndarray) -> np.ndarray:
    """-r dU/dr (kJ/mol) of a pair at distance r, with OpenMM's switching function."""
    sixth = (DIAMETER / r) ** 6
    energy, slope = 4 * WELL_DEPTH * (sixth**2 - sixth), -24 * WELL_DEPTH * (2 * sixth**2 - sixth) / r
    u = np.clip((r - SWITCH) / (CUTOFF - SWITCH), 0, 1)
    switch = 1 - 10 * u**3 + 15 * u**4 - 6 * u**5
    switch_slope = (-30 * u**2 + 60 * u**3 - 30 * u**4) / (CUTOFF - SWITCH)
    return np.where(r < CUTOFF, -r * (slope * switch + energy * switch_slope), 0.0)


def pair_distances(frame: np.ndarray, length: float, most: float) -> np.ndarray:
    """Distances below `most` of all pairs of a frame in a cubic cell."""
    tree = cKDTree(frame.astype(float) % length, boxsize=length)
    pairs = tree.query_pairs(most, output_type="ndarray")
    d = frame[pairs[:, 0]].astype(float) - frame[pairs[:, 1]]
    d -= length * np.round(d / length)
    return np.sqrt((d * d).sum(axis=-1))


def radial_distribution(trajectory: np.ndarray, length: float, edges: np.ndarray) -> np.ndarray:
    """g(r) of each frame, [n_frames, n_bins]."""
    n = trajectory.shape[1]
    ideal = n * (n - 1) * 4 / 3 * np.pi * np.diff(edges**3) / length**3
    trees = [cKDTree(f.astype(float) % length, boxsize=length) for f in trajectory]
    return np.array([np.diff(t.count_neighbors(t, edges)) / ideal for t in trees])


def pressures(trajectory: np.ndarray, length: float) -> np.ndarray:
    """Pressure of each frame, bar: (n kT + virial / 3) / volume."""
    virials = np.array([pair_virial(pair_distances(f.astype(float), length, CUTOFF)).sum() for f in trajectory])
    return (trajectory.shape[1] * KT + virials / 3) / length**3 * BAR
