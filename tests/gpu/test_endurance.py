"""What only a real GPU can show."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALA2 = ROOT / "examples/ala2/ala2.safetensors"
FLUID = ROOT / "examples/lennard-jones/lennard-jones.safetensors"
pytestmark = pytest.mark.usefixtures("real_gpu")


def test_a_hundred_million_steps_without_a_failure(python):
    """Which is an error of step()."""
    python(f"""
import numpy as np, diffusim
s = diffusim.Simulation({str(ALA2)!r}, n_replicas=10_000, seed=7, device="cuda")
s.step(10_000)
assert np.isfinite(s.positions).all()
""")


@pytest.mark.parametrize(("model", "n_replicas"), [(ALA2, 1024), (FLUID, 3)])
def test_a_run_repeats_bit_for_bit(python, model, n_replicas):
    python(f"""
import diffusim
ends = []
for _ in range(3):
    s = diffusim.Simulation({str(model)!r}, n_replicas={n_replicas}, seed=7, device="cuda")
    s.step(2_000)
    ends.append(s.positions)
assert (ends[0] == ends[1]).all() and (ends[0] == ends[2]).all()
""")


def test_a_fluid_is_that_of_the_cpu_after_many_lists_of_neighbors(python):
    python(f"""
import diffusim
ends = []
for device in ("cpu", "cuda"):
    s = diffusim.Simulation({str(FLUID)!r}, seed=7, device=device)
    s.step(3_000)
    ends.append(s.positions)
assert (ends[0] == ends[1]).all()
""")


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool, environment, tmp_path):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    script = f"""
import diffusim
for n_replicas in (1, 300, 5000):
    diffusim.Simulation({str(ALA2)!r}, n_replicas=n_replicas, seed=7, device="cuda").step(3)
diffusim.Simulation({str(FLUID)!r}, n_replicas=2, seed=7, device="cuda").step(3)
"""
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-4000:]
