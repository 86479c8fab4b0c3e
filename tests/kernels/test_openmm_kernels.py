"""The kernels of plugin-openmm/gpu, which OpenMM compiles at run time: here for the host, against numpy, and by NVRTC
with what OpenMM puts before them on CUDA; and whether OpenMM's library for CUDA defines what ours needs."""

import ctypes
import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
[SOURCE] = re.findall(r'R"KERNELS\((.*)\)KERNELS"', (ROOT / "plugin-openmm/gpu/kernels.h").read_text(), re.DOTALL)
KERNELS = set(re.findall(r"KERNEL void (\w+)\(", SOURCE))
sys.path.insert(0, str(ROOT / "kernels"))

HOST = """
#include <cmath>
using std::fma;
#define KERNEL extern "C"
#define DEVICE static
#define GLOBAL
#define RESTRICT __restrict__
#define GLOBAL_ID 0
#define GLOBAL_SIZE 1
#define ATOMIC_ADD(place, value) (*(place) += (value))
typedef long long mm_long;
typedef unsigned long long mm_ulong;
struct int4 { int x, y, z, w; };
struct real4 { real x, y, z, w; };
struct mixed4 { mixed x, y, z, w; };
static inline real4 make_real4(real x, real y, real z, real w) { return {x, y, z, w}; }
"""
TYPES = {"single": ("float", "float"), "mixed": ("float", "double"), "double": ("double", "double")}
BOX = (2.25, 0.375, 2.5, -0.125, 0.5, 2.0)  # ax, bx, by, cx, cy, cz: few bits, so that sums of multiples are exact
N, PADDED = 37, 64
UNIT = 2.49  # of the core's forces


@pytest.fixture(scope="module", params=TYPES)
def kernels(request, tmp_path_factory):
    """A library of them in a precision, with numpy's names of `real` and `mixed`."""
    folder = tmp_path_factory.mktemp("openmm")
    real, mixed = TYPES[request.param]
    (folder / "kernels.cpp").write_text(HOST + SOURCE)
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Werror", f"-Dreal={real}"]
    options += [f"-Dmixed={mixed}"] + ["-DUSE_MIXED_PRECISION"] * (request.param == "mixed")
    library = folder / "kernels.so"
    subprocess.run([os.environ.get("CXX", "g++"), *options, folder / "kernels.cpp", "-o", library], check=True)
    types = {"float": np.float32, "double": np.float64}
    result = ctypes.CDLL(str(library))
    result.real, result.mixed, result.precision = types[real], types[mixed], request.param
    return result


class Context:
    """Arrays as OpenMM's, of atoms in another order and in other cells."""

    def __init__(self, kernels):
        rng = np.random.default_rng(7)
        self.kernels = kernels
        self.order = np.concatenate([rng.permutation(N), np.arange(N, PADDED)]).astype(np.int32)
        self.cells = rng.integers(-3, 4, (PADDED, 4)).astype(np.int32)
        self.posq = rng.normal(size=(PADDED, 4)).astype(kernels.real)
        self.correction = rng.normal(0, 1e-8, (PADDED, 4)).astype(kernels.real)
        self.velm = rng.normal(size=(PADDED, 4)).astype(kernels.mixed)
        self.force = rng.integers(-(2**50), 2**50, (3, PADDED))
        box = np.array([[BOX[0], 0, 0], [BOX[1], BOX[2], 0], BOX[3:]])
        self.shift = self.cells[:N, :3] @ box

    def call(self, name, core, *first):
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (self.order, self.cells, core)]
        box = [ctypes.c_double(length) for length in BOX]
        if "Positions" in name:
            mixed = [self.correction] if self.kernels.precision == "mixed" else []
            arguments = [*first, *box, *pointers, *(a.ctypes.data_as(ctypes.c_void_p) for a in [self.posq, *mixed])]
        else:
            array = self.velm if "Velocities" in name else self.force
            arguments = [*first, pointers[0], pointers[2], array.ctypes.data_as(ctypes.c_void_p)]
            if name == "giveForces":
                arguments.append(ctypes.c_double(UNIT))
        getattr(self.kernels, name)(N, *arguments)

    def positions(self) -> np.ndarray:
        """Of the System's atoms, as the Context has them."""
        x = self.posq[:N, :3].astype(float)
        if self.kernels.precision == "mixed":
            x = x + self.correction[:N, :3]
        result = np.empty((N, 3))
        result[self.order[:N]] = x - self.shift
        return result


def test_positions_are_given_and_taken(kernels):
    context, core = Context(kernels), np.random.default_rng(3).normal(0, 2.0, (N, 3))
    given, charges, padding = core.copy(), context.posq[:, 3].copy(), context.posq[N:].copy()
    context.call("givePositions", core)
    assert (context.posq[:, 3] == charges).all() and (context.posq[N:] == padding).all() and (core == given).all()
    wanted = core[context.order[:N]] + context.shift
    assert (context.posq[:N, :3] == wanted.astype(kernels.real)).all()
    if kernels.precision == "mixed":
        assert (context.correction[:N, :3] == (wanted - wanted.astype(np.float32)).astype(np.float32)).all()
    # The core's stay, to the last bit, but where somebody has moved an atom.
    context.call("takePositions", core, 1)
    assert (core == given).all()
    context.posq[5, 1] += kernels.real(0.25)
    moved = (context.order[5], 1)
    context.call("takePositions", core, 1)
    assert core[moved] == context.positions()[moved] != given[moved]
    core[moved] = given[moved]
    assert (core == given).all()
    if kernels.precision == "mixed":
        context.correction[6, 2] += np.float32(1e-9)
        context.call("takePositions", core, 1)
        assert core[context.order[6], 2] == context.positions()[context.order[6], 2] != given[context.order[6], 2]
    core[:] = given
    context.call("takePositions", core, 0)
    assert (core == context.positions()).all()


def test_velocities_are_given_and_taken(kernels):
    context, core = Context(kernels), np.random.default_rng(3).normal(0, 0.4, (N, 3))
    given, masses = core.copy(), context.velm[:, 3].copy()
    context.call("giveVelocities", core)
    assert (context.velm[:, 3] == masses).all()
    assert (context.velm[:N, :3] == core[context.order[:N]].astype(kernels.mixed)).all()
    context.call("takeVelocities", core, 1)
    assert (core == given).all()
    context.velm[4] *= 2
    context.call("takeVelocities", core, 1)
    assert (core[context.order[4]] == context.velm[4, :3]).all()
    core[context.order[4]] = given[context.order[4]]
    assert (core == given).all()
    context.call("takeVelocities", core, 0)
    assert (core[context.order[:N]] == context.velm[:N, :3]).all()


def test_forces_are_taken_and_added(kernels):
    context, core = Context(kernels), np.empty((N, 3))
    context.call("takeForces", core, PADDED)
    assert (core[context.order[:N]] == context.force[:, :N].T / 2.0**32).all()
    before, added = context.force.copy(), np.random.default_rng(3).normal(0, 431.0, (N, 3))
    context.call("giveForces", added, PADDED)
    expected = (UNIT * added[context.order[:N]] * 2.0**32).astype(np.int64)
    assert ((context.force - before)[:, :N].T == expected).all() and (context.force[:, N:] == before[:, N:]).all()


@pytest.fixture(scope="session")
def openmm_cuda(tmp_path_factory) -> Path:
    """libOpenMMCUDA.so of the OpenMM that the plugin was built for."""
    version = pytest.importorskip("openmm.version")
    installed = Path(version.openmm_library_path) / "plugins/libOpenMMCUDA.so"
    if installed.exists():
        return installed
    folder = tmp_path_factory.mktemp("wheel")
    wheel = f"OpenMM-CUDA-12=={version.short_version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{wheel} is not installed and cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    [archive] = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as files:
        [name] = [n for n in files.namelist() if n.endswith("/libOpenMMCUDA.so")]
        return Path(files.extract(name, folder))


def symbols(library: Path, *options: str) -> set[str]:
    listed = subprocess.run(["nm", "-D", *options, library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in listed.splitlines()}


def test_openmm_defines_what_the_library_for_cuda_needs(openmm_cuda):
    """Which is linked against a stand-in with nothing in it."""
    version = pytest.importorskip("openmm.version")
    plugin = pytest.importorskip("diffusim.openmm._plugin", exc_type=ImportError)
    ours = plugin.directory() / "libdiffusimOpenMMCUDA.so"
    assert ours.exists(), "pip install . builds it"
    theirs = symbols(openmm_cuda, "--defined-only") | symbols(
        Path(version.openmm_library_path) / "libOpenMM.so", "--defined-only"
    )
    needed = {name for name in symbols(ours, "--undefined-only") if "OpenMM" in name}
    assert len(needed) > 5
    assert needed <= theirs, needed - theirs


@pytest.mark.parametrize("precision", TYPES)
def test_nvrtc_compiles_them_as_openmm_has_it_do(openmm_cuda, precision):
    """With OpenMM's own text before them, and its options."""
    import make_ptx

    compiler = make_ptx.nvrtc()
    text = openmm_cuda.read_bytes()

    def containing(words: bytes) -> bytes:
        """The string of the library which these are in."""
        place = text.index(words)
        return text[text.rindex(b"\0", 0, place) + 1 : text.index(b"\0", place)]

    real, mixed = TYPES[precision]
    types = "".join(
        f"typedef {of} {name};" + "".join(f"typedef {of}{n} {name}{n};" for n in (2, 3, 4))
        for name, of in (("real", real), ("mixed", mixed))
    )
    before = types + containing(b'#define KERNEL extern "C" __global__').decode()
    before += f"\n#define make_real4 make_{real}4\n" + "#define USE_MIXED_PRECISION\n" * (precision == "mixed")
    program = ctypes.c_void_p()
    compiler.nvrtcCreateProgram(ctypes.byref(program), (before + SOURCE).encode(), b"openmm.cu", 0, None, None)
    options = [b"--gpu-architecture=compute_70", b"--use_fast_math", b"--std=c++11"]
    arguments = program, len(options), (ctypes.c_char_p * len(options))(*options)
    with ThreadPoolExecutor(1) as other_thread:  # NVRTC leaves its thread in the locale C
        failed = other_thread.submit(compiler.nvrtcCompileProgram, *arguments).result()
    length = ctypes.c_size_t()
    compiler.nvrtcGetProgramLogSize(program, ctypes.byref(length))
    log = ctypes.create_string_buffer(length.value)
    compiler.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()
    compiler.nvrtcGetPTXSize(program, ctypes.byref(length))
    ptx = ctypes.create_string_buffer(length.value)
    compiler.nvrtcGetPTX(program, ptx)
    assert set(re.findall(r"\.entry (\w+)\(", ptx.value.decode())) == KERNELS
