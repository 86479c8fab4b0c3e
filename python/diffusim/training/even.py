"""Frames drawn evenly over the torsions, so that barriers are learned as well as basins (theory 16b).

A rate is the height of a barrier, and hardly a snapshot lies on one: an average over the snapshots does not see what is
wrong there. So a share of the frames is drawn evenly over the angle of a torsion. With gains that are the inverse of
how often the angle is in a bin,

    g(x) = 1 - share + share * mean over torsions of gain[bin of the torsion's angle]

is how often the frame x is drawn for each time that it comes. What is made of it, y = x + sigma xi, counts
g_sigma(y) / g(x), where g_sigma has the gains of the blurred frames. The divisor undoes the draw, and a factor that
depends on y alone leaves the best score at y what it is, that of all snapshots.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusim.report import statistics
from diffusim.training.config import Quadruplet

BINS = 36  # of 10 degrees
LEVELS = 16  # of the noise at which the gains are known; the nearest one is used
MOST_GAIN = 30.0  # a few frames are not worth many, however rare
SOFT = 1 / 3  # of the circle: a torsion that visits less has no barrier that matters


class EvenDraw(NamedTuple):
    """The torsions `quadruplets` [n_torsions, 4] and their bins: what to draw from, and what it is worth.

    `members` [n_torsions, n_frames] are all frames in the order of their bins; `first` where a bin starts in there,
    `counts` how many frames it has, `log_probabilities` that it is drawn, [n_torsions, BINS]; `drawn` [n_frames] is g
    of each frame, `gains` [LEVELS, n_torsions, BINS] are those of frames blurred by exp(`log_levels`) nm.
    """

    share: jax.Array
    quadruplets: jax.Array
    members: jax.Array
    first: jax.Array
    counts: jax.Array
    log_probabilities: jax.Array
    drawn: jax.Array
    log_levels: jax.Array
    gains: jax.Array

    def draw(self, key: jax.Array, n: int) -> jax.Array:
        """Indices of `n` frames."""
        key_even, key_torsion, key_bin, key_member, key_any = jax.random.split(key, 5)
        n_torsions, n_frames = self.members.shape
        torsion = jax.random.randint(key_torsion, (n,), 0, n_torsions)
        bins = jax.random.categorical(key_bin, self.log_probabilities[torsion])
        member = jax.random.randint(key_member, (n,), 0, self.counts[torsion, bins])
        evenly = self.members[torsion, self.first[torsion, bins] + member]
        any_of_them = jax.random.randint(key_any, (n,), 0, n_frames)
        return jnp.where(jax.random.uniform(key_even, (n,)) < self.share, evenly, any_of_them)

    def relevance(self, positions: jax.Array, log_noise: jax.Array) -> jax.Array:
        """g_sigma of one frame [n_particles, 3]."""
        a, b, c, d = jnp.moveaxis(positions[self.quadruplets], 1, 0)
        b1, b2, b3 = b - a, c - b, d - c
        normal = jnp.cross(b2, b3)
        sine = jnp.sum(b1 * normal, axis=-1) * jnp.linalg.norm(b2, axis=-1)
        angle = jnp.arctan2(sine, jnp.sum(jnp.cross(b1, b2) * normal, axis=-1))
        bins = _bins(angle, jnp.pi)
        level = jnp.argmin(jnp.abs(self.log_levels - log_noise))
        return 1 - self.share + self.share * jnp.mean(self.gains[level, jnp.arange(len(bins)), bins])


def even_draw(
    positions: np.ndarray, quadruplets: Sequence[Quadruplet], share: float, noise_range: tuple[float, float]
) -> EvenDraw | None:
    """To draw from frames [n_frames, n_particles, 3] and blur them by noise levels within `noise_range` (nm).

    None where no torsion of `quadruplets` goes far, or the share is 0.
    """
    if share == 0 or not quadruplets:
        return None
    bins = _torsion_bins(positions, quadruplets)
    soft = np.count_nonzero(_counts(bins), axis=1) > SOFT * BINS
    if not soft.any():
        return None
    quadruplets, bins = np.array(quadruplets)[soft], bins[soft]
    counts = _counts(bins)
    gains = _gains(counts)
    random = np.random.default_rng(0)
    levels = np.geomspace(*noise_range, LEVELS)
    blurred = (positions + level * random.standard_normal(positions.shape) for level in levels)
    with np.errstate(divide="ignore"):
        log_probabilities = np.log(gains * counts)
    return EvenDraw(
        share=jnp.float32(share),
        quadruplets=jnp.asarray(quadruplets),
        members=jnp.asarray(np.argsort(bins, axis=1, kind="stable").astype(np.int32)),
        first=jnp.asarray((np.cumsum(counts, axis=1) - counts).astype(np.int32)),
        counts=jnp.asarray(counts.astype(np.int32)),
        log_probabilities=jnp.asarray(log_probabilities, dtype=jnp.float32),
        drawn=jnp.asarray(1 - share + share * np.take_along_axis(gains, bins, axis=1).mean(axis=0), dtype=jnp.float32),
        log_levels=jnp.asarray(np.log(levels), dtype=jnp.float32),
        gains=jnp.asarray([_gains(_counts(_torsion_bins(x, quadruplets))) for x in blurred], dtype=jnp.float32),
    )


def _gains(counts: np.ndarray) -> np.ndarray:
    """What makes all bins [n_torsions, BINS] that were visited as frequent, up to a limit; 1 in the mean of the frames.

    A bin that was never visited counts as much as the rarest one.
    """
    n_frames = counts[0].sum()
    visited = np.count_nonzero(counts, axis=1)[:, None]
    gains = np.minimum(n_frames / (visited * np.maximum(counts, 1)), MOST_GAIN)
    return gains * n_frames / np.sum(gains * counts, axis=1, keepdims=True)


def _torsion_bins(positions: np.ndarray, quadruplets) -> np.ndarray:
    """[n_torsions, n_frames]."""
    return _bins(statistics.torsions(positions, quadruplets), 180.0).T


def _bins(angles, half_turn: float):
    """Bins of angles in [-half_turn, half_turn]."""
    return ((angles + half_turn) * (BINS / (2 * half_turn))).astype(int).clip(0, BINS - 1)


def _counts(bins: np.ndarray) -> np.ndarray:
    return np.array([np.bincount(one, minlength=BINS) for one in bins])
