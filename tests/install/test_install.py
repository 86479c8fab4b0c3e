"""diffusim as other people's programs find it, and the examples: one simulation, the same numbers through every door.

The programs are examples/{c,cpp,rust,python}/ala2.* and, in LAMMPS, examples/lammps/in.ala2; what they print is
compared as text, which holds all digits.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CONSUMER = ROOT / "tests" / "install" / "consumer"
ARGUMENTS = [str(EXAMPLES / "ala2" / "ala2.safetensors"), "700"]  # a model and a number of steps
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
MINOR = VERSION.rpartition(".")[0]
SONAME = f"libdiffusim.so.{MINOR}"
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], str(Path.home() / ".cargo" / "bin")])
PYTHON = [sys.executable, EXAMPLES / "python" / "ala2.py"]
RUST = ["cargo", "run", "--release", "--quiet", "--manifest-path", ROOT / "Cargo.toml", "--example", "rust"]
OPENMM = [sys.executable, EXAMPLES / "python" / "ala2_openmm.py"]
LAMMPS_FILES = EXAMPLES / "lammps"
LAMMPS = ["lmp", "-log", "none", "-in", LAMMPS_FILES / "in.ala2", "-var", "data", LAMMPS_FILES / "ala2.data"]
PKG_CONFIG = shutil.which("pkg-config") or shutil.which("pkgconf")


def environment(**changes: str) -> dict[str, str]:
    """That of a user who has set nothing for diffusim; cargo finds what `make` has built."""
    kept = {k: v for k, v in os.environ.items() if k not in ("DIFFUSIM_LIBRARY", "LD_LIBRARY_PATH", "PYTHONPATH")}
    return {"CARGO_TARGET_DIR": str(ROOT / "target"), **kept, "PATH": TOOLS, **changes}


def attempt(*command: str | Path, **changes: str) -> subprocess.CompletedProcess:
    command = [str(word) for word in command]
    tool = shutil.which(command[0], path=TOOLS)
    assert tool, f"{command[0]} is not on PATH; `make install` puts CMake into the virtual environment"
    return subprocess.run(
        [tool, *command[1:]], capture_output=True, text=True, timeout=500, cwd="/", env=environment(**changes)
    )


def run(*command: str | Path, **changes: str) -> str:
    """What a command prints; it must succeed."""
    done = attempt(*command, **changes)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def is_linked_to_the_library(program: Path) -> bool:
    return SONAME in run("readelf", "--dynamic", program)


def assert_says_what_is_wrong(*program: str | Path) -> None:
    failed = attempt(*program, "no/such/file")
    assert failed.returncode == 1
    assert "diffusim: " in failed.stderr and "no/such/file" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.fixture(scope="session")
def expected() -> str:
    """What every example prints: here, the Python one."""
    printed = run(*PYTHON, *ARGUMENTS)
    assert len(printed.split()) == 30
    return printed


# Rust is first: cargo builds the library differently for examples than for CMake, and `cargo test` has just done so.
@pytest.mark.parametrize("program", [RUST, OPENMM], ids=["rust", "openmm"])
def test_example_prints_the_same(program, expected):
    assert run(*program, *ARGUMENTS) == expected


@pytest.mark.parametrize("program", [RUST, PYTHON, OPENMM], ids=["rust", "python", "openmm"])
def test_example_says_what_is_wrong(program):
    assert_says_what_is_wrong(*program)


def test_lammps_prints_the_same(expected):
    model, n_steps = ARGUMENTS
    assert expected in run(*LAMMPS, "-var", "model", model, "-var", "steps", n_steps)
    failed = attempt(*LAMMPS, "-var", "model", "no/such/file")
    assert failed.returncode == 1
    assert "ERROR: fix diffusim: " in failed.stdout and "no/such/file" in failed.stdout


@pytest.fixture(scope="session")
def prefix(tmp_path_factory) -> Path:
    """Where `cmake --install` has put diffusim, and to where it was moved afterwards."""
    folder = tmp_path_factory.mktemp("install")
    run("cmake", "-S", ROOT, "-B", folder / "build")
    run("cmake", "--build", folder / "build")
    run("cmake", "--install", folder / "build", "--prefix", folder / "first")
    shutil.rmtree(folder / "build")
    return (folder / "first").rename(folder / "moved")


@pytest.fixture(scope="session")
def library_directory(prefix) -> Path:
    return next(prefix.glob("lib*/" + SONAME)).parent


def test_what_is_installed(prefix, library_directory):
    files = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if not path.is_dir()}
    lib = library_directory.name
    assert files == {
        "include/diffusim.h",
        "include/diffusim.hpp",
        f"{lib}/{SONAME}",
        f"{lib}/libdiffusim.so",
        f"{lib}/libdiffusim.a",
        f"{lib}/cmake/diffusim/diffusim-config.cmake",
        f"{lib}/cmake/diffusim/diffusim-config-version.cmake",
        f"{lib}/pkgconfig/diffusim.pc",
    }
    assert os.readlink(library_directory / "libdiffusim.so") == SONAME
    assert f"soname: [{SONAME}]" in run("readelf", "--dynamic", library_directory / SONAME)


@pytest.mark.parametrize("way", ["find_package", "wheel", "add_subdirectory"])
def test_cmake_project(way, tmp_path, expected, request):
    if way == "find_package":
        found = f"-DCMAKE_PREFIX_PATH={request.getfixturevalue('prefix')}"
    elif way == "wheel":
        path = run(sys.executable, "-c", "import diffusim; print(diffusim.cmake_prefix_path)").strip()
        found = f"-DCMAKE_PREFIX_PATH={path}"
    else:
        found = f"-DDIFFUSIM_SOURCE={ROOT}"
    run("cmake", "-S", CONSUMER, "-B", tmp_path, f"-DDIFFUSIM_VERSION={MINOR}", found)
    run("cmake", "--build", tmp_path, "--parallel", "2")
    links = ["shared"] if way == "wheel" else ["shared", "static"]  # the wheel has no archive
    programs = {path.name for path in tmp_path.iterdir() if path.name.startswith(("c_", "cpp_"))}
    assert programs == {f"{language}_{link}" for language in ("c", "cpp") for link in links}
    for name in programs:
        assert run(tmp_path / name, *ARGUMENTS) == expected
        assert is_linked_to_the_library(tmp_path / name) == name.endswith("shared")
        assert_says_what_is_wrong(tmp_path / name)


def test_another_minor_version_is_refused(prefix, tmp_path):
    other = MINOR + "9"
    found = f"-DCMAKE_PREFIX_PATH={prefix}"
    refused = attempt("cmake", "-S", CONSUMER, "-B", tmp_path, f"-DDIFFUSIM_VERSION={other}", found)
    assert refused.returncode != 0
    assert f'"{other}"' in refused.stderr and f"version: {VERSION}" in refused.stderr


@pytest.mark.skipif(PKG_CONFIG is None, reason="there is no pkg-config on this machine")
@pytest.mark.parametrize("link", ["shared", "static"])
@pytest.mark.parametrize(("compiler", "source"), [("gcc", "c/ala2.c"), ("g++", "cpp/ala2.cpp")])
def test_pkg_config(compiler, source, link, prefix, library_directory, tmp_path, expected):
    def flags(*options: str) -> list[str]:
        return shlex.split(run(PKG_CONFIG, *options, "diffusim", PKG_CONFIG_PATH=str(library_directory / "pkgconfig")))

    if link == "shared":
        libraries = [*flags("--libs"), f"-Wl,-rpath,{flags('--variable=libdir')[0]}"]
    else:
        libraries = [x.replace("-ldiffusim", "-l:libdiffusim.a") for x in flags("--libs", "--static")]
    program = tmp_path / "ala2"
    run(compiler, EXAMPLES / source, *flags("--cflags"), *libraries, "-o", program)
    assert run(program, *ARGUMENTS) == expected
    assert is_linked_to_the_library(program) == (link == "shared")
    assert flags("--modversion") == [VERSION]
