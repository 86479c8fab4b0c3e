"""The kernels as CUBIN of NVRTC: the same trajectory, compiled once. tests/cuda.rs has the cache, by a stand-in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

nvrtc = pytest.importorskip("nvidia.cuda_nvrtc", reason="needs NVRTC: pip install nvidia-cuda-nvrtc-cu12")

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/ala2/ala2.safetensors"
SCRIPT = f"""
import diffusim, hashlib
s = diffusim.Simulation({str(MODEL)!r}, n_replicas=3, seed=48291, device="cuda")
s.step(40)
print(hashlib.sha256(s.checkpoint()).hexdigest())
print(s.device_status.split("kernels: ")[1])
"""


@pytest.mark.parametrize("capability", ["80", "90"])
def test_cubin_gives_the_trajectory_of_ptx(environment, tmp_path, capability):
    path = os.pathsep.join([environment.get("LD_LIBRARY_PATH", ""), str(Path(next(iter(nvrtc.__path__))) / "lib")])

    def run(image: str) -> list[str]:
        settings = {"LD_LIBRARY_PATH": path, "DIFFUSIM_CUDA_CACHE": str(tmp_path), "DIFFUSIM_CUDA_IMAGE": image}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            env=environment | settings | {"SIMT_CAPABILITY": capability},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    trajectory, words = run("ptx")
    assert words == "PTX"
    first, again = run("cubin"), run("cubin")
    assert first[0] == again[0] == trajectory
    [file] = tmp_path.iterdir()
    architecture = file.name.split("-")[0]
    if "SIMT_DEVICES" in environment:
        assert architecture == f"sm_{capability}"
    compiler = file.name.split("-")[1].removeprefix("nvrtc")
    assert first[1] == f"CUBIN for {architecture}, compiled by NVRTC {compiler} and kept in {file}"
    assert again[1] == f"CUBIN for {architecture} in {file}"
    assert file.read_bytes().startswith(b"\x7fELF")
