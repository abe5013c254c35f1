"""The bus on MQTT: an application's own connection for publishes, dead letters and replies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ..._logs import get_logger
from ...errors import (
    ConfigurationError,
    ConnectionLost,
    MessageTooLarge,
    PublishRefused,
    SpaDatError,
)
from .._contract import Bus, Consumer, Receiver, Subscription, Surroundings
from .._dead_letter_topics import parked
from .._envelope import Envelope
from .._outbox import Outbox, OutboxEntry, payload_too_large
from .._topics import command_topic, is_reserved, reply_prefix
from .._wire_formats import WireFormats
from ._changed_topics import about_changed_topics
from ._config import MqttConfig
from ._connection import Connection
from ._connection_events import Loss, ServerLimits
from ._connection_group import ConnectionGroup
from ._consumer import MqttConsumer
from ._message_checks import check_message
from ._publishing import OutgoingPublishes
from ._reply_inbox import MqttReplyInbox
from .protocol._client import MqttClient
from .protocol._packets import PublishPacket
from .protocol._reason_codes import TOPIC_ALIAS_INVALID, publish_refusal

__all__ = ["MqttBus"]

_log = get_logger(__name__)

_LEAST_FOR_LETTERS = 640
"""Bytes of a packet with the last form of a dead letter, whatever the names."""

_MOST_PATIENCE = 16
_REFUSED = 0x80
_PAST_OUTBOX = object()
"""The note of messages that are in no outbox: birth message, and will at a stop."""
_LAST_WORD = 1.0
# Bytes that are written and not confirmed; a second copy is in memory until they have left.
_MOST_WRITTEN = 8_388_608


class MqttBus(Bus):
    """The bus of one application on an MQTT 5 broker.

    Args:
        config: the configuration.
        surroundings: identity, counters, randomness.
    """

    def __init__(self, config: MqttConfig, surroundings: Surroundings) -> None:
        identity = surroundings.identity
        self.max_payload = config.max_payload
        self.max_received = config.largest_received
        self.connected = False
        self._config = config
        self._surroundings = surroundings
        self._stats = surroundings.stats
        self._identifier = identity.client_id
        token = surroundings.environment.token()
        self._reply_prefix = reply_prefix(identity.application, token)
        pattern = self._reply_prefix + "+"
        self._inbox = MqttReplyInbox(config, self._identifier, pattern, self._stats)
        self._on_reply: Callable[[str, Envelope], None] | None = None
        self._on_command: Callable[[Envelope], None] | None = None
        self._client: MqttClient | None = None
        # By how much to multiply the time that the next connection has to confirm a large message.
        self._patience = 1
        self._was_connected = False
        # That the broker changes topics, so that replies do not arrive.
        self._changes_topics: str | None = None
        # 0 once a broker has ended a connection over one.
        self._topic_aliases = config.topic_aliases
        # The broker's answer to the latest message of the option will.
        self._answer: asyncio.Future[int] | None = None
        # Which warnings about the broker have been logged.
        self._warned: dict[str, None] = {}
        self._wires = WireFormats(config.wire)
        self._packs = self._wires.own.packs
        self._outbox = Outbox(
            self._write,
            capacity=config.outbox,
            capacity_bytes=config.outbox_bytes,
            window=config.inflight,
            window_bytes=_MOST_WRITTEN,
            stats=self._stats,
        )
        backoff = config.backoff(surroundings.environment)
        self._outgoing = OutgoingPublishes(
            self._outbox, self._write, backoff, self._stats, config.address
        )
        self._group = ConnectionGroup(surroundings.fatal)
        self._connection = Connection(self, config, self._identifier, surroundings, self._group)

    # The contract of a bus.

    @property
    def trouble(self) -> str | None:
        # Without wildcards there is never an inbox, and that is no trouble for whoever needs none.
        if self.connected and not isinstance(self._inbox.problem, ConfigurationError | None):
            return str(self._inbox.problem)
        return (
            self._connection.obstacle
            or super().trouble
            or self._changes_topics
            or self._outgoing.trouble
        )

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        self._on_reply = on_reply
        await self._connection.start()

    def reply_address(self, correlation: str) -> str:
        problem = self._inbox.problem
        if problem is not None:
            raise type(problem)(f"requests are impossible: {problem}")
        return self._reply_prefix + correlation

    def consumer(self, subscription: Subscription, receiver: Receiver) -> Consumer:
        wire = self._wires.of(subscription.wire)
        return MqttConsumer(
            self._config, self._surroundings, subscription, receiver, self._group, wire
        )

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        if self._packs or envelope.wire is not None:
            envelope = self._wires.packed(envelope)
        return self._outbox.submit(envelope, self._encode(envelope))

    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        if self._packs or envelope.wire is not None:
            envelope = self._wires.packed(envelope)
        await self._outbox.publish(envelope, timeout, self._encode(envelope))

    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        application = self._surroundings.identity.application
        letter = parked(application, envelope, self._surroundings.environment.new_id)
        await self.publish(letter, timeout=timeout)

    def take_commands(self, on_command: Callable[[Envelope], None]) -> None:
        self._on_command = on_command
        self._inbox.command_topic = command_topic(self._surroundings.identity.application)

    def opened(self, envelope: Envelope, wire: str | None = None) -> Envelope:
        return self._wires.of(wire).opened(envelope)

    @property
    def pending(self) -> int:
        return len(self._outbox)

    async def drain(self) -> None:
        await self._outbox.drain()

    async def room(self) -> None:
        await self._outbox.room()

    async def close(self) -> None:
        self._outgoing.close()
        self._inbox.close()
        await self._say_that_it_stops()
        await self._connection.close()
        self.connected = False

    async def _say_that_it_stops(self) -> None:
        will, client = self._config.will, self._client
        if will is None or not will.on_stop or client is None or not self.connected:
            return
        # Not by a DISCONNECT with the will: some brokers then wait for its delay.
        try:
            problem: Exception | None = await self._tell(client, will.message, _LAST_WORD)
        except ConnectionLost as error:
            problem = error
        if problem is not None:
            _log.warning("the message of option will at the stop: %s", problem)

    # Callbacks of the connection.

    def make_client(self) -> MqttClient:
        self._inbox.connecting()
        will = self._config.will
        delay = 0 if will is None else will.delay
        self._client = MqttClient(
            self._config,
            self._identifier,
            self,
            self._stats,
            # The session has to outlive a connection for the broker to wait with the will; and to
            # be found again, or the broker takes it for ended.
            clean_start=delay == 0 or not self._was_connected,
            patience=self._patience,
            session_expiry=max(self._connection.trace_seconds, delay),
            will=will,
            wire=self._wires.of_replies,
            topic_aliases=self._topic_aliases,
        )
        return self._client

    async def prepare(self, client: MqttClient, *, first: bool) -> None:
        self._warn(client.limits)
        await self._inbox.open(client, first=first)
        await self._announce(client, first=first)

    async def _announce(self, client: MqttClient, *, first: bool) -> None:
        """Publish the birth message, and wait until the broker has confirmed it.

        One that the broker refuses ends the start, but later on nothing else has to wait for it.
        """
        will = self._config.will
        if will is None or will.birth is None:
            return
        problem = await self._tell(client, will.birth_message, self._config.connect_timeout)
        if problem is not None and first:
            raise problem
        if problem is not None and "birth" not in self._warned:
            self._warned["birth"] = None
            _log.warning("the birth message of option will: %s", problem)

    async def _tell(
        self, client: MqttClient, message: Envelope, timeout: float
    ) -> SpaDatError | None:
        """Publish a message past the outbox; return why the broker has refused it."""
        packet = PublishPacket(message)
        problem = _beyond(client.limits, packet, message)
        if problem is not None:
            return problem
        answer = self._answer = asyncio.get_running_loop().create_future()
        client.publish(packet, _PAST_OUTBOX)
        await asyncio.wait(
            (answer, client.lost), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if not answer.done():
            raise ConnectionLost(
                f"the broker at {self._config.address} has not confirmed the message to"
                f" {message.topic!r} of option will"
            )
        code = answer.result()
        return publish_refusal(code, message.topic) if code >= _REFUSED else None

    def on_connected(self, session_present: bool) -> None:
        """Do nothing: the connection is used once `prepare` has finished."""

    def on_ready(self, client: MqttClient) -> None:
        limits = client.limits
        self.max_payload = min(self._config.max_payload, limits.maximum_packet_size)
        self.connected = self._was_connected = True
        self.connected_at = asyncio.get_running_loop().time()
        self._outgoing.begin(min(limits.receive_maximum, self._config.inflight))

    def on_unreachable(self) -> None:
        self._outgoing.unreachable()

    def trace(self) -> str | None:
        if self._inbox.problem is not None or self._outgoing.suspects:
            return None
        return self._inbox.pattern

    def on_lost(self, loss: Loss) -> None:
        self._patience = 1
        self._changes_topics = None
        oldest = self._outbox.oldest_unconfirmed
        if loss.unconfirmed and oldest is not None:
            # It is sent again from the beginning: without more time it may never be confirmed.
            self._patience = min(2**oldest.writes, _MOST_PATIENCE)
        self.connected = False
        if loss.reason == TOPIC_ALIAS_INVALID and self._topic_aliases:
            self._topic_aliases = 0
            _log.warning(
                "the broker at %s does not accept the topic aliases that it has offered; none are"
                " used any more: give the option topic_aliases=0",
                self._config.address,
            )
        self._outgoing.end(loss)

    def on_confirmed(self, note: Any, code: int) -> None:
        if note is not _PAST_OUTBOX:
            self._outgoing.answered(note, code)
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(code)

    def on_message(
        self, envelope: Envelope, token: int, identifiers: tuple[int, ...], size: int
    ) -> None:
        if token >= 0 and self._client is not None:
            self._client.acknowledge([token])
        if self._on_command is not None and envelope.topic == self._inbox.command_topic:
            if not envelope.retain:
                self._on_command(envelope)
            return
        if self._on_reply is None or not envelope.topic.startswith(self._reply_prefix):
            self._stats["replies.foreign"] += 1
            if not is_reserved(envelope.topic) and self._changes_topics is None:
                self._changes_topics = about_changed_topics(self._config.address, envelope.topic)
                _log.error("%r: %s", self._identifier, self._changes_topics)
            return
        try:
            self._on_reply(envelope.topic[len(self._reply_prefix) :], envelope)
        except Exception:  # noqa: BLE001
            _log.exception("a reply on %r could not be handed over", envelope.topic)

    # Internals.

    def _encode(self, envelope: Envelope) -> PublishPacket:
        if len(envelope.payload) > self.max_payload:
            raise payload_too_large(envelope, self.max_payload)
        check_message(envelope)
        self._outgoing.check(envelope)
        if envelope.qos not in (0, 1):
            raise ConfigurationError(f"qos={envelope.qos} of a publish: give 0 or 1")
        packet = PublishPacket(envelope)
        if self.connected and self._client is not None:
            limit = self._client.limits.maximum_packet_size
            if packet.size > limit:
                raise _too_large(packet, envelope, limit)
        return packet

    def _warn(self, limits: ServerLimits) -> None:
        """Warn once about what the broker does not offer, before it is needed."""
        missing = []
        if not limits.retain:
            missing.append(
                "keeps no retained messages: dead letters cannot be stored there, and an actor"
                " whose message fails for good takes no more messages"
            )
        if limits.maximum_qos < self._config.qos:
            missing.append(
                "accepts no messages with QoS 1: give the option qos=0 and accept losses, or use"
                " another broker"
            )
        if limits.maximum_packet_size < _LEAST_FOR_LETTERS:
            missing.append(
                f"accepts no packets of more than {limits.maximum_packet_size} bytes, and dead"
                f" letters may need {_LEAST_FOR_LETTERS}: an actor whose message fails for good may"
                " take no more messages; raise the limit of the broker"
            )
        if not limits.wildcards:
            missing.append("offers no wildcard subscriptions: requests are impossible")
        for what in missing:
            if what not in self._warned:
                self._warned[what] = None
                _log.warning("the broker at %s %s", self._config.address, what)

    def _write(self, entry: OutboxEntry) -> None:
        client = self._client
        if client is None:
            return
        packet: PublishPacket = entry.note
        problem = _beyond(client.limits, packet, entry.envelope)
        if problem is None:
            left = None if entry.deadline is None else entry.left
            if left is not None:
                packet.expires_in(left)
            client.publish(packet, entry)
        else:
            self._outbox.fail(entry, problem)


def _beyond(limits: ServerLimits, packet: PublishPacket, envelope: Envelope) -> SpaDatError | None:
    """Return why the current broker cannot accept the message, and would end the connection."""
    if packet.size > limits.maximum_packet_size:
        return _too_large(packet, envelope, limits.maximum_packet_size)
    if packet.qos > limits.maximum_qos:
        return PublishRefused(
            f"the broker accepts no publishes with QoS {packet.qos}, such as the one to"
            f" {envelope.topic!r}: publish with qos=0, or use another broker"
        )
    if packet.retain and not limits.retain:
        return PublishRefused(
            f"the broker retains no messages, which the publish to {envelope.topic!r} asks for:"
            " publish without retain, or allow it in the broker"
        )
    return None


def _too_large(packet: PublishPacket, envelope: Envelope, limit: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"the message to {envelope.topic!r} takes {packet.size} bytes, and the broker allows"
        f" {limit}: send less, or raise the limit of the broker"
    )
