"""Requests to programs of spa-dat 0.4.0, whose replies do not say which request they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from ..._logs import get_logger
from ...errors import ConfigurationError, SpaDatError
from .._contract import Surroundings
from .._envelope import Envelope, without_payload
from .._topics import RESERVED
from .._wire_formats import WireFormats
from ._config import KafkaConfig
from ._errors import connect_problem, describe
from ._records import RecordCodec
from ._reply_inbox import KafkaReplyInbox
from ._topic_names import Names
from .producing._topic_creation import Topics

__all__ = ["LoneRequests"]

_log = get_logger(__name__)

_MOST = 16
_PATIENCE = 30.0
# How long after the time of a request its reply may still come.
_LATEST = 60.0
_LAST_WORD = 2.0


class _LoneInbox(KafkaReplyInbox):
    """Reads a reply topic on which one request at a time waits.

    Attributes:
        name: of the topic.
        level: stands for it in addresses.
        correlation: of the request whose reply has not come; None if there is none.
        due: when the time of that request is over.
        expiry: when that reply is no longer waited for.
    """

    def __init__(self, level: str, name: str, *args: Any) -> None:
        config, client_id, token, codec, wires, topics, surroundings = args
        super().__init__(config, client_id, name, token, codec, wires, topics, surroundings)
        self.level = level
        self.name = name
        self.correlation: str | None = None
        self.due = 0.0
        self.expiry: asyncio.TimerHandle | None = None
        self._wire = wires.of("spa-dat")

    def _hand_over(self, record: Any) -> None:
        waiting = self.correlation
        try:
            reply = self._codec.decode(record)
            # Programs of this package say whose it is even so.
            whose = None if waiting is None else self._prefix + waiting.encode()
            if reply is None or whose is None or reply.correlation not in (None, whose):
                self._stats["replies.foreign"] += 1
            elif self._on_reply is not None and waiting is not None:
                if len(reply.payload) > self._config.largest_received:
                    reply = without_payload(reply)
                self._on_reply(waiting, self._wire.opened(reply))
        # Anybody may have sent it; it must not stop those behind it.
        except Exception:  # noqa: BLE001
            self._log.exception("a reply on %r could not be handed over", self.name)


class LoneRequests:
    """Has each request wait alone on a reply topic, since nothing else says whose a reply is.

    A topic serves the next request once the reply to the last has come, in time or not. One on
    which none comes is deleted a minute after the time of its request, and at the end those are
    on which none is due: 0.4.0 ends when it cannot answer.

    Args:
        config: the configuration.
        client_id: our name in the cluster's logs.
        application: for the names of the topics.
        token: the same, of this run.
        names: translates addresses.
        codec: decodes records.
        wires: the formats of the bus.
        topics: creates and deletes topics.
        surroundings: counters and randomness.
    """

    def __init__(
        self,
        config: KafkaConfig,
        client_id: str,
        application: str,
        token: str,
        names: Names,
        codec: RecordCodec,
        wires: WireFormats,
        topics: Topics,
        surroundings: Surroundings,
    ) -> None:
        self._config = config
        self._application = application
        self._token = token
        self._names = names
        self._topics = topics
        self._parts = (config, client_id, token, codec, wires, topics, surroundings)
        self._on_reply: Callable[[str, Envelope], None] | None = None
        self._room = asyncio.Semaphore(_MOST)
        self._count = 0
        self._next_warning = 0.0
        self._idle: list[_LoneInbox] = []
        self._open: dict[_LoneInbox, None] = {}
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        """Hand replies to this function, with the correlations of their requests."""
        self._on_reply = on_reply

    def post(
        self,
        envelope: Envelope,
        correlation: str,
        publish: Callable[[Envelope], asyncio.Future[None]],
    ) -> asyncio.Future[None]:
        """Send a request; return the future of its confirmation.

        Args:
            envelope: the request.
            correlation: of the request.
            publish: sends it, with the address for its reply.
        """
        return self._spawn(self._post(envelope, correlation, publish))

    async def close(self) -> None:
        """Give up what waits, and delete the topics. Never raises; bounded in time."""
        for inbox in self._open:
            if inbox.expiry is not None:
                inbox.expiry.cancel()
        # A task that is cancelled while it opens an inbox leaves another one.
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait([*self._tasks])
        await asyncio.gather(*(inbox.close() for inbox in self._open))
        await self._delete([inbox.name for inbox in self._open if inbox.correlation is None])
        self._open.clear()

    async def _post(
        self,
        envelope: Envelope,
        correlation: str,
        publish: Callable[[Envelope], asyncio.Future[None]],
    ) -> None:
        if self._room.locked():
            self._warn_of_late_replies()
        await self._room.acquire()
        try:
            inbox = self._idle.pop() if self._idle else await self._opened()
        except BaseException:
            self._room.release()
            raise
        inbox.correlation = correlation
        loop = asyncio.get_running_loop()
        inbox.due = loop.time() + (envelope.expiry or _PATIENCE)
        inbox.expiry = loop.call_at(inbox.due + _LATEST, self._give_up, inbox)
        address = f"{RESERVED}/reply/{inbox.level}/{self._token}/{correlation}"
        try:
            posted = publish(msgspec.structs.replace(envelope, response_topic=address))
        except BaseException:
            # It was not sent, so no reply will come.
            self._free(inbox)
            raise
        await posted

    def _warn_of_late_replies(self) -> None:
        """Say, once a minute at most, that requests wait for replies that will hardly come."""
        now = asyncio.get_running_loop().time()
        late = sum(inbox.correlation is not None and inbox.due <= now for inbox in self._open)
        if late and now >= self._next_warning:
            self._next_warning = now + _LATEST
            _log.warning(
                "requests in the format of spa-dat 0.4.0 have to wait: %d of the %d that may be"
                " under way got no reply in time, and keep their places for another %g s, because"
                " one may still come; check that the program that answers them is running",
                late,
                _MOST,
                _LATEST,
            )

    async def _opened(self) -> _LoneInbox:
        """Return an inbox on a new topic.

        Raises:
            SpaDatError: the topic may not or cannot be created, or not be read.
        """
        if self._config.create_topics == "never":
            raise ConfigurationError(
                "a request in the format of spa-dat 0.4.0 needs a topic that is created for its"
                " reply, and create_topics='never' allows none: give create_topics='own'"
            )
        level = f"{self._application}-{self._token}-{self._count}"
        self._count += 1
        inbox = _LoneInbox(level, self._names.replies(level), *self._parts)
        self._open[inbox] = None
        try:
            await self._topics.ensure([inbox.name], self._config.connect_timeout)
            await inbox.start(lambda correlation, reply: self._arrived(inbox, correlation, reply))
        except BaseException as error:
            self._spawn(self._remove(inbox))
            if isinstance(error, SpaDatError) or not isinstance(error, Exception):
                raise
            config = self._config
            problem = connect_problem(error, config.address, config.login.username)
            raise problem.error from error
        return inbox

    def _arrived(self, inbox: _LoneInbox, correlation: str, reply: Envelope) -> None:
        self._free(inbox)
        assert self._on_reply is not None
        self._on_reply(correlation, reply)

    def _free(self, inbox: _LoneInbox) -> None:
        inbox.correlation = None
        if inbox.expiry is not None:
            inbox.expiry.cancel()
        self._idle.append(inbox)
        self._room.release()

    def _give_up(self, inbox: _LoneInbox) -> None:
        inbox.correlation = None
        self._room.release()
        self._spawn(self._remove(inbox))

    async def _remove(self, inbox: _LoneInbox) -> None:
        await inbox.close()
        await self._delete([inbox.name])
        self._open.pop(inbox, None)

    async def _delete(self, names: list[str]) -> None:
        if not names:
            return
        try:
            async with asyncio.timeout(_LAST_WORD):
                await self._topics.delete(names)
        except Exception as error:  # noqa: BLE001
            _log.warning("reply topics %s are not deleted: %s", ", ".join(names), describe(error))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task
