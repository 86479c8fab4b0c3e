"""What `make accuracy` and `make paper` share: one item is measured after the other; other rows stay."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from diffusim.terminal import console, say, seconds

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Measurements:
    """Items (`item` is what one is called) with the modules that measure them; rows go to out/NAME.json, the picture of
    each to out/NAME/ITEM.png, and a table of the rows between `make NAME` and the end in docs/NAME.md.

    `measure(module, item, picture)` gives rows, `line(row)` shows one, `cells(row)` are those of it in the table.
    """

    name: str
    item: str
    modules: dict[str, str]
    measure: Callable[[object, str, Path], Sequence]
    line: Callable[[dict], str]
    headings: Sequence[str]
    cells: Callable[[dict], Sequence[str]]
    root: Path = ROOT

    @property
    def pictures(self) -> Path:
        return self.root / "out" / self.name

    @property
    def file(self) -> Path:
        return self.root / "out" / f"{self.name}.json"

    @property
    def document(self) -> Path:
        return self.root / "docs" / f"{self.name}.md"

    def run(self, description: str, flag: str) -> int:
        """The command line; with `flag` it writes the document, and measures nothing."""
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, prog=f"examples/{self.name}"
        )
        known = ", ".join(self.modules)
        parser.add_argument("items", nargs="*", metavar=self.item.upper(), help=f"of {known}; all without any")
        parser.add_argument(flag, dest="document", action="store_true", help=f"write the table of docs/{self.name}.md")
        args = parser.parse_args()
        if unknown := [item for item in args.items if item not in self.modules]:
            parser.error(f"there is no {self.item} {unknown[0]}; known are {known}")
        if args.document:
            self.write_document()
            return 0
        self.pictures.mkdir(parents=True, exist_ok=True)
        items = args.items or list(self.modules)
        for number, item in enumerate(items, start=1):
            console.print()
            say(self.item, f"{item}   ({number} of {len(items)})")
            started = time.monotonic()
            picture = self.pictures / f"{item}.png"
            rows = [row.entry() for row in self.measure(import_module(self.modules[item]), item, picture)]
            self.keep(item, rows)
            for row in rows:
                say("", self.line(row))
            say("", f"out/{self.name}/{item}.png   in {seconds(time.monotonic() - started)}")
        return 0

    def rows(self) -> list[dict]:
        """Those of the last measurement of each item."""
        return json.loads(self.file.read_text()) if self.file.exists() else []

    def keep(self, item: str, rows: list[dict]) -> None:
        """Replace the rows of an item; items that are no more go."""
        order = list(self.modules)
        kept = [row for row in self.rows() if row[self.item] != item and row[self.item] in order]
        entries = sorted(kept + rows, key=lambda row: order.index(row[self.item]))
        self.file.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")

    def write_document(self) -> None:
        """The table of all rows, in place of the one in the document."""
        start, end = f"<!-- table: make {self.name} -->", "<!-- end of table -->"
        lines = [self.headings, ["---"] * len(self.headings), *map(self.cells, self.rows())]
        table = ["| " + " | ".join(cells) + " |" for cells in lines]
        text = self.document.read_text()
        before, after = text[: text.index(start)], text[text.index(end) :]
        self.document.write_text("\n".join([before + start, *table, after]))
        say("document", f"docs/{self.name}.md")


def range_of(value: float | Sequence[float] | None, number: Callable[[float], str], missing: str) -> str:
    """A wanted value, or the range of one."""
    if value is None:
        return missing
    return f"{value[0]:g} – {value[1]:g}" if isinstance(value, list | tuple) else number(value)
