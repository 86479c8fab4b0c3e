"""The command line: `diffusim train | run | sample | report | bound | info | doctor`."""

import signal
import sys
from typing import Annotated

import typer

from diffusim import terminal
from diffusim.commands.bound import bound
from diffusim.commands.doctor import doctor
from diffusim.commands.info import info
from diffusim.commands.report import report
from diffusim.commands.run import run
from diffusim.commands.sample import sample
from diffusim.commands.train import train

app = typer.Typer(
    help="Molecular dynamics from a learned score.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # else "[default: …]" is a tag and vanishes, and paragraphs keep their line breaks
)
for command in (train, run, sample, report, bound, info, doctor):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        from diffusim import _library

        terminal.console.print(f"diffusim {_library.version()}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _command():
    """What the app does. Typer's help puts "<bool>" behind flags, as if they took a value: left out."""
    command = typer.main.get_command(app)
    for flag in (p for one in command.commands.values() for p in one.params if getattr(p, "is_flag", False)):
        flag.metavar = " "
    return command


def main() -> None:
    """Entry point of the console script: foreseeable failures end in one sentence, defects in a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as queues end a job: what Ctrl-C would keep is kept
    try:
        _command()()
    except Exception as error:
        if not _is_foreseeable(error):
            raise
        terminal.errors.print(f"diffusim: {_sentence(error)}", style="red", soft_wrap=True, markup=False)
        sys.exit(1)


def _sentence(error: Exception) -> str:
    """What went wrong: of the system's errors the file and the reason, without Python's decoration."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _is_foreseeable(error: Exception) -> bool:
    """Errors of this package and of OpenMM carry a sentence for the user, and so do those about files."""
    return (
        type(error).__module__.startswith("diffusim.")
        or type(error).__name__ == "OpenMMException"  # by name: most commands work without loading OpenMM
        or isinstance(error, OSError)
    )
