"""The pictures: the reference in grey, the simulation in blue, independent samples in green, on the same axes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

from diffusim.report import statistics
from diffusim.report.consistency import Residual
from diffusim.report.ensemble import TORSION_EDGES, Ensemble, Molecule
from diffusim.report.paths import Paths
from diffusim.report.slow_modes import SlowModes

# Told apart by colour-blind readers, and by lightness alone (Okabe and Ito).
REFERENCE, SIMULATED, SECOND, INDEPENDENT = "#8c8c8c", "#0072b2", "#d55e00", "#009e73"
COLOURS = {"simulated": SIMULATED, "iid": INDEPENDENT}
LABELS = {"data": "reference", "iid": "independent", "simulated": "simulated"}
RESIDUAL_FIELDS = ("noise_level", "value", "error")
MOST_MEMORIES = 4  # observables whose memory is drawn
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


@dataclass(frozen=True)
class Comparison:
    """All that a report shows. `numbers` and `numbers_iid` are compare(reference, simulated or iid).

    `iid`, `slow_modes`, `residuals` and `paths` are None or empty where there are none.
    """

    title: str
    molecule: Molecule
    reference: Ensemble
    simulated: Ensemble
    numbers: dict
    iid: Ensemble | None = None
    numbers_iid: dict | None = None
    slow_modes: SlowModes | None = None
    residuals: Sequence[Residual] = ()
    paths: Paths | None = None

    @property
    def ensembles(self) -> dict[str, Ensemble]:
        """By name, the simulation last, on top of the others."""
        return ({} if self.iid is None else {"iid": self.iid}) | {"simulated": self.simulated}


def write(
    path: Path,
    title: str,
    reference: Ensemble,
    simulated: Ensemble,
    numbers: dict,
    molecule: Molecule,
    corner: Callable[[Axes], None] | None = None,
) -> None:
    """Draw the six main panels of `numbers` = compare(reference, simulated) into the PNG `path`.

    `corner` draws the lower left panel; by default that is the radius of gyration.
    """
    shown = Comparison(title, molecule, reference, simulated, numbers)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 8), dpi=130, layout="constrained")
        figure.suptitle(title, x=0.012, ha="left", fontsize=13)
        axes = figure.subplots(2, 3)
        if reference.ramachandran_counts.size:
            _ramachandran(figure, axes[0, :2], shown)
            _profiles(axes[0, 2], shown)
        else:
            _torsions(axes[0], shown)
        if corner is not None:
            corner(axes[1, 0])
        else:
            _sizes(axes[1, 0], shown)
        _bonds(axes[1, 1], shown)
        _angles(axes[1, 2], shown)
        _label_log_axes(figure)
        FigureCanvasAgg(figure).print_png(path)


def draw(shown: Comparison) -> bytes:
    """All panels of a report, as a PNG."""
    with matplotlib.rc_context(STYLE):
        n_rows = 3 if shown.paths is None else 4
        figure = Figure(figsize=(17.5, 4.0 * n_rows), dpi=110, layout="constrained")
        figure.suptitle(shown.title, x=0.012, ha="left", fontsize=13)
        axes = figure.subplots(n_rows, 4)
        if shown.reference.ramachandran_counts.size:
            maps = axes[0, : 2 if shown.iid is None else 3]
            _ramachandran(figure, maps, shown)
            _profiles(axes[0, 3], shown)
            _torsions([axes[1, 3]] if shown.iid is not None else [axes[0, 2], axes[1, 3]], shown)
        else:
            _torsions([*axes[0], axes[1, 3]], shown)
        _sizes(axes[1, 0], shown)
        _bonds(axes[1, 1], shown)
        _angles(axes[1, 2], shown)
        _slow_modes(axes[2, :3], shown)
        _residuals(axes[2, 3], shown.residuals)
        if shown.paths is not None:
            _memories(axes[3, 0], axes[3, 1], shown.paths)
            _effective_frames(axes[3, 2], shown.paths)
            _first_passages(axes[3, 3], shown.paths)
        _label_log_axes(figure)
        buffer = BytesIO()
        FigureCanvasAgg(figure).print_png(buffer)
        return buffer.getvalue()


def _label_log_axes(figure: Figure) -> None:
    """Labels at 1 and 3 of each decade where there are few decades: matplotlib writes all ten, over each other."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() == "log"):
        low, high = sorted(axis.get_view_interval())
        if 0 < low and high < 100 * low:
            axis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
            axis.set_minor_formatter(NullFormatter())


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


def _ramachandran(figure: Figure, row: Sequence[Axes], shown: Comparison) -> None:
    """The reference and, in the other panels, the simulation, with the independent samples between the two."""
    edges = statistics.RAMACHANDRAN_EDGES
    reference = shown.reference.ramachandran_counts
    zero = -np.log((reference / reference.sum()).max())
    maps = [("Reference", shown.reference, None)]
    if len(row) > 2:
        maps.append(("Independent", shown.iid, shown.numbers_iid))
    maps.append(("Simulated", shown.simulated, shown.numbers))
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
    for axes, (name, ensemble, numbers) in zip(row, maps, strict=True):
        probability = ensemble.ramachandran_counts / ensemble.ramachandran_counts.sum()
        energy = -np.log(np.where(probability > 0, probability, np.nan))
        image = axes.pcolormesh(
            edges, edges, (energy - zero).T, cmap="viridis", vmin=0, vmax=LARGEST_ENERGY, rasterized=True
        )
        axes.set(xlabel="φ / °", ylabel="ψ / °", aspect="equal")
        axes.set_xticks(range(-180, 181, 90))
        axes.set_yticks(range(-180, 181, 90))
        axes.set_title(f"{name}   {ensemble.n_frames:,} frames")
        if numbers is not None:
            bins = numbers["bins"].replace("x", "×")
            note = f"JS {numbers['js']:.4f}, floor {numbers['js_floor']:.4f}\n{bins} bins"
            axes.text(0.98, 0.8, note, transform=axes.transAxes, ha="right", va="center", fontsize=10, bbox=box)
    bar = row[-1].inset_axes([1.04, 0.0, 0.045, 1.0])
    figure.colorbar(image, cax=bar, label="free energy / kT  (white: never)")


def _profiles(axes: Axes, shown: Comparison) -> None:
    edges = statistics.RAMACHANDRAN_EDGES
    centres = (edges[1:] + edges[:-1]) / 2
    for other_axis, symbol, colour in ((1, "φ", SIMULATED), (0, "ψ", SECOND)):
        for name, ensemble, style in (("reference", shown.reference, "--"), ("simulated", shown.simulated, "-")):
            counts = ensemble.ramachandran_counts.sum(axis=other_axis)
            energy = -np.log(np.where(counts > 0, counts, np.nan) / counts.sum())
            if name == "reference":
                zero = np.nanmin(energy)
            alpha = 0.6 if name == "reference" else 1.0
            axes.plot(centres, energy - zero, style, color=colour, alpha=alpha, label=f"{symbol} {name}")
    axes.set(xlabel="angle / °", xlim=(-180, 180), ylim=(-0.3, 15))
    axes.set_xticks(range(-180, 181, 90))
    axes.set_title("Free energy of one angle / kT")
    axes.legend(loc="upper center", ncols=2)


def _torsions(row: Sequence[Axes], shown: Comparison) -> None:
    """The torsions whose simulation differs most, as many as there is room for."""
    js = shown.numbers.get("torsion_js", [])
    worst = np.argsort(js)[::-1][: len(row)]
    centres = (TORSION_EDGES[1:] + TORSION_EDGES[:-1]) / 2
    for axes, i in zip(row, worst, strict=False):
        _distribution(axes, centres, shown, lambda ensemble, i=i: ensemble.torsion_counts[i])
        axes.set(xlabel="torsion / °", xlim=(-180, 180))
        axes.set_xticks(range(-180, 181, 90))
        axes.set_title("–".join(shown.molecule.names[j] for j in shown.molecule.torsions[i]))
        _explain(axes, f"JS = {js[i]:.4f}\nfloor = {shown.numbers['torsion_js_floor'][i]:.4f}")
    for axes in row[len(worst) :]:
        axes.set_axis_off()


def _sizes(axes: Axes, shown: Comparison) -> None:
    edges = shown.reference.size_edges
    _distribution(axes, (edges[1:] + edges[:-1]) / 2, shown, lambda ensemble: ensemble.size_counts)
    axes.set_xlabel("radius of gyration / nm")
    axes.set_title("Size")
    _explain(axes, f"mean {100 * shown.numbers['radius_of_gyration_error']:+.2f} %")


def _bonds(axes: Axes, shown: Comparison) -> None:
    if not len(shown.reference.bond_mean):
        axes.set_axis_off()
        return
    edges, numbers = shown.reference.bond_edges, shown.numbers
    _distribution(axes, (edges[1:] + edges[:-1]) / 2, shown, lambda ensemble: ensemble.bond_counts.sum(axis=0))
    axes.set_xlabel("length / nm")
    axes.set_title(f"{len(shown.reference.bond_mean)} bonds")
    note = (
        f"means within {100 * numbers['bond_mean_error_max']:.2f} %\n"
        f"spreads {numbers['bond_std_ratio_min']:.2f} – {numbers['bond_std_ratio_max']:.2f} ×"
    )
    _explain(axes, note)


def _angles(axes: Axes, shown: Comparison) -> None:
    if not len(shown.reference.angle_mean):
        axes.set_axis_off()
        return
    edges, numbers = shown.reference.angle_edges, shown.numbers
    _distribution(axes, (edges[1:] + edges[:-1]) / 2, shown, lambda ensemble: ensemble.angle_counts.sum(axis=0))
    axes.set_xlabel("angle / °")
    axes.set_title(f"{len(shown.reference.angle_mean)} angles")
    note = (
        f"means within {numbers['angle_mean_error_max']:.2f} °\n"
        f"spreads {numbers['angle_std_ratio_min']:.2f} – {numbers['angle_std_ratio_max']:.2f} ×"
    )
    _explain(axes, note)


def _slow_modes(row: Sequence[Axes], shown: Comparison) -> None:
    """Free energies of the slowest components, and their timescales against the lag they were measured at."""
    modes = shown.slow_modes
    if modes is None:
        for axes in row:
            axes.set_axis_off()
        return
    for number, axes in enumerate(row[:-1]):
        if number >= len(modes.edges):
            axes.set_axis_off()
            continue
        centres = (modes.edges[number, 1:] + modes.edges[number, :-1]) / 2
        for name, colour, style in (
            ("data", REFERENCE, "--"),
            ("iid", INDEPENDENT, "-"),
            ("simulated", SIMULATED, "-"),
        ):
            if name in modes.counts:
                counts = modes.counts[name][number]
                energy = -np.log(np.where(counts > 0, counts, np.nan) / counts.sum())
                axes.plot(centres, energy - np.nanmin(energy), style, color=colour, label=LABELS[name])
        axes.set(xlabel=f"slow component {number + 1} (TICA)", ylim=(-0.3, 12))
        axes.set_title("Free energy / kT")
        axes.legend(loc="upper center", ncols=2)
    axes = row[-1]
    for number, curve in enumerate(modes.timescales.T):
        axes.plot(modes.lags, curve, "o-", color=(SIMULATED, SECOND, INDEPENDENT)[number], label=f"{number + 1}")
    axes.fill_between(modes.lags, modes.lags, axes.get_ylim()[0], color="0.9", lw=0)
    axes.set(xscale="log", yscale="log", xlabel=f"lag / {modes.unit}", ylabel=f"timescale / {modes.unit}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("Implied timescales, simulated")
    axes.legend(loc="lower right", title="grey: below the lag", ncols=3)


def _memories(left: Axes, right: Axes, paths: Paths) -> None:
    """Autocorrelations of the observables that remember longest, and their integrals up to each lag."""
    order = sorted(paths.memories, key=lambda name: -paths.memories[name].running[-1])[:MOST_MEMORIES]
    for name, colour in zip(order, (SIMULATED, SECOND, INDEPENDENT, "#cc79a7"), strict=False):
        one = paths.memories[name]
        later = one.lags > 0
        x, y, error = one.lags[later] * paths.frame_time, one.rho[later], np.nan_to_num(one.rho_error[later])
        left.fill_between(x, y - error, y + error, color=colour, alpha=0.25, lw=0)
        left.plot(x, y, color=colour, label=name)
        right.plot(x, one.running[later] * paths.frame_time, color=colour)
        if np.isfinite(one.correlation_time):
            right.axhline(one.correlation_time * paths.frame_time, color=colour, ls=":", lw=1.2)
    left.axhline(0, color="0.6", lw=1)
    left.set(xscale="log", ylim=(None, 1.02))
    left.set_title("Memory  ⟨δA(0) δA(t)⟩ / ⟨δA²⟩")
    left.legend()
    right.set(xscale="log", yscale="log")
    right.set_title(f"∫₀ᵗ of it / {paths.unit}  (dotted: resolved)")
    for axes in (left, right):
        axes.set_xlabel(f"lag t / {_clock(paths)}")
        if paths.ps_per_unit is not None:
            factor = paths.ps_per_unit
            top = axes.secondary_xaxis("top", functions=(lambda x, f=factor: x * f, lambda x, f=factor: x / f))
            top.set_xlabel("lag / ps", color="0.35", fontsize=9)
            top.tick_params(colors="0.35", labelsize=9)


def _effective_frames(axes: Axes, paths: Paths) -> None:
    """How many independent frames the mean of each observable is worth."""
    order = sorted(paths.memories, key=lambda name: -paths.memories[name].running[-1])[:10][::-1]
    shares = [paths.memories[name].effective_frames for name in order]
    resolved = [np.isfinite(paths.memories[name].correlation_time) for name in order]
    axes.barh(range(len(order)), shares, color=[SIMULATED if r else REFERENCE for r in resolved], height=0.6)
    axes.set_yticks(range(len(order)), order)
    axes.set(xscale="log", xlabel="frames  (grey: from the scatter between replicas)")
    axes.axvline(paths.memories[order[0]].n_frames, color="0.6", lw=1, ls="--")
    axes.set_title("Worth in independent frames  (dashed: all)")


def _first_passages(axes: Axes, paths: Paths) -> None:
    """Mean first-passage times between the core sets of torsions, those that were seen."""
    seen = [
        (f"{name}: {one.start + 1} → {one.end + 1}", one)
        for name, passages in paths.passages.items()
        for one in passages
        if one.count
    ]
    if not seen:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no passage between core sets", ha="center", transform=axes.transAxes)
        return
    seen = sorted(seen, key=lambda pair: -pair[1].time)[:10][::-1]
    times, errors = (np.array([getattr(one, what) for _, one in seen]) * paths.frame_time for what in ("time", "error"))
    axes.errorbar(times, range(len(seen)), xerr=np.minimum(errors, 0.9 * times), fmt="o", color=SIMULATED, capsize=3)
    axes.set_yticks(range(len(seen)), [f"{name}  ({one.count})" for name, one in seen])
    axes.set(xscale="log", xlabel=f"time / {_clock(paths)}")
    axes.set_title("Mean first passages  (seen)")


def _clock(paths: Paths) -> str:
    return f"{paths.unit} (steps × τ)" if paths.unit == "nm²" else paths.unit


def _residuals(axes: Axes, residuals: Sequence[Residual]) -> None:
    """The Fokker-Planck residual along the noise levels."""
    if not residuals:
        axes.set_axis_off()
        return
    levels, values, errors = (np.array([getattr(r, name) for r in residuals]) for name in RESIDUAL_FIELDS)
    axes.errorbar(levels, values, 2 * errors, fmt="o-", color=SIMULATED, capsize=3)
    axes.axhline(0, color="0.6", lw=1)
    axes.set(xscale="log", xlabel="noise level σ / nm")
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_title("Fokker–Planck residual")
    axes.text(
        0.03, 0.97, "0: energies at all σ are\nblurs of one density", transform=axes.transAxes, va="top", fontsize=10
    )


def _explain(axes: Axes, note: str) -> None:
    """The note and the legend above the curves."""
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.text(0.03, 0.97, note, transform=axes.transAxes, va="top", fontsize=10)
    axes.legend(loc="upper right")


def _distribution(axes: Axes, centres: np.ndarray, shown: Comparison, counts: Callable[[Ensemble], np.ndarray]) -> None:
    """Densities: the reference filled, the others as lines."""
    width = centres[1] - centres[0]

    def density(ensemble: Ensemble) -> np.ndarray:
        return counts(ensemble) / counts(ensemble).sum() / width

    axes.fill_between(centres, density(shown.reference), color=REFERENCE, alpha=0.55, lw=0, label="reference")
    for name, ensemble in shown.ensembles.items():
        axes.plot(centres, density(ensemble), color=COLOURS[name], label=LABELS[name])
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.set_ylabel("density")
