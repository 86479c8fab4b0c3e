"""The training loop: Adam with warm-up and cosine decay, averaged weights, held-out loss, early stop, exact resume.

Every random draw is a function of (seed, step), so a training that was interrupted and resumed ends in the same weights
as one that was not, and a seed gives the same weights again on the same machine.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from diffusim import model_file
from diffusim.snapshots import MOLAR_GAS_CONSTANT
from diffusim.training import chains as _chains
from diffusim.training.chains import Chains
from diffusim.training.choices import permutation_table
from diffusim.training.config import SettingsError, TrainingSettings, as_dict
from diffusim.training.even import EvenDraw, even_draw
from diffusim.training.kinds import Network, Weights
from diffusim.training.losses import (
    GROUP,
    Frames,
    denoising_loss,
    fokker_planck_loss,
    relative_entropy_loss,
    volume_loss,
)

BLOCK = 50  # steps per compiled call: how often progress is shown and Ctrl-C is heard
VOLUME_BLUR = 0.3  # of the spread of ln V
BAR = 16.6053906717  # bar in kJ/(mol nm^3)
CLIP = 1.0  # largest norm of a gradient
FOKKER_PLANCK_FRAMES = 64  # per step, at most
FOKKER_PLANCK_RANGE = 20.0  # its noise levels go from noise_min to this times noise_min, where denoising alone is noisy
EVALUATION_DRAWS = 4  # noise draws per held-out frame
MOST_HELD_OUT = 2000  # frames
LEAST_SNAPSHOTS = 80
BANDS = 8  # of the noise levels, in the final report
MOST_RECOVERIES = 3  # times that the learning rate is halved after a loss that is not finite


class TrainingError(RuntimeError):
    """Training had to stop; the message says at which step, why, and what to do. `result` is the best so far."""

    def __init__(self, message: str, result: "TrainingResult | None" = None):
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Progress:
    """One report: after `step` of `steps` steps. `loss` is a mean over some steps, the others the last evaluation's.

    `note` is a sentence for the user, where something happened.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    held_out: float | None
    residual: float | None
    note: str | None = None


@dataclass(frozen=True)
class Band:
    """Held-out losses per coordinate for noise levels from `noise_min` to `noise_max` nm."""

    noise_min: float
    noise_max: float
    denoising: float
    fokker_planck: float | None


@dataclass(frozen=True)
class TrainingResult:
    """The weights with the lowest held-out loss, or with relative entropy the last, and how training ended: "finished",
    "early", "interrupted", "failed".

    `bands` are the losses of these weights along the noise levels. Where the Fokker-Planck weight is 0, its losses are
    None.
    """

    weights: Weights
    step: int
    best_step: int
    held_out: float
    residual: float | None
    stopped: str
    recoveries: int
    bands: tuple[Band, ...]


class _State(NamedTuple):
    """All that training carries from step to step; what a checkpoint holds."""

    step: jax.Array
    weights: Weights
    optimizer: tuple
    average: Weights
    best: Weights
    best_step: jax.Array
    best_held_out: jax.Array
    best_residual: jax.Array
    idle_evaluations: jax.Array
    recoveries: jax.Array
    chains: Chains | None


class _Constants(NamedTuple):
    """What is the same in every step: the training frames, their force variance (nm^2), the permutations, the key, how
    frames are drawn; where volumes are learned, the blur of ln V and P / kT0 (1/nm^3)."""

    frames: Frames
    force_variance: jax.Array
    permutations: tuple[jax.Array, ...]
    key: jax.Array
    even: EvenDraw | None
    volumes: tuple[jax.Array, jax.Array] | None


def train(
    network: Network,
    frames: Frames,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> TrainingResult:
    """Train `network` on `frames` of at least 80 snapshots.

    `settings` are complete (choices.complete). After each evaluation the state goes to `checkpoint`; with `resume` it
    starts from there. Ctrl-C ends it with the best weights so far. A loss that is not finite sends it back to the last
    evaluation with half the learning rate, at most three times. Raises TrainingError when that does not help,
    SettingsError when the checkpoint belongs to another training.
    """
    fingerprint = _fingerprint(settings, frames)
    frames = _prepared(frames, network.translation_invariant)
    n_frames = len(frames.positions)
    if n_frames < LEAST_SNAPSHOTS:
        raise SettingsError(
            f"there are {n_frames} snapshots; training needs {LEAST_SNAPSHOTS}, a good model thousands."
        )
    order = np.random.default_rng(settings.seed).permutation(n_frames)
    n_held_out = min(max(GROUP, round(settings.held_out * n_frames)), MOST_HELD_OUT)
    held_out, training = (jax.tree.map(jnp.asarray, frames.take(i)) for i in (order[:n_held_out], order[n_held_out:]))
    keys = jax.random.split(jax.random.key(settings.seed), 5)
    key_start, key_steps, key_evaluation, key_permutations, key_bands = keys
    key_chains = jax.random.fold_in(key_start, 1)
    constants = _Constants(
        frames=training,
        force_variance=jnp.ones(()) if training.forces is None else 1 / jnp.mean(training.forces**2),
        permutations=tuple(jnp.asarray(permutation_table(p, network.n_particles)) for p in settings.symmetries),
        key=key_steps,
        even=even_draw(
            np.asarray(training.positions),
            settings.quadruplets,
            settings.torsion_share,
            _noise_ranges(network, settings)[0],
        ),
        volumes=_volumes(settings, training),
    )
    if settings.start_from is None:
        permuted = _permuted(training, constants.permutations, key_permutations)
        weights = network.initial_weights(key_start, np.asarray(permuted.positions))
    else:
        weights = network.weights(model_file.read_tensors(settings.start_from))
    state = _initial_state(settings, weights, _started(settings, constants, key_chains))
    if resume:
        state = _load_checkpoint(checkpoint, state, fingerprint)

    def finished(state: _State, stopped: str) -> TrainingResult | None:
        if int(state.best_step) == 0:
            return None
        bands = _bands(network, settings, state, constants, held_out, key_bands)
        return _result(state, stopped, bands)

    evaluate_every = -(-settings.steps // settings.evaluations)
    first_chain_step = round(settings.relative_entropy_start * settings.steps)
    good, stopped, held_out_loss, residual = state, "finished", None, None
    try:
        while (step := int(state.step)) < settings.steps:
            sampling = state.chains is not None and step >= first_chain_step
            waiting = state.chains is not None and not sampling
            if int(state.idle_evaluations) >= settings.patience and not waiting:
                stopped = "early"
                break
            next_evaluation = min((step // evaluate_every + 1) * evaluate_every, settings.steps)
            n_steps = min(BLOCK, next_evaluation - step)
            if sampling and not state.chains.time_step > 0:
                state = _tuned(network, settings, state)._replace(idle_evaluations=jnp.zeros((), jnp.int32))
            elif waiting:
                n_steps = min(n_steps, first_chain_step - step)
            state, loss = _advance(network, settings, state, constants, n_steps, sampling)
            note = None
            if not np.isfinite(loss):
                if int(good.recoveries) == MOST_RECOVERIES:
                    raise TrainingError(_not_finite(settings, step + n_steps), finished(good, "failed"))
                good = state = good._replace(recoveries=good.recoveries + 1)
                note = (
                    f"the loss was not finite near step {step + n_steps:,}; it goes on from step {int(state.step):,} "
                    f"with {0.5 ** int(state.recoveries):g} of the learning rate"
                )
            elif int(state.step) == next_evaluation:
                # the held-out loss does not see what relative entropy gains: then the last weights are the best
                state, held_out_loss, residual = _evaluate(
                    network, settings, state, constants, held_out, key_evaluation, better=sampling
                )
                if sampling:
                    state = _tuned(network, settings, state)
                good = state
                if checkpoint is not None:
                    _save_checkpoint(checkpoint, state, fingerprint)
            report(
                Progress(
                    step=int(state.step),
                    steps=settings.steps,
                    epoch=int(state.step) * (settings.batch // 2) / len(training.positions),
                    loss=float(loss),
                    held_out=held_out_loss,
                    residual=residual,
                    note=note,
                )
            )
    except KeyboardInterrupt:
        stopped = "interrupted"
    result = finished(state, stopped)
    if result is None:
        raise TrainingError("training was interrupted before its first evaluation; there is no model to write.")
    return result


def _prepared(frames: Frames, centred: bool) -> Frames:
    """The frames as float32; `centred`: about their centre, and without the net force, whose mean is 0."""
    if centred:
        positions, forces = (
            None if a is None else a - a.mean(axis=1, keepdims=True) for a in (frames.positions, frames.forces)
        )
        frames = frames._replace(positions=positions, forces=forces)
    return jax.tree.map(lambda a: np.asarray(a, dtype=np.float32), frames)


def _permuted(frames: Frames, permutations: tuple[jax.Array, ...], key: jax.Array) -> Frames:
    """Each frame with its equivalent particles exchanged at random; `permutations` hold the powers of one each."""
    if not permutations:
        return frames
    n_frames, n_particles, _ = frames.positions.shape
    source = jnp.broadcast_to(jnp.arange(n_particles), (n_frames, n_particles))
    for table, key_power in zip(permutations, jax.random.split(key, len(permutations)), strict=True):
        powers = jax.random.randint(key_power, (n_frames,), 0, len(table))
        source = jnp.take_along_axis(source, table[powers], axis=1)

    def moved(a):
        return None if a is None else jnp.take_along_axis(a, source[..., None], axis=1)

    return frames._replace(positions=moved(frames.positions), forces=moved(frames.forces))


def _optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate,
        warmup_steps=max(1, round(settings.warm_up * settings.steps)),
        decay_steps=settings.steps,
        end_value=settings.learning_rate_end * settings.learning_rate,
    )
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(rate))


def _fokker_planck_weight(settings: TrainingSettings, step: jax.Array) -> jax.Array:
    """It grows linearly from 0 over the first part of the steps, in which the energy is far from any density's."""
    ramp = settings.fokker_planck_ramp * settings.steps
    return settings.fokker_planck_weight * jnp.minimum(1.0, step / ramp if ramp > 0 else 1.0)


@partial(jax.jit, static_argnames=("network", "settings", "sampling"))
def _advance(network, settings, state, constants, n_steps, sampling):
    """`n_steps` optimizer steps; returns the state and the mean loss."""
    decay = 1.0 - 1.0 / max(1.0, settings.average * settings.steps)
    noise_range, fp_range = _noise_ranges(network, settings)
    key = jax.random.fold_in(constants.key, state.recoveries)
    damping = 0.5**state.recoveries

    def loss(weights, frames, key, fp_weight, relevance):
        key_denoising, key_fp = jax.random.split(key)
        force = settings.force_weight, constants.force_variance
        total = denoising_loss(network, weights, frames, noise_range, key_denoising, *force, relevance)
        if settings.fokker_planck_weight > 0:
            few = frames.take(slice(FOKKER_PLANCK_FRAMES))
            total += fp_weight * fokker_planck_loss(network, weights, few, fp_range, key_fp)
        if constants.volumes is not None:
            key_frames, key_blur, key_volumes = jax.random.split(jax.random.fold_in(key, 2), 3)
            chosen = _drawn(constants, settings.batch // 4, key_frames)
            blurred = _blurred(settings, constants, chosen, key_blur)
            total += volume_loss(network, weights, settings.noise_simulation, blurred, *constants.volumes, key_volumes)
        return total

    def with_chains(weights, chains, blurred, *rest):
        found = loss(weights, *rest)
        entropy = relative_entropy_loss(network, weights, settings.noise_simulation, blurred, chains)
        return found + settings.relative_entropy_weight * entropy, found

    def one(_, carry):
        state, total = carry
        key_frames, key_loss, key_permutations = jax.random.split(jax.random.fold_in(key, state.step), 3)
        n, even, relevance = settings.batch // 2, constants.even, None
        if even is None:
            chosen = _drawn(constants, n, key_frames)
        else:
            chosen = even.draw(key_frames, n)
            relevance = even.relevance, even.drawn[chosen]
        frames = _permuted(constants.frames.take(chosen), constants.permutations, key_permutations)
        fp_weight = _fokker_planck_weight(settings, state.step)
        rest = frames, key_loss, fp_weight, relevance
        if sampling:
            key_anew, key_blur, key_chains = jax.random.split(jax.random.fold_in(key_frames, 1), 3)
            n_frames, noise = len(constants.frames.positions), settings.noise_simulation
            chains, anew = _chains.renewed(state.chains, settings.chain_steps, n_frames, key_anew)
            blurred = _blurred(settings, constants, chains.origins, key_blur)
            chains = _chains.advance(
                network, state.weights, chains, noise, settings.chain_steps, blurred, anew, key_chains
            )
            state = state._replace(chains=chains)
            (_, value), gradient = jax.value_and_grad(with_chains, has_aux=True)(state.weights, chains, blurred, *rest)
        else:
            value, gradient = jax.value_and_grad(loss)(state.weights, *rest)
        updates, optimizer_state = _optimizer(settings).update(gradient, state.optimizer, state.weights)
        weights = optax.apply_updates(state.weights, jax.tree.map(lambda u: damping * u, updates))
        forget = 1 - jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, b: a + forget * (b - a), state.average, weights)
        state = state._replace(step=state.step + 1, weights=weights, optimizer=optimizer_state, average=average)
        return state, total + value

    state, total = jax.lax.fori_loop(0, n_steps, one, (state, jnp.zeros(())))
    return state, total / n_steps


def _drawn(constants: _Constants, n: int, key: jax.Array) -> jax.Array:
    """`n` training frames drawn as they come."""
    return jax.random.randint(key, (n,), 0, len(constants.frames.positions))


def _blurred(settings: TrainingSettings, constants: _Constants, chosen: jax.Array, key: jax.Array) -> Frames:
    """The `chosen` training frames blurred as simulations see them."""
    key_permutations, key_xi = jax.random.split(key)
    frames = _permuted(constants.frames.take(chosen)._replace(forces=None), constants.permutations, key_permutations)
    xi = jax.random.normal(key_xi, frames.positions.shape)
    return frames._replace(positions=frames.positions + settings.noise_simulation * xi)


def _volumes(settings: TrainingSettings, frames: Frames) -> tuple[jax.Array, jax.Array] | None:
    if settings.pressure is None:
        return None
    log_volume = np.log(np.abs(np.linalg.det(np.asarray(frames.cells, dtype=float))))
    kt = MOLAR_GAS_CONSTANT * settings.temperature
    return jnp.float32(VOLUME_BLUR * log_volume.std()), jnp.float32(settings.pressure / BAR / kt)


def _started(settings: TrainingSettings, constants: _Constants, key: jax.Array) -> Chains | None:
    if settings.relative_entropy_weight == 0:
        return None
    key_origins, key_blur, key_velocities = jax.random.split(key, 3)
    origins = _drawn(constants, settings.chains, key_origins)
    return _chains.start(_blurred(settings, constants, origins, key_blur), origins, key_velocities)


def _tuned(network: Network, settings: TrainingSettings, state: _State) -> _State:
    return state._replace(chains=_chains.tuned(network, state.weights, state.chains, settings.noise_simulation))


def _evaluate(network, settings, state: _State, constants: _Constants, held_out: Frames, key, better) -> tuple:
    """State, held-out loss and Fokker-Planck residual of the averaged weights, with the same draws each time."""
    force = settings.force_weight, constants.force_variance
    size = settings.batch // 2
    denoising, residual = _losses(
        network,
        size,
        state.average,
        held_out,
        _noise_ranges(network, settings),
        key,
        force,
        settings.fokker_planck_weight > 0,
    )
    loss = denoising + (settings.fokker_planck_weight * residual if settings.fokker_planck_weight > 0 else 0.0)
    if better or loss < state.best_held_out:
        found = {"best": state.average, "best_step": state.step, "best_held_out": loss, "best_residual": residual}
        state = state._replace(**found, idle_evaluations=jnp.zeros_like(state.idle_evaluations))
    else:
        state = state._replace(idle_evaluations=state.idle_evaluations + 1)
    return state, float(loss), _known(residual)


@partial(jax.jit, static_argnames=("network", "size", "with_fokker_planck"))
def _losses(network, size, weights, frames, noise_ranges, key, force, with_fokker_planck):
    """Both losses over `frames`, each frame drawn several times, in chunks of `size`; nan for one that is left out."""
    n_frames = len(frames.positions)
    size = min(size, n_frames)
    n_chunks = n_frames // size
    order = np.resize(np.arange(n_chunks * size), (EVALUATION_DRAWS * n_chunks, size))

    def one(chunk):
        indices, key = chunk
        key_denoising, key_fp = jax.random.split(key)
        some = frames.take(indices)
        denoising = denoising_loss(network, weights, some, noise_ranges[0], key_denoising, *force)
        if not with_fokker_planck:
            return denoising, jnp.full((), jnp.nan)
        return denoising, fokker_planck_loss(network, weights, some, noise_ranges[1], key_fp)

    denoising, residual = jax.lax.map(one, (order, jax.random.split(key, len(order))))
    return jnp.mean(denoising), jnp.mean(residual)


def _bands(network, settings, state: _State, constants: _Constants, held_out: Frames, key) -> tuple[Band, ...]:
    """The losses of the best weights in bands of ln sigma."""
    edges = np.geomspace(network.noise_min, network.noise_max, BANDS + 1).tolist()
    force = settings.force_weight, constants.force_variance
    found = []
    for low, high in zip(edges, edges[1:], strict=False):
        ranges = ((low, high), (low, high))
        denoising, residual = _losses(
            network, settings.batch // 2, state.best, held_out, ranges, key, force, settings.fokker_planck_weight > 0
        )
        found.append(Band(low, high, float(denoising), _known(residual)))
    return tuple(found)


def _known(loss: jax.Array) -> float | None:
    return None if np.isnan(loss) else float(loss)


def _noise_ranges(network: Network, settings: TrainingSettings) -> tuple[tuple[float, float], tuple[float, float]]:
    """Noise levels of the denoising and of the Fokker-Planck loss, nm."""
    highest = settings.fokker_planck_noise_max or min(FOKKER_PLANCK_RANGE * network.noise_min, network.noise_max)
    return (network.noise_min, network.noise_max), (network.noise_min, highest)


def _initial_state(settings: TrainingSettings, weights: Weights, chains: Chains | None) -> _State:
    zero = jnp.zeros((), jnp.int32)
    infinite = jnp.full((), jnp.inf, jnp.float32)
    optimizer = _optimizer(settings).init(weights)
    return _State(zero, weights, optimizer, weights, weights, zero, infinite, infinite, zero, zero, chains)


def _not_finite(settings: TrainingSettings, step: int) -> str:
    return (
        f"the loss is not finite at step {step:,}, after {MOST_RECOVERIES} attempts with half the learning rate each. "
        f"Lower --learning-rate (it is {settings.learning_rate:g}) or --fokker-planck-weight (it is "
        f"{settings.fokker_planck_weight:g}), or look for frames that are broken."
    )


def _result(state: _State, stopped: str, bands: tuple[Band, ...]) -> TrainingResult:
    return TrainingResult(
        weights=state.best,
        step=int(state.step),
        best_step=int(state.best_step),
        held_out=float(state.best_held_out),
        residual=_known(state.best_residual),
        stopped=stopped,
        recoveries=int(state.recoveries),
        bands=bands,
    )


def _fingerprint(settings: TrainingSettings, frames: Frames) -> dict:
    """What a checkpoint must agree on to be continued."""
    digest = hashlib.sha256()
    for array in frames:
        if array is not None:
            digest.update(np.ascontiguousarray(array))
    if settings.start_from is not None:
        digest.update(model_file.read(settings.start_from).weights_sha256.encode())
    return as_dict(settings) | {"snapshots": digest.hexdigest()}


def _save_checkpoint(path: Path, state: _State, fingerprint: dict) -> None:
    leaves = {f"leaf.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    model_file.replace(path, safetensors.numpy.save(leaves, metadata={"checkpoint": json.dumps(fingerprint)}))


def _load_checkpoint(path: Path, state: _State, fingerprint: dict) -> _State:
    """The state saved at `path`, in the structure of `state`."""
    try:
        with safe_open(path, framework="numpy") as file:
            saved = json.loads(file.metadata()["checkpoint"])
            leaves = [jnp.asarray(file.get_tensor(f"leaf.{i}")) for i in range(len(jax.tree.leaves(state)))]
    except FileNotFoundError:
        raise SettingsError(f"there is no checkpoint {path} to resume from. Leave out --resume to start.") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{path} is not a training checkpoint ({error}). Leave out --resume to start.") from None
    for name, value in fingerprint.items():
        if saved.get(name) != value:
            raise SettingsError(
                f"{path} was made with {name} {saved.get(name)}, this training has {value}. "
                "Use the same snapshots and settings, or leave out --resume to start again."
            )
    return jax.tree.unflatten(jax.tree.structure(state), leaves)
