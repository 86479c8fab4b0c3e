"""Speed side by side: the same network, the same dynamics, the same machine, in turn; medians of the ratios of pairs.

    python benches/compare.py          # after `make install`; writes out/bench.json

Rows {name, unit, ours, peer, peer_name, ratio, limit}; `ratio` is ours / peer in speed and should not be below `limit`.
"""

import json
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import openmm
from jax_peer import jax_dynamics
from openmm import app, unit
from pairs import MODEL, ROOT, compare, rate
from rich.console import Console
from rich.table import Table

import diffusim
import diffusim.openmm
from diffusim import model_file
from diffusim.training.message_passing import MessagePassingNetwork

jax.config.update("jax_default_prng_impl", "rbg")  # the fastest normals JAX has on a CPU


def core_rate(n_steps):
    """Steps per second of one replica in the core, at the recommended step and a new placement of the weights."""
    simulation = diffusim.Simulation(MODEL, seed=1)
    simulation.step(n_steps // 20)
    return rate(lambda: simulation.step(n_steps), n_steps)


def lammps_rate(script, n_steps):
    """Steps per second of LAMMPS on one core, by its own clock, read once a run, after a warm-up of a tenth."""
    lmp = Path(sys.executable).parent / "lmp"
    script += f"timer loop\nthermo 0\nrun {n_steps // 10}\nrun {n_steps}\n"
    output = subprocess.run([lmp, "-log", "none"], input=script, capture_output=True, text=True, check=False).stdout
    loops = re.findall(r"Loop time of (\S+) on 1 procs", output)
    if len(loops) != 2:
        raise RuntimeError(output)
    return n_steps / float(loops[-1])


def lammps_rows(model, folder):
    """fix diffusim without a score against LAMMPS's own Brownian dynamics, and with one against the core alone."""
    for n_atoms, n_steps in [(22, 200_000), (32_000, 40)]:
        free = folder / f"free{n_atoms}.safetensors"
        model_file.write(free, model_file.ModelFile("free", n_atoms, 300.0, {}))
        gas = f"""
            units real
            region box block -60 60 -60 60 -60 60
            create_box 1 box
            create_atoms 1 random {n_atoms} 4711 NULL
            mass 1 39.95
            comm_modify cutoff 4.0
            timestep 0.5
        """
        yield compare(
            f"lammps step {n_atoms} atoms",
            "steps/s",
            partial(lammps_rate, f"{gas}\nfix 1 all diffusim 300 1 model {free} friction 0.01 adapter em\n", n_steps),
            partial(lammps_rate, f"{gas}\nfix 1 all brownian 300 1 gamma_t 0.3995\n", n_steps),
            "fix brownian, with the uniform noise of its default",
            1.0,
        )

    molecule = f"""
        units real
        atom_style full
        boundary s s s
        read_data {ROOT}/examples/ala2/ala2.data
        comm_modify cutoff 2.0
        fix 1 all diffusim {model.training_temperature} 1 model {MODEL} spring auto
    """
    n = 200_000
    yield compare(
        "lammps ala2",
        "steps/s",
        lambda: lammps_rate(molecule, n),
        partial(core_rate, n),
        "the core alone",
        0.95,
    )


def message_passing_rows():
    """Scores of a message-passing network: 11 particles, width 32, two blocks."""
    path = ROOT / "tests/fixtures/message_passing_open.safetensors"
    model, tensors = diffusim.Model(path), model_file.read_tensors(path)
    h, noise = model.metadata["hyperparameters"], model.metadata["noise_levels"]
    species = tuple(h.pop("species"))
    network = MessagePassingNetwork(
        species=species,
        particles=tuple(species.index(p["element"] or p["name"]) for p in model.metadata["particles"]),
        noise_min=noise["min"],
        noise_max=noise["max"],
        repulsion=tuple(map(tuple, h.pop("repulsion"))),
        **h,
    )
    weights = {name: jnp.asarray(tensors[name]) for name in network.shapes()}
    log_noise = jnp.log(jnp.float32(noise["simulation"]))
    score = jax.jit(jax.vmap(lambda x: network.score(weights, x, log_noise)))
    for n_frames, n_ours, n_jax in [(1, 20_000, 2_000), (256, 200, 50)]:
        simulation = diffusim.Simulation(model, n_replicas=n_frames, effective_step=1e-12, seed=1)
        x = jnp.asarray(simulation.positions, jnp.float32)

        def peer(n=n_jax, x=x, count=n_jax * n_frames):
            def repeat():
                for _ in range(n):
                    score(x).block_until_ready()

            return rate(repeat, count)

        yield compare(
            f"message-passing score {n_frames} frame" + ("s" if n_frames > 1 else ""),
            "frames/s",
            lambda s=simulation, n=n_ours, count=n_ours * n_frames: rate(lambda: s.step(n), count),
            peer,
            "JAX, jitted, float32; ours takes the step as well",
            2.0,
        )


def all_atom():
    """Picoseconds per second of the all-atom simulation that made the data, on one core."""
    sys.path.insert(0, str(ROOT / "examples/ala2"))
    import make_reference

    pdb, system = make_reference.build()
    integrator = openmm.LangevinMiddleIntegrator(300, 1.0, make_reference.STEP)
    simulation = app.Simulation(pdb.topology, system, integrator, openmm.Platform.getPlatform("Reference"))
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy()
    simulation.step(2_000)
    return rate(lambda: simulation.step(50_000), 50_000) * make_reference.STEP.value_in_unit(unit.picosecond)


def openmm_copies(spring, step, peer_name):
    """A thousand copies in one System against as many replicas of the core."""
    copies, n = 1000, 300
    simulation = diffusim.openmm.simulation(MODEL, spring=spring, seed=1, copies=copies)
    core = diffusim.Simulation(MODEL, effective_step=step, n_replicas=copies, seed=1)
    ours = partial(rate, lambda: simulation.integrator.step(n), n * copies)
    return compare(
        f"openmm {copies} copies",
        "replica-steps/s",
        ours,
        partial(rate, lambda: core.step(n), n * copies),
        peer_name,
        0.95,
    )


def main():
    model = diffusim.Model(MODEL)
    step = model.metadata["recommended_effective_step"]
    run_jax = jax_dynamics(model, step)
    rows = []
    for n_replicas, n_ours, n_jax, limit in [(1, 200_000, 20_000, 3.0), (1000, 400, 200, 1.5)]:
        simulation = diffusim.Simulation(model, n_replicas=n_replicas, effective_step=step, seed=1)
        start = jnp.asarray(simulation.positions, jnp.float32)
        key = jax.random.key(1)

        def ours(n_replicas=n_replicas, n=n_ours, count=n_ours * n_replicas):
            fresh = diffusim.Simulation(MODEL, n_replicas=n_replicas, effective_step=step, seed=1)
            fresh.step(n // 20)  # where its weights fall in the cache is chance: every pair draws anew
            return rate(lambda: fresh.step(n), count)

        def peer(start=start, key=key, n=n_jax, count=n_jax * n_replicas):
            return rate(lambda: run_jax(start, key, n).block_until_ready(), count)

        name = f"score {n_replicas} replica" + ("s" if n_replicas > 1 else "")
        rows.append(compare(name, "replica-steps/s", ours, peer, "JAX, jitted lax.scan, float32", limit))

    spring, n = 0.5 / step / unit.nanometer**2, 100_000

    def door():
        temperature = model.training_temperature * unit.kelvin
        simulation = diffusim.openmm.simulation(MODEL, temperature=temperature, spring=spring, seed=1)
        simulation.integrator.step(n // 20)
        return rate(lambda: simulation.integrator.step(n), n)

    rows += message_passing_rows()
    peer_name = f"the core alone (OpenMM {openmm.__version__}, platform Reference)"
    rows.append(compare("openmm step", "steps/s", door, partial(core_rate, n), peer_name, 0.95))
    rows.append(openmm_copies(spring, step, peer_name))
    with tempfile.TemporaryDirectory() as folder:
        rows += lammps_rows(model, Path(folder))

    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    (out / "bench.json").write_text(json.dumps(rows, indent=2) + "\n")
    table = Table("", "ours", "peer", "ratio", "limit", "peer is", title="speed, in steps of a replica per second")
    for r in rows:
        colour = "green" if r["ratio"] >= r["limit"] else "red"
        figures = [f"{r['ours']:,.0f}", f"{r['peer']:,.0f}", f"[{colour}]{r['ratio']:.2f}[/]", f"{r['limit']:.2f}"]
        table.add_row(r["name"], *figures, r["peer_name"])
    console = Console()
    console.print(table)
    report = out / "ala2/report.json"
    if report.exists():  # of `make demo`: how far psi relaxes in a unit of tau, in ps of the all-atom simulation
        ps_per_step = step / json.loads(report.read_text())["nm2_per_ps_by_psi"]
        console.print(
            "relaxation of psi per wall second, in ps of the all-atom simulation: "
            f"all-atom {all_atom():,.0f} (one core), learned {rows[0]['ours'] * ps_per_step:,.1f} (one replica) "
            f"and {rows[1]['ours'] * ps_per_step:,.0f} (1,000 replicas, all cores)"
        )


if __name__ == "__main__":
    main()
