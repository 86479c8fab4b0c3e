"""Free energies along lambda: Hamiltonian replica exchange, thermodynamic integration, BAR and MBAR (theory 6, 7).

What changes with lambda is a blend of two models (`Model.blend`), the energy of an engine that acts as a bias, or both:

    from diffusim import Model, alchemy

    blend = Model.blend(Model("a.safetensors"), Model("b.safetensors"), 0.0)
    exchange = alchemy.ReplicaExchange(blend, np.linspace(0, 1, 6), effective_step=2e-7, seed=7)
    exchange.run(100)  # burn-in
    ladder = exchange.run(2000)
    alchemy.mbar(ladder)  # free energies [6] in kT, relative to the first lambda

Errors come from independent ladders (another `first_replica` each): `free_energies([ladder, ...], alchemy.mbar)`. BAR
and MBAR are pymbar's (`pip install 'diffusim[alchemy]'`).
"""

import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from diffusim._library import DiffusimError, Status
from diffusim.core import Model, Simulation, fresh_seed

BOLTZMANN = 0.00831446261815324  # kJ/(mol K)

Bias = Callable[[np.ndarray, float], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Ladder:
    """Frames at each of K values of lambda, and what they weigh at all the others.

    `reduced` [n_frames, K, K] is the energy in kT of frame [f, k], which was drawn at lambda k, at each lambda, up to a
    number that is the same at all of them; `derivatives` [n_frames, K] is its derivative by lambda in kT at lambda k,
    where it is known. `walkers` [n_frames, K] is the walker that was at lambda k, and `acceptance` [K - 1] the fraction
    of swaps of neighbours that were made; both None without exchange. `positions` [n_frames, K, n_particles, 3] are
    None unless they were asked for.
    """

    lambdas: np.ndarray
    reduced: np.ndarray
    derivatives: np.ndarray | None = None
    walkers: np.ndarray | None = None
    acceptance: np.ndarray | None = None
    positions: np.ndarray | None = None

    @classmethod
    def from_energies(cls, lambdas: Sequence[float], energies: np.ndarray, temperature_ratio: float = 1.0) -> "Ladder":
        """From `component_energies` [n_frames, K, 2] of frames drawn at each lambda of a blend, at T = ratio x T0."""
        lambdas = _ascending(lambdas)
        energies = np.asarray(energies, dtype=float)
        if energies.ndim != 3 or energies.shape[1:] != (len(lambdas), 2):
            raise DiffusimError(
                f"energies has the shape {list(energies.shape)}; expected [n_frames, {len(lambdas)}, 2]: the two "
                "component energies of the frames at each lambda",
                Status.INVALID_ARGUMENT,
            )
        if not temperature_ratio > 0:
            raise DiffusimError(
                f"temperature_ratio is {temperature_ratio}; expected a positive number", Status.INVALID_ARGUMENT
            )
        derivatives = (energies[..., 1] - energies[..., 0]) / temperature_ratio
        return cls(lambdas, derivatives[..., None] * lambdas, derivatives)


def engine_bias(context, parameter: str) -> Bias:
    """The energy of an OpenMM Context, as a function of one of its parameters, as the bias of a `ReplicaExchange`.

    The Context is one of the bias alone, of any integrator but a DiffusionIntegrator, with which it has the learned
    energy too.
    """
    from openmm import unit

    from diffusim.openmm import DiffusionIntegrator

    if isinstance(context.getIntegrator(), DiffusionIntegrator):
        raise DiffusimError(
            "the energy of a Context with a DiffusionIntegrator is the learned one plus that of the Forces; give a "
            "Context of the same System with a VerletIntegrator",
            Status.INVALID_ARGUMENT,
        )
    energy_unit, force_unit = unit.kilojoule_per_mole, unit.kilojoule_per_mole / unit.nanometer
    if parameter not in context.getParameters():
        raise DiffusimError(
            f"the Context has no parameter '{parameter}'; it has {sorted(context.getParameters())}",
            Status.INVALID_ARGUMENT,
        )

    def bias(positions: np.ndarray, value: float) -> tuple[float, np.ndarray]:
        context.setPositions(positions)
        context.setParameter(parameter, value)
        state = context.getState(energy=True, forces=True)
        forces = state.getForces(asNumpy=True).value_in_unit(force_unit)
        return state.getPotentialEnergy().value_in_unit(energy_unit), forces

    return bias


class ReplicaExchange:
    """Walkers that exchange their lambdas, so that each lambda is visited by all of them (theory 6, 7).

    Between two exchanges every walker is a `Simulation` of its own; neighbours on the ladder then swap lambdas with the
    probability min{1, exp -[u(x'; l) + u(x; l') - u(x; l) - u(x'; l')]}, u in kT, the even and the odd pairs in turn.
    What does not depend on lambda cancels in it: a learned energy that is no blend is not even computed.
    """

    def __init__(
        self,
        model: Model,
        lambdas: Sequence[float],
        *,
        bias: Bias | None = None,
        steps: int = 100,
        seed: int | None = None,
        exchange: bool = True,
        **options,
    ):
        """Walker w starts at the w-th lambda, from the model's start frame number w. Give independent exchanges another
        `first_replica` each: walkers, and so their start frames and their noise, are numbered from there.

        lambdas   ascending; 0 to 1 where the model is a blend
        bias      (positions [n_particles, 3] in nm, lambda) -> (energy in kJ/mol, forces [n_particles, 3] in
                  kJ/(mol nm)), such as an engine's alchemical U(x; lambda); it is called every step
        steps     between two exchanges
        seed      of the noise and of the swaps; a fresh one by default, kept in `seed`
        exchange  False: every walker stays where it is
        options   of Simulation
        """
        self.lambdas = _ascending(lambdas)
        self.steps = steps
        self.seed = fresh_seed() if seed is None else seed
        self.exchange = exchange
        self._bias = bias
        self._blend = model.metadata["kind"] == "blend"
        if not self._blend and bias is None:
            raise DiffusimError(
                f"nothing depends on lambda: {model.name} is no blend of two models; give one, or a bias",
                Status.INVALID_ARGUMENT,
            )
        if steps < 1:
            raise DiffusimError(f"steps is {steps}; expected 1 or more", Status.INVALID_ARGUMENT)
        if options.get("n_replicas", 1) != 1:
            raise DiffusimError(
                f"n_replicas is {options['n_replicas']}, but a walker is one replica; make several exchanges",
                Status.INVALID_ARGUMENT,
            )
        self._first = options.pop("first_replica", 0)
        options = {"n_threads": 1} | options
        numbers = range(self._first, self._first + len(self.lambdas))
        self.walkers = [Simulation(model, seed=self.seed, first_replica=w, **options) for w in numbers]
        self._walker_at = np.arange(len(self.lambdas))  # which walker is at each lambda
        self._start = self.walkers[0].step_count
        self._put()

    def run(self, rounds: int, positions: bool = False) -> Ladder:
        """Take `rounds` times `steps` steps with every walker, then swap. The frames are those before the swaps."""
        n = len(self.lambdas)
        reduced, derivatives = np.empty((rounds, n, n)), np.empty((rounds, n))
        walkers, tried, made = np.empty((rounds, n), dtype=int), np.zeros(n - 1), np.zeros(n - 1)
        kept = np.empty((rounds, n, self.walkers[0].model.n_particles, 3)) if positions else None
        with ThreadPoolExecutor(min(n, os.cpu_count() or 1)) as pool:
            for f in range(rounds):
                # An engine behind a bias need not bear several threads.
                list((map if self._bias else pool.map)(self._advance, range(n)))
                walkers[f] = self._walker_at
                for k, w in enumerate(self._walker_at):
                    reduced[f, k], derivatives[f, k] = self._reduced(self.walkers[w])
                    if positions:
                        kept[f, k] = self.walkers[w].positions[0]
                if self.exchange:
                    self._swap(reduced[f], tried, made)
        with np.errstate(invalid="ignore"):
            acceptance = made / tried if self.exchange else None
        return Ladder(self.lambdas, reduced, None if self._bias else derivatives, walkers, acceptance, kept)

    def checkpoint(self) -> bytes:
        """All that is needed to continue bit for bit in an exchange of the same model, lambdas and options."""
        file = io.BytesIO()
        walkers = [np.frombuffer(walker.checkpoint(), dtype=np.uint8) for walker in self.walkers]
        np.savez(file, walkers=np.stack(walkers), walker_at=self._walker_at, seed=np.uint64(self.seed))
        return file.getvalue()

    def restore(self, checkpoint: bytes) -> None:
        """Continue from `checkpoint()`; its seed is taken over."""
        try:
            data = np.load(io.BytesIO(checkpoint), allow_pickle=False)
            walkers, walker_at, seed = data["walkers"], data["walker_at"], int(data["seed"])
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise DiffusimError(
                f"this is no checkpoint of a replica exchange ({error})", Status.INVALID_CHECKPOINT
            ) from None
        if sorted(walker_at.tolist()) != list(range(len(self.lambdas))) or len(walkers) != len(self.lambdas):
            raise DiffusimError(
                f"the checkpoint has {len(walkers)} walkers, the exchange {len(self.lambdas)}",
                Status.INVALID_CHECKPOINT,
            )
        for walker, state in zip(self.walkers, walkers, strict=True):
            walker.restore(state.tobytes())
        self._walker_at, self.seed = walker_at, seed
        self._put()

    def _put(self) -> None:
        """Move every walker to its lambda."""
        self._lambda_of = np.empty(len(self.lambdas))
        self._lambda_of[self._walker_at] = self.lambdas
        if self._blend:
            for walker, value in zip(self.walkers, self._lambda_of, strict=True):
                walker.lambda_ = value

    def _advance(self, w: int) -> None:
        walker, bias = self.walkers[w], self._bias
        if bias is None:
            walker.step(self.steps)
            return
        for _ in range(self.steps):
            _, forces = bias(walker.positions[0], self._lambda_of[w])
            walker.step_biased(np.asarray(forces, dtype=float)[None])

    def _reduced(self, walker: Simulation) -> tuple[np.ndarray, float]:
        """What depends on lambda in its frame's energy, at every lambda, and the derivative of a blend, in kT."""
        temperature = walker.statistics.temperature
        derivative, energies = 0.0, np.zeros(len(self.lambdas))
        if self._blend:
            a, b = walker.component_energies[0]
            derivative = (b - a) * walker.model.training_temperature / temperature
            energies += derivative * self.lambdas
        if self._bias is not None:
            x = walker.positions[0]
            energies += np.array([self._bias(x, value)[0] for value in self.lambdas]) / (BOLTZMANN * temperature)
        if not np.isfinite(energies).all():
            raise DiffusimError(f"the energy of a walker is {energies} kT at lambda {self.lambdas}", Status.NOT_FINITE)
        return energies, derivative

    def _swap(self, reduced: np.ndarray, tried: np.ndarray, made: np.ndarray) -> None:
        """Swap neighbours; the random numbers are a function of seed and step, so that a checkpoint continues them."""
        round_ = (self.walkers[0].step_count - self._start) // self.steps
        uniform = np.random.default_rng([self.seed, self._first, round_]).random(len(self.lambdas))
        walker_at = self._walker_at.copy()
        for k in range(round_ % 2, len(self.lambdas) - 1, 2):
            change = reduced[k + 1, k] + reduced[k, k + 1] - reduced[k, k] - reduced[k + 1, k + 1]
            tried[k] += 1
            if np.log(uniform[k]) < -change:
                made[k] += 1
                walker_at[[k, k + 1]] = walker_at[[k + 1, k]]
        self._walker_at = walker_at
        self._put()


def thermodynamic_integration(ladder: Ladder) -> np.ndarray:
    """Free energies [K] in kT relative to the first lambda: the integral of <dE/dlambda>, a cubic spline through it."""
    from scipy.interpolate import CubicSpline

    if ladder.derivatives is None:
        raise DiffusimError(
            "thermodynamic integration needs dE/dlambda, which a bias does not give; use bar or mbar",
            Status.INVALID_ARGUMENT,
        )
    means = ladder.derivatives.mean(axis=0)
    integral = CubicSpline(ladder.lambdas, means).antiderivative()
    return integral(ladder.lambdas) - integral(ladder.lambdas[0])


def bar(ladder: Ladder) -> np.ndarray:
    """Free energies [K] in kT relative to the first lambda, from the work between neighbours (pymbar's BAR)."""
    pymbar, u = _pymbar(), ladder.reduced
    steps = [
        pymbar.bar(u[:, k, k + 1] - u[:, k, k], u[:, k + 1, k] - u[:, k + 1, k + 1], compute_uncertainty=False)
        for k in range(len(ladder.lambdas) - 1)
    ]
    return np.concatenate([[0.0], np.cumsum([step["Delta_f"] for step in steps])])


def mbar(ladder: Ladder) -> np.ndarray:
    """Free energies [K] in kT relative to the first lambda, from all frames at once (pymbar's MBAR)."""
    n_frames, n, _ = ladder.reduced.shape
    reduced = ladder.reduced.transpose(2, 1, 0).reshape(n, n * n_frames)
    solved = _pymbar().MBAR(reduced, [n_frames] * n)
    return solved.compute_free_energy_differences(compute_uncertainty=False)["Delta_f"][0]


def free_energies(
    ladders: Iterable[Ladder], estimate: Callable[[Ladder], np.ndarray] = mbar
) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard errors [K] of an estimate over independent ladders."""
    values = np.array([estimate(ladder) for ladder in ladders])
    if len(values) < 2:
        raise DiffusimError(
            f"{len(values)} ladders were given; an error needs at least two independent ones", Status.INVALID_ARGUMENT
        )
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def _ascending(lambdas: Sequence[float]) -> np.ndarray:
    lambdas = np.array(lambdas, dtype=float)
    if lambdas.ndim != 1 or len(lambdas) < 2 or not (np.diff(lambdas) > 0).all():
        raise DiffusimError(
            f"lambdas is {lambdas.tolist()}; expected at least two numbers, ascending", Status.INVALID_ARGUMENT
        )
    return lambdas


@cache
def _pymbar():
    """pymbar, kept from JAX: it would switch the whole process to 64 bits, networks in training included."""
    jax = sys.modules.get("jax")
    sys.modules["jax"] = None  # makes `import jax` fail
    logging.getLogger("pymbar").setLevel(logging.ERROR)  # it warns that there is no JAX
    try:
        import pymbar
    except ImportError as error:
        if error.name != "pymbar":
            raise
        raise DiffusimError("BAR and MBAR need pymbar; install it with pip install 'diffusim[alchemy]'") from None
    finally:
        del sys.modules["jax"]
        if jax is not None:
            sys.modules["jax"] = jax
    return pymbar
