"""The publisher: publishing across all connections and producers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aiokafka.structs import TopicPartition

from ...._logs import get_logger
from ..._contract import Surroundings
from ..._outbox import Outbox, OutboxEntry
from .._config import KafkaConfig
from .._errors import connect_problem, describe, is_obstacle
from .._reachability import MOVED, reach
from .._throttling import Throttling
from ._closed_connections import refused_publish
from ._partition_queue import blames_records
from ._producer import Producer
from ._topic_creation import Topics

__all__ = ["Publisher"]

_log = get_logger(__name__)

_LONGEST_BETWEEN_LOOKS = 1.0
# Seconds for which a connection has to hold without the publish that others were closed over.
_QUIET = 1.0


class Publisher:
    """Keeps a producer running: creates a new one whenever the last one breaks, forever.

    While no broker can be reached nothing is written. What the library has then stays with it: it
    resends that by itself, with the same sequence numbers, so that there are no duplicates. Only
    what a broken producer had is written again.

    Args:
        config: the configuration.
        client_id: our name in the cluster's logs.
        topics: creates topics that are missing.
        own: names of the runtime's own topics, which exist.
        surroundings: counters and randomness.
        on_connected: called with whether a broker can be reached, on every change.

    Attributes:
        outbox: takes the publishes; their notes are `Record` objects.
    """

    def __init__(
        self,
        config: KafkaConfig,
        client_id: str,
        topics: Topics,
        own: Sequence[str],
        surroundings: Surroundings,
        on_connected: Callable[[bool], None],
    ) -> None:
        # All of them may be written: the queues hold what the library does not have, and that is
        # at most one batch for each partition.
        self.outbox = Outbox(
            self._write,
            capacity=config.outbox,
            capacity_bytes=config.outbox_bytes,
            window=config.outbox,
            window_bytes=config.outbox_bytes,
            queues=True,
            repeat_qos0=True,
            stats=surroundings.stats,
        )
        self._config = config
        self._client_id = client_id
        self._topics = topics
        self._own = own
        self._random = surroundings.environment.random
        self._stats = surroundings.stats
        self._on_connected = on_connected
        self._backoff = config.backoff(surroundings.environment)
        self._suspects: set[OutboxEntry] = set()
        self._throttling = Throttling(f"the producer of {client_id!r}", surroundings.stats)
        self._refusing: dict[TopicPartition, float] = {}
        self._trouble = asyncio.Event()
        self._producer: Producer | None = None
        self._connected = False
        self._task: asyncio.Task[None] | None = None

    @property
    def obstacle(self) -> str | None:
        """Why no connection can be had, as text; None for a mere outage."""
        return self.outbox.no_connection

    @property
    def trouble(self) -> str | None:
        """What keeps publishes of the application from being accepted; None if nothing does."""
        return None if self._producer is None else self._producer.trouble

    async def start(self) -> None:
        """Start the first producer; one attempt.

        Raises:
            OSError, aiokafka.errors.KafkaError: as in `Producer.start`.
        """
        self._producer = await self._new_producer()
        self._set_connected(True)
        self._task = asyncio.get_running_loop().create_task(
            self._watch(), name=f"kafka publisher {self._client_id}"
        )

    async def close(self) -> None:
        """Give up what is pending and stop. Never raises; bounded in time."""
        self.outbox.close()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.close()
        self._set_connected(False)

    def _write(self, entry: OutboxEntry) -> None:
        if self._producer is not None:
            self._producer.write(entry)

    async def _new_producer(self) -> Producer:
        producer = Producer(
            self._config,
            self._client_id,
            self._topics,
            self.outbox,
            self._suspects,
            self._refusing,
            self._random,
            self._own,
            self._trouble.set,
            self._throttling,
        )
        await producer.start()
        return producer

    # Watching.

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        made = loop.time()
        while True:
            try:
                await self._look()
                if self._producer is not None and self._producer.broken is not None:
                    await self._renew(self._producer, loop.time() - made)
                    made = loop.time()
            # Whatever it is, it must not end the watching.
            except Exception:  # noqa: BLE001
                _log.exception("the connection to %s could not be checked", self._config.address)
                self._set_connected(False)
            producer = self._producer
            if self._connected or (producer is not None and producer.reachability.suspicious):
                delay = min(_LONGEST_BETWEEN_LOOKS, self._config.backoff_max)
            else:
                delay = self._backoff.next_delay()
            await self._pause(delay)

    async def _pause(self, delay: float) -> None:
        try:
            async with asyncio.timeout(delay):
                await self._trouble.wait()
        except TimeoutError:
            return
        self._trouble.clear()
        if not self._connected:
            # Each failed attempt to connect counts as trouble again.
            await asyncio.sleep(delay)

    async def _look(self) -> None:
        producer = self._producer
        if producer is None or producer.broken is not None:
            return
        if await producer.reachable():
            producer.look_at_queues()
            self._backoff.reset()
            self._set_connected(True)
        else:
            self._set_connected(False)
            if await producer.reachability.moved():
                producer.break_off(ConnectionError(MOVED))
            self._note(producer.reachability.obstacle)

    def _note(self, obstacle: str | None) -> None:
        """Note why no connection can be had; log it once, and not at every attempt."""
        if obstacle is not None and obstacle != self.obstacle:
            _log.warning("%r: %s", self._client_id, obstacle)
        self.outbox.no_connection = obstacle

    async def _renew(self, broken: Producer, lasted: float) -> None:
        assert broken.broken is not None
        cause = describe(broken.broken)
        self._stats["kafka.producers_lost"] += 1
        self.outbox.pause()
        await broken.settle()
        await broken.close()
        self._producer = None
        waiting = {entry.note.name for entry in self.outbox.written}
        self._refusing = {at: since for at, since in self._refusing.items() if at.topic in waiting}
        self.outbox.disconnected()
        if blames_records(broken.broken):
            # Others must not wait longer and longer because of a few records.
            delay = self._config.backoff_min
        else:
            delay = self._backoff.next_delay(lasted)
        _log.warning(
            "the producer of %r was lost after %.1f s: %s; a new one will send the %d publishes"
            " that were not confirmed, in %.1f s",
            self._client_id,
            lasted,
            cause,
            len(self.outbox),
            delay,
        )
        while True:
            await asyncio.sleep(delay)
            try:
                await reach(self._config, self._client_id)
                self._producer = await self._new_producer()
                break
            except Exception as error:  # noqa: BLE001
                self._set_connected(False)
                problem = connect_problem(error, self._config.address, self._config.login.username)
                if is_obstacle(error):
                    self.outbox.no_connection = str(problem.error)
                delay = self._backoff.next_delay()
                _log.warning("%s; next attempt in %.1f s", problem.error, delay)
        if broken.accused is not None:
            await self._judge(broken.accused, self._producer)
        self._trouble.clear()
        self._set_connected(True)
        self.outbox.resume()

    async def _judge(self, accused: OutboxEntry, producer: Producer) -> None:
        """Refuse a publish over which connections were closed, if one holds without it."""
        losses = producer.losses
        await asyncio.sleep(_QUIET)
        if producer.losses != losses:
            # It was not the reason.
            self._suspects.clear()
        elif not accused.done():
            self._stats["publishes.refused"] += 1
            error = refused_publish(accused.envelope.topic, accused.note.size)
            self.outbox.refuse(accused, error)

    def _set_connected(self, connected: bool) -> None:
        if connected == self._connected:
            return
        self._connected = connected
        if connected:
            self._note(None)
            self._stats["kafka.connected"] += 1
            _log.info("%r is connected to %s", self._client_id, self._config.address)
            if self._producer is not None:
                self._producer.resume()
            self.outbox.resume()
        else:
            if self._task is not None:
                self._stats["kafka.lost"] += 1
                _log.warning("%r can reach no broker of %s", self._client_id, self._config.address)
            self.outbox.pause()
            if self._producer is not None:
                self._producer.pause()
        self._on_connected(connected)
