"""Programs on FastStream, on `cloudevents` and on plain MQTT 3.1.1, and ours, on one broker."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import paho.mqtt.client as paho
import pytest
from aiokafka import AIOKafkaProducer
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings import kafka as kafka_binding
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from spa_dat import DistributedApplication, Message
from spa_dat.testing import Kafka, Mosquitto
from support.kafka_bus import create, read
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


# The package `cloudevents`, over clients of others, because it connects to nothing itself.

EVENT = {
    "id": "A234-1234-1234",
    "source": "https://example.com/shop",
    "type": "com.example.order.placed",
    "time": datetime(2023, 11, 14, 22, 13, 20, 250_000, UTC),
    "datacontenttype": "application/json",
    "subject": "orders/7",
    "partitionkey": "customer-7",
}


class KafkaEvents:
    """Events of the package in Kafka, by its own binding."""

    def __init__(self, place: Place) -> None:
        self._server, self._topic = f"{place.host}:{place.port}", place.topic

    async def publish(self, event: CloudEvent) -> None:
        """Publish an event in binary mode, then the same in structured mode."""
        async with AIOKafkaProducer(bootstrap_servers=self._server) as producer:
            for mode in (kafka_binding.to_binary, kafka_binding.to_structured):
                message = mode(event, JSONFormat())
                assert isinstance(message.key, str)
                await producer.send_and_wait(
                    self._topic,
                    message.value,
                    message.key.encode(),
                    headers=list(message.headers.items()),
                )

    @contextlib.asynccontextmanager
    async def consume(self) -> AsyncIterator[Callable[[], Awaitable[list[BaseCloudEvent]]]]:
        """Give what returns the first two events of the topic."""

        async def both() -> list[BaseCloudEvent]:
            return [
                kafka_binding.from_binary(
                    kafka_binding.KafkaMessage(dict(record.headers), record.key, record.value),
                    JSONFormat(),
                )
                for record in await read(self._server, self._topic, 2)
            ]

        yield both


class MqttEvents:
    """Events of the package in MQTT 5, for which it has no binding: as CloudEvents describes it."""

    def __init__(self, place: Place) -> None:
        self._topic = place.topic
        self._received: list[paho.MQTTMessage] = []
        self._subscribed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = lambda client, data, message: self._received.append(message)
        self._client.on_subscribe = self._on_subscribe
        self._place = place

    def _on_subscribe(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._subscribed.set)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        self._client.connect(self._place.host, self._place.port)
        self._client.loop_start()
        try:
            yield
        finally:
            self._client.disconnect()
            self._client.loop_stop()

    async def publish(self, event: CloudEvent) -> None:
        """Publish an event in binary mode, then the same in structured mode."""
        attributes = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        attributes.ContentType = event.get_datacontenttype()
        attributes.UserProperty = [
            (name, value.isoformat() if isinstance(value, datetime) else str(value))
            for name, value in event.get_attributes().items()
            if name != "datacontenttype"
        ]
        document = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        document.ContentType = JSONFormat().get_content_type()
        data = JSONFormat().write_data(event.get_data(), event.get_datacontenttype())
        with self._connected():
            for payload, properties in ((data, attributes), (JSONFormat().write(event), document)):
                sent = self._client.publish(self._topic, payload, qos=1, properties=properties)
                await asyncio.to_thread(sent.wait_for_publish, 60)

    @contextlib.asynccontextmanager
    async def consume(self) -> AsyncIterator[Callable[[], Awaitable[list[BaseCloudEvent]]]]:
        """Give what returns the first two events of the topic."""
        with self._connected():
            self._client.subscribe(self._topic, qos=1)
            await asyncio.wait_for(self._subscribed.wait(), 60)

            async def both() -> list[BaseCloudEvent]:
                await eventually(lambda: len(self._received) == 2, 60)
                return [self._event(message) for message in self._received]

            yield both

    @staticmethod
    def _event(message: paho.MQTTMessage) -> BaseCloudEvent:
        attributes: dict[str, Any] = dict(message.properties.UserProperty)  # type: ignore[union-attr]
        attributes["time"] = datetime.fromisoformat(attributes["time"])
        content_type = message.properties.ContentType  # type: ignore[union-attr]
        attributes["datacontenttype"] = content_type
        return CloudEvent(attributes, JSONFormat().read_data(bytes(message.payload), content_type))


def events(place: Place) -> KafkaEvents | MqttEvents:
    return KafkaEvents(place) if place.bus == "kafka" else MqttEvents(place)


async def test_what_the_package_cloudevents_publishes_is_handled(place: Place) -> None:
    app = place.app()
    readings: list[Message[Reading]] = []

    @app.application(place.topic)
    async def take(message: Message[Reading]) -> None:
        readings.append(message)

    async with app:
        await events(place).publish(CloudEvent(EVENT, {"celsius": 21.5}))
        await eventually(lambda: len(readings) == 2, 60)
    for message in readings:
        assert message.payload == Reading(21.5)
        assert message.id == EVENT["id"]
        assert message.source == EVENT["source"]
        assert message.type == EVENT["type"]
        assert message.time == 1_700_000_000.25
        assert message.content_type == "application/json"
        assert message.headers["subject"] == "orders/7"
        assert message.headers["partitionkey"] == "customer-7"


async def test_what_we_publish_is_an_event_for_the_package_cloudevents(place: Place) -> None:
    async with place.app() as app, events(place).consume() as both:
        socket = app.socket()
        await socket.publish(place.topic, Reading(21.5), type="reading", headers={"subject": "m7"})
        await socket.publish(place.topic, "Grüße", headers={"correlationid": "c-1"})
        first, second = await both()
    assert first.get_data() == {"celsius": 21.5}
    assert (first.get_type(), first.get_subject()) == ("reading", "m7")
    assert first.get_datacontenttype() == "application/json"
    assert second.get_data() == "Grüße"
    assert (second.get_type(), second.get_extension("correlationid")) == ("spa-dat.message", "c-1")
    assert first.get_id() != second.get_id()
    for event in (first, second):
        assert event.get_specversion() == "1.0"
        assert event.get_source() == f"{app.identity.application}/{app.identity.instance}"
        time = event.get_time()
        assert time is not None
        assert time.tzinfo is not None
