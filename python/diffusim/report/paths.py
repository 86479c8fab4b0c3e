"""What only a path tells: memory, independent frames, Green-Kubo integrals and first passages.

Observables A are [n_frames, n_trajectories], real, or complex such as exp(i phi) of an angle, at evenly spaced frames
of stationary, independent trajectories. Times are in frames until `numbers` is told how long a frame is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffusim.report import statistics
from diffusim.report.ensemble import TORSION_EDGES, Ensemble, Molecule

WINDOW = 5.0  # correlation times that an integral goes on for: of an exponential it leaves out exp(-5) (Sokal)
REMEMBERED = 0.25  # of a correlation time: more than that after the window, and it is not resolved
PARTS = 10  # of the trajectories, for errors
BARRIER, DEPTH, SHARE = 2.0, 1.0, 0.005  # of core sets: kT, kT, least population of a basin
N_LAGS = 60


@dataclass(frozen=True)
class Memory:
    """rho(t) = Re <dA*(0) dA(t)> / <|dA|^2> with dA = A - <A>, and what follows from it; times in frames.

    correlation_time  t_A = int_0^inf rho dt, which of an exponential is its relaxation time; nan: not resolved
    effective_frames  how many independent frames the mean of A is worth, <|dA|^2> over the variance of that mean:
                      n_frames / (2 t_A); where t_A is not resolved, from the scatter of the trajectories' means
    green_kubo        int_0^inf Re <dA*(0) dA(t)> dt = <|dA|^2> t_A: the error of a time average over T is
                      sqrt(2 green_kubo / T)
    diffusion         <|dA|^2> / t_A: of a coordinate in a harmonic well, its diffusion coefficient

    Errors are standard errors. `running` is the integral of rho up to each of `lags`.
    """

    lags: np.ndarray
    rho: np.ndarray
    rho_error: np.ndarray
    running: np.ndarray
    variance: float
    correlation_time: float
    correlation_time_error: float
    effective_frames: float
    n_frames: int

    @property
    def green_kubo(self) -> float:
        return self.variance * self.correlation_time

    @property
    def diffusion(self) -> float:
        return self.variance / self.correlation_time

    def numbers(self, frame_time: float) -> dict:
        """For the JSON, in the unit of `frame_time`."""
        return {
            "lags": (self.lags * frame_time).tolist(),
            "autocorrelation": self.rho.tolist(),
            "autocorrelation_error": _or_none(self.rho_error),
            "variance": self.variance,
            "correlation_time": _or_none(self.correlation_time * frame_time),
            "correlation_time_error": _or_none(self.correlation_time_error * frame_time),
            "effective_frames": _or_none(self.effective_frames),
            "n_frames": self.n_frames,
            "green_kubo": _or_none(self.green_kubo * frame_time),
            "diffusion": _or_none(self.diffusion / frame_time),
        }


def memory(values: np.ndarray) -> Memory:
    """Of an observable [n_frames, n_trajectories].

    rho is summed up to the first lag that is WINDOW times the sum so far (Sokal). The correlation time is not resolved
    where there is no such lag within half a trajectory, or where much is still remembered after it, as by trajectories
    that never leave the basin they started in.
    """
    n_frames, n_trajectories = values.shape
    if np.all(values == values[0, 0]):
        raise ValueError(f"the observable is constant, {values[0, 0]}, so it has no memory")
    deviations = values - values.mean()
    variance = float(np.mean(np.abs(deviations) ** 2))
    spectrum = np.abs(np.fft.fft(deviations, n=2 * n_frames, axis=0)) ** 2
    n_lags = n_frames // 2 + 1
    products = np.fft.ifft(spectrum, axis=0).real[:n_lags] / (n_frames - np.arange(n_lags))[:, None]

    def integral(trajectories: np.ndarray) -> np.ndarray:
        rho = products[:, trajectories].mean(axis=1)
        return _running(rho / rho[0])

    everything = np.arange(n_trajectories)
    running = integral(everything)
    beyond = np.flatnonzero(np.arange(n_lags) >= WINDOW * np.maximum(running, 0.5))
    window = int(beyond[0]) if len(beyond) else None
    time = error = np.nan
    if window is not None:
        time = float(running[window])
        error, error_after = _errors(integral, window, time, n_trajectories)
        if running[-1] - time > REMEMBERED * time + 3 * error_after:
            time = error = np.nan
    if np.isfinite(time):
        frames = values.size / (2 * time)
    else:
        scatter = np.var(values.mean(axis=0), ddof=1) / n_trajectories if n_trajectories > 1 else np.nan
        frames = variance / scatter
    lags = statistics.log_lags(n_lags - 1, N_LAGS)
    rho = products[lags].mean(axis=1) / products[0].mean()
    rho_error = np.full(len(lags), np.nan)
    if n_trajectories > 1:  # of a ratio of means over trajectories
        rho_error = np.std(products[lags] - rho[:, None] * products[0], axis=1, ddof=1)
        rho_error /= np.sqrt(n_trajectories) * variance
    return Memory(
        lags=lags,
        rho=rho,
        rho_error=rho_error,
        running=running[lags],
        variance=variance,
        correlation_time=time,
        correlation_time_error=float(error),
        effective_frames=float(min(frames, values.size)),
        n_frames=values.size,
    )


def _errors(integral: Callable, window: int, time: float, n_trajectories: int) -> tuple[float, float]:
    """Standard errors of the integral up to the window, and of the rest of it."""
    if n_trajectories == 1:  # Madras and Sokal
        n_lags = len(integral(np.arange(1)))
        return tuple(time * np.sqrt((2 * lag + 1) / n_lags) for lag in (window, n_lags))
    parts = min(PARTS, n_trajectories)
    return (
        statistics.jackknife(lambda t: integral(t)[window], n_trajectories, parts),
        statistics.jackknife(lambda t: integral(t)[-1] - integral(t)[window], n_trajectories, parts),
    )


def _running(rho: np.ndarray) -> np.ndarray:
    """1/2 + sum of rho up to each lag in frames: twice that is what the variance of a mean grows by."""
    return np.cumsum(rho) - 0.5 * rho[0]


@dataclass(frozen=True)
class Passage:
    """Mean first-passage time from core set `start` to `end`, in frames; nan where no trajectory went.

    It is counted from the moment of entering `start` after `end`: the time spent with `start` as the core visited last,
    over the number of passages. Visits shorter than a frame are missed.
    """

    start: int
    end: int
    time: float
    error: float
    count: int


def first_passages(cores: np.ndarray, n_cores: int) -> list[Passage]:
    """Between every two of the core sets, from the one each trajectory is in at each frame [n_frames, n_trajectories].

    Cores are 0, 1, ...; -1 is none. The error is that of the rate over independent trajectories; of one trajectory,
    that of a Poisson process.
    """
    found = []
    for start in range(n_cores):
        for end in range(n_cores):
            if start == end:
                continue
            # Of these two cores alone: `start` lasts until `end` is reached, whatever lies between.
            only = np.where((cores == start) | (cores == end), cores, -1)
            counts, frames = statistics.passages(statistics.last_core(only), start, end)
            count = int(counts.sum())
            time = error = np.nan
            if count:
                time = float(frames.sum() / count)
                of_rate = statistics.rate(counts, frames)[1] if len(counts) > 1 else np.sqrt(count) / frames.sum()
                error = float(of_rate * time**2)
            found.append(Passage(start, end, time, error, count))
    return found


def core_sets(counts: np.ndarray) -> list[tuple[int, int]]:
    """Core sets of an angle from its histogram over the circle: (first, last) bin of each, first > last where it wraps.

    Basins are minima of -ln p, smoothed over three bins, that a barrier of BARRIER kT parts from any deeper one and
    that hold at least SHARE of all; the core of a basin are the bins around its minimum within DEPTH kT of it. In the
    order of their angle.
    """
    n = len(counts)
    p = (np.roll(counts, 1) + 2.0 * counts + np.roll(counts, -1)) / (4.0 * counts.sum())
    energy = -np.log(np.maximum(p, 1e-300))
    basin = np.full(n, -1)
    merged: dict[int, int] = {}  # minimum of a shallow basin -> that of the one it belongs to

    def root(minimum: int) -> int:
        while minimum in merged:
            minimum = merged[minimum]
        return minimum

    for i in np.argsort(energy, kind="stable"):  # water rises
        beside = {root(basin[j]) for j in ((i - 1) % n, (i + 1) % n) if basin[j] >= 0}
        deepest = min(beside, key=lambda m: energy[m], default=int(i))
        for other in beside - {deepest}:
            if energy[i] - energy[other] < BARRIER:
                merged[other] = deepest
        basin[i] = deepest
    owner = np.array([root(b) for b in basin])
    cores = []
    for minimum in sorted(set(owner.tolist())):
        if counts[owner == minimum].sum() < SHARE * counts.sum():
            continue
        low = energy <= energy[minimum] + DEPTH
        first = last = minimum
        while low[(first - 1) % n] and (first - 1) % n != last:
            first = (first - 1) % n
        while low[(last + 1) % n] and (last + 1) % n != first:
            last = (last + 1) % n
        cores.append((int(first), int(last)))
    return cores


def in_cores(angles: np.ndarray, cores: Sequence[tuple[int, int]]) -> np.ndarray:
    """The core set each angle (degrees) is in, -1 in none; bins are those of TORSION_EDGES."""
    n = len(TORSION_EDGES) - 1
    bins = np.clip(np.searchsorted(TORSION_EDGES, angles, side="right") - 1, 0, n - 1)
    core_of_bin = np.full(n, -1)
    for number, (first, last) in enumerate(cores):
        span = (last - first) % n + 1
        core_of_bin[(first + np.arange(span)) % n] = number
    return core_of_bin[bins]


@dataclass(frozen=True)
class Paths:
    """Path observables of trajectories whose frames are `frame_time` apart, in `unit`.

    `memories` are by name of the observable: torsions, as exp(i phi), and the radius of gyration (nm); `cores` are
    those of the torsions that have several, as bins of TORSION_EDGES. `ps_per_unit`: physical time of one `unit`, where
    a friction or a diffusion coefficient says so.
    """

    frame_time: float
    unit: str
    ps_per_unit: float | None
    memories: dict[str, Memory]
    cores: dict[str, list[tuple[int, int]]]
    passages: dict[str, list[Passage]]

    @property
    def slowest(self) -> str:
        """The observable whose memory lasts longest; one that is not resolved before all that are."""
        return max(
            self.memories,
            key=lambda name: (
                np.isnan(self.memories[name].correlation_time),
                np.nan_to_num(self.memories[name].correlation_time),
                self.memories[name].running[-1],
            ),
        )

    def numbers(self) -> dict:
        """For the JSON; times are in `time_unit`, core sets in degrees."""
        return {
            "time_unit": self.unit,
            "ps_per_time_unit": self.ps_per_unit,
            "observables": {name: one.numbers(self.frame_time) for name, one in self.memories.items()},
            "first_passages": {
                name: {
                    "cores": [core_degrees(core) for core in self.cores[name]],
                    "passages": [
                        {
                            "from": one.start,
                            "to": one.end,
                            "time": _or_none(one.time * self.frame_time),
                            "error": _or_none(one.error * self.frame_time),
                            "count": one.count,
                        }
                        for one in passages
                    ],
                }
                for name, passages in self.passages.items()
            },
        }


def paths(
    trajectories: np.ndarray,
    frame_time: float,
    unit: str,
    molecule: Molecule,
    reference: Ensemble,
    ps_per_unit: float | None = None,
) -> Paths | None:
    """Of trajectories [n_frames, n_trajectories, n_particles, 3]; core sets are those of the reference.

    None where there are fewer than 20 frames, which tell nothing.
    """
    n_frames, n_trajectories, n_particles, _ = trajectories.shape
    if n_frames < 20:
        return None
    flat = trajectories.reshape(-1, n_particles, 3)
    angles = statistics.torsions(flat, molecule.torsions).reshape(n_frames, n_trajectories, -1)
    names = torsion_names(molecule)
    memories = {name: memory(np.exp(1j * np.radians(angles[..., i]))) for i, name in enumerate(names)}
    sizes = statistics.radius_of_gyration(flat, molecule.masses).reshape(n_frames, n_trajectories)
    if np.ptp(sizes) > 0:
        memories["radius of gyration"] = memory(sizes.astype(float))
    cores, passages = {}, {}
    for i, name in enumerate(names):
        found = core_sets(reference.torsion_counts[i])
        if len(found) > 1:
            cores[name] = found
            passages[name] = first_passages(in_cores(angles[..., i], found), len(found))
    return Paths(frame_time, unit, ps_per_unit, memories, cores, passages)


def torsion_names(molecule: Molecule) -> list[str]:
    """Their particles, after phi or psi (numbered where there are several) where a torsion is about the same bond."""
    greek = {}
    for number, pair in enumerate(molecule.backbone, start=1):
        suffix = "" if len(molecule.backbone) == 1 else str(number)
        for symbol, torsion in zip("φψ", pair, strict=True):
            greek[frozenset(torsion[1:3])] = f"{symbol}{suffix} "
    names: list[str] = []
    for torsion in molecule.torsions:
        name = greek.get(frozenset(torsion[1:3]), "") + "–".join(molecule.names[i] for i in torsion)
        names.append(name if name not in names else f"{name} ({torsion[1]})")
    return names


def core_degrees(core: tuple[int, int]) -> list[float]:
    """(first, last) bin as [from, to] in degrees; from > to where the core wraps around 180."""
    return [float(TORSION_EDGES[core[0]]), float(TORSION_EDGES[core[1] + 1])]


def _or_none(value):
    """nan as None, which JSON has."""
    if np.ndim(value):
        return [_or_none(v) for v in value]
    return None if np.isnan(value) else float(value)
