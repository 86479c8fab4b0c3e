"""The Python door to the core: shapes, units, closed forms, errors. No parameter is 1, so that none is forgotten."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from diffusim import DiffusimError, Model, Simulation, Status, _library

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests" / "fixtures" / "distance_small.safetensors"
BOLTZMANN = 0.00831446261815324  # kJ/(mol K)
STIFFNESS, T0 = 40.0, 250.0


def analytic(kind: str, **hyperparameters) -> Model:
    """Three particles."""
    return Model.from_metadata(
        {
            "format_version": 1,
            "kind": kind,
            "n_particles": 3,
            "length_unit": "nm",
            "training_temperature": T0,
            "hyperparameters": hyperparameters,
        }
    )


def harmonic() -> Model:
    return analytic("harmonic", stiffness=STIFFNESS)


def test_every_function_and_struct_is_declared_as_in_the_header():
    header = re.sub(r"//[^\n]*", "", (ROOT / "include" / "diffusim.h").read_text())
    declared = {
        name: 0 if arguments.strip() == "void" else arguments.count(",") + 1
        for name, arguments in re.findall(r"\b(diffusim_\w+)\(([^()]*)\);", header)
    }
    known = {name: len(arguments) for name, arguments in _library.CALLS.items()}
    known |= {name: len(arguments) for name, (_, arguments) in _library.OTHERS.items()}
    assert known == declared
    structs = (_library.ModelOptions, _library.SimulationOptions, _library.EvaluatorOptions)
    for struct in (*structs, _library.SimulationStatistics):
        body = re.search(r"typedef struct \{([^{}]*)\} " + struct.__doc__, header)[1]
        names = re.findall(r"(\w+);", body)
        assert names == [name for name, _ in struct._fields_]
    statuses = dict(re.findall(r"#define DIFFUSIM_ERROR_(\w+) (\d+)", header))
    assert {name: int(value) for name, value in statuses.items()} == {s.name: s.value for s in Status}


def test_scores_and_energies_are_those_of_jax():
    fixture = json.loads(SMALL.with_suffix(".json").read_text())
    positions = np.array(fixture["positions"])
    for case in fixture["cases"]:
        scores, energies = Model(SMALL, noise_level=case["noise_level"]).evaluate(positions)
        np.testing.assert_allclose(scores, case["scores"], rtol=2e-4, atol=2e-4 * np.abs(case["scores"]).max())
        differences = energies - energies[0], np.array(case["energies"]) - case["energies"][0]
        np.testing.assert_allclose(*differences, rtol=2e-4, atol=2e-4)


def test_a_model_knows_its_file():
    model = Model(SMALL)
    assert model.bytes == SMALL.read_bytes()
    copy = Model.from_bytes(model.bytes, name="copy of it")
    assert copy.sha256 == model.sha256
    assert (model.name, copy.name) == ("distance_small.safetensors", "copy of it")
    assert model.metadata["particles"][1]["name"] == "CA"
    assert model.training_temperature == 310.0
    assert model.masses.tolist() == [p["mass"] for p in model.metadata["particles"]]
    assert model.start_positions.shape == (6, 5, 3)
    assert model.n_particles == 5
    assert "distance_small" in repr(model)


@pytest.mark.parametrize("adapter", ["euler-maruyama", "leimkuhler-matthews"])
def test_harmonic_variance(adapter):
    """Under EM (1/kappa) / (1 - kappa tau / 2), under LM exact: 1/kappa (theory 2, 10)."""
    tau = 0.02
    simulation = Simulation(harmonic(), effective_step=tau, adapter=adapter, n_replicas=2000, seed=11)
    simulation.step(200)
    squares = []
    for _ in range(50):
        simulation.step(20)
        squares.append(np.mean(simulation.positions**2))
    expected = 1 / STIFFNESS / (1 - STIFFNESS * tau / 2 if adapter == "euler-maruyama" else 1)
    n_independent = 50 * 2000 * 3 * 3 * np.tanh(20 * STIFFNESS * tau)
    assert np.mean(squares) == pytest.approx(expected, rel=4 * np.sqrt(2 / n_independent))


def test_temperature_widens_the_density():
    """At fixed friction the variance is multiplied by T / T0 (theory 5)."""
    simulation = Simulation(harmonic(), 1.6 * T0, effective_step=0.01, n_replicas=4000, seed=12)
    simulation.step(300)
    assert np.mean(simulation.positions**2) == pytest.approx(1.6 / STIFFNESS, rel=4 * np.sqrt(2 / 36000))


def test_a_bias_adds_to_the_drift():
    """A constant force F moves the mean to F / (kT0 kappa) (theory 6)."""
    force = np.zeros((4000, 3, 3))
    force[:, 1, 2] = 7.0  # kJ/(mol nm)
    simulation = Simulation(harmonic(), effective_step=0.01, n_replicas=4000, seed=13)
    for _ in range(60):
        simulation.step_biased(force)
    mean = simulation.positions.mean(axis=0)
    expected = np.zeros((3, 3))
    expected[1, 2] = 7.0 / (BOLTZMANN * T0 * STIFFNESS)
    np.testing.assert_allclose(mean, expected, atol=4.5 / np.sqrt(4000 * STIFFNESS))


def test_free_particles_diffuse_as_their_masses_say():
    """MSD = 6 D t with D = kT / (m friction) (theory 3, 4)."""
    masses, friction, time_step, n = np.array([12.0, 16.0, 2.0]), 5.0, 0.003, 400
    simulation = Simulation(
        analytic("free"), 310.0, time_step=time_step, friction_rate=friction, masses=masses, n_replicas=4000, seed=14
    )
    simulation.step(n)
    msd = np.sum(simulation.positions**2, axis=-1).mean(axis=0)
    expected = 6 * BOLTZMANN * 310.0 / (masses * friction) * time_step * n
    np.testing.assert_allclose(msd, expected, rtol=4 * np.sqrt(2 / 12000))
    assert simulation.statistics.time_step == time_step
    assert simulation.statistics.diffusion_coefficient == pytest.approx(BOLTZMANN * 310.0 / (2.0 * friction))


def test_same_seed_same_trajectory_however_it_is_cut():
    model = Model(SMALL)

    def positions(steps, **options):
        simulation = Simulation(model, **{"seed": 5, "n_replicas": 3} | options)
        for n in steps:
            simulation.step(n)
        return simulation.positions

    whole = positions([700])
    np.testing.assert_array_equal(positions([1, 299, 400]), whole)
    np.testing.assert_array_equal(positions([700], n_threads=2), whole)
    assert not np.array_equal(positions([700], seed=6), whole)
    shifted = Simulation(model, seed=5, n_replicas=2, first_replica=1)
    shifted.step(700)
    np.testing.assert_array_equal(shifted.positions, whole[1:])


def test_a_fresh_seed_is_kept_and_differs():
    first, second = (Simulation(harmonic(), spring=30.0) for _ in range(2))
    assert first.seed != second.seed


def test_checkpoint_continues_bit_for_bit():
    model = Model(SMALL)
    simulation = Simulation(model, seed=21, n_replicas=4)
    simulation.step(300)
    saved = simulation.checkpoint()
    simulation.step(250)
    other = Simulation(model, seed=22, n_replicas=4)
    other.restore(saved)
    assert (other.step_count, other.seed) == (300, 21)
    other.step(250)
    np.testing.assert_array_equal(other.positions, simulation.positions)

    stiffer = Simulation(model, spring=9000.0, n_replicas=4)
    for bad, receiver in ((saved, stiffer), (saved[:-1], other), (b"", other)):
        with pytest.raises(DiffusimError) as failure:
            receiver.restore(bad)
        assert failure.value.status is Status.INVALID_CHECKPOINT


def test_reconfigure_keeps_positions_and_steps():
    simulation = Simulation(harmonic(), effective_step=0.01, n_replicas=5, seed=3)
    simulation.step(40)
    before = simulation.positions
    simulation.reconfigure(temperature=410.0, seed=4)
    np.testing.assert_array_equal(simulation.positions, before)
    assert (simulation.step_count, simulation.seed, simulation.statistics.temperature) == (40, 4, 410.0)
    with pytest.raises(TypeError, match="springs"):
        simulation.reconfigure(springs=3.0)


def test_statistics_count_what_was_done():
    simulation = Simulation(Model(SMALL), n_replicas=3, seed=2)
    simulation.step(20)
    statistics = simulation.statistics
    assert (statistics.steps, statistics.score_evaluations) == (20, 60)
    assert statistics.effective_step == 0.00015
    assert statistics.spring == pytest.approx(0.5 / 0.00015)
    assert statistics.stability_limit == pytest.approx(2 / 2730, rel=0.01)
    assert statistics.time_step is None
    assert statistics.largest_score >= np.abs(simulation.scores).max() * 0.1
    scores, energies = simulation.model.evaluate(simulation.positions)
    np.testing.assert_array_equal(simulation.scores, scores)
    np.testing.assert_array_equal(simulation.energies, energies)


def test_curvature_and_temperature_of_a_harmonic_model():
    model = harmonic()
    frames = np.random.default_rng(1).normal(scale=np.sqrt(1 / STIFFNESS), size=(3000, 3, 3))
    assert model.largest_curvature(frames[:4]) == pytest.approx(STIFFNESS, rel=1e-3)
    assert model.configurational_temperature(frames) == pytest.approx(T0, rel=4 * np.sqrt(2 / 27000))


def test_a_subset_moves_only_its_particles():
    model = Model(SMALL)
    subset = model.subset(8, [6, 0, 3, 2, 7])
    frames = np.random.default_rng(2).normal(size=(2, 8, 3))
    frames[:, [6, 0, 3, 2, 7]] = model.start_positions[:2]
    scores, energies = subset.evaluate(frames)
    expected, expected_energies = model.evaluate(model.start_positions[:2])
    np.testing.assert_array_equal(scores[:, [6, 0, 3, 2, 7]], expected)
    np.testing.assert_array_equal(energies, expected_energies)
    assert not scores[:, [1, 4, 5]].any()


def test_a_callable_is_a_model():
    def well(positions):
        return -STIFFNESS * positions, 0.5 * STIFFNESS * np.sum(positions**2, axis=(1, 2))

    ours, theirs = (
        Simulation(model, effective_step=0.004, n_replicas=9, seed=8)
        for model in (Model.from_callable(3, well, T0), harmonic())
    )
    ours.step(50)
    theirs.step(50)
    np.testing.assert_allclose(ours.positions, theirs.positions, rtol=1e-12)
    np.testing.assert_allclose(ours.energies, theirs.energies, rtol=1e-12)


def test_what_a_callable_raises_is_the_cause():
    def broken(positions):
        raise ZeroDivisionError("seven")

    simulation = Simulation(Model.from_callable(3, broken, T0), spring=30.0)
    with pytest.raises(DiffusimError, match="ZeroDivisionError: seven") as failure:
        simulation.step(3)
    assert failure.value.status is Status.CALLBACK
    assert failure.value.__cause__.__traceback__.tb_next.tb_frame.f_code.co_name == "broken"

    with pytest.raises(DiffusimError, match=r"shape \[1, 9\]; expected \[1, 3, 3\]"):
        Simulation(Model.from_callable(3, lambda x: x.reshape(1, 9), T0), spring=30.0).step(3)
    silent = Simulation(Model.from_callable(3, lambda x: -x, T0), spring=30.0)
    with pytest.raises(DiffusimError, match="returns no energies"):
        silent.energies  # noqa: B018

    def interrupted(positions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Simulation(Model.from_callable(3, interrupted, T0), spring=30.0).step(3)


def test_the_last_good_frame_is_kept():
    def cliff(positions):
        return np.where(np.abs(positions) < 0.5, -2.0 * positions, np.nan)

    simulation = Simulation(Model.from_callable(2, cliff, T0), effective_step=0.002, seed=3)
    with pytest.raises(DiffusimError, match="not finite") as failure:
        simulation.step(100_000)
    assert failure.value.status is Status.NOT_FINITE
    assert np.isfinite(simulation.positions).all() and np.abs(simulation.positions).max() < 0.5
    assert 0 < simulation.step_count < 100_000


def test_a_simulation_outlives_the_names_of_its_model():
    simulation = Simulation(harmonic(), spring=30.0, seed=1)
    simulation.step(2)
    assert np.isfinite(simulation.positions).all()


def test_two_threads_run_at_once_and_agree():
    simulations = [Simulation(Model(SMALL), seed=31) for _ in range(3)]
    threads = [threading.Thread(target=s.step, args=(3000,)) for s in simulations[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    simulations[2].step(3000)
    for simulation in simulations[:2]:
        np.testing.assert_array_equal(simulation.positions, simulations[2].positions)


def test_ctrl_c_stops_a_long_run():
    script = (
        "import diffusim, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits that it is ignored
        f"s = diffusim.Simulation({str(SMALL)!r}, seed=1, n_replicas=50)\n"
        "print('running', flush=True)\n"
        "s.step(10**12)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", script], text=True, **pipes)
    assert process.stdout.readline() == "running\n"
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode != 0 and "KeyboardInterrupt" in error


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"spring": 30.0, "effective_step": 0.01}, "spring, effective_step and time_step"),
        ({"time_step": 0.01}, "needs a friction rate"),
        ({"spring": 0}, "spring is 0"),
        ({"spring": -3.0}, "spring is -3"),
        ({"spring": 30.0, "temperature": -3.0}, "temperature is -3"),
        ({"spring": 30.0, "masses": [12.0, 16.0]}, r"masses has the shape \[2\]; expected \[3\]"),
        ({"spring": 30.0, "adapter": "rk4"}, "adapter is 'rk4'; expected euler-maruyama or leimkuhler"),
        ({"spring": 30.0, "schedule_end": "stop"}, "schedule_end is 'stop'"),
        ({"spring": 30.0, "seed": -1}, "seed is -1"),
        ({"spring": 30.0, "n_replicas": 0}, "n_replicas is 0"),
        ({"spring": 30.0, "device": "cuda:77"}, "device 'cuda:77'"),
        ({"spring": 30.0, "device": "gpu"}, "device 'gpu' is unknown; expected 'auto', 'cpu', 'cuda'"),
        (
            {"spring": 30.0, "matmul_precision": "tf32"},
            "matmul_precision 'tf32' is unknown; expected 'highest' or 'high'",
        ),
        (
            {"spring": 30.0, "matmul_precision": "high"},
            "tensor cores of GPUs and device is 'auto'; expected device 'cuda'",
        ),
        ({}, "recommends no step"),
    ],
)
def test_a_wrong_option_is_named(options, sentence):
    with pytest.raises(DiffusimError, match=sentence):
        Simulation(harmonic(), **options)


def test_a_spring_too_soft_for_the_model_is_refused():
    with pytest.raises(DiffusimError, match="too soft") as failure:
        Simulation(Model(SMALL), effective_step=0.0008)
    assert failure.value.status is Status.UNSTABLE
    Simulation(Model(SMALL), effective_step=0.0008, allow_unstable=True)


def test_arguments_of_the_wrong_type_are_named():
    simulation = Simulation(harmonic(), spring=30.0)
    for value in (1.5, 1e3, "x"):
        with pytest.raises(TypeError, match=f"n_steps is {value!r}; expected a whole number"):
            simulation.step(value)
    simulation.step(np.int64(3))
    assert simulation.step_count == 3
    with pytest.raises(TypeError, match="temperature is 'hot'; expected a number"):
        Simulation(harmonic(), "hot", spring=30.0)
    with pytest.raises(TypeError, match=r"n_replicas is 2.5; expected a whole number"):
        Simulation(harmonic(), spring=30.0, n_replicas=2.5)


def test_a_simulation_says_what_it_is():
    simulation = Simulation(harmonic(), 263.0, spring=30.0, n_replicas=1200, adapter="heun")
    simulation.step(7)
    expected = "<diffusim.Simulation of harmonic: 1,200 × 3 particles, heun, τ = 0.0167 nm², 263 K, step 7>"
    assert repr(simulation) == expected


def test_models_go_to_other_processes():
    """Pickled and back they are the same, whatever they were made of."""
    file = Model(SMALL, noise_level=0.003)
    periodic = Model(SMALL.with_name("message_passing_periodic.safetensors"))
    x = file.start_positions[:2]
    cases = [
        (file, x),
        (file.subset(7, [1, 2, 3, 5, 6]), np.concatenate([x, x[:, :2]], axis=1)),
        (harmonic(), np.full((2, 3, 3), 0.07)),
        (Model.blend(file, SMALL, 0.3), x),
        (periodic.for_species([p["element"] or p["name"] for p in periodic.metadata["particles"]]), None),
        (Model.from_callable(2, np.negative, 250.0), np.full((2, 2, 3), 0.07)),
    ]
    for model, positions in cases:
        again = pickle.loads(pickle.dumps(model))
        assert repr(again) == repr(model) and again.noise_level == model.noise_level
        if positions is None:
            assert again.metadata == model.metadata
        elif "callable" not in repr(model) and "callback" not in repr(model):
            for new, old in zip(again.evaluate(positions), model.evaluate(positions), strict=True):
                np.testing.assert_array_equal(new, old)


def test_arrays_of_the_wrong_shape_are_named():
    simulation = Simulation(harmonic(), spring=30.0, n_replicas=2)
    with pytest.raises(DiffusimError, match=r"positions has the shape \[2, 4, 3\]; expected \[2, 3, 3\]"):
        simulation.positions = np.zeros((2, 4, 3))
    with pytest.raises(DiffusimError, match=r"forces has the shape \[3, 3\]"):
        simulation.step_biased(np.zeros((3, 3)))
    with pytest.raises(DiffusimError, match="is NaN; expected finite numbers"):
        simulation.positions = np.full((3, 3), np.nan)
    with pytest.raises(DiffusimError, match=r"positions has the shape \[3\]"):
        harmonic().evaluate(np.zeros(3))
    simulation.positions = np.full((3, 3), 0.25)
    np.testing.assert_array_equal(simulation.positions, np.full((2, 3, 3), 0.25))


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(DiffusimError, match="absent.safetensors") as failure:
        Model(tmp_path / "absent.safetensors")
    assert failure.value.status is Status.IO
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(SMALL.read_bytes()[:-5])
    with pytest.raises(DiffusimError, match="cut.safetensors") as failure:
        Model(cut)
    assert failure.value.status is Status.INVALID_MODEL
    with pytest.raises(DiffusimError, match="noise_level is 0"):
        Model(SMALL, noise_level=0)


def test_a_missing_library_says_what_to_do(tmp_path):
    broken = tmp_path / "libdiffusim.so"
    broken.write_bytes(b"no library")
    for path, sentence in ((tmp_path / "absent.so", "does not exist"), (broken, "cannot be loaded")):
        done = subprocess.run(
            [sys.executable, "-c", "import diffusim; diffusim.Model('x')"],
            env=os.environ | {_library.PATH_VARIABLE: str(path)},
            capture_output=True,
            text=True,
        )
        assert sentence in done.stderr and "Install diffusim again" in done.stderr


def test_drags_and_diffusion_coefficients_may_differ_between_particles():
    model = analytic("free")
    drags, n_replicas, n_steps, time_step = [31.0, 77.0, 12.5], 20_000, 7, 0.013
    simulation = Simulation(
        model, time_step=time_step, drag=drags, n_replicas=n_replicas, seed=5, adapter="euler-maruyama"
    )
    simulation.step(n_steps)
    squares = (simulation.positions**2).sum(axis=2)
    for i, drag in enumerate(drags):
        expected = 6 * BOLTZMANN * T0 / drag * time_step * n_steps
        error = squares[:, i].std() / np.sqrt(n_replicas)
        assert abs(squares[:, i].mean() - expected) < 4 * error and error < 0.01 * expected
    halved = Simulation(
        model, effective_step=1e-4, noise_schedule=[0.5], n_replicas=n_replicas, seed=5, adapter="euler-maruyama"
    )
    halved.step(n_steps)
    squares = (halved.positions**2).sum(axis=2).ravel()
    expected = 6 * 0.5e-4 * n_steps
    assert abs(squares.mean() - expected) < 4 * squares.std() / np.sqrt(squares.size)


def test_metropolis_reports_its_acceptance_and_wants_energies():
    tau = 0.02
    simulation = Simulation(harmonic(), effective_step=tau, adapter="mala", n_replicas=2000, seed=21)
    simulation.step(400)
    assert 0.2 < simulation.statistics.acceptance < 0.9
    squares = np.mean(simulation.positions**2, axis=(1, 2))
    assert abs(squares.mean() - 1 / STIFFNESS) < 4 * squares.std() / np.sqrt(squares.size)
    assert Simulation(harmonic(), effective_step=tau).statistics.acceptance is None
    with pytest.raises(DiffusimError, match="at both ends of each step"):
        simulation.step_biased(np.zeros((2000, 3, 3)))
    without = Simulation(Model.from_callable(3, lambda x: -7.0 * x, T0), effective_step=tau, adapter="mala")
    with pytest.raises(DiffusimError, match="returns no energies"):
        without.step(1)


def test_langevin_has_velocities():
    """Variances kT/kappa and kT/m at a coarse step (theory 11); velocities can be read, set and drawn."""
    masses, n_replicas = np.array([2.3, 7.1, 0.0]), 3000
    settings = {"adapter": "langevin", "friction_rate": 27.0, "time_step": 0.1, "masses": masses, "seed": 23}
    simulation = Simulation(harmonic(), 1.3 * T0, n_replicas=n_replicas, **settings)
    simulation.step(300)
    kt = BOLTZMANN * 1.3 * T0
    velocities, positions = simulation.velocities, simulation.positions
    assert not velocities[:, 2].any()
    for values, expected in (
        (velocities[:, 0], kt / masses[0]),
        (velocities[:, 1], kt / masses[1]),
        (positions[:, :2], 1.3 / STIFFNESS),
    ):
        assert np.mean(values**2) == pytest.approx(expected, rel=4 * np.sqrt(2 / (3 * n_replicas)))
    energy = 0.5 * np.sum(masses[:, None] * velocities**2) / n_replicas
    assert simulation.statistics.kinetic_energy == pytest.approx(energy)
    assert simulation.statistics.kinetic_temperature == pytest.approx(energy / (3 * BOLTZMANN))

    checkpoint = simulation.checkpoint()
    simulation.step(50)
    resumed = Simulation(harmonic(), 1.3 * T0, n_replicas=n_replicas, **settings)
    resumed.restore(checkpoint)
    np.testing.assert_array_equal(resumed.velocities, velocities)
    resumed.step(50)
    np.testing.assert_array_equal(resumed.velocities, simulation.velocities)
    one = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0, 0, 0]])
    simulation.velocities = one
    np.testing.assert_array_equal(simulation.velocities[7], one)
    simulation.draw_velocities()
    assert not np.array_equal(simulation.velocities[7], one)
    with pytest.raises(DiffusimError, match="velocity of particle 2"):
        simulation.velocities = one + 0.1
    with pytest.raises(DiffusimError, match="velocities has the shape"):
        simulation.velocities = one[:2]
    overdamped = Simulation(harmonic(), effective_step=0.01)
    assert overdamped.statistics.kinetic_temperature is None
    with pytest.raises(DiffusimError, match="has no velocities"):
        _ = overdamped.velocities
    with pytest.raises(DiffusimError, match="takes its step as a time step"):
        Simulation(harmonic(), effective_step=0.01, adapter="langevin", friction_rate=3.0)


def test_metropolis_is_tuned_to_a_target_in_burn_in_only():
    settings = {"effective_step": 0.002, "adapter": "mala", "n_replicas": 400, "seed": 24}
    simulation = Simulation(harmonic(), target_acceptance=0.6, burn_in_steps=1500, **settings)
    simulation.step(1500)
    factors = simulation.step_factors
    assert simulation.statistics.step_factor == pytest.approx(np.exp(np.log(factors).mean()))
    assert 2 < factors.min() and np.log(factors).std() < 0.2
    squares = np.zeros(400)
    for _ in range(60):
        simulation.step(10)
        squares += np.mean(simulation.positions**2, axis=(1, 2)) / 60
    np.testing.assert_array_equal(simulation.step_factors, factors)
    assert simulation.statistics.acceptance == pytest.approx(0.6, abs=0.02)
    assert abs(squares.mean() - 1 / STIFFNESS) < 4 * squares.std() / np.sqrt(squares.size)
    # The same replica alone.
    alone = Simulation(
        harmonic(), target_acceptance=0.6, burn_in_steps=1500, **(settings | {"n_replicas": 1}), first_replica=7
    )
    alone.step(2100)
    np.testing.assert_array_equal(alone.positions[0], simulation.positions[7])
    assert Simulation(harmonic(), **settings).statistics.step_factor is None
    for wrong, words in (
        ({"target_acceptance": 1.0, "burn_in_steps": 9}, "target acceptance is 1; expected a number between 0 and 1"),
        ({"target_acceptance": 0, "burn_in_steps": 9}, "target_acceptance is 0"),
        ({"target_acceptance": 0.6}, "no burn-in"),
        ({"burn_in_steps": 9}, "no target acceptance"),
        ({"target_acceptance": 0.6, "burn_in_steps": 9, "adapter": "heun"}, "is for adapter Mala"),
    ):
        with pytest.raises(DiffusimError, match=words):
            Simulation(harmonic(), **(settings | wrong))


def test_samples_depend_on_seed_and_number_alone():
    model = Model(SMALL)
    settings = {"seed": 11, "n_steps": 4, "corrector_steps": 3}
    frames = model.sample(600, **settings)
    assert frames.shape == (600, 5, 3) and np.isfinite(frames).all()
    assert np.abs(frames.mean(axis=1)).max() < 1e-12
    assert np.array_equal(model.sample(3, **settings, first_frame=597, n_threads=1), frames[597:])
    assert not np.array_equal(model.sample(3, **(settings | {"seed": 12})), frames[:3])
    assert model.sample(0, **settings).shape == (0, 5, 3)


def test_wrong_sampling_is_one_clear_sentence():
    model = Model(SMALL)
    for words, arguments in {
        "n_frames is -1": {"n_frames": -1},
        "n_steps is 0": {"n_frames": 2, "n_steps": 0},
        "seed is -3": {"n_frames": 2, "seed": -3},
        "start_level is 0": {"n_frames": 2, "start_level": 0},
        "start level 9 nm": {"n_frames": 2, "start_level": 9},
    }.items():
        with pytest.raises(DiffusimError, match=words):
            model.sample(**arguments)
    with pytest.raises(DiffusimError, match="no noise levels") as failure:
        harmonic().sample(2)
    assert failure.value.status is Status.UNSUPPORTED
