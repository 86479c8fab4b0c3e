"""The error bound and the measured divergence of path laws, against closed forms without a fitted number."""

from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad

from diffusim import DiffusimError, Model, bound

T0 = 250.0
STIFFNESS, N = 70.0, 2
D = 3 * N
ALKANES = Path(__file__).parents[2] / "examples" / "alkanes"


def analytic(kind: str, n_particles: int = N, training_temperature: float = T0, **hyperparameters) -> Model:
    description = {"format_version": 1, "kind": kind, "n_particles": n_particles, "length_unit": "nm"}
    more = {"training_temperature": training_temperature, "hyperparameters": hyperparameters}
    return Model.from_metadata(description | more)


def equilibrium(n_frames: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_frames, N, 3)) / STIFFNESS**0.5


def agrees(what: str, found: tuple[float, float], expected: float, precision: float) -> None:
    """Within 4 standard errors, which are small enough to tell (`precision`, relative)."""
    value, error = found
    print(f"{what}: {value:.5g} ± {error:.2g}, expected {expected:.5g}")
    assert error < precision * abs(expected)
    assert abs(value - expected) < 4 * error


def test_ornstein_uhlenbeck_is_the_integral_it_stands_for():
    """(15) against 1/4 of the integral of E|lambda (X_t - X_0)|^2 = 2 lambda d (1 - exp(-lambda t))."""
    steps = [0.003, 0.011, 0.007]
    integral = sum(quad(lambda t: 2 * STIFFNESS * D * -np.expm1(-STIFFNESS * t) / 4, 0, tau)[0] for tau in steps)
    assert bound.ornstein_uhlenbeck(STIFFNESS, D, steps) == pytest.approx(integral, rel=1e-12)
    fine = [1e-6] * 3
    leading = STIFFNESS**2 * D / 4 * 3e-12
    assert bound.ornstein_uhlenbeck(STIFFNESS, D, fine) == pytest.approx(leading, rel=1e-4)


def test_frames_on_the_grid_tell_less_than_whole_paths_and_as_much_in_the_limit():
    """KL of the exact Gaussian transition from the Euler-Maruyama one, averaged over equilibrium: below (15), to which
    it tends. An independent check of its constant, 1/4, of which the paper's appendix has half.
    """
    for reduced in (0.5, 0.1, 0.01):
        tau = reduced / STIFFNESS
        exact, chain = -np.expm1(-2 * reduced) / STIFFNESS, 2 * tau  # variances
        shift = (np.exp(-reduced) - 1 + reduced) ** 2 / STIFFNESS  # mean square of the difference of the means
        grid = D / 2 * (exact / chain - 1 - np.log(exact / chain) + shift / chain)
        path = bound.ornstein_uhlenbeck(STIFFNESS, D, [tau])
        assert 1 - 1.5 * reduced < grid / path < 1


def test_measured_divergence_of_a_harmonic_score_is_exact():
    """(13) for a model that is its own reference, and for one that is too soft: all parts are known."""
    soft, horizon, counts = 61.0, 0.06, [6, 12, 24]
    truth = analytic("harmonic", stiffness=STIFFNESS)
    options = dict(start=equilibrium(900), n_paths=900, substeps=8, seed=11)
    study = bound.path_divergence(truth, truth, horizon, counts, **options)
    for found in study.divergences:
        steps = [horizon / found.n_steps] * found.n_steps
        agrees("step", found.total, bound.ornstein_uhlenbeck(STIFFNESS, D, steps), 0.02)
        assert found.score == (0.0, 0.0) and found.cross == (0.0, 0.0) and found.total == found.discretisation
    assert study.lipschitz == pytest.approx(STIFFNESS, rel=1e-6)

    study = bound.path_divergence(analytic("harmonic", stiffness=soft), truth, horizon, counts, **options)
    off = STIFFNESS - soft
    for found in study.divergences:
        tau = horizon / found.n_steps
        agrees("score error^2", (found.score_error**2, 0.02 * off**2), off**2 * D / STIFFNESS, 0.5)
        agrees("score", found.score, horizon / 4 * off**2 * D / STIFFNESS, 0.02)
        agrees("step", found.discretisation, bound.ornstein_uhlenbeck(STIFFNESS, D, [tau] * found.n_steps), 0.02)
        crossed = off * D / 2 * found.n_steps * (tau + np.expm1(-STIFFNESS * tau) / STIFFNESS)
        agrees("cross", found.cross, -crossed, 0.1)
        assert found.total[0] == pytest.approx(found.score[0] + found.discretisation[0] + found.cross[0])


def test_the_bound_holds_and_its_formula_is_what_it_says():
    truth = analytic("double-well", barrier=2.3, half_width=0.4, stiffness=50.0)
    start = np.array([[[-0.4, 0.05, 0.02], [0.38, -0.08, 0.06]], [[0.41, 0.0, 0.1], [0.35, 0.09, -0.04]]])
    study = bound.path_divergence(
        analytic("double-well", barrier=2.0, half_width=0.42, stiffness=55.0), truth, 0.08, [4, 8, 16, 32],
        start=start, burn_in=0.05, n_paths=200, seed=5,
    )  # fmt: skip
    for row, found in zip(study.rows(), study.divergences, strict=True):
        assert found.total[0] < row["bound_total"] and found.discretisation[0] < row["bound_discretisation"]
        assert found.score[0] <= row["bound_score"]
        tau, L, M = found.effective_step, study.lipschitz, study.lipschitz * D
        assert row["bound_discretisation"] == pytest.approx(found.n_steps * L**2 * (D * tau**2 + M * tau**3 / 3))
        assert row["bound_score"] == pytest.approx(0.08 * found.score_error**2 / 2)
        assert row["total_variation"] == min(1, (found.total[0] / 2) ** 0.5)
    # The step's part falls as 1/N, the score's stays.
    coarse, fine = study.divergences[-2:]
    assert 1.7 < coarse.discretisation[0] / fine.discretisation[0] < 2.1
    assert abs(coarse.score[0] / fine.score[0] - 1) < 0.05


def test_no_observable_of_a_path_is_further_off_than_the_bound():
    """sign(x_0) sign(x_N) of the exact process and of the chain, by the arcsine law, from the same start."""
    for n, reduced in ((4, 0.3), (20, 0.05), (3, 0.9)):
        tau = reduced / STIFFNESS
        exact = np.exp(-n * reduced)
        a = 1 - reduced
        variance = a ** (2 * n) + 2 * reduced * (1 - a ** (2 * n)) / (1 - a * a)  # times STIFFNESS, at the last step
        difference = 2 / np.pi * abs(np.arcsin(exact) - np.arcsin(a**n / variance**0.5))
        divergence = bound.ornstein_uhlenbeck(STIFFNESS, 1, [tau] * n)
        assert difference < 2 * bound.total_variation(divergence)
        assert divergence < bound.closed_form(STIFFNESS, 1, [tau] * n).total


def test_steps_wanted_are_the_fewest_that_suffice():
    given = dict(lipschitz=70.0, n_coordinates=6)
    for horizon, target in ((0.06, 0.1), (0.3, 2.0), (1e-5, 3.0)):
        n = bound.steps_for(target, horizon=horizon, **given)
        assert bound.closed_form(**given, effective_steps=[horizon / n] * n).discretisation <= target
        if n > 1:
            fewer = [horizon / (n - 1)] * (n - 1)
            assert bound.closed_form(**given, effective_steps=fewer).discretisation > target
    schedule = bound.closed_form(70.0, 6, [0.001, 0.003], score_error=[0.4, 0.7], mean_square_score=130.0)
    assert schedule.score == pytest.approx(0.5 * (0.001 * 0.16 + 0.003 * 0.49))
    assert schedule.discretisation == pytest.approx(4900 * (6 * 1e-5 + 130 * 28e-9 / 3))
    assert bound.total_variation(0.18) == pytest.approx(0.3) and bound.total_variation(50.0) == 1.0


def test_an_openmm_system_is_the_truth(monkeypatch):
    """Butane's force field keeps all degrees of freedom; the model learned it from frames alone."""
    monkeypatch.syspath_prepend(ALKANES)
    from alkanes import ALKANES as KNOWN
    from alkanes import exact_frames
    from make_reference import system

    built = system(KNOWN["butane"], 1)
    model = Model(ALKANES / "butane.safetensors")
    truth = bound.engine_reference(built, model, check_masses=False)  # its atoms are CH2 and CH3
    frames = exact_frames(KNOWN["butane"], 24, 7).astype(float)
    s, e = truth.evaluate(frames[:2])
    moved = frames[:2].copy()
    moved[:, 1, 0] += 1e-6
    assert s[:, 1, 0] == pytest.approx(-(truth.evaluate(moved)[1] - e) / 1e-6, rel=1e-2, abs=2.0)
    tau = model.metadata["recommended_effective_step"]
    study = bound.path_divergence(model, truth, 8 * tau, [4, 8], start=frames, n_paths=24, substeps=4, seed=2)
    coarse, fine = study.divergences
    print(study.rows())
    assert 1.5 < coarse.discretisation[0] / fine.discretisation[0] < 3
    assert 0 < fine.score[0] < fine.discretisation[0] and coarse.total[0] > coarse.discretisation[0] * 0.9
    assert 0.5 < study.lipschitz / model.metadata["largest_curvature"] < 2
    for part, row in (("score", 0), ("discretisation", 0), ("score", 1), ("discretisation", 1)):
        assert study.rows()[row][part]["value"] < study.rows()[row][f"bound_{part}"]


def test_other_atoms_are_no_truth():
    import openmm

    model = Model(ALKANES / "butane.safetensors")
    system = openmm.System()
    for mass in (12.0, 12.0, 12.0):
        system.addParticle(mass)
    with pytest.raises(DiffusimError, match="the System has 3 particles and butane.safetensors 4"):
        bound.engine_reference(system, model)
    system.addParticle(40.0)
    with pytest.raises(DiffusimError, match="particle 3 is"):
        bound.engine_reference(system, model)
    system.setParticleMass(3, 12.0)
    system.addConstraint(0, 1, 0.15)
    with pytest.raises(
        DiffusimError, match="leaves degrees of freedom out that butane.safetensors has: it has 1 constr"
    ):
        bound.engine_reference(system, model)
    system.removeConstraint(0)
    system.setParticleMass(2, 0.0)
    with pytest.raises(DiffusimError, match="particle 2 has no mass"):
        bound.engine_reference(system, model)


HARMONIC = dict(kind="harmonic", stiffness=STIFFNESS)


@pytest.mark.parametrize(
    ("reference", "changes", "sentence"),
    [
        (HARMONIC | dict(n_particles=3), {}, "harmonic has 2 particles and the reference harmonic 3"),
        (HARMONIC | dict(training_temperature=310.0), {}, "is of 250 K and the reference harmonic of 310 K"),
        (HARMONIC, dict(horizon=-0.1), "horizon is -0.1; expected a positive number"),
        (HARMONIC, dict(n_steps=[4, 6]), "each divides the greatest"),
        (HARMONIC, dict(n_steps=[]), "n_steps is \\[\\]"),
        (HARMONIC, dict(n_paths=1), "n_paths is 1; expected 2 or more"),
        (HARMONIC, dict(burn_in=-1.0), "burn_in is -1.0"),
        (HARMONIC, dict(n_steps=[1], substeps=1, horizon=0.2), "too soft"),
    ],
)
def test_a_wrong_measurement_is_one_sentence(reference, changes, sentence):
    arguments = dict(horizon=0.01, n_steps=[2]) | changes
    with pytest.raises(DiffusimError, match=sentence):
        bound.path_divergence(analytic(**HARMONIC), analytic(**reference), **arguments)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(lipschitz=-3.0), "lipschitz is -3.0"),
        (dict(n_coordinates=0), "n_coordinates is 0"),
        (dict(effective_steps=[0.1, -0.1]), "effective_steps holds something else than positive numbers"),
        (dict(effective_steps=[]), "effective_steps holds"),
        (dict(score_error=[0.1]), "score_error has the shape \\[1\\]"),
        (dict(mean_square_score=0.0), "mean_square_score is 0.0"),
    ],
)
def test_a_wrong_bound_is_one_sentence(changes, sentence):
    with pytest.raises(DiffusimError, match=sentence):
        bound.closed_form(**(dict(lipschitz=70.0, n_coordinates=6, effective_steps=[0.1, 0.2]) | changes))
