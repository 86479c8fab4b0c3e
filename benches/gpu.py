"""Speed on a GPU beside its peers: the same network, the same dynamics, the same GPU, in turn; medians of their ratios.

    python benches/gpu.py              # after `make install`; writes out/bench-gpu.json

Rows as of compare.py, one for each number of replicas and each peer that is installed here: PyTorch (eager; compiled,
which replays CUDA graphs) and JAX (jitted scan). Besides, for each number of replicas, microseconds per step and the
share of the roofline: the fma of its steps, counted, over what the GPU can do at best. Without a GPU it says why.
"""

import argparse
import json
import math
import sys
import warnings
from functools import partial

import compare
import numpy as np
from rich.console import Console
from rich.table import Table

import diffusim
from diffusim import model_file

REPLICAS = (1, 32, 132, 1024, 16384)
# What is to be reached against the best peer, and the other rows' limit.
LIMITS = {1: 20.0, 1024: 5.0}
# Seconds that a timing should take about, and steps of the first guess.
SECONDS, GUESS = 0.3, 200
# Of an SXM part, from data sheets: fma per second in single precision; another GPU's are options of this program.
FMA_PER_SECOND = {"H100": 33.5e12, "H200": 33.5e12, "A100": 9.75e12}


def n_fma(model) -> int:
    """Of one score: every hidden weight once forwards and once backwards."""
    h = model.metadata["hyperparameters"]
    n = model.n_particles
    widths = [n * (n - 1) // 2 + 2 * len(h["quadruplets"]), *h["hidden"]]
    return 2 * sum(a * b for a, b in zip(widths, widths[1:], strict=False))


def torch_dynamics(model, effective_step, compiled):
    """Leimkuhler-Matthews (theory 10) by PyTorch: a function (positions, n_steps) -> positions on the GPU."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    device, metadata = torch.device("cuda"), model.metadata
    arrays = model_file.read_tensors(compare.MODEL)
    tensors = {name: torch.tensor(array, device=device) for name, array in arrays.items()}
    h, noise = metadata["hyperparameters"], metadata["noise_levels"]
    n = metadata["n_particles"]
    i, j = torch.triu_indices(n, n, 1, device=device)
    a, b, c, d = torch.tensor(h["quadruplets"], device=device).T
    sigma, softening = noise["simulation"], h["softening"] ** 2
    n_pairs = len(i)
    widths = torch.full_like(tensors["feature_mean"], sigma / h["signed_length"])
    widths[:n_pairs] = sigma
    scale = (tensors["feature_spread"] ** 2 + widths**2).rsqrt()
    t = math.log(sigma / noise["min"]) / math.log(noise["max"] / noise["min"])
    angles = torch.arange(1, h["n_frequencies"] + 1, device=device) * (math.pi / 2 * t)
    embedding = torch.cat([torch.tensor([2 * t - 1], device=device), angles.sin(), angles.cos()])
    weights = [tensors[f"layers.{k}.weight"] for k in range(len(h["hidden"]) + 1)]
    biases = [tensors[f"layers.{k}.bias"] for k in range(len(h["hidden"]) + 1)]
    n_features = n_pairs + 2 * len(h["quadruplets"])
    biases[0] = biases[0] + embedding @ weights[0][n_features:]
    weights[0] = weights[0][:n_features]

    def length(v):
        return (v.square().sum(-1) + softening).sqrt()

    def energy(x):
        b1, b2, b3 = x[:, b] - x[:, a], x[:, c] - x[:, b], x[:, d] - x[:, c]
        normal, product = torch.linalg.cross(b2, b3), length(b1) * length(b2) * length(b3)
        sine = (b1 * normal).sum(-1) / product
        cosine = (torch.linalg.cross(b1, b2) * normal).sum(-1) / (product * length(b2))
        features = torch.cat([length(x[:, i] - x[:, j]), torch.stack([sine, cosine], -1).flatten(1)], 1)
        f = (features - tensors["feature_mean"]) * scale
        y = f
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            y = torch.nn.functional.silu(y @ weight + bias)
        harmonic = 0.5 * h["harmonic"] * f[:, :n_pairs].square().sum(1)
        return (harmonic + (y @ weights[-1] + biases[-1])[:, 0]).sum()

    gradient = torch.func.grad(energy)

    def step(x, xi, following):
        return x - effective_step * gradient(x) + math.sqrt(effective_step / 2) * (xi + following)

    if compiled:
        step = torch.compile(step, mode="reduce-overhead")

    def run(positions, n_steps):
        x = torch.as_tensor(positions, dtype=torch.float32, device=device)
        xi = torch.randn_like(x)
        for _ in range(n_steps):
            following = torch.randn_like(x)
            if compiled:
                torch.compiler.cudagraph_mark_step_begin()
            x, xi = step(x, xi, following).clone(), following
        torch.cuda.synchronize()
        return x.cpu().numpy()

    run.gradient = lambda x: gradient(torch.as_tensor(x, dtype=torch.float32, device=device)).cpu().numpy()
    return run


def peers(model, step, console):
    """(name, function of positions and n_steps) of what is installed here and finds the GPU."""
    try:
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("it finds no GPU")
        eager = torch_dynamics(model, step, compiled=False)
        start = model.start_positions[:7]
        ours = -model.evaluate(start)[0]
        worst = np.abs(eager.gradient(start) - ours).max() / np.abs(ours).max()
        if worst > 1e-4:
            sys.exit(f"the peer in PyTorch is another network: its gradient differs by {worst:.1e}")
        yield f"PyTorch {torch.__version__}, eager", eager
        yield f"PyTorch {torch.__version__}, compiled, CUDA graphs", torch_dynamics(model, step, compiled=True)
    except (ImportError, RuntimeError) as reason:
        console.print(f"no row with PyTorch: {reason}")
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "gpu":
        console.print(
            f"no row with JAX: its backend is {jax.default_backend()}; pip install 'jax[cuda12]'", markup=False
        )
        return
    dynamics = compare.jax_dynamics(model, step)
    key = jax.random.key(1)
    yield (
        f"JAX {jax.__version__}, jitted scan",
        lambda x, n: np.asarray(dynamics(jnp.asarray(x, jnp.float32), key, n)),
    )


def timed(run, n_replicas, n_steps):
    """Rate in replica-steps per second, with about SECONDS of steps; `n_steps` keeps what was found."""
    if not n_steps:
        run(GUESS)
        rate = compare.rate(partial(run, GUESS), GUESS)
        n_steps.append(max(GUESS, int(rate * SECONDS)))
        run(n_steps[0])
    return compare.rate(partial(run, n_steps[0]), n_replicas * n_steps[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=REPLICAS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--fma-per-second", type=float, help="of the GPU in single precision; known for H100, H200, A100"
    )
    arguments = parser.parse_args()
    console = Console()
    try:
        name = diffusim.describe_device(arguments.device)
    except diffusim.DiffusimError as reason:
        console.print(f"nothing was measured: {reason}")
        return
    best = arguments.fma_per_second or next((v for k, v in FMA_PER_SECOND.items() if k in name), None)
    model = diffusim.Model(compare.MODEL)
    step = model.metadata["recommended_effective_step"]
    there = list(peers(model, step, console))
    rows, own = [], []
    for n_replicas in arguments.replicas:
        simulation = diffusim.Simulation(
            model, n_replicas=n_replicas, effective_step=step, seed=1, device=arguments.device
        )
        start = simulation.positions
        ours = partial(timed, simulation.step, n_replicas, [])
        label = f"score {n_replicas} replica" + ("s" if n_replicas > 1 else "")
        limit = LIMITS.get(n_replicas, 1.0)
        for peer_name, run in there:
            peer = partial(timed, partial(run, start), n_replicas, [])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows.append(compare.compare(label, "replica-steps/s", ours, peer, peer_name, limit))
        ours()
        rate = max(ours() for _ in range(compare.PAIRS))
        own.append(
            {
                "name": label,
                "unit": "replica-steps/s",
                "ours": rate,
                "microseconds_per_step": 1e6 * n_replicas / rate,
                "share_of_roofline": rate * n_fma(model) / best if best else None,
            }
        )
    out = compare.ROOT / "out"
    out.mkdir(exist_ok=True)
    (out / "bench-gpu.json").write_text(json.dumps({"device": name, "speed": own, "rows": rows}, indent=2) + "\n")
    table = Table("", "replica-steps/s", "µs/step", "share of the fma", title=name)
    for r in own:
        share = f"{r['share_of_roofline']:.1%}" if best else "–"
        table.add_row(r["name"], f"{r['ours']:,.0f}", f"{r['microseconds_per_step']:,.2f}", share)
    console.print(table)
    if rows:
        table = Table("", "ours", "peer", "ratio", "limit", "peer is")
        for r in rows:
            colour = "green" if r["ratio"] >= r["limit"] else "red"
            figures = [f"{r['ours']:,.0f}", f"{r['peer']:,.0f}", f"[{colour}]{r['ratio']:.1f}[/]", f"{r['limit']:.0f}"]
            table.add_row(r["name"], *figures, r["peer_name"])
        console.print(table)


if __name__ == "__main__":
    main()
