"""`device="cuda"` from Python, the command line, OpenMM and LAMMPS: the bits of the CPU, or on tensor cores nearly."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests/fixtures/distance_small.safetensors"
ALA2 = ROOT / "examples/ala2"
FLUID = ROOT / "examples/lennard-jones/lennard-jones.safetensors"
BIN = Path(sys.prefix) / "bin"


def program(name: str) -> Path:
    """One that is installed beside this Python; skips where only the library was carried to the GPU."""
    path = BIN / name
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return path


def test_python(python):
    python(f"""
import numpy as np, diffusim
names = diffusim.devices()
assert names[:2] == ["cpu", "cuda:0"], names
assert diffusim.describe_device("cuda").startswith("cuda:0: "), diffusim.describe_device("cuda")
runs = [diffusim.Simulation({str(SMALL)!r}, n_replicas=3, seed=17, device=name) for name in ("cpu", "cuda")]
for s in runs:
    s.step(210)
    s.step_biased(np.full(s.positions.shape, 31.0))
cpu, cuda = runs
assert (cpu.positions == cuda.positions).all() and cpu.checkpoint() == cuda.checkpoint()
assert cpu.statistics == cuda.statistics
""")


def test_tensor_cores(python):
    python(f"""
import numpy as np, diffusim
cpu = diffusim.Simulation({str(ALA2 / "ala2.safetensors")!r}, n_replicas=9, seed=17)
cpu.step(12)
high = diffusim.Simulation(cpu.model, n_replicas=9, seed=17, device="cuda", matmul_precision="high")
high.step(5)
assert high.device_status.startswith("cuda:0, one launch for many steps, matmul_precision 'high'; "), high.device_status
high.restore(high.checkpoint())
high.step(7)
assert 0 < np.abs(high.positions - cpu.positions).max() < 1e-8
high.reconfigure(matmul_precision="highest")
assert "high" not in high.device_status
for model, sentence in (
    ({str(SMALL)!r}, "needs hidden weights of bfloat16, and layer 0 of this model has"),
    ({str(FLUID)!r}, "'high' serves models of kind distance, and this is none; use 'highest'"),
):
    try:
        diffusim.Simulation(model, device="cuda", matmul_precision="high")
    except diffusim.DiffusimError as error:
        assert sentence in str(error), error
    else:
        raise AssertionError(model)
""")


def test_an_evaluator(python):
    """Of frames that were not moved from where they are at first."""
    python(f"""
import numpy as np, diffusim
model = diffusim.Model({str(SMALL)!r})
evaluator = diffusim.Evaluator(model, n_frames=3)
assert len({{evaluator.device_positions, evaluator.device_scores, evaluator.device_energies}}) == 3
evaluator.enqueue()
evaluator.synchronize()
evaluator.enqueue(with_energies=True)
assert (evaluator.energies == model.evaluate(np.zeros((3, model.n_particles, 3)))[1]).all()
for device, sentence in (("cpu", "for frames on a GPU"), ("cuda:77", "device 'cuda:77' is not there")):
    try:
        diffusim.Evaluator(model, device=device)
    except diffusim.DiffusimError as error:
        assert sentence in str(error), error
    else:
        raise AssertionError(device)
""")


def test_a_fluid(python):
    """The message-passing network in a periodic cell."""
    python(f"""
import diffusim, re
ends = []
for name in ("cpu", "cuda"):
    s = diffusim.Simulation({str(FLUID)!r}, seed=17, device=name)
    s.step(4)
    ends.append(s.checkpoint())
assert ends[0] == ends[1]
assert re.fullmatch(
    r"cuda:0, 6 launches a step, replayed as a CUDA graph; the last [0-9]+ took [0-9.]+ us each; kernels: PTX",
    s.device_status,
), s.device_status
""")


def test_a_child_process_says_that_it_cannot_use_the_gpu(python):
    printed = python(f"""
import os, diffusim
s = diffusim.Simulation({str(SMALL)!r}, seed=17, device="cuda")
s.step(3)
if os.fork() == 0:
    try:
        s.step(3)
    except diffusim.DiffusimError as error:
        print(error, error.status.name, flush=True)
    del s
    os._exit(0)
os.wait()
s.step(3)
""")
    assert "a GPU cannot be used across fork()" in printed and "DEVICE" in printed


def test_doctor_names_the_gpus(environment):
    done = subprocess.run([program("diffusim"), "doctor"], capture_output=True, text=True, env=environment)
    words = r"cuda +cuda:0: \w+.*graphs on.*used where it is asked for by name: device .auto. is the CPU"
    assert re.search(words, done.stdout.replace("\n", " ")), done.stdout + done.stderr


def test_command_line(environment, tmp_path):
    for device in ("cpu", "cuda"):
        command = [program("diffusim"), "run", SMALL, "--output", f"{device}.dcd", "--steps", "400", "--every", "100"]
        command += ["--replicas", "2", "--seed", "5", "--device", device]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "cpu.dcd").read_bytes() == (tmp_path / "cuda.dcd").read_bytes()
    command = [program("diffusim"), "run", ALA2 / "ala2.safetensors", "--output", "high.dcd", "--steps", "8"]
    command += ["--every", "4", "--seed", "5", "--device", "cuda", "--matmul-precision", "high"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_openmm(python):
    pytest.importorskip("openmm")
    pytest.importorskip("diffusim.openmm", exc_type=ImportError)
    python(f"""
import numpy as np, openmm, diffusim.openmm as dm
from openmm.unit import *
ends = []
for device in ("cpu", "cuda"):
    sim = dm.simulation({str(ALA2 / "ala2.safetensors")!r}, seed=23, device=device)
    assert sim.integrator.getDevice() == device
    sim.step(20)
    force = openmm.CustomExternalForce("37*(x-0.3)^2")
    force.addParticle(2)
    sim.system.addForce(force)
    sim.context.reinitialize(preserveState=True)
    sim.step(10)
    ends.append(sim.context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(nanometer))
    copy = dm.cast(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(sim.integrator)))
    assert copy.getDevice() == device and copy.getMatmulPrecision() == "highest"
assert (ends[0] == ends[1]).all()
high = dm.simulation({str(ALA2 / "ala2.safetensors")!r}, seed=23, device="cuda", matmulPrecision="high")
copy = dm.cast(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(high.integrator)))
assert copy.getMatmulPrecision() == "high" and high.integrator.getSpring() == sim.integrator.getSpring()
cpu = dm.simulation({str(ALA2 / "ala2.safetensors")!r}, seed=23)
ends = []
for sim in (cpu, high):
    sim.step(5)
    ends.append(sim.context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(nanometer))
assert 0 < np.abs(ends[0] - ends[1]).max() < 1e-8
""")


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_lammps(environment, tmp_path, n_ranks):
    """Two ranks take turns on two GPUs, where there are as many."""
    dumped = []
    for device in ("cpu", "cuda", "cuda matmul high"):
        (tmp_path / "in.test").write_text(f"""
            units real
            atom_style full
            boundary s s s
            read_data {ALA2}/ala2.data
            comm_modify cutoff 12.0
            fix 1 all diffusim 300 48291 model {ALA2}/ala2.safetensors spring auto device {device}
            run 12
            write_dump all custom dump id x y z modify sort id format float %.17g
        """)
        mpirun = [program("mpirun"), "-np", str(n_ranks)] if n_ranks > 1 else []
        command = [*mpirun, program("lmp"), "-in", "in.test"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        dumped.append((tmp_path / "dump").read_text())
    assert dumped[0] == dumped[1]
    cpu, high = (np.loadtxt(text.splitlines()[9:]) for text in dumped[1:])
    assert 0 < np.abs(cpu - high).max() < 1e-7  # angstrom
