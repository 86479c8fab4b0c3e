"""Every door on a GPU: the one of this machine under `make test-gpu`, elsewhere this host in its place (tests/simt)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import diffusim

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """Variables under which a program finds a GPU."""
    if os.environ.get("DIFFUSIM_TEST_GPU"):
        try:
            diffusim.describe_device("cuda")
        except diffusim.DiffusimError as reason:
            pytest.skip(str(reason))
        return dict(os.environ)
    folder = tmp_path_factory.mktemp("simt")
    subprocess.run(
        [
            *(os.environ.get("CXX", "g++"), "-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off"),
            *("-Wl,-soname,libcuda.so.1", "-I", ROOT / "kernels", ROOT / "tests/simt/libcuda.cpp"),
            *("-o", folder / "libcuda.so.1"),
        ],
        check=True,
    )
    path = os.pathsep.join([str(folder), os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep)
    return os.environ | {"LD_LIBRARY_PATH": path, "SIMT_DEVICES": "2"}


@pytest.fixture
def python(environment, tmp_path):
    """Run a script in a Python that finds the GPU; what it prints."""

    def run(script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def real_gpu() -> None:
    """Skips where the GPU would be this host."""
    if not os.environ.get("DIFFUSIM_TEST_GPU"):
        pytest.skip("needs a real GPU: run `make test-gpu` where there is one")
