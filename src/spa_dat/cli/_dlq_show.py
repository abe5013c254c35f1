"""``spa-dat dlq list`` and ``spa-dat dlq show``: the dead letters on a bus."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime

from .._texts import escaped
from ..runtime.dead_letters._reading import stored_letters
from ..runtime.dead_letters._stored_letter import LetterFilter, StoredLetter
from ..runtime.options._option_checks import check_name
from ..transports import SocketProvider
from ._broker_client import run_client
from ._dlq_admin import AdminLetters
from ._dlq_source import LetterSource
from ._message_output import (
    envelope_as_text,
    json_line,
    moment_text,
    received_as_entries,
)
from ._standard_output import BackgroundOutput, check_open, printing, write_notice, write_text
from ._terminal import BAD, HEADING, QUIET, styled

__all__ = [
    "letter_as_text",
    "letter_filter",
    "list_letters",
    "show_letter",
]

_FAILED = 1
_LONGEST_NAME = 300
_LONGEST_TOPIC = 300
_LONGEST_ERROR = 500


def letter_filter(
    actor: str | None, error: str | None, since: datetime | None, until: datetime | None
) -> LetterFilter:
    """Return which dead letters the options of a command ask for.

    Raises:
        ConfigurationError: there cannot be such an actor.
    """
    return LetterFilter(
        actor=None if actor is None else check_name("--actor", actor),
        error=error,
        since=None if since is None else since.timestamp(),
        until=None if until is None else until.timestamp(),
    )


def list_letters(
    source: LetterSource,
    *,
    wanted: LetterFilter,
    as_json: bool,
) -> int:
    """Show the dead letters of an application, in a few words each; returns the exit code.

    Args:
        source: whose they are, and where.
        wanted: which of them.
        as_json: show them for programs.

    Raises:
        ConfigurationError: an argument is wrong.
        TransportError: the broker cannot be used.
    """
    check_open()
    if source.admin is not None:
        letters, more = AdminLetters(source).stored(wanted)
        with printing():
            for letter in letters:
                write_text(json_line(letter.as_dict()) if as_json else letter_as_text(letter))
        if more:
            write_notice(f"these are the first {len(letters)}, and there are more")
        shown, unreadable = len(letters), sum(letter.flaw is not None for letter in letters)
    else:
        counts = run_client(_list(source.provider(), source.application, wanted, as_json))
        if counts is None:
            return 0
        shown, unreadable = counts
    told = f"dead letters: {shown}"
    write_notice(told + (f", {unreadable} of them unreadable" if unreadable else ""))
    return 0


def show_letter(
    source: LetterSource,
    identifier: str,
    *,
    as_json: bool,
) -> int:
    """Show all there is to a dead letter; returns the exit code, 1 if there is no such letter.

    Args:
        source: whose it is, and where.
        identifier: the letter's name.
        as_json: show it for programs.

    Raises:
        ConfigurationError, TransportError: as for `list_letters`.
    """
    check_open()
    if source.admin is not None:
        letter = AdminLetters(source).show(identifier)
    else:
        letter = run_client(_find(source.provider(), source.application, identifier))
    if letter is None:
        wanted = escaped(identifier, 80)
        write_notice(f"application {source.application!r} has no dead letter {wanted!r}")
        return _FAILED
    with printing():
        if as_json:
            told = letter.as_dict()
            shown = letter.envelope if letter.message is None else letter.message
            write_text(json_line(told | {"message": received_as_entries(shown)}))
        else:
            write_text(letter_as_text(letter) + envelope_as_text(letter.message or letter.envelope))
    return 0


async def _list(
    provider: SocketProvider, application: str, wanted: LetterFilter, as_json: bool
) -> tuple[int, int] | None:
    """Show letters; returns how many, and how many of these cannot be read.

    None if whoever reads what is shown has seen enough.
    """
    working = asyncio.current_task()
    assert working is not None
    shown = unreadable = 0
    unread: list[bool] = []

    def end() -> None:
        unread.append(True)
        working.cancel()

    output = BackgroundOutput(unread=end)
    try:
        async with contextlib.aclosing(stored_letters(provider, application)) as letters:
            async for letter in letters:
                if wanted.wants(letter):
                    told = json_line(letter.as_dict()) if as_json else letter_as_text(letter)
                    if not await output.write(told):
                        return None
                    shown += 1
                    unreadable += letter.flaw is not None
    except asyncio.CancelledError:
        if not unread:
            raise
        return None
    finally:
        output.close()
    return shown, unreadable


async def _find(provider: SocketProvider, application: str, identifier: str) -> StoredLetter | None:
    found: AsyncGenerator[StoredLetter, None]
    async with contextlib.aclosing(stored_letters(provider, application, identifier)) as found:
        async for letter in found:
            return letter
    return None


def letter_as_text(letter: StoredLetter) -> str:
    """Return a letter in lines to read."""
    stored = "?" if letter.stored is None else moment_text(letter.stored) or "?"
    head = f"{styled(escaped(letter.name, _LONGEST_NAME), HEADING)}  {styled(stored, QUIET)}"
    if letter.flaw is not None:
        flaw = styled(escaped(letter.flaw, _LONGEST_ERROR), BAD)
        return f"{head}  unreadable\n    {flaw}\n"
    counts = f"attempts: {letter.attempts}"
    if letter.replays:
        counts += f", replays: {letter.replays}"
    lines = [
        f"{head}  {escaped(letter.source, _LONGEST_NAME)}",
        f"    {escaped(letter.topic, _LONGEST_TOPIC)}, {letter.size} bytes, {counts}",
        f"    {styled(escaped(f'{letter.error}: {letter.text}', _LONGEST_ERROR), BAD)}",
    ]
    if letter.obstacle is not None:
        lines.append(f"    cannot be replayed: {escaped(letter.obstacle, _LONGEST_ERROR)}")
    return "".join(f"{line}\n" for line in lines)
