"""The figures of the paper, redone: `make paper`, or `make paper FIGURE=butane`.

    python examples/paper [FIGURE ...]       # rows to out/paper.json, a picture of each to out/paper/FIGURE.png
    python examples/paper --document         # the table and the pictures of docs/paper.md from out/

Rows of figures that are not made this time stay in the file.
"""

import argparse
import json
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "examples" / folder) for folder in ("accuracy", "alkanes", "metadynamics", "time-parallel")]

from diffusim.terminal import console, say, seconds  # noqa: E402

OUT = ROOT / "out"
ROWS = OUT / "paper.json"
DOCUMENT = ROOT / "docs" / "paper.md"
START, END = "<!-- table: make paper -->", "<!-- end of table -->"
FIGURES = {  # the module whose measure(picture) gives the rows
    "equivalence": "figure_equivalence",
    "limits": "figure_limits",
    "bound": "figure_bound",
    "butane": "figure_butane",
    "octane": "figure_octane",
    "time-parallel": "figure_time_parallel",
    "metadynamics": "figure_metadynamics",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)}; all without any")
    parser.add_argument("--document", action="store_true", help="write the table and the pictures of docs/paper.md")
    args = parser.parse_args()
    unknown = [figure for figure in args.figures if figure not in FIGURES]
    if unknown:
        parser.error(f"there is no figure {unknown[0]}; known are {', '.join(FIGURES)}")
    if args.document:
        write_document()
        return 0
    (OUT / "paper").mkdir(parents=True, exist_ok=True)
    figures = args.figures or list(FIGURES)
    for number, figure in enumerate(figures, start=1):
        console.print()
        say("figure", f"{figure}   ({number} of {len(figures)})")
        started = time.monotonic()
        rows = [row.entry() for row in import_module(FIGURES[figure]).measure(OUT / "paper" / f"{figure}.png")]
        kept = [row for row in read_rows() if row["figure"] != figure and row["figure"] in FIGURES]
        entries = sorted(kept + rows, key=lambda row: list(FIGURES).index(row["figure"]))
        ROWS.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
        for row in rows:
            say("", f"{row['quantity']:<72}{number_of(row):<22}{expected_of(row)}")
        say("", f"out/paper/{figure}.png   in {seconds(time.monotonic() - started)}")
    return 0


def read_rows() -> list[dict]:
    return json.loads(ROWS.read_text()) if ROWS.exists() else []


def number_of(row: dict) -> str:
    error = f" ± {row['error']:.2g}" if row["error"] is not None else ""
    return f"{row['value']:.4g}{error}"


def expected_of(row: dict) -> str:
    expected = row["expected"]
    if expected is None:
        return ""
    return f"{expected[0]:.4g} – {expected[1]:.4g}" if isinstance(expected, list | tuple) else f"{expected:.4g}"


def write_document() -> None:
    lines = ["| figure | quantity | value | expected |", "| --- | --- | --- | --- |"]
    lines += [f"| {r['figure']} | {r['quantity']} | {number_of(r)} | {expected_of(r)} |" for r in read_rows()]
    text = DOCUMENT.read_text()
    before, after = text[: text.index(START)], text[text.index(END) :]
    DOCUMENT.write_text("\n".join([before + START, *lines, after]))
    (DOCUMENT.parent / "paper").mkdir(exist_ok=True)
    for figure in FIGURES:
        picture = OUT / "paper" / f"{figure}.png"
        if picture.exists() and f"paper/{figure}.png" in text:
            shutil.copy(picture, DOCUMENT.parent / "paper")
    say("document", "docs/paper.md")


if __name__ == "__main__":
    sys.exit(main())
