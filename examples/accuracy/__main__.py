"""How accurate the learned models of the examples are: `make accuracy`, or `make accuracy SYSTEM=butane`.

    python examples/accuracy [SYSTEM ...]      # rows to out/accuracy.json, a picture of each to out/accuracy/SYSTEM.png
    python examples/accuracy --table           # writes the table of docs/accuracy.md from out/accuracy.json

Rows of systems that are not measured this time stay in the file.
"""

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "examples" / folder) for folder in ("alkanes", "lennard-jones", "surfaces")]

from diffusim.terminal import console, say, seconds  # noqa: E402

OUT = ROOT / "out"
ROWS = OUT / "accuracy.json"
DOCUMENT = ROOT / "docs" / "accuracy.md"
START, END = "<!-- table: make accuracy -->", "<!-- end of table -->"
SYSTEMS = {  # the module whose measure(system, picture) gives the rows
    "double-well": "measure_surfaces",
    "muller-brown": "measure_surfaces",
    "butane": "measure_alkanes",
    "alkane": "measure_alkanes",
    "ala2-5bead": "measure_ala2",
    "ala2": "measure_ala2",
    "lennard-jones": "measure_lennard_jones",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"of {', '.join(SYSTEMS)}; all without any")
    parser.add_argument("--table", action="store_true", help="write the table of docs/accuracy.md")
    args = parser.parse_args()
    unknown = [system for system in args.systems if system not in SYSTEMS]
    if unknown:
        parser.error(f"there is no system {unknown[0]}; known are {', '.join(SYSTEMS)}")
    if args.table:
        write_table()
        return 0
    (OUT / "accuracy").mkdir(parents=True, exist_ok=True)
    for number, system in enumerate(args.systems or SYSTEMS, start=1):
        console.print()
        say("system", f"{system}   ({number} of {len(args.systems or SYSTEMS)})")
        started = time.monotonic()
        rows = [
            row.entry() for row in import_module(SYSTEMS[system]).measure(system, OUT / "accuracy" / f"{system}.png")
        ]
        kept = [row for row in read_rows() if row["system"] != system]
        order = list(SYSTEMS)
        entries = sorted(
            kept + rows, key=lambda row: order.index(row["system"]) if row["system"] in order else len(order)
        )
        ROWS.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
        for row in rows:
            mark = {True: "met", False: "MISSED", None: ""}[row["met"]]
            say("", f"{row['metric']:<24}{number_of(row):<20}{target_of(row):<14}{mark:<8}{row['what']}")
        say("", f"out/accuracy/{system}.png   in {seconds(time.monotonic() - started)}")
    return 0


def read_rows() -> list[dict]:
    return json.loads(ROWS.read_text()) if ROWS.exists() else []


def number_of(row: dict) -> str:
    error = f" ± {row['error']:.4f}" if row["error"] is not None else ""
    return f"{row['value']:.4f}{error}"


def target_of(row: dict) -> str:
    target = row["target"]
    if target is None:
        return "–"
    return f"{target[0]:g} – {target[1]:g}" if isinstance(target, list | tuple) else f"≤ {target:.4g}"


def write_table() -> None:
    lines = ["| system | metric | value | target | floor | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in read_rows():
        value = number_of(row) if row["met"] is not False else f"**{number_of(row)}**"
        floor = "" if row["floor"] is None else f"{row['floor']:.4f}"
        lines.append(f"| {row['system']} | `{row['metric']}` | {value} | {target_of(row)} | {floor} | {row['what']} |")
    text = DOCUMENT.read_text()
    before, after = text[: text.index(START)], text[text.index(END) :]
    DOCUMENT.write_text("\n".join([before + START, *lines, after]))
    say("table", "docs/accuracy.md")


if __name__ == "__main__":
    sys.exit(main())
