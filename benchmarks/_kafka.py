"""Receiving, publishing and request-reply on a real Kafka."""

from __future__ import annotations

import itertools
import sys

from ._children import Child
from ._cluster import PARTITIONS, Cluster
from ._measure import Column, Contender, Suite, Target
from .subjects._child import (
    ASK_TOPIC,
    COPIES_TOPIC,
    COUNTS_TOPIC,
    JSON_PAYLOAD,
    JSON_TOPIC,
    KEYED_TOPIC,
    PAYLOAD,
    PUBLISH_TOPIC,
    RECEIVE_TOPIC,
    on_kafka,
)

__all__ = ["forward", "keyed", "publish", "receive", "request"]

_OURS = "spa_dat application"
_JSON = "spa_dat application, typed JSON"
_PLAIN = "aiokafka"
_FASTSTREAM = "FastStream"
_FASTSTREAM_ACK = "FastStream, ack after the handler"
_POSTS = "spa_dat producer"
_ONCE, _LEAST = "spa_dat application, exactly once", "spa_dat application, at least once"
_TRANSACTIONS = "aiokafka, transactions"
_QUIX = "Quix Streams, exactly once"
_BY_HAND = "aiokafka, by hand"
_RECEIVED = (
    Column("rate", "messages/s", ratio=True),
    Column("cpu_us", "CPU µs a message", ".1f", ratio=True),
    Column("lost", "not received"),
)
_AT_ONCE = 100
_SECONDS = 120.0


def receive(*, quick: bool, peers: str) -> Suite:
    """Return the suites that read existing records; ``peers`` is the interpreter of the others."""
    scale = 5 if quick else 1
    records, some, few = 300_000 // scale, 60_000 // scale, 5_000 // scale
    warm_up = 5_000
    stored = records + warm_up
    cluster = Cluster(
        {
            on_kafka(RECEIVE_TOPIC): (PAYLOAD, stored),
            on_kafka(JSON_TOPIC): (JSON_PAYLOAD, stored),
        }
    )

    def contender(
        name: str, interpreter: str, module: str, what: str, messages: int, warm_up: int
    ) -> Contender:
        order = {"qos": 1, "messages": messages, "warm_up": warm_up, "what": what}

        def run() -> dict[str, float]:
            told = order | {"server": cluster.server, "url": cluster.url}
            with Child(interpreter, module, told, seconds=_SECONDS) as receiver:
                receiver.expect("ready")
                return receiver.expect("result")

        return Contender(name, run)

    faststream = "kafka_receive_faststream"
    return Suite(
        "Kafka receive",
        f"Records of 100 bytes that lie in {PARTITIONS} partitions: the first {records:,} of them"
        f" after {warm_up:,} for warming up. FastStream gets {some:,}, and where it acknowledges"
        f" after the handler {few:,} after 500. Each round reads with a group of its own, from the"
        " start. Plain aiokafka takes what getmany has and commits after each batch, and looks at"
        " every record without touching its value. Ours is at-least-once. FastStream as it comes"
        " commits on a timer, whatever became of the messages. The JSON is a dataclass of five"
        " fields. The broker does not hold commits back (group.coordinator.append.linger.ms=0):"
        " who commits after each message would wait 5 ms each time. CPU time is the receiving"
        " process's alone.",
        (
            contender(_OURS, sys.executable, "receive_spa_dat", "", records, warm_up),
            contender(_JSON, sys.executable, "receive_spa_dat", "json", records, warm_up),
            contender(_PLAIN, peers, "kafka_receive_aiokafka", "", records, warm_up),
            contender(_FASTSTREAM, peers, faststream, "", some, warm_up),
            contender(_FASTSTREAM_ACK, peers, faststream, "ack", few, 500),
        ),
        _RECEIVED,
        (
            Target(
                "Kafka receive rate, by plain aiokafka's",
                0.25,
                lambda got: got.ratio(_OURS, _PLAIN, "rate"),
            ),
            Target(
                "Kafka receive rate, by FastStream's",
                10.0,
                lambda got: got.ratio(_OURS, _FASTSTREAM, "rate"),
            ),
            Target(
                "Kafka receive rate, by FastStream's with ack after the handler",
                80.0,
                lambda got: got.ratio(_OURS, _FASTSTREAM_ACK, "rate"),
            ),
            Target(
                "what a typed JSON payload costs on Kafka, by bytes",
                1.3,
                lambda got: got.ratio(_OURS, _JSON, "rate"),
                at_least=False,
            ),
        ),
        cluster,
    )


def forward(*, quick: bool, peers: str) -> Suite:
    """Return the suite that forwards each record, in transactions and without."""
    scale = 3 if quick else 1
    records, many, warm_up = 150_000 // scale, 900_000 // scale, 5_000
    cluster = Cluster(
        {
            on_kafka(RECEIVE_TOPIC): (PAYLOAD, many + warm_up),
            on_kafka(COPIES_TOPIC): (PAYLOAD, PARTITIONS),
        }
    )

    def contender(name: str, interpreter: str, module: str, what: str, messages: int) -> Contender:
        order = {"messages": messages, "warm_up": warm_up, "what": what}

        def run() -> dict[str, float]:
            told = order | {"server": cluster.server, "url": cluster.url}
            with Child(interpreter, module, told, seconds=_SECONDS) as forwarder:
                forwarder.expect("ready")
                return forwarder.expect("result")

        return Contender(name, run)

    ours = "kafka_forward_spa_dat"
    return Suite(
        "Kafka forward",
        f"Records of 100 bytes that lie in {PARTITIONS} partitions, each of which is published"
        f" again, by a handler, on another topic: the first {records:,} after {warm_up:,} for"
        " warming up. Plain aiokafka has a transactional producer for each partition, gathers for"
        f" 100 ms, counts what is committed, and gets {many:,}, as it commits many thousands at a"
        " time; ours counts what is handled. CPU time is the"
        " forwarding process's alone.",
        (
            contender(_ONCE, sys.executable, ours, "once", records),
            contender(_LEAST, sys.executable, ours, "", records),
            contender(_TRANSACTIONS, peers, "kafka_forward_aiokafka", "", many),
        ),
        _RECEIVED,
        (
            Target(
                "exactly once on Kafka, by plain aiokafka's transactions",
                0.2,
                lambda got: got.ratio(_ONCE, _TRANSACTIONS, "rate"),
            ),
            Target(
                "exactly once on Kafka, by the same actor at least once",
                0.7,
                lambda got: got.ratio(_ONCE, _LEAST, "rate"),
            ),
        ),
        cluster,
    )


def keyed(*, quick: bool, peers: str) -> Suite:
    """Return the suite that counts records by key, with counts that last; as `forward`."""
    scale = 3 if quick else 1
    records, many, warm_up, keys = 90_000 // scale, 600_000 // scale, 5_000, 10_000
    numbers = itertools.count(1)
    cluster = Cluster(
        {
            on_kafka(KEYED_TOPIC): (PAYLOAD, many + warm_up),
            on_kafka(COUNTS_TOPIC): (PAYLOAD, PARTITIONS),
        },
        keys=keys,
    )

    def contender(name: str, interpreter: str, module: str, what: str, messages: int) -> Contender:
        def run() -> dict[str, float]:
            changelog = f"benchmark.changelog.{next(numbers)}"
            cluster.create({changelog: PARTITIONS})
            told = {
                "messages": messages,
                "warm_up": warm_up,
                "what": what,
                "server": cluster.server,
                "topic": changelog,
            }
            with Child(interpreter, module, told, seconds=_SECONDS) as counter:
                counter.expect("ready")
                return counter.expect("result")

        return Contender(name, run)

    ours = "kafka_keyed_spa_dat"
    return Suite(
        "Kafka keyed",
        f"Records of 100 bytes with {keys:,} keys that lie in {PARTITIONS} partitions are counted"
        " by key, and published again with the key: the first"
        f" {records:,} after {warm_up:,} for warming up. Exactly once means that the counts, what"
        " is published and the offsets are committed together, every 100 ms; at least once the"
        " counts do not last. Plain aiokafka has a transactional producer for each partition,"
        f" writes the counts to a topic, counts what is committed, and gets {many:,}; the others"
        " count what is handled. CPU time is the counting process's alone.",
        (
            contender(_ONCE, sys.executable, ours, "once", records),
            contender(_LEAST, sys.executable, ours, "", records),
            contender(_TRANSACTIONS, peers, "kafka_keyed_aiokafka", "", many),
            contender(_QUIX, peers, "kafka_keyed_quix", "", records),
        ),
        _RECEIVED,
        (
            Target(
                "durable keys on Kafka, by plain aiokafka's transactions",
                0.2,
                lambda got: got.ratio(_ONCE, _TRANSACTIONS, "rate"),
            ),
            Target(
                "durable keys on Kafka, by the same actor at least once, not durable",
                0.7,
                lambda got: got.ratio(_ONCE, _LEAST, "rate"),
            ),
            Target(
                "durable keys on Kafka, by Quix Streams'",
                1.0,
                lambda got: got.ratio(_ONCE, _QUIX, "rate"),
            ),
        ),
        cluster,
    )


def publish(*, quick: bool, peers: str) -> Suite:
    """Return the suites that publish, one at a time and many; ``peers`` is the others' Python."""
    messages = 300 if quick else 1_000
    cluster = Cluster({on_kafka(PUBLISH_TOPIC): (PAYLOAD, PARTITIONS)})
    order = {"messages": messages, "warm_up": 100}

    def contender(name: str, interpreter: str, module: str) -> Contender:
        def run() -> dict[str, float]:
            told = order | {"server": cluster.server, "url": cluster.url}
            with Child(interpreter, module, told, seconds=_SECONDS) as publisher:
                publisher.expect("ready")
                return publisher.expect("result")

        return Contender(name, run)

    return Suite(
        "Kafka publish",
        f"Messages of 100 bytes without a key, to {PARTITIONS} partitions, with acks=all and an"
        f" idempotent producer: {messages:,} one at a time, each of them confirmed before the next,"
        f" then {100 * messages:,} of which up to 10,000 are unconfirmed, until the last is"
        " confirmed.",
        (
            contender(_POSTS, sys.executable, "kafka_publish_spa_dat"),
            contender(_PLAIN, peers, "kafka_publish_aiokafka"),
        ),
        (
            Column("rate", "messages/s", ratio=True),
            Column("cpu_us", "CPU µs a message", ".1f", ratio=True),
            Column("latency_us", "median µs, one at a time", ratio=True),
            Column("slow_us", "99th percentile µs"),
        ),
        (
            Target(
                "Kafka publish rate, by plain aiokafka's",
                0.8,
                lambda got: got.ratio(_POSTS, _PLAIN, "rate"),
            ),
        ),
        cluster,
    )


def request(*, quick: bool, peers: str) -> Suite:
    """Return the suites of requests, one at a time and many; ``peers`` is the others' Python."""
    requests = 300 if quick else 2_000
    cluster = Cluster()
    numbers = itertools.count(1)

    def contender(name: str, interpreter: str, module: str) -> Contender:
        order = {"messages": requests, "warm_up": 500, "at_once": _AT_ONCE}

        def run() -> dict[str, float]:
            # Fresh ones: nobody finds requests of somebody else.
            topic = f"{ASK_TOPIC}/{next(numbers)}"
            asked = on_kafka(topic)
            cluster.create({asked: PARTITIONS, f"{asked}.replies": 1})
            told = order | {"server": cluster.server, "url": cluster.url, "topic": topic}
            responding, requesting = told | {"what": "responder"}, told | {"what": "requester"}
            with Child(interpreter, module, responding, seconds=_SECONDS) as responder:
                responder.expect("ready")
                with Child(interpreter, module, requesting, seconds=_SECONDS) as requester:
                    requester.expect("ready")
                    return requester.expect("result")

        return Contender(name, run)

    return Suite(
        "Kafka request-reply",
        f"Requests of 100 bytes to a topic of {PARTITIONS} partitions, and replies of the same size"
        f" to a topic of one: up to {requests:,} one at a time (5 s at the most), then"
        f" {5 * requests:,} with {_AT_ONCE} at once. Requester and responder are processes of their"
        " own. By hand nobody waits for confirmations and the responder commits on a timer; ours"
        " commits a request only after its reply is confirmed.",
        (
            contender(_OURS, sys.executable, "request_spa_dat"),
            contender(_BY_HAND, peers, "kafka_request_aiokafka"),
        ),
        (
            Column("latency_us", "median µs, one at a time", ratio=True),
            Column("slow_us", "99th percentile µs"),
            Column("rate", f"requests/s, {_AT_ONCE} at once", ratio=True),
            Column("cpu_us", "requester's CPU µs a request", ".1f"),
        ),
        (
            Target(
                "median of a request on Kafka, by plain aiokafka's",
                1.4,
                lambda got: got.ratio(_OURS, _BY_HAND, "latency_us"),
                at_least=False,
            ),
            Target(
                f"rate on Kafka with {_AT_ONCE} at once, by plain aiokafka's",
                0.7,
                lambda got: got.ratio(_OURS, _BY_HAND, "rate"),
            ),
        ),
        cluster,
    )
