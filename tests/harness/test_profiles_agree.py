"""What a real broker takes and what it refuses, a profile of the harness takes and refuses, too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from spa_dat import DistributedApplication, Message, MessageBuilder, Socket
from spa_dat.errors import ConfigurationError, DecodeError, MessageTooLarge
from spa_dat.testing import Harness, Kafka, Mosquitto
from support.waiting import eventually

TEXTS = {
    "plain": "plain",
    "empty": "",
    "line break": "two\r\nlines",
    "null": "a\0b",
    "controls": "\x01\x1b[2J\x7f",
    "C1 controls": "\x80\x9f",
    "no characters": "\ufdd0\ufffe\U0010ffff",
    "surrogate": "half \ud800 of it",
    "unusual": "\u2028\u202e\u200d\ufeff e\u0301 \U0001f600",
    "blanks": "  a\tb ",
    "65535 bytes": "é" * 32_767 + "x",
    "65536 bytes": "é" * 32_768,
}
NAMES = ("spa_reply_subject", "ce_id", "id", "key", "time", "reply_to", "content-type", "Own")
LEVELS = {
    "200 levels": "/".join("probe" for _ in range(200)),
    "201 levels": "/".join("probe" for _ in range(201)),
    "empty levels": "probe//a/",
    "wildcard +": "probe/+",
    "wildcard #": "probe/#",
    "of the broker": "$SYS/probe",
    "of the runtime": "_spa/probe",
    "249 characters": "probe/" + "x" * 243,
    "250 characters": "probe/" + "x" * 244,
    "dots": "probe.a/b",
    "underscores": "probe_a/b",
}


def hostile(*, topics: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return what is tried: its name, a topic, and options of `Socket.publish`."""
    for kind, text in TEXTS.items():
        yield f"name of a header: {kind}", "probe/a", {"headers": {text: "x"}}
        yield f"header: {kind}", "probe/a", {"headers": {"x": text}}
        yield f"key: {kind}", "probe/a", {"key": text}
        yield f"content type: {kind}", "probe/a", {"content_type": text}
        if topics:
            yield f"topic: {kind}", f"probe/{text}", {}
        yield f"response topic: {kind}", "probe/a", {"response_topic": f"answers/{text}"}
    for name in NAMES:
        yield f"header {name}", "probe/a", {"headers": {name: "x"}}
    for kind, topic in LEVELS.items():
        yield f"response topic: {kind}", "probe/a", {"response_topic": topic}
        if topics:
            yield f"topic: {kind}", topic, {}
    yield "no payload", "probe/a", {"payload": None}
    yield "large", "probe/a", {"payload": b"x" * 1_000_000}
    yield "too large", "probe/a", {"payload": b"x" * 1_048_577}
    yield "many headers", "probe/a", {"headers": {f"h{n}": "x" * 60_000 for n in range(10)}}
    yield "too many headers", "probe/a", {"headers": {f"h{n}": "x" * 60_000 for n in range(40)}}


class Probe:
    """An application that publishes all of that, and gets what arrives of it.

    Attributes:
        app: not started; it begins with a message on ``start``.
        outcomes: what became of each publish, an error by its class.
        seen: what has arrived, by the beginning of its payload.
        letters: how many dead letters there were in the end.
        done: all was tried.
    """

    def __init__(self, address: str, *, topics: bool) -> None:
        self.app = DistributedApplication(address, name="probe")
        self.outcomes: dict[str, str] = {}
        self.seen: dict[str, object] = {}
        self.letters = 0
        self.done = asyncio.Event()

        @self.app.application("start", name="sender")
        async def send(payload: int, socket: Socket, message_builder: MessageBuilder) -> None:
            for number, (name, topic, options) in enumerate(hostile(topics=topics)):
                options = {"payload": f"{number}", **options}
                try:
                    await socket.publish(message_builder(topic, **options))
                except Exception as error:
                    self.outcomes[name] = type(error).__name__
                else:
                    self.outcomes[name] = "taken"
            self.done.set()

        @self.app.application("probe/#" if topics else "probe/a", name="receiver")
        async def receive(message: Message[bytes]) -> None:
            headers = {name: len(text) for name, text in message.headers.items()}
            what = message.topic, headers, message.key, message.content_type, len(message.payload)
            self.seen[message.payload[:10].decode()] = what


def simulated(profile: Any, address: str, *, topics: bool) -> Probe:
    probe = Probe(address, topics=topics)
    with Harness(probe.app, profile=profile, allow_failures=DecodeError) as harness:
        harness.publish("start", 1)
        harness.settle()
        probe.letters = len(harness.dead_letters())
    assert probe.done.is_set()
    return probe


async def real(address: str, profile: Probe, *, topics: bool) -> Probe:
    probe = Probe(address, topics=topics)
    seen, letters = len(profile.seen), profile.letters

    def stored() -> int:
        return probe.app.stats["dead_letters.stored"]

    async with probe.app:
        await probe.app.socket().publish("start", 1)
        async with asyncio.timeout(40):
            await probe.done.wait()
        await eventually(lambda: len(probe.seen) >= seen and stored() >= letters)
        probe.letters = stored()
        assert probe.app.healthy
    return probe


def differences(profile: Probe, broker: Probe) -> dict[str, tuple[object, object]]:
    """Return what the two disagree about."""
    wrong: dict[str, tuple[object, object]] = {
        name: (outcome, broker.outcomes.get(name))
        for name, outcome in profile.outcomes.items()
        if broker.outcomes.get(name) != outcome
    }
    if profile.letters != broker.letters:
        wrong["dead letters"] = profile.letters, broker.letters
    for name in sorted({*profile.seen, *broker.seen}):
        if profile.seen.get(name) != broker.seen.get(name):
            wrong[f"arrived: {name}"] = profile.seen.get(name), broker.seen.get(name)
    return wrong


@pytest.mark.mosquitto
async def test_the_mqtt_profile_takes_and_refuses_what_mosquitto_does(own_mosquitto: Any) -> None:
    broker: Mosquitto = own_mosquitto()
    profile = simulated("mqtt", "mqtt://broker", topics=True)
    mosquitto = await real(broker.url, profile, topics=True)
    assert differences(profile, mosquitto) == {}


@pytest.mark.kafka
async def test_the_kafka_profile_takes_and_refuses_what_kafka_does(own_kafka: Any) -> None:
    broker: Kafka = own_kafka()
    options = "?create_topics=all"
    profile = simulated("kafka", f"kafka://broker{options}", topics=False)
    kafka = await real(broker.url + options, profile, topics=False)
    assert differences(profile, kafka) == {}


# What a broker says to new topics with these settings, partitions and replicas.
NEW_TOPICS: dict[str, tuple[dict[str, str | None], int, int, int]] = {
    "plain": ({}, 1, 1, 0),
    "size": ({"max.message.bytes": " 7 "}, 1, 1, 0),
    "two policies": ({"cleanup.policy": "compact, delete"}, 1, 1, 0),
    "unknown": ({"no.such": "1"}, 1, 1, 40),
    "no value": ({"max.message.bytes": None}, 1, 1, 40),
    "no number": ({"max.message.bytes": "abc"}, 1, 1, 40),
    "too small": ({"max.message.bytes": "-5"}, 1, 1, 40),
    "no time": ({"delete.retention.ms": "-1"}, 1, 1, 40),
    "no number either": ({"retention.ms": "x"}, 1, 1, 40),
    "no policy": ({"cleanup.policy": "keep"}, 1, 1, 40),
    "no partitions": ({}, 0, 1, 37),
    "no replicas": ({}, 1, 0, 38),
}


async def answers_to_new_topics(server: str) -> dict[str, int]:
    """Return the code that a cluster gives for each of `NEW_TOPICS`."""
    admin = AIOKafkaAdminClient(bootstrap_servers=server)
    await admin.start()
    try:
        codes = {}
        for number, (kind, (settings, partitions, replicas, _)) in enumerate(NEW_TOPICS.items()):
            topic = NewTopic(f"new-{number}", partitions, replicas, topic_configs=settings)
            (answer,) = (await admin.create_topics([topic])).topic_errors
            codes[kind] = answer[1]
    finally:
        await admin.close()
    return codes


EXPECTED = {kind: code for kind, (_, _, _, code) in NEW_TOPICS.items()}


def test_the_kafka_profile_takes_and_refuses_new_topics() -> None:
    app = DistributedApplication("kafka://broker", name="probe")
    codes: dict[str, int] = {}

    @app.application("start")
    async def create(payload: int) -> None:
        codes.update(await answers_to_new_topics("kafka-1.simulated:9092"))

    with Harness(app) as harness:
        harness.publish("start", 1)
        harness.settle()
    assert codes == EXPECTED


@pytest.mark.kafka
async def test_kafka_takes_and_refuses_these_new_topics(own_kafka: Any) -> None:
    broker: Kafka = own_kafka()
    assert await answers_to_new_topics(broker.server) == EXPECTED


@pytest.mark.parametrize("seconds", [5, 1_801])
def test_a_session_timeout_that_no_broker_takes_by_default_is_refused(seconds: float) -> None:
    address = f"kafka://broker?session_timeout={seconds}&heartbeat_interval=1"
    app = DistributedApplication(address, name="probe")

    @app.application("start")
    async def nothing(payload: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"session_timeout.*limits"), Harness(app):
        pass


@pytest.mark.parametrize("topics", [True, False])
@pytest.mark.parametrize("kind", ["mqtt", "kafka"])
def test_any_address_has_the_rules_of_the_profile(kind: str, topics: bool) -> None:
    own = simulated(kind, f"{kind}://broker", topics=topics)
    for address in ("mqtt://broker", "memory://", "kafka://broker"):
        foreign = simulated(kind, address, topics=topics)
        # The rules of the address hold, too: production has them.
        laxer = {
            name: outcomes
            for name, outcomes in differences(own, foreign).items()
            if outcomes[1] == "taken"
        }
        assert laxer == {}


FROM_OUTSIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "line break in the key": ("probe/a", {"key": "a\nb"}),
    "blank in the topic": ("probe/a b", {}),
    "name of Kafka's wire format": ("probe/a", {"headers": {"ce_id": "x"}}),
    "5 MB": ("probe/a", {"payload": b"x" * 5_000_000}),
    "201 levels": ("/".join("probe" for _ in range(201)), {}),
}


@pytest.mark.parametrize("profile", ["mqtt", "kafka"])
@pytest.mark.parametrize("address", ["mqtt://broker", "kafka://broker"])
@pytest.mark.parametrize("what", FROM_OUTSIDE)
def test_what_nobody_can_publish_a_test_can_not_either(
    what: str, address: str, profile: Any
) -> None:
    topic, options = FROM_OUTSIDE[what]
    rules = {profile, address.partition(":")[0]}
    refused = {
        "line break in the key": "mqtt" in rules,
        "blank in the topic": "kafka" in rules,
        "name of Kafka's wire format": "kafka" in rules,
        "5 MB": profile == "kafka",
        "201 levels": True,
    }[what]
    app = DistributedApplication(address, name="probe")
    with Harness(app, profile=profile) as harness:
        if refused:
            with pytest.raises((ConfigurationError, MessageTooLarge)):
                harness.publish(topic, **{"payload": "1", **options})
        else:
            harness.publish(topic, **{"payload": "1", **options})
        harness.settle()


def test_a_time_that_no_record_can_have_is_refused_in_a_recording_too(tmp_path: Path) -> None:
    # What some client has written may lie as far ahead as a record allows.
    file = tmp_path / "recording.jsonl"
    file.write_text(
        '{"version":1,"topic":"probe/a","payload":"1","at":0,"time":9223372036854776.0}\n'
    )
    app = DistributedApplication("kafka://broker", name="probe")
    with (
        Harness(app) as harness,
        pytest.raises(ConfigurationError, match=r"line 1: .* the time 9223372036854776\.0 .*"),
    ):
        harness.replay(file)


def test_what_is_received_is_limited_as_the_address_says_by_default() -> None:
    app = DistributedApplication("kafka://broker", name="probe")
    sizes: list[int] = []

    @app.application("probe/a")
    async def receive(payload: bytes) -> None:
        sizes.append(len(payload))

    with Harness(app, profile="mqtt") as harness:
        harness.publish("probe/a", b"x" * 1_040_000)
        harness.settle()
        assert sizes == [1_040_000]
