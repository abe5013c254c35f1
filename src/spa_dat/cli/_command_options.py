"""Options that commands of the command line have in common, and reading their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from .._moments import YEAR_1970, parse_moment, seconds_back
from .._texts import quoted

__all__ = [
    "EPILOG",
    "ask_for_command",
    "count_reader",
    "json_option",
    "message_options",
    "name_option",
    "read_headers",
    "read_moment",
    "read_seconds",
    "several_options",
    "since_option",
    "until_option",
    "url_option",
]

_LONGEST_VALUE = 60
_EARLIEST = "earliest"

EPILOG = (
    "Exit code: 0 when all went well, 1 when the application failed, 2 when something about the"
    " command is wrong. What it is stands on standard error, in one line."
)
"""Of most commands."""


def ask_for_command(context: click.Context, group: click.Group) -> None:
    """Raise UsageError if a group was called without one of its commands."""
    if context.invoked_subcommand is None:
        names = ", ".join(group.commands)
        raise click.UsageError(f"Missing command: one of {names}", context)


def count_reader(most: int | None = None) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return what reads an option that is a whole number, 1 or more, and at the most this one."""

    def read(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
        if value is None:
            return None
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1 or (most is not None and number > most):
            rest = ", 1 or more" if most is None else f" from 1 to {most}"
            raise click.BadParameter(f"{value!r}: give a whole number{rest}", context, option)
        return number

    return read


def read_seconds(
    context: click.Context, option: click.Parameter, value: str | None
) -> float | None:
    """Read an option that is a time: 0 or more, and finite (``nan`` and ``inf`` are floats)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise click.BadParameter(f"{value!r}: give seconds, 0 or more", context, option)
    return seconds


def read_headers(
    context: click.Context, option: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    """Read an option that is the name and the value of a header."""
    headers: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{quoted(text, 40)}: give NAME=VALUE", context, option)
        if name in headers:
            raise click.BadParameter(
                f"{quoted(name, 40)} is given twice: leave one out", context, option
            )
        headers[name] = value
    return headers


def several_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what gives a command several options or arguments, in this order."""

    def give(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return give


name_option = click.option(
    "--name", metavar="NAME", help="Of the provider, where URL is a document that has several."
)
url_option = click.option(
    "--url",
    metavar="URL",
    envvar="SPA_DAT_URL",
    help="The bus in place of the application's default one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
message_options = several_options(
    name_option,
    click.option(
        "--header",
        "headers",
        multiple=True,
        callback=read_headers,
        metavar="NAME=VALUE",
        help="May be repeated.",
    ),
    click.option("--key", metavar="TEXT", help="Messages with the same key stay in order."),
    click.option(
        "--content-type",
        metavar="TYPE",
        help="By default application/json for what is JSON, text/plain for other text, and"
        " application/octet-stream for the rest.",
    ),
    click.option(
        "--timeout",
        callback=read_seconds,
        metavar="SECONDS",
        default="30",
        show_default=True,
        help="How long to wait for the broker or the reply.",
    ),
)


def read_moment(
    context: click.Context, option: click.Parameter, value: str | None
) -> datetime | None:
    """Read an option that is a time; without a zone it is local time."""
    if value is None:
        return None
    now = datetime.now(UTC)
    beginning = option.name == "since"
    if beginning and value == _EARLIEST:
        return YEAR_1970
    try:
        back = seconds_back(value)
        if back is not None:
            return max(now - timedelta(seconds=back), YEAR_1970)
        moment = parse_moment(value).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{value[:_LONGEST_VALUE]!r}: give a time such as '2026-11-27T09:00', or with a zone"
            " '2026-11-27T09:00:00Z', or how far to go back, such as '90s', '30m', '1h' or '7d'"
            + (f", or {_EARLIEST!r} for all there is" if beginning else ""),
            context,
            option,
        ) from None
    if moment < YEAR_1970:
        raise click.BadParameter(f"{value!r}: no message is older than 1970", context, option)
    if beginning and moment > now:
        raise click.BadParameter(f"{value!r} is in the future", context, option)
    return moment


since_option = click.option(
    "--since",
    callback=read_moment,
    metavar="TIME",
    help="Begin with what topics of a Kafka cluster hold from this time on, such as"
    " 2026-11-27T09:00 (local time unless a zone follows), or from 90s, 30m, 1h or 7d ago, or"
    f" {_EARLIEST}.",
)
until_option = click.option(
    "--until",
    callback=read_moment,
    metavar="TIME",
    help="Stop at this time; without it, at the end that the topics have at the start.",
)
