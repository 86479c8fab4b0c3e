"""How accurate the learned models of the examples are: `make accuracy`, or `make accuracy SYSTEM=butane`.

    python examples/accuracy [SYSTEM ...]      # rows to out/accuracy.json, a picture of each to out/accuracy/SYSTEM.png
    python examples/accuracy --table           # writes the table of docs/accuracy.md from out/accuracy.json

Rows of systems that are not measured this time stay in the file.
"""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path += [
    str(EXAMPLES),
    *(str(EXAMPLES / folder) for folder in ("alkanes", "lennard-jones", "metadynamics", "surfaces")),
]

from measured import Measurements, range_of  # noqa: E402

SYSTEMS = {  # the module whose measure(system, picture) gives the rows
    "double-well": "measure_surfaces",
    "muller-brown": "measure_surfaces",
    "butane": "measure_alkanes",
    "alkane": "measure_alkanes",
    "ala2-5bead": "measure_ala2",
    "ala2": "measure_ala2",
    "lennard-jones": "measure_lennard_jones",
}


def number_of(row: dict) -> str:
    error = f" ± {row['error']:.4f}" if row["error"] is not None else ""
    return f"{row['value']:.4f}{error}"


def target_of(row: dict) -> str:
    return range_of(row["target"], lambda value: f"≤ {value:.4g}", "–")


def line_of(row: dict) -> str:
    mark = {True: "met", False: "MISSED", None: ""}[row["met"]]
    return f"{row['metric']:<24}{number_of(row):<20}{target_of(row):<14}{mark:<8}{row['what']}"


def cells_of(row: dict) -> tuple[str, ...]:
    value = number_of(row) if row["met"] is not False else f"**{number_of(row)}**"
    floor = "" if row["floor"] is None else f"{row['floor']:.4f}"
    return row["system"], f"`{row['metric']}`", value, target_of(row), floor, row["what"]


ACCURACY = Measurements(
    name="accuracy",
    item="system",
    modules=SYSTEMS,
    measure=lambda module, system, picture: module.measure(system, picture),
    line=line_of,
    headings=("system", "metric", "value", "target", "floor", ""),
    cells=cells_of,
)

if __name__ == "__main__":
    sys.exit(ACCURACY.run(__doc__, "--table"))
