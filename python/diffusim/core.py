"""Models and simulations: NumPy arrays in and out of the Rust core. No arithmetic happens here.

Positions are nm, scores 1/nm, energies kT0 (T0 = the model's training temperature), masses amu, times ps, temperatures
kelvin. Failures are DiffusimError with one sentence.
"""

import json
import operator
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_double,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
    cast,
    sizeof,
    string_at,
)
from dataclasses import dataclass

import numpy as np

from diffusim import _library
from diffusim._library import (
    DiffusimError,
    EvaluatorOptions,
    ExchangeCallback,
    ModelOptions,
    SampleOptions,
    ScoreCallback,
    SimulationOptions,
    SimulationStatistics,
    Status,
)

ADAPTERS = ("euler-maruyama", "leimkuhler-matthews", "heun", "mala", "langevin")  # in the order of the C API
SCHEDULE_ENDS = ("hold", "cycle")
SAMPLERS = ("sequential", "time-parallel", "auto")
JACOBIANS = ("auto", "identity", "diagonal", "dense")
FLOAT64 = 1
LARGEST_SEED = 2**63 - 1  # that every engine can carry; 0 stands for a fresh one in some
SLICE_SECONDS = 0.2  # a step() call comes back to Python this often, so that Ctrl-C works
FRAMES_PER_CALL = 256  # and a sample() call after so many frames

ScoreFunction = Callable[[np.ndarray], np.ndarray | tuple[np.ndarray, np.ndarray]]


class Model:
    """A score model: s(x) = -grad E(x), the gradient of the logarithm of the density of its training snapshots.

    Immutable; may be shared by simulations and threads.
    """

    def __init__(self, path: str | os.PathLike, noise_level: float | None = None):
        """Read the model file `path`; `noise_level` (nm) defaults to the one the file names for simulations."""
        handle = c_void_p()
        _library.call("diffusim_model_load", os.fsencode(path), _model_options(noise_level), byref(handle))
        self._own(handle, noise_level=noise_level)

    @classmethod
    def from_bytes(cls, data: bytes, noise_level: float | None = None, name: str | None = None) -> "Model":
        """A model file that is already in memory; `name` is what messages call it."""
        handle = c_void_p()
        options = _model_options(noise_level, name)
        _library.call("diffusim_model_from_bytes", bytes(data), len(data), options, byref(handle))
        return cls.__new__(cls)._own(handle, noise_level=noise_level)

    @classmethod
    def from_metadata(cls, metadata: dict) -> "Model":
        """An analytic model from the description that a model file would hold, such as

        {"format_version": 1, "kind": "harmonic", "n_particles": 3, "length_unit": "nm",
         "training_temperature": 250.0, "hyperparameters": {"stiffness": 40.0}}
        """
        handle = c_void_p()
        _library.call("diffusim_model_from_json", json.dumps(metadata).encode(), byref(handle))
        return cls.__new__(cls)._own(handle)._made_by(cls.from_metadata, metadata)

    @classmethod
    def from_callable(cls, n_particles: int, function: ScoreFunction, training_temperature: float) -> "Model":
        """A model around `function`: positions [n_frames, n_particles, 3] in, scores of the same shape out, or the pair
        (scores, energies [n_frames]). It is called from several threads, one at a time. What it raises is the cause of
        the DiffusimError that the caller gets.
        """
        callback = _Callback(function)
        handle = c_void_p()
        _library.call(
            "diffusim_model_callback", n_particles, callback.pointer, None, training_temperature, byref(handle)
        )
        model = cls.__new__(cls)._own(handle, (callback,))
        return model._made_by(cls.from_callable, n_particles, function, training_temperature)

    @classmethod
    def blend(cls, a: "Model | str | os.PathLike", b: "Model | str | os.PathLike", lambda_: float) -> "Model":
        """Two models of the same particles as one, E = (1 - lambda) E_a + lambda E_b (theory 7).

        `lambda_`, 0 to 1, is where simulations of the blend start; `Simulation.lambda_` moves them.
        """
        a, b = (model if isinstance(model, Model) else Model(model) for model in (a, b))
        handle = c_void_p()
        _library.call("diffusim_model_blend", a._handle, b._handle, lambda_, byref(handle))
        blend = cls.__new__(cls)._own(handle, (*a._callbacks, *b._callbacks))
        blend.parts = (a, b)
        return blend._made_by(cls.blend, a, b, lambda_)

    def subset(self, n_particles_total: int, particles: Sequence[int]) -> "Model":
        """This model acting on `particles` (in its own order) of a larger system; the others have no score."""
        particles = np.asarray(particles, dtype=np.uintp)
        _expect_shape("particles", particles, (self.n_particles,))
        handle = c_void_p()
        indices = particles.ctypes.data_as(POINTER(c_size_t))
        _library.call("diffusim_model_subset", self._handle, n_particles_total, indices, byref(handle))
        model = Model.__new__(Model)._own(handle, self._callbacks, self.noise_level)
        return model._made_by(Model.subset, self, n_particles_total, particles)

    def for_species(self, species: Sequence[str]) -> "Model":
        """A model of kind `message-passing` for other particles: element symbols or bead names, in order."""
        handle = c_void_p()
        names = (c_char_p * len(species))(*(name.encode() for name in species))
        _library.call("diffusim_model_for_species", self._handle, names, len(species), byref(handle))
        model = Model.__new__(Model)._own(handle, (), self.noise_level)
        return model._made_by(Model.for_species, self, list(species))

    def _own(
        self, handle: c_void_p, callbacks: "tuple[_Callback, ...]" = (), noise_level: float | None = None
    ) -> "Model":
        self._recipe: tuple | None = None
        self.noise_level = noise_level  # nm, as it was asked for; None: the file's own for simulations
        self._handle = handle
        self._callbacks = callbacks
        self.parts: tuple[Model, ...] = ()  # of a blend: its two models
        self.n_particles: int = _library.library().diffusim_model_n_particles(handle)
        weakref.finalize(self, _library.library().diffusim_model_free, handle)
        return self

    def _made_by(self, function: Callable[..., "Model"], *arguments) -> "Model":
        """Say how to make it again, where that is not from the bytes of a file."""
        self._recipe = function, arguments
        return self

    def __reduce__(self) -> tuple:
        """Pickled, for other processes, as what it was made of: the bytes of the file, say."""
        return self._recipe or (Model.from_bytes, (self.bytes, self.noise_level, self.name))

    def __repr__(self) -> str:
        return f"<diffusim.Model {self.name}: {self.metadata['kind']}, {self.n_particles} particles>"

    @property
    def name(self) -> str:
        """What messages call the model: the name of its file, if it came from one."""
        text = c_char_p()
        _library.call("diffusim_model_name", self._handle, byref(text))
        return text.value.decode()

    @property
    def metadata(self) -> dict:
        """The description in the model file: kind, particles, bonds, noise levels, provenance and so on."""
        text = c_char_p()
        _library.call("diffusim_model_metadata", self._handle, byref(text))
        return json.loads(text.value)

    @property
    def sha256(self) -> str:
        """Hash of the model file, or of the description where there is no file."""
        text = c_char_p()
        _library.call("diffusim_model_sha256", self._handle, byref(text))
        return text.value.decode()

    @property
    def bytes(self) -> bytes:
        """The model file, to be embedded elsewhere."""
        data, size = c_void_p(), c_size_t()
        _library.call("diffusim_model_bytes", self._handle, byref(data), byref(size))
        return string_at(data, size.value)

    @property
    def training_temperature(self) -> float:
        """Temperature T0 of the training snapshots."""
        value = c_double()
        _library.call("diffusim_model_training_temperature", self._handle, byref(value))
        return value.value

    @property
    def masses(self) -> np.ndarray:
        """Masses [n_particles]."""
        masses = np.empty(self.n_particles)
        _library.call("diffusim_model_masses", self._handle, _doubles(masses), masses.size)
        return masses

    @property
    def start_positions(self) -> np.ndarray:
        """Snapshots to start from, [n_frames, n_particles, 3]; n_frames is 0 where the file has none."""
        n_frames, positions = c_size_t(), POINTER(c_double)()
        _library.call("diffusim_model_start_positions", self._handle, byref(n_frames), byref(positions))
        shape = (n_frames.value, self.n_particles, 3)
        return np.ctypeslib.as_array(positions, shape).copy() if n_frames.value else np.empty(shape)

    @property
    def is_periodic(self) -> bool:
        """Whether the model lives in a periodic cell."""
        return bool(_library.library().diffusim_model_is_periodic(self._handle))

    @property
    def start_cell(self) -> np.ndarray:
        """Cell [3, 3] of the start positions, rows are lattice vectors; DiffusimError where the model has none."""
        cell = np.empty((3, 3))
        _library.call("diffusim_model_start_cell", self._handle, _doubles(cell))
        return cell

    def evaluate_in_cell(
        self, positions: np.ndarray, cell: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, energies [n_frames] and virials [n_frames, 3, 3] (kT0) of positions [n_frames, n_particles, 3].

        `cell` [3, 3] has the lattice vectors as rows; None: open space. The virial is -dE/d(strain).
        """
        positions = self._frames(positions)
        scores, energies, virials = np.empty_like(positions), np.empty(len(positions)), np.empty((len(positions), 3, 3))
        outputs = (_doubles(scores), _doubles(energies), _doubles(virials))
        self._call("evaluate_in_cell", _cell(cell), _doubles(positions), len(positions), *outputs)
        return scores, energies, virials

    def evaluate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores, shaped like `positions`, and energies [n_frames] of positions [n_frames, n_particles, 3].

        A periodic model is evaluated in its own `start_cell`.
        """
        positions = self._frames(positions)
        scores, energies = np.empty_like(positions), np.empty(len(positions))
        self._call("evaluate", _doubles(positions), len(positions), _doubles(scores), _doubles(energies))
        return scores, energies

    def component_energies(self, positions: np.ndarray, cell: np.ndarray | None = None) -> np.ndarray:
        """E_a and E_b of a blend, [n_frames, 2], of positions [n_frames, n_particles, 3], whatever lambda is.

        They give dE/dlambda = E_b - E_a, and the energy (1 - l) E_a + l E_b at every l (theory 7).
        """
        positions = self._frames(positions)
        energies = np.empty((len(positions), 2))
        self._call("component_energies", _cell(cell), _doubles(positions), len(positions), _doubles(energies))
        return energies

    def largest_curvature(self, positions: np.ndarray) -> float:
        """Largest eigenvalue of -grad s over positions [n_frames, n_particles, 3], 1/nm^2 (theory 2, stability)."""
        value = c_double()
        positions = self._frames(positions)
        self._call("largest_curvature", _doubles(positions), len(positions), byref(value))
        return value.value

    def largest_frequency(self, positions: np.ndarray, masses: Sequence[float] | None = None) -> float:
        """Largest frequency of a mode over positions [n_frames, n_particles, 3], 1/ps (`masses` in amu; the model's).

        A time step of the adapter "langevin" is stable while it is less than 2 over this (theory 11).
        """
        value = c_double()
        positions = self._frames(positions)
        if masses is not None:
            masses = np.ascontiguousarray(masses, dtype=float)
            _expect_shape("masses", masses, (self.n_particles,))
        pointer = None if masses is None else _doubles(masses)
        self._call("largest_frequency", pointer, _doubles(positions), len(positions), byref(value))
        return value.value

    def configurational_temperature(self, positions: np.ndarray) -> float:
        """T0 <|s|^2> / <-div s> over positions [n_frames, n_particles, 3]: the temperature they are sampled at."""
        value = c_double()
        positions = self._frames(positions)
        self._call("configurational_temperature", _doubles(positions), len(positions), byref(value))
        return value.value

    def sample(
        self,
        n_frames: int,
        seed: int | None = None,
        n_steps: int = 32,
        *,
        start_level: float | None = None,
        corrector_steps: int = 100,
        first_frame: int = 0,
        n_threads: int = 0,
    ) -> np.ndarray:
        """Equilibrium frames [n_frames, n_particles, 3] by reverse diffusion (theory 9), no simulation in between.

        seed            of the noise; a fresh one by default. A frame depends on the seed and on its number alone
        n_steps         steps of the reverse diffusion, two scores each
        start_level     noise level to start from, nm; half the greatest of the training by default
        corrector_steps Langevin steps at the end, for bonds and angles
        first_frame     number of the first frame: the frames after those of an earlier call
        n_threads       0: one per core

        Frame f starts as the model's start frame f mod len(start_positions), blurred by `start_level`: basins that lie
        farther apart keep the populations of the start frames. Frames of a network are centred.
        """
        seed = fresh_seed() if seed is None else seed
        options = SampleOptions()
        _library.call("diffusim_sample_options_init", byref(options), sizeof(options))
        if start_level is not None:
            if start_level == 0:  # which the C API would read as "not given"
                raise DiffusimError("start_level is 0 nm; expected a positive number", Status.INVALID_ARGUMENT)
            options.start_level = start_level
        given = {
            "seed": (seed, 2**64),
            "first_frame": (first_frame, 2**32),
            "n_steps": (n_steps, 2**32),
            "corrector_steps": (corrector_steps, 2**32),
            "n_threads": (n_threads, 2**32),
        }
        for name, (value, limit) in given.items():
            _expect_whole(name, value, limit)
            setattr(options, name, value)
        _expect_whole("n_frames", n_frames, 2**32 + 1 - first_frame)
        positions = np.empty((n_frames, self.n_particles, 3))
        for first in range(0, n_frames, FRAMES_PER_CALL):  # so that Ctrl-C works
            part = positions[first : first + FRAMES_PER_CALL]
            options.first_frame = first_frame + first
            self._call("sample", byref(options), _doubles(part), len(part))
        return positions

    def check_masses(self, masses: Sequence[float]) -> None:
        """DiffusimError naming the first particle whose mass in an engine is not that of the model; 0 passes."""
        masses = np.ascontiguousarray(masses, dtype=float)
        self._call("check_masses", _doubles(masses), masses.size)

    def check_particles(self, elements: Sequence[str | None], names: Sequence[str] | None = None) -> None:
        """DiffusimError naming the first particle whose element is not the model's; None is not compared."""

        def texts(values):
            return (c_char_p * len(values))(*(None if v is None else v.encode() for v in values))

        self._call("check_particles", len(elements), texts(elements), None if names is None else texts(names))

    def _frames(self, positions: np.ndarray) -> np.ndarray:
        positions = np.ascontiguousarray(positions, dtype=float)
        _expect_shape("positions", positions, (len(positions) if positions.ndim else 0, self.n_particles, 3))
        return positions

    def _call(self, name: str, *arguments) -> None:
        with _causes_from(self._callbacks):
            _library.call(f"diffusim_model_{name}", self._handle, *arguments)


@dataclass(frozen=True)
class Statistics:
    """What a simulation does and has done; None where it is not known.

    `spring` (1/nm^2), `effective_step` tau (nm^2) and `diffusion_coefficient` (nm^2/ps) are those of the most mobile
    particle; `stability_limit` is the largest stable tau (nm^2), `time_step` ps, `largest_score` 1/nm. With the adapter
    "mala", `acceptance` is the fraction of accepted proposals, after burn-in once that is over, and `step_factor` what
    burn-in has made of tau (geometric mean over replicas). With "langevin", `kinetic_energy` (kJ/mol, mean over
    replicas) and `kinetic_temperature` (K) are those of the velocities. With the time-parallel sampler: `rounds` of
    batched scores, `sweeps` through windows (one for each replica in a round), steps that a sweep brought, and frames
    evaluated for each of them, where the sequential sampler takes 1.
    """

    steps: int
    score_evaluations: int
    largest_score: float
    spring: float
    effective_step: float
    time_step: float | None
    temperature: float
    diffusion_coefficient: float | None
    stability_limit: float | None
    seed: int
    acceptance: float | None
    step_factor: float | None
    kinetic_energy: float | None
    kinetic_temperature: float | None
    rounds: int
    sweeps: int
    steps_per_sweep: float | None
    evaluations_per_step: float | None


class Domain:
    """One process's part of a system that several share, as a program with domain decomposition has it.

    For models of kind `message-passing`, whose energy is a sum over particles. The process has particles of its own and
    knows the others of which an image lies within `reach` of one of them. What it finds for its own particles has the
    bits of an evaluation of the whole system. Steps are the caller's (in C and C++ diffusim_domain_step takes them).
    """

    def __init__(self, model: Model, types: Sequence[str]):
        """A domain of `model` with particles of `types`, element symbols or bead names."""
        self._handle = c_void_p()
        names = (c_char_p * len(types))(*(name.encode() for name in types))
        _library.call("diffusim_domain_create", model._handle, names, len(types), None, byref(self._handle))
        weakref.finalize(self, _library.library().diffusim_domain_free, self._handle)

    @property
    def reach(self) -> float:
        """How far around its own particles a domain needs to know others, nm."""
        reach = c_double()
        _library.call("diffusim_domain_reach", self._handle, byref(reach))
        return reach.value

    @property
    def exchange_width(self) -> int:
        """Numbers of a particle that an exchange moves at most."""
        width = c_size_t()
        _library.call("diffusim_domain_exchange_width", self._handle, byref(width))
        return width.value

    def set_cell(self, cell: np.ndarray | None) -> None:
        """Vectors [3, 3] (nm) of the periodic cell of the whole system from now on; None for open space."""
        _library.call("diffusim_domain_set_cell", self._handle, _cell(cell))

    def evaluate(
        self,
        positions: np.ndarray,
        types: Sequence[int],
        particle_ids: Sequence[int],
        n_owned: int,
        exchange: Callable[[np.ndarray], None],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores [n_owned, 3] of the first `n_owned` particles, their energies, and their virials [n_owned, 3, 3].

        `positions` [n, 3] (nm) are those that the owners give their own particles; `types` [n] are indices into the
        types of the domain, `particle_ids` [n] numbers in the whole system, each there once. All processes evaluate at
        the same time: `exchange` gets rows [n, width] (float32), of which those of the own particles are filled, and
        fills those of the others with what their owners have. Units are those of `Model.evaluate_in_cell`.
        """
        types, ids = (np.ascontiguousarray(numbers, dtype=np.uint32) for numbers in (types, particle_ids))
        positions = np.ascontiguousarray(positions, dtype=float)
        _expect_shape("positions", positions, (types.size, 3))
        _expect_shape("particle_ids", ids, (types.size,))
        _expect_whole("n_owned", n_owned, types.size + 1)
        scores, energies, virials = np.empty((n_owned, 3)), np.empty(n_owned), np.empty((n_owned, 3, 3))
        numbers = (array.ctypes.data_as(POINTER(c_uint32)) for array in (types, ids))
        _library.call("diffusim_domain_set_particles", self._handle, *numbers, types.size, n_owned)
        raised = []

        def exchange_rows(_, rows, n_particles, width):
            shape = (n_particles, width)
            try:
                exchange(np.ctypeslib.as_array(rows, shape) if n_particles else np.empty(shape, np.float32))
            except BaseException as error:  # must not cross the C boundary; raised again below
                raised.append(error)
            return len(raised)

        arguments = _doubles(positions), positions.size, ExchangeCallback(exchange_rows), None
        outputs = _doubles(scores), _doubles(energies), _doubles(virials)
        try:
            _library.call("diffusim_domain_evaluate", self._handle, *arguments, *outputs)
        except DiffusimError:
            if raised:
                raise raised[0] from None
            raise
        return scores, energies, virials


class Simulation:
    """Replicas of one system moved by a model, frame after frame (theory 2-5, 8-11). For one thread at a time."""

    def __init__(
        self,
        model: Model | str | os.PathLike,
        temperature: float | None = None,
        *,
        spring: float | None = None,
        effective_step: float | None = None,
        time_step: float | None = None,
        friction_rate: float | None = None,
        drag: float | Sequence[float] | None = None,
        diffusion_coefficient: float | Sequence[float] | None = None,
        masses: Sequence[float] | None = None,
        seed: int | None = None,
        n_replicas: int = 1,
        first_replica: int = 0,
        particle_ids: Sequence[int] | None = None,
        adapter: str = "leimkuhler-matthews",
        spring_schedule: Sequence[float] | None = None,
        noise_schedule: Sequence[float] | None = None,
        temperature_schedule: Sequence[float] | None = None,
        schedule_end: str = "hold",
        device: str = "auto",
        n_threads: int = 0,
        allow_unstable: bool = False,
        target_acceptance: float | None = None,
        burn_in_steps: int = 0,
        sampler: str = "sequential",
        window: int | None = None,
        tolerance: float | None = None,
        jacobian: str = "auto",
        cuda_context: int | None = None,
        cuda_stream: int | None = None,
        matmul_precision: str = "highest",
    ):
        """Replica number r starts from the model's start frame r mod n_frames, or from zeros where the model has none.

        temperature     K; the training temperature by default
        spring          k, 1/nm^2 | the size of a step, given by at most one of these three, and that
        effective_step  tau, nm^2 | of the most mobile particle; by default the model's
        time_step       ps        | recommendation. A time step needs a mobility:
        friction_rate          1/ps      | at most one; it sets the ratio of the steps of different
        drag                   amu/ps    | particles and the physical time of a step. The last two
        diffusion_coefficient  nm^2/ps   | are one number or [n_particles]
        masses          amu, [n_particles]; the model's by default; 0 freezes a particle
        seed            of the noise; a fresh one by default, kept in `seed`
        first_replica, particle_ids   number of the first replica and ids of the particles, for the noise
        adapter         "leimkuhler-matthews", "euler-maruyama"; "langevin", which has velocities and needs masses,
                        friction_rate and time_step; or, without bias: "heun", "mala" (Metropolis)
        spring_schedule       factors on the spring, one per step
        noise_schedule        beta_n of a diffusion model's noise schedule, one per step
        temperature_schedule  temperatures in K, one per step, in place of `temperature`
        schedule_end    "hold": the last entry stays; "cycle": from the start again
        device          "cpu", or "cuda", "cuda:1" and so on for a GPU; "auto" is "cpu"
        n_threads       0: one per core
        allow_unstable  run although the model's stiffest mode is unstable at this step
        target_acceptance, burn_in_steps   with "mala": in so many first steps the step of each replica is tuned to this
                        acceptance (0.6 is a good one), and then kept
        sampler         "sequential"; "time-parallel": many frames at once, the same trajectory to a tolerance
                        (theory 12); "auto": time-parallel where it pays, by the counts of its first sweeps
        window          frames of each replica that a time-parallel sweep works on; 64 by default
        tolerance       nm, by which a frame may still change for the one after it to be final; 0: not by a bit; 1e-6 by
                        default
        jacobian        what sweeps know of the slope of the score: "identity" (Picard), "diagonal", "dense", or
                        "auto": dense for up to 30 particles, diagonal for more
        cuda_context, cuda_stream  CUcontext and CUstream of the caller as integers, to run in; they must outlive this
        matmul_precision  "highest": the same bits on every device; on a GPU also "high": faster, on its tensor cores,
                        nearly as accurate, with bits that only such GPUs have (docs/gpu.md)
        """
        self.model = model if isinstance(model, Model) else Model(model)
        self._options = {
            "temperature": temperature,
            "spring": spring,
            "effective_step": effective_step,
            "time_step": time_step,
            "friction_rate": friction_rate,
            "drag": drag,
            "diffusion_coefficient": diffusion_coefficient,
            "masses": masses,
            "seed": fresh_seed() if seed is None else seed,
            "n_replicas": n_replicas,
            "first_replica": first_replica,
            "particle_ids": particle_ids,
            "adapter": adapter,
            "spring_schedule": spring_schedule,
            "noise_schedule": noise_schedule,
            "temperature_schedule": temperature_schedule,
            "schedule_end": schedule_end,
            "device": device,
            "n_threads": n_threads,
            "allow_unstable": allow_unstable,
            "target_acceptance": target_acceptance,
            "burn_in_steps": burn_in_steps,
            "sampler": sampler,
            "window": window,
            "tolerance": tolerance,
            "jacobian": jacobian,
            "cuda_context": cuda_context,
            "cuda_stream": cuda_stream,
            "matmul_precision": matmul_precision,
        }
        self._handle = c_void_p()
        self._slice = 1
        options, _keep = self._native_options(self._options)
        _library.call("diffusim_simulation_create", self.model._handle, byref(options), byref(self._handle))
        weakref.finalize(self, _library.library().diffusim_simulation_free, self._handle)

    def __repr__(self) -> str:
        now = self.statistics
        return (
            f"<diffusim.Simulation of {self.model.name}: {self.n_replicas:,} × {self.model.n_particles} particles, "
            f"{self.adapter}, τ = {now.effective_step:.3g} nm², {now.temperature:g} K, step {self.step_count:,}>"
        )

    def reconfigure(self, **changes) -> None:
        """Change options of the constructor; positions and step count stay, and so must `n_replicas`."""
        unknown = sorted(set(changes) - set(self._options))
        if unknown:
            raise TypeError(f"reconfigure() got '{unknown[0]}', which is no option of a Simulation")
        changed = self._options | changes
        options, _keep = self._native_options(changed)
        self._call("reconfigure", byref(options))
        self._options = changed

    @property
    def seed(self) -> int:
        """Seed of the noise."""
        return self._options["seed"]

    @property
    def adapter(self) -> str:
        """How a step is taken."""
        return self._options["adapter"]

    @property
    def n_replicas(self) -> int:
        """Copies of the system."""
        return self._options["n_replicas"]

    @property
    def positions(self) -> np.ndarray:
        """Positions [n_replicas, n_particles, 3], a copy. Set them in this shape, or as one frame for all replicas."""
        return self._read("positions")

    @positions.setter
    def positions(self, positions: np.ndarray) -> None:
        self._write("positions", positions)

    @property
    def velocities(self) -> np.ndarray:
        """Velocities [n_replicas, n_particles, 3] in nm/ps, a copy, with the adapter "langevin" (theory 11).

        They start as `draw_velocities` draws them. Set them in this shape, or as those of one frame for all replicas.
        """
        return self._read("velocities")

    @velocities.setter
    def velocities(self, velocities: np.ndarray) -> None:
        self._write("velocities", velocities)

    def draw_velocities(self) -> None:
        """New velocities from the Maxwell-Boltzmann density of the temperature, by the seed and the step."""
        self._call("draw_velocities")

    @property
    def step_factors(self) -> np.ndarray:
        """What burn-in has made of the effective step of each replica, [n_replicas]; 1 without a burn-in."""
        factors = np.empty(self.n_replicas)
        self._call("get_step_factors", _doubles(factors), factors.size)
        return factors

    @property
    def cell(self) -> np.ndarray | None:
        """Periodic cell [3, 3] of all replicas, rows are lattice vectors, nm; None in open space."""
        cell, is_periodic = np.empty((3, 3)), c_int32()
        self._call("get_cell", _doubles(cell), byref(is_periodic))
        return cell if is_periodic.value else None

    @cell.setter
    def cell(self, cell: np.ndarray | None) -> None:
        self._call("set_cell", _cell(cell))

    @property
    def step_count(self) -> int:
        """Number of the next step, which is also that of its noise. Setting it continues the noise from there."""
        step = c_uint64()
        self._call("get_step", byref(step))
        return step.value

    @step_count.setter
    def step_count(self, step: int) -> None:
        self._call("set_step", step)

    def step(self, n_steps: int) -> None:
        """Take `n_steps` steps with every replica, without the GIL; Ctrl-C stops between two steps.

        On Status.NOT_FINITE and Status.CALLBACK the positions are those of the last good frame.
        """
        if _whole("n_steps", n_steps) < 0:
            raise ValueError(f"n_steps is {n_steps}; expected 0 or more")
        while n_steps > 0:
            now = min(n_steps, self._slice)
            started = time.perf_counter()
            self._call("step", now)
            n_steps -= now
            seconds = time.perf_counter() - started
            if seconds < SLICE_SECONDS / 2 and now == self._slice:
                self._slice *= 2
            elif seconds > SLICE_SECONDS:
                self._slice = max(1, self._slice // 2)

    def step_biased(self, forces: np.ndarray) -> None:
        """Take one step under the score and, on top, `forces` [n_replicas, n_particles, 3], kJ/(mol nm) (theory 6)."""
        forces = np.ascontiguousarray(forces, dtype=float)
        _expect_shape("forces", forces, self._shape)
        self._call("step_biased", _doubles(forces), forces.size)

    def enqueue(self, n_steps: int, with_forces: bool = False) -> None:
        """Start steps on the GPU's stream and do not wait; with forces, one step under those at `device_forces`.

        The next other call waits for them, and fails if they did.
        """
        _expect_whole("n_steps", n_steps, 2**64)
        self._call("enqueue", n_steps, with_forces)

    def synchronize(self) -> None:
        """Wait for enqueued steps."""
        self._call("synchronize")

    def _device_pointer(self, of: str) -> int:
        place = c_uint64()
        self._call(f"device_{of}", byref(place))
        return place.value

    @property
    def device_positions(self) -> int:
        """Address on the GPU of the positions, float64 [n_replicas, n_particles, 3] in nm, to read and to write."""
        return self._device_pointer("positions")

    @property
    def device_velocities(self) -> int:
        """Address on the GPU of the velocities, float64 [n_replicas, n_particles, 3] in nm/ps, to read and to write."""
        return self._device_pointer("velocities")

    @property
    def device_forces(self) -> int:
        """Address on the GPU of the forces of `enqueue`, float64 [n_replicas, n_particles, 3] in kJ/(mol nm)."""
        return self._device_pointer("forces")

    @property
    def device_status(self) -> str:
        """How steps are taken, in words, and on a GPU how long the last ones took by the clock of the host and what was
        loaded as the kernels."""
        status = c_char_p()
        self._call("device_status", byref(status))
        return status.value.decode()

    @property
    def scores(self) -> np.ndarray:
        """Scores of the current frames, [n_replicas, n_particles, 3]."""
        scores = np.empty(self._shape)
        self._call("evaluate", _doubles(scores), scores.size, None)
        return scores

    @property
    def energies(self) -> np.ndarray:
        """Energies of the current frames, [n_replicas]."""
        scores, energies = np.empty(self._shape), np.empty(self.n_replicas)
        self._call("evaluate", _doubles(scores), scores.size, _doubles(energies))
        return energies

    @property
    def lambda_(self) -> float:
        """Where a blend of two models is, 0 to 1 (theory 7). Setting it moves the running simulation there."""
        value = c_double()
        self._call("get_lambda", byref(value))
        return value.value

    @lambda_.setter
    def lambda_(self, value: float) -> None:
        self._call("set_lambda", value)

    @property
    def component_energies(self) -> np.ndarray:
        """E_a and E_b of a blend at the current frames, [n_replicas, 2]: `Model.component_energies`."""
        energies = np.empty((self.n_replicas, 2))
        self._call("component_energies", _doubles(energies), energies.size)
        return energies

    @property
    def statistics(self) -> Statistics:
        """What is being done and what was done so far."""
        native = SimulationStatistics(struct_size=sizeof(SimulationStatistics))
        self._call("statistics", byref(native))
        return Statistics(
            steps=native.steps,
            score_evaluations=native.score_evaluations,
            largest_score=native.largest_score,
            spring=native.spring,
            effective_step=native.effective_step,
            time_step=native.time_step or None,
            temperature=native.temperature,
            diffusion_coefficient=native.diffusion_coefficient or None,
            stability_limit=native.stability_limit or None,
            seed=native.seed,
            acceptance=native.acceptance if self.adapter == "mala" else None,
            step_factor=native.step_factor or None,
            kinetic_energy=native.kinetic_energy if self.adapter == "langevin" else None,
            kinetic_temperature=native.kinetic_temperature if self.adapter == "langevin" else None,
            rounds=native.rounds,
            sweeps=native.sweeps,
            steps_per_sweep=native.steps_per_sweep or None,
            evaluations_per_step=native.evaluations_per_step or None,
        )

    def checkpoint(self) -> bytes:
        """All that is needed to continue bit for bit in a simulation of the same model and options."""
        size = c_size_t()
        self._call("checkpoint_size", byref(size))
        data = np.empty(size.value, dtype=np.uint8)
        self._call("checkpoint", data.ctypes.data, data.size)
        return data.tobytes()

    def restore(self, checkpoint: bytes) -> None:
        """Continue from `checkpoint()` of a simulation of the same model and options; its seed is taken over."""
        self._call("restore", checkpoint, len(checkpoint))
        self._options["seed"] = self.statistics.seed

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.n_replicas, self.model.n_particles, 3

    def _read(self, name: str) -> np.ndarray:
        values = np.empty(self._shape)
        self._call(f"get_{name}", values.ctypes.data, FLOAT64, values.size)
        return values

    def _write(self, name: str, values: np.ndarray) -> None:
        values = np.asarray(values, dtype=float)
        if values.shape == self._shape[1:]:
            values = np.broadcast_to(values, self._shape)
        _expect_shape(name, values, self._shape)
        values = np.ascontiguousarray(values)
        self._call(f"set_{name}", values.ctypes.data, FLOAT64, values.size)

    def _call(self, name: str, *arguments) -> None:
        with _causes_from(self.model._callbacks):
            _library.call(f"diffusim_simulation_{name}", self._handle, *arguments)

    def _native_options(self, options: dict) -> tuple[SimulationOptions, list]:
        """The C struct and the arrays that it points to, to be kept until the call is over."""
        native, keep = SimulationOptions(), []
        _library.call("diffusim_simulation_options_init", byref(native), sizeof(native))
        options = dict(options)
        for name in ("drag", "diffusion_coefficient"):  # of each particle: other fields of the struct
            options[f"{name}s"] = options.pop(name) if np.ndim(options[name]) else None
            options.setdefault(name, None)
        for name in (
            "temperature",
            "spring",
            "effective_step",
            "time_step",
            "friction_rate",
            "drag",
            "diffusion_coefficient",
            "target_acceptance",
        ):
            if options[name] is not None:
                if options[name] == 0:  # which the C API would read as "not given"
                    raise DiffusimError(f"{name} is 0; expected a positive number", Status.INVALID_ARGUMENT)
                _set_number(native, name, options[name])
        per_particle = [(name, float, c_double) for name in ("masses", "drags", "diffusion_coefficients")]
        for name, kind, c_kind in (*per_particle, ("particle_ids", np.uint32, c_uint32)):
            if options[name] is not None:
                array = np.ascontiguousarray(options[name], dtype=kind)
                _expect_shape(name, array, (self.model.n_particles,))
                setattr(native, name, array.ctypes.data_as(POINTER(c_kind)))
                keep.append(array)
        for name in ("spring_schedule", "noise_schedule", "temperature_schedule"):
            if options[name] is not None:
                array = np.ascontiguousarray(options[name], dtype=float)
                setattr(native, name, _doubles(array))
                setattr(native, f"n_{name}", array.size)
                keep.append(array)
        whole = {
            "seed": 2**64,
            "n_replicas": 2**32,
            "first_replica": 2**32,
            "n_threads": 2**32,
            "burn_in_steps": 2**64,
        }
        for name, limit in whole.items():
            _expect_whole(name, options[name], limit)
            setattr(native, name, options[name])
        native.adapter = _index("adapter", options["adapter"], ADAPTERS)
        native.schedule_end = _index("schedule_end", options["schedule_end"], SCHEDULE_ENDS)
        native.sampler = _index("sampler", options["sampler"], SAMPLERS)
        native.jacobian = _index("jacobian", options["jacobian"], JACOBIANS)
        for name, not_given, expected in (("window", 0, "2 or more frames"), ("tolerance", -1, "0 or more, nm")):
            if (value := options[name]) is not None:
                if value == not_given:
                    raise DiffusimError(f"{name} is {value}; expected {expected}", Status.INVALID_ARGUMENT)
                if name == "window":
                    _expect_whole(name, value, 2**63)
                _set_number(native, name, value)
        native.device = options["device"].encode()
        native.matmul_precision = options["matmul_precision"].encode()
        native.allow_unstable = bool(options["allow_unstable"])
        native.cuda_context, native.cuda_stream = options["cuda_context"], options["cuda_stream"]
        return native, keep


class Evaluator:
    """Scores and energies of frames that lie on a GPU, for a program that moves the particles itself there.

    Positions are written where `device_positions` says, by kernels on the same stream; `enqueue` starts the evaluation
    and does not wait, but for lists of neighbours. The results are those of `Model.evaluate`, bit for bit.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike,
        n_frames: int = 1,
        device: str = "cuda",
        cuda_context: int | None = None,
        cuda_stream: int | None = None,
    ):
        """For `n_frames` frames at a time; the other arguments are as for a Simulation."""
        self.model = model if isinstance(model, Model) else Model(model)
        _expect_whole("n_frames", n_frames, 2**64)
        self.n_frames = n_frames
        options = EvaluatorOptions()
        _library.call("diffusim_evaluator_options_init", byref(options), sizeof(options))
        options.n_frames, options.device = n_frames, device.encode()
        options.cuda_context, options.cuda_stream = cuda_context, cuda_stream
        self._handle = c_void_p()
        _library.call("diffusim_evaluator_create", self.model._handle, byref(options), byref(self._handle))
        weakref.finalize(self, _library.library().diffusim_evaluator_free, self._handle)

    def set_cell(self, cell: np.ndarray | None) -> None:
        """Vectors [3, 3] (nm) of the periodic cell of all frames that are enqueued from now on."""
        _library.call("diffusim_evaluator_set_cell", self._handle, _cell(cell))

    def set_lambda(self, lambda_: float) -> None:
        """Evaluate a blend at another lambda, 0 to 1, from now on."""
        _library.call("diffusim_evaluator_set_lambda", self._handle, lambda_)

    def _device_pointer(self, of: str) -> int:
        place = c_uint64()
        _library.call(f"diffusim_evaluator_device_{of}", self._handle, byref(place))
        return place.value

    @property
    def device_positions(self) -> int:
        """Address on the GPU of the frames, float64 [n_frames, n_particles, 3] in nm, to write to; zeros at first."""
        return self._device_pointer("positions")

    @property
    def device_scores(self) -> int:
        """Address on the GPU of their scores, float64 [n_frames, n_particles, 3] in 1/nm."""
        return self._device_pointer("scores")

    @property
    def device_energies(self) -> int:
        """Address on the GPU of their energies, float64 [n_frames] in kT of the training temperature."""
        return self._device_pointer("energies")

    def enqueue(self, with_energies: bool = False) -> None:
        """Start the evaluation of the frames that lie on the GPU.

        A `message-passing` model waits until its lists of neighbours are known to have had room; one of at most 64
        particles in open space only the first time, when all pairs are listed.
        """
        _library.call("diffusim_evaluator_enqueue", self._handle, with_energies)

    def synchronize(self) -> None:
        """Wait for what was enqueued."""
        _library.call("diffusim_evaluator_synchronize", self._handle)

    @property
    def energies(self) -> np.ndarray:
        """[n_frames] in kT of the training temperature, as they were asked for last; waits."""
        energies = np.empty(self.n_frames)
        _library.call("diffusim_evaluator_get_energies", self._handle, _doubles(energies), energies.size)
        return energies


def devices() -> list[str]:
    """Names that a Simulation takes as `device` here: "cpu", and "cuda:0", "cuda:1" and so on for the GPUs."""
    n_gpus = c_size_t()
    _library.call("diffusim_device_count", byref(n_gpus))
    return ["cpu", *(f"cuda:{i}" for i in range(n_gpus.value))]


def describe_device(name: str) -> str:
    """What a device is, in words; a GPU is started for that, and the kernels loaded. DiffusimError with the reason if
    it cannot be used here."""
    description = c_char_p()
    _library.call("diffusim_device_describe", name.encode(), byref(description))
    return description.value.decode()


def fresh_seed() -> int:
    """A seed that nobody has used."""
    return 1 + secrets.randbelow(LARGEST_SEED)


class _Callback:
    """A Python function as the C API's score callback; keeps what the function raised."""

    def __init__(self, function: ScoreFunction):
        self.function = function
        self.raised: BaseException | None = None
        self.pointer = ScoreCallback(self._called)

    def _called(self, _user_data, positions, n_frames, n_particles, scores, energies) -> int:
        if isinstance(self.raised, KeyboardInterrupt | SystemExit):  # whatever the library tries next
            return 1
        try:
            shape = (n_frames, n_particles, 3)
            result = self.function(np.ctypeslib.as_array(positions, shape).copy())
            result_scores, result_energies = result if isinstance(result, tuple) else (result, None)
            result_scores = np.asarray(result_scores, dtype=float)
            _expect_shape("the scores that the callable returned", result_scores, shape)
            np.ctypeslib.as_array(scores, shape)[...] = result_scores
            if energies:
                if result_energies is None:
                    raise DiffusimError("the callable returns no energies; return the pair (scores, energies)")
                np.ctypeslib.as_array(energies, (n_frames,))[...] = result_energies
        except BaseException as error:  # must not cross the C boundary; raised again by _causes_from
            self.raised = error
            return 1
        return 0


@contextmanager
def _causes_from(callbacks: tuple[_Callback, ...]) -> Iterator[None]:
    """What a callable raised becomes the cause of the error that the library reports."""
    try:
        yield
    except DiffusimError as error:
        failed = next((callback for callback in callbacks if callback.raised is not None), None)
        if error.status is not Status.CALLBACK or failed is None:
            raise
        cause, failed.raised = failed.raised, None
        if isinstance(cause, KeyboardInterrupt | SystemExit):
            raise cause from None
        message = f"the model's callable failed: {type(cause).__name__}: {cause}"
        raise DiffusimError(message, Status.CALLBACK) from cause


def _model_options(noise_level: float | None, name: str | None = None):
    options = ModelOptions()
    _library.call("diffusim_model_options_init", byref(options), sizeof(options))
    if noise_level is not None:
        if noise_level == 0:  # which the C API would read as "not given"
            raise DiffusimError("noise_level is 0 nm; expected a positive number", Status.INVALID_ARGUMENT)
        options.noise_level = noise_level
    if name is not None:
        options.name = name.encode()
    return byref(options)


def _doubles(array: np.ndarray):
    return cast(array.ctypes.data, POINTER(c_double))


def _cell(cell: np.ndarray | None):
    """Pointer to a cell [3, 3], or None."""
    if cell is None:
        return None
    cell = np.ascontiguousarray(cell, dtype=float)
    _expect_shape("cell", cell, (3, 3))
    return _doubles(cell)


def _expect_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise DiffusimError(
            f"{name} has the shape {list(array.shape)}; expected {list(shape)}", Status.INVALID_ARGUMENT
        )


def _whole(name: str, value: int) -> int:
    """`value`; TypeError if it is no whole number, or not of a type for those."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected a whole number") from None


def _set_number(options: SimulationOptions, name: str, value: float) -> None:
    """Set a field of the C struct; TypeError if it takes no such thing."""
    try:
        setattr(options, name, value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected a number") from None


def _expect_whole(name: str, value: int, limit: int) -> None:
    if not 0 <= _whole(name, value) < limit:
        raise DiffusimError(f"{name} is {value}; expected 0 to {limit - 1}", Status.INVALID_ARGUMENT)


def _index(name: str, value: str, known: tuple[str, ...]) -> int:
    if value not in known:
        raise DiffusimError(f"{name} is '{value}'; expected {' or '.join(known)}", Status.INVALID_ARGUMENT)
    return known.index(value)
