"""Reading the dead letters of an application that a bus keeps, without disturbing anybody."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from ..._environment import Environment
from ...errors import ConnectionLost, UnknownTopic
from ...transports import (
    Delivery,
    Envelope,
    Identity,
    KafkaConfig,
    MemoryConfig,
    SocketProvider,
    Subscription,
    Surroundings,
    dead_letter_filter,
    named_topic,
)
from ._stored_letter import StoredLetter

__all__ = ["no_letters", "stored_letters"]

# No broker says when it has sent all retained messages.
_QUIET = 1.0
_QUIET_IN_MEMORY = 0.05
# Topics that are filters as they are.
_PLAIN = re.compile(r"[A-Za-z0-9_/.~%-]+")


async def stored_letters(
    provider: SocketProvider, application: str, name: str | None = None
) -> AsyncGenerator[StoredLetter, None]:
    """Yield the dead letters that a bus keeps for an application, one by one.

    What is stored meanwhile may be missing. However many there are, few are in memory at a time.

    Args:
        provider: the bus.
        application: its name.
        name: of the only letter that is wanted; None for all.

    Raises:
        TransportError: the bus cannot be used.
        ConnectionLost: not all were read, because the connection did not last.
        UnknownTopic: on Kafka, there is no topic for them, so there never was such an application.
    """
    config = provider.config
    if isinstance(config, KafkaConfig):
        found = _in_topic(config, application, name)
    else:
        found = _retained(provider, application, name)
    async with contextlib.aclosing(found):
        async for envelope in found:
            yield StoredLetter.of(application, envelope)


# Where they are records of a topic.


def no_letters(application: str, address: str) -> UnknownTopic:
    """Return the error for an application that no topic for letters was made for."""
    return UnknownTopic(
        f"there are no dead letters of an application {application!r} at {address}: it has never"
        " been there"
    )


async def _in_topic(
    config: KafkaConfig, application: str, name: str | None
) -> AsyncGenerator[Envelope, None]:
    """Yield the records that stand for letters which are still there.

    The topic also has earlier versions of letters, and records that take letters back; so it is
    read twice, because nobody can hold all of it in memory.
    """
    # The client library takes time to import.
    from ...transports.kafka.consuming._history import read_history

    wanted = None if name is None else named_topic(application, name)
    filters = [dead_letter_filter(application)]
    # By a hash of the topic of each letter: where its latest version is. A stranger who finds two
    # with one hash hides a letter of somebody who let them write there.
    latest: dict[int, tuple[int | None, int | None]] = {}
    for first in (True, False):
        try:
            async with contextlib.aclosing(read_history(config, filters, since=0)) as history:
                async for _, envelope in history:
                    topic = envelope.topic
                    if wanted is not None and topic != wanted:
                        continue
                    place = envelope.partition, envelope.offset
                    if not first:
                        if latest.get(hash(topic)) == place:
                            yield envelope
                    elif envelope.tombstone:
                        latest.pop(hash(topic), None)
                    else:
                        latest[hash(topic)] = place
        except UnknownTopic as error:
            raise no_letters(application, config.address) from error
        if not latest:
            return


# Where they are retained messages.


async def _retained(
    provider: SocketProvider, application: str, name: str | None
) -> AsyncGenerator[Envelope, None]:
    environment = Environment()
    pattern = dead_letter_filter(application)
    wanted = None if name is None else named_topic(application, name)
    if wanted is not None and _PLAIN.fullmatch(wanted):
        pattern = wanted
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(error: BaseException) -> None:
        if not failed.done():
            failed.set_exception(error)

    identity = Identity(f"letters-{environment.token(8)}", ephemeral=True)
    subscription = Subscription(
        "letters",
        (pattern,),
        window=provider.default_window,
        window_bytes=provider.default_window_bytes,
        durable=False,
        # At QoS 1 they are queued, and Mosquitto drops what is over 1,000 then by default.
        qos=0,
        retained="always",
    )
    receiver = _Receiver(provider.address)
    bus = provider.open(Surroundings(identity, environment, fatal=fail))
    consumer = bus.consumer(subscription, receiver)
    quiet = _QUIET_IN_MEMORY if isinstance(provider.config, MemoryConfig) else _QUIET
    try:
        await consumer.start()
        while (delivery := await receiver.next(quiet)) is not None:
            if wanted in (None, delivery.envelope.topic):
                yield delivery.envelope
            delivery.settle()
            if wanted == delivery.envelope.topic:
                return
        if failed.done():
            failed.result()
    finally:
        failed.cancel()
        consumer.stop_intake()
        await consumer.close()
        await bus.close()


class _Receiver:
    """Takes retained messages, and nothing that is published meanwhile.

    Args:
        address: that of the bus.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._waiting: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._is_cut = False

    async def next(self, seconds: float) -> Delivery | None:
        """Return the next one; None if none comes for so long.

        Raises:
            ConnectionLost: on the next connection they would come from the beginning, or none would
                while there is no connection, which must not be taken for the end.
        """
        while True:
            if self._is_cut:
                raise ConnectionLost(
                    f"the connection to {self._address} was lost while dead letters were read, so"
                    " some may be missing: try again"
                )
            while self._waiting:
                delivery = self._waiting.popleft()
                if delivery.start():
                    return delivery
            self._arrived.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._arrived.wait()
            except TimeoutError:
                return None

    # For the consumer.

    def deliver(self, delivery: Delivery) -> None:
        """See `Receiver.deliver`."""
        if delivery.envelope.retain:
            self._waiting.append(delivery)
            self._arrived.set()
        else:
            delivery.settle()

    def deliver_all(self, deliveries: Sequence[Delivery]) -> None:
        """See `Receiver.deliver_all`."""
        for delivery in deliveries:
            self.deliver(delivery)

    def hold(self) -> None:
        """See `Receiver.hold`."""
        self._is_cut = True
        self._arrived.set()

    def resume(self, *, redelivered: bool) -> None:
        """Do nothing: what comes again has been withdrawn."""
