"""``spa-dat dlq replay`` and ``spa-dat dlq discard``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from .._texts import describe, escaped
from ..errors import ConfigurationError, SpaDatError
from ..runtime.dead_letters._reading import stored_letters
from ..runtime.dead_letters._stored_letter import LetterFilter, StoredLetter
from ..transports import KafkaConfig, SocketProvider
from ._broker_client import run_client
from ._dlq_admin import AdminLetters
from ._dlq_bus import RunningInstances, running_instances
from ._dlq_show import letter_as_text
from ._dlq_source import LetterSource
from ._message_output import json_line
from ._standard_output import BackgroundOutput, check_open, write_notice
from ._terminal import BAD, GOOD, ProgressBar, is_terminal, styled

__all__ = ["Choice", "discard_letters", "replay_letters"]

_FAILED = 1
_MOST = 10_000
_TIMEOUT = 30.0
_LONGEST_NAME = 300
_GOOD = ("handled", "discarded")


@dataclass(frozen=True)
class Choice:
    """Which dead letters are to be changed.

    Attributes:
        names: these; none for all that the filter wants.
        wanted: the filter.
        everything: whether all are meant if the filter says nothing.
        unreadable: whether what cannot be read is meant, and nothing else.
    """

    names: tuple[str, ...]
    wanted: LetterFilter
    everything: bool = False
    unreadable: bool = False

    def __post_init__(self) -> None:
        says = self.everything or self.unreadable or self.wanted != LetterFilter()
        if self.names and says:
            raise ConfigurationError("give names of letters, or options that select them, not both")
        if not self.names and not says:
            raise ConfigurationError(
                "say which letters: by their names, by --actor, --error, --since or --until, or"
                " --all"
            )

    def means(self, letter: StoredLetter) -> bool:
        """Return whether this letter is meant."""
        if self.names:
            return letter.name in self.names
        if self.unreadable and letter.flaw is None:
            return False
        return self.wanted.wants(letter)


def replay_letters(
    source: LetterSource,
    *,
    choice: Choice,
    instance: str | None,
    dry_run: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Let the actors that failed handle messages once more; returns the exit code.

    It is 1 if not all were handled.

    Args:
        source: whose they are, and where.
        choice: which letters.
        instance: of the application, to do it in place of those that failed; None for these.
        dry_run: only show which letters it would be.
        timeout: seconds to wait for the application to answer, and for each message.
        as_json: show what happens for programs.

    Raises:
        ConfigurationError: an argument is wrong.
        TransportError: the broker cannot be used.
    """
    check_open()
    if source.admin is not None:
        letters = AdminLetters(source)
        if instance not in (None, letters.instance):
            raise ConfigurationError(f"instance {letters.instance!r} answers, not {instance!r}")
        change = partial(
            letters.change, what="replay", anyway=instance is not None, timeout=timeout
        )
        return run_client(_change_by(letters, source.application, choice, change, dry_run, as_json))
    application, provider = source.application, source.provider()

    async def work(instances: RunningInstances, changes: _Changes) -> None:
        nobody = (
            f"no running instance of application {application!r} has answered within {timeout:g} s"
        )
        if not await instances.find_instances(application, timeout):
            raise ConfigurationError(
                f"{nobody}, and only that can handle the messages: start it, or give a longer"
                " --timeout; the dead letters are as they were"
            )
        for letter in changes.letters:
            answer = await instances.replay(application, letter, instance, timeout)
            await changes.tell(letter, answer.outcome or "refused", answer.why)
            # Its actor is slow, or nobody is there any more to answer for the others either.
            if answer.outcome is None and not await instances.find_instances(application, timeout):
                raise ConfigurationError(f"{nobody}; the other dead letters are as they were")

    return run_client(_change(provider, application, choice, work, dry_run, as_json))


def discard_letters(
    source: LetterSource,
    *,
    choice: Choice,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Remove dead letters without handling them; returns the exit code, 1 if some are still there.

    Args:
        source: whose they are, and where.
        choice: which letters.
        dry_run: only show which letters it would be.
        as_json: show what happens for programs.

    Raises:
        ConfigurationError, TransportError: as for `replay_letters`.
    """
    check_open()
    if source.admin is not None:
        letters = AdminLetters(source)
        change = partial(letters.change, what="discard")
        return run_client(_change_by(letters, source.application, choice, change, dry_run, as_json))
    provider = source.provider()

    async def work(instances: RunningInstances, changes: _Changes) -> None:
        if isinstance(provider.config, KafkaConfig):
            write_notice("Kafka cannot remove single records: they are marked as gone, and stay")
        for letter in changes.letters:
            try:
                await instances.bus.unpark(letter.envelope, timeout=_TIMEOUT)
            except SpaDatError as error:
                # That of one letter may have an address that nobody can publish to.
                await changes.tell(letter, "refused", escaped(describe(error)))
            else:
                await changes.tell(letter, "discarded", "")

    return run_client(_change(provider, source.application, choice, work, dry_run, as_json))


class _Work(Protocol):
    async def __call__(self, instances: RunningInstances, changes: _Changes, /) -> None: ...


async def _change(
    provider: SocketProvider,
    application: str,
    choice: Choice,
    work: _Work,
    dry_run: bool,
    as_json: bool,
) -> int:
    chosen, more = await _chosen(provider, application, choice)
    async with _Changes(application, choice, chosen, more, as_json=as_json) as changes:
        if dry_run:
            await changes.show()
        elif chosen:
            async with running_instances(provider) as instances:
                await work(instances, changes)
    return changes.code


async def _change_by(
    letters: AdminLetters,
    application: str,
    choice: Choice,
    change: Callable[[str], tuple[str, str]],
    dry_run: bool,
    as_json: bool,
) -> int:
    """Do as `_change`, through an admin endpoint."""
    stored, more = await asyncio.to_thread(letters.stored, choice.wanted)
    chosen = _in_order([letter for letter in stored if choice.means(letter)])
    async with _Changes(application, choice, chosen, more, as_json=as_json) as changes:
        if dry_run:
            await changes.show()
        else:
            for letter in chosen:
                await changes.tell(letter, *await asyncio.to_thread(change, letter.name))
    return changes.code


async def _chosen(
    provider: SocketProvider, application: str, choice: Choice
) -> tuple[list[StoredLetter], bool]:
    """Return the letters that are meant, oldest first, and whether there are more of them.

    They are without their messages.
    """
    chosen: list[StoredLetter] = []
    # Not one for each of a million: most of them are not meant.
    only = choice.names[0] if len(choice.names) == 1 else None
    async with contextlib.aclosing(stored_letters(provider, application, only)) as letters:
        async for letter in letters:
            if not choice.means(letter):
                continue
            if len(chosen) == _MOST:
                return _in_order(chosen), True
            chosen.append(letter.without_message())
    return _in_order(chosen), False


def _in_order(letters: list[StoredLetter]) -> list[StoredLetter]:
    return sorted(letters, key=lambda letter: letter.stored or 0.0)


class _Changes:
    """Tells what becomes of letters: on standard output, and on a terminal how far it is.

    Args:
        application: whose they are.
        choice: says which are meant.
        letters: those of them that are there.
        more: whether there are more of them.
        as_json: for programs.

    Attributes:
        letters: as given.
        code: the exit code of the command.
    """

    def __init__(
        self,
        application: str,
        choice: Choice,
        letters: Sequence[StoredLetter],
        more: bool,
        *,
        as_json: bool,
    ) -> None:
        self.letters = letters
        self.code = 0
        self._application = application
        self._more = more
        found = {letter.name for letter in letters}
        self._missing = [name for name in choice.names if name not in found]
        self._only_shown = False
        self._bad = 0
        self._good = 0
        self._as_json = as_json
        self._output: BackgroundOutput | None = None
        shows = len(letters) > 1 and is_terminal(sys.stderr)
        self._bar = ProgressBar(sys.stderr, len(letters)) if shows else None

    async def __aenter__(self) -> Self:
        # If nobody reads what is told, it is done all the same.
        self._output = BackgroundOutput(unread=lambda: None)
        if self._bar is not None:
            self._bar.show()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.hide()
        if self._output is not None:
            self._output.close()
        if error is None:
            self._end()

    def _end(self) -> None:
        for name in self._missing:
            told = escaped(name, 80)
            write_notice(f"application {self._application!r} has no dead letter {told!r}")
        if self._more:
            count = len(self.letters)
            write_notice(f"these are the first {count}, and there are more: run the command again")
        if self._only_shown:
            write_notice(f"dead letters: {len(self.letters)}")
        else:
            write_notice(f"dead letters: {self._good} done, {self._bad} not")
        self.code = _FAILED if self._missing or self._bad else 0

    async def show(self) -> None:
        """Show the letters, of which nothing becomes."""
        self._only_shown = True
        for letter in self.letters:
            told = letter.as_dict()
            await self._write(json_line(told) if self._as_json else letter_as_text(letter))

    async def tell(self, letter: StoredLetter, outcome: str, why: str) -> None:
        """Tell what became of a letter."""
        if outcome in _GOOD:
            self._good += 1
        else:
            self._bad += 1
        if self._bar is not None:
            self._bar.hide()
        if self._as_json:
            text = json_line({"letter": letter.name, "outcome": outcome, "why": why or None})
        else:
            shown = styled(outcome, GOOD if outcome in _GOOD else BAD)
            text = f"{escaped(letter.name, _LONGEST_NAME)}  {shown}"
            text += f": {escaped(why)}\n" if why else "\n"
        await self._write(text)
        if self._bar is not None:
            self._bar.advance()
            self._bar.show()

    async def _write(self, text: str) -> None:
        assert self._output is not None
        await self._output.write(text)
