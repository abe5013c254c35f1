"""The dead letters of a running application, over its bus, for ``spa-dat dlq``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from .._environment import Environment
from ..runtime.admin._dead_letter_commands import LetterAnswer, LetterCommand
from ..runtime.dead_letters._stored_letter import StoredLetter
from ..runtime.payloads._codec import JSON
from ..transports import Bus, Envelope, Identity, SocketProvider, Surroundings, command_topic
from ._dlq_admin import UNANSWERED

__all__ = ["RunningInstances", "running_instances"]

# How long instances have to say that they are there, and how often they are asked.
_GATHER = 1.0
_EXPIRY = 60.0
_TIMEOUT = 30.0
_decode = msgspec.json.Decoder(LetterAnswer).decode
_encode = msgspec.json.Encoder().encode


class RunningInstances:
    """A connection to the broker, and over it to running instances of an application.

    Args:
        bus: the connection.
        environment: ids.
    """

    def __init__(self, bus: Bus, environment: Environment) -> None:
        self.bus = bus
        self._environment = environment
        self._answers: dict[str, asyncio.Queue[LetterAnswer]] = {}
        self._instances: dict[str, None] = {}

    def receive(self, correlation: str, envelope: Envelope) -> None:
        """Take an answer; whatever else it is is ignored."""
        waiting = self._answers.get(correlation)
        if waiting is not None:
            with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
                waiting.put_nowait(_decode(envelope.payload))

    async def find_instances(self, application: str, timeout: float) -> bool:
        """Find out who is running; waits for the first, and a moment for others.

        Returns whether somebody has answered in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        self._instances.clear()
        while not self._instances:
            async with self._asked(application, ask="who") as answers:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GATHER):
                        while True:
                            self._instances[(await answers.get()).instance] = None
            if loop.time() >= deadline:
                break
        return bool(self._instances)

    async def replay(
        self, application: str, letter: StoredLetter, instance: str | None, timeout: float
    ) -> LetterAnswer:
        """Have a letter replayed, by the instance whose actor failed unless another is given.

        Without an answer there is no outcome.
        """
        if letter.obstacle is not None:
            return LetterAnswer(instance="", outcome="refused", why=letter.obstacle)
        chosen = instance or letter.instance
        if chosen not in self._instances:
            if instance is not None:
                why = f"instance {instance!r} is not running"
                return LetterAnswer(instance="", outcome="refused", why=why)
            # Whoever shares the messages may handle them; others refuse it.
            chosen = next(iter(self._instances))
        answer = await self._replay_by(chosen, application, letter, instance, timeout)
        if instance is None:
            for other in [name for name in self._instances if name != chosen]:
                if not answer.elsewhere:
                    break
                answer = await self._replay_by(other, application, letter, None, timeout)
        return answer

    async def _replay_by(
        self,
        chosen: str,
        application: str,
        letter: StoredLetter,
        instance: str | None,
        timeout: float,
    ) -> LetterAnswer:
        asked = self._asked(
            application,
            ask="replay",
            instance=chosen,
            letter=letter.name,
            since=letter.stored,
            anyway=instance is not None,
        )
        async with asked as answers:
            try:
                async with asyncio.timeout(timeout):
                    return await answers.get()
            except TimeoutError:
                return LetterAnswer(instance=chosen, why=UNANSWERED.format(timeout))

    @contextlib.asynccontextmanager
    async def _asked(
        self, application: str, **question: Any
    ) -> AsyncIterator[asyncio.Queue[LetterAnswer]]:
        correlation = self._environment.token()
        answers = self._answers[correlation] = asyncio.Queue()
        command = LetterCommand(reply_to=self.bus.reply_address(correlation), **question)
        envelope = Envelope(
            topic=command_topic(application),
            payload=_encode(command),
            content_type=JSON,
            id=self._environment.new_id(),
            time=self._environment.now(),
            expiry=_EXPIRY,
        )
        try:
            await self.bus.publish(envelope, timeout=_TIMEOUT)
            yield answers
        finally:
            del self._answers[correlation]


@contextlib.asynccontextmanager
async def running_instances(provider: SocketProvider) -> AsyncIterator[RunningInstances]:
    """Connect to the broker for as long as the context lasts."""
    environment = Environment()
    working = asyncio.current_task()
    assert working is not None
    failed: list[BaseException] = []

    def fail(error: BaseException) -> None:
        failed.append(error)
        working.cancel()

    identity = Identity(f"dlq-{environment.token(8)}", ephemeral=True)
    bus = provider.open(Surroundings(identity, environment, fatal=fail))
    instances = RunningInstances(bus, environment)
    try:
        await bus.start(instances.receive)
        yield instances
    except asyncio.CancelledError:
        if failed:
            raise failed[0] from None
        raise
    finally:
        await bus.close()
