"""What a terminal gets in place of plain text: colours, tables and progress bars, by Rich.

Where the output goes elsewhere it is plain text, which programs read; so it is with ``NO_COLOR``
set (https://no-color.org) or ``TERM=dumb``. Rich is imported only for a terminal. Nothing that is
shown is taken for markup: most of it comes from others.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = [
    "BAD",
    "GOOD",
    "HEADING",
    "LABEL",
    "QUIET",
    "Command",
    "Group",
    "ProgressBar",
    "console_of",
    "is_terminal",
    "styled",
    "table",
]

BAD = "bold red"
GOOD = "green"
HEADING = "bold cyan"
LABEL = "cyan"
QUIET = "dim"


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal that shows colours."""
    try:
        # First: it costs least, and each message that `listen` shows asks.
        if stream is None or not stream.isatty():
            return False
    except ValueError:
        # It is closed.
        return False
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console_of(stream: TextIO) -> Console:
    """Return what writes to a terminal."""
    from rich.console import Console

    return Console(file=stream, markup=False, emoji=False, highlight=False)


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """Return a text with the escapes of a style, or as it is where no terminal is.

    Args:
        text: without control characters, in one line or several.
        style: as Rich names it.
        stream: where it is going to be written; None for standard output.
    """
    if not is_terminal(sys.stdout if stream is None else stream):
        return text
    from rich.style import Style

    return Style.parse(style).render(text)


def table(title: str, rows: Iterable[tuple[str, str]]) -> RenderableType:
    """Return labels and texts beside each other, below a title."""
    from rich.console import Group as Several
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style=LABEL)
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(Text(label), Text(text))
    return Several(Text(title, style=HEADING), Padding(grid, (0, 0, 0, 2)))


class ProgressBar:
    """How many of some steps are done, in the last line of a terminal.

    Args:
        stream: the terminal.
        count: of all steps.
    """

    def __init__(self, stream: TextIO, count: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        # By itself it would write from a thread, into what the program writes, and take its
        # streams over.
        self._bar = Progress(
            *columns,
            console=console_of(stream),
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=count)

    def show(self) -> None:
        """Show it, until `hide`; nothing else may be written meanwhile."""
        self._bar.start()
        self._bar.refresh()

    def advance(self) -> None:
        """Count one more step."""
        self._bar.advance(self._task)

    def hide(self) -> None:
        """Take it away, so that something else may be written."""
        self._bar.stop()


class _Parsing(click.Command):
    """Reads the arguments of a command; ``--help`` and ``--version`` are written meanwhile."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments.

        Raises:
            ConfigurationError: standard output cannot be written.
        """
        try:
            return super().parse_args(ctx, args)
        except OSError as error:
            # Not at the top: it imports asyncio, which no other reading of arguments needs.
            from ._standard_output import stop_printing

            stop_printing(error)
            raise click.exceptions.Exit from None


class Command(_Parsing):
    """A command whose help a terminal gets with colours and in a table."""

    def get_help(self, ctx: click.Context) -> str:
        """Return the help, for where standard output goes."""
        return _help(self, ctx) if is_terminal(sys.stdout) else super().get_help(ctx)


class Group(_Parsing, click.Group):
    """Commands whose help a terminal gets with colours and in a table."""

    command_class = Command

    def get_help(self, ctx: click.Context) -> str:
        """Return the help, for where standard output goes."""
        return _help(self, ctx) if is_terminal(sys.stdout) else super().get_help(ctx)


Group.group_class = Group


def _help(command: click.Command, context: click.Context) -> str:
    console = console_of(sys.stdout)
    with console.capture() as captured:
        for part in _parts(command, context):
            console.print(part, width=min(console.width, context.max_content_width or 100))
    return captured.get().rstrip("\n")


def _parts(command: click.Command, context: click.Context) -> Iterator[RenderableType]:
    from rich.text import Text

    pieces = " ".join(command.collect_usage_pieces(context))
    yield Text.assemble(("Usage: ", HEADING), (context.command_path, "bold"), f" {pieces}")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield Text(f"\n{' '.join(paragraph.split())}")
    records = (option.get_help_record(context) for option in command.get_params(context))
    # Arguments stand in the line above, and in the text.
    options = [record for record in records if record is not None and record[1]]
    if options:
        yield ""
        yield table("Options", options)
    if isinstance(command, click.Group):
        named = (
            (name, command.get_command(context, name)) for name in command.list_commands(context)
        )
        yield ""
        yield table(
            "Commands",
            [(name, one.get_short_help_str(limit=200)) for name, one in named if one is not None],
        )
    if command.epilog:
        yield Text(f"\n{command.epilog}", style=QUIET)
