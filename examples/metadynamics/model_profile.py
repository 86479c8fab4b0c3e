"""The model's own free energy of phi, by replicas under one bias in the core: profile.npz.

    python model_profile.py                        # about five minutes on two cores with nothing else to do

The examples must find it, and no metadynamics of OpenMM's or COLVARS's has a part in it. Many replicas share a bias
V(phi, psi) that grows until its valleys are full. It is then frozen, and every frame that follows counts exp(V/kT).
Errors are those of leaving out a tenth of the replicas at a time; halves of the run that differ by more say that the
replicas have not been everywhere. They move by `langevin`, which samples the same density as overdamped steps and goes
through psi some ten times as fast.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from profiles import EDGES, KT, POPULATED, difference, positive, weights_of_replicas, with_error

import diffusim
from diffusim.terminal import describe_model, describe_step, progress, say

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "ala2" / "ala2.safetensors"
PHI, PSI = (1, 3, 4, 6), (3, 4, 6, 8)  # C N CA C, N CA C N
FRICTION_RATE, TIME_STEP = 2.0, 0.002  # 1/ps, ps
N_GRID = 72  # points of the bias along each angle
SPACING = 2 * np.pi / N_GRID
LEVEL = 12.0  # kT: the bias does not grow beyond that
WIDTH = np.radians(12.0)  # of a hill
HEIGHT = 1.5  # kT, of all hills of one time together, at first
EVERY = 10  # steps between hills
COUNTED_EVERY = 100  # steps between frames that count
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


def step(simulation: diffusim.Simulation, bias: GridBias, torsions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step under the bias on two `torsions`; phi, psi (radians) and V (kT) before it."""
    x = simulation.positions
    (phi, of_phi), (psi, of_psi) = (torsion(x, atoms) for atoms in torsions)
    value, by_phi, by_psi = bias.look_up(phi, psi)
    forces = np.zeros_like(x)
    for atoms, slope, gradient in zip(torsions, (by_phi, by_psi), (of_phi, of_psi), strict=True):
        forces[:, atoms] -= KT * slope[:, None, None] * gradient
    simulation.step_biased(forces)
    return phi, psi, value


def under_one_bias(
    model: diffusim.Model, n_replicas: int, filling: int, steps: int, torsions=(PHI, PSI)
) -> tuple[np.ndarray, np.ndarray]:
    """phi in degrees and the bias in kJ/mol of frames under the bias that `filling` steps made, [n, n_replicas]."""
    simulation = diffusim.Simulation(
        model,
        n_replicas=n_replicas,
        adapter="langevin",
        friction_rate=FRICTION_RATE,
        time_step=TIME_STEP,
        seed=SEED,
    )
    say("step", describe_step(simulation.statistics, simulation.adapter))
    bias = GridBias()
    with progress("filling", f"{n_replicas} × {filling:,} steps", filling) as advance:
        for n in range(filling):
            phi, psi, _ = step(simulation, bias, torsions)
            if n % EVERY == 0:  # coarse at first, fine at the end
                bias.add_hills(phi, psi, HEIGHT * min(1.0, 0.2 * filling / (n + 1)))
            advance(1)
    frames = []
    with progress("counting", f"{n_replicas} × {steps:,} steps", steps) as advance:
        for n in range(steps):
            frame = step(simulation, bias, torsions)
            if n % COUNTED_EVERY == 0:
                frames.append(frame)
            advance(1)
    phi, _, value = np.moveaxis(np.array(frames), 1, 0)
    return np.degrees(phi), KT * value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=400)
    parser.add_argument("--filling", type=int, default=40_000, help="steps in which the bias grows")
    parser.add_argument("--steps", type=int, default=80_000, help="steps under the frozen bias")
    parser.add_argument("--output", type=Path, default=Path("profile.npz"))
    args = parser.parse_args(arguments)
    model = diffusim.Model(MODEL)
    say("model", describe_model(model, MODEL.name))
    phi, value = under_one_bias(model, args.replicas, args.filling, args.steps)
    parts = weights_of_replicas(phi, value)
    energy, error = with_error(parts)
    share, share_error = positive(parts)
    half = len(phi) // 2
    halves = [with_error(weights_of_replicas(phi[part], value[part])) for part in (slice(half), slice(half, None))]
    apart, worst, worst_error = difference(*halves[0], *halves[1])
    np.savez_compressed(
        args.output,
        model_sha256=model.sha256,
        free_energy=energy,
        error=error,
        positive=share,
        positive_error=share_error,
        halves_apart=apart,
    )
    populated = energy < energy.min() + POPULATED
    say("profile", f"{args.output}   errors up to {error[populated].max():.2f} kJ/mol where populated")
    say("φ > 0", f"{100 * share:.2f} ± {100 * share_error:.2f} %")
    say("sign", f"of φ changed {np.count_nonzero(np.diff(np.sign(phi), axis=0)):,} times from frame to frame")
    say("halves", f"of the run: {apart:.2f} kJ/mol apart (rms), {worst:.2f} ± {worst_error:.2f} at most")
    for low, e, de in zip(EDGES, energy - energy.min(), error, strict=False):
        say("", f"φ {low + 5:7.1f}   {e:6.2f} ± {de:.2f} kJ/mol")
    return 0


if __name__ == "__main__":
    sys.exit(main())
