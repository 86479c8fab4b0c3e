"""What the commands show: labelled lines, progress with rate and remaining time, one red sentence for a failure."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from diffusim.core import Model, Statistics

LABEL_WIDTH = 10
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def say(label: str, text: str, style: str = "") -> None:
    """One line: a label, then what there is to say."""
    console.print(Text(f"{label:<{LABEL_WIDTH}}") + Text(text, style), soft_wrap=True)


def show(table: Table) -> None:
    """A table, with every number whole also where the terminal is too narrow for it."""
    needed = Measurement.get(console, console.options.update(width=1000), table).maximum
    Console(highlight=False, width=max(console.width, needed)).print(table)


def fail(message: str) -> NoReturn:
    """One red sentence on stderr, and the exit status 1."""
    errors.print(Text(f"diffusim: {message}", "red"), soft_wrap=True)
    raise typer.Exit(1)


def seconds(value: float) -> str:
    """A duration as people say it."""
    value = round(value)
    if value < 60:
        return f"{value} s"
    minutes, rest = divmod(value, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class _Rate(ProgressColumn):
    """Steps per second and the time that remains, from the mean rate so far."""

    def render(self, task) -> Text:
        if not task.completed or not task.elapsed:
            return Text("")
        rate = task.completed / task.elapsed
        remaining = (task.total - task.completed) / rate
        eta = f"   ETA {seconds(remaining)}" if remaining > 0 else f"   in {seconds(task.elapsed)}"
        return Text(f"{rate:,.0f} {task.fields['unit']}/s{eta}")


@contextmanager
def progress(label: str, text: str, total: int, unit: str = "steps") -> Iterator[Callable[[int], None]]:
    """Shows how far a run of `total` is; gives the function that is told how much more was done.

    A bar in a terminal; elsewhere one line when it is over.
    """
    if not console.is_terminal:
        done, started = 0, time.monotonic()

        def count(n: int) -> None:
            nonlocal done
            done += n

        yield count
        elapsed = time.monotonic() - started
        say(label, f"{text}  {done / max(elapsed, 1e-9):,.0f} {unit}/s   in {seconds(elapsed)}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), _Rate())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{label:<{LABEL_WIDTH}}{text}", total=total, unit=unit)
        yield lambda n: bar.advance(task, n)


def counted(n: int, what: str) -> str:
    """'1 frame', '2,000 frames'."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def describe_model(model: "Model", path: str) -> str:
    """A model in one line."""
    metadata = model.metadata
    snapshots = (metadata.get("training") or {}).get("snapshots")
    n_snapshots = snapshots.get("n_frames") if isinstance(snapshots, dict) else None  # others may say it in words
    trained = f"{metadata['training_temperature']:g} K"
    if n_snapshots:
        trained = f"trained at {trained} on {n_snapshots:,} snapshots"
    return f"{path}   {metadata['kind']}, {counted(model.n_particles, 'particle')}, {trained}"


def describe_step(statistics: "Statistics", adapter: str) -> str:
    """A step in one line (theory 2): the spring and the effective step are the same thing said twice."""
    limit = f" (stability limit {statistics.stability_limit:.1e})" if statistics.stability_limit else ""
    physical = f" = {statistics.time_step:.3g} ps" if statistics.time_step else ""
    return (
        f"spring k = {statistics.spring:.3g} /nm²  ⇔  τ = {statistics.effective_step:.2g} nm²{physical}{limit}   "
        f"adapter {adapter}"
    )
