"""The libraries for OpenMM's platforms of GPUs: loaded where they are needed, and a sentence where they cannot be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

openmm = pytest.importorskip("openmm")
plugin = pytest.importorskip("diffusim.openmm._plugin", exc_type=ImportError)
ROOT = Path(__file__).parents[2]
NETWORK = ROOT / "tests/fixtures/distance_small.safetensors"
OPENMM = Path(openmm.version.openmm_library_path)


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A folder with diffusim's libraries for OpenMM, but none for a platform of GPUs."""
    for name in ("libdiffusim.so", "libdiffusim.so.0.1", plugin.LIBRARY_NAME, "openmm-version.txt"):
        shutil.copy(plugin.directory() / name, tmp_path)
    return tmp_path


def run(script: str, folder: Path, **environment: str) -> str:
    """What Python prints with the libraries of `folder`."""
    paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", ""), str(OPENMM)]
    variables = {"DIFFUSIM_LIBRARY": str(folder / "libdiffusim.so"), "LD_LIBRARY_PATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | variables | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def need_opencl() -> None:
    from test_openmm_platforms import platform_named

    platform_named("OpenCL")


def test_nothing_is_loaded_on_the_platforms_of_the_host():
    printed = run(
        f"""
import diffusim.openmm as dm
for platform in ("Reference", "CPU"):
    dm.simulation({str(NETWORK)!r}, stepSize=0.0052, platform=platform).step(2)
print([line.split()[-1] for line in open("/proc/self/maps") if "libdiffusimOpenMM" in line])
""",
        plugin.directory(),
    )
    assert "libdiffusimOpenMM.so" in printed
    assert "OpenCL" not in printed and "CUDA" not in printed


@pytest.mark.parametrize("name", ["libdiffusimOpenMMOpenCL.so", "libdiffusimOpenMMCUDA.so"])
def test_they_are_installed(name):
    assert (plugin.directory() / name).exists()


def test_without_the_library_positions_pass_through_the_host(elsewhere):
    need_opencl()
    printed = run(
        f"""
import warnings, diffusim.openmm as dm
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    simulation = dm.simulation({str(NETWORK)!r}, stepSize=0.0052, seed=3, platform="OpenCL")
simulation.step(20)
reference = dm.simulation({str(NETWORK)!r}, stepSize=0.0052, seed=3)
reference.step(20)
ends = [s.context.getState(positions=True).getPositions(asNumpy=True)._value for s in (simulation, reference)]
assert abs(ends[0] - ends[1]).max() < 1e-4
print(*(str(warning.message) for warning in caught))
""",
        elsewhere,
    )
    assert "diffusim's library for OpenMM's platform OpenCL cannot be used: Error loading library" in printed
    assert "pass through the host at every step" in printed


def test_the_core_in_the_context_of_the_platform(elsewhere):
    """What CUDA is, as far as that can be without a GPU: steps are enqueued, arrays stay, nobody waits. Tests of the
    platforms run with OpenCL's arrays and the core on the GPU of tests/simt."""
    need_opencl()
    compiler = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off"]
    subprocess.run(
        [
            *(*compiler, "-Wl,-soname,libcuda.so.1", "-I", ROOT / "kernels", ROOT / "tests/simt/libcuda.cpp"),
            *("-o", elsewhere / "libcuda.so.1"),
        ],
        check=True,
    )
    sources = [ROOT / "tests/gpu/attached.cpp", ROOT / "plugin-openmm/gpu/GpuFrames.cpp"]
    subprocess.run(
        [
            *(*compiler, f'-DOPENMM_VERSION="{plugin.BUILT_FOR}"', "-I", ROOT / "plugin-openmm", *sources),
            *("-isystem", OPENMM.parent / "include", "-o", elsewhere / "libdiffusimOpenMMOpenCL.so"),
            *("-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", OPENMM / "plugins/libOpenMMOpenCL.so"),
            elsewhere / "libcuda.so.1",
        ],
        check=True,
    )
    tests = Path(__file__).parent / "test_openmm_platforms.py"
    printed = run(
        f"""
import pytest
which = "OpenCL and (mixed or kernel)"
print("status", int(pytest.main(["-q", "-p", "no:cacheprovider", "-k", which, {str(tests)!r}])))
""",
        elsewhere,
    )
    assert "22 passed" in printed and "status 0" in printed, printed
    # Which would not fail if the core were on the CPU.
    for call, what in (("step(1)", "taking steps"), ("context.getState(forces=True)", "evaluating frames")):
        printed = run(
            f"""
import diffusim.openmm as dm
simulation = dm.simulation({str(NETWORK)!r}, stepSize=0.0052, platform="OpenCL")
try:
    simulation.{call}
except Exception as error:
    print(error)
del simulation
""",
            elsewhere,
            SIMT_FAIL_LAUNCH="1",
        )
        assert f"the GPU failed while {what}" in printed
    # Nor is the CPU taken instead where the GPU has failed.
    printed = run(
        f"""
import os
import diffusim.openmm as dm
context = dm.simulation({str(NETWORK)!r}, stepSize=0.0052, platform="OpenCL").context
os.environ["SIMT_MEMORY"] = "0"
for _ in range(2):
    try:
        context.getState(forces=True)
    except Exception as error:
        print(error)
del os.environ["SIMT_MEMORY"]
context.getState(forces=True)
""",
        elsewhere,
    )
    assert printed.count("CUDA_ERROR_OUT_OF_MEMORY") == 2, printed
