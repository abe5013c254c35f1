"""An application's own connection: publishes, dead letters and the reply inbox."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ..._logs import get_logger
from ...errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    MessageTooLarge,
    PublishRefused,
    SpaDatError,
)
from .._contract import Bus, Consumer, Receiver, Subscription, Surroundings
from .._envelope import Envelope
from .._outbox import Outbox, OutboxEntry
from .._suspicion import Blame
from .._topics import parked, reply_prefix
from ._config import MqttConfig
from ._connection import Connection
from ._consumer import MqttConsumer
from ._publishing import Outgoing, blame
from ._session import Loss, ServerLimits
from ._texts import check_message
from .protocol._client import MqttClient
from .protocol._packets import PublishPacket
from .protocol._reason_codes import subscribe_refusal

__all__ = ["MqttBus"]

_log = get_logger(__name__)

_REFUSED = 0x80
_RETRY_REFUSED = 10.0
_MOST_DOUBLINGS = 5
# Connections that end over the inbox before the next one does without.
_MOST_ENDS = 3
_MOST_PATIENCE = 16
# Bytes that are written and not confirmed; they are in memory once more until they have left.
_MOST_WRITTEN = 8_388_608


class MqttBus(Bus):
    """The bus of one application on an MQTT 5 broker.

    Args:
        config: where and how.
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
        self._identifier = f"{identity.application}.{identity.instance}"
        token = surroundings.environment.token()
        self._inbox = reply_prefix(identity.application, token)
        self._on_reply: Callable[[str, Envelope], None] | None = None
        self._client: MqttClient | None = None
        self._patience = 1
        # Why there is no inbox for replies on the connection at hand.
        self._no_inbox: SpaDatError | None = None
        self._regaining: asyncio.Task[None] | None = None
        # Connections in a row that ended while it was asked for, and whether the last attempt to
        # connect came that far.
        self._inbox_ends = 0
        self._inbox_asked = False
        # What has been said about the broker.
        self._warned: dict[str, None] = {}
        self._outbox = Outbox(
            self._write,
            capacity=config.outbox,
            capacity_bytes=config.outbox_bytes,
            window=config.inflight,
            window_bytes=_MOST_WRITTEN,
        )
        backoff = config.backoff(surroundings.environment)
        self._outgoing = Outgoing(self._outbox, self._write, backoff, self._stats, config.address)
        self._connection = Connection(self, config, self._identifier, surroundings)

    # The contract.

    @property
    def trouble(self) -> str | None:
        # Without wildcards there never is an inbox, and whoever needs none is in no trouble.
        if self.connected and not isinstance(self._no_inbox, ConfigurationError | None):
            return str(self._no_inbox)
        return super().trouble

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        self._on_reply = on_reply
        await self._connection.start()

    def reply_address(self, correlation: str) -> str:
        if self._no_inbox is not None:
            raise type(self._no_inbox)(f"no request can be made: {self._no_inbox}")
        return self._inbox + correlation

    def consumer(self, subscription: Subscription, receiver: Receiver) -> Consumer:
        return MqttConsumer(self._config, self._surroundings, subscription, receiver)

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        return self._outbox.submit(envelope, self._encode(envelope))

    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        await self._outbox.publish(envelope, timeout, self._encode(envelope))

    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        application = self._surroundings.identity.application
        letter = parked(application, envelope, self._surroundings.environment.new_id)
        await self.publish(letter, timeout=timeout)

    async def drain(self) -> None:
        await self._outbox.drain()

    async def room(self) -> None:
        await self._outbox.room()

    async def close(self) -> None:
        self._outgoing.close()
        self._stop_regaining()
        await self._connection.close()
        self.connected = False

    # What the connection asks for and reports.

    def make_client(self) -> MqttClient:
        if not self._inbox_asked:
            self._inbox_ends = 0
        self._inbox_asked = False
        self._client = MqttClient(
            self._config,
            self._identifier,
            self,
            self._stats,
            clean_start=True,
            patience=self._patience,
            session_expiry=self._connection.trace_seconds,
        )
        return self._client

    async def prepare(self, client: MqttClient, *, first: bool) -> None:
        self._warn(client.limits)
        self._no_inbox = None
        if client.limits.lacking(self._inbox + "+") is not None:
            self._no_inbox = ConfigurationError(
                f"the broker at {self._config.address} offers no wildcard subscriptions, which the"
                " replies need; use another broker"
            )
            return
        self._inbox_asked = True
        refusal: SpaDatError | None
        if self._inbox_ends >= _MOST_ENDS and not first:
            refusal = ConnectFailed(
                f"the broker at {self._config.address} ends the connection when it is asked for the"
                " inbox for replies: look into its log and access rules"
            )
        else:
            refusal = await self._open_inbox(client)
        if refusal is None:
            return
        if first:
            raise refusal
        # Publishes must not wait for it.
        self._no_inbox = refusal
        self._stats["mqtt.subscribe_refused"] += 1
        _log.error("%r: %s; trying again", self._identifier, refusal)
        self._stop_regaining()
        self._regaining = asyncio.ensure_future(self._regain_inbox(client))

    def on_connected(self, session_present: bool) -> None:
        """The connection is used once `prepare` is through."""

    def on_ready(self, client: MqttClient) -> None:
        limits = client.limits
        self.max_payload = min(self._config.max_payload, limits.maximum_packet_size)
        self.connected = True
        self._outgoing.begin(min(limits.receive_maximum, self._config.inflight))

    def on_unreachable(self) -> None:
        self._outgoing.unreachable()

    def trace(self) -> str | None:
        if self._no_inbox is not None or self._outgoing.suspects:
            return None
        return self._inbox + "+"

    def on_lost(self, loss: Loss) -> None:
        self._patience = 1
        oldest = self._outbox.oldest_unconfirmed
        if loss.unconfirmed and oldest is not None:
            # It is sent again from its beginning: without more time it may never be confirmed.
            self._patience = min(2**oldest.writes, _MOST_PATIENCE)
        self.connected = False
        self._outgoing.end(loss)

    def on_confirmed(self, note: OutboxEntry, code: int) -> None:
        self._outgoing.answered(note, code)

    def on_message(
        self, envelope: Envelope, token: int, identifiers: tuple[int, ...], size: int
    ) -> None:
        if token >= 0 and self._client is not None:
            self._client.acknowledge([token])
        if self._on_reply is None or not envelope.topic.startswith(self._inbox):
            self._stats["replies.foreign"] += 1
            return
        try:
            self._on_reply(envelope.topic[len(self._inbox) :], envelope)
        except Exception:  # noqa: BLE001
            _log.exception("a reply on %r could not be handed over", envelope.topic)

    # Inner parts.

    async def _open_inbox(self, client: MqttClient) -> SpaDatError | None:
        """Subscribe to replies; returns why the broker refuses it."""
        pattern = self._inbox + "+"
        try:
            codes = await client.subscribe([pattern], qos=1, timeout=self._config.connect_timeout)
        except ConnectionLost:
            if client.lost.done() and blame(client.lost.result()) is Blame.POSSIBLE:
                self._inbox_ends += 1
            raise
        self._inbox_ends = 0
        # What a broker leaves out of its answer it has not granted.
        code = codes[0] if codes else _REFUSED
        return None if code < _REFUSED else subscribe_refusal(code, pattern)

    async def _regain_inbox(self, client: MqttClient) -> None:
        # Each attempt may cost a connection.
        delay = _RETRY_REFUSED * 2 ** min(max(self._inbox_ends - _MOST_ENDS, 0), _MOST_DOUBLINGS)
        while True:
            await asyncio.sleep(delay)
            if client.lost.done():
                return
            # It may be that only this once there is no answer.
            with contextlib.suppress(ConnectionLost):
                self._no_inbox = await self._open_inbox(client)
                if self._no_inbox is None:
                    _log.info("%r: the broker grants the inbox for replies again", self._identifier)
                    return

    def _stop_regaining(self) -> None:
        if self._regaining is not None:
            self._regaining.cancel()
            self._regaining = None

    def _encode(self, envelope: Envelope) -> PublishPacket:
        if len(envelope.payload) > self.max_payload:
            raise MessageTooLarge(
                f"the payload for {envelope.topic!r} has {len(envelope.payload)} bytes, and"
                f" {self.max_payload} are allowed: send less, or raise the option 'max_payload'"
                " if the broker allows it"
            )
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
        """Say once what the broker does not offer, so that it is no surprise when it is needed."""
        missing = []
        if not limits.retain:
            missing.append(
                "keeps no retained messages: dead letters cannot be stored there, and an actor"
                " whose message fails for good takes no more"
            )
        if limits.maximum_qos < self._config.qos:
            missing.append(
                "takes no messages with QoS 1: give the option qos=0 and accept losses, or use"
                " another broker"
            )
        if not limits.wildcards:
            missing.append("offers no wildcard subscriptions: no requests can be made")
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
            client.publish(packet, entry)
        else:
            self._outbox.fail(entry, problem)


def _beyond(limits: ServerLimits, packet: PublishPacket, envelope: Envelope) -> SpaDatError | None:
    """Why the broker at hand cannot take the message; it would end the connection over it."""
    if packet.size > limits.maximum_packet_size:
        return _too_large(packet, envelope, limits.maximum_packet_size)
    if packet.qos > limits.maximum_qos:
        return PublishRefused(
            f"the broker takes no QoS {packet.qos} publishes, such as the one to"
            f" {envelope.topic!r}: publish with qos=0, or use another broker"
        )
    if packet.retain and not limits.retain:
        return PublishRefused(
            f"the broker keeps no messages, and the publish to {envelope.topic!r} asks for it:"
            " publish without retain, or allow it in the broker"
        )
    return None


def _too_large(packet: PublishPacket, envelope: Envelope, limit: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"the message to {envelope.topic!r} takes {packet.size} bytes, and the broker allows"
        f" {limit}: send less, or raise the limit of the broker"
    )
