"""How far the law of whole paths may be off: the error bound and its terms, and the divergence itself by Monte Carlo.

P is the exact diffusion of a reference score, Q the Euler-Maruyama chain of a model with the same start (theory 13-15):

    from diffusim import bound

    bound.closed_form(lipschitz=70.0, n_coordinates=6, effective_steps=[0.002] * 50, score_error=0.3).total
    bound.steps_for(target=0.1, lipschitz=70.0, n_coordinates=6, horizon=0.1)
    study = bound.path_divergence(model, reference, horizon=0.1, n_steps=[8, 16, 32, 64])
    study.rows(), study.draw("kl.png")

Horizons and steps are times at unit diffusion coefficient, nm^2: D times the physical time. Divergences are in nats.
"""

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusim._library import DiffusimError, Status
from diffusim.core import Model, Simulation, fresh_seed

BOLTZMANN = 0.00831446261815324  # kJ/(mol K)
PARTS = ("total", "score", "discretisation", "cross")


@dataclass(frozen=True)
class Bound:
    """The two terms of theory (14), an upper bound of KL(P || Q)."""

    score: float
    discretisation: float

    @property
    def total(self) -> float:
        """Of KL(P || Q)."""
        return self.score + self.discretisation

    @property
    def total_variation(self) -> float:
        """Of the total variation of the path laws: sqrt(KL/2), and never above 1, where it says nothing."""
        return total_variation(self.total)


def total_variation(divergence: float) -> float:
    """Upper bound from KL(P || Q) by Pinsker: |E_Q F - E_P F| <= 2 max|F| times it, for any observable F of a path."""
    return min(1.0, math.sqrt(divergence / 2))


def closed_form(
    lipschitz: float,
    n_coordinates: int,
    effective_steps: Sequence[float],
    score_error: float | Sequence[float] = 0.0,
    mean_square_score: float | None = None,
) -> Bound:
    """Theory (14).

    lipschitz          L of the reference score, 1/nm^2, in the region that its paths visit
    n_coordinates      d: three for each particle
    effective_steps    tau_n, nm^2
    score_error        root of E |s - s_model|^2, 1/nm, of all coordinates together; one number, or one for each step
    mean_square_score  M = sup E |s|^2 along the path, 1/nm^2; d L by default, which is enough at equilibrium
    """
    steps = np.asarray(effective_steps, dtype=float)
    if steps.ndim != 1 or steps.size == 0 or not (np.isfinite(steps) & (steps > 0)).all():
        raise DiffusimError(
            "effective_steps holds something else than positive numbers; expected tau of each step in nm^2",
            Status.INVALID_ARGUMENT,
        )
    errors = np.asarray(score_error, dtype=float)
    if errors.shape not in ((), steps.shape) or not (np.isfinite(errors) & (errors >= 0)).all():
        raise DiffusimError(
            f"score_error has the shape {list(errors.shape)}; expected one number of at least 0, or one for each of "
            f"{steps.size} steps",
            Status.INVALID_ARGUMENT,
        )
    first, second = _coefficients(lipschitz, n_coordinates, mean_square_score)
    return Bound(
        score=float((steps * errors**2).sum() / 2),
        discretisation=float(first * (steps**2).sum() + second * (steps**3).sum()),
    )


def steps_for(
    target: float, lipschitz: float, n_coordinates: int, horizon: float, mean_square_score: float | None = None
) -> int:
    """Number of equal steps that brings the discretisation term of theory (14) to `target` at `horizon` (nm^2)."""
    _expect_positive(target=target, horizon=horizon)
    first, second = _coefficients(lipschitz, n_coordinates, mean_square_score)
    linear, constant = first * horizon**2 / target, second * horizon**3 / target  # N^2 >= linear N + constant
    n = max(1, math.ceil((linear + math.sqrt(linear**2 + 4 * constant)) / 2))
    return n


def ornstein_uhlenbeck(stiffness: float, n_coordinates: int, effective_steps: Sequence[float]) -> float:
    """KL(P || Q) of a harmonic score -stiffness x at equilibrium, exactly known: theory (15)."""
    steps = np.asarray(effective_steps, dtype=float)
    return float(stiffness * n_coordinates / 2 * (steps + np.expm1(-stiffness * steps) / stiffness).sum())


@dataclass(frozen=True)
class Divergence:
    """KL(P || Q) of `n_steps` steps and its parts [mean, standard error over independent paths]: total is their sum.

    `score` is what a wrong score costs at infinitely small steps, `discretisation` what the step costs with the
    reference's own score, `cross` twice the product of both errors, of either sign.
    """

    n_steps: int
    effective_step: float
    total: tuple[float, float]
    score: tuple[float, float]
    discretisation: tuple[float, float]
    cross: tuple[float, float]
    score_error: float  # root of E |s - s_model|^2 at the frames the chain would see, 1/nm


@dataclass(frozen=True)
class Study:
    """Divergences at one horizon (nm^2) for several numbers of steps, all from the same reference paths.

    `lipschitz` and `mean_square_score` are those of the reference along its paths: L at the frames looked at, 1/nm^2,
    and the mean |s|^2, 1/nm^2.
    """

    horizon: float
    n_coordinates: int
    lipschitz: float
    mean_square_score: float
    divergences: tuple[Divergence, ...]

    def bound(self, n_steps: int, score_error: float) -> Bound:
        """Theory (14) with the reference's L, for equal steps."""
        steps = np.full(n_steps, self.horizon / n_steps)
        mean_square = max(self.mean_square_score, self.lipschitz * self.n_coordinates)
        return closed_form(self.lipschitz, self.n_coordinates, steps, score_error, mean_square)

    def rows(self) -> list[dict]:
        """One for each number of steps: measured parts with errors, both terms of the bound, total variation."""
        rows = []
        for d in self.divergences:
            bound = self.bound(d.n_steps, d.score_error)
            measured = {name: {"value": value, "error": error} for name in PARTS for value, error in [getattr(d, name)]}
            rows.append(
                {
                    "n_steps": d.n_steps,
                    "effective_step": d.effective_step,
                    "spring": 0.5 / d.effective_step,
                    "score_error": d.score_error,
                    **measured,
                    "bound_score": bound.score,
                    "bound_discretisation": bound.discretisation,
                    "bound_total": bound.total,
                    "total_variation": total_variation(max(0.0, d.total[0])),
                }
            )
        return rows

    def draw(self, path: Path | str | None = None, axes=None) -> None:
        """Measured divergence and bound against the number of steps, both terms on their own, to a file or on axes."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = None
        if axes is None:
            figure = Figure(figsize=(6.4, 4.6), layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.add_subplot()
        n = np.array([d.n_steps for d in self.divergences])
        bounds = [self.bound(d.n_steps, d.score_error) for d in self.divergences]
        for name, colour, marker, label in (
            ("total", "black", "o", "KL(P‖Q)"),
            ("discretisation", "#0072b2", "s", "from the step"),
            ("score", "#d55e00", "^", "from the score"),
        ):
            value, error = np.array([getattr(d, name) for d in self.divergences]).T
            if not value.any():
                continue  # a model that is its own reference has no score error
            hollow = {"markersize": 9, "markerfacecolor": "none"} if name == "total" else {"markersize": 5}
            axes.errorbar(n, value, error, fmt=marker, color=colour, capsize=2, label=label, **hollow)
            if name != "total":
                limits = [getattr(bound, name) for bound in bounds]
                axes.plot(n, limits, "--", color=colour, linewidth=1.2, label=f"{label}: bound (14)")
        axes.set(xscale="log", yscale="log", xlabel="steps N", ylabel="KL divergence of path laws / nats")
        axes.set_xticks(n, [str(count) for count in n])
        axes.minorticks_off()
        axes.set_title(f"Horizon {self.horizon:.3g} nm²", loc="left", fontsize=11)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if figure is not None and path is not None:
            figure.savefig(path, dpi=160)


def path_divergence(
    model: Model,
    reference: Model,
    horizon: float,
    n_steps: Iterable[int],
    *,
    start: np.ndarray | None = None,
    burn_in: float = 0.0,
    n_paths: int = 64,
    substeps: int = 8,
    seed: int | None = None,
    n_threads: int = 0,
) -> Study:
    """Theory (13) by Monte Carlo, for chains of `model` with each of `n_steps` equal steps over `horizon` (nm^2).

    Paths of the reference are taken `substeps` times finer than the finest chain, with Heun steps, whose error is of
    second order in those; `model` is evaluated where a chain would. Coarser chains reuse the same paths, so every
    number of steps must divide the greatest.

    reference  the truth: any model, or `engine_reference` of an OpenMM System
    start      frames [n_frames, n_particles, 3], nm, taken in turn; by default the start frames of either model
    burn_in    nm^2 of reference dynamics before the paths begin, so that they begin at equilibrium
    n_paths    independent paths, from which the errors come
    """
    counts = sorted(set(n_steps))
    _expect_positive(horizon=horizon)
    if not counts or counts[0] < 1 or any(counts[-1] % n for n in counts):
        raise DiffusimError(
            f"n_steps is {counts}; expected positive numbers of which each divides the greatest",
            Status.INVALID_ARGUMENT,
        )
    for name, value, least in (("n_paths", n_paths, 2), ("substeps", substeps, 1)):
        if value < least:
            raise DiffusimError(f"{name} is {value}; expected {least} or more", Status.INVALID_ARGUMENT)
    if not 0 <= burn_in < math.inf:
        raise DiffusimError(f"burn_in is {burn_in} nm^2; expected 0 or more", Status.INVALID_ARGUMENT)
    _expect_same_particles(model, reference)
    finest = horizon / (counts[-1] * substeps)
    simulation = Simulation(
        reference,
        effective_step=finest,
        adapter="heun",
        n_replicas=n_paths,
        seed=fresh_seed() if seed is None else seed,
        n_threads=n_threads,
    )
    if start is None:
        start = next((m.start_positions for m in (model, reference) if len(m.start_positions)), None)
    if start is not None:
        simulation.positions = np.resize(np.asarray(start, dtype=float), (n_paths, model.n_particles, 3))
    simulation.step(math.ceil(burn_in / finest))

    curvatures, squares = [], []
    same = model is reference
    chains = [_Chain(n, counts[-1] // n * substeps, finest, n_paths) for n in counts]
    for i in range(counts[-1] * substeps + 1):
        if i > 0:
            simulation.step(1)
        scores = simulation.scores
        if i % substeps == 0:
            x = simulation.positions
            learned = scores if same else model.evaluate(x)[0]
            squares.append((scores**2).sum(axis=(1, 2)).mean())
            if i % max(1, counts[-1] // 4 * substeps) == 0:
                curvatures.append(reference.largest_curvature(x))
        for chain in chains:
            chain.follow(i, scores, learned)
    lipschitz = max(curvatures)
    divergences = tuple(chain.divergence(horizon) for chain in chains)
    return Study(horizon, 3 * model.n_particles, lipschitz, float(max(squares)), divergences)


class _Chain:
    """The integral of theory (13) along reference paths, for a chain whose steps are `stride` sub-steps long."""

    def __init__(self, n_steps: int, stride: int, finest: float, n_paths: int):
        self.n_steps, self.stride, self.finest = n_steps, stride, finest
        self.sums = np.zeros((3, n_paths))  # discretisation, cross, score
        self.square = 0.0

    def follow(self, i: int, scores: np.ndarray, learned: np.ndarray) -> None:
        """One point of the paths: it ends an interval of the trapezoid rule, begins one, or both."""
        if i > 0:
            last = i % self.stride == 0
            self._add(scores, 0.5 if last else 1.0)
        if i % self.stride == 0 and i < self.n_steps * self.stride:
            self.anchor, self.difference = scores, scores - learned
            square = (self.difference**2).sum(axis=(1, 2))
            self.square += square.mean() / self.n_steps
            self.sums[2] += self.stride * self.finest * square / 4
            # The first point of the step has moved nowhere: it adds nothing to the other two.

    def _add(self, scores: np.ndarray, weight: float) -> None:
        moved = scores - self.anchor
        self.sums[0] += weight * self.finest * (moved**2).sum(axis=(1, 2)) / 4
        self.sums[1] += weight * self.finest * (moved * self.difference).sum(axis=(1, 2)) / 2

    def divergence(self, horizon: float) -> Divergence:
        def estimate(values: np.ndarray) -> tuple[float, float]:
            return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))

        discretisation, cross, score = self.sums
        return Divergence(
            n_steps=self.n_steps,
            effective_step=horizon / self.n_steps,
            total=estimate(self.sums.sum(axis=0)),
            score=estimate(score),
            discretisation=estimate(discretisation),
            cross=estimate(cross),
            score_error=math.sqrt(self.square),
        )


def engine_reference(system, model: Model, platform: str = "Reference", check_masses: bool = True) -> Model:
    """An OpenMM System as the truth about `model`: its forces over kT0 are the score, its energy over kT0 the energy.

    The System must hold the particles of the model and no others, with all their degrees of freedom. Masses, which no
    score depends on, tell whether they are the same ones; `check_masses` False: whatever they weigh.
    """
    import openmm
    from openmm import unit

    n = system.getNumParticles()
    if n != model.n_particles:
        raise DiffusimError(
            f"the System has {n} particles and {model.name} {model.n_particles}; a reference must have those of the "
            "model and no others, because the score of some particles is a mean over the rest",
            Status.MISMATCH,
        )
    if check_masses:
        model.check_masses([system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(n)])
    still = [i for i in range(n) if not system.getParticleMass(i).value_in_unit(unit.dalton) > 0]  # virtual sites, too
    if system.getNumConstraints() or still:
        what = f"particle {still[0]} has no mass" if still else f"it has {system.getNumConstraints()} constraints"
        raise DiffusimError(
            f"the System leaves degrees of freedom out that {model.name} has: {what}; build it without", Status.MISMATCH
        )
    temperature = model.training_temperature
    kt = BOLTZMANN * temperature
    energy_unit, force_unit = unit.kilojoule_per_mole, unit.kilojoule_per_mole / unit.nanometer
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform))
    one_at_a_time = threading.Lock()

    def evaluate(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, energies = np.empty_like(positions), np.empty(len(positions))
        with one_at_a_time:
            for f, x in enumerate(positions):
                context.setPositions(x)
                state = context.getState(energy=True, forces=True)
                scores[f] = state.getForces(asNumpy=True).value_in_unit(force_unit) / kt
                energies[f] = state.getPotentialEnergy().value_in_unit(energy_unit) / kt
        return scores, energies

    return Model.from_callable(n, evaluate, temperature)


def _expect_same_particles(model: Model, reference: Model) -> None:
    if model.n_particles != reference.n_particles:
        raise DiffusimError(
            f"{model.name} has {model.n_particles} particles and the reference {reference.name} "
            f"{reference.n_particles}; expected the same ones",
            Status.MISMATCH,
        )
    t_model, t_reference = model.training_temperature, reference.training_temperature
    if abs(t_model - t_reference) > 1e-9 * t_model:
        raise DiffusimError(
            f"{model.name} is of {t_model:g} K and the reference {reference.name} of {t_reference:g} K; expected one "
            "temperature",
            Status.MISMATCH,
        )
    species = [[p["element"] or p["name"] for p in m.metadata.get("particles") or []] for m in (model, reference)]
    if all(species) and species[0] != species[1]:
        i = next(i for i, (a, b) in enumerate(zip(*species, strict=True)) if a != b)
        raise DiffusimError(
            f"particle {i} is {species[0][i]} in {model.name} and {species[1][i]} in the reference {reference.name}; "
            "expected the same ones in the same order",
            Status.MISMATCH,
        )


def _coefficients(lipschitz: float, n_coordinates: int, mean_square_score: float | None) -> tuple[float, float]:
    """L^2 d and L^2 M/3."""
    _expect_positive(lipschitz=lipschitz, n_coordinates=n_coordinates)
    mean_square = lipschitz * n_coordinates if mean_square_score is None else mean_square_score
    _expect_positive(mean_square_score=mean_square)
    return lipschitz**2 * n_coordinates, lipschitz**2 * mean_square / 3


def _expect_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise DiffusimError(f"{name} is {value}; expected a positive number", Status.INVALID_ARGUMENT)
