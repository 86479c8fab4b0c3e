"""The picture of a report: the reference in grey, the simulation in blue, on the same axes and scales."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusim.report import statistics
from diffusim.report.ensemble import TORSION_EDGES, Ensemble, Molecule

# Told apart by colour-blind readers, and by lightness alone (Okabe and Ito).
REFERENCE, SIMULATED, SECOND = "#8c8c8c", "#0072b2", "#d55e00"
LARGEST_ENERGY = 8.0  # kT, top of the Ramachandran colour scale
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2.0,
}


@dataclass(frozen=True)
class Correlation:
    """<cos(angle(0) - angle(t))> of phi and psi and its standard errors, at `times`."""

    times: np.ndarray
    phi: np.ndarray
    phi_error: np.ndarray
    psi: np.ndarray
    psi_error: np.ndarray


def write(
    path: Path,
    title: str,
    reference: Ensemble,
    simulated: Ensemble,
    numbers: dict,
    molecule: Molecule,
    corner: Callable[[Axes], None] | None = None,
) -> None:
    """Draw the report of `numbers` = compare(reference, simulated) into the PNG `path`.

    `corner` draws the lower left panel; by default that is the radius of gyration.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 8), dpi=130, layout="constrained")
        figure.suptitle(title, x=0.012, ha="left", fontsize=13)
        axes = figure.subplots(2, 3)
        if reference.ramachandran_counts.size:
            _ramachandran(figure, axes[0, 0], axes[0, 1], reference, simulated, numbers)
            _profiles(axes[0, 2], reference, simulated)
        else:
            _torsions(axes[0], reference, simulated, numbers, molecule)
        if corner is not None:
            corner(axes[1, 0])
        else:
            _sizes(axes[1, 0], reference, simulated)
        _bonds(axes[1, 1], reference, simulated, numbers)
        _angles(axes[1, 2], reference, simulated, numbers)
        FigureCanvasAgg(figure).print_png(path)


def autocorrelation(axes: Axes, reference: Correlation, simulated: Correlation, nm2_per_ps: float) -> None:
    """phi and psi of the simulation against tau (lower axis, nm^2), of the reference against time (upper axis, ps).

    The axes are laid over each other by `nm2_per_ps`.
    """
    for name, colour in (("phi", SIMULATED), ("psi", SECOND)):
        symbol = {"phi": "φ", "psi": "ψ"}[name]
        for curve, is_reference, factor, style in ((reference, True, nm2_per_ps, "--"), (simulated, False, 1.0, "-")):
            later = curve.times > 0
            x, y = curve.times[later] * factor, getattr(curve, name)[later]
            error = np.nan_to_num(getattr(curve, f"{name}_error")[later])
            axes.fill_between(x, y - error, y + error, color=colour, alpha=0.1 if is_reference else 0.25, lw=0)
            label = f"{symbol} {'reference' if is_reference else 'simulated'}"
            axes.plot(x, y, style, color=colour, label=label, alpha=0.6 if is_reference else 1.0)
    axes.set_xscale("log")
    times = simulated.times[simulated.times > 0]
    axes.set_xlim(times[0], times[-1])
    lowest = min(simulated.phi.min(), simulated.psi.min())
    axes.set_ylim(max(0.0, lowest - 0.4), 1.02)  # room for the legend
    axes.set_xlabel("simulated: steps × τ / nm²")
    axes.set_title("Memory  ⟨cos Δangle⟩")
    top = axes.secondary_xaxis("top", functions=(lambda x: x / nm2_per_ps, lambda x: x * nm2_per_ps))
    top.set_xlabel("reference: ps (aligned on ψ)", color="0.35", fontsize=9)
    top.tick_params(colors="0.35", labelsize=9)
    axes.legend(loc="lower left")


def _ramachandran(figure: Figure, left: Axes, right: Axes, reference: Ensemble, simulated: Ensemble, numbers: dict):
    edges = statistics.RAMACHANDRAN_EDGES
    for axes, ensemble, name in ((left, reference, "Reference"), (right, simulated, "Simulated")):
        probability = ensemble.ramachandran_counts / ensemble.ramachandran_counts.sum()
        energy = -np.log(np.where(probability > 0, probability, np.nan))
        zero = -np.log((reference.ramachandran_counts / reference.ramachandran_counts.sum()).max())
        image = axes.pcolormesh(
            edges, edges, (energy - zero).T, cmap="viridis", vmin=0, vmax=LARGEST_ENERGY, rasterized=True
        )
        axes.set(xlabel="φ / °", ylabel="ψ / °", aspect="equal")
        axes.set_xticks(range(-180, 181, 90))
        axes.set_yticks(range(-180, 181, 90))
        axes.set_title(f"{name}   {ensemble.n_frames:,} frames")
    bins = numbers["bins"].replace("x", "×")
    note = f"JS {numbers['js']:.4f}, floor {numbers['js_floor']:.4f}\n{bins} bins"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
    right.text(0.98, 0.8, note, transform=right.transAxes, ha="right", va="center", fontsize=10, bbox=box)
    bar = right.inset_axes([1.04, 0.0, 0.045, 1.0])
    figure.colorbar(image, cax=bar, label="free energy / kT  (white: never)")


def _profiles(axes: Axes, reference: Ensemble, simulated: Ensemble) -> None:
    edges = statistics.RAMACHANDRAN_EDGES
    centres = (edges[1:] + edges[:-1]) / 2
    for other_axis, symbol, colour in ((1, "φ", SIMULATED), (0, "ψ", SECOND)):
        for ensemble, style in ((reference, "--"), (simulated, "-")):
            counts = ensemble.ramachandran_counts.sum(axis=other_axis)
            energy = -np.log(np.where(counts > 0, counts, np.nan) / counts.sum())
            is_reference = ensemble is reference
            if is_reference:
                zero = np.nanmin(energy)
            label = f"{symbol} {'reference' if is_reference else 'simulated'}"
            axes.plot(centres, energy - zero, style, color=colour, alpha=0.6 if is_reference else 1.0, label=label)
    axes.set(xlabel="angle / °", xlim=(-180, 180), ylim=(-0.3, 15))
    axes.set_xticks(range(-180, 181, 90))
    axes.set_title("Free energy of one angle / kT")
    axes.legend(loc="upper center", ncols=2)


def _torsions(row, reference: Ensemble, simulated: Ensemble, numbers: dict, molecule: Molecule) -> None:
    """The three torsions that differ most."""
    worst = np.argsort(numbers.get("torsion_js", []))[::-1][: len(row)]
    centres = (TORSION_EDGES[1:] + TORSION_EDGES[:-1]) / 2
    for axes, i in zip(row, worst, strict=False):
        _filled_and_line(axes, centres, reference.torsion_counts[i], simulated.torsion_counts[i])
        axes.set(xlabel="torsion / °", xlim=(-180, 180))
        axes.set_xticks(range(-180, 181, 90))
        axes.set_title("–".join(molecule.names[j] for j in molecule.torsions[i]))
        note = f"JS = {numbers['torsion_js'][i]:.4f}\nfloor = {numbers['torsion_js_floor'][i]:.4f}"
        axes.text(0.97, 0.97, note, transform=axes.transAxes, ha="right", va="top", fontsize=10)
    for axes in row[len(worst) :]:
        axes.set_axis_off()


def _sizes(axes: Axes, reference: Ensemble, simulated: Ensemble) -> None:
    centres = (reference.size_edges[1:] + reference.size_edges[:-1]) / 2
    _filled_and_line(axes, centres, reference.size_counts, simulated.size_counts)
    axes.set_xlabel("radius of gyration / nm")
    axes.set_title("Size")
    axes.legend(loc="upper right")


def _bonds(axes: Axes, reference: Ensemble, simulated: Ensemble, numbers: dict) -> None:
    if not len(reference.bond_mean):
        axes.set_axis_off()
        return
    centres = (reference.bond_edges[1:] + reference.bond_edges[:-1]) / 2
    _filled_and_line(axes, centres, reference.bond_counts.sum(axis=0), simulated.bond_counts.sum(axis=0))
    axes.set_xlabel("length / nm")
    axes.set_title(f"{len(reference.bond_mean)} bonds")
    note = (
        f"means within {100 * numbers['bond_mean_error_max']:.2f} %\n"
        f"spreads {numbers['bond_std_ratio_min']:.2f} – {numbers['bond_std_ratio_max']:.2f} ×"
    )
    _explain(axes, note)


def _angles(axes: Axes, reference: Ensemble, simulated: Ensemble, numbers: dict) -> None:
    if not len(reference.angle_mean):
        axes.set_axis_off()
        return
    centres = (reference.angle_edges[1:] + reference.angle_edges[:-1]) / 2
    _filled_and_line(axes, centres, reference.angle_counts.sum(axis=0), simulated.angle_counts.sum(axis=0))
    axes.set_xlabel("angle / °")
    axes.set_title(f"{len(reference.angle_mean)} angles")
    note = (
        f"means within {numbers['angle_mean_error_max']:.2f} °\n"
        f"spreads {numbers['angle_std_ratio_min']:.2f} – {numbers['angle_std_ratio_max']:.2f} ×"
    )
    _explain(axes, note)


def _explain(axes: Axes, note: str) -> None:
    """The note and the legend above the curves."""
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
    axes.text(0.03, 0.97, note, transform=axes.transAxes, va="top", fontsize=10)
    axes.legend(loc="upper right")


def _filled_and_line(axes: Axes, centres: np.ndarray, reference: np.ndarray, simulated: np.ndarray) -> None:
    width = centres[1] - centres[0]
    expected, found = (counts / counts.sum() / width for counts in (reference, simulated))
    axes.fill_between(centres, expected, color=REFERENCE, alpha=0.55, lw=0, label="reference")
    axes.plot(centres, found, color=SIMULATED, label="simulated")
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.set_ylabel("density")
