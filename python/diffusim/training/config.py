"""Settings of a training: defaults, a TOML file, command-line flags, and what is chosen from the snapshots."""

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from diffusim.snapshots import Snapshots

Quadruplet = tuple[int, int, int, int]


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it, its value and the fix."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training; lengths in nm, temperature in kelvin. None: chosen from the snapshots by `complete`."""

    temperature: float = 300.0
    steps: int = 20_000
    batch: int = 512
    learning_rate: float = 2e-3
    hidden: tuple[int, ...] = (192, 192, 192)
    noise_min: float | None = None
    noise_max: float | None = None
    noise_simulation: float | None = None
    fokker_planck_weight: float = 0.05
    quadruplets: tuple[Quadruplet, ...] | None = None
    held_out: float = 0.05
    evaluations: int = 50
    patience: int = 10
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.quadruplets is not None:
            object.__setattr__(self, "quadruplets", tuple(tuple(q) for q in self.quadruplets))
        for name in ("steps", "batch", "evaluations", "patience", "seed"):
            _demand(isinstance(getattr(self, name), int), name, getattr(self, name), "a whole number")
        _demand(self.temperature > 0, "temperature", self.temperature, "a temperature above 0 K")
        _demand(self.steps >= 10, "steps", self.steps, "at least 10")
        _demand(self.batch >= 128 and self.batch % 2 == 0, "batch", self.batch, "an even number, at least 128")
        _demand(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0; 0.002 is the default")
        _demand(
            len(self.hidden) >= 1 and all(isinstance(n, int) and n >= 1 for n in self.hidden),
            "hidden",
            "-".join(map(str, self.hidden)),
            "widths above 0, such as 192-192-192",
        )
        _demand(self.fokker_planck_weight >= 0, "fokker_planck_weight", self.fokker_planck_weight, "0 or more")
        _demand(0 < self.held_out < 0.5, "held_out", self.held_out, "a fraction between 0 and 0.5")
        _demand(self.evaluations >= 1, "evaluations", self.evaluations, "at least 1")
        _demand(self.patience >= 1, "patience", self.patience, "at least 1")
        for name in ("noise_min", "noise_max", "noise_simulation"):
            value = getattr(self, name)
            _demand(value is None or value > 0, name, value, "a length above 0 nm")


def load(config: Path | None, flags: dict) -> TrainingSettings:
    """Settings from the defaults, overridden by the TOML file `config`, overridden by `flags` that are not None.

    Keys of the file are the names of the flags, with `_` or `-`. Raises SettingsError.
    """
    chosen = {}
    if config is not None:
        try:
            chosen = {key.replace("-", "_"): value for key, value in tomllib.loads(config.read_text()).items()}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"--config {config} cannot be read: {error}.") from None
        known = {f.name for f in fields(TrainingSettings)}
        unknown = sorted(set(chosen) - known)
        if unknown:
            raise SettingsError(
                f"{config} sets '{unknown[0]}', which is no setting; known are {', '.join(sorted(known))}."
            )
    chosen |= {key: value for key, value in flags.items() if value is not None}
    try:
        return TrainingSettings(**chosen)
    except TypeError as error:
        raise SettingsError(f"a setting has the wrong type: {error}.") from None


def complete(settings: TrainingSettings, snapshots: Snapshots) -> TrainingSettings:
    """Fill in what was left open, from the snapshots.

    noise_min is 0.2 of the stiffest pair distance's spread: the blur then adds at most 8 % to any pair's variance
    (2 sigma^2, theory (18)) . noise_max covers the softest one, so that the blurred molecule has one basin.
    """
    spreads = snapshots.pair_spreads()
    n = snapshots.n_particles
    if settings.noise_min is None:
        stiffest = float(spreads.min())
        if stiffest < 1e-4:
            i, j = (k[int(spreads.argmin())] for k in np.triu_indices(n, 1))
            raise SettingsError(
                f"the distance {snapshots.label(i)} to {snapshots.label(j)} is constrained: it spreads by only "
                f"{stiffest:.1g} nm. Leave one of the two out with --select (constrained hydrogens: --select "
                "'not element H'), or set --noise-min."
            )
        settings = replace(settings, noise_min=_one_digit(0.2 * stiffest))
    if settings.noise_max is None:
        settings = replace(settings, noise_max=max(_one_digit(1.2 * float(spreads.max())), 20 * settings.noise_min))
    if settings.noise_simulation is None:
        settings = replace(settings, noise_simulation=settings.noise_min)
    if settings.noise_max <= settings.noise_min:
        raise SettingsError(
            f"--noise-max is {settings.noise_max:g} nm; expected more than --noise-min, {settings.noise_min:g} nm."
        )
    if not settings.noise_min <= settings.noise_simulation <= settings.noise_max:
        raise SettingsError(
            f"--noise-simulation is {settings.noise_simulation:g} nm; expected a value within the trained range "
            f"{settings.noise_min:g} to {settings.noise_max:g} nm."
        )
    if settings.quadruplets is None:
        settings = replace(settings, quadruplets=choose_quadruplets(snapshots))
    for quadruplet in settings.quadruplets:
        if len(quadruplet) != 4 or len(set(quadruplet)) != 4 or not all(0 <= i < n for i in quadruplet):
            raise SettingsError(
                f"--quadruplets names {'-'.join(map(str, quadruplet))}; expected four different particles 0 to {n - 1}."
            )
    return settings


def choose_quadruplets(snapshots: Snapshots) -> tuple[Quadruplet, ...]:
    """Signed features from the bonds: a proper dihedral per central bond, a chirality per centre of >= 3 neighbours.

    A dihedral takes, on each side, the neighbour with most bonds, then the heaviest, then the first. A centre with its
    three first neighbours in that order gives (neighbour, centre, neighbour, neighbour), whose S is its signed volume.
    """
    neighbours = [[] for _ in range(snapshots.n_particles)]
    for i, j in snapshots.bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)

    def ranked(atoms):
        return sorted(atoms, key=lambda i: (-len(neighbours[i]), -snapshots.particles[i].mass, i))

    dihedrals = []
    for b, c in snapshots.bonds:
        left = [i for i in ranked(neighbours[b]) if i != c]
        right = [i for i in ranked(neighbours[c]) if i not in (b, *left[:1])]
        if left and right:
            dihedrals.append((left[0], b, c, right[0]))
    centres = []
    for centre, around in enumerate(neighbours):
        if len(around) >= 3:
            first, second, third = ranked(around)[:3]
            centres.append((first, centre, second, third))
    return tuple(dihedrals + centres)


def as_dict(settings: TrainingSettings) -> dict:
    """The settings as JSON would give them back, for provenance and for comparing with a checkpoint."""
    entry = asdict(settings)
    return entry | {"hidden": list(settings.hidden), "quadruplets": [list(q) for q in settings.quadruplets or ()]}


def parse_hidden(text: str) -> tuple[int, ...]:
    """'192-192-192' to (192, 192, 192)."""
    try:
        return tuple(int(n) for n in text.replace(",", "-").split("-"))
    except ValueError:
        raise SettingsError(f"--hidden is '{text}'; expected widths such as 192-192-192.") from None


def parse_quadruplets(text: str) -> tuple[Quadruplet, ...]:
    """'0-1-3-4,1-3-4-6' to its quadruplets; 'none' to no quadruplets."""
    if text == "none":
        return ()
    try:
        return tuple(tuple(int(i) for i in q.split("-")) for q in text.split(","))
    except ValueError:
        raise SettingsError(
            f"--quadruplets is '{text}'; expected particles such as 0-1-3-4,1-3-4-6, or none."
        ) from None


def _demand(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise SettingsError(f"--{name.replace('_', '-')} is {value}; expected {expected}.")


def _one_digit(x: float) -> float:
    return float(f"{x:.0e}")
