"""What every figure needs: rows of results and a canvas."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusim.report import plots


@dataclass(frozen=True)
class Row:
    """One number. `error` is one standard error; None: computed, not sampled. `expected`: by theory or another method,
    or the range (least, most) it should be in; None: nobody knows."""

    figure: str
    quantity: str
    value: float
    error: float | None = None
    expected: float | tuple[float, float] | None = None

    def entry(self) -> dict:
        return asdict(self)


@contextmanager
def canvas(path: Path, title: str, columns: int, height: float = 4.2) -> Iterator[list]:
    """Axes in a row, written to the PNG `path` at the end; small enough for a page."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.9 * columns, height), dpi=110, layout="constrained")
        figure.suptitle(title, x=0.012, ha="left", fontsize=13)
        yield list(figure.subplots(1, columns, squeeze=False)[0])
        FigureCanvasAgg(figure).print_png(path)
