"""Settings of a training: defaults, a TOML file, command-line flags. What they leave open, choices.py fills in.

Every setting has one name, that of its flag: `noise_min` in the file is `--noise-min`. The file has one section per
group. Nothing heavy is imported here, so that the help of the command line is quick.
"""

import json
import os
import tomllib
from collections.abc import Iterator
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path

Quadruplet = tuple[int, int, int, int]
Permutation = tuple[tuple[int, ...], ...]  # in cycles

MODELS = ("distance", "message-passing")
AUTO = "auto"
PATHS = ("snapshots", "topology", "beads", "start_from")
COMMENTS_AT = 34  # column of the comments in a file that is written
SECTIONS = {
    "data": "The snapshots. Paths are relative to this file.",
    "model": "The network.",
    "noise": "Noise levels, nm. By default they follow the stiffest and the softest distance of the snapshots.",
    "loss": "What is minimised.",
    "training": "How it is minimised.",
}


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it, its value and the fix."""


def _setting(default, section: str, help: str):
    return field(default=default, metadata={"section": section, "help": help})


@dataclass(frozen=True)
class DataSettings:
    """Where the snapshots come from: the arguments of snapshots.read."""

    snapshots: str | None = _setting(None, "data", "Snapshots: npz, npy, xtc, dcd, trr, h5, extxyz, pdb or gro.")
    topology: str | None = _setting(None, "data", "Topology (PDB) with the atoms of the snapshots.")
    select: str = _setting("all", "data", "Atoms to learn, in mdtraj's language: 'backbone', 'not element H'.")
    beads: str | None = _setting(None, "data", "Coarse-graining: TOML or JSON file that maps atoms to beads.")
    unit: str | None = _setting(None, "data", "Length unit of the file: nm, angstrom, pm, bohr.")
    force_unit: str | None = _setting(
        None, "data", "Unit of the forces: kJ/mol/nm, kcal/mol/angstrom, eV/angstrom, hartree/bohr."
    )
    stride: int = _setting(1, "data", "Use every n-th frame.")
    periodic: bool = _setting(False, "data", "Learn a periodic system, not one molecule; frames need a cell.")


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training; lengths in nm, temperature in kelvin. None: chosen from the snapshots."""

    temperature: float = _setting(300.0, "data", "Temperature of the snapshots, K.")
    pressure: float | None = _setting(
        None, "data", "Pressure of the barostat of periodic snapshots, bar: their volumes are learned too."
    )
    held_out: float = _setting(0.05, "data", "Fraction of the frames that is kept for validation.")
    model: str = _setting("distance", "model", "distance (one molecule) or message-passing (anything).")
    start_from: str | None = _setting(None, "model", "Model file whose network and weights training starts from.")
    hidden: tuple[int, ...] | None = _setting(None, "model", "Widths of the layers, such as 192-192-192.")
    cutoff: float | None = _setting(None, "model", "Range of a message-passing model, nm.")
    quadruplets: tuple[Quadruplet, ...] | None = _setting(
        None, "model", "Signed features that tell mirror images apart, such as 0-1-3-4,1-3-4-6, or none."
    )
    symmetries: tuple[Permutation, ...] | str = _setting(
        (), "model", "Equivalent atoms: auto, none, or permutations in cycles such as 1-2-3,8-9+10-11."
    )
    noise_min: float | None = _setting(None, "noise", "Least noise level, nm.")
    noise_max: float | None = _setting(None, "noise", "Greatest noise level, nm.")
    noise_simulation: float | None = _setting(None, "noise", "Noise level that simulations read the model at, nm.")
    fokker_planck_weight: float | None = _setting(None, "loss", "Weight of the Fokker-Planck loss; 0 switches it off.")
    fokker_planck_ramp: float = _setting(0.1, "loss", "Fraction of the steps over which that weight grows from 0.")
    fokker_planck_noise_max: float | None = _setting(
        None, "loss", "Greatest noise level of the Fokker-Planck loss, nm."
    )
    relative_entropy_weight: float = _setting(0.0, "loss", "Weight of the relative entropy; 0: none.")
    relative_entropy_start: float = _setting(0.6, "loss", "Fraction of the steps before that term sets in.")
    chains: int | None = _setting(None, "loss", "Frames that the relative entropy samples the network with.")
    chain_steps: int = _setting(8, "loss", "Their steps of Langevin dynamics per optimizer step.")
    force_weight: float = _setting(1.0, "loss", "Share of the forces, where the snapshots have any: 0 (none) to 1.")
    steps: int = _setting(20_000, "training", "Optimizer steps.")
    batch: int | None = _setting(None, "training", "Blurred frames per step.")
    learning_rate: float = _setting(2e-3, "training", "Greatest learning rate.")
    learning_rate_end: float = _setting(0.0, "training", "Last learning rate, as a fraction of the greatest.")
    warm_up: float = _setting(0.02, "training", "Fraction of the steps over which the learning rate grows from 0.")
    average: float = _setting(0.05, "training", "Fraction of the steps that the averaged weights remember.")
    evaluations: int = _setting(50, "training", "How often the held-out loss is measured.")
    patience: int = _setting(20, "training", "Evaluations without gain before it stops early.")
    torsion_share: float = _setting(0.0, "training", "Share of the frames drawn evenly over the torsions; 0: none.")
    seed: int = _setting(0, "training", "Same seed, same machine: same model.")

    def __post_init__(self):
        if self.hidden is not None:
            object.__setattr__(self, "hidden", _whole_numbers("hidden", self.hidden))
        if self.quadruplets is not None:
            object.__setattr__(self, "quadruplets", tuple(_whole_numbers("quadruplets", q) for q in self.quadruplets))
        if self.symmetries == "none":
            object.__setattr__(self, "symmetries", ())
        elif self.symmetries != AUTO:
            _demand(not isinstance(self.symmetries, str), "symmetries", self.symmetries, "auto, none, or permutations")
            nested = tuple(tuple(_whole_numbers("symmetries", c) for c in p) for p in self.symmetries)
            object.__setattr__(self, "symmetries", nested)
        for name, least in {"steps": 10, "evaluations": 1, "patience": 1, "seed": 0, "chain_steps": 1}.items():
            _demand(_is_whole(getattr(self, name)), name, getattr(self, name), "a whole number")
            _demand(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")
        _demand(self.model in MODELS, "model", self.model, " or ".join(MODELS))
        _demand(self.temperature > 0, "temperature", self.temperature, "a temperature above 0 K")
        good = self.batch is None or (_is_whole(self.batch) and self.batch >= 8 and self.batch % 2 == 0)
        _demand(good, "batch", self.batch, "an even number, at least 8")
        _demand(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0; 0.002 is the default")
        if self.hidden is not None:
            widths = "-".join(map(str, self.hidden))
            _demand(len(self.hidden) > 0 and min(self.hidden) >= 1, "hidden", widths, "widths such as 192-192-192")
        good = self.fokker_planck_weight is None or self.fokker_planck_weight >= 0
        _demand(good, "fokker_planck_weight", self.fokker_planck_weight, "0 or more")
        _demand(self.relative_entropy_weight >= 0, "relative_entropy_weight", self.relative_entropy_weight, "0 or more")
        good = self.chains is None or (_is_whole(self.chains) and self.chains >= 1)
        _demand(good, "chains", self.chains, "a whole number, at least 1")
        for name in (
            "fokker_planck_ramp",
            "relative_entropy_start",
            "force_weight",
            "learning_rate_end",
            "torsion_share",
        ):
            _demand(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("warm_up", "average"):
            _demand(0 <= getattr(self, name) < 1, name, getattr(self, name), "a fraction, 0 or more and below 1")
        _demand(0 < self.held_out < 0.5, "held_out", self.held_out, "a fraction between 0 and 0.5")
        for name in ("noise_min", "noise_max", "noise_simulation", "fokker_planck_noise_max", "cutoff"):
            value = getattr(self, name)
            _demand(value is None or value > 0, name, value, "a length above 0 nm")


def settings() -> dict[str, Field]:
    """Every setting by name, in the order of the file."""
    found = {f.name: f for kind in (DataSettings, TrainingSettings) for f in fields(kind)}
    return {f.name: f for section in SECTIONS for f in found.values() if f.metadata["section"] == section}


def load(config: Path | None, flags: dict) -> tuple[DataSettings, TrainingSettings]:
    """The settings: defaults, overridden by the TOML file `config`, overridden by `flags` that are not None.

    Raises SettingsError.
    """
    chosen = {} if config is None else _read(config)
    chosen |= {key: value for key, value in flags.items() if value is not None}
    try:
        return tuple(
            kind(**{f.name: chosen[f.name] for f in fields(kind) if f.name in chosen})
            for kind in (DataSettings, TrainingSettings)
        )
    except TypeError as error:
        raise SettingsError(f"a setting has the wrong type: {error}.") from None


def _read(config: Path) -> dict:
    """The settings in a file, by name; paths relative to where it lies."""
    try:
        content = tomllib.loads(config.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"--config {config} cannot be read: {error}.") from None
    known = settings()
    chosen = {}
    for section, entries in content.items():
        if section in known and not isinstance(entries, dict):
            right = known[section].metadata["section"]
            raise SettingsError(f"{config} sets '{section}' outside of the sections; put it under [{right}].")
        if section not in SECTIONS or not isinstance(entries, dict):
            raise SettingsError(f"{config} has '{section}' where sections are expected: {', '.join(SECTIONS)}.")
        for name, value in entries.items():
            if name not in known:
                inside = ", ".join(n for n, f in known.items() if f.metadata["section"] == section)
                raise SettingsError(f"{config} sets '{name}' in [{section}], which is no setting; it has {inside}.")
            if known[name].metadata["section"] != section:
                right = known[name].metadata["section"]
                raise SettingsError(f"{config} sets '{name}' in [{section}]; it belongs into [{right}].")
            chosen[name] = value
    for name in PATHS:
        if name in chosen:
            chosen[name] = str(config.parent / chosen[name])
    return chosen


def to_toml(data: DataSettings, training: TrainingSettings, folder: Path) -> str:
    """The settings as a commented TOML file to lie in `folder`; what is still open is commented out."""
    values = asdict(data) | asdict(training)
    for name in PATHS:
        if values[name] is not None:
            values[name] = Path(os.path.relpath(values[name], folder)).as_posix()
    return "\n".join(_toml_lines(values))


def _toml_lines(values: dict) -> Iterator[str]:
    yield "# diffusim train --config THIS_FILE -o model.safetensors"
    yield "# Lengths in nm, temperatures in kelvin. Flags of the same names override what is here."
    known = settings()
    for section, comment in SECTIONS.items():
        yield ""
        yield f"# {comment}"
        yield f"[{section}]"
        for name in (n for n, f in known.items() if f.metadata["section"] == section):
            entry = f"# {name} =" if values[name] is None else f"{name} = {json.dumps(values[name])}"
            comment = f"# {known[name].metadata['help']}"
            if len(entry) > COMMENTS_AT:
                yield comment
                yield entry
            else:
                yield f"{entry:<{COMMENTS_AT}} {comment}"
    yield ""


def as_dict(training: TrainingSettings) -> dict:
    """The settings as JSON would give them back, for provenance and for comparing with a checkpoint."""
    return json.loads(json.dumps(asdict(training)))


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


def parse_symmetries(text: str) -> tuple[Permutation, ...] | str:
    """'1-2-3,8-9+10-11' to its permutations in cycles; 'auto' and 'none' as they are."""
    if text in (AUTO, "none"):
        return text
    try:
        return tuple(tuple(tuple(int(i) for i in c.split("-")) for c in p.split("+")) for p in text.split(","))
    except ValueError:
        raise SettingsError(
            f"--symmetries is '{text}'; expected auto, none, or permutations such as 1-2-3,8-9+10-11."
        ) from None


def _whole_numbers(name: str, values) -> tuple[int, ...]:
    if isinstance(values, str) or not hasattr(values, "__iter__") or not all(_is_whole(v) for v in values):
        raise SettingsError(f"--{name} holds {values}; expected a list of whole numbers.")
    return tuple(values)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _demand(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise SettingsError(f"--{name.replace('_', '-')} is {value}; expected {expected}.")
