"""The committed PTX is what the kernels compile to, keeps every rounding, and fits the register files of real GPUs."""

import re
import subprocess
import sys
from pathlib import Path

import nvidia
import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
PTX = KERNELS / "diffusim.ptx"
MAX_REGISTERS = 128  # of a thread, so that a block of 512 starts
MAX_SPILL = 64  # bytes of a thread


def entries() -> set[str]:
    return set(re.findall(r"\.entry (\w+)\(", PTX.read_text()))


def test_the_committed_ptx_is_that_of_the_kernels():
    """NVRTC 12.0.140 gives the same text everywhere."""
    done = subprocess.run([sys.executable, KERNELS / "make_ptx.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_ptx_is_for_every_driver_from_cuda_12_0_and_every_gpu_from_volta():
    text = PTX.read_text()
    assert ".version 8.0\n" in text and ".target sm_70\n" in text
    assert entries() == {
        "advance_analytic",
        "advance_distance_1",
        "advance_distance_8",
        "advance_distance_32",
        "advance_distance_high_8",
        "advance_distance_high_32",
        "evaluate_analytic",
        "evaluate_distance_1",
        "evaluate_distance_8",
        "evaluate_distance_32",
        "step_begin",
        "step_begin_blend",
        "neighbor_boxes",
        "neighbor_list",
        "message_passing_forward",
        "message_passing_backward",
        "step_score",
        "step_score_blend",
        "step_move",
        "step_move_blend",
        "step_settle",
        "step_settle_blend",
        "evaluation_begin",
        "evaluation_end",
        "evaluation_blend",
    }


def test_no_rounding_is_left_to_the_driver():
    """It may fuse a product and a sum that name no rounding mode, and flush subnormal numbers where told to."""
    text = PTX.read_text()
    assert re.search(r"\bmul\.rn\.f32", text)
    assert not re.findall(r"\b(?:mul|add|sub|fma|div|sqrt|rcp)\.(?:approx\.|full\.|ftz\.|sat\.)*f(?:32|64)\b", text)
    assert ".ftz" not in text and ".approx" not in text


def test_tensor_cores_are_used_where_they_were_asked_for():
    """They round sums as each GPU does: by matmul_precision "high" only, in kernels of that name."""
    kernels = {part.split("(")[0]: part for part in PTX.read_text().split(".entry ")[1:]}
    using = {name: set(re.findall(r"mma\.sync\S+", text)) for name, text in kernels.items() if "mma." in text}
    shapes = {"advance_distance_high_8": "m32n8k16", "advance_distance_high_32": "m16n16k16"}
    assert using == {
        name: {f"mma.sync.aligned.{layout}.row.{shape}.f32.f32" for layout in ("row", "col")}
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_registers_and_spills(architecture, tmp_path, record_property):
    [ptxas] = [p for root in nvidia.__path__ for p in Path(root).glob("*/bin/ptxas")]
    command = [ptxas, "--verbose", f"--gpu-name={architecture}", PTX, "--output-file", tmp_path / "cubin"]
    report = subprocess.run(command, capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    found = {}
    # The report names a kernel, then, perhaps after functions that it calls, what it uses.
    for part in report.stderr.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", part)]
        [registers] = re.findall(r"Used (\d+) registers", part)
        found[name] = (int(registers), max(spills, default=0))
        record_property(f"{architecture} {name}", found[name])
    print(architecture, found)
    assert set(found) == entries()
    for name, (registers, spill) in found.items():
        assert registers <= MAX_REGISTERS and spill <= MAX_SPILL, (
            f"{name}: {registers} registers, {spill} bytes spilled"
        )
