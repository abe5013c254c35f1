"""Programs on FastStream and on plain MQTT 3.1.1, and ours, on the same broker."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from spa_dat import DistributedApplication, Message
from spa_dat.testing import Kafka, Mosquitto
from support.kafka_bus import create
from support.peers import BUSES, PeerProgram, address_of_bus, faststream
from support.waiting import eventually

pytestmark = pytest.mark.slow

NOTHING = """
async def work():
    pass
"""
CONSUMES = (
    """
@broker.subscriber(topic, **options)
async def take(body, message: Message):
    say(body=body, kind=type(body).__name__, correlation_id=message.correlation_id)
"""
    + NOTHING
)
ANSWERS = (
    """
@broker.subscriber(topic, **options)
async def answer(body):
    return {"answer": body}
"""
    + NOTHING
)
PUBLISHES = """
async def work():
    await broker.publish({"celsius": 21.5}, topic, correlation_id="c-1")
    await broker.publish("Grüße", topic, correlation_id="c-2")
"""
ASKS = """
async def work():
    reply = await broker.request({"celsius": 21.5}, topic, timeout=60.0)
    say(body=await reply.decode(), correlation_id=reply.correlation_id)
"""


class Reading(msgspec.Struct):
    celsius: float


class Place:
    """A broker, with a topic for each test."""

    def __init__(self, bus: str, host: str, port: int) -> None:
        self.bus, self.host, self.port = bus, host, port
        self.topic = f"peer-{uuid.uuid4().hex[:8]}"

    def peer(self, text: str) -> contextlib.AbstractAsyncContextManager[PeerProgram]:
        imports = f"from faststream.{self.bus}.annotations import {self.bus.title()}Message"
        imports = imports.replace("Mqtt", "MQTT") + " as Message\n"
        return faststream(self.bus, (self.host, self.port), self.topic, imports + text)

    def app(self) -> DistributedApplication:
        url = f"{self.bus}://{self.host}:{self.port}"
        return DistributedApplication(url, name=f"ours-{uuid.uuid4().hex[:8]}")


@pytest.fixture(params=BUSES)
def place(request: pytest.FixtureRequest) -> Place:
    found = Place(*address_of_bus(request))
    if found.bus == "kafka":
        kafka: Kafka = request.getfixturevalue("kafka")
        asyncio.run(create(kafka.server, found.topic))
    return found


async def test_what_faststream_publishes_is_handled(place: Place) -> None:
    app = place.app()
    readings: list[Message[Any]] = []

    @app.application(place.topic)
    async def take(message: Message[Any]) -> None:
        readings.append(message)

    async with app, place.peer(PUBLISHES):
        await eventually(lambda: len(readings) == 2, 60)
    assert [message.payload for message in readings] == [{"celsius": 21.5}, "Grüße"]
    assert [message.correlation_id for message in readings] == ["c-1", "c-2"]


async def test_what_we_publish_is_consumed_by_faststream(place: Place) -> None:
    async with place.app() as app, place.peer(CONSUMES) as peer:
        await app.socket().publish(place.topic, Reading(21.5))
        await app.socket().publish(place.topic, "Grüße")
        await app.socket().publish(place.topic, b"\0\xff")
        first, second = await peer.says(2), await peer.says(3)
        assert (first["body"], first["kind"]) == ({"celsius": 21.5}, "dict")
        assert (second["body"], second["kind"]) == ("Grüße", "str")


async def test_our_requests_are_answered_by_faststream(place: Place) -> None:
    async with place.app() as app, place.peer(ANSWERS):
        reply = await app.socket().request(
            place.topic, Reading(21.5), reply=dict[str, Reading], timeout=60
        )
        assert reply == {"answer": Reading(21.5)}
        several = await asyncio.gather(
            *(
                app.socket().request(place.topic, number, reply=dict[str, int], timeout=60)
                for number in range(20)
            )
        )
        assert several == [{"answer": number} for number in range(20)]


@pytest.mark.mosquitto
async def test_we_answer_requests_of_faststream(mosquitto: Mosquitto) -> None:
    # On Kafka it has no requests but in its own tests.
    place = Place("mqtt", mosquitto.host, mosquitto.port or 1883)
    app = place.app()

    @app.application(place.topic)
    async def answer(reading: Reading) -> Reading:
        return Reading(reading.celsius + 1)

    async with app, place.peer(ASKS) as peer:
        said = await peer.says(2)
        assert said["body"] == {"celsius": 22.5}


# MQTT 3.1.1, which has neither properties nor response topics.


@pytest.fixture
def old_client(mosquitto: Mosquitto) -> Iterator[paho.Client]:
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
    client.connect(mosquitto.host, mosquitto.port or 1883)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


@pytest.mark.mosquitto
async def test_what_mqtt_3_1_1_clients_publish_is_handled(
    mosquitto: Mosquitto, old_client: paho.Client
) -> None:
    place = Place("mqtt", mosquitto.host, mosquitto.port or 1883)
    app = place.app()
    readings: list[Message[Reading]] = []

    @app.application(place.topic)
    async def take(message: Message[Reading]) -> None:
        readings.append(message)

    async with app:
        old_client.publish(place.topic, b'{"celsius": 21.5}', qos=1)
        await eventually(lambda: len(readings) == 1, 60)
    (message,) = readings
    assert message.payload == Reading(21.5)
    assert (message.id, message.source, message.response_topic) == (None, None, None)


@pytest.mark.mosquitto
async def test_what_we_publish_reaches_mqtt_3_1_1_clients(
    mosquitto: Mosquitto, old_client: paho.Client
) -> None:
    place = Place("mqtt", mosquitto.host, mosquitto.port or 1883)
    payloads: list[bytes] = []
    subscribed: list[bool] = []
    old_client.on_message = lambda client, data, message: payloads.append(bytes(message.payload))
    old_client.on_subscribe = lambda *arguments: subscribed.append(True)
    old_client.subscribe(place.topic, qos=1)
    await eventually(lambda: bool(subscribed), 60)
    async with place.app() as app:
        await app.socket().publish(place.topic, Reading(21.5))
        await eventually(lambda: len(payloads) == 1, 60)
    assert payloads == [b'{"celsius":21.5}']
