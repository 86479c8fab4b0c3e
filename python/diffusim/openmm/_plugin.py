"""Load the plugin library into OpenMM and reach its accessors (plugin-openmm/src/plugin.cpp)."""

import logging
import warnings
from ctypes import CDLL, CFUNCTYPE, POINTER, byref, c_char_p, c_double, c_int, c_int64, c_void_p
from pathlib import Path

import openmm
import openmm.version

from diffusim import _library

LIBRARY_NAME = "libdiffusimOpenMM.so"
logger = logging.getLogger("diffusim.openmm")


def directory() -> Path:
    """Where the plugin is: beside the core library, or in the package where the core library is another."""
    places = [_library.path().resolve().parent, Path(_library.__file__).parent / "lib"]
    for place in places:
        if (place / LIBRARY_NAME).is_file():
            return place
    raise ImportError(
        f"the OpenMM plugin {LIBRARY_NAME} is not in {places[-1]}. "
        "Install diffusim again: pip install --force-reinstall ."
    )


_library.library()  # before the plugin, so that both use one copy
_place = directory()

#: Version of OpenMM that the plugin was built for.
BUILT_FOR = (_place / "openmm-version.txt").read_text().strip()
if openmm.version.short_version != BUILT_FOR:  # OpenMM's C++ ABI changes between versions: loading would crash
    raise ImportError(
        f"diffusim's OpenMM plugin was built for OpenMM {BUILT_FOR} and found OpenMM {openmm.version.short_version}. "
        f"Install the other OpenMM (pip install openmm=={BUILT_FOR}) or build diffusim again on this one."
    )

openmm.Platform.loadPluginLibrary(str(_place / LIBRARY_NAME))
_lib = CDLL(str(_place / LIBRARY_NAME))
_lib.diffusim_openmm_last_error.restype = c_char_p
for _name, _arguments in {
    "is_integrator": [],
    "is_force": [],
    "add_energy_parameter_derivative": [c_char_p],
    "get_temperature": [POINTER(c_double)],
    "set_temperature": [c_double],
    "get_friction": [POINTER(c_double)],
    "set_friction": [c_double],
    "get_spring": [POINTER(c_double)],
    "set_spring": [c_double],
    "get_adapter": [POINTER(c_char_p)],
    "get_sampler": [POINTER(c_char_p)],
    "get_device": [POINTER(c_char_p)],
    "get_matmul_precision": [POINTER(c_char_p)],
    "get_seed": [POINTER(c_int64)],
    "set_seed": [c_int64],
    "get_seed_in_use": [POINTER(c_int64)],
    "get_num_copies": [POINTER(c_int64)],
    "compute_model_energies": [c_void_p],
    "compute_configurational_temperature": [POINTER(c_double)],
    "compute_system_temperature": [POINTER(c_double)],
    "get_largest_score": [POINTER(c_double)],
    "get_steps_per_sweep": [POINTER(c_double)],
    "get_acceptance": [POINTER(c_double)],
    "get_step_factors": [c_void_p],
    "get_last_status": [POINTER(c_int64)],
}.items():
    getattr(_lib, f"diffusim_openmm_{_name}").argtypes = [c_void_p, *_arguments]


@CFUNCTYPE(None, c_int, c_char_p)
def _on_message(warning: int, message: bytes) -> None:
    if warning:
        warnings.warn(message.decode(), stacklevel=3)  # the caller of openmm.Context
    else:
        logger.info(message.decode())


_lib.diffusim_openmm_set_message_handler(_on_message)


def is_ours(kind: str, thing: openmm.Integrator | openmm.Force) -> bool:
    """Whether an OpenMM object is our "integrator" or our "force"."""
    return bool(getattr(_lib, f"diffusim_openmm_is_{kind}")(int(thing.this)))


def call(name: str, thing: openmm.Integrator | openmm.Force, *arguments) -> None:
    """Call an accessor; openmm.OpenMMException with its sentence if it failed."""
    if getattr(_lib, f"diffusim_openmm_{name}")(int(thing.this), *arguments) != 0:
        raise openmm.OpenMMException(_lib.diffusim_openmm_last_error().decode())


def get(name: str, integrator: openmm.Integrator, kind: type = c_double):
    """What the accessor writes."""
    value = kind()
    call(name, integrator, byref(value))
    return value.value
