"""Blends of two models and what is computed with them, against closed forms. No parameter is 1."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusim import DiffusimError, Model, Simulation, alchemy

ROOT = Path(__file__).parents[2]
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


def test_other_models_have_no_lambda_and_blends_of_blends_run_on_the_cpu():
    simulation = Simulation(wells()[0], effective_step=0.002)
    for use in (
        lambda: simulation.lambda_,
        lambda: simulation.component_energies,
        lambda: setattr(simulation, "lambda_", 0.5),
    ):
        with pytest.raises(DiffusimError, match="harmonic is one model and has no lambda"):
            use()
    nested = Model.blend(Model.blend(*wells(), 0.3), wells()[0], 0.2)
    with pytest.raises(DiffusimError, match="no kernel for blends of blends; use device 'cpu'"):
        Simulation(nested, effective_step=0.002, device="cuda")


LAMBDAS = np.array([0.0, 0.1, 0.25, 0.45, 0.7, 1.0])
# Z_a = (2 pi / STIFFNESS)^3, Z_b = WEIGHT (2 pi)^3: six coordinates, and the Gaussian's widths cancel in its own norm.
EXACT = -np.log(WEIGHT) - 3 * np.log(STIFFNESS)


def stiffness_and_mean(lambda_: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each coordinate [2, 3] of the blend, which is harmonic at every lambda."""
    stiff = np.array(SPREAD) ** -2
    precision = (1 - lambda_) * STIFFNESS + lambda_ * np.tile(stiff, (2, 1))
    return precision, lambda_ * stiff * np.array(MEAN) / precision


def exact_profile() -> np.ndarray:
    """Free energy of the blend at each lambda, in kT0, relative to lambda = 0."""
    values = []
    for lambda_ in LAMBDAS:
        precision, mean = stiffness_and_mean(lambda_)
        b = (np.array(MEAN) ** 2 / np.array(SPREAD) ** 2 + 2 * np.log(SPREAD)).sum() / 2 - np.log(WEIGHT)
        values.append(lambda_ * b - (precision * mean**2).sum() / 2 + np.log(precision / STIFFNESS).sum() / 2)
    return np.array(values)


def exact_derivatives() -> np.ndarray:
    """<dE/dlambda> of the wells at each lambda, in kT0, at T0."""
    values = []
    for lambda_ in LAMBDAS:
        precision, mean = stiffness_and_mean(lambda_)
        b = ((1 / precision + (mean - MEAN) ** 2) / np.array(SPREAD) ** 2 + 2 * np.log(SPREAD)).sum() / 2
        values.append(b - np.log(WEIGHT) - STIFFNESS / 2 * (1 / precision + mean**2).sum())
    return np.array(values)


def agrees(found: np.ndarray, error: np.ndarray, expected: np.ndarray, precision: float) -> None:
    """Within 4 standard errors, which are small enough to tell."""
    print("found", found, "error", error, "expected", expected)
    assert (error < precision).all(), error
    assert (np.abs(found - expected) < 4 * error).all()


def test_free_energy_between_wells_is_exact_by_three_estimators():
    """Frames at each lambda from 24 replicas, which are 24 independent ladders."""
    n_frames, n_replicas = 150, 24
    simulation = Simulation(Model.blend(*wells(), 0.0), effective_step=0.004, seed=616, n_replicas=n_replicas)
    energies = np.empty((n_replicas, n_frames, len(LAMBDAS), 2))
    for k, lambda_ in enumerate(LAMBDAS):
        simulation.lambda_ = lambda_
        simulation.step(40)
        for f in range(n_frames):
            simulation.step(8)
            energies[:, f, k] = simulation.component_energies
    ladders = [alchemy.Ladder.from_energies(LAMBDAS, e) for e in energies]
    profile = exact_profile()
    assert profile[-1] == pytest.approx(EXACT)
    derivatives = np.array([ladder.derivatives.mean(axis=0) for ladder in ladders])
    agrees(derivatives.mean(0), derivatives.std(0, ddof=1) / n_replicas**0.5, exact_derivatives(), 0.25)
    for estimate in (alchemy.thermodynamic_integration, alchemy.bar, alchemy.mbar):
        found, error = alchemy.free_energies(ladders, estimate)
        agrees(found[1:], error[1:], profile[1:], 0.05)


def test_exchange_keeps_the_density_of_every_lambda():
    """Metropolis steps, whose density has no error of the step, in 12 independent ladders."""
    ladders, walkers = [], []
    for seed in range(1, 13):
        exchange = alchemy.ReplicaExchange(
            Model.blend(*wells(), 0.0), LAMBDAS, steps=6, seed=seed, effective_step=0.006, adapter="mala"
        )
        exchange.run(12)
        ladders.append(exchange.run(160, positions=True))
        walkers.append(ladders[-1].walkers)
    assert all(len(np.unique(at)) == len(LAMBDAS) for at in np.concatenate(walkers).T)  # every walker was everywhere
    acceptance = np.array([ladder.acceptance for ladder in ladders])
    assert (acceptance > 0.15).all() and (acceptance < 0.95).all()
    for k, lambda_ in enumerate(LAMBDAS):
        precision, mean = stiffness_and_mean(lambda_)
        x = np.array([ladder.positions[:, k] for ladder in ladders]) - mean
        for found, expected in ((x, 0 * mean), (x**2, 1 / precision)):
            found = found.mean(axis=1)
            agrees(found.mean(0), found.std(0, ddof=1) / len(ladders) ** 0.5, expected, 0.012)
    found, error = alchemy.free_energies(ladders)
    agrees(found[1:], error[1:], exact_profile()[1:], 0.1)


def test_exchange_carries_walkers_over_a_barrier():
    """A double well with a barrier of 9 kT, flat at the other end of the ladder: started left, equally populated."""
    well = analytic("double-well", 1, barrier=9.0, half_width=0.4, stiffness=30.0)
    blend = Model.blend(well, analytic("harmonic", 1, stiffness=5.0), 0.0)
    right = {}
    for exchanged in (True, False):
        shares = []
        for seed in range(1, 17):
            exchange = alchemy.ReplicaExchange(
                blend, np.linspace(0, 0.9, 5), steps=12, seed=seed, effective_step=0.002, exchange=exchanged
            )
            for walker in exchange.walkers:
                walker.positions = [[-0.4, 0.03, 0.05]]
            exchange.run(60)
            shares.append((exchange.run(140, positions=True).positions[:, 0, 0, 0] > 0).mean())
        right[exchanged] = np.mean(shares), np.std(shares, ddof=1) / 4
    agrees(*map(np.array, right[True]), 0.5, 0.06)
    assert right[False][0] < 0.2


TEMPERATURE, CENTRE, SPRING = 310.0, np.array([0.21, -0.34, 0.08]), 180.0  # K, nm, kJ/(mol nm^2)


def tether(positions: np.ndarray, lambda_: float) -> tuple[float, np.ndarray]:
    """An engine's U(x; lambda): a spring that is not linear in lambda."""
    d = positions - CENTRE
    return lambda_**2 * SPRING / 2 * (d**2).sum(), -(lambda_**2) * SPRING * d


def without_energies(positions: np.ndarray) -> np.ndarray:
    return -STIFFNESS * positions


def test_the_learned_energy_cancels_where_only_the_engines_depends_on_lambda():
    """U(x; lambda) of an engine on a model that could not even say its energy, at another temperature than T0."""
    lambdas = np.array([0.2, 0.6, 1.1])
    ladders = []
    for seed in range(1, 11):
        exchange = alchemy.ReplicaExchange(
            Model.from_callable(2, without_energies, T0),
            lambdas,
            bias=tether,
            steps=6,
            seed=seed,
            effective_step=0.0025,
            temperature=TEMPERATURE,
        )
        exchange.run(10)
        ladders.append(exchange.run(100, positions=True))
    a = STIFFNESS * T0 / TEMPERATURE  # kT per nm^2
    b = lambdas**2 * SPRING / (0.00831446261815324 * TEMPERATURE)
    exact = 3 * np.log(a + b) + (a * b / (a + b)) * (CENTRE**2).sum()
    found, error = alchemy.free_energies(ladders)
    agrees(found[1:], error[1:], (exact - exact[0])[1:], 0.2)
    for k in range(len(lambdas)):
        x = np.array([ladder.positions[:, k].mean(axis=(0, 1)) for ladder in ladders])
        agrees(x.mean(0), x.std(0, ddof=1) / len(ladders) ** 0.5, b[k] / (a + b[k]) * CENTRE, 0.012)
    # The same swaps as with the whole energy.
    u, x = ladders[0].reduced, ladders[0].positions
    whole = u + a / 2 * (x**2).sum(axis=(2, 3))[..., None]
    for v in (u, whole):
        change = v[:, 1, 0] + v[:, 0, 1] - v[:, 0, 0] - v[:, 1, 1]
        np.testing.assert_allclose(change, u[:, 1, 0] + u[:, 0, 1] - u[:, 0, 0] - u[:, 1, 1], atol=1e-12)
    with pytest.raises(DiffusimError, match="which a bias does not give"):
        alchemy.thermodynamic_integration(ladders[0])


def test_an_openmm_context_is_a_bias():
    import openmm

    import diffusim.openmm as dm

    system = openmm.System()
    force = openmm.CustomExternalForce("l^2 * k/2 * ((x-x0)^2 + (y-y0)^2 + (z-z0)^2)")
    force.addGlobalParameter("l", 0.0)
    for name, value in zip(("k", "x0", "y0", "z0"), (SPRING, *CENTRE), strict=True):
        force.addGlobalParameter(name, value)
    for particle in range(2):
        system.addParticle(17.0)
        force.addParticle(particle)
    system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    ladders = [
        alchemy.ReplicaExchange(
            analytic("harmonic", stiffness=STIFFNESS),
            [0.2, 0.6, 1.1],
            bias=bias,
            steps=5,
            seed=33,
            effective_step=0.0025,
            temperature=TEMPERATURE,
        ).run(15, positions=True)
        for bias in (tether, alchemy.engine_bias(context, "l"))
    ]
    np.testing.assert_allclose(ladders[0].positions, ladders[1].positions, atol=1e-10)
    np.testing.assert_allclose(ladders[0].reduced, ladders[1].reduced, atol=1e-8)
    assert np.array_equal(ladders[0].walkers, ladders[1].walkers) and ladders[0].acceptance.max() > 0
    with pytest.raises(DiffusimError, match="no parameter 'lambda'; it has"):
        alchemy.engine_bias(context, "lambda")
    learned = dm.DiffusionIntegrator(analytic("harmonic", stiffness=STIFFNESS), 250.0, 4.3, spring=200.0)
    context = openmm.Context(system, learned, platform)
    with pytest.raises(DiffusimError, match="learned one plus that of the Forces; give a Context"):
        alchemy.engine_bias(context, "l")


def test_an_exchange_is_repeatable_and_continues_from_its_checkpoint():
    def exchange(seed):
        return alchemy.ReplicaExchange(Model.blend(*wells(), 0.5), LAMBDAS, steps=5, seed=seed, effective_step=0.004)

    first, second = exchange(8), exchange(8)
    whole = first.run(12)
    second.run(5)
    checkpoint = second.checkpoint()
    other = exchange(9)
    other.restore(checkpoint)
    for continued in (second, other):
        rest = continued.run(7)
        assert np.array_equal(rest.reduced, whole.reduced[5:]) and np.array_equal(rest.walkers, whole.walkers[5:])
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    for lambdas, data, sentence in (
        ([0, 1], b"nothing", "no checkpoint of a replica exchange"),
        ([0, 1], checkpoint[:-40], "no checkpoint of a replica exchange"),
        ([0, 1], checkpoint[:300] + b"damage" + checkpoint[306:], "no checkpoint of a replica exchange"),
        ([0, 1], array.getvalue(), "no checkpoint of a replica exchange"),
        ([0, 1], checkpoint, "6 walkers, the exchange 2"),
        (np.linspace(0.1, 0.9, len(LAMBDAS)), checkpoint, r"has the lambdas \[0.0, .* the exchange \[0.1, "),
    ):
        with pytest.raises(DiffusimError, match=sentence):
            alchemy.ReplicaExchange(Model.blend(*wells(), 0.5), lambdas, effective_step=0.004).restore(data)


@pytest.mark.parametrize(
    ("lambdas", "changes", "sentence"),
    [
        ([0.5], {}, "lambdas is \\[0.5\\]; expected at least two"),
        ([0.0, 0.4, 0.4], {}, "ascending"),
        ([0.0, 1.2], {}, "lambda is 1.2; expected 0"),
        ([0.0, 1.0], {"model": "harmonic"}, "nothing depends on lambda: harmonic is no blend"),
        ([0.0, 1.0], {"steps": 0}, "steps is 0; expected 1 or more"),
        ([0.0, 1.0], {"n_replicas": 3}, "n_replicas is 3, but a walker is one replica"),
    ],
)
def test_a_wrong_exchange_is_one_sentence(lambdas, changes, sentence):
    a, b = wells()
    model = a if changes.pop("model", None) else Model.blend(a, b, 0.5)
    with pytest.raises(DiffusimError, match=sentence):
        alchemy.ReplicaExchange(model, lambdas, effective_step=0.004, **changes)


def test_wrong_ladders_are_one_sentence():
    energies = np.zeros((7, 2, 2))
    with pytest.raises(DiffusimError, match=r"shape \[7, 2, 2\]; expected \[n_frames, 3, 2\]"):
        alchemy.Ladder.from_energies([0, 0.5, 1], energies)
    with pytest.raises(DiffusimError, match="temperature_ratio is -1"):
        alchemy.Ladder.from_energies([0, 1], energies, -1)
    with pytest.raises(DiffusimError, match="1 ladders were given"):
        alchemy.free_energies([alchemy.Ladder.from_energies([0, 1], energies)])


def test_the_example_agrees_with_frames_that_were_never_tied():
    program, model = ROOT / "examples/python/alchemy.py", ROOT / "examples/ala2/ala2.safetensors"
    done = subprocess.run([sys.executable, program, model, "20"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tied, error, free, free_error = map(float, re.findall(r"\d+\.\d+", done.stdout.split("with the tie")[1]))
    assert error < 0.2 and free_error < 0.05
    assert abs(tied - free) < 4 * np.hypot(error, free_error)


def test_pymbar_leaves_jax_alone():
    """Its own use of JAX would switch the process, networks in training included, to 64 bits."""
    code = """
import jax, numpy as np
from diffusim import alchemy
u = np.random.default_rng(4).normal(size=(50, 2, 2))
ladder = alchemy.Ladder.from_energies([0.0, 1.0], u)
assert abs(alchemy.mbar(ladder)[1] - alchemy.bar(ladder)[1]) < 1e-6
import jax.numpy as jnp
assert jnp.zeros(3).dtype == "float32"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
