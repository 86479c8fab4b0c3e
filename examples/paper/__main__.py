"""The figures of the paper, redone: `make paper`, or `make paper FIGURE=butane`.

    python examples/paper [FIGURE ...]       # rows to out/paper.json, a picture of each to out/paper/FIGURE.png
    python examples/paper --document         # the table and the pictures of docs/paper.md from out/

Rows of figures that are not made this time stay in the file.
"""

import shutil
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path += [str(EXAMPLES)]
sys.path += [str(EXAMPLES / folder) for folder in ("accuracy", "alkanes", "metadynamics", "time-parallel")]

from measured import Measurements, range_of  # noqa: E402

FIGURES = {  # the module whose measure(picture) gives the rows
    "equivalence": "figure_equivalence",
    "limits": "figure_limits",
    "bound": "figure_bound",
    "butane": "figure_butane",
    "octane": "figure_octane",
    "time-parallel": "figure_time_parallel",
    "metadynamics": "figure_metadynamics",
}


class Paper(Measurements):
    def write_document(self) -> None:
        """The table, and those pictures that the page shows."""
        super().write_document()
        text = self.document.read_text()
        (self.document.parent / "paper").mkdir(exist_ok=True)
        for figure in FIGURES:
            picture = self.pictures / f"{figure}.png"
            if picture.exists() and f"paper/{figure}.png" in text:
                shutil.copy(picture, self.document.parent / "paper")


def number_of(row: dict) -> str:
    error = f" ± {row['error']:.2g}" if row["error"] is not None else ""
    return f"{row['value']:.4g}{error}"


def expected_of(row: dict) -> str:
    return range_of(row["expected"], lambda value: f"{value:.4g}", "")


PAPER = Paper(
    name="paper",
    item="figure",
    modules=FIGURES,
    measure=lambda module, _figure, picture: module.measure(picture),
    line=lambda row: f"{row['quantity']:<72}{number_of(row):<22}{expected_of(row)}",
    headings=("figure", "quantity", "value", "expected"),
    cells=lambda row: (row["figure"], row["quantity"], number_of(row), expected_of(row)),
)

if __name__ == "__main__":
    sys.exit(PAPER.run(__doc__, "--document"))
