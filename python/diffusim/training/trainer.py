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
from diffusim.training.config import SettingsError, TrainingSettings, as_dict
from diffusim.training.losses import GROUP, denoising_loss, fokker_planck_loss
from diffusim.training.network import DistanceNetwork, Weights

BLOCK = 50  # steps per compiled call: how often progress is shown and Ctrl-C is heard
WARM_UP = 0.02  # fraction of the steps
AVERAGE = 0.05  # the averaged weights remember about this fraction of the steps
CLIP = 1.0  # largest norm of a gradient
FOKKER_PLANCK_FRAMES = 64  # per step
FOKKER_PLANCK_RANGE = 20.0  # its noise levels go from noise_min to this times noise_min: where denoising alone is noisy
EVALUATION_DRAWS = 4  # noise draws per held-out frame
MOST_HELD_OUT = 2000  # frames
POWER_ITERATIONS = 60


class TrainingError(RuntimeError):
    """Training had to stop; the message says at which step, why, and what to do. `result` is the best so far."""

    def __init__(self, message: str, result: "TrainingResult | None" = None):
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Progress:
    """One report: after `step` of `steps` steps. `loss` is a mean over some steps, the others the last evaluation's."""

    step: int
    steps: int
    epoch: float
    loss: float
    held_out: float | None
    residual: float | None


@dataclass(frozen=True)
class TrainingResult:
    """The weights with the lowest held-out loss, and how it ended: "finished", "early", "interrupted", "failed"."""

    weights: Weights
    step: int
    best_step: int
    held_out: float
    residual: float
    stopped: str


class _State(NamedTuple):
    """All that training carries from step to step; what a checkpoint holds."""

    step: jax.Array
    layers: tuple
    optimizer: tuple
    average: tuple
    best: tuple
    best_step: jax.Array
    best_held_out: jax.Array
    best_residual: jax.Array
    idle_evaluations: jax.Array


def feature_statistics(network: DistanceNetwork, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread [n_features] of the features over frames [n_frames, n_particles, 3], as float32."""
    features = np.asarray(network.features_of_all(positions), dtype=np.float64)
    spread = np.maximum(features.std(axis=0), 1e-6)
    return features.mean(axis=0).astype(np.float32), spread.astype(np.float32)


def train(
    network: DistanceNetwork,
    positions: np.ndarray,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> TrainingResult:
    """Train `network` on frames [n_frames, n_particles, 3] in nm.

    `settings` are complete (config.complete). After each evaluation the state goes to `checkpoint`; with `resume` it
    starts from there. Ctrl-C ends it with the best weights so far. Raises TrainingError when the loss is not finite,
    SettingsError when the checkpoint belongs to another training.
    """
    if network.translation_invariant:
        positions = positions - positions.mean(axis=1, keepdims=True)
    positions = np.asarray(positions, dtype=np.float32)
    order = np.random.default_rng(settings.seed).permutation(len(positions))
    n_held_out = min(max(GROUP, round(settings.held_out * len(positions))), MOST_HELD_OUT)
    held_out, training = jnp.asarray(positions[order[:n_held_out]]), jnp.asarray(positions[order[n_held_out:]])
    if len(training) < FOKKER_PLANCK_FRAMES:
        needed = FOKKER_PLANCK_FRAMES + GROUP
        raise SettingsError(f"there are {len(positions)} snapshots; training needs {needed}, a good model thousands.")
    statistics = tuple(map(jnp.asarray, feature_statistics(network, np.asarray(training))))
    key_start, key_steps, key_evaluation = jax.random.split(jax.random.key(settings.seed), 3)

    state = _initial_state(network, settings, key_start)
    fingerprint = _fingerprint(settings, positions)
    if resume:
        state = _load_checkpoint(checkpoint, state, fingerprint)

    evaluate_every = -(-settings.steps // settings.evaluations)
    stopped, held_out_loss, residual = "finished", None, None
    try:
        while (step := int(state.step)) < settings.steps:
            if int(state.idle_evaluations) >= settings.patience:
                stopped = "early"
                break
            next_evaluation = min((step // evaluate_every + 1) * evaluate_every, settings.steps)
            n_steps = min(BLOCK, next_evaluation - step)
            advanced, loss = _advance(network, settings, state, statistics, training, key_steps, n_steps)
            if not np.isfinite(loss):
                raise TrainingError(
                    f"the loss is not finite at step {step + n_steps:,}. Lower --learning-rate (it is "
                    f"{settings.learning_rate:g}) or --fokker-planck-weight (it is {settings.fokker_planck_weight:g}).",
                    _result(state, statistics, "failed"),
                )
            state = advanced
            if int(state.step) == next_evaluation:
                state, *evaluation = _evaluate(network, settings, state, statistics, held_out, key_evaluation)
                held_out_loss, residual = map(float, evaluation)
                if checkpoint is not None:
                    _save_checkpoint(checkpoint, state, fingerprint)
            report(
                Progress(
                    step=int(state.step),
                    steps=settings.steps,
                    epoch=int(state.step) * (settings.batch // 2) / len(training),
                    loss=float(loss),
                    held_out=held_out_loss,
                    residual=residual,
                )
            )
    except KeyboardInterrupt:
        stopped = "interrupted"
    result = _result(state, statistics, stopped)
    if result is None:
        raise TrainingError("training was interrupted before its first evaluation; there is no model to write.")
    return result


def largest_curvature(network: DistanceNetwork, weights: Weights, positions: np.ndarray, noise_level: float) -> float:
    """Largest eigenvalue of -grad score, 1/nm^2, over frames [n_frames, n_particles, 3] blurred by `noise_level` nm.

    Power iteration on Hessian-vector products; the Rayleigh quotient is a lower bound, within about 1 % by then.
    """
    xi, start = jax.random.normal(jax.random.key(0), (2, *positions.shape))
    quotients = _curvatures(network, weights, positions + noise_level * xi, start, jnp.log(noise_level))
    return float(jnp.max(quotients))


@partial(jax.jit, static_argnames="network")
@partial(jax.vmap, in_axes=(None, None, 0, 0, None))
def _curvatures(network, weights, frame, vector, log_noise):
    def product(v):
        return jax.jvp(lambda x: jax.grad(network.energy, argnums=1)(weights, x, log_noise), (frame,), (v,))[1]

    def iterate(_, v):
        v = product(v)
        return v / jnp.linalg.norm(v)

    v = jax.lax.fori_loop(0, POWER_ITERATIONS, iterate, vector / jnp.linalg.norm(vector))
    return jnp.sum(v * product(v))


def _optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    warm_up = max(1, round(WARM_UP * settings.steps))
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, warm_up, settings.steps)
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(rate))


@partial(jax.jit, static_argnames=("network", "settings"))
def _advance(network, settings, state, statistics, frames, key, n_steps):
    """`n_steps` optimizer steps; returns the state and the mean loss. `statistics` are feature mean and spread."""
    decay = 1.0 - 1.0 / max(1.0, AVERAGE * settings.steps)
    fp_max = _fokker_planck_noise_max(network)

    def loss(layers, frames, key):
        weights = Weights(*statistics, layers)
        key_denoising, key_fp = jax.random.split(key)
        total = denoising_loss(network, weights, frames, key_denoising)
        if settings.fokker_planck_weight > 0:
            fp = fokker_planck_loss(network, weights, frames[:FOKKER_PLANCK_FRAMES], fp_max, key_fp)
            total += settings.fokker_planck_weight * fp
        return total

    def one(_, carry):
        state, total = carry
        key_frames, key_loss = jax.random.split(jax.random.fold_in(key, state.step))
        chosen = jax.random.randint(key_frames, (settings.batch // 2,), 0, len(frames))
        value, gradient = jax.value_and_grad(loss)(state.layers, frames[chosen], key_loss)
        updates, optimizer_state = _optimizer(settings).update(gradient, state.optimizer, state.layers)
        layers = optax.apply_updates(state.layers, updates)
        keep = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, state.average, layers)
        state = state._replace(step=state.step + 1, layers=layers, optimizer=optimizer_state, average=average)
        return state, total + value

    state, total = jax.lax.fori_loop(0, n_steps, one, (state, jnp.zeros(())))
    return state, total / n_steps


@partial(jax.jit, static_argnames=("network", "settings"))
def _evaluate(network, settings, state, statistics, held_out, key):
    """Held-out loss and Fokker-Planck residual of the averaged weights, with the same draws each time."""
    weights = Weights(*statistics, state.average)
    key_denoising, key_fp = jax.random.split(key)
    fp_max = _fokker_planck_noise_max(network)
    repeated = jnp.tile(held_out, (EVALUATION_DRAWS, 1, 1))
    residual = fokker_planck_loss(network, weights, repeated, fp_max, key_fp)
    loss = denoising_loss(network, weights, repeated, key_denoising) + settings.fokker_planck_weight * residual
    better = loss < state.best_held_out
    state = state._replace(
        best=jax.tree.map(lambda new, old: jnp.where(better, new, old), state.average, state.best),
        best_step=jnp.where(better, state.step, state.best_step),
        best_held_out=jnp.where(better, loss, state.best_held_out),
        best_residual=jnp.where(better, residual, state.best_residual),
        idle_evaluations=jnp.where(better, 0, state.idle_evaluations + 1),
    )
    return state, loss, residual


def _fokker_planck_noise_max(network: DistanceNetwork) -> float:
    return min(FOKKER_PLANCK_RANGE * network.noise_min, network.noise_max)


def _initial_state(network, settings, key) -> _State:
    layers = network.initial_layers(key)
    zero = jnp.zeros((), jnp.int32)
    infinite = jnp.full((), jnp.inf, jnp.float32)
    return _State(zero, layers, _optimizer(settings).init(layers), layers, layers, zero, infinite, infinite, zero)


def _result(state: _State, statistics, stopped: str) -> TrainingResult | None:
    if int(state.best_step) == 0:
        return None
    return TrainingResult(
        weights=Weights(*statistics, state.best),
        step=int(state.step),
        best_step=int(state.best_step),
        held_out=float(state.best_held_out),
        residual=float(state.best_residual),
        stopped=stopped,
    )


def _fingerprint(settings: TrainingSettings, positions: np.ndarray) -> dict:
    """What a checkpoint must agree on to be continued."""
    return json.loads(json.dumps(as_dict(settings))) | {"snapshots": hashlib.sha256(positions.tobytes()).hexdigest()}


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
