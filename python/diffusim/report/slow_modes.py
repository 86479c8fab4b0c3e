"""The slowest motions: time-lagged independent components (TICA) and their implied timescales, by deeptime."""

from dataclasses import dataclass

import numpy as np

from diffusim.report import statistics
from diffusim.report.ensemble import Molecule

N_COMPONENTS = 2
N_TIMESCALES = 3
MOST_PAIRS = 300  # distances, where there are no torsions
N_BINS = 80
FIRST_LAG = 1 / 20  # of the length of a trajectory: the lag of the components, and the longest lag is five times that


class NotInstalled(RuntimeError):
    """deeptime is missing; the message says how to install it."""


@dataclass(frozen=True)
class SlowModes:
    """Components of one set of trajectories. `timescales` [n_lags, n] (nan: not resolved) and `lags` are in `unit`.

    `edges` [n_components, n_bins + 1] and, by name of an ensemble, `counts` [n_components, n_bins] are histograms of
    the components; the first has the longest timescale.
    """

    unit: str
    lags: np.ndarray
    timescales: np.ndarray
    edges: np.ndarray
    counts: dict[str, np.ndarray]

    def numbers(self) -> dict:
        """For the JSON: timescales, and how far the histograms of each ensemble are from those of the data."""
        entry = {
            "time_unit": self.unit,
            "lags": self.lags.tolist(),
            "timescales": [[None if np.isnan(t) else float(t) for t in row] for row in self.timescales],
        }
        reference = self.counts["data"]
        for name, counts in self.counts.items():
            if name != "data":
                pairs = list(zip(reference, counts, strict=True))
                entry[f"js_{name}"] = [statistics.jensen_shannon(p, q) for p, q in pairs]
                entry[f"js_floor_{name}"] = [statistics.jensen_shannon_floor(p, q.sum()) for p, q in pairs]
        return entry


def slow_modes(
    trajectories: np.ndarray, frame_time: float, unit: str, others: dict[str, np.ndarray], molecule: Molecule
) -> SlowModes | None:
    """Of trajectories [n_frames, n_trajectories, n_particles, 3] whose frames are `frame_time` (in `unit`) apart.

    Frames [n, n_particles, 3] of `others` are projected on the same components; "data" among them are the reference.
    None where the trajectories are too short to tell. Raises NotInstalled.
    """
    try:
        from deeptime.decomposition import TICA
    except ImportError as error:
        raise NotInstalled(
            f"no slow modes: deeptime is missing ({error}). Install it: pip install 'diffusim[report]'"
        ) from None

    n_frames, n_trajectories, n_particles, _ = trajectories.shape
    lag = max(1, round(FIRST_LAG * n_frames))
    if n_frames < 20:
        return None
    features = _features(trajectories.reshape(-1, n_particles, 3), molecule).reshape(n_frames, n_trajectories, -1)
    ordered = [features[:, i].astype(np.float64) for i in range(n_trajectories)]
    n_components = min(N_COMPONENTS, features.shape[-1])

    def fitted(lag: int):
        return TICA(lagtime=lag, dim=n_components).fit_from_timeseries(ordered).fetch_model()

    lags = np.unique(np.geomspace(1, 5 * lag, 8).round().astype(int))
    lags = lags[lags < n_frames // 2]
    timescales = np.full((len(lags), N_TIMESCALES), np.nan)
    for row, each in zip(timescales, lags, strict=True):
        found = np.sort(np.nan_to_num(np.real(fitted(int(each)).timescales()), posinf=0.0))[::-1][:N_TIMESCALES]
        row[: len(found)] = np.where(found > 0, found, np.nan)
    model = fitted(lag)
    projected = {"simulated": model.transform(np.concatenate(ordered))}
    projected |= {name: model.transform(_features(x, molecule).astype(np.float64)) for name, x in others.items()}
    low, high = (np.array([extreme(p, axis=0) for p in projected.values()]) for extreme in (np.min, np.max))
    edges = np.linspace(low.min(axis=0), high.max(axis=0) + 1e-9, N_BINS + 1, axis=1)
    counts = {
        name: np.array([np.histogram(column, bins)[0] for column, bins in zip(p.T, edges, strict=True)])
        for name, p in projected.items()
    }
    return SlowModes(unit, lags * frame_time, timescales * frame_time, edges, counts)


def _features(positions: np.ndarray, molecule: Molecule) -> np.ndarray:
    """Sines and cosines of the torsions; pair distances where there are none. [n_frames, n_features]"""
    if molecule.torsions:
        angles = np.radians(statistics.torsions(positions, molecule.torsions))
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    pairs = list(zip(*np.triu_indices(positions.shape[1], 1), strict=True))
    some = np.random.default_rng(0).permutation(len(pairs))[:MOST_PAIRS]
    return statistics.bond_lengths(positions, [pairs[i] for i in sorted(some)])
