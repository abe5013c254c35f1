"""The last will and the birth message in a harness, as on Mosquitto; in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import Sequence

import pytest

from spa_dat import DistributedApplication, LastWill, MqttConfig, Socket
from spa_dat.harness._pytest_fixture import HarnessFactory
from spa_dat.harness.live._real_brokers import MosquittoBrokers
from spa_dat.testing import Faults, Harness, Mosquitto, Proxy
from spa_dat.transports import Envelope
from support.mqtt import Client, Recorder, client
from support.waiting import eventually

NUMBERS = itertools.count()
WILL = LastWill("status/app", "gone", birth="there", retain=True)


def application(will: LastWill | None) -> DistributedApplication:
    app = DistributedApplication(MqttConfig("broker", will=will), name="app")

    @app.application("in")
    async def take(number: int, socket: Socket) -> None:
        socket.post("out", str(number))

    return app


class Reader:
    """Another application, which gets what is said on topics."""

    def __init__(self, *filters: str) -> None:
        self.app = DistributedApplication(MqttConfig("broker"), name="reader")
        self.seen: list[str] = []

        @self.app.application(filters)
        async def read(text: str) -> None:
            self.seen.append(text)


# As on the broker.


def simulated(will: LastWill, steps: Sequence[str]) -> list[list[str]]:
    """What was said of an application up to each of these steps."""
    app = application(will)
    reader = Reader(will.topic)
    said: list[list[str]] = []
    with Harness(reader.app, app) as harness:
        for step in steps:
            if step == "cut":
                harness.cut()
            elif step == "wait":
                harness.advance(will.delay)
            elif step != "start":
                getattr(harness, step)(app)
            elif len(said):
                harness.restart(app)
            harness.settle()
            said.append(list(reader.seen))
        harness.crash(reader.app)
    return said


async def real(
    broker: Mosquitto, will: LastWill, steps: Sequence[str], expected: list[list[str]]
) -> list[list[str]]:
    """The same on a real broker."""
    name = f"wills-{next(NUMBERS)}"
    said: list[list[str]] = []
    async with (
        client(broker, name=f"{name}-reader") as reader,
        Proxy(broker.host, broker.port) as proxy,
        contextlib.AsyncExitStack() as life,
    ):
        _, recorder = await reader.consume(will.topic)
        app: Client | None = None
        for step, sayings in zip(steps, expected, strict=True):
            if step == "start":
                await proxy.allow()
                app = await life.enter_async_context(client(proxy, name=name, will=will))
            elif step == "stop":
                await life.aclose()
            elif step == "cut":
                proxy.cut()
                assert app is not None
                lost = app
                await eventually(lambda lost=lost: lost.stats["mqtt.lost"] > 0)  # type: ignore[misc]
                lost.stats["mqtt.lost"] = 0
                await eventually(lambda lost=lost: lost.bus.connected)  # type: ignore[misc]
            elif step == "crash":
                await proxy.refuse()
                proxy.cut()
                assert app is not None
                gone = app
                # Else it would try to say that it stops.
                await eventually(lambda gone=gone: not gone.bus.connected)  # type: ignore[misc]
                await life.aclose()
            await recorder.get(len(sayings))
            said.append(texts(recorder))
        # Whatever else was said comes before this.
        await reader.bus.publish(Envelope(topic=will.topic, payload=b"end"), timeout=10)
        await eventually(lambda: "end" in texts(recorder))
        said[-1] = texts(recorder)[:-1]
    return said


def texts(recorder: Recorder) -> list[str]:
    return [payload.decode() for payload in recorder.payloads]


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("options", "steps", "sayings"),
    [
        ({}, "start cut cut stop", "there gone there gone there gone"),
        ({}, "start crash start stop", "there gone there gone"),
        ({"on_stop": False}, "start stop start crash", "there there gone"),
        ({"birth": None}, "start cut crash start stop", "gone gone gone"),
        ({"delay": 600}, "start cut cut stop", "there there there gone"),
        ({"delay": 600}, "start crash start stop", "there there gone"),
        ({"delay": 600}, "start crash", "there"),
        ({"delay": 1}, "start crash wait start stop", "there gone there gone"),
        ({"delay": 600, "on_stop": False}, "start cut stop start", "there there there"),
    ],
)
async def test_what_is_said_of_an_application_is_the_same_as_on_mosquitto(
    mosquitto: Mosquitto, options: dict[str, object], steps: str, sayings: str
) -> None:
    will = dataclasses.replace(WILL, topic=f"status/{next(NUMBERS)}", **options)  # type: ignore[arg-type]
    expected = await asyncio.to_thread(simulated, will, steps.split())
    assert expected[-1] == sayings.split()
    assert await real(mosquitto, will, steps.split(), expected) == expected


# In the harness.


def test_the_delay_passes_in_virtual_time() -> None:
    app = application(dataclasses.replace(WILL, delay=3_600))
    with Harness(app) as harness:
        assert harness.published("status/#", type=str) == ["there"]
        harness.crash()
        harness.advance(3_599.0)
        assert harness.published("status/#", type=str) == ["there"]
        harness.advance(1.0)
        assert harness.published("status/#", type=str) == ["there", "gone"]
        assert " will status/app\n" in harness.trace


def test_with_its_session_the_delay_ends_too() -> None:
    app = application(dataclasses.replace(WILL, delay=3_600))
    with Harness(app) as harness:
        harness.lose_session()
        harness.settle()
        assert harness.published("status/#", type=str) == ["there", "gone", "there"]


def test_an_outage_of_the_network_is_told_when_it_is_longer_than_the_delay() -> None:
    app = application(dataclasses.replace(WILL, delay=30))
    with Harness(app) as harness:
        harness.outage(20.0)
        harness.settle()
        assert harness.published("status/#", type=str) == ["there", "there"]
        harness.outage(40.0)
        harness.settle()
        assert harness.published("status/#", type=str) == ["there", "there", "gone", "there"]


def test_both_have_the_content_type_of_the_will() -> None:
    app = application(dataclasses.replace(WILL, content_type="text/x-state"))
    with Harness(app) as harness:
        harness.crash()
        harness.settle()
        assert [one.content_type for one in harness.messages("status/#")] == ["text/x-state"] * 2


def test_the_birth_message_comes_before_what_waits_in_the_outbox() -> None:
    app = application(WILL)
    with Harness(app) as harness:
        harness.settle()
        harness.cut()
        harness.publish("in", 1)
        harness.settle()
        said = [message.topic for message in harness.messages("#") if message.topic != "in"]
        assert said == ["status/app", "status/app", "status/app", "out"]


def test_nothing_is_said_of_an_actor_that_loses_its_own_connection() -> None:
    app = application(WILL)
    with Harness(app) as harness:
        harness.cut("take")
        harness.settle()
        assert harness.published("status/#", type=str) == ["there"]


def test_on_the_kafka_profile_there_are_neither() -> None:
    app = application(WILL)
    with Harness(app, profile="kafka") as harness:
        harness.crash()
        harness.settle()
        assert harness.published("status/#", type=str) == []


@pytest.mark.parametrize("seed", range(5))
def test_under_all_faults_the_last_word_is_the_right_one(seed: int) -> None:
    app = application(WILL)
    reader = Reader("status/+")
    print("seed", seed)
    with Harness(reader.app, app, seed=seed, faults=Faults.all()) as harness:
        for number in range(20):
            harness.publish("in", number)
        harness.settle()
        assert reader.seen[-1] == "there"


@pytest.mark.mosquitto
def test_on_a_real_broker_nothing_is_said_of_the_harness_itself() -> None:
    app = application(WILL)
    # What is published later on the same connection comes later.
    reader = Reader("status/+", "out")
    with HarnessFactory({}, brokers=MosquittoBrokers)(reader.app, app) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert reader.seen == ["there", "1"]
