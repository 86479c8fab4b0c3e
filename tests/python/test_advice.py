"""Advice on steps, where the stiffest mode is known. No parameter is 1."""

import re
from pathlib import Path

import numpy as np
import pytest

from diffusim import DiffusimError, Model, Simulation
from diffusim.advice import advise, relative_variance

T0 = 250.0
BOLTZMANN = 0.00831446261815324  # kJ/(mol K)
NETWORK = Path(__file__).parents[1] / "fixtures" / "distance_small.safetensors"


def analytic(kind: str, n_particles: int = 2, **hyperparameters) -> Model:
    description = {"format_version": 1, "kind": kind, "n_particles": n_particles, "length_unit": "nm"}
    return Model.from_metadata(description | {"training_temperature": T0, "hyperparameters": hyperparameters})


def test_a_harmonic_model_is_as_stiff_as_its_spring():
    found = advise(analytic("harmonic", stiffness=70.0), np.full((3, 2, 3), 0.07))
    assert found.curvature == pytest.approx(70, rel=1e-6) and found.n_frames == 3
    assert found.stability_limit == pytest.approx(2 / 70) and found.softest_spring == pytest.approx(70 / 4)
    assert found.effective_step == pytest.approx(0.4 / 70) and found.spring == pytest.approx(70 / 0.8)


def test_a_short_run_finds_what_the_frames_do_not_show():
    """A narrow Gaussian in a wide one, from a frame where only the wide one is seen; and a blend of both."""
    spread = [0.02, 0.03, 0.05]
    mixture = analytic(
        "gaussian-mixture",
        n_particles=1,
        components=[
            {"weight": 400.0, "mean": [[0.0, 0.0, 0.0]], "spread": spread},
            {"weight": 0.1, "mean": [[0.0, 0.0, 0.0]], "spread": [0.3, 0.3, 0.3]},
        ],
    )
    found = advise(mixture, np.full((1, 1, 3), 0.11))
    assert found.curvature_of_frames < 30 < 2000 < found.curvature <= spread[0] ** -2 * 1.001
    blend = Model.blend(mixture, analytic("harmonic", n_particles=1, stiffness=70.0), 0.5)
    at_centre = advise(blend, np.zeros((1, 1, 3))).curvature_of_frames
    expected = 0.5 * mixture.largest_curvature(np.zeros((1, 1, 3))) + 0.5 * 70
    assert at_centre == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("adapter", ["euler-maruyama", "leimkuhler-matthews", "heun", "mala"])
def test_what_a_step_does_to_a_harmonic_mode(adapter):
    """Variances of 400 replicas x 6 coordinates, errors from the replicas."""
    stiffness, reduced_step, n_replicas = 70.0, 0.9, 400
    simulation = Simulation(
        analytic("harmonic", stiffness=stiffness),
        effective_step=reduced_step / stiffness,
        adapter=adapter,
        n_replicas=n_replicas,
        seed=29,
    )
    simulation.step(40)
    squares = []
    for _ in range(60):
        simulation.step(3)
        squares.append((simulation.positions**2).mean(axis=(1, 2)))
    squares = np.mean(squares, axis=0) * stiffness
    error = squares.std(ddof=1) / n_replicas**0.5
    print(squares.mean(), error, relative_variance(adapter, reduced_step))
    assert error < 0.01
    assert abs(squares.mean() - relative_variance(adapter, reduced_step)) < 4 * error


def test_the_fastest_mode_counts_all_masses():
    """Against the eigenvalues of the mass-weighted Hessian, by differences of the score; one light particle."""
    model = Model(NETWORK)
    x, masses, h = model.start_positions[:3], np.array([12.0, 14.0, 40.0, 2.9, 16.0]), 1e-4
    frequencies = []
    for frame in x:
        moved = frame.ravel() + h * np.vstack([np.eye(15), -np.eye(15)])
        scores = model.evaluate(moved.reshape(-1, 5, 3))[0].reshape(2, 15, 15)
        weights = np.repeat(masses, 3) ** -0.5
        hessian = weights[:, None] * (scores[1] - scores[0]) / (2 * h) * weights
        frequencies.append(np.sqrt(BOLTZMANN * 310 * np.linalg.eigvalsh((hessian + hessian.T) / 2)[-1]))
    frequency = model.largest_frequency(x, masses)
    assert frequency == pytest.approx(max(frequencies), rel=0.01)
    found = advise(model, x)
    scale = (found.curvature / found.curvature_of_frames) ** 0.5
    assert found.frequency == pytest.approx(model.largest_frequency(x) * scale) and found.frequency != frequency
    assert found.longest_time_step == pytest.approx(2 / found.frequency)
    assert found.time_step == pytest.approx(0.2 * np.pi / found.frequency)
    assert advise(analytic("harmonic", stiffness=70.0), np.full((3, 2, 3), 0.07)).frequency is None
    with pytest.raises(DiffusimError, match=r"masses has the shape \[2\]; expected \[5\]"):
        model.largest_frequency(x, [3.0, 4.0])


def test_a_light_particle_of_a_soft_mode_does_not_forbid_the_step():
    """Steps between the bound by the lightest mass and that by all: taken, and stable; refused beyond."""
    model = Model(NETWORK)
    masses = np.full(5, 40.0)
    start = model.start_positions
    each = [model.largest_frequency(start, np.where(np.arange(5) == i, 2.9, masses)) for i in range(5)]
    masses[np.argmin(each)] = 2.9
    strict = 2 / np.sqrt(BOLTZMANN * 310 * model.metadata["largest_curvature"] / 2.9)
    limit = 2 / min(each)
    print(f"lightest mass {strict:.3g} ps, all masses {limit:.3g} ps")
    assert limit > 1.3 * strict
    options = {"adapter": "langevin", "masses": masses, "friction_rate": 7.3, "seed": 3}
    simulation = Simulation(model, time_step=1.05 * strict, n_replicas=50, **options)
    simulation.step(400)
    assert 250 < simulation.statistics.kinetic_temperature < 370
    with pytest.raises(DiffusimError, match="all masses counted, at its start frames.*needs less than"):
        Simulation(model, time_step=1.6 * limit, **options)
    with pytest.raises(DiffusimError, match="were it all of the lightest particle"):
        Simulation(analytic("harmonic", stiffness=70.0), time_step=9.0, **(options | {"masses": [4.0, 9.0]}))


def test_a_mobile_particle_of_a_soft_mode_does_not_forbid_the_step():
    """The same without velocities, where D = kT/(m friction): the limit is that of D^1/2 (-grad s) D^1/2."""
    model = Model(NETWORK)
    masses = np.full(5, 40.0)
    start = model.start_positions
    each = [model.largest_frequency(start, np.where(np.arange(5) == i, 2.9, masses)) for i in range(5)]
    masses[np.argmin(each)] = 2.9
    strict = 2 / model.metadata["largest_curvature"]
    limit = 2 * BOLTZMANN * 310 / (2.9 * min(each) ** 2)
    print(f"most mobile particle {strict:.3g} nm², all mobilities {limit:.3g} nm²")
    assert limit > 1.6 * strict
    options = {"masses": masses, "friction_rate": 7.3, "seed": 3}
    simulation = Simulation(model, effective_step=1.05 * strict, n_replicas=50, **options)
    simulation.step(400)
    assert strict < simulation.statistics.stability_limit < 1.3 * limit
    with pytest.raises(
        DiffusimError, match=r"too soft .* all mobilities counted, at its start frames\) needs more than"
    ):
        Simulation(model, effective_step=1.6 * limit, **options)
    with pytest.raises(DiffusimError, match=r"stiffest mode \(2726 /nm²\) needs more"):
        Simulation(model, effective_step=1.05 * strict, diffusion_coefficient=0.003)


def test_a_time_step_too_long_is_called_that():
    """In the terms that were used, and with the adapter that can take it."""
    model = Model(NETWORK)
    with pytest.raises(DiffusimError) as failure:
        Simulation(model, time_step=0.035, friction_rate=7.3)
    pattern = (
        r"a time step of 0.035 ps \(τ = \S+ nm², spring \S+ /nm²\) is too long for distance_small.* needs less than "
    )
    assert re.search(pattern + r"\S+ ps; .*with adapter Langevin 0.035 ps is stable$", str(failure.value))
    Simulation(model, time_step=0.035, friction_rate=7.3, adapter="langevin").step(10)
    with pytest.raises(DiffusimError) as failure:
        Simulation(model, time_step=0.5, friction_rate=7.3)
    assert "Langevin" not in str(failure.value)


def test_steps_beyond_the_limit_have_no_variance():
    for adapter in ("euler-maruyama", "leimkuhler-matthews", "heun"):
        assert np.isfinite(relative_variance(adapter, 1.9)) and relative_variance(adapter, 2.0) == np.inf
    assert relative_variance("mala", 2.5) == 1.0


def test_what_cannot_be_measured_is_one_sentence():
    with pytest.raises(DiffusimError, match="harmonic has no start frames to measure"):
        advise(analytic("harmonic", stiffness=70.0))
    with pytest.raises(DiffusimError, match="the largest curvature of free is 0 /nm.2 at these frames"):
        advise(analytic("free"), np.zeros((2, 2, 3)))
    with pytest.raises(DiffusimError, match="adapter is 'langevin'; expected euler-maruyama, "):
        relative_variance("langevin", 0.3)
