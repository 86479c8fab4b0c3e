"""The message-passing network in JAX, and its doors in Python."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusim import DiffusimError, Domain, Model, Simulation
from diffusim.training.message_passing import MessagePassingNetwork, nearest

FIXTURES = Path(__file__).parent.parent / "fixtures"


def load(name):
    """Network, weights, model and the fixture's frames."""
    model = Model(FIXTURES / f"{name}.safetensors")
    metadata, tensors = model.metadata, load_file(FIXTURES / f"{name}.safetensors")
    h, noise = metadata["hyperparameters"], metadata["noise_levels"]
    species = tuple(h.pop("species"))
    network = MessagePassingNetwork(
        species=species,
        particles=tuple(species.index(p["element"] or p["name"]) for p in metadata["particles"]),
        noise_min=noise["min"],
        noise_max=noise["max"],
        cell=tuple(map(tuple, tensors["start_cell"].tolist())) if metadata["periodic"] else None,
        repulsion=tuple(map(tuple, h.pop("repulsion"))),
        **h,
    )
    weights = {name: jnp.asarray(tensors[name]) for name in network.shapes()}
    return network, weights, model, json.loads((FIXTURES / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["message_passing_open", "message_passing_periodic"])
def test_network_core_and_fixture_agree(name):
    network, weights, model, fixture = load(name)
    x = np.array(fixture["positions"])
    case = fixture["cases"][0]
    scores, energies, virials = model.evaluate_in_cell(x, model.start_cell if model.is_periodic else None)
    assert np.abs(scores - case["scores"]).max() < 1e-5 * np.abs(scores).max()
    assert energies == pytest.approx(case["energies"], rel=1e-5)
    again, _ = model.evaluate(x)
    assert (again == scores).all() and np.isfinite(virials).all()
    energy = network.energy(weights, jnp.asarray(x[0], jnp.float32), jnp.log(case["noise_level"]))
    assert float(energy) == pytest.approx(case["energies"][0], rel=1e-4)


def test_a_search_finds_the_neighbours_that_all_pairs_have():
    network, weights, _, fixture = load("message_passing_periodic")
    x = jnp.asarray(fixture["positions"][0], jnp.float32)
    level = jnp.log(0.0021)
    everything = network.energy(weights, x, level)
    cell = np.array(network.cell)
    fields = {**network.__dict__}
    few = MessagePassingNetwork(**(fields | {"max_neighbors": 15}))
    assert float(few.energy(weights, x, level)) == pytest.approx(float(everything), rel=1e-5)
    neighbors, left_out = nearest(np.asarray(x), 15, cell)
    assert left_out > network.cutoff
    given = network.energy(weights, x, level, None, jnp.asarray(neighbors))
    assert float(given) == pytest.approx(float(everything), rel=1e-5)
    too_few = MessagePassingNetwork(**(fields | {"max_neighbors": 2}))
    assert np.isnan(float(too_few.energy(weights, x, level)))


def test_other_particles_and_cells():
    _, _, model, _ = load("message_passing_periodic")
    other = model.for_species(["N", "C", "C"])
    assert other.n_particles == 3 and other.masses == pytest.approx([14.007, 12.011, 12.011])
    simulation = Simulation(other, effective_step=1e-6, allow_unstable=True, seed=3)
    assert simulation.cell is None
    simulation.cell = 1.7 * np.eye(3)
    assert (simulation.cell == 1.7 * np.eye(3)).all()
    simulation.positions = [[0.0, 0.0, 0.0], [0.3, 0.1, 0.0], [1.5, 0.0, 0.2]]
    simulation.step(20)
    with pytest.raises(DiffusimError, match="needs twice that"):
        simulation.cell = np.eye(3)
    with pytest.raises(DiffusimError, match="particle 1 is 'Xe'"):
        model.for_species(["C", "Xe"])


def test_domains_are_parts_of_the_whole():
    """Two halves of a cell, each in a thread: the bits of the whole."""
    _, _, model, fixture = load("message_passing_periodic")
    x, cell = np.array(fixture["positions"][0]), model.start_cell
    types = np.array([["N", "C"].index(p["element"] or p["name"]) for p in model.metadata["particles"]])
    halves = [np.argsort(np.arange(len(x)) >= 7, kind="stable"), np.argsort(np.arange(len(x)) < 7, kind="stable")]
    n_owned = [7, len(x) - 7]
    domains = [Domain(model, ["N", "C"]) for _ in halves]
    board, barrier = np.zeros((len(x), domains[0].exchange_width), np.float32), threading.Barrier(2, timeout=20)
    assert domains[0].reach == pytest.approx(0.55)

    def evaluate(domain, ids, n):
        def exchange(rows):
            board[ids[:n], : rows.shape[1]] = rows[:n]
            barrier.wait()
            rows[n:] = board[ids[n:], : rows.shape[1]]
            barrier.wait()

        domain.set_cell(cell)
        return domain.evaluate(x[ids], types[ids], ids, n, exchange)

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(evaluate, domains, halves, n_owned))
    scores, energies, virials = model.evaluate_in_cell(x[None], cell)
    assert (np.concatenate([part[0] for part in parts]) == scores[0]).all()
    assert sum(part[1].sum() for part in parts) == pytest.approx(energies[0], rel=1e-12)
    assert sum(part[2].sum(axis=0) for part in parts) == pytest.approx(virials[0], rel=1e-12)

    with pytest.raises(DiffusimError, match="particle 1 is of type 2"):
        domains[0].evaluate(x[:2], [0, 2], [0, 1], 1, print)
    with pytest.raises(DiffusimError, match="n_owned"):
        domains[0].evaluate(x[:2], [0, 1], [0, 1], 3, print)
    with pytest.raises(DiffusimError, match="particle id 4 is there twice"):
        domains[0].evaluate(x[:2], [0, 1], [4, 4], 1, print)
    with pytest.raises(ZeroDivisionError):
        domains[0].evaluate(x[:2], [0, 1], [0, 1], 1, lambda rows: 1 / 0)
    with pytest.raises(DiffusimError, match="none was given"):
        domains[0].set_cell(None)


def test_weights_start_with_energies_of_order_one_per_particle():
    network, _, _, fixture = load("message_passing_open")
    weights = network.initial_weights(jax.random.key(4))
    energy = float(network.energy(weights, jnp.asarray(fixture["positions"][0], jnp.float32), jnp.log(0.0021)))
    assert abs(energy) < 10 * network.n_particles
    assert network.n_weights == sum(w.size for w in weights.values())
    assert set(network.tensors(weights)) == set(network.shapes())
