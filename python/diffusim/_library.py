"""The door to the Rust core: find and load its library, and declare the functions of include/diffusim.h to ctypes."""

import os
import sys
from ctypes import (
    CDLL,
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from enum import IntEnum
from functools import cache
from pathlib import Path

ABI_VERSION = 1
PATH_VARIABLE = "DIFFUSIM_LIBRARY"


class Status(IntEnum):
    """Why a call of the library failed."""

    INVALID_ARGUMENT = 1
    INVALID_MODEL = 2
    MISMATCH = 3
    UNSTABLE = 4
    NOT_FINITE = 5
    INVALID_CHECKPOINT = 6
    UNSUPPORTED = 7
    IO = 8
    CALLBACK = 9
    INTERNAL = 10
    DEVICE = 11


class DiffusimError(RuntimeError):
    """A failure with one sentence that says what was wrong, with which value, and what to do.

    `status` is the library's, or None where the library was not reached.
    """

    def __init__(self, message: str, status: Status | None = None):
        super().__init__(message)
        self.status = status


class ModelOptions(Structure):
    """diffusim_model_options_t"""

    _fields_ = [("struct_size", c_size_t), ("noise_level", c_double), ("name", c_char_p)]


class SampleOptions(Structure):
    """diffusim_sample_options_t"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("seed", c_uint64),
        ("first_frame", c_uint32),
        ("n_steps", c_uint32),
        ("start_level", c_double),
        ("corrector_steps", c_uint64),
        ("n_threads", c_size_t),
    ]


class SimulationOptions(Structure):
    """diffusim_simulation_options_t"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("temperature", c_double),
        ("spring", c_double),
        ("effective_step", c_double),
        ("time_step", c_double),
        ("friction_rate", c_double),
        ("drag", c_double),
        ("diffusion_coefficient", c_double),
        ("masses", POINTER(c_double)),
        ("seed", c_uint64),
        ("n_replicas", c_size_t),
        ("first_replica", c_uint32),
        ("adapter", c_int32),
        ("particle_ids", POINTER(c_uint32)),
        ("spring_schedule", POINTER(c_double)),
        ("n_spring_schedule", c_size_t),
        ("temperature_schedule", POINTER(c_double)),
        ("n_temperature_schedule", c_size_t),
        ("schedule_end", c_int32),
        ("allow_unstable", c_int32),
        ("device", c_char_p),
        ("n_threads", c_size_t),
        ("drags", POINTER(c_double)),
        ("diffusion_coefficients", POINTER(c_double)),
        ("noise_schedule", POINTER(c_double)),
        ("n_noise_schedule", c_size_t),
        ("target_acceptance", c_double),
        ("burn_in_steps", c_uint64),
        ("sampler", c_int32),
        ("jacobian", c_int32),
        ("window", c_size_t),
        ("tolerance", c_double),
        ("cuda_context", c_void_p),
        ("cuda_stream", c_void_p),
        ("matmul_precision", c_char_p),
    ]


class EvaluatorOptions(Structure):
    """diffusim_evaluator_options_t"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_frames", c_size_t),
        ("device", c_char_p),
        ("cuda_context", c_void_p),
        ("cuda_stream", c_void_p),
    ]


class SimulationStatistics(Structure):
    """diffusim_statistics_t"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("steps", c_uint64),
        ("score_evaluations", c_uint64),
        ("largest_score", c_double),
        ("spring", c_double),
        ("effective_step", c_double),
        ("time_step", c_double),
        ("temperature", c_double),
        ("diffusion_coefficient", c_double),
        ("stability_limit", c_double),
        ("seed", c_uint64),
        ("acceptance", c_double),
        ("step_factor", c_double),
        ("kinetic_energy", c_double),
        ("kinetic_temperature", c_double),
        ("rounds", c_uint64),
        ("sweeps", c_uint64),
        ("steps_per_sweep", c_double),
        ("evaluations_per_step", c_double),
    ]


ScoreCallback = CFUNCTYPE(
    c_int32, c_void_p, POINTER(c_double), c_size_t, c_size_t, POINTER(c_double), POINTER(c_double)
)

ExchangeCallback = CFUNCTYPE(c_int32, c_void_p, POINTER(c_float), c_size_t, c_size_t)

_DOUBLES, _SIZE = POINTER(c_double), POINTER(c_size_t)

# Arguments of every function that returns a status.
CALLS = {
    "diffusim_model_options_init": [POINTER(ModelOptions), c_size_t],
    "diffusim_model_load": [c_char_p, POINTER(ModelOptions), POINTER(c_void_p)],
    "diffusim_model_from_bytes": [c_char_p, c_size_t, POINTER(ModelOptions), POINTER(c_void_p)],
    "diffusim_model_from_json": [c_char_p, POINTER(c_void_p)],
    "diffusim_model_callback": [c_size_t, ScoreCallback, c_void_p, c_double, POINTER(c_void_p)],
    "diffusim_model_subset": [c_void_p, c_size_t, _SIZE, POINTER(c_void_p)],
    "diffusim_model_for_species": [c_void_p, POINTER(c_char_p), c_size_t, POINTER(c_void_p)],
    "diffusim_model_blend": [c_void_p, c_void_p, c_double, POINTER(c_void_p)],
    "diffusim_model_component_energies": [c_void_p, _DOUBLES, _DOUBLES, c_size_t, _DOUBLES],
    "diffusim_model_start_cell": [c_void_p, _DOUBLES],
    "diffusim_model_evaluate_in_cell": [c_void_p, _DOUBLES, _DOUBLES, c_size_t, _DOUBLES, _DOUBLES, _DOUBLES],
    "diffusim_model_metadata": [c_void_p, POINTER(c_char_p)],
    "diffusim_model_name": [c_void_p, POINTER(c_char_p)],
    "diffusim_model_sha256": [c_void_p, POINTER(c_char_p)],
    "diffusim_model_bytes": [c_void_p, POINTER(c_void_p), _SIZE],
    "diffusim_model_training_temperature": [c_void_p, _DOUBLES],
    "diffusim_model_masses": [c_void_p, _DOUBLES, c_size_t],
    "diffusim_model_start_positions": [c_void_p, _SIZE, POINTER(_DOUBLES)],
    "diffusim_model_check_masses": [c_void_p, _DOUBLES, c_size_t],
    "diffusim_model_check_particles": [c_void_p, c_size_t, POINTER(c_char_p), POINTER(c_char_p)],
    "diffusim_model_evaluate": [c_void_p, _DOUBLES, c_size_t, _DOUBLES, _DOUBLES],
    "diffusim_model_largest_curvature": [c_void_p, _DOUBLES, c_size_t, _DOUBLES],
    "diffusim_model_largest_frequency": [c_void_p, _DOUBLES, _DOUBLES, c_size_t, _DOUBLES],
    "diffusim_model_configurational_temperature": [c_void_p, _DOUBLES, c_size_t, _DOUBLES],
    "diffusim_device_describe": [c_char_p, POINTER(c_char_p)],
    "diffusim_device_count": [_SIZE],
    "diffusim_sample_options_init": [POINTER(SampleOptions), c_size_t],
    "diffusim_model_sample": [c_void_p, POINTER(SampleOptions), _DOUBLES, c_size_t],
    "diffusim_simulation_options_init": [POINTER(SimulationOptions), c_size_t],
    "diffusim_simulation_create": [c_void_p, POINTER(SimulationOptions), POINTER(c_void_p)],
    "diffusim_simulation_reconfigure": [c_void_p, POINTER(SimulationOptions)],
    "diffusim_simulation_set_positions": [c_void_p, c_void_p, c_int32, c_size_t],
    "diffusim_simulation_get_positions": [c_void_p, c_void_p, c_int32, c_size_t],
    "diffusim_simulation_view_positions": [c_void_p, POINTER(_DOUBLES)],
    "diffusim_simulation_set_velocities": [c_void_p, c_void_p, c_int32, c_size_t],
    "diffusim_simulation_get_velocities": [c_void_p, c_void_p, c_int32, c_size_t],
    "diffusim_simulation_draw_velocities": [c_void_p],
    "diffusim_simulation_get_step_factors": [c_void_p, _DOUBLES, c_size_t],
    "diffusim_simulation_set_cell": [c_void_p, _DOUBLES],
    "diffusim_simulation_get_cell": [c_void_p, _DOUBLES, POINTER(c_int32)],
    "diffusim_simulation_step": [c_void_p, c_uint64],
    "diffusim_simulation_step_biased": [c_void_p, _DOUBLES, c_size_t],
    "diffusim_simulation_enqueue": [c_void_p, c_uint64, c_int32],
    "diffusim_simulation_synchronize": [c_void_p],
    "diffusim_simulation_device_positions": [c_void_p, POINTER(c_uint64)],
    "diffusim_simulation_device_velocities": [c_void_p, POINTER(c_uint64)],
    "diffusim_simulation_device_forces": [c_void_p, POINTER(c_uint64)],
    "diffusim_simulation_device_status": [c_void_p, POINTER(c_char_p)],
    "diffusim_simulation_get_step": [c_void_p, POINTER(c_uint64)],
    "diffusim_simulation_set_step": [c_void_p, c_uint64],
    "diffusim_simulation_evaluate": [c_void_p, _DOUBLES, c_size_t, _DOUBLES],
    "diffusim_simulation_set_lambda": [c_void_p, c_double],
    "diffusim_simulation_get_lambda": [c_void_p, _DOUBLES],
    "diffusim_simulation_component_energies": [c_void_p, _DOUBLES, c_size_t],
    "diffusim_simulation_statistics": [c_void_p, POINTER(SimulationStatistics)],
    "diffusim_simulation_checkpoint_size": [c_void_p, _SIZE],
    "diffusim_simulation_checkpoint": [c_void_p, c_void_p, c_size_t],
    "diffusim_simulation_restore": [c_void_p, c_char_p, c_size_t],
    "diffusim_domain_create": [c_void_p, POINTER(c_char_p), c_size_t, POINTER(SimulationOptions), POINTER(c_void_p)],
    "diffusim_domain_reconfigure": [c_void_p, POINTER(SimulationOptions), c_size_t],
    "diffusim_domain_reach": [c_void_p, _DOUBLES],
    "diffusim_domain_set_cell": [c_void_p, _DOUBLES],
    "diffusim_domain_set_particles": [c_void_p, POINTER(c_uint32), POINTER(c_uint32), c_size_t, c_size_t],
    "diffusim_domain_exchange_width": [c_void_p, POINTER(c_size_t)],
    "diffusim_domain_evaluate": [
        c_void_p,
        _DOUBLES,
        c_size_t,
        ExchangeCallback,
        c_void_p,
        _DOUBLES,
        _DOUBLES,
        _DOUBLES,
    ],
    "diffusim_domain_step": [c_void_p, c_uint64, *4 * (_DOUBLES,), c_size_t],
    "diffusim_domain_statistics": [c_void_p, POINTER(SimulationStatistics)],
    "diffusim_evaluator_options_init": [POINTER(EvaluatorOptions), c_size_t],
    "diffusim_evaluator_create": [c_void_p, POINTER(EvaluatorOptions), POINTER(c_void_p)],
    "diffusim_evaluator_set_cell": [c_void_p, _DOUBLES],
    "diffusim_evaluator_set_lambda": [c_void_p, c_double],
    "diffusim_evaluator_device_positions": [c_void_p, POINTER(c_uint64)],
    "diffusim_evaluator_device_scores": [c_void_p, POINTER(c_uint64)],
    "diffusim_evaluator_device_energies": [c_void_p, POINTER(c_uint64)],
    "diffusim_evaluator_enqueue": [c_void_p, c_int32],
    "diffusim_evaluator_synchronize": [c_void_p],
    "diffusim_evaluator_get_energies": [c_void_p, _DOUBLES, c_size_t],
    "diffusim_spring_from_time_step": [c_double, c_double, c_double, _DOUBLES],
    "diffusim_time_step_from_spring": [c_double, c_double, c_double, _DOUBLES],
    "diffusim_diffusion_from_friction_rate": [c_double, c_double, c_double, _DOUBLES],
    "diffusim_diffusion_from_drag": [c_double, c_double, _DOUBLES],
}

# Result and arguments of the others.
OTHERS = {
    "diffusim_version": (c_char_p, []),
    "diffusim_abi_version": (c_int32, []),
    "diffusim_last_error": (c_char_p, []),
    "diffusim_model_n_particles": (c_size_t, [c_void_p]),
    "diffusim_model_is_periodic": (c_int32, [c_void_p]),
    "diffusim_model_free": (None, [c_void_p]),
    "diffusim_simulation_free": (None, [c_void_p]),
    "diffusim_domain_free": (None, [c_void_p]),
    "diffusim_evaluator_free": (None, [c_void_p]),
}


def path() -> Path:
    """Where the library is: in the package, or where DIFFUSIM_LIBRARY says."""
    if override := os.environ.get(PATH_VARIABLE):
        return Path(override)
    suffix = "dylib" if sys.platform == "darwin" else "so"
    return Path(__file__).parent / "lib" / f"libdiffusim.{suffix}"


@cache
def library() -> CDLL:
    """The loaded library. Raises DiffusimError if it is missing, cannot be loaded or is older than this package."""
    place = path()
    source = f"{PATH_VARIABLE}={place}" if os.environ.get(PATH_VARIABLE) else str(place)
    if not place.is_file():
        raise DiffusimError(
            f"the library {source} does not exist. Install diffusim again: pip install --force-reinstall ."
        )
    try:
        lib = CDLL(str(place.resolve()))
        version_of = lib.diffusim_abi_version
    except (OSError, AttributeError) as error:
        raise DiffusimError(f"the library {source} cannot be loaded: {error}. Install diffusim again.") from None
    if version_of() < ABI_VERSION:
        raise DiffusimError(
            f"the library {source} has ABI version {version_of()}, this package needs {ABI_VERSION}. "
            "Install diffusim again, library and package together."
        )
    for name, arguments in CALLS.items():
        getattr(lib, name).argtypes = arguments
        getattr(lib, name).restype = c_int32
    for name, (result, arguments) in OTHERS.items():
        getattr(lib, name).argtypes = arguments
        getattr(lib, name).restype = result
    return lib


def call(name: str, *arguments) -> None:
    """Call a function that returns a status; DiffusimError with the library's sentence if it failed."""
    lib = library()
    status = getattr(lib, name)(*arguments)
    if status != 0:
        raise DiffusimError(lib.diffusim_last_error().decode(), Status(status))


def version() -> str:
    """Version of the library."""
    return library().diffusim_version().decode()
