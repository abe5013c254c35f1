"""Applications on a memory broker, seen from the broker's side."""

from __future__ import annotations

from typing import Any

from spa_dat import DistributedApplication, MemoryConfig
from spa_dat.harness import VirtualEnvironment
from spa_dat.harness._eventually import eventually
from spa_dat.transports import Envelope, MemoryProvider
from spa_dat.transports.memory import Broker, BrokerFaults

__all__ = ["Site", "Watcher"]


class Watcher:
    """Somebody else on the broker, who keeps what comes.

    Attributes:
        envelopes: what has come, in order.
    """

    def __init__(self, broker: Broker, name: str, *filters: str) -> None:
        self.envelopes: list[Envelope] = []
        self._link = broker.connect(
            name, durable=False, window=100_000, on_message=self._received, on_lost=self._lost
        )
        broker.subscribe(self._link, filters)

    def _received(self, envelope: Envelope, token: int) -> None:
        self.envelopes.append(envelope)
        self._link.queue.acknowledge(self._link, token)

    def _lost(self, taken_over: bool) -> None:
        """Cut on purpose; nothing comes any more."""

    @property
    def payloads(self) -> list[str]:
        """Payloads of what has come."""
        return [envelope.payload.decode() for envelope in self.envelopes]

    async def get(self, count: int = 1, timeout: float = 60.0) -> list[Envelope]:
        """Wait until so many have come."""
        await eventually(lambda: len(self.envelopes) >= count, timeout)
        return self.envelopes


class Site:
    """A memory broker of one's own, and what can be done to it and seen on it."""

    def __init__(self, **options: Any) -> None:
        self.provider = MemoryProvider(MemoryConfig(**options))

    @property
    def broker(self) -> Broker:
        """The broker."""
        return self.provider.broker

    @property
    def faults(self) -> BrokerFaults:
        """Trouble on demand."""
        return self.broker.faults

    def app(self, name: str = "app", **options: Any) -> DistributedApplication:
        """Make an application on this broker, with repeatable randomness."""
        options.setdefault("environment", VirtualEnvironment(7))
        return DistributedApplication(self.provider, name=name, **options)

    def watch(self, *filters: str, name: str = "watcher") -> Watcher:
        """Somebody else who receives what matches."""
        return Watcher(self.broker, name, *filters)

    def publish(self, topic: str, payload: bytes | str = b"", **fields: Any) -> None:
        """Publish a message from somebody else."""
        data = payload.encode() if isinstance(payload, str) else payload
        self.broker.publish(Envelope(topic=topic, payload=data, **fields))

    def number(self, topic: str, *numbers: int, **fields: Any) -> None:
        """Messages whose payloads and ids are these numbers."""
        for number in numbers:
            self.publish(topic, str(number), id=f"id-{number}", **fields)

    def cut(self, client_id: str = "app.0.actor", *, lose_session: bool = False) -> None:
        """Cut one connection; it comes back after its backoff."""
        self.faults.disconnect(client_id, lose_session=lose_session)

    async def reconnected(self, client_id: str = "app.0.actor") -> None:
        """Wait until the client is connected."""
        await eventually(lambda: client_id in self.broker.links, 60.0)

    def unsettled(self, client_id: str = "app.0.actor") -> int:
        """How many messages the broker keeps for the client."""
        queue = self.broker.queues[client_id]
        return len(queue) + sum(len(link.in_flight) for link in queue.members)

    async def settled(self, client_id: str = "app.0.actor", timeout: float = 60.0) -> None:
        """Wait until the client has acknowledged everything."""
        await eventually(lambda: self.unsettled(client_id) == 0, timeout)

    def letters(self, application: str = "app") -> list[Envelope]:
        """Return the stored dead letters, oldest first."""
        prefix = f"_spa/dead-letter/{application}/"
        return [
            envelope for topic, envelope in self.broker.retained.items() if topic.startswith(prefix)
        ]

    async def parked(self, count: int = 1, timeout: float = 60.0) -> list[Envelope]:
        """Wait until so many dead letters are stored."""
        await eventually(lambda: len(self.letters()) >= count, timeout)
        return self.letters()
