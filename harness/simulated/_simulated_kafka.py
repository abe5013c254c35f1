"""A bus that behaves like a Kafka cluster."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from functools import partial
from typing import Any

from ...errors import MessageTooLarge, PublishRefused, UnknownTopic
from ...transports import Bus, Envelope, KafkaConfig, KafkaProvider, SocketProvider, Surroundings
from ...transports._wire_formats import WireFormats
from ...transports.kafka._aiokafka_private import check_libraries
from ...transports.kafka._partitioner import hash_of
from ...transports.kafka._records import Record, RecordCodec
from ...transports.kafka._topic_names import Names
from ..kafka_cluster import (
    MARKER_DELAY,
    MAX_BATCH,
    AppendedRecord,
    Cluster,
    encode_record,
    serve,
    virtual_time,
)
from ..loop._network import Network
from ..loop._virtual_time import VirtualEnvironment
from ._harness_bus import BusWorld, SimulatedBus
from ._kafka_connections import KafkaConnections
from ._observed_kafka_bus import ObservedKafkaBus, Offsets
from ._repeatable_order import repeatable_order

__all__ = ["SimulatedKafkaBus"]

_PORT = 9092
_SHARED = (
    "window", "window_bytes", "outbox", "outbox_bytes", "max_received", "qos", "start_timeout",
    "connect_timeout", "backoff_min", "backoff_max", "wire",
)  # fmt: skip
_PARTITIONS = 3
_IDLE = 10.0
# In seconds, as brokers have them by default.
_SESSION_TIMEOUTS = 6.0, 1_800.0
_TOLD_OTHERWISE = frozenset(("append", "create-topic"))
# For a batch that a producer has sent again, and that is stored once.
_WORDS = {"duplicate": "recognise"}


class SimulatedKafkaBus(SimulatedBus):
    """Topics with partitions, groups, offsets: a cluster of one broker behind faulty connections.

    The applications use the same transport and the same client library as in production. Each
    topic that they name exists, as if an administrator had created it, with as many partitions as
    the option ``partitions`` says; with 3 where the original is no Kafka bus.

    Args:
        world: the world it is in.
    """

    pace = 8
    keeps_history = True
    has_transactions = True

    def __init__(self, world: BusWorld) -> None:
        self._world = world
        loop = world.loop
        self._now = now = VirtualEnvironment(loop=loop).now
        self._end = contextlib.ExitStack()
        network = loop.network
        if network is None:
            network = loop.network = Network(loop, world.outside)
            with contextlib.ExitStack() as begun:
                begun.enter_context(virtual_time(loop, now))
                begun.enter_context(repeatable_order(loop))
                self._end = begun.pop_all()
        self._host = _free_host(network)
        self.cluster = Cluster(loop, host=self._host, port=_PORT, on_event=self._on_event, now=now)
        self.cluster.session_timeouts = _SESSION_TIMEOUTS
        self.cluster.on_append = self._on_append
        self.cluster.patience = self._patience
        self.cluster.marker_delay = lambda: MARKER_DELAY + world.dice.latency()
        self._connections = KafkaConnections(world, network, self._host)
        self._network = network
        self.come_back()
        self._buses: list[ObservedKafkaBus] = []
        # Those of the first bus are used for messages from outside.
        self._config = KafkaConfig()
        self._names = Names(self._config)
        self._codec: RecordCodec | None = None
        # What comes from outside is as it is, unless the test names a format.
        self._wires = WireFormats("cloudevents")
        self._random = random.Random(0)
        self._repeating = False
        self._to_commit: Offsets = {}

    def open(self, original: SocketProvider, surroundings: Surroundings) -> Bus:
        """See `HarnessBus.open`."""
        check_libraries()
        config = _config(original, f"{self._host}:{_PORT}")
        names = Names(config)
        if self._codec is None:
            self._config, self._names = config, names
            self._codec = RecordCodec(names, surroundings.stats, self._now)
            self._wires = WireFormats("cloudevents", names.name_of, names.reply_topic)
            self._random = random.Random(surroundings.environment.token())
        bus = ObservedKafkaBus(config, names, surroundings, self.cluster)
        self._buses.append(bus)
        return bus

    def check(self, envelope: Envelope) -> None:
        """See `HarnessBus.check`."""
        KafkaProvider(self._config).check_message(envelope)
        assert self._codec is not None
        record = self._codec.encode(self._wires.packed(envelope))
        other = self.cluster.alike(record.name)
        if record.name not in self.cluster.topics and other is not None:
            raise UnknownTopic(
                f"a cluster cannot have a topic {record.name!r} for {envelope.topic!r} beside"
                f" {other!r}: choose another address"
            )
        try:
            batch = encode_record(record.key, record.value, record.headers, record.timestamp or 0)
        except OverflowError as error:
            raise PublishRefused(
                f"the message to {envelope.topic!r} has the time {envelope.time!r} (seconds since"
                " 1970), which no record on Kafka can have: give another one, or none"
            ) from error
        size = len(batch)
        if size > MAX_BATCH:
            raise MessageTooLarge(
                f"the message to {envelope.topic!r} takes {size} bytes, and a Kafka cluster takes"
                f" {MAX_BATCH} by default: send less"
            )

    def inject(self, envelope: Envelope) -> None:
        """See `HarnessBus.inject`."""
        assert self._codec is not None
        record = self._codec.encode(self._wires.packed(envelope))
        topics = self.cluster.topics
        if record.name not in topics:
            self.cluster.create_topic(record.name, self._config.partitions)
        count = len(topics[record.name].partitions)
        if record.key is not None:
            partition = hash_of(record.key) % count
        else:
            partition = self._random.randrange(count)
        self._append(record.name, partition, record)

    def _append(self, topic: str, partition: int, record: Record | AppendedRecord) -> None:
        timestamp = record.timestamp
        self.cluster.append(
            topic,
            partition,
            key=record.key,
            value=record.value,
            headers=record.headers,
            timestamp=round(self._now() * 1000) if timestamp is None else timestamp,
        )

    def under_way(self) -> str | None:
        """See `HarnessBus.under_way`."""
        return self._under_way(self._to_commit)

    def _under_way(self, to_commit: Offsets) -> str | None:
        self._buses = [bus for bus in self._buses if not bus.gone]
        problem = self._connections.under_way() or self._open_transaction()
        if problem is None:
            settled: Offsets = {}
            for bus in self._buses:
                settled.update(bus.settled())
            for bus in self._buses:
                problem = problem or bus.under_way(
                    self._connections.is_connected, settled, to_commit
                )
        return problem

    def _open_transaction(self) -> str | None:
        for name, transaction in self.cluster.transactions.items():
            if transaction.open:
                return f"transaction {name!r} is open"
        return None

    def begin_to_settle(self) -> None:
        """See `HarnessBus.begin_to_settle`."""
        self._to_commit = {}

    def all_handled(self) -> None:
        """See `HarnessBus.all_handled`."""
        self._to_commit = self._ends()

    def _ends(self) -> Offsets:
        ends: Offsets = {}
        for bus in self._buses:
            ends.update(bus.ends())
        return ends

    def letters(self) -> list[Envelope]:
        """See `HarnessBus.letters`."""
        prefix = self._names.dead_letters("")
        found: dict[str, Envelope] = {}
        for name in self.cluster.topics:
            if name.startswith(prefix):
                for record in self.cluster.records(name):
                    letter = self._decoded(record)
                    if letter is not None:
                        # A letter that was sent again is the same letter.
                        found[letter.topic] = letter
        return list(found.values())

    # What happens to connections, members and applications.

    def clients(self) -> list[str]:
        """See `SimulatedBus.clients`."""
        return self._connections.clients()

    def cut(self, client: str, *, lose_session: bool = False) -> None:
        """See `SimulatedBus.cut`.

        With ``lose_session`` the group also removes the member, as it does after missed heartbeats:
        others get its partitions, and it has to rejoin. What the group has committed stays, as it
        does in a real cluster.
        """
        self._world.trace.add(client, "session-lost" if lose_session else "lost")
        self._connections.reset(client)
        if lose_session:
            for group in self.cluster.groups.values():
                for identifier, member in list(group.members.items()):
                    if member.client_id == client:
                        group.leave(identifier)

    def go_away(self) -> None:
        """See `SimulatedBus.go_away`."""
        self._network.refuse(self._host, _PORT)
        for client in self.clients():
            self._world.trace.add(client, "lost")
            self._connections.reset(client)

    def come_back(self) -> None:
        """See `SimulatedBus.come_back`."""
        self._network.listen(
            self._host, _PORT, self._connections.accepting(partial(serve, self.cluster))
        )

    def kill(self, owner: object) -> None:
        """See `HarnessBus.kill`."""
        for bus in self._buses:
            if bus.owner is owner:
                bus.abandon()
        self._buses = [bus for bus in self._buses if not bus.gone]
        self._connections.kill(owner)

    def rebalance(self) -> bool:
        """See `SimulatedBus.rebalance`."""
        groups = [group for group in self.cluster.groups.values() if group.members]
        for group in groups:
            group.rebalance()
        return bool(groups)

    @property
    def has_compacted_topics(self) -> bool:
        """See `SimulatedBus.has_compacted_topics`."""
        return any(topic.tombstones is not None for topic in self.cluster.topics.values())

    def compact(self) -> None:
        """See `SimulatedBus.compact`."""
        for name in self.cluster.topics:
            self.cluster.compact(name)

    def close(self) -> None:
        """See `HarnessBus.close`."""
        self._end.close()

    # What the cluster reports.

    def _patience(self) -> float:
        """Return how much longer to keep idle clients waiting, so that an idle hour is quick."""
        if not self._buses or self._under_way(self._ends()) is not None:
            return 0.0
        return min(_IDLE, *(bus.request_timeout / 2 for bus in self._buses))

    def _on_event(self, who: str, what: str, about: str, more: str) -> None:
        if what not in _TOLD_OTHERWISE:
            self._world.trace.add(who or self._host, _WORDS.get(what, what), about, more)

    def _on_append(self, topic: str, partition: int, record: AppendedRecord) -> None:
        world = self._world
        envelope = self._decoded(record)
        if envelope is None:
            return
        if self._repeating:
            world.trace.add(topic, "duplicate", envelope.topic, envelope.id)
            return
        world.note(envelope)
        dice = world.dice
        if record.transactional or self._names.is_own(topic):
            return
        if dice.strikes(dice.faults.duplicate):
            world.loop.call_soon(self._repeat, record, context=world.outside)

    def _repeat(self, record: AppendedRecord) -> None:
        """Append it a second time, like a publisher that crashed before it got the confirmation."""
        self._repeating = True
        try:
            self._append(record.topic, record.partition, record)
        finally:
            self._repeating = False

    def _decoded(self, record: AppendedRecord) -> Envelope | None:
        assert self._codec is not None
        # The codec handles headers without a value as it does those from the client library.
        fetched: Any = record
        return self._codec.decode(fetched)


def _free_host(network: Network) -> str:
    number = 1
    while network.claims(f"kafka-{number}.simulated"):
        number += 1
    return f"kafka-{number}.simulated"


def _config(original: SocketProvider, server: str) -> KafkaConfig:
    """Return the options of the original, except for those that say how to reach it."""
    config = original.config
    if isinstance(config, KafkaConfig):
        return replace(
            config,
            servers=server,
            username=None,
            password=None,
            tls=False,
            tls_ca=None,
            tls_cert=None,
            tls_key=None,
            tls_key_password=None,
            tls_insecure_skip_verification=False,
            create_topics="all",
            replication=None,
        )
    options = {name: getattr(config, name) for name in _SHARED if hasattr(config, name)}
    largest = getattr(config, "max_payload", KafkaConfig.max_payload)
    return KafkaConfig(
        server,
        create_topics="all",
        partitions=_PARTITIONS,
        max_payload=min(largest, KafkaConfig.max_payload),
        **options,
    )
