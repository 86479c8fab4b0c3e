"""The command line as a user meets it: what it prints, what it writes, and one sentence where something is wrong."""

import json
import os
import pkgutil
import pty
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import safetensors.numpy

from diffusim import Model, Simulation, _library, model_file
from diffusim.cli import main
from diffusim.dcd import DcdWriter

ROOT = Path(__file__).parents[2]
ALA2 = ROOT / "examples" / "ala2"
SMALL = ROOT / "tests" / "fixtures" / "distance_small.safetensors"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs `diffusim ARGUMENTS` in an empty folder; gives exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diffusim", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            main()
        signal.signal(signal.SIGTERM, before)
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


def test_version(command):
    version = re.search(r'^version = "(.*?)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    assert command("--version") == (0, f"diffusim {version}\n", "")


def test_flags_take_no_value(command):
    """As the help shows them."""
    status, out, _ = command("run", "--help")
    assert status == 0 and re.search(r"--resume +Continue an earlier", out)


def test_info_shows_what_the_file_says(command):
    status, out, _ = command("info", SMALL)
    assert status == 0
    for text in ("distance, layers 24-16-20", "310 K", "0.0007 to 0.13 nm", "0.00015 nm²", "CA", "14.007", "sha256"):
        assert text in out


def test_info_advises_on_the_step(command):
    model = ALA2 / "ala2.safetensors"
    status, out, _ = command("info", model, "--advise", "--friction", "500")
    assert status == 0
    curvature = float(re.search(r"stiffest +\S+ /nm² in 64 start frames, (\S+) /nm²", out)[1])
    longest, tenth = map(float, re.search(r"langevin +Δt below (\S+) ps.* fastest period is (\S+) ps", out).groups())
    assert tenth == pytest.approx(np.pi / 10 * longest, rel=0.1)
    assert 0.5 < curvature / Model(model).metadata["largest_curvature"] < 2
    softest = float(re.search(r"too soft +k below (\S+)", out)[1])
    spring, tau = map(float, re.search(r"advice +k = (\S+) /nm², τ = (\S+) nm²", out).groups())
    assert softest == pytest.approx(curvature / 4, rel=0.01) and spring == pytest.approx(curvature / 0.8, rel=0.01)
    assert re.search(r"k / nm⁻² +τ / nm² +τ λ_max +Δt / ps +euler-maruyama", out)
    assert re.search(r" 0.4 +\S+ +\+25.0% +\+0.0% +-4.8%\n", out), out  # 1/(1 - .4/2), exact, (1 - .2)/(1 - .2 + .04)
    assert not re.search(r"unstable *\n *\n", out)
    status, out, err = command("info", model, "--advise", "--spring", str(0.9 * softest))
    assert status == 1 and "is too soft: this model needs more than" in err and "unstable" in out
    assert command("info", model, "--advise", "--spring", str(1.2 * softest))[0] == 0


def test_bound_says_what_a_step_is_good_for(command, tmp_path):
    """Of a harmonic model, whose L is known: the bound at one step, the steps wanted, and a measurement."""
    model = tmp_path / "harmonic.json"
    description = {"format_version": 1, "kind": "harmonic", "n_particles": 2, "length_unit": "nm"}
    model.write_text(json.dumps(description | {"training_temperature": 290, "hyperparameters": {"stiffness": 70.0}}))
    arguments = ["bound", model, "--horizon", "3ps", "--diffusion", "0.02", "--effective-step", "0.001"]
    status, out, _ = command(*arguments, "--score-error", "0.5")
    assert status == 0
    assert "0.06 nm² of D t = 3 ps" in out and "L = 70 /nm², d = 6 coordinates" in out
    assert "60 of τ = 0.001 nm², k = 500 /nm²" in out
    assert "KL ≤ 0.0075 (score) + 1.81 (step) = 1.81" in out  # .06 x .25/2; 4900 x 60 (6e-6 + 420e-9/3)
    assert re.search(r"wanted +1,0[67]\d steps", out) and "total variation ≤ 0.224" in out, out  # 4900 x 6 x .0036/.1
    picture = tmp_path / "kl.png"
    burn = ["--burn-in", "0.1", "--steps", "16", "--paths", "200"]
    status, out, err = command(*arguments, "--reference", model, *burn, "-o", picture)
    assert status == 0, err
    rows = json.loads(picture.with_suffix(".json").read_text())["rows"]
    assert [row["n_steps"] for row in rows] == [1, 2, 4, 8, 16] and picture.stat().st_size > 10_000
    exact = 70 * 6 / 2 * 16 * (0.06 / 16 + np.expm1(-70 * 0.06 / 16) / 70)  # theory (15)
    measured = rows[-1]["total"]
    assert abs(measured["value"] - exact) < 4 * measured["error"] < 0.2 * exact
    assert all(row["total"]["value"] < row["bound_total"] for row in rows)
    flat = tmp_path / "flat.json"
    flat.write_text(json.dumps(description | {"kind": "free", "training_temperature": 290, "hyperparameters": {}}))
    status, _, err = command("bound", flat, "--horizon", "0.1nm2")
    assert status == 1 and "neither states its largest curvature" in err
    soft = ["--spring", "3", "--curvature", "70"]
    status, out, _ = command("bound", flat, "--horizon", "0.1nm2", *soft)
    assert status == 0 and "at this step the bound says nothing about whole paths" in out


def test_doctor_finds_everything(command):
    status, out, _ = command("doctor")
    assert status == 0, out
    assert str(_library.path()) in out
    assert re.search(r"openmm +8\.6\.1 +ok +platforms Reference, CPU", out)
    assert re.search(r"cuda +(cuda:0: |device 'cuda:0' )", out)


def test_doctor_reports_a_broken_library(command, monkeypatch, tmp_path):
    _library.library.cache_clear()
    monkeypatch.setenv(_library.PATH_VARIABLE, str(tmp_path / "gone.so"))
    try:
        status, out, _ = command("doctor")
    finally:
        _library.library.cache_clear()
    assert status == 1
    assert "gone.so does not exist. Install diffusim again" in out


def test_run_writes_a_trajectory_that_other_programs_read(command, tmp_path):
    status, out, err = command("run", SMALL, "-o", "a.dcd", "--steps", 3000, "--every", 500, "--seed", 9)
    assert status == 0, err
    assert "spring k = 3.33e+03 /nm²" in out and "steps/s" in out and "seed 9" in out
    trajectory = mdtraj.load("a.dcd", top="a.pdb")
    assert trajectory.n_frames == 6
    assert [atom.name for atom in trajectory.topology.atoms] == ["N", "CA", "C", "CB", "O"]
    simulation = Simulation(SMALL, seed=9)
    simulation.step(3000)
    np.testing.assert_allclose(trajectory.xyz[-1], simulation.positions[0], atol=1e-6)


@pytest.mark.parametrize("engine", ["core", "openmm"])
def test_a_run_resumes_bit_for_bit(command, tmp_path, engine):
    options = ["--every", 300, "--seed", 4, "--engine", engine, "--spring", 4000]
    assert command("run", SMALL, "-o", "whole.dcd", "--steps", 3000, *options)[0] == 0
    assert command("run", SMALL, "-o", "parts.dcd", "--steps", 1700, *options)[0] == 0
    status, out, err = command("run", SMALL, "-o", "parts.dcd", "--steps", 3000, "--resume")
    assert status == 0, err
    assert "from step 1,700" in out and "seed 4" in out
    whole, parts = (mdtraj.load(f"{name}.dcd", top="whole.pdb").xyz for name in ("whole", "parts"))
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("engine", ["core", "openmm"])
def test_a_time_parallel_run_resumes_bit_for_bit(command, engine):
    options = ["--every", 30, "--seed", 4, "--spring", 4000, "--sampler", "time-parallel", "--window", 40]
    options += ["--engine", engine]
    status, out, err = command("run", SMALL, "-o", "whole.dcd", "--steps", 300, *options, "--tolerance", 1e-5)
    assert status == 0, err
    assert "steps a round" in out and ("scores a step" in out) == (engine == "core")
    assert command("run", SMALL, "-o", "parts.dcd", "--steps", 170, *options, "--tolerance", 1e-5)[0] == 0
    assert command("run", SMALL, "-o", "parts.dcd", "--steps", 300, "--resume")[0] == 0
    whole, parts = (mdtraj.load(f"{name}.dcd", top="whole.pdb").xyz for name in ("whole", "parts"))
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("engine", ["core", "openmm"])
def test_a_run_that_was_interrupted_resumes_bit_for_bit(command, tmp_path, engine):
    """Ctrl-C in a terminal of its own: the kernel's signal to the foreground process group."""
    options = ["--steps", 900_000, "--every", 100_000, "--seed", 6, "--engine", engine, "--spring", 4000]
    own_terminal = (
        "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job inherits that it is ignored
    )
    code = f"{own_terminal}; from diffusim.cli import main; main()"
    arguments = [sys.executable, "-c", code, "run", SMALL, "-o", "cut.dcd", *options]
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        [str(a) for a in arguments], cwd=tmp_path, stdin=terminal, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    while not (Path("cut.dcd").exists() and Path("cut.dcd").stat().st_size > 300):  # has a frame behind its header
        assert process.poll() is None
        time.sleep(0.01)
    os.write(keyboard, b"\x03")
    _, err = process.communicate(timeout=30)
    os.close(keyboard)
    assert process.returncode == 1 and "--resume continues" in err
    step = json.loads(Path("cut.checkpoint").read_bytes().partition(b"\n")[0])["steps"]
    assert 100_000 <= step < 900_000 and f"interrupted at step {step:,}" in err
    status, out, err = command("run", SMALL, "-o", "cut.dcd", "--steps", 900_000, "--resume")
    assert status == 0 and f"from step {step:,}" in out, err
    assert command("run", SMALL, "-o", "whole.dcd", *options)[0] == 0
    assert Path("cut.dcd").read_bytes() == Path("whole.dcd").read_bytes()


def test_a_queue_that_ends_a_run_costs_no_step(command, tmp_path):
    """SIGTERM to a job that a shell started in the background, where Ctrl-C is ignored."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from diffusim.cli import main; main()"
    arguments = [sys.executable, "-c", code, "run", SMALL, "-o", "cut.dcd", "--steps", 90_000_000, "--spring", 4000]
    process = subprocess.Popen([str(a) for a in arguments], cwd=tmp_path, stdout=-3, stderr=-1, text=True)
    while not (Path("cut.dcd").exists() and Path("cut.dcd").stat().st_size > 300):  # has a frame behind its header
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, err = process.communicate(timeout=30)
    step = json.loads(Path("cut.checkpoint").read_bytes().partition(b"\n")[0])["steps"]
    assert process.returncode == 1 and step > 0 and f"interrupted at step {step:,}; the same command with" in err
    assert command("run", SMALL, "-o", "cut.dcd", "--steps", step + 100, "--resume")[0] == 0


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("diffusim.core.Simulation.step", 400),  # the frame is reached, and not yet written
        ("diffusim.dcd.DcdWriter.write", 400),
        ("diffusim.commands.run._Checkpoint.write", 0),  # the first, before any step
        ("os.replace", 0),
    ],
)
def test_an_interrupt_at_any_moment_costs_no_step(command, place, step):
    """Ctrl-C as soon as a function has done its work, and before anyone else knows that it has."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    steps = ["--steps", 1200, "--every", 400, "--seed", 6, "--spring", 4000]
    assert command("run", SMALL, "-o", "whole.dcd", *steps)[0] == 0
    done = pkgutil.resolve_name(place)

    def interrupted(*arguments, **options):
        done(*arguments, **options)
        patch.undo()
        signal.raise_signal(signal.SIGINT)

    patch = pytest.MonkeyPatch()
    patch.setattr(place, interrupted)
    status, _, err = command("run", SMALL, "-o", "cut.dcd", *steps)
    assert status == 1 and f"interrupted at step {step:,}; the same command with --resume continues" in err
    assert json.loads(Path("cut.checkpoint").read_bytes().partition(b"\n")[0])["steps"] == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    status, _, err = command("run", SMALL, "-o", "cut.dcd", "--steps", 1200, "--resume")
    assert status == 0, err
    assert Path("cut.dcd").read_bytes() == Path("whole.dcd").read_bytes()
    assert not [path for path in Path().iterdir() if path.name.startswith(".cut")]


@pytest.mark.parametrize("engine", ["core", "openmm"])
def test_a_full_disk_ends_a_run_in_a_sentence(command, engine):
    """Which continues where there is room again; the limit of a file's size stands in for the disk's."""
    steps = ["--every", 10, "--seed", 6, "--spring", 4000, "--engine", engine, "--steps", 4000]
    with files_of_at_most(20_000):
        status, _, err = command("run", SMALL, "-o", "cut.dcd", *steps)
    assert status == 1
    assert re.search(
        r"cut.dcd and its checkpoint cannot be written, at step [\d,]+: File too large. Make room, and", err
    ), err
    status, out, err = command("run", SMALL, "-o", "cut.dcd", "--steps", 4000, "--resume")
    assert status == 0 and "from step 2,200" in out, (out, err)
    assert command("run", SMALL, "-o", "whole.dcd", *steps)[0] == 0
    assert Path("cut.dcd").read_bytes() == Path("whole.dcd").read_bytes()


@pytest.mark.parametrize("name", ["a.npz", "a.dcd"])
def test_what_sample_cannot_write_is_not_left_behind(command, name):
    with files_of_at_most(10_000):
        status, _, err = command("sample", SMALL, "-o", name, "-n", 1000, "--steps", 8)
    assert status == 1 and f"{name} cannot be written: File too large." in err
    assert not Path(name).exists()


@contextmanager
def files_of_at_most(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_place_that_cannot_be_written_is_named(command):
    status, _, err = command("run", SMALL, "-o", "/proc/x.dcd")
    assert status == 1 and re.fullmatch("diffusim: /proc/x.pdb: (No such file or directory|Permission denied)\n", err)


def test_help_shows_defaults_and_whole_paragraphs(command):
    status, out, _ = command("run", "--help")
    text = " ".join(out.replace("│", " ").split())
    assert status == 0 and "[default: the training temperature]" in text and "[default: trajectory.dcd]" in text
    assert "With several replicas each saved step is that many frames in a row. A checkpoint" in text


def test_force_starts_anew(command):
    """What the earlier run left does not make its way into the new one, also where that ends at once."""
    assert command("run", SMALL, "-o", "a.dcd", "--steps", 400, "--every", 200, "--seed", 4)[0] == 0
    status, _, err = command("run", SMALL, "-o", "a.dcd", "--steps", 400, "--spring", 9, "--force")
    assert status == 1 and "too soft" in err
    assert command("run", SMALL, "-o", "a.dcd", "--resume", "--steps", 600)[0] == 0  # nothing was replaced
    assert command("run", SMALL, "-o", "a.dcd", "--steps", 300, "--seed", 5, "--force")[0] == 0
    status, out, err = command("run", SMALL, "-o", "a.dcd", "--steps", 600, "--resume")
    assert status == 0 and "from step 300" in out and "seed 5" in out, err


def test_run_takes_every_adapter(command):
    steps = ("--steps", 300, "--every", 100, "--seed", 5, "--force")
    tuned = ("--adapter", "mala", "--target-acceptance", 0.6, "--burn-in", 200, "--replicas", 2, "--friction", 10)
    said = set()
    for engine in ("core", "openmm"):
        status, out, _ = command("run", SMALL, *steps, *tuned, "--engine", engine)
        assert status == 0
        said.add(re.search(r"acceptance 0\.\d+ +step [\d.]+ × the given one", out).group())
    assert len(said) == 1
    inertial = ("--adapter", "langevin", "--friction", 10, "--time-step", 0.0003)
    said = set()
    for engine in ("core", "openmm"):
        status, out, _ = command("run", SMALL, *steps, *inertial, "--engine", engine)
        assert status == 0
        said.add(re.search(r"kinetic temperature of the last frame [\d.]+ K, which varies by 37 %", out).group())
    assert len(said) == 1
    status, out, _ = command("run", SMALL, *steps, "--adapter", "mala", "--engine", "openmm")
    assert status == 0 and re.search(r"acceptance 0\.\d+", out), out
    status, _, err = command("run", SMALL, *steps, "--adapter", "langevin", "--friction", 10)
    assert status == 1 and "give the time step (ps)" in err
    for engine in ("core", "openmm"):
        status, _, err = command("run", SMALL, *steps, "--engine", engine, "--burn-in", 200)
        assert status == 1 and "no target acceptance" in err


def test_a_run_shorter_than_the_default_interval_has_a_frame(command):
    assert command("run", SMALL, "-o", "a.dcd", "--steps", 30)[0] == 0
    assert mdtraj.load("a.dcd", top="a.pdb").n_frames == 1


def test_the_header_of_a_trajectory_does_not_overflow(tmp_path):
    writer = DcdWriter(tmp_path / "a.dcd", 2, 5_000_000_000, 0.002)
    for _ in range(3):
        writer.write(np.full((4, 2, 3), 0.2))
    writer.close()
    numbers = struct.unpack("<3i", (tmp_path / "a.dcd").read_bytes()[8:20])
    assert numbers == (12, 1, 1)
    with mdtraj.open(str(tmp_path / "a.dcd")) as file:
        assert len(file.read()[0]) == 12
    writer = DcdWriter(tmp_path / "b.dcd", 2, 2_000_000_000, 0.002)
    writer.write(np.full((4, 2, 3), 0.2))
    writer.close()
    assert struct.unpack("<i", (tmp_path / "b.dcd").read_bytes()[20:24]) == (2**31 - 1,)


@pytest.mark.parametrize("engine", ["core", "openmm"])
def test_another_temperature_is_pointed_out(command, engine):
    status, out, err = command("run", SMALL, "--steps", 30, "--temperature", 400, "--engine", engine)
    assert status == 0 and "trained at 310 K, run at 400 K" in out and not err
    status, out, _ = command("run", SMALL, "--steps", 30, "--temperature", 310, "--engine", engine, "--force")
    assert status == 0 and "warning" not in out


@pytest.mark.parametrize("engine", ["core", "openmm"])
def test_replicas_are_frames_in_a_row(command, engine):
    options = ["--steps", 400, "--every", 200, "--replicas", 3, "--seed", 2, "--friction", 7, "--engine", engine]
    assert command("run", SMALL, "-o", "r.dcd", *options)[0] == 0
    trajectory = mdtraj.load("r.dcd", top="r.pdb")
    simulation = Simulation(SMALL, seed=2, n_replicas=3, friction_rate=7)
    simulation.step(200)
    assert trajectory.n_frames == 6
    np.testing.assert_allclose(trajectory.xyz[:3], simulation.positions, atol=1e-6)


@pytest.mark.parametrize("engine", ["core", "openmm"])
def test_a_run_that_fails_leaves_a_rescue_file(command, engine):
    header = replace(model_file.read(SMALL), largest_curvature=None)  # so that a step too coarse is not refused
    model_file.write("soft.safetensors", header, safetensors.numpy.load_file(SMALL))
    options = ["--spring", 300, "--steps", 100_000, "--every", 10, "--seed", 3]
    status, _, err = command("run", "soft.safetensors", "-o", "hot.dcd", "--engine", engine, *options)
    assert status == 1
    assert "at step" in err and "hot.rescue.npz" in err and "Traceback" not in err
    with np.load("hot.rescue.npz") as rescue:
        assert np.isfinite(rescue["positions"]).all() and rescue["positions"].shape == (1, 5, 3)
        assert rescue["step"] > 0


def test_report_compares_with_snapshots(command):
    status, out, err = command(
        "report", ALA2 / "ala2.safetensors", "--data", ALA2 / "snapshots.npz", "--topology", ALA2 / "ala2-heavy.pdb",
        "--replicas", 200, "--steps", 1100, "--independent", 300, "--diffusion", 0.37,
    )  # fmt: skip
    assert status == 0, err
    assert "Ramachandran JS (60×60)" in out and "floor" in out and "PMF error" in out
    numbers = json.loads(Path("report.json").read_text())
    assert Path("report.png").stat().st_size > 50_000
    assert numbers["n_frames"] == 200 * 99
    assert numbers["js"] < 0.08  # started from snapshots; the floor of so many frames is 0.01
    assert numbers["bond_mean_error_max"] < 0.005
    residuals = numbers["fokker_planck"]
    assert len(residuals) == 8 and 0.00035 < residuals[0]["noise_level"] < 0.0004 and residuals[0]["value"] < 0.01
    assert len(numbers["slow_modes"]["timescales"]) == len(numbers["slow_modes"]["lags"])
    path = numbers["paths"]
    assert "longest correlation time" in out and path["ps_per_time_unit"] == pytest.approx(1 / 0.37)
    tau = Model(ALA2 / "ala2.safetensors").metadata["recommended_effective_step"]
    for memory in path["observables"].values():
        assert memory["lags"][1] == pytest.approx(10 * tau) and memory["autocorrelation"][0] == pytest.approx(1)
    assert path["observables"]["ψ N–CA–C–O"]["effective_frames"] < 400  # the starts, hardly moved
    assert len(path["first_passages"]["φ C–N–CA–CB"]["cores"]) == 2


def test_a_report_can_be_one_page(command):
    model = ALA2 / "ala2.safetensors"
    data = ["--data", ALA2 / "snapshots.npz", "--independent", 0]  # which names no atoms
    status, out, err = command("report", model, *data, "--replicas", 50, "--steps", 400, "-o", "a.html")
    assert status == 0 and "snapshots.npz names no atoms: taken for the model's, in its order" in out, err
    page = Path("a.html").read_text()
    assert "data:image/png;base64," in page and "Ramachandran JS" in page and "<script" not in page
    assert json.loads(Path("a.json").read_text())["iid"] is None


def test_report_judges_a_trajectory(command):
    model = ALA2 / "ala2.safetensors"
    assert command("run", model, "-o", "a.dcd", "--steps", 300, "--every", 100, "--replicas", 300, "--seed", 1)[0] == 0
    data = ["--data", ALA2 / "snapshots.npz", "--topology", ALA2 / "ala2-heavy.pdb"]
    status, out, err = command("report", model, *data, "--trajectory", "a.dcd", "--skip", 300, "--replicas", 300)
    assert status == 0, err
    assert "600 frames" in out
    assert json.loads(Path("report.json").read_text())["paths"] is None  # two frames are no path
    status, out, err = command(
        "report", model, *data, "--trajectory", "a.dcd", "--replicas", 30, "--frame-time", 2.5, "--independent", 0
    )
    assert status == 0, err
    assert "ps" in out and json.loads(Path("report.json").read_text())["paths"]["time_unit"] == "ps"


def test_mistakes_end_in_one_sentence(command, tmp_path):
    shutil.copy(SMALL, "m.safetensors")
    Path("there.dcd").write_bytes(b"")
    Path("odd.checkpoint").write_bytes(b"odd")
    Path("odd.dcd").write_bytes(b"")
    Path("folder.dcd").mkdir()
    data = ["--data", ALA2 / "snapshots.npz", "--topology", ALA2 / "ala2-heavy.pdb"]
    for arguments, sentence in (
        (["bound", SMALL, "--horizon", "100ps"], "--horizon 100ps is physical time and needs --diffusion"),
        (["bound", SMALL, "--horizon", "-3nm2"], "--horizon is -3nm2; expected a positive length"),
        (["bound", SMALL, "--horizon", "3 parsec"], "expected a number and its unit"),
        (["bound", SMALL, "--horizon", "3nm2", "--diffusion", "-2"], "--diffusion is -2; expected a positive number"),
        (["bound", SMALL, "--horizon", "3nm2", "--score-error", "-2"], "--score-error is -2; expected 0 or more"),
        (["bound", SMALL, "--horizon", "3nm2", "--spring", "9", "--effective-step", "1"], "give one of them"),
        (["bound", SMALL, "--horizon", "3nm2", "-o", "a.png"], "give a truth with --system or --reference"),
        (["bound", SMALL, "--horizon", "3nm2", "--system", SMALL, "--reference", SMALL], "are two truths"),
        (["bound", SMALL, "--horizon", "3nm2", "--system", "gone.xml"], "there is no file gone.xml"),
        (["bound", SMALL, "--horizon", "3nm2", "--system", ALA2 / "ala2.pdb"], "is no System written by OpenMM"),
        (["bound", ALA2 / "ala2.pdb", "--horizon", "3nm2"], "is not a readable safetensors file"),
        (["info", "gone.safetensors"], "gone.safetensors"),
        (["info", SMALL, "--spring", "3"], "--spring is for --advise"),
        (["info", SMALL, "--advise", "--spring", "-3"], "--spring is -3; expected a positive number"),
        (["info", SMALL, "--advise", "--friction", "3", "--diffusion", "2"], "give one of them"),
        (["info", SMALL, "--advise", "--data", "gone.npz"], "there is no file gone.npz"),
        (["info", ALA2 / "ala2.pdb"], "ala2.pdb is not a readable safetensors file"),
        (["run", "m.safetensors", "-o", "a.xtc"], "ends in .dcd"),
        (["run", "m.safetensors", "-o", "no/a.dcd"], "no directory no"),
        (["run", "m.safetensors", "-o", "there.dcd"], "there.dcd exists"),
        (["run", "m.safetensors", "-o", "a.dcd", "--resume"], "there is no a.dcd"),
        (["run", "m.safetensors", "-o", "odd.dcd", "--resume"], "no checkpoint of 'diffusim run'"),
        (["run", "m.safetensors", "-o", "folder.dcd", "--force"], "folder.dcd is a directory"),
        (["run", "m.safetensors", "-o", "a.dcd", "--every", 99999999999], "--every is 99,999,999,999, more than"),
        (["run", "m.safetensors", "-o", "a.dcd", "--spring", 9], "too soft"),
        (["run", "m.safetensors", "-o", "a.dcd", "--engine", "openmm", "--spring", 9], "too soft"),
        (["run", "m.safetensors", "-o", "a.dcd", "--spring", 0], "--spring is 0.0; expected a positive number"),
        (["run", "m.safetensors", "--engine", "openmm", "--spring", 9, "--time-step", 2], "give one of them"),
        (["run", "m.safetensors", "-o", "a.dcd", "--time-step", 0.1], "needs a friction rate"),
        (["run", "m.safetensors", "-o", "a.dcd", "--sampler", "time-parallel", "--adapter", "mala"], "adapter Mala"),
        (["run", "m.safetensors", "-o", "a.dcd", "--window", "40"], "window is 40 frames and the sampler is"),
        (["run", "m.safetensors", "--engine", "openmm", "--window", "40"], "window is 40 frames and the sampler"),
        (["report", "m.safetensors", *data], "5"),
        (["report", "m.safetensors", "--data", "gone.npz"], "there is no file gone.npz"),
        (["report", "m.safetensors", *data, "-o", "a.jpg"], "ends in .png or .html"),
        (["report", "m.safetensors", *data, "--friction", 0], "--friction is 0; expected a positive number"),
        (["report", "m.safetensors", *data, "--friction", 3, "--diffusion", 2], "give one of them"),
        (["report", "m.safetensors", *data, "--frame-time", 2], "--frame-time belongs to --trajectory"),
        (["report", "m.safetensors", *data, "--trajectory", "a.dcd", "--diffusion", 2], "say --frame-time"),
    ):
        status, _, err = command(*arguments)
        assert status == 1, arguments
        assert sentence in err and err.startswith("diffusim: ") and "Traceback" not in err, err


def test_a_resumed_run_refuses_other_settings(command):
    assert command("run", SMALL, "-o", "a.dcd", "--steps", 200, "--every", 100, "--seed", 3)[0] == 0
    status, _, err = command("run", SMALL, "-o", "a.dcd", "--steps", 400, "--seed", 5, "--resume")
    assert status == 1 and "--seed is 5, and was 3 before" in err
    status, _, err = command("run", SMALL, "-o", "a.dcd", "--steps", 200, "--resume")
    assert status == 1 and "200 steps already" in err


@pytest.mark.parametrize("engine", ["core", "openmm"])
def test_a_resumed_run_refuses_another_model(command, engine):
    weights = safetensors.numpy.load_file(SMALL)
    weights["layers.0.bias"] = weights["layers.0.bias"] + np.float32(0.01)
    model_file.write("other.safetensors", model_file.read(SMALL), weights)
    assert command("run", SMALL, "-o", "a.dcd", "--steps", 200, "--engine", engine)[0] == 0
    status, _, err = command("run", "other.safetensors", "-o", "a.dcd", "--steps", 400, "--resume")
    assert status == 1 and "other.safetensors is not the model of the earlier run" in err


@pytest.mark.parametrize("suffix", [".npz", ".dcd", ".xtc"])
def test_sample_writes_the_frames_of_its_seed(command, tmp_path, suffix):
    arguments = ("sample", SMALL, "-n", 70, "--seed", 5, "--steps", 4, "--corrector-steps", 3, "-o", f"frames{suffix}")
    status, out, _ = command(*arguments)
    assert status == 0 and "70 frames" in out and "seed 5" in out
    expected = Model(SMALL).sample(70, 5, 4, corrector_steps=3)
    if suffix == ".npz":
        found, tolerance = np.load(tmp_path / "frames.npz")["positions"], 1e-7
    else:
        found = mdtraj.load(tmp_path / f"frames{suffix}", top=tmp_path / "frames.pdb").xyz
        tolerance = 1e-6 if suffix == ".dcd" else 6e-4  # XTC rounds
    assert np.allclose(found, expected, atol=tolerance)
    status, _, err = command(*arguments)
    assert status == 1 and "--force" in err
    assert command(*arguments, "--force")[0] == 0


def test_sample_says_what_is_wrong(command):
    for words, arguments in {
        "ends in .npz, .dcd or .xtc": ("-o", "frames.pdb"),
        "start level 3 nm is outside": ("--start-level", 3),
        "there is no directory": ("-o", "nowhere/frames.npz"),
    }.items():
        status, _, err = command("sample", SMALL, *arguments)
        assert status == 1 and words in err and err.count("\n") == 1
