"""Blends of two models and what is computed with them, against closed forms. No parameter is 1."""

import numpy as np
import pytest

from diffusim import DiffusimError, Model, Simulation, Status

T0 = 250.0
STIFFNESS = 40.0
WEIGHT, SPREAD = 2.7, (0.13, 0.21, 0.17)
MEAN = [[0.31, -0.12, 0.07], [0.05, 0.22, -0.4]]


def analytic(kind: str, n_particles: int = 2, training_temperature: float = T0, **hyperparameters) -> Model:
    return Model.from_metadata(
        {
            "format_version": 1,
            "kind": kind,
            "n_particles": n_particles,
            "length_unit": "nm",
            "training_temperature": training_temperature,
            "hyperparameters": hyperparameters,
        }
    )


def wells() -> tuple[Model, Model]:
    """A harmonic well about the origin, and a Gaussian elsewhere, of other widths."""
    component = {"weight": WEIGHT, "mean": MEAN, "spread": SPREAD}
    return analytic("harmonic", stiffness=STIFFNESS), analytic("gaussian-mixture", components=[component])


def test_a_blend_is_the_weighted_sum():
    a, b = wells()
    x = np.random.default_rng(5).normal(size=(4, 2, 3)) * 0.3
    blend = Model.blend(a, b, 0.37)
    (s, e), (sa, ea), (sb, eb) = (model.evaluate(x) for model in (blend, a, b))
    np.testing.assert_allclose(s, 0.63 * sa + 0.37 * sb, rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(e, 0.63 * ea + 0.37 * eb, rtol=1e-13)
    assert np.array_equal(blend.component_energies(x), np.stack([ea, eb], axis=1))
    assert blend.metadata["kind"] == "blend" and blend.metadata["hyperparameters"]["lambda"] == 0.37


def test_lambda_moves_a_running_simulation():
    blend = Model.blend(*wells(), 0.2)
    simulation = Simulation(blend, effective_step=0.004, seed=91, n_replicas=3)
    assert simulation.lambda_ == 0.2
    simulation.step(20)
    simulation.lambda_ = 0.7
    checkpoint = simulation.checkpoint()
    simulation.step(20)
    energies = simulation.component_energies
    assert np.array_equal(energies, blend.component_energies(simulation.positions))
    np.testing.assert_allclose(simulation.energies, 0.3 * energies[:, 0] + 0.7 * energies[:, 1], rtol=1e-13)
    other = Simulation(blend, effective_step=0.004, seed=5, n_replicas=3)
    other.restore(checkpoint)
    assert other.lambda_ == 0.7
    other.step(20)
    assert np.array_equal(other.positions, simulation.positions)


def test_callables_can_be_blended_and_what_they_raise_is_the_cause():
    def spring(positions):
        return -70.0 * positions, 35.0 * (positions**2).sum((1, 2))

    def fails(positions):
        raise ValueError("no such frame")

    a = wells()[0]
    simulation = Simulation(Model.blend(a, Model.from_callable(2, spring, T0), 0.37), effective_step=0.002, seed=3)
    same = Simulation(analytic("harmonic", stiffness=0.63 * STIFFNESS + 0.37 * 70), effective_step=0.002, seed=3)
    for each in (simulation, same):
        each.step(50)
    np.testing.assert_allclose(simulation.positions, same.positions, rtol=1e-12)
    with pytest.raises(DiffusimError, match="no such frame") as error:
        Simulation(Model.blend(a, Model.from_callable(2, fails, T0), 0.37), effective_step=0.002).step(1)
    assert isinstance(error.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("other", "lambda_", "sentence"),
    [
        (dict(n_particles=3), 0.5, "move 2 and 3 particles"),
        (dict(training_temperature=310.0), 0.5, "trained at 250 K and harmonic at 310 K"),
        ({}, 1.3, "lambda is 1.3; expected 0"),
        ({}, float("nan"), "lambda is NaN"),
    ],
)
def test_what_cannot_be_blended_is_one_sentence(other, lambda_, sentence):
    with pytest.raises(DiffusimError, match=sentence):
        Model.blend(wells()[0], analytic("harmonic", **({"stiffness": 70.0} | other)), lambda_)


def test_other_models_have_no_lambda_and_blends_run_on_the_cpu():
    simulation = Simulation(wells()[0], effective_step=0.002)
    for use in (
        lambda: simulation.lambda_,
        lambda: simulation.component_energies,
        lambda: setattr(simulation, "lambda_", 0.5),
    ):
        with pytest.raises(DiffusimError, match="harmonic is one model and has no lambda"):
            use()
    with pytest.raises(DiffusimError) as error:
        Simulation(Model.blend(*wells(), 0.3), effective_step=0.002, device="cuda")
    assert error.value.status is Status.UNSUPPORTED
