"""The model file: one `.safetensors`, its meaning as JSON in the header, format version 1.

The header's `__metadata__` holds one key, `diffusim`, whose value is the JSON of a `ModelFile`. All lengths are in nm,
masses in amu, temperatures in kelvin; energies of a model are in kT0, with T0 the training temperature. Tensors are
little-endian float32 or bfloat16 in C order; analytic kinds have none. Nothing here needs JAX or the Rust core.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy

FORMAT_VERSION = 1
METADATA_KEY = "diffusim"
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself


class ModelFileError(ValueError):
    """A file that is not a model file of this version, with the sentence to show."""


@dataclass(frozen=True)
class Particle:
    """One particle, in the order of the positions; `mass` in amu."""

    name: str
    element: str
    residue: str
    residue_index: int
    mass: float


@dataclass(frozen=True)
class NoiseLevels:
    """Range of the trained noise levels and the one that simulations read the model at, nm."""

    min: float
    max: float
    simulation: float


@dataclass(frozen=True)
class ModelFile:
    """What the header of a model file says. Units in the module's docstring.

    `largest_curvature` is the largest eigenvalue of -grad score seen on the snapshots, 1/nm^2, and
    `recommended_effective_step` the tau for molecular dynamics, nm^2; None where nobody measured them.
    `bond_ranges` is the least and greatest length of each bond in the snapshots.
    """

    kind: str
    n_particles: int
    training_temperature: float
    hyperparameters: dict
    particles: list[Particle] = field(default_factory=list)
    bonds: list[tuple[int, int]] = field(default_factory=list)
    length_unit: str = "nm"
    periodic: bool = False
    noise_levels: NoiseLevels | None = None
    recommended_effective_step: float | None = None
    largest_curvature: float | None = None
    bond_ranges: list[tuple[float, float]] = field(default_factory=list)
    training: dict = field(default_factory=dict)
    weights_sha256: str = ""
    format_version: int = FORMAT_VERSION


def write(path: str | os.PathLike, model: ModelFile, tensors: Mapping[str, np.ndarray] | None = None) -> ModelFile:
    """Write `model` and its `tensors` (cast to float32 unless bfloat16) to `path`, replacing a file there in one move.

    Returns the header as written, with `weights_sha256`, the sha256 of the file's data section.
    """
    arrays = {
        name: np.ascontiguousarray(a, dtype=a.dtype if a.dtype.name == "bfloat16" else "<f4")
        for name, a in (tensors or {}).items()
    }
    not_finite = [name for name, a in arrays.items() if not np.isfinite(a.astype("<f4")).all()]
    if not_finite:
        raise ModelFileError(f"tensor {not_finite[0]} has values that are not finite; {path} was not written.")
    data = safetensors.numpy.save(arrays)
    header_length = int.from_bytes(data[:8], "little")
    entry = asdict(model) | {"weights_sha256": hashlib.sha256(data[8 + header_length :]).hexdigest()}
    data = safetensors.numpy.save(arrays, metadata={METADATA_KEY: json.dumps(entry, ensure_ascii=False)})

    replace(path, data)
    return _from_entry(entry, path)


def replace(path: str | os.PathLike, data: bytes) -> None:
    """Put `data` at `path` in one move: whoever reads it sees the old file or the new one, never a part."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:  # an interrupt perhaps, after the move
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike) -> ModelFile:
    """Read the header of the model file at `path`; its tensors stay unread.

    Raises ModelFileError if the file is not a model file of this format version, OSError if it cannot be opened.
    """
    path = Path(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= LARGEST_HEADER:
            raise ModelFileError(f"{path} is not a model file: it does not start like a safetensors file.")
        header = file.read(length)
    try:
        entry = json.loads(json.loads(header)["__metadata__"][METADATA_KEY])
    except (ValueError, KeyError, TypeError):
        raise ModelFileError(
            f"{path} is not a model file: its safetensors header has no '{METADATA_KEY}' metadata."
        ) from None
    return _from_entry(entry, path)


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the tensors of the model file at `path`, by name, as float32; ModelFileError if their sha256 is another."""
    model = read(path)
    data = Path(path).read_bytes()
    header_length = int.from_bytes(data[:8], "little")
    if hashlib.sha256(data[8 + header_length :]).hexdigest() != model.weights_sha256:
        raise ModelFileError(f"{path} is damaged: its weights do not match the sha256 in its header. Copy it again.")
    return {name: _as_float32(view) for name, view in safetensors.deserialize(data)}


def _as_float32(view: dict) -> np.ndarray:
    """A tensor as the safetensors library gives it, widened without loss."""
    match view["dtype"]:
        case "F32":
            values = np.frombuffer(view["data"], "<f4")
        case "BF16":
            values = (np.frombuffer(view["data"], "<u2").astype("<u4") << 16).view("<f4")
        case other:
            raise ModelFileError(
                f"a tensor of the model is {other}; this diffusim reads F32 and BF16. Update diffusim."
            )
    return values.reshape(view["shape"])


def _from_entry(entry: dict, path: Path) -> ModelFile:
    version = entry.get("format_version") if isinstance(entry, dict) else None
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}; this diffusim reads version {FORMAT_VERSION}. Update diffusim."
        )
    entry = dict(entry)
    try:
        entry["particles"] = [Particle(**p) for p in entry.get("particles", [])]
        entry["bonds"] = [(int(i), int(j)) for i, j in entry.get("bonds", [])]
        entry["bond_ranges"] = [(float(low), float(high)) for low, high in entry.get("bond_ranges", [])]
        if entry.get("noise_levels") is not None:
            entry["noise_levels"] = NoiseLevels(**entry["noise_levels"])
        return ModelFile(**entry)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{path} has a header that diffusim cannot read: {error}.") from None
