"""Speed on a GPU beside its peers: the same network, the same dynamics, the same GPU, in turn; medians of their ratios.

    python benches/gpu.py              # after `make install`; writes out/bench-gpu.json

Rows as of compare.py, one for each number of replicas and each peer that is installed here: PyTorch (eager; compiled,
which replays CUDA graphs), OpenMM with a force of PyTorch, and JAX (jitted scan). Besides, for each number of replicas,
microseconds per step and the share of the roofline: fma and bytes of its steps, counted, over what the GPU can do at
best. It needs numpy, safetensors and a GPU, and says what else it does not find.
"""

import argparse
import json
import math
import os
import sys
import warnings
from functools import partial

import numpy as np
from pairs import MODEL, PAIRS, ROOT, compare, rate

import diffusim
from diffusim import model_file

REPLICAS = (1, 32, 132, 1024, 16384)
# What is to be reached against the best peer, and the other rows' limit.
LIMITS = {1: 20.0, 1024: 5.0}
# Seconds that a timing should take about, and steps of the first guess.
SECONDS, GUESS = 0.3, 200
# Of an SXM part, from data sheets: fma per second in single precision, bytes per second of the second-level cache.
# Another GPU's are options of this program.
FMA_PER_SECOND = {"H100": 33.5e12, "H200": 33.5e12, "A100": 9.75e12}
BYTES_PER_SECOND = {"H100": 5.5e12, "H200": 5.5e12}
# Other models: file, label, replicas, and whether launches are replayed as graphs.
FLUID = "examples/lennard-jones/lennard-jones.safetensors"
OTHERS = (
    (FLUID, "Lennard-Jones fluid of 256 atoms (message-passing)", 1, True),
    (FLUID, "the same, launches one by one", 1, False),
    (FLUID, "the same, 16 replicas", 16, True),
    (FLUID, "the same, 128 replicas", 128, True),
    ("examples/ala2/ala2-5bead.safetensors", "ala2 of five beads", 1, True),
)


def cost(model, n_replicas):
    """Fma and bytes of the second-level cache of one step of one replica.

    Every hidden weight is used once forwards and once backwards, and read as often for each block of up to 32 replicas:
    weights that stay in shared memory only lower the count.
    """
    h = model.metadata["hyperparameters"]
    n = model.n_particles
    widths = [n * (n - 1) // 2 + 2 * len(h["quadruplets"]), *h["hidden"]]
    uses = 2 * sum(a * b for a, b in zip(widths, widths[1:], strict=False))
    return uses, 4 * uses / min(n_replicas, 32)


def shares(row):
    """What a row says of the roofline, in words."""
    parts = [("fma", row["share_of_fma"]), ("cache bandwidth", row["share_of_bandwidth"])]
    said = [f"{share:.1%} of the {what}" for what, share in parts if share is not None]
    return f"({', '.join(said)})" if said else ""


def torch_dynamics(model, effective_step, compiled):
    """Leimkuhler-Matthews (theory 10) by PyTorch: a function (positions, n_steps) -> positions on the GPU."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    device, metadata = torch.device("cuda"), model.metadata
    arrays = model_file.read_tensors(MODEL)
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

    run.torch_gradient = gradient
    run.gradient = lambda x: gradient(torch.as_tensor(x, dtype=torch.float32, device=device)).cpu().numpy()
    return run


def openmm_dynamics(model, effective_step, gradient):
    """OpenMM on platform CUDA with a force that PyTorch computes: a function n_steps of one replica.

    One Brownian step of friction 1/ps moves a particle of mass m by Dt F/m, so kT/m times Dt is the effective step.
    """
    import openmm
    import torch
    from openmm import unit

    if not hasattr(openmm, "PythonForce"):
        raise RuntimeError(f"OpenMM {openmm.version.version} has no PythonForce")
    if "CUDA" not in [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]:
        raise RuntimeError("it has no platform CUDA; pip install OpenMM-CUDA-12")
    temperature = model.metadata["training_temperature"]
    kt = 0.00831446261815324 * temperature

    def compute(state):
        x = torch.as_tensor(state.getPositions(asNumpy=True)._value, dtype=torch.float32, device="cuda")
        forces = -kt * gradient(x[None])[0]
        return 0.0, forces.cpu().numpy()

    system = openmm.System()
    for _ in range(model.n_particles):
        system.addParticle(12.0)
    system.addForce(openmm.PythonForce(compute))
    time_step = effective_step * 12.0 / kt  # ps, at friction 1/ps
    integrator = openmm.BrownianIntegrator(temperature, 1.0 / unit.picosecond, time_step * unit.picosecond)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CUDA"))
    context.setPositions(model.start_positions[0])
    return integrator.step


def peers(model, step):
    """(name, function of positions and n_steps) of what is installed here and finds the GPU; why the others do not."""
    gradient = None
    try:
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("it finds no GPU")
        eager = torch_dynamics(model, step, compiled=False)
        gradient = eager.torch_gradient
        start = model.start_positions[:7]
        ours = -model.evaluate(start)[0]
        worst = np.abs(eager.gradient(start) - ours).max() / np.abs(ours).max()
        if worst > 1e-4:
            sys.exit(f"the peer in PyTorch is another network: its gradient differs by {worst:.1e}")
        yield f"PyTorch {torch.__version__}, eager", eager
        yield f"PyTorch {torch.__version__}, compiled, CUDA graphs", torch_dynamics(model, step, compiled=True)
    except (ImportError, RuntimeError) as reason:
        print(f"no rows with PyTorch: {reason}")
    try:
        if gradient is None:
            raise RuntimeError("there is no PyTorch here to compute its force")
        run = openmm_dynamics(model, step, gradient)
        yield "OpenMM, a PythonForce of PyTorch", lambda x, n: run(n) if len(x) == 1 else None
    except Exception as reason:  # of a program that is not ours: whatever it is, it is a reason
        print(f"no row with OpenMM: {reason}")
    try:
        import jax
        import jax.numpy as jnp
        from jax_peer import jax_dynamics

        if jax.default_backend() != "gpu":
            raise RuntimeError(f"its backend is {jax.default_backend()}; pip install 'jax[cuda12]'")
        jax.config.update("jax_default_prng_impl", "rbg")
        dynamics = jax_dynamics(model, step)
        key = jax.random.key(1)
        yield (
            f"JAX {jax.__version__}, jitted scan",
            lambda x, n: np.asarray(dynamics(jnp.asarray(x, jnp.float32), key, n)),
        )
    except (ImportError, RuntimeError) as reason:
        print(f"no rows with JAX: {reason}")


def timed(run, n_replicas, n_steps):
    """Rate in replica-steps per second, with about SECONDS of steps; `n_steps` keeps what was found."""
    if not n_steps:
        run(GUESS)
        speed = rate(partial(run, GUESS), GUESS)
        n_steps.append(max(GUESS, int(speed * SECONDS)))
        run(n_steps[0])
    return rate(partial(run, n_steps[0]), n_replicas * n_steps[0])


def own_row(name, simulation, n_replicas, per, best, bandwidth):
    """Rate and share of the roofline of a simulation; `per` is fma and bytes of one step of one replica."""
    ours = partial(timed, simulation.step, n_replicas, [])
    ours()
    speed = max(ours() for _ in range(PAIRS))
    fma, bytes_ = per
    return {
        "name": name,
        "unit": "replica-steps/s",
        "ours": speed,
        "atom_steps_per_second": speed * simulation.model.n_particles,
        "microseconds_per_step": 1e6 * n_replicas / speed,
        "fma_per_replica_step": fma,
        "bytes_per_replica_step": bytes_,
        "share_of_fma": speed * fma / best if best and fma else None,
        "share_of_bandwidth": speed * bytes_ / bandwidth if bandwidth and bytes_ else None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=REPLICAS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--fma-per-second", type=float, help="of the GPU in single precision")
    parser.add_argument("--bytes-per-second", type=float, help="of its second-level cache")
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    try:
        name = diffusim.describe_device(arguments.device)
    except diffusim.DiffusimError as reason:
        print(f"nothing was measured: {reason}")
        return
    best = arguments.fma_per_second or next((v for k, v in FMA_PER_SECOND.items() if k in name), None)
    bandwidth = arguments.bytes_per_second or next((v for k, v in BYTES_PER_SECOND.items() if k in name), None)
    print(name)
    model = diffusim.Model(MODEL)
    step = model.metadata["recommended_effective_step"]
    there = [] if arguments.no_peers else list(peers(model, step))
    rows, own = [], []
    for n_replicas in arguments.replicas:
        simulation = diffusim.Simulation(
            model, n_replicas=n_replicas, effective_step=step, seed=1, device=arguments.device
        )
        start = simulation.positions
        label = f"ala2, {n_replicas} replica" + ("s" if n_replicas > 1 else "")
        own.append(own_row(label, simulation, n_replicas, cost(model, n_replicas), best, bandwidth))
        print(
            "{name}: {ours:,.0f} replica-steps/s, {microseconds_per_step:,.2f} us/step".format(**own[-1]),
            shares(own[-1]),
        )
        simulation.reconfigure(matmul_precision="high")
        own.append(own_row(f"{label}, matmul high", simulation, n_replicas, (None, None), best, bandwidth))
        print("{name}: {ours:,.0f} replica-steps/s, {microseconds_per_step:,.2f} us/step".format(**own[-1]))
        simulation.reconfigure(matmul_precision="highest")
        ours = partial(timed, simulation.step, n_replicas, [])
        for peer_name, run in there:
            if peer_name.startswith("OpenMM") and n_replicas > 1:
                continue
            peer = partial(timed, partial(run, start), n_replicas, [])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = compare(label, "replica-steps/s", ours, peer, peer_name, LIMITS.get(n_replicas, 1.0))
            rows.append(row)
            print("  {ratio:.1f} times {peer_name} (limit {limit:.0f}): {ours:,.0f} against {peer:,.0f}".format(**row))
    for path, label, n_replicas, graphs in OTHERS:
        os.environ["DIFFUSIM_CUDA_GRAPHS"] = str(int(graphs))
        try:
            simulation = diffusim.Simulation(ROOT / path, n_replicas=n_replicas, seed=1, device=arguments.device)
            own.append(own_row(label, simulation, n_replicas, (None, None), best, bandwidth))
            print(
                "{name}: {atom_steps_per_second:,.0f} atom-steps/s, {microseconds_per_step:,.2f} us/step".format(
                    **own[-1]
                )
            )
        except diffusim.DiffusimError as reason:
            print(f"no row of {label}: {reason}")
    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    (out / "bench-gpu.json").write_text(json.dumps({"device": name, "speed": own, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
