"""The command ``spa-dat dlq`` and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ._command_options import (
    EPILOG,
    ask_for_command,
    json_option,
    name_option,
    read_moment,
    read_seconds,
    several_options,
)
from ._terminal import Group

if TYPE_CHECKING:
    from ..runtime.dead_letters._stored_letter import LetterFilter
    from ._dlq_replay import Choice
    from ._dlq_source import LetterSource

__all__ = ["dlq"]

_EPILOG_OF_LETTERS = (
    "Exit code: 0 when all went well, 1 when there is no such dead letter, 2 when something about"
    " the command is wrong or the broker cannot be used."
)
_EPILOG_OF_CHANGES = (
    "Exit code: 0 when all went well, 1 when there is no such dead letter or it is still there, 2"
    " when something about the command is wrong, nobody answers, or the broker cannot be used."
)


@click.group(
    "dlq",
    cls=Group,
    invoke_without_command=True,
    epilog=EPILOG,
    short_help="Look at dead letters, replay or discard them.",
)
@click.pass_context
def dlq(context: click.Context) -> None:
    """Look at dead letters: messages that an application could not handle, and has stored.

    They are read from the broker, whether the application is running or not.
    """
    ask_for_command(context, dlq)


_application_option = click.option(
    "--application", required=True, metavar="NAME", help="The application that stored them."
)
_admin_option = click.option(
    "--admin",
    metavar="HOST:PORT",
    help="Ask the admin endpoint of the running application instead of the broker; needed for"
    " memory://. Its token is in the environment variable SPA_DAT_ADMIN_TOKEN.",
)
_wanted_options = several_options(
    click.option("--actor", metavar="NAME", help="Only those of this actor."),
    click.option(
        "--error",
        metavar="TEXT",
        help="Only those whose error has this in the name of its class or in its text, in upper or"
        " lower case.",
    ),
    click.option(
        "--since",
        callback=read_moment,
        metavar="TIME",
        help="Only those stored from this time on, such as 2026-11-27T09:00 (local time unless a"
        " zone follows), or from 90s, 30m, 1h or 7d ago.",
    ),
    click.option(
        "--until", callback=read_moment, metavar="TIME", help="Only those stored before this time."
    ),
)


def _source(given: dict[str, Any]) -> LetterSource:
    """Take the options out that say whose dead letters it is about, and where they are."""
    from ._dlq_source import LetterSource

    return LetterSource(*(given.pop(name) for name in ("url", "application", "name", "admin")))


def _wanted(given: dict[str, Any]) -> LetterFilter:
    """Take the options out that say which dead letters are wanted."""
    from ._dlq_show import letter_filter

    return letter_filter(*(given.pop(name) for name in ("actor", "error", "since", "until")))


@dlq.command("list", epilog=_EPILOG_OF_LETTERS, short_help="List dead letters.")
@click.argument("url")
@_application_option
@name_option
@_admin_option
@_wanted_options
@json_option
def _dlq_list(**given: Any) -> int:
    """List the dead letters of an application on an MQTT broker or a Kafka cluster.

    URL is that of the broker, or of a configuration document, or memory:// with --admin. Anything
    else that is found where they are kept is listed as unreadable. Nothing is changed.
    """
    from ._dlq_show import list_letters

    source, wanted = _source(given), _wanted(given)
    return list_letters(source, wanted=wanted, **given)


@dlq.command("show", epilog=_EPILOG_OF_LETTERS, short_help="Show a dead letter.")
@click.argument("url")
@click.argument("identifier", metavar="LETTER")
@_application_option
@name_option
@_admin_option
@json_option
def _dlq_show(**given: Any) -> int:
    """Show a dead letter: what went wrong, and the message with its headers and payload.

    LETTER is its name in spa-dat dlq list.
    """
    from ._dlq_show import show_letter

    return show_letter(_source(given), **given)


_change_options = several_options(
    click.argument("url"),
    click.argument("letters", nargs=-1, metavar="[LETTER]..."),
    _application_option,
    name_option,
    _admin_option,
    _wanted_options,
    click.option("--all", "everything", is_flag=True, help="All of them."),
    click.option("--dry-run", is_flag=True, help="Only list the letters concerned."),
)


def _choice(given: dict[str, Any]) -> Choice:
    """Take the options out that say which dead letters are to be changed."""
    from ._dlq_replay import Choice

    return Choice(
        given.pop("letters"),
        _wanted(given),
        everything=given.pop("everything"),
        unreadable=given.pop("unreadable", False),
    )


@dlq.command(
    "replay", epilog=_EPILOG_OF_CHANGES, short_help="Handle the messages of dead letters again."
)
@_change_options
@click.option(
    "--instance",
    metavar="NAME",
    help="Have this instance of the application handle them, instead of those that failed.",
)
@click.option(
    "--timeout",
    callback=read_seconds,
    metavar="SECONDS",
    default="30",
    show_default=True,
    help="How long to wait for the application to answer, and for each message to be handled.",
)
@json_option
def _dlq_replay(**given: Any) -> int:
    """Have a running application handle the messages of its dead letters again.

    Only the actor that failed gets them, as they were. A dead letter is removed once its message
    is handled; if that fails again, it stays. LETTER is a name in spa-dat dlq list.
    """
    from ._dlq_replay import replay_letters

    source, choice = _source(given), _choice(given)
    return replay_letters(source, choice=choice, **given)


@dlq.command(
    "discard", epilog=_EPILOG_OF_CHANGES, short_help="Remove dead letters without handling them."
)
@_change_options
@click.option("--unreadable", is_flag=True, help="Only what is listed as unreadable.")
@json_option
def _dlq_discard(**given: Any) -> int:
    """Remove dead letters for good, and what strangers have put in their place.

    LETTER is a name in spa-dat dlq list.
    """
    from ._dlq_replay import discard_letters

    source, choice = _source(given), _choice(given)
    return discard_letters(source, choice=choice, **given)
