"""The time-parallel sampler through Python: options, statistics, callables, the command line."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from diffusim import DiffusimError, Model, Simulation, Status

ROOT = Path(__file__).parents[2]
ALA2 = ROOT / "examples" / "ala2" / "ala2.safetensors"


def test_the_trajectory_is_the_sequential_one():
    options = {"seed": 31, "n_replicas": 2}
    expected, simulation = Simulation(ALA2, **options), Simulation(ALA2, sampler="time-parallel", **options)
    for n_steps in (1, 40, 9):
        expected.step(n_steps)
        simulation.step(n_steps)
        np.testing.assert_allclose(simulation.positions, expected.positions, atol=5e-6)
    done = simulation.statistics
    assert done.rounds <= done.sweeps <= 2 * done.rounds and done.score_evaluations == 64 * done.sweeps
    assert done.steps_per_sweep > 1.5
    assert done.evaluations_per_step == pytest.approx(64 / done.steps_per_sweep)
    none = expected.statistics
    assert none.rounds == 0 and none.steps_per_sweep is None and none.evaluations_per_step is None

    resumed = Simulation(ALA2, sampler="time-parallel", **options)
    resumed.restore(simulation.checkpoint())
    resumed.step(30)
    simulation.step(30)
    np.testing.assert_array_equal(resumed.positions, simulation.positions)
    simulation.reconfigure(sampler="sequential")
    rounds = simulation.statistics.rounds
    simulation.step(30)
    assert simulation.statistics.rounds == rounds > done.rounds


def test_picard_to_the_last_bit():
    options = {"seed": 32, "effective_step": 1e-7}
    expected = Simulation(ALA2, **options)
    simulation = Simulation(ALA2, sampler="time-parallel", jacobian="identity", tolerance=0, window=9, **options)
    expected.step(50)
    simulation.step(50)
    np.testing.assert_array_equal(simulation.positions, expected.positions)


def test_a_callable_sees_windows_and_ctrl_c_ends_them():
    seen = []

    def score(positions):
        seen.append(len(positions))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return -20 * positions

    model = Model.from_callable(3, score, 250.0)
    simulation = Simulation(model, seed=4, effective_step=2e-3, sampler="time-parallel", window=17, n_threads=1)
    with pytest.raises(KeyboardInterrupt):
        simulation.step(1000)
    assert seen == [17] * 4
    before = simulation.step_count
    simulation.step(100)
    assert simulation.step_count == before + 100


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"sampler": "sideways"}, Status.INVALID_ARGUMENT, "expected sequential or time-parallel or auto"),
        ({"jacobian": "none"}, Status.INVALID_ARGUMENT, "jacobian is 'none'"),
        ({"window": 1}, Status.INVALID_ARGUMENT, "window is 1 frames; expected 2 or more"),
        ({"window": -3}, Status.INVALID_ARGUMENT, "window is -3"),
        ({"window": 2**55}, Status.INVALID_ARGUMENT, "do not fit into memory; use a shorter window"),
        ({"tolerance": -1e-6}, Status.INVALID_ARGUMENT, "tolerance is -0.000001 nm"),
        ({"tolerance": -1}, Status.INVALID_ARGUMENT, "tolerance is -1; expected 0 or"),
        ({"sampler": "sequential", "window": 64}, Status.INVALID_ARGUMENT, "window is 64 frames and the sam"),
        ({"sampler": "sequential", "tolerance": 0}, Status.INVALID_ARGUMENT, "tolerance is 0 nm and the sampler"),
        ({"sampler": "sequential", "jacobian": "dense"}, Status.INVALID_ARGUMENT, "jacobian is Dense and the sampler"),
        ({"adapter": "heun"}, Status.UNSUPPORTED, "sampler time-parallel cannot take the steps of the adapter Heun"),
    ],
)
def test_what_cannot_be_done_is_said(options, status, words):
    with pytest.raises(DiffusimError, match=words) as failure:
        Simulation(ALA2, **({"sampler": "time-parallel"} | options))
    assert failure.value.status is status


def test_the_example_measures_what_it_says(tmp_path):
    path = ROOT / "examples" / "time-parallel" / "time_parallel.py"
    spec = importlib.util.spec_from_file_location("time_parallel", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    system = dataclasses.replace(example.SYSTEMS[0], n_steps=400, window=32)
    found = example.measure(system, 4e-4)
    assert [row.method for row in found] == ["identity", "diagonal", "dense"]
    for row in found:
        assert row.steps_per_round > 2 and row.deviation < 0.01 and row.speed > 0
        assert row.evaluations_per_step == pytest.approx(32 / row.steps_per_round)
    example.draw(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
