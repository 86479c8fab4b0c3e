"""A bias is never silently dropped: whatever puts forces on the atoms acts, step by step, or is refused.

Runs are compared with steps of the core under the forces that LAMMPS dumps, to their rounding.
"""

import lammps_runs as lr
import numpy as np
import pytest

import diffusim
from diffusim.lammps import write_data

FIX = f"fix 1 all diffusim 331.0 48291 model {lr.NETWORK} spring 40\n"
KCAL_PER_ANGSTROM = 4.184 / 0.1  # kJ/(mol nm)

COLVARS = """colvar {
name d
distance {
group1 {
atomNumbers 1
}
group2 {
atomNumbers 5
}
}
}
harmonic {
colvars d
centers 2.9
forceConstant 0.9
}
"""
FORCES = {
    "addforce": "fix 2 all addforce 0.3 -0.2 0.7\n",
    "addforce every": "fix 2 all addforce 0.3 -0.2 0.7 every 3\n",
    "spring/self": "fix 2 all spring/self 1.3\n",
    "spring": "fix 2 all spring tether 1.3 0.4 0.2 0.1 0.9\n",
    "restrain": "fix 2 all restrain dihedral 1 2 3 5 2.5 2.5 70.0\n",
    "indent": "fix 2 all indent 3.0 sphere 0.0 0.0 0.0 2.5\n",
    "wall": "fix 2 all wall/harmonic xlo -1.0 1.7 0.4 2.5\n",
    "efield": "set atom * charge 0.3\nfix 2 all efield 0.7 0.0 -0.4\n",
    "colvars": "fix 2 all colvars cv.inp output out\n",
    "variable": 'variable f equal "0.5*cos(0.2*step)"\nfix 2 all addforce v_f 0.1 0.0\n',
    "two of them": "fix 2 all addforce 0.3 -0.2 0.7\nfix 3 all spring/self 1.3\n",
    "pair": "pair_style soft 6.0\npair_coeff * * 0.7\n",
}


def dumped(name: str) -> str:
    """Commands that dump positions and forces of every step."""
    return lr.dump(1, f"{name}.positions") + lr.dump(1, f"{name}.forces", "fx fy fz")


def follow(directory, *names: str) -> list[np.ndarray]:
    """Compare dumps of runs in a row with the core under the dumped forces; gives the forces of each run, but its last.

    The last frame of a run is the first of the next, when the forces may be others.
    """
    model = diffusim.Model(lr.NETWORK)
    core = diffusim.Simulation(model, 331.0, spring=40 * (1 / (0.1 * 0.1)), masses=model.masses, seed=48291)
    acted = []
    for name in names:
        positions, forces = lr.frames(directory, f"{name}.positions"), lr.frames(directory, f"{name}.forces")
        for x, f in zip(positions[:-1], forces[:-1], strict=True):
            assert x == pytest.approx(core.positions[0] / 0.1, rel=0, abs=1e-9)
            core.step_biased(f[None] * KCAL_PER_ANGSTROM)
        assert positions[-1] == pytest.approx(core.positions[0] / 0.1, rel=0, abs=1e-9)
        acted.append(forces[:-1])
    return acted


@pytest.mark.parametrize(
    ("name", "order"), [(name, "after") for name in FORCES] + [("addforce", "before"), ("colvars", "before")]
)
def test_forces_of_every_kind_act(tmp_path, name, order):
    """Defined after the fix or before it."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK))
    (tmp_path / "cv.inp").write_text(COLVARS)
    lines = FIX + FORCES[name] if order == "after" else FORCES[name] + FIX
    output = lr.run(tmp_path, lr.header("net.data") + lines + dumped("a") + "run 12\n")
    assert "bias: none" not in output and "bias: " in output
    (forces,) = follow(tmp_path, "a")
    assert np.abs(forces).max() > 0.05


def test_a_bias_that_comes_goes_and_changes_between_runs(tmp_path):
    """fix, unfix and variables between runs; each run says what its bias is."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK))
    changes = {
        "none": "",
        "pushed": "variable k equal 0.4\nfix 2 all addforce v_k 0 0.2\n",
        "changed": "variable k equal -0.9\n",
        "removed": "unfix 2\n",
        "other": "fix 3 all spring/self 0.8\n",
    }
    runs = "".join(
        f"{change}{dumped(name)}run 5\nundump {name}.positions\nundump {name}.forces\n"
        for name, change in changes.items()
    )
    output = lr.run(tmp_path, lr.header("net.data") + FIX + runs)
    said = [line.strip() for line in output.splitlines() if line.strip().startswith("bias:")]
    pushed = "bias: fix 2 (addforce)"
    assert said == ["bias: none", pushed, pushed, "bias: none", "bias: fix 3 (spring/self)"]
    none, first, changed, removed, other = follow(tmp_path, *changes)
    assert (none == 0).all() and (removed == 0).all() and np.abs(other[1:]).max() > 0
    assert first[..., 0] == pytest.approx(0.4) and changed[..., 0] == pytest.approx(-0.9)


def test_forces_on_atoms_that_the_model_does_not_move_do_not_reach_it(tmp_path):
    """A force that acts on another group only is none on the molecule."""
    write_data(tmp_path / "net.data", diffusim.Model(lr.NETWORK))
    lines = "group some id 2 4\nfix 2 some addforce 0.3 -0.2 0.7\n"
    lr.run(tmp_path, lr.header("net.data") + FIX + lines + dumped("a") + "run 9\n")
    (forces,) = follow(tmp_path, "a")
    assert (forces[:, [0, 2, 4]] == 0).all() and (forces[:, [1, 3]] != 0).all()


def test_metadynamics_gives_the_exact_free_energy(tmp_path):
    """COLVARS on a double well, F(x) = kT h ((x/a)^2 - 1)^2: within 1 kJ/mol up to 10 kJ/mol, by reweighting frames
    under the final bias with exp(V/kT).
    """
    barrier, half_width = 5.5, 0.7  # kT, nm
    kt = lr.BOLTZMANN * lr.TRAINED
    lr.analytic(tmp_path / "m.safetensors", "double-well", 1, barrier=barrier, half_width=half_width, stiffness=23.0)
    lr.write_beads(tmp_path / "beads.data", np.array([[[-half_width, 0.02, -0.03]]]), (12.3,), "real")
    variable = (
        "colvar {\nname x\nwidth 0.25\nlowerBoundary -14\nupperBoundary 14\nhardLowerBoundary on\n"
        "hardUpperBoundary on\ndistanceZ {\nmain { atomNumbers 1 }\nref { dummyAtom (0, 0, 0) }\naxis (1, 0, 0)\n}\n}\n"
    )
    for name, every in (("fill", 50), ("frozen", 1_000_000_000)):
        (tmp_path / f"{name}.colvars").write_text(
            f"colvarsTrajFrequency 8\n{variable}metadynamics {{\nname hills\ncolvars x\nhillWeight 0.3\nhillWidth 10\n"
            f"newHillFrequency {every}\nwellTempered on\nbiasTemperature {6 * lr.TRAINED}\noutputEnergy on\n}}\n"
        )
    lr.run(
        tmp_path,
        lr.header("beads.data")
        + f"fix 1 all diffusim {lr.TRAINED} 48291 model m.safetensors spring 2.0\n"
        + "fix 2 all colvars fill.colvars output fill tstat 1\nrun 60000\nunfix 2\n"
        + "fix 2 all colvars frozen.colvars input fill output frozen tstat 1\nrun 160000\n",
    )
    _, x, bias = np.loadtxt(tmp_path / "frozen.colvars.traj", comments="#").T
    edges = np.linspace(-1.0, 1.0, 26)
    centres = (edges[1:] + edges[:-1]) / 2
    weights = np.histogram(0.1 * x, edges, weights=np.exp(4.184 * bias / kt))[0]
    exact = kt * barrier * ((centres / half_width) ** 2 - 1) ** 2
    p, q = weights / weights.sum(), np.exp(-exact / kt)
    apart = kt * np.abs(np.log(p) - np.log(q / q.sum()))
    assert apart[exact < 10].max() < 1.0
    assert exact[len(exact) // 2] > 10
