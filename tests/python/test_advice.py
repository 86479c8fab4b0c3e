"""Advice on steps, where the stiffest mode is known. No parameter is 1."""

import numpy as np
import pytest

from diffusim import DiffusimError, Model, Simulation
from diffusim.advice import advise, relative_variance

T0 = 250.0


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
