"""What in the paper did not hold: steps whose stationary density is another one, each against its closed form."""

from pathlib import Path

import chains
import numpy as np
from figures import Row, canvas

import diffusim
from diffusim.report import plots, statistics

NAME = "limits"
STIFFNESS = 1.7  # of the harmonic wells, 1/length^2
SOFT, UNSTABLE = 0.1, 2.1  # kappa tau
SPLIT = 0.03
QUARTIC_STEPS = (0.1, 0.05, 0.025, 0.0125)
N_COPIES, N_STEPS, EVERY = 5_000, 6_000, 60
SEED = 48291


def measure(picture: Path) -> list[Row]:
    rows = [*_stability(), *_glue(), *_split()]
    quartic, biases = _quartic()
    with canvas(picture, "Steps that are not what they seem", 3) as axes:
        _draw_stability(axes[0])
        _draw_memory_of_two(axes[1])
        _draw_biases(axes[2], biases)
    return rows + quartic


def _stability() -> list[Row]:
    """Euler-Maruyama: variance 1 / (kappa (1 - kappa tau / 2)), which diverges at kappa tau = 2 (theory 2)."""
    rows = []
    model = diffusim.Model.from_metadata(
        {"format_version": 1, "kind": "harmonic", "n_particles": 1, "length_unit": "nm", "training_temperature": 300.0,
         "hyperparameters": {"stiffness": STIFFNESS}}
    )  # fmt: skip
    for product in (0.5, 1.5, 1.9):
        simulation = diffusim.Simulation(
            model, effective_step=product / STIFFNESS, n_replicas=N_COPIES, seed=SEED, adapter="euler-maruyama",
            allow_unstable=True,
        )  # fmt: skip
        simulation.step(400)
        squares = STIFFNESS * np.mean(simulation.positions[:, 0] ** 2, axis=1)
        rows.append(
            Row(
                NAME,
                f"harmonic variance κ⟨x²⟩ of Euler–Maruyama at κτ = {product}, not 1",
                float(squares.mean()),
                statistics.standard_error(squares),
                1 / (1 - product / 2),
            )
        )
    simulation.positions = np.ones((N_COPIES, 1, 3))
    simulation.reconfigure(effective_step=UNSTABLE / STIFFNESS)
    n_steps, growth = 10, (1 - UNSTABLE) ** 2
    simulation.step(n_steps)
    squares = STIFFNESS * np.mean(simulation.positions[:, 0] ** 2, axis=1)
    noise = 2 * UNSTABLE * (growth**n_steps - 1) / (growth - 1)
    rows.append(
        Row(
            NAME,
            f"κ⟨x²⟩ {n_steps} steps after x = 1 at κτ = {UNSTABLE}, growing without end",
            float(squares.mean()),
            statistics.standard_error(squares),
            STIFFNESS * growth**n_steps + noise,
        )
    )
    return rows


def glued_variance(product: float) -> float:
    """kappa <x^2> of a frame with equal springs to the last frame and the one before it, at kappa tau = `product`.

    x'' = (x' + x) / 2 - (kappa tau / 2) x' + sqrt(tau) xi: autoregressive of order two.
    """
    return 4 / 3 / (2 - product)


def _glue() -> list[Row]:
    tau = SOFT / STIFFNESS
    random = np.random.default_rng(SEED)
    before = now = random.normal(size=N_COPIES) / np.sqrt(STIFFNESS)
    squares = []
    for n in range(N_STEPS):
        kick = np.sqrt(tau) * random.normal(size=N_COPIES)
        before, now = now, (now + before) / 2 - 0.5 * tau * STIFFNESS * now + kick
        if n >= N_STEPS // 6 and n % EVERY == 0:
            squares.append(STIFFNESS * now**2)
    squares = np.mean(squares, axis=0)
    text = f"harmonic variance κ⟨x²⟩ of a frame glued to the two before it, κτ = {SOFT}, not 1"
    return [Row(NAME, text, float(squares.mean()), statistics.standard_error(squares), glued_variance(SOFT))]


def _split() -> list[Row]:
    """Two wells of kappa / 2 each, one after the other, with half the noise each; the density is that of kappa."""
    rows = []
    for share, text, exact in (
        (1.0, "the full step for each drift", 1 / (1 - SPLIT / 4)),
        (0.5, "the step split among the drifts, not 1", 2 / (1 - SPLIT / 8)),
    ):
        tau = SPLIT / STIFFNESS
        random = np.random.default_rng(SEED)
        x = random.normal(size=N_COPIES) / np.sqrt(STIFFNESS)
        squares = []
        for n in range(N_STEPS):
            for _ in range(2):
                x = x - share * tau * 0.5 * STIFFNESS * x + np.sqrt(tau) * random.normal(size=N_COPIES)
            if n >= N_STEPS // 6 and n % EVERY == 0:
                squares.append(STIFFNESS * x**2)
        squares = np.mean(squares, axis=0)
        quantity = f"harmonic variance κ⟨x²⟩ of two half-wells in turn, {text}"
        rows.append(Row(NAME, quantity, float(squares.mean()), statistics.standard_error(squares), exact))
    return rows


def _quartic() -> tuple[list[Row], dict[str, list[float]]]:
    """Errors of <x^2> in U = x^4 / 4, from stationary densities on a grid."""
    x = chains.grid(4.2, 700)

    def score(y):
        return -(y**3)

    energy = x**4 / 4
    exact = chains.mean_square(x, np.exp(-energy))
    of: dict[str, list[float]] = {
        name: [] for name in ("Euler–Maruyama", "two half steps", "Heun", "Leimkuhler–Matthews", "one Metropolis step")
    }
    metropolis = []
    for tau in QUARTIC_STEPS:
        step = chains.euler_maruyama(x, score, tau)
        half = chains.euler_maruyama(x, score, tau / 2)
        accepted = chains.metropolis(x, energy, step)
        y, after = chains.leimkuhler_matthews(x, score, tau)
        density = chains.stationary(step)
        for name, found in (
            ("Euler–Maruyama", density),
            ("two half steps", chains.stationary(half @ half)),
            ("Heun", chains.stationary(chains.heun(x, score, tau))),
            ("Leimkuhler–Matthews", chains.stationary(y) @ after),
            ("one Metropolis step", density @ accepted),
        ):
            of[name].append(chains.mean_square(x, found) - exact)
        metropolis.append(chains.mean_square(x, chains.stationary(accepted)) - exact)
    two = QUARTIC_STEPS.index(0.1), QUARTIC_STEPS.index(0.05)

    def order(name):
        first, second = (abs(of[name][i]) for i in two)
        return float(np.log2(first / second))

    rows = [
        Row(NAME, "order in τ of the quartic ⟨x²⟩, Euler–Maruyama", order("Euler–Maruyama"), None, 1.0),
        Row(NAME, "the same, two half steps in place of one", order("two half steps"), None, 1.0),
        Row(NAME, "the same, Heun", order("Heun"), None, 2.0),
        Row(NAME, "the same, Leimkuhler–Matthews", order("Leimkuhler–Matthews"), None, 2.0),
        Row(NAME, "error of the quartic ⟨x²⟩ after one Metropolis step at the end, τ = 0.1, not 0",
            of["one Metropolis step"][0]),
        Row(NAME, "the same, with a Metropolis step every time", metropolis[0], None, 0.0),
    ]  # fmt: skip
    return rows, of


def _draw_stability(axes) -> None:
    product = np.linspace(0.01, 1.97, 300)
    axes.plot(product, 1 / (1 - product / 2), color=plots.SECOND, label="Euler–Maruyama")
    axes.axhline(1, color=plots.SIMULATED, label="Leimkuhler–Matthews, exact")
    axes.axvline(2, color="0.6", lw=1, ls="--")
    axes.text(2.03, 9, "unstable", rotation=90, va="center", color="0.35")
    axes.set(yscale="log", xlabel="κτ", ylabel="κ⟨x²⟩", xlim=(0, 2.2))
    axes.set_title("A soft spring heats, then explodes")
    axes.legend(loc="upper left")


def _draw_memory_of_two(axes) -> None:
    product = np.linspace(0.005, 1, 200)
    axes.axhline(1, color=plots.REFERENCE, label="exp(−U)")
    axes.plot(product, glued_variance(product), color=plots.SECOND, label="glued to the two frames before")
    axes.plot(product, 2 / (1 - product / 8), color=plots.INDEPENDENT, label="step split among two drifts")
    axes.plot(product, 1 / (1 - product / 4), color=plots.SIMULATED, label="full step for each drift")
    axes.set(xlabel="κτ", ylabel="κ⟨x²⟩", ylim=(0, 3.4), xlim=(0, 1))
    axes.set_title("Other densities, however small τ")
    axes.legend(loc="upper left")


def _draw_biases(axes, of: dict[str, list[float]]) -> None:
    markers = ("o", "s", "^", "D", "v")
    colours = (plots.SECOND, "#cc79a7", plots.INDEPENDENT, plots.SIMULATED, "#8c8c8c")
    for (name, values), colour, marker in zip(of.items(), colours, markers, strict=True):
        axes.plot(QUARTIC_STEPS, np.abs(values), marker=marker, color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel="τ", ylabel="error of ⟨x²⟩, quartic well", ylim=(1e-6, 0.3))
    axes.set_xticks(QUARTIC_STEPS, [f"{tau:g}" for tau in QUARTIC_STEPS])
    axes.minorticks_off()
    axes.set_title("Orders")
    axes.legend(loc="upper left", ncols=2, fontsize=8.5)
