"""The statistics behind `make paper` and the metadynamics examples; the simulations themselves are in `make paper`."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path += [str(EXAMPLES / folder) for folder in ("paper", "accuracy", "alkanes", "metadynamics")]

import chains  # noqa: E402
import figure_butane  # noqa: E402
import figure_equivalence  # noqa: E402
import figure_limits  # noqa: E402
import model_profile  # noqa: E402
import profiles  # noqa: E402
from alkanes import FRAME, Kinetics  # noqa: E402
from figures import Row  # noqa: E402

from diffusim import Model  # noqa: E402
from diffusim.report import statistics  # noqa: E402

NETWORK = Path(__file__).parents[1] / "fixtures" / "distance_small.safetensors"


# Steps on a grid


def harmonic(stiffness=1.7):
    x = chains.grid(5.0, 500)
    return x, 0.5 * stiffness * x**2, lambda y: -stiffness * y


def test_chains_have_the_variances_of_theory():
    """1/(kappa (1 - kappa tau/2)) of Euler-Maruyama; Leimkuhler-Matthews and Metropolis exact (theory 2, 8, 10)."""
    (x, energy, score), tau = harmonic(), 0.3
    step = chains.euler_maruyama(x, score, tau)
    assert 1.7 * chains.mean_square(x, chains.stationary(step)) == pytest.approx(1 / (1 - 1.7 * tau / 2), rel=1e-4)
    y, after = chains.leimkuhler_matthews(x, score, tau)
    assert 1.7 * chains.mean_square(x, chains.stationary(y) @ after) == pytest.approx(1, rel=1e-4)
    accepted = chains.metropolis(x, energy, step)
    assert 1.7 * chains.mean_square(x, chains.stationary(accepted)) == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(accepted.sum(axis=1), 1, atol=1e-12)


def test_heun_on_a_grid_has_the_variance_of_its_recursion():
    """x' = (1 - a + a^2/2) x + (1 - a/2) sqrt(2 tau) xi with a = kappa tau."""
    (x, _, score), tau = harmonic(), 0.3
    a = 1.7 * tau
    exact = (1 - a / 2) ** 2 * 2 * tau / (1 - (1 - a + a**2 / 2) ** 2)
    assert chains.mean_square(x, chains.stationary(chains.heun(x, score, tau))) == pytest.approx(exact, rel=3e-3)


def test_the_variance_of_a_frame_glued_to_two_before_it():
    """Of the autoregression x'' = (1/2 - a/2) x' + x/2 + noise of variance a (per kappa), by its Lyapunov equation."""
    a = 0.1
    step, noise = np.array([[0.5 - a / 2, 0.5], [1.0, 0.0]]), np.diag([a, 0.0])
    covariance = noise
    for _ in range(12):
        covariance, step = covariance + step @ covariance @ step.T, step @ step
    assert figure_limits.glued_variance(a) == pytest.approx(covariance[0, 0], rel=1e-9)
    assert figure_limits.glued_variance(a) == pytest.approx(0.7018, abs=1e-4)


def test_adapter_and_euler_maruyama_are_one_step():
    random = np.random.default_rng(1)
    x, score, noise, beta, spring = random.uniform(0.2, 3, size=(5, 1000))
    diffusion = 0.31
    dt = beta / (2 * diffusion * spring)
    first = figure_equivalence.adapter(x, score, beta, spring, noise)
    np.testing.assert_allclose(first, figure_equivalence.euler_maruyama(x, score, diffusion, dt, noise), rtol=1e-14)


# Free energies


def test_weights_take_a_bias_out_of_frames():
    """Uniform frames under V = -F give F back, with an error that covers what is left."""
    random = np.random.default_rng(2)
    phi = random.uniform(-180, 180, size=(3, 200_000))

    def energy(angle):
        return 6.0 * np.cos(np.radians(angle)) + 2.0 * np.sin(3 * np.radians(angle))

    parts = profiles.reweighted(phi, -energy(phi), 4)
    assert parts.shape == (12, 36)
    found, error = profiles.with_error(parts)
    grid = np.linspace(-180, 180, 3601)[:-1] + 0.05
    p = np.exp(-energy(grid) / profiles.KT).reshape(36, -1).sum(axis=1)
    exact = profiles.free_energy(p)
    assert (np.abs(found - exact) < 5 * error).all() and error.max() < 0.1
    rms, worst, worst_error = profiles.difference(found, error, exact, np.zeros(36))
    assert rms < worst < 0.1 and 0 < worst_error < 0.1
    lifted = exact + 0.7 * (np.arange(36) == exact.argmin())
    assert profiles.difference(lifted, error, exact, error)[1] == pytest.approx(0.7)
    share, share_error = profiles.positive(parts)
    assert share == pytest.approx(p[18:].sum() / p.sum(), abs=5 * share_error)


def test_a_bin_without_frames_has_no_free_energy():
    energy, error = profiles.with_error(np.array([[1.0, 0.0, 2.0], [1.0, 0.0, 0.0]]))
    assert np.isinf(energy[1]) and np.isinf(error[1:]).all() and np.isfinite([energy[0], error[0]]).all()


def test_colvars_trajectories_are_read_in_kj(tmp_path):
    (tmp_path / "a.traj").write_text("# step phi psi E_hills\n 0 -75.5 140.25 0.5\n 50 60.0 -20.0 1.25\n")
    phi, psi, bias = profiles.read_colvars(tmp_path / "a.traj")
    assert phi.tolist() == [-75.5, 60.0] and psi.tolist() == [140.25, -20.0] and bias.tolist() == [2.092, 5.23]


def test_torsion_and_its_gradient():
    x = Model(NETWORK).start_positions
    atoms = (0, 1, 2, 4)
    angle, gradient = model_profile.torsion(x, atoms)
    np.testing.assert_allclose(np.degrees(angle), statistics.torsions(x, [atoms])[:, 0], atol=1e-9)
    for k, i in enumerate(atoms):
        for c in range(3):
            moved = [x.copy(), x.copy()]
            moved[0][:, i, c] += 1e-6
            moved[1][:, i, c] -= 1e-6
            after, before = (model_profile.torsion(each, atoms)[0] for each in moved)
            np.testing.assert_allclose(gradient[:, k, c], (after - before) / 2e-6, atol=1e-5)


def test_the_shared_bias_grows_where_replicas_are_and_its_force_is_its_gradient():
    bias = model_profile.GridBias()
    random = np.random.default_rng(3)
    phi, psi = random.uniform(-np.pi, np.pi, size=(2, 300))
    for _ in range(40):
        bias.add_hills(np.full(8, 3.1), np.full(8, -0.6), 0.5)
    bias.values += random.normal(size=bias.values.shape)
    value, by_phi, by_psi = bias.look_up(phi, psi)
    inside = np.abs((phi / model_profile.SPACING) % 1 - 0.5) < 0.49
    step = 1e-5
    slope = (bias.look_up(phi + step, psi)[0] - bias.look_up(phi - step, psi)[0]) / (2 * step)
    np.testing.assert_allclose(by_phi[inside], slope[inside], atol=1e-6)
    high, far = bias.look_up(np.array([3.1, 0.0]), np.array([-0.6, 2.0]))[0]
    assert 7 < high < model_profile.LEVEL + 4 and abs(far) < 4
    np.testing.assert_allclose(bias.look_up(phi + 2 * np.pi, psi)[0], value, atol=1e-9)


def test_frames_of_many_replicas_under_one_bias_count_without_it():
    """Frames drawn from p exp(-V/kT), of known p and V, give -kT ln p back, within four standard errors."""
    random = np.random.default_rng(4)
    grid = np.linspace(-180, 180, 20_001)[:-1]
    angle = np.radians(grid)
    energy = 3.0 * profiles.KT * np.cos(angle) + 1.5 * profiles.KT * np.sin(2 * angle)
    bias = -0.8 * energy + 2.1 * np.sin(3 * angle)
    p = np.exp(-(energy + bias) / profiles.KT)
    drawn = random.choice(len(grid), size=(500, 40), p=p / p.sum())
    found, error = profiles.with_error(profiles.weights_of_replicas(grid[drawn], bias[drawn]))
    exact = profiles.free_energy(np.histogram(grid, profiles.EDGES, weights=np.exp(-energy / profiles.KT))[0])
    assert error.max() < 0.5
    assert (np.abs(found - exact) / error).max() < 4


def test_metadynamics_with_openmm_runs_and_shares_its_hills():
    import ala2_openmm

    frames, hills = ala2_openmm.run(2, 2 * ala2_openmm.SHARE_EVERY, 2 * ala2_openmm.SHARE_EVERY)
    assert frames.shape == (2, ala2_openmm.SHARE_EVERY // ala2_openmm.COUNTED_EVERY, 3)
    assert np.isfinite(frames).all() and frames[..., 2].min() >= -1e-3 and frames[..., 2].max() > 0.3
    assert np.ptp(hills) > 0.3 and hills.shape[0] == hills.shape[1]


# Rows and files


def test_gap_of_two_memories():
    lags = np.array([0, 1, 2, 4, 8]) * FRAME
    one, other = (
        Kinetics(
            *[np.zeros(2)] * 2, *[np.zeros((1, 2))] * 2, lags, curve[None], np.full((1, 5), 0.03), *[np.zeros(1)] * 2
        )
        for curve in (np.array([1, 0.9, 0.8, 0.7, 0.6]), np.array([1, 0.9, 0.7, 0.7, 0.55]))
    )
    assert figure_butane.memory_gap(one, other) == pytest.approx((0.1, 0.03 * np.sqrt(2)))


def main_of(folder):
    spec = importlib.util.spec_from_file_location(f"{folder}_main", EXAMPLES / folder / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_figure_has_its_module_and_rows_are_merged(tmp_path):
    paper = replace(main_of("paper").PAPER, root=tmp_path)
    for module in paper.modules.values():
        assert (EXAMPLES / "paper" / f"{module}.py").exists()
    rows = [Row("butane", "a rate", 2.34567, 0.0123, 2.5), Row("limits", "an order", 1.0, None, (0.9, 1.1))]
    paper.pictures.mkdir(parents=True)
    paper.file.write_text(json.dumps([replace(rows[0], value=3.0).entry(), {"figure": "one that was given up"}]))
    paper.keep("limits", [rows[1].entry()])
    assert [row["figure"] for row in paper.rows()] == ["limits", "butane"]
    paper.keep("butane", [rows[0].entry()])
    (tmp_path / "docs").mkdir()
    marks = "<!-- table: make paper -->\nold\n<!-- end of table -->"
    paper.document.write_text(f"![](paper/butane.png)\n{marks}\nafter\n")
    (paper.pictures / "butane.png").write_bytes(b"png")
    paper.write_document()
    text = (tmp_path / "docs" / "paper.md").read_text()
    assert "| butane | a rate | 2.346 ± 0.012 | 2.5 |" in text and "| limits | an order | 1 | 0.9 – 1.1 |" in text
    assert "old" not in text and text.startswith("![]") and text.endswith("after\n")
    assert (tmp_path / "docs" / "paper" / "butane.png").read_bytes() == b"png"
    for module in main_of("accuracy").SYSTEMS.values():
        assert (EXAMPLES / "accuracy" / f"{module}.py").exists()
    assert set(rows[0].entry()) == {"figure", "quantity", "value", "error", "expected"}


def test_unknown_figures_are_named():
    result = subprocess.run(
        [sys.executable, EXAMPLES / "paper", "butan"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 2 and "there is no figure butan; known are equivalence, limits" in result.stderr
