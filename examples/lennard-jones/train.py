"""Train the message-passing model of this example on the snapshots of make_reference.py.

    python train.py snapshots.npz --out DIR     # about an hour on one core; writes weights.npz as it goes
    python train.py snapshots.npz --out DIR --export model.safetensors

Denoising score matching alone (theory 16), in score units: each frame is used with xi and with -xi, so that the
variance stays bounded at small noise levels, and all levels, which are small against the core, count alike.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fluid import CUTOFF, MASS, TEMPERATURE

from diffusim import Model, model_file
from diffusim.training.message_passing import MessagePassingNetwork, nearest

NOISE_MIN, NOISE_MAX = 5e-4, 1e-2  # nm
REPULSION = 0.27  # nm; no pair of the snapshots is closer than 0.30
N_NEIGHBORS = 74  # those within the cutoff and those that noise may bring there
FRAMES_PER_STEP = 1
LENGTH = 0.01  # nm; the unit of the loss is its inverse, squared
SAFE_STEP = 0.4  # of 1 / largest curvature, as in `diffusim train`


def network_for(cell: np.ndarray, n_particles: int) -> MessagePassingNetwork:
    return MessagePassingNetwork(
        species=("Ar",),
        particles=(0,) * n_particles,
        cutoff=CUTOFF,
        noise_min=NOISE_MIN,
        noise_max=NOISE_MAX,
        cell=tuple(map(tuple, cell.tolist())),
        max_neighbors=N_NEIGHBORS,
        width=16,
        n_blocks=1,
        n_radial=24,
        radial_width=16,
        chiral=False,
        repulsion=((REPULSION,),),
    )


def loss(network, weights, frames, neighbors, key):
    """Mean of |s(x + sigma xi) + xi / sigma|^2 less its part that does not depend on the weights, times LENGTH^2."""
    key_noise, key_xi = jax.random.split(key)
    n = len(frames)
    u = (jnp.arange(n) + jax.random.uniform(key_noise, (n,))) / n
    log_noise = np.log(NOISE_MIN) + np.log(NOISE_MAX / NOISE_MIN) * u
    xi = jax.random.normal(key_xi, frames.shape)

    def one(frame, neighbors, log_noise, xi):
        noise = jnp.exp(log_noise)
        plus, minus = (network.score(weights, frame + s * noise * xi, log_noise, None, neighbors) for s in (1, -1))
        return jnp.mean((plus**2 + minus**2) / 2 + (plus - minus) * xi / noise)

    # one frame after the other: its arrays stay in the cache
    return LENGTH**2 * jnp.mean(jax.lax.map(lambda a: one(*a), (frames, neighbors, log_noise, xi)))


def train(positions, cell, out, steps, seed):
    network = network_for(cell, positions.shape[1])
    print(f"{network.n_weights} weights", flush=True)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, steps // 50, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    key_start, key_steps = jax.random.split(jax.random.key(seed))
    weights = network.initial_weights(key_start)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def advance(weights, state, average, step, frames, neighbors):
        key = jax.random.fold_in(key_steps, step)
        value, gradient = jax.value_and_grad(partial(loss, network))(weights, frames, neighbors, key)
        updates, state = optimizer.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        keep = jnp.minimum(1 - 20 / steps, (1.0 + step) / (10.0 + step))
        average = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, average, weights)
        return weights, state, average, value

    random = np.random.default_rng(seed)
    state, average, losses, start = optimizer.init(weights), jax.tree.map(jnp.copy, weights), [], time.monotonic()
    for step in range(steps):
        chosen = random.integers(0, len(positions), FRAMES_PER_STEP)
        found = [nearest(positions[i], N_NEIGHBORS, cell) for i in chosen]
        if min(left_out for _, left_out in found) < CUTOFF + 4 * NOISE_MAX:
            raise SystemExit(f"more than {N_NEIGHBORS} neighbours come within the cutoff; raise N_NEIGHBORS")
        neighbors = jnp.asarray(np.stack([indices for indices, _ in found]))
        frames = jnp.asarray(positions[chosen])
        weights, state, average, value = advance(weights, state, average, step, frames, neighbors)
        losses.append(float(value))
        if (step + 1) % 250 == 0 or step + 1 == steps:
            mean, error = np.mean(losses[-250:]), np.std(losses[-250:]) / np.sqrt(250)
            print(f"step {step + 1}  loss {mean:.4f} +- {error:.4f}  {time.monotonic() - start:.0f} s", flush=True)
            np.savez(out / "weights.npz", step=step + 1, **network.tensors(average))


def export(positions, cell, out, path):
    """The model file, with stiffness and step as the core measures them."""
    network = network_for(cell, positions.shape[1])
    saved = np.load(out / "weights.npz")
    tensors = {name: saved[name] for name in network.shapes()}
    tensors |= {"start_positions": positions[:4], "start_cell": cell}

    def write(**measured):
        header = model_file.ModelFile(
            kind="message-passing",
            n_particles=network.n_particles,
            training_temperature=TEMPERATURE,
            hyperparameters=network.hyperparameters(),
            particles=[model_file.Particle("Ar", "Ar", "AR", i, MASS) for i in range(network.n_particles)],
            periodic=True,
            noise_levels=model_file.NoiseLevels(NOISE_MIN, NOISE_MAX, NOISE_MIN),
            training={"snapshots": "make_reference.py snapshots", "steps": int(saved["step"])},
            **measured,
        )
        model_file.write(path, header, tensors)

    write()
    curvature = Model(path).largest_curvature(positions[:8])
    write(largest_curvature=float(f"{curvature:.3g}"), recommended_effective_step=float(f"{SAFE_STEP / curvature:.2g}"))
    print(json.dumps({"largest_curvature": curvature, "bytes": path.stat().st_size}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshots", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path)
    args = parser.parse_args()
    data = np.load(args.snapshots)
    if args.export:
        export(data["positions"], data["cell"], args.out, args.export)
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        train(data["positions"], data["cell"], args.out, args.steps, args.seed)


if __name__ == "__main__":
    main()
