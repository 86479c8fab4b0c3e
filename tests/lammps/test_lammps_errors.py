"""What a user of fix diffusim and pair_style diffusim is told when something is wrong: one line, and what to do."""

import re

import lammps_runs as lr
import numpy as np
import pytest

import diffusim
from diffusim.lammps import write_data

FIX = f"fix 1 all diffusim 331.0 7 model {lr.NETWORK} spring auto\n"


@pytest.fixture
def data(tmp_path):
    """The network's molecule as net.data."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK))
    return tmp_path


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("fix 1 all diffusim 331.0", ["a temperature", "a seed"]),
        ("fix 1 all diffusim 331.0 0 model M", ["seed is 0"]),
        ("fix 1 all diffusim 331.0 7 spring auto", ["no model was given"]),
        ("fix 1 all diffusim 331.0 7 model", ["keyword model needs a value"]),
        ("fix 1 all diffusim 331.0 7 model nowhere.safetensors", ["cannot read", "nowhere.safetensors"]),
        ("fix 1 all diffusim 331.0 7 model net.data", ["net.data is not a readable safetensors file"]),
        ("fix 1 all diffusim 331.0 7 model M gamma 0.1", ["keyword 'gamma' is not known", "friction, drag"]),
        ("fix 1 all diffusim 331.0 7 model M adapter rk4", ["adapter 'rk4'", "lm", "em"]),
        ("fix 1 all diffusim 331.0 7 model M spring -3", ["spring is -3", "positive"]),
        ("fix 1 all diffusim 331.0 7 model M spring auto effective_step 0.1", ["both 'spring auto'"]),
        ("fix 1 all diffusim 331.0 7 model M spring 3 effective_step 0.1", ["more than one of spring"]),
        ("fix 1 all diffusim 331.0 7 model M friction 3 drag 0.1", ["more than one of friction_rate"]),
        ("fix 1 all diffusim 0.0 7 model M spring auto", ["temperature is 0.0"]),
        ("fix 1 all diffusim 331.0 331.0 100.0 7", ["seed is '331.0'", "fix ID group diffusim temp seed model FILE"]),
        ("fix 1 all diffusim hot 7 model M", ["temperature is 'hot'", "fix ID group diffusim temp seed model FILE"]),
        ("fix 1 all diffusim 331.0 7 model M friction 0.0001", ["too long", "recommends", "'spring auto'"]),
        (
            "fix 1 all diffusim 331.0 7 model M matmul tf32",
            ["matmul_precision 'tf32' is unknown", "'highest' or 'high'"],
        ),
        ("fix 1 all diffusim 331.0 7 model M spring auto matmul high", ["tensor cores of GPUs", "device is 'auto'"]),
        ("fix 1 all diffusim 331.0 7 model M types C N O", ["particle 0 is N (nitrogen)", "atom 1", "carbon"]),
    ],
)
def test_commands(data, command, words):
    command = command.replace("model M", f"model {lr.NETWORK}")
    error = lr.error_of(data, lr.header("net.data") + command + "\nrun 5\n")
    assert error.startswith("ERROR: fix diffusim: "), error
    for word in words:
        assert word in error


def test_atoms_in_another_order(data):
    text = (data / "net.data").read_text().splitlines()
    atoms = text.index("Atoms # full") + 2
    first, second = text[atoms].split(), text[atoms + 1].split()
    text[atoms], text[atoms + 1] = " ".join(["2", *first[1:]]), " ".join(["1", *second[1:]])
    (data / "net.data").write_text("\n".join(text) + "\n")
    error = lr.error_of(data, lr.header("net.data") + FIX + "run 5\n")
    assert "particle 0 is N (nitrogen, 14.007 amu)" in error and "weighs 12.011" in error
    assert "Here particle 0 is atom 1" in error and "With 'types'" in error


def test_units_without_a_size(data):
    for style in (FIX, "pair_style diffusim\n"):
        error = lr.error_of(data, lr.header("net.data", "lj") + style)
        assert "diffusim: units lj have no size" in error and "'scale LENGTH ENERGY MASS'" in error
    error = lr.error_of(data, lr.header("net.data", "lj") + FIX.strip() + " scale 0.31 -0.85 14.3\n")
    assert "scale has -0.85; expected positive numbers of nm, kJ/mol and amu" in error
    error = lr.error_of(data, lr.header("net.data", "real") + FIX.strip() + " scale 0.31 0.85 14.3\n")
    assert "units real have a size already" in error
    error = lr.error_of(data, lr.header("net.data", "cgs") + FIX)
    assert "units cgs are not supported; use units real" in error


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("group some id 1 2 3\nfix 1 some", ["group 'some' has 3 atoms", "molecules of 5"]),
        ("fix 2 all nve\nfix 1 all", ["fix 2 (nve) moves or constrains"]),
        ("fix 2 all rigid single\nfix 1 all", ["fix 2 (rigid) moves or constrains"]),
        ("fix 2 all press/berendsen iso 0 0 100\nfix 1 all", ["fix 2 (press/berendsen) changes the box"]),
        ("run_style respa 2 2\nfix 1 all", ["run_style respa is not supported"]),
        ("fix 2 all langevin 331 331 100 4711\nfix 1 all", ["fix 2 (langevin) is a heat bath", "remove it"]),
        ("fix 2 all viscous 0.3\nfix 1 all", ["fix 2 (viscous) is a heat bath or a drag"]),
        ("fix 2 all temp/berendsen 331 331 100\nfix 1 all", ["fix 2 (temp/berendsen) is a heat bath"]),
        ("fix 2 all temp/rescale 1 331 331 0.02 1.0\nfix 1 all", ["fix 2 (temp/rescale) is a heat bath"]),
        ("fix 2 all temp/csvr 331 331 100 4711\nfix 1 all", ["fix 2 (temp/csvr) is a heat bath"]),
        ("fix 2 all heat 1 0.3\nfix 1 all", ["fix 2 (heat) is a heat bath"]),
        ("region r block -9 9 -9 9 -9 9\ngroup g dynamic all region r every 1\nfix 1 g", ["group 'g' is dynamic"]),
    ],
)
def test_runs_that_cannot_be(data, lines, words):
    header = lr.header("net.data", boundary="p p p" if "press" in lines else "s s s")
    before, group = lines.rsplit("fix 1 ", 1)
    error = lr.error_of(data, header + before + FIX.replace(" all ", f" {group} ") + "run 5\n")
    for word in words:
        assert word in error


@pytest.mark.parametrize(
    "trial", ["gcmc 10 5 0 1 4321 300 -3 0.5", "widom 10 3 1 4321 300", "atom/swap 10 3 4321 300 ke no types 1 2"]
)
def test_trial_moves(data, trial):
    error = lr.error_of(data, lr.header("net.data", boundary="p p p") + FIX + f"fix 2 all {trial}\nrun 5\n")
    assert f"fix 2 ({trial.split()[0]}) needs energies of trial moves" in error


def test_shake(data):
    header = lr.header("net.data").replace(
        "read_data net.data", "bond_style harmonic\nread_data net.data extra/bond/types 1"
    )
    shake = "bond_coeff 1 10 1.1\nfix 2 all shake 1e-4 20 0 m 12.0\n"
    assert "fix 2 (shake) moves or constrains" in lr.error_of(data, header + shake + FIX + "run 5\n")


def test_minimize(data):
    error = lr.error_of(data, lr.header("net.data") + FIX + "minimize 0 1e-3 10 10\n")
    assert "minimize" in error and "pair_style diffusim" in error


@pytest.mark.parametrize("n_models", [1, 2])
def test_twice_the_learned_force(data, n_models):
    pair = f"pair_style diffusim\npair_coeff * * {lr.NETWORK} N C O\n"
    if n_models == 2:
        pair = "pair_style hybrid/overlay diffusim diffusim\n" + "".join(
            f"pair_coeff * * diffusim {i} {lr.NETWORK} N C O\n" for i in (1, 2)
        )
    error = lr.error_of(data, lr.header("net.data") + pair + FIX + "run 5\n")
    assert "count twice" in error


def test_molecules_of_unequal_size(tmp_path):
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK), n_molecules=2)
    error = lr.error_of(tmp_path, lr.header("net.data") + "set atom 5 mol 2\n" + FIX + "run 5\n")
    assert "molecule 1 has 4 atoms" in error and "has 5" in error


def test_two_molecules_with_one_id(tmp_path):
    """They would be told apart by nothing; 0 is LAMMPS's way of saying that atoms have no molecule IDs."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK), n_molecules=2)
    error = lr.error_of(tmp_path, lr.header("net.data") + "set group all mol 3\n" + FIX + "run 5\n")
    assert "molecule 3 has 10 atoms" in error and "a molecule ID of its own" in error
    lr.run(tmp_path, lr.header("net.data") + "set group all mol 0\n" + FIX + "run 5\n")


def test_a_frame_that_one_rank_refuses_ends_the_run_on_all(tmp_path):
    """The second molecule is torn, which only the rank that moves it can know; the message names it."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK), n_molecules=2)
    torn = "group end id 10\ndisplace_atoms end move 5 0 0\n"
    for n_ranks in (1, 2):
        error = lr.error_of(tmp_path, lr.header("net.data") + FIX + torn + "run 5\n", n_ranks)
        assert "does not know this frame" in error and "(replica 1)" in error and "replicas the molecules" in error


@pytest.mark.parametrize("before", ["", FIX + "run 5\nunfix 1\n"])
def test_a_fix_that_was_never_set_up(data, before):
    script = lr.header("net.data") + "fix 2 all nve\nrun 5\nunfix 2\n" + before + FIX + "run 5 pre no\n"
    error = lr.error_of(data, script)
    assert "defined after the last run was set up" in error and "'pre no'" in error


def test_outputs_between_runs_notice_atoms_that_are_gone(data):
    lines = 'run 5\ndelete_atoms group all compress no\nprint "$(f_1)"\n'
    error = lr.error_of(data, lr.header("net.data") + FIX + lines)
    assert "changed since the run was set up: there were 5, now there are 0" in error


def test_lost_atoms(data):
    """LAMMPS may be told to ignore them; the model cannot."""
    lines = "thermo_modify lost ignore\nfix 2 all addforce 30 0 0\nrun 5000\n"
    error = lr.error_of(data, lr.header("net.data", boundary="f f f") + FIX + lines)
    assert "changed since the run was set up: there were 5, now there are" in error


@pytest.mark.parametrize("style", ["fix", "pair_style"])
def test_molecule_split_by_the_box(data, style):
    split = "displace_atoms all move 9 0 0\nset group all image 0 0 0\nset atom 1 image 1 0 0\n"
    pair = f"pair_style diffusim\npair_coeff * * {lr.NETWORK} N C O\nfix 1 all nve\n"
    pair = pair.replace("N C O", " ".join(write_data(data / "net.data", diffusim.Model(lr.NETWORK))))
    header = lr.header("net.data", boundary="p p p")
    error = lr.error_of(data, header + split + (FIX if style == "fix" else pair) + "run 5\n")
    assert error.startswith(f"ERROR: {style} diffusim: atoms 1 and 2"), error
    assert "the box splits the molecule" in error and "image flags" in error


def test_atoms_that_come_and_go(data):
    """A fix that inserts atoms is noticed at the next rebuild of the neighbour list."""
    lines = "region all block -9 9 -9 9 -9 9\nfix 2 all deposit 5 3 10 991 region all near 0.5\n"
    error = lr.error_of(data, lr.header("net.data", boundary="f f f") + FIX + lines + "run 100\n")
    assert "changed since the run was set up: there were 5, now there are 6" in error


def test_score_that_is_not_finite_keeps_the_last_good_frame(data):
    """The run ends with the model's own explanation."""
    lines = "group one id 1\nfix 2 one addforce 9000.0 0 0\n"
    error = lr.error_of(data, lr.header("net.data") + FIX + lines + "run 500\n")
    assert "last good frame" in error


def test_pair_style(data):
    header = lr.header("net.data")
    assert "takes no arguments" in lr.error_of(data, header + "pair_style diffusim 5.0\n")
    assert "an element, or NULL" in lr.error_of(data, header + f"pair_style diffusim\npair_coeff * * {lr.NETWORK} C\n")
    wrong = f"pair_style diffusim\npair_coeff * * {lr.NETWORK} C N O\nfix 1 all nve\nrun 5\n"
    error = lr.error_of(data, header + wrong)
    assert "pair_style diffusim: " in error and "particle 0 is N (nitrogen)" in error


def test_another_temperature_is_a_warning(data):
    output = lr.run(data, lr.header("net.data") + FIX + "run 1\n")
    assert "WARNING: fix diffusim: the model was trained at 310 K and runs at 331 K" in output
    output = lr.run(data, lr.header("net.data") + FIX.replace("331", "310") + "run 1\n")
    assert "trained at" not in output


def test_a_time_step_that_is_not_lammps_s_is_a_warning(data):
    """The number it names silences it."""
    fix = FIX.replace("spring auto", "spring auto friction 0.02")
    output = lr.run(data, lr.header("net.data") + fix + "run 1\n")
    advice = next(line for line in output.splitlines() if "a step lasts" in line and "WARNING" in line)
    timestep = advice.split("'timestep ")[1].split("'")[0]
    assert float(timestep) == pytest.approx(0.015 / (lr.BOLTZMANN * 310 / (12.011 * 20) * 100 / 1000), rel=1e-5)
    assert "WARNING: fix diffusim: a step lasts" not in lr.run(
        data, lr.header("net.data") + f"timestep {timestep}\n" + fix + "run 1\n"
    )
    assert np.isfinite(float(timestep))


def test_advice_on_the_step_is_in_the_units_of_the_script(data):
    """As it is written in the error, it can go into the script."""
    model = diffusim.Model(lr.NETWORK)
    spring = 0.5 / model.metadata["recommended_effective_step"] / 100  # per square Angstrom
    soft = f"fix 1 all diffusim 331.0 7 model {lr.NETWORK} "
    error = lr.error_of(data, lr.header("net.data") + soft + "spring 3.1\nrun 5\n")
    assert f". Use 'spring auto', which is {spring:.6g} /Angstrom^2" in error
    error = lr.error_of(data, lr.header("net.data") + soft + "friction 0.0002\nrun 5\n")
    advice = re.search(r"Use '(timestep \S+)' or 'spring auto', which is (\S+) /Angstrom\^2", error)
    assert advice[2] == f"{spring:.6g}"
    output = lr.run(data, lr.header("net.data") + advice[1] + "\n" + soft + "friction 0.0002\nrun 5\n")
    assert f"spring {spring:.4g}"[:-1] in output and "/Angstrom^2, effective step" in output
    assert f"a step lasts {advice[1].split()[1]} fs" in output
    error = lr.error_of(
        data, lr.header("net.data") + "timestep 400\n" + soft + "friction 0.0002 adapter langevin\nrun 5\n"
    )
    assert error.split(" (src/")[0].endswith("In units real 1 ps is 1000 fs") and "'spring auto'" not in error
