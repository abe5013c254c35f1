"""The consumer on MQTT: one subscription's connection and session."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Coroutine, Sequence

from ..._logs import get_logger
from ..._texts import quoted
from ...errors import ConnectFailed, ConnectionLost, SpaDatError
from .._connect_failures import not_outage
from .._contract import Consumer, Receiver, Subscription, Surroundings
from .._delivery import Delivery, Tracker
from .._envelope import Envelope
from .._suspect_publishes import Blame
from .._topics import RESERVED
from .._wire_formats import CLOUDEVENTS, WireFormat
from ._changed_topics import about_changed_topics
from ._config import MqttConfig
from ._connection import Connection
from ._connection_events import MOST_ENDS, Loss
from ._connection_group import ConnectionGroup
from ._pause_limits import PauseLimits
from ._publishing import blame
from ._redelivery import Redelivery
from ._subscription_set import SubscriptionSet
from .protocol._client import MqttClient
from .protocol._reason_codes import Decision, Packet, answer_to, subscribe_refusal

__all__ = ["MqttConsumer"]

_log = get_logger(__name__)

_SHORTEST_ANSWER = 10.0
_MOST_RECEIVED = 65_535
_RETRY_REFUSED = 10.0


class ConsumerState(enum.Enum):
    """The states of a consumer.

    Attributes:
        NEW: it has not been started.
        CONNECTING: there has been no connection yet.
        READING: messages arrive and are delivered.
        PAUSED: its window is full; what still arrives was in flight.
        OVERRUN: too much was in flight: the rest has to come again, on another connection.
        HELD: the connection is lost, and the receiver starts none of the deliveries that it has.
        LAST_COPIES: as HELD, and the broker may have forgotten what the receiver has.
        CLOSED: it has ended.
    """

    NEW = "new"
    CONNECTING = "connecting"
    READING = "reading"
    PAUSED = "paused"
    OVERRUN = "overrun"
    HELD = "held"
    LAST_COPIES = "last copies"
    CLOSED = "closed"


# Members of an Enum are slow to look up, and every message needs one.
_NEW = ConsumerState.NEW
_CONNECTING = ConsumerState.CONNECTING
_READING = ConsumerState.READING
_PAUSED = ConsumerState.PAUSED
_OVERRUN = ConsumerState.OVERRUN
_HELD = ConsumerState.HELD
_LAST_COPIES = ConsumerState.LAST_COPIES
_CLOSED = ConsumerState.CLOSED
_WITHOUT_CONNECTION = (_HELD, _LAST_COPIES)

# The diagram in docs/design.md.
_NEXT = {
    _NEW: (_CONNECTING, _CLOSED),
    _CONNECTING: (_READING, _HELD, _CLOSED),
    _READING: (_PAUSED, _HELD, _CLOSED),
    _PAUSED: (_READING, _OVERRUN, _HELD, _CLOSED),
    _OVERRUN: (_HELD, _CLOSED),
    _HELD: (_READING, _LAST_COPIES, _CLOSED),
    _LAST_COPIES: (_READING, _CLOSED),
    _CLOSED: (),
}


class _PendingFilter:
    """A filter that is being added.

    Attributes:
        ends: how often the connection has ended meanwhile.
        given_up: completes with the reason why it is no longer requested.
    """

    def __init__(self) -> None:
        self.ends = 0
        self.given_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()


class MqttConsumer(Consumer):
    """Receives one subscription's messages and acknowledges them in order, once they are settled.

    With ``share`` the messages go to the group ``{application}.{subscription}``. Mosquitto gives
    what a member leaves unacknowledged to another member only once that member's session has
    ended, not while it is away; use stable instances and restart them.

    Args:
        config: where and how.
        surroundings: identity, counters, randomness.
        subscription: what to receive; with ``durable`` and an identity that is not ephemeral the
            broker keeps the messages for ``session_expiry`` seconds while there is no connection.
        receiver: gets the deliveries.
        group: all connections of the application to the broker.
        wire: the format that the messages have.
    """

    def __init__(
        self,
        config: MqttConfig,
        surroundings: Surroundings,
        subscription: Subscription,
        receiver: Receiver,
        group: ConnectionGroup,
        wire: WireFormat = CLOUDEVENTS,
    ) -> None:
        identity = surroundings.identity
        self._config = config
        self._wire = wire
        self._stats = surroundings.stats
        self._subscription = subscription
        self._receiver = receiver
        self._durable = subscription.durable and not identity.ephemeral
        self._identifier = identity.client_id_of(subscription.name)
        self._tracker = Tracker(self._release, self._look_for_room)
        self._limits = PauseLimits(self._tracker, subscription.window, subscription.window_bytes)
        self._redelivery = Redelivery(subscription.window)
        self._subscriptions = SubscriptionSet(
            subscription.filters,
            qos=min(subscription.qos, 1),
            group=identity.group_of(subscription.name),
            share=subscription.share,
            timeout=max(config.connect_timeout, _SHORTEST_ANSWER),
            batch=config.subscribe_batch,
            retained=subscription.retained,
        )
        self._connection = Connection(self, config, self._identifier, surroundings, group)
        self._client: MqttClient | None = None
        self._ready: asyncio.Future[MqttClient] = asyncio.get_running_loop().create_future()
        self._tasks: dict[asyncio.Task[None], None] = {}
        # Filters that the broker does not grant on the current connection, with its reason codes.
        self._refused: dict[str, int] = {}
        self._pending: dict[str, _PendingFilter] = {}
        self._shortened: int | None = None
        # That the broker changes topics, so that messages do not reach anybody.
        self._changes_topics: str | None = None
        self._state = _NEW
        # An order: whatever arrives from now on is not accepted, in any state.
        self._stopped = False

    # The contract of a consumer.

    async def start(self) -> None:
        self._become(_CONNECTING)
        await self._connection.start()

    @property
    def trouble(self) -> str | None:
        if not self._ready.done() or self._state is _CLOSED:
            away = f"there is no connection to {self._config.address}"
            return self._connection.obstacle or away
        for pattern, code in self._refused.items():
            return str(self._refusal(code, pattern))
        return self._changes_topics

    @property
    def trackers(self) -> Sequence[Tracker]:
        return (self._tracker,)

    async def add_filter(self, pattern: str) -> None:
        self._subscriptions.add(pattern)
        if self._state is _NEW:
            return
        pending = self._pending[pattern] = _PendingFilter()
        bringing = asyncio.ensure_future(self._bring_in_force())
        try:
            await asyncio.wait((bringing, pending.given_up), return_when=asyncio.FIRST_COMPLETED)
            if pending.given_up.done():
                raise not_outage(
                    ConnectFailed(
                        f"the broker at {self._config.address} ends the connection when asked"
                        f" for the subscription to {quoted(pattern)}: {pending.given_up.result()}"
                    )
                )
            refused = bringing.result()
            if pattern in refused:
                raise self._refusal(refused[pattern], pattern)
        except BaseException:
            self._subscriptions.remove(pattern)
            raise
        finally:
            del self._pending[pattern]
            bringing.cancel()
            await asyncio.gather(bringing, return_exceptions=True)

    async def remove_filter(self, pattern: str) -> None:
        self._subscriptions.remove(pattern)
        if self._state is not _NEW:
            await self._bring_in_force()

    def discard_stale(self, topic: str) -> None:
        self._stats["messages.stale"] += 1
        if self._subscriptions.knows_all:
            self._note_change_of(topic)
        elif self._changes_topics is None:
            assert self._client is not None
            self._spawn(self._discard(self._client, topic))

    def stop_intake(self) -> None:
        self._stopped = True

    async def close(self) -> None:
        self._stopped = True
        if self._state is not _CLOSED:
            self._become(_CLOSED)
        if not self._ready.done():
            self._ready.set_exception(ConnectionLost(f"consumer {self._identifier!r} is closed"))
            self._ready.exception()
        for task in list(self._tasks):
            task.cancel()
        await self._connection.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # Callbacks of the connection.

    def make_client(self) -> MqttClient:
        if self._state is _HELD and self._client is not None and self._client.unanswered:
            # It may have created a new session anyway, which looks like the old one next time.
            self._become(_LAST_COPIES)
        self._client = MqttClient(
            self._config,
            self._identifier,
            self,
            self._stats,
            clean_start=not self._durable,
            session_expiry=self._config.session_expiry if self._durable else 0,
            receive_maximum=min(self._subscription.window, _MOST_RECEIVED),
            wire=self._wire,
        )
        return self._client

    async def prepare(self, client: MqttClient, *, first: bool) -> None:
        refused = self._refused = await self._subscriptions.apply(client)
        if not refused:
            return
        pattern, code = next(iter(refused.items()))
        if first:
            raise self._refusal(code, pattern)
        self._stats["mqtt.subscribe_refused"] += len(refused)
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        _log.error(
            "%r: %s%s; retrying every %g s",
            self._identifier,
            self._refusal(code, pattern),
            more,
            _RETRY_REFUSED,
        )
        self._spawn(self._retry_refused(client))

    def _refusal(self, code: int, pattern: str) -> SpaDatError:
        # Some brokers look for the whole of it in their access rules.
        return subscribe_refusal(code, self._subscriptions.as_sent(pattern))

    def on_connected(self, session_present: bool) -> None:
        assert self._client is not None
        # A broker that claims to have one although none was asked for sends nothing again.
        session_present = session_present and self._durable
        self._subscriptions.connected(self._client, session_present=session_present)
        self._warn_of_a_short_session(self._client)
        if not session_present:
            self._redelivery.session_lost()
        if self._state is _CLOSED:
            return
        if self._state is _CONNECTING:
            self._become(_READING)
            if session_present:
                self._spawn(self._tidy_inherited())
            if self._durable and not session_present:
                self._stats["mqtt.session_new"] += 1
                _log.info(
                    "the broker at %s had no session of %r and has created one: this is its first"
                    " start, or the session has expired or was removed, with everything kept in it",
                    self._config.address,
                    self._identifier,
                )
            return
        if session_present:
            self._resume(redelivered=self._state is _HELD)
            return
        if self._state is _HELD:
            self._become(_LAST_COPIES)
        if self._durable:
            self._stats["mqtt.session_lost"] += 1
            _log.warning(
                "the broker at %s has lost the session of %r with everything kept in it",
                self._config.address,
                self._identifier,
            )

    def on_ready(self, client: MqttClient) -> None:
        if self._state in _WITHOUT_CONNECTION:
            self._resume(redelivered=False)
        self._ready.set_result(client)

    async def _tidy_inherited(self) -> None:
        """End what an earlier program has left in the session, once there is a connection."""
        await self._subscriptions.end_other(await asyncio.shield(self._ready))

    def on_unreachable(self) -> None:
        """Do nothing: what is held stays held."""

    def trace(self) -> None:
        """Return no filter: other instances of the application have the same ones."""

    def on_lost(self, loss: Loss) -> None:
        self._redelivery.connection_lost(self._tracker.begin())
        self._subscriptions.connection_lost()
        self._changes_topics = None
        self._count_against_what_is_added(loss)
        if self._state is _CLOSED:
            return
        if self._ready.done():
            self._ready = asyncio.get_running_loop().create_future()
        if self._state is not _LAST_COPIES:
            self._become(_HELD)
        self._receiver.hold()

    def on_confirmed(self, note: object, code: int) -> None:
        """Do nothing: nothing is published on this connection."""

    def on_message(
        self, envelope: Envelope, token: int, identifiers: tuple[int, ...], size: int
    ) -> None:
        if self._stopped:
            return
        if self._state is not _READING:
            if self._state is _OVERRUN:
                return
            if self._state in _WITHOUT_CONNECTION:
                self._resume(redelivered=False)
        subscriptions = self._subscriptions
        unwanted = envelope.topic.startswith(RESERVED) and self._is_foreign(envelope.topic)
        if token < 0:
            copy = identifiers and subscriptions.guard.is_copy(envelope, identifiers)
            if not unwanted and not copy:
                self._receiver.deliver(self._tracker.count(envelope, size))
                self._pause_if_full()
            return
        if self._redelivery.is_copy(envelope, token, size):
            self._stats["messages.recognised"] += 1
            return
        delivery = self._tracker.register(envelope, token, size)
        self._redelivery.arrived(delivery)
        if self._redelivery.active:
            if not envelope.redelivered:
                self._redelivery.over()
            elif self._redelivery.resolve(delivery):
                self._stats["messages.recognised"] += 1
                return
        if unwanted or (identifiers and subscriptions.guard.is_copy(envelope, identifiers)):
            delivery.settle()
            return
        self._receiver.deliver(delivery)
        self._pause_if_full()

    # Internals.

    async def _discard(self, client: MqttClient, topic: str) -> None:
        if await self._subscriptions.discard(client, topic):
            self._note_change_of(topic)

    def _note_change_of(self, topic: str) -> None:
        """Note that no earlier program has asked for a message that nobody here has asked for."""
        if self._changes_topics is None:
            self._changes_topics = about_changed_topics(self._config.address, topic)
            _log.error("%r: %s", self._identifier, self._changes_topics)

    def _warn_of_a_short_session(self, client: MqttClient) -> None:
        granted, asked = client.limits.session_expiry, client.session_expiry
        if granted is None or granted >= asked or granted == self._shortened:
            return
        self._shortened = granted
        self._stats["mqtt.session_shortened"] += 1
        _log.warning(
            "the broker at %s keeps the session of %r for only %d s instead of the %d s of the"
            " option session_expiry: messages are lost while the application is away for longer;"
            " raise the broker's limit",
            self._config.address,
            self._identifier,
            granted,
            asked,
        )

    def _count_against_what_is_added(self, loss: Loss) -> None:
        """Give up a new filter that keeps ending connections, and so the others out of force."""
        final = loss.reason is not None and (
            answer_to(Packet.DISCONNECT, loss.reason).decision is Decision.SUBSCRIPTION
        )
        if not final and blame(loss) is not Blame.POSSIBLE:
            return
        for pattern, pending in self._pending.items():
            pending.ends += 1
            if (final or pending.ends >= MOST_ENDS) and not pending.given_up.done():
                self._subscriptions.withdraw(pattern)
                pending.given_up.set_result(loss.text)

    def _pause_if_full(self) -> None:
        assert self._client is not None
        limits = self._limits
        if self._state is _READING:
            if limits.is_full:
                self._become(_PAUSED)
                self._stats["mqtt.paused"] += 1
                self._client.pause()
            elif not limits.is_half_full:
                return
        elif self._state is _PAUSED and limits.is_overrun and self._is_lasting(self._client):
            # Reading continues while the answer to a subscription is pending.
            self._become(_OVERRUN)
            self._stats["mqtt.overrun"] += 1
            self._spawn(self._subscriptions.connect_anew(self._client))
        self._tracker.fill()

    def _look_for_room(self) -> None:
        tracker = self._tracker
        if self._state is _PAUSED and self._limits.has_room:
            assert self._client is not None
            self._become(_READING)
            self._client.resume()
        if self._state is _PAUSED or self._state is _OVERRUN or self._limits.is_half_full:
            tracker.fill()
        else:
            tracker.full = False

    def _become(self, state: ConsumerState) -> None:
        assert state in _NEXT[self._state], f"{self._identifier}: {self._state} to {state}"
        self._state = state

    def _is_lasting(self, client: MqttClient) -> bool:
        """Return whether what the broker has sent without acknowledgement comes again."""
        return self._durable and client.limits.session_expiry != 0

    def _resume(self, *, redelivered: bool) -> None:
        self._become(_READING)
        self._receiver.resume(redelivered=redelivered)

    def _is_foreign(self, topic: str) -> bool:
        if not topic.startswith(RESERVED + "/") or self._subscriptions.allows(topic):
            return False
        self._stats["messages.reserved"] += 1
        return True

    def _release(self, free: list[Delivery]) -> None:
        assert self._client is not None
        tokens = self._redelivery.acknowledged(free)
        if tokens:
            self._client.acknowledge(tokens)
        self._look_for_room()

    async def _bring_in_force(self) -> dict[str, int]:
        while True:
            client = await asyncio.shield(self._ready)
            try:
                return await self._subscriptions.apply(client)
            except ConnectionLost:
                if self._state is _CLOSED or not client.lost.done():
                    raise

    async def _retry_refused(self, client: MqttClient) -> None:
        while True:
            await asyncio.sleep(_RETRY_REFUSED)
            if client.lost.done():
                return
            # The answer may be missing only this time.
            with contextlib.suppress(ConnectionLost):
                self._refused = await self._subscriptions.apply(client)
                if not self._refused:
                    _log.info("%r: the broker grants all subscriptions again", self._identifier)
                    return

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
