"""What operators ask of a running application over a bus: to replay its dead letters."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

import msgspec

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import describe, escaped, reason_of
from ...errors import SpaDatError
from ...transports import REPLY_HEADER, Envelope, is_reserved
from ..messaging._bus_connection import BusConnection
from ..messaging._limited_posts import LimitedPosts
from ..payloads._codec import JSON
from ._dead_letter_replay import LetterResult
from ._dead_letter_search import TooManyReaders

if TYPE_CHECKING:
    from ._administered_run import AdministeredRun
    from ._dead_letters import DeadLetters

__all__ = ["LetterAnswer", "LetterCommand", "LetterCommands"]

_LONGEST = 4_096
# Whoever may answer requests may ask, and each takes a task until its actor is done.
_MOST_AT_ONCE = 100

log = get_logger("spa_dat")


class LetterCommand(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What is asked.

    Attributes:
        ask: ``who`` is there, or to ``replay`` a letter.
        reply_to: where the answer goes.
        instance: who is asked; None for everybody.
        letter: its name.
        since: when it was stored, in seconds since 1970 (UTC), if that is known.
        anyway: also if another instance has failed and each gets the messages itself.
    """

    ask: Literal["who", "replay"]
    reply_to: str
    instance: str | None = None
    letter: str = ""
    since: float | None = None
    anyway: bool = False


class LetterAnswer(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What is answered.

    Attributes:
        instance: who answers.
        outcome: as in `LetterOutcome`; None from who only says that it is there.
        why: the same.
        elsewhere: the same.
    """

    instance: str
    outcome: LetterResult | None = None
    why: str = ""
    elsewhere: bool = False


_decode = msgspec.json.Decoder(LetterCommand).decode
_encode = msgspec.json.Encoder().encode


class LetterCommands:
    """Does what operators ask for; anybody who may write to the inbox for replies may ask.

    So nothing is taken from the command but the name of a letter, which only those have stored who
    may write where they are kept; and the answer goes only to an inbox for replies.

    Args:
        run: the run of the application.
        letters: its dead letters.
    """

    def __init__(self, run: AdministeredRun, letters: DeadLetters) -> None:
        self._run = run
        self._letters = letters
        self._at_work = 0
        self._answers = LimitedPosts()
        self._log = LimitedLog(log)

    def take(self, connection: BusConnection, envelope: Envelope) -> None:
        """Do what a message asks for; never raises."""
        if REPLY_HEADER in envelope.headers:
            # Whoever may send a request to somebody may have this say anything here.
            self._refuse("it is the reply to a request")
            return
        try:
            command = _decode(envelope.payload[: _LONGEST + 1])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._refuse("this version does not understand it")
            return
        if not is_reserved(command.reply_to) or connection.reply_addresses.problem(
            Envelope(topic=envelope.topic, response_topic=command.reply_to)
        ):
            self._refuse("its reply address is not a reply inbox")
            return
        own = self._run.settings.identity.instance
        if command.instance not in (None, own):
            return
        if self._answers.full:
            self._refuse("too many answers to others are under way")
            return
        if command.ask == "who":
            self._answer(connection, command, LetterAnswer(instance=own))
        elif command.instance is None:
            self._refuse("it names no instance")
        elif self._at_work >= _MOST_AT_ONCE:
            self._cannot(connection, command, own, f"{self._at_work} are under way already")
        else:
            self._at_work += 1
            self._run.own_task(self._replay(connection, command, own))

    def _refuse(self, why: str) -> None:
        self._run.settings.stats["commands.refused"] += 1
        self._log.warning("%s: a command over a bus is ignored: %s", self._run.system.name, why)

    def _cannot(
        self, connection: BusConnection, command: LetterCommand, own: str, why: str
    ) -> None:
        self._refuse(why)
        self._answer(connection, command, LetterAnswer(instance=own, outcome="refused", why=why))

    async def _replay(self, connection: BusConnection, command: LetterCommand, own: str) -> None:
        try:
            done = await self._letters.replay(
                command.letter,
                bus=connection.provider.address,
                since=command.since,
                anyway=command.anyway,
            )
            answer = LetterAnswer(
                instance=own, outcome=done.outcome, why=done.why, elsewhere=done.elsewhere
            )
        except TooManyReaders as error:
            self._cannot(connection, command, own, describe(error))
            return
        except SpaDatError as error:
            answer = LetterAnswer(instance=own, outcome="refused", why=escaped(describe(error)))
        except asyncio.CancelledError:
            answer = LetterAnswer(instance=own, outcome="refused", why="the application stops")
        except Exception as error:  # noqa: BLE001 (whatever it is, somebody waits for the answer)
            why = reason_of(error)
            self._log.error("%s: a dead letter is not replayed: %s", self._run.system.name, why)
            answer = LetterAnswer(instance=own, outcome="refused", why=why)
        finally:
            self._at_work -= 1
        self._answer(connection, command, answer)

    def _answer(
        self, connection: BusConnection, command: LetterCommand, answer: LetterAnswer
    ) -> None:
        environment = self._run.settings.environment
        try:
            posted = connection.bus.post(
                Envelope(
                    topic=command.reply_to,
                    payload=_encode(answer),
                    content_type=JSON,
                    id=environment.new_id(),
                    source=self._run.system.name,
                    time=environment.now(),
                    headers={REPLY_HEADER: "1"},
                )
            )
        except SpaDatError as error:
            self._refuse(f"it cannot be answered: {describe(error)}")
        else:
            self._answers.add(posted)
            posted.add_done_callback(connection.lost_posts.report)
