"""The bus on Kafka: publishes, dead letters and replies of an application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from ..._logs import get_logger
from ...errors import ConfigurationError, ConnectFailed, MessageTooLarge, SpaDatError
from .._connect_failures import ConnectProblem
from .._contract import Bus, Receiver, Subscription, Surroundings
from .._dead_letter_topics import parked
from .._envelope import Envelope
from .._outbox import payload_too_large
from .._topics import reply_prefix
from .._units import Outcome
from .._wire_formats import WireFormats
from ._aiokafka_private import check_compression
from ._bus_context import BusContext
from ._config import KafkaConfig
from ._consumer import KafkaConsumer
from ._errors import connect_problem
from ._lone_requests import LoneRequests
from ._records import Record, RecordCodec
from ._reply_inbox import KafkaReplyInbox
from ._takeovers import Contest
from ._topic_facts import SharedTopicFacts
from ._topic_names import Names, owner_of_topics
from .producing._producer import ROOM_FOR_HEADERS
from .producing._publisher import Publisher
from .producing._topic_creation import Topics

__all__ = ["KafkaBus"]

_log = get_logger(__name__)

_OWN_TOPICS_TIMEOUT = 5.0
# How often a member may be displaced that was not there first. A long pause of it looks the same.
_LEAST_PATIENCE = 6
_MOST_PATIENCE = 10


class KafkaBus(Bus):
    """The bus of one application on a Kafka cluster.

    Applications without a name share the topics ``_spa.reply.ephemeral`` and
    ``_spa.dead-letter.ephemeral``.

    Args:
        config: the configuration.
        names: translates addresses.
        surroundings: identity, counters, randomness.
    """

    def __init__(self, config: KafkaConfig, names: Names, surroundings: Surroundings) -> None:
        check_compression(config.compression)
        identity = surroundings.identity
        environment = surroundings.environment
        self.max_payload = config.max_payload
        self.max_received = config.largest_received
        self.connected = False
        self._config = config
        self._names = names
        self._surroundings = surroundings
        self._application = owner_of_topics(identity)
        self._client_id = identity.client_id
        self._codec = RecordCodec(names, surroundings.stats, environment.now)
        self._topics = Topics(config, names, self._client_id)
        self._wires = WireFormats(config.wire, names.name_of, names.reply_topic)
        self._packs = self._wires.own.packs
        facts = SharedTopicFacts(config.topic_refresh, config.connect_timeout)
        contest = Contest(environment, least=_LEAST_PATIENCE, most=_MOST_PATIENCE)
        self._context = BusContext(
            config, names, self._codec, self._wires, surroundings, self._topics, facts, contest
        )
        self._own = [names.replies(self._application), names.dead_letters(self._application)]
        token = environment.token()
        self._inbox_prefix = reply_prefix(self._application, token)
        self._inbox = KafkaReplyInbox(
            config,
            self._client_id,
            names.replies(self._application),
            token,
            self._codec,
            self._wires,
            self._topics,
            surroundings,
        )
        self._lone = LoneRequests(
            config,
            self._client_id,
            self._application,
            token,
            names,
            self._codec,
            self._wires,
            self._topics,
            surroundings,
        )
        self._publisher = Publisher(
            config, self._client_id, self._topics, self._own, surroundings, self._on_connected
        )
        self._largest = max(config.max_batch, config.max_payload + ROOM_FOR_HEADERS)
        self._warned = False
        self._starting: asyncio.Task[None] | None = None
        self._closed = False

    # The contract of a bus.

    @property
    def trouble(self) -> str | None:
        publisher = self._publisher
        return publisher.obstacle or super().trouble or publisher.trouble or self._inbox.trouble

    @property
    def pending(self) -> int:
        return len(self._publisher.outbox)

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        starting = self._starting = asyncio.ensure_future(self._start(on_reply))
        try:
            await starting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            raise ConnectFailed("closed before there was a connection") from None
        finally:
            self._starting = None

    async def _start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        loop = asyncio.get_running_loop()
        config = self._config
        # An application may have a name that no topic can have.
        self._names.destination(self._inbox_prefix + "0")
        give_up = loop.time() + config.start_timeout
        backoff = config.backoff(self._surroundings.environment)
        while True:
            try:
                await self._attempt(on_reply)
                return
            except Exception as error:  # noqa: BLE001
                problem = connect_problem(error, config.address, config.login.username)
                cause = None if problem.error is error else error
            self._surroundings.stats["kafka.connect_failed"] += 1
            left = give_up - loop.time()
            if problem.final or left <= 0.0:
                raise self._no_start(problem) from cause
            delay = min(backoff.next_delay(), left)
            _log.info("%s; next attempt in %.1f s", problem.error, delay)
            await asyncio.sleep(delay)

    def reply_address(self, correlation: str) -> str:
        return self._inbox_prefix + correlation

    def consumer(self, subscription: Subscription, receiver: Receiver) -> KafkaConsumer:
        return KafkaConsumer(self._context, subscription, receiver)

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        if self._packs or envelope.wire is not None:
            return self._post_packed(envelope)
        return self._publisher.outbox.submit(envelope, self._encode(envelope))

    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        if self._packs or envelope.wire is not None:
            envelope = self._wires.packed(envelope)
        await self._publisher.outbox.publish(envelope, timeout, self._encode(envelope))

    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        letter, record = self._letter(envelope)
        await self._publisher.outbox.publish(letter, timeout, record)

    def add_output(self, outcome: Outcome, envelope: Envelope, *, letter: bool = False) -> None:
        if letter:
            record = self._letter(envelope)[1]
        elif self._packs or envelope.wire is not None:
            record = self._encode(self._wires.packed(envelope))
        else:
            record = self._encode(envelope)
        outcome.add(record, record.size)

    def add_removal(self, outcome: Outcome, letter: Envelope) -> None:
        record = self._encode(_removed(letter))
        outcome.add(record, record.size)

    async def unpark(self, letter: Envelope, *, timeout: float) -> None:
        removed = _removed(letter)
        await self._publisher.outbox.publish(removed, timeout, self._encode(removed))

    def take_commands(self, on_command: Callable[[Envelope], None]) -> None:
        self._inbox.on_command = on_command

    def opened(self, envelope: Envelope, wire: str | None = None) -> Envelope:
        return self._wires.of(wire).opened(envelope)

    async def drain(self) -> None:
        await self._publisher.outbox.drain()

    def room(self) -> Coroutine[Any, Any, None]:
        return self._publisher.outbox.room()

    async def close(self) -> None:
        self._closed = True
        if self._starting is not None:
            # It would go on, and connect after the end.
            self._starting.cancel()
            await asyncio.wait((self._starting,))
        await asyncio.gather(self._publisher.close(), self._inbox.close(), self._lone.close())

    # Internals.

    def _post_packed(self, envelope: Envelope) -> asyncio.Future[None]:
        """Do as `post`, in the format that the message names or the bus has."""
        pack = self._wires.packed

        def submit(envelope: Envelope) -> asyncio.Future[None]:
            packed = pack(envelope)
            return self._publisher.outbox.submit(packed, self._encode(packed))

        address = envelope.response_topic
        if (
            address is None
            or not address.startswith(self._inbox_prefix)
            or not self._wires.of(envelope.wire).packs
        ):
            return submit(envelope)
        # What cannot be sent is refused at once.
        self._encode(pack(envelope))
        return self._lone.post(envelope, address[len(self._inbox_prefix) :], submit)

    async def _attempt(self, on_reply: Callable[[str, Envelope], None]) -> None:
        await self._topics.ensure(self._own, _OWN_TOPICS_TIMEOUT)
        self._lone.start(on_reply)
        await self._inbox.start(on_reply)
        try:
            await self._publisher.start()
        except BaseException:
            await self._inbox.close()
            raise

    def _letter(self, envelope: Envelope) -> tuple[Envelope, Record]:
        letter = parked(self._application, envelope, self._surroundings.environment.new_id)
        if not envelope.payload:
            # A record may be empty, and is kept all the same.
            letter = msgspec.structs.replace(letter, payload=b"", headers=envelope.headers)
        return letter, self._encode(letter, parking=True)

    def _no_start(self, problem: ConnectProblem) -> SpaDatError:
        if problem.final:
            return problem.error
        error = ConnectFailed(
            f"{problem.error}; tried for {self._config.start_timeout:g} s: check the address, that"
            " the brokers are running, and whether the port requires TLS (kafkas://) and a"
            " login; or raise the option start_timeout"
        )
        error.__cause__ = problem.error
        return error

    def _on_connected(self, connected: bool) -> None:
        if connected and not self.connected:
            self.connected_at = asyncio.get_running_loop().time()
        self.connected = connected

    def _encode(self, envelope: Envelope, *, parking: bool = False) -> Record:
        if len(envelope.payload) > self.max_payload:
            raise payload_too_large(envelope, self.max_payload, "cluster")
        if envelope.qos not in (0, 1):
            raise ConfigurationError(f"qos={envelope.qos} of a publish: give 0 or 1")
        if envelope.retain and not parking and not self._warned:
            self._warned = True
            _log.warning(
                "the publish to %r asks for retain=True: Kafka keeps messages as configured per"
                " topic, and hands them to whoever reads from the start",
                envelope.topic,
            )
        record = self._codec.encode(envelope)
        if record.size > self._largest:
            raise MessageTooLarge(
                f"the message to {envelope.topic!r} takes {record.size} bytes with key and"
                f" headers, and {self._largest} are allowed: send less, or raise the option"
                " 'max_payload' if the cluster allows it"
            )
        return record


def _removed(letter: Envelope) -> Envelope:
    """Return what says that a dead letter is gone, as a topic forgets nothing on request.

    It has the letter's key, and so comes after it in the same partition.
    """
    return Envelope(topic=letter.topic, key=letter.key, raw_key=letter.raw_key, tombstone=True)
