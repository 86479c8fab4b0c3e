"""The model's own free energy of phi, by umbrella sampling and MBAR in the core: profile.npz.

    python model_profile.py                        # about ten minutes on two cores with nothing else to do

The examples must find it, and no metadynamics of OpenMM's or COLVARS's has a part in it. Replicas are held around 36
values of phi by harmonic umbrellas. Because psi would move too slowly by itself, they share a bias V(phi, psi) that
grows until its valleys are full, and is then frozen. MBAR takes umbrellas and V out of the frames that follow. Errors
are those of leaving out replicas.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from profiles import EDGES, KT, POPULATED, free_energy

import diffusim
from diffusim import alchemy
from diffusim.report import statistics
from diffusim.terminal import describe_model, describe_step, progress, say

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "ala2" / "ala2.safetensors"
PHI, PSI = (1, 3, 4, 6), (3, 4, 6, 8)  # C N CA C, N CA C N
N_GRID = 72  # points of the shared bias along each angle
SPACING = 2 * np.pi / N_GRID
LEVEL = 12.0  # kT: the shared bias does not grow beyond that
WIDTH = np.radians(12.0)  # of a hill
HEIGHT = 1.5  # kT, of all hills of one time together, at first
EVERY = 10  # steps between hills
N_WINDOWS, STIFFNESS = 36, 50.0  # kT/rad^2: a window is 8 degrees wide, and they are 10 apart
PULLING, FILLING = 5_000, 60_000  # steps
COUNTED_EVERY = 250  # steps between frames that count
PSI_ERROR = 0.1  # of <cos psi> under the bias, that a window should not exceed
PARTS = 6  # of the replicas of a window
SEED = 48291


def torsion(x: np.ndarray, atoms: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Angle [n] (radians, IUPAC) and its gradient [n, 4, 3] by the four atoms, of frames [n, n_atoms, 3].

    Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996).
    """
    r1, r2, r3, r4 = (x[:, a] for a in atoms)
    f, g, h = r1 - r2, r2 - r3, r4 - r3
    a, b = np.cross(f, g), np.cross(h, g)
    length = np.linalg.norm(g, axis=1, keepdims=True)
    aa, bb = (np.sum(v * v, axis=1, keepdims=True) for v in (a, b))
    angle = np.arctan2(np.sum(np.cross(b, a) * g, axis=1) / length[:, 0], np.sum(a * b, axis=1))
    first, last = -length / aa * a, length / bb * b
    fg, hg = (np.sum(v * g, axis=1, keepdims=True) for v in (f, h))
    across = fg / (aa * length) * a - hg / (bb * length) * b
    return angle, np.stack([first, -first + across, -last - across, last], axis=1)


class GridBias:
    """A bias V(phi, psi) in kT on a periodic grid, bilinear between its points; forces are the gradient of that."""

    def __init__(self):
        self.values = np.zeros((N_GRID, N_GRID))
        offsets = SPACING * ((np.arange(N_GRID) + N_GRID // 2) % N_GRID - N_GRID // 2)
        hill = np.exp(-0.5 * (offsets / WIDTH) ** 2)
        self._hill = np.fft.rfft2(np.outer(hill, hill))

    def look_up(self, phi: np.ndarray, psi: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """V and its derivatives by phi and psi, kT and kT/rad; angles in radians."""
        u, v = (((angle + np.pi) / SPACING) % N_GRID for angle in (phi, psi))
        i, j = u.astype(int) % N_GRID, v.astype(int) % N_GRID
        u, v, i1, j1 = u - np.floor(u), v - np.floor(v), (i + 1) % N_GRID, (j + 1) % N_GRID
        a, b, c, d = (self.values[k] for k in ((i, j), (i1, j), (i, j1), (i1, j1)))
        value = a * (1 - u) * (1 - v) + b * u * (1 - v) + c * (1 - u) * v + d * u * v
        return value, ((b - a) * (1 - v) + (d - c) * v) / SPACING, ((c - a) * (1 - u) + (d - b) * u) / SPACING

    def add_hills(self, phi: np.ndarray, psi: np.ndarray, height: float) -> None:
        """A hill where each replica is, lower where the bias is higher, and none beyond LEVEL."""
        i, j = (np.round((angle + np.pi) / SPACING).astype(int) % N_GRID for angle in (phi, psi))
        where = np.zeros((N_GRID, N_GRID))
        np.add.at(where, (i, j), height / len(phi))
        room = np.clip(1 - self.values / LEVEL, 0, None)
        self.values += np.fft.irfft2(np.fft.rfft2(where * room) * self._hill, s=where.shape)


def wrapped(angle: np.ndarray) -> np.ndarray:
    """In [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def step(
    simulation: diffusim.Simulation, bias: GridBias, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step under the umbrellas around `centres` and the shared bias; phi, psi (radians) and V (kT) before it."""
    x = simulation.positions
    (phi, of_phi), (psi, of_psi) = torsion(x, PHI), torsion(x, PSI)
    value, by_phi, by_psi = bias.look_up(phi, psi)
    by_phi = by_phi + STIFFNESS * wrapped(phi - centres)
    forces = np.zeros_like(x)
    forces[:, PHI] -= KT * by_phi[:, None, None] * of_phi
    forces[:, PSI] -= KT * by_psi[:, None, None] * of_psi
    simulation.step_biased(forces)
    return phi, psi, value


def unbiased(phi: np.ndarray, value: np.ndarray, windows: np.ndarray, start: np.ndarray | None = None):
    """Histogram of phi without umbrellas and V, over EDGES, of frames [n_frames, n_replicas]; and MBAR's free energies.

    `windows` [n_replicas] says which umbrella each replica was under.
    """
    order = np.argsort(windows, kind="stable")
    phi, value, windows = phi[:, order].T.ravel(), value[:, order].T.ravel(), np.repeat(windows[order], len(phi))
    centres = window_centres()
    reduced = 0.5 * STIFFNESS * wrapped(phi - centres[:, None]) ** 2 + value
    counts = np.bincount(windows, minlength=N_WINDOWS)
    mbar = alchemy._pymbar().MBAR(reduced, counts, initial_f_k=start, relative_tolerance=1e-7)
    log_weights = -np.logaddexp.reduce(mbar.f_k[:, None] - reduced + np.log(counts)[:, None], axis=0)
    weights = np.exp(log_weights - log_weights.max())
    return np.histogram(np.degrees(phi), EDGES, weights=weights / weights.sum())[0], mbar.f_k


def window_centres() -> np.ndarray:
    return np.radians((EDGES[1:] + EDGES[:-1]) / 2)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=12, help="of each window; a multiple of 6")
    parser.add_argument("--steps", type=int, default=200_000, help="steps under the frozen bias")
    parser.add_argument("--output", type=Path, default=HERE / "profile.npz")
    args = parser.parse_args(arguments)
    model = diffusim.Model(MODEL)
    say("model", describe_model(model, MODEL.name))
    simulation = diffusim.Simulation(model, n_replicas=N_WINDOWS * args.replicas, seed=SEED)
    say("step", describe_step(simulation.statistics, simulation.adapter))

    windows = np.repeat(np.arange(N_WINDOWS), args.replicas)
    centres = window_centres()[windows]
    start = model.start_positions
    known = torsion(start, PHI)[0]
    nearest = np.argsort(np.abs(wrapped(known - window_centres()[:, None])), axis=1)[:, : args.replicas].ravel()
    simulation.positions = start[nearest]
    way = wrapped(centres - known[nearest])
    bias, n_replicas = GridBias(), len(windows)
    with progress("filling", f"{n_replicas} × {PULLING + FILLING:,} steps", PULLING + FILLING) as advance:
        for n in range(PULLING):
            step(simulation, bias, known[nearest] + way * (n + 1) / PULLING)
            advance(1)
        for n in range(FILLING):
            phi, psi, _ = step(simulation, bias, centres)
            if n % EVERY == 0:  # coarse at first, fine at the end
                bias.add_hills(phi, psi, HEIGHT * min(1.0, 0.2 * FILLING / (n + 1)))
            advance(1)
    frames = []
    with progress("counting", f"{n_replicas} × {args.steps:,} steps", args.steps) as advance:
        for n in range(args.steps):
            phi, psi, value = step(simulation, bias, centres)
            if n >= args.steps // 10 and n % COUNTED_EVERY == 0:
                frames.append((phi, psi, value))
            advance(1)
    phi, psi, value = np.moveaxis(np.array(frames), 1, 0)
    p, f = unbiased(phi, value, windows)
    part = np.arange(n_replicas) % PARTS
    left_out = []
    for one in range(PARTS):
        kept = part != one
        left_out.append(unbiased(phi[:, kept], value[:, kept], windows[kept], f)[0])
    energies = np.array([free_energy(each) for each in left_out])
    error = np.sqrt((PARTS - 1) * np.var(energies, axis=0))
    half = len(p) // 2
    positive = [each[half:].sum() for each in left_out]
    spread = [statistics.standard_error(np.cos(psi)[:, windows == w].mean(axis=0)) for w in range(N_WINDOWS)]
    np.savez_compressed(
        args.output,
        model_sha256=model.sha256,
        free_energy=free_energy(p),
        error=error,
        positive=p[half:].sum(),
        psi_error=max(spread),
        positive_error=np.sqrt((PARTS - 1) * np.var(positive)),
    )
    energy = free_energy(p)
    populated = energy < energy.min() + POPULATED
    say("profile", f"{args.output}   errors up to {error[populated].max():.2f} kJ/mol where populated")
    say("φ > 0", f"{100 * p[half:].sum():.2f} ± {100 * np.sqrt((PARTS - 1) * np.var(positive)):.2f} %")
    for low, e, de in zip(EDGES, energy - energy.min(), error, strict=False):
        say("", f"φ {low + 5:7.1f}   {e:6.2f} ± {de:.2f} kJ/mol")
    say("ψ", f"standard error of ⟨cos ψ⟩ under the bias, worst window: {max(spread):.2f}")
    if max(spread) > PSI_ERROR:
        say("", f"ψ has not been everywhere (aim {PSI_ERROR:g}): more --steps, and do not trust the errors", "yellow")
    return 0


if __name__ == "__main__":
    sys.exit(main())
