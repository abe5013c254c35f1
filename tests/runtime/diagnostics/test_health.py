"""Whether an application is healthy, and why it is not."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest

from spa_dat import Actor, Context, DistributedApplication, MqttConfig, Socket, on
from spa_dat.testing import Kafka
from spa_dat.transports.memory import MemoryProvider
from support.kafka_bus import new_prefix
from support.scripted import Peer, ScriptedBroker, suback
from support.waiting import eventually

_NOT_AUTHORISED = 0x87


def on_broker(broker: ScriptedBroker) -> DistributedApplication:
    config = MqttConfig(broker.host, port=broker.port, backoff_min=0.02, backoff_max=0.1)
    return DistributedApplication(config, name="plant")


@pytest.mark.virtual
async def test_an_application_says_whether_it_runs() -> None:
    app = DistributedApplication("memory://", name="plant")
    starting: list[dict[str, str]] = []

    class Boiler(Actor):
        async def on_start(self) -> None:
            starting.append(app.problems)

        @on("a")
        async def measured(self, payload: str) -> None: ...

        async def on_stop(self) -> None:
            starting.append(app.problems)

    app.add(Boiler)
    assert app.problems == {"plant": "it is not running"}
    async with app:
        assert app.problems == {}
        assert app.healthy
    assert starting == [
        {"plant": "it is starting and is waiting for actor 'Boiler'"},
        {"plant": "it is stopping"},
    ]
    assert app.problems == {"plant": "it is not running"}
    assert not app.healthy


@pytest.mark.virtual
async def test_an_actor_without_its_connection_is_named_whatever_the_others_have() -> None:
    first, second = MemoryProvider(), MemoryProvider()
    app = DistributedApplication(first, name="plant")

    @app.application("a")
    async def boiler(payload: str) -> None: ...

    @app.application("b", socket_provider=second)
    async def pump(payload: str) -> None: ...

    @app.application("c", concurrency=2)
    async def lanes(payload: str) -> None: ...

    async with app:
        assert app.problems == {}
        first.broker.faults.refuse_connections()
        first.broker.faults.disconnect("plant.0.boiler")
        assert app.problems == {"boiler": f"there is no connection to {first.address}"}
        first.broker.faults.disconnect("plant.0.lanes")
        second.broker.faults.refuse_connections()
        second.broker.faults.disconnect()
        assert app.problems == {
            second.address: "there is no connection",
            "boiler": f"there is no connection to {first.address}",
            "pump": f"there is no connection to {second.address}",
            "lanes": f"there is no connection to {first.address}",
        }
        assert not app.healthy
        first.broker.faults.allow()
        second.broker.faults.allow()
        await eventually(lambda: app.healthy)


@pytest.mark.virtual
async def test_a_connection_for_filters_added_at_run_time_counts_until_the_actor_leaves() -> None:
    provider = MemoryProvider()
    app = DistributedApplication(provider, name="plant")
    added = asyncio.Event()

    @app.application("a")
    async def boiler(payload: str, socket: Socket, context: Context) -> None:
        if payload == "stop":
            context.stop()
            return
        await socket.subscribe("b")
        added.set()

    @app.producer()
    async def keep() -> None:
        await asyncio.Event().wait()

    async with app:
        app.socket().post("a", "x")
        await added.wait()
        provider.broker.faults.refuse_connections()
        provider.broker.faults.disconnect("plant.0.boiler.now")
        assert app.problems == {"boiler": f"there is no connection to {provider.address}"}
        app.socket().post("a", "stop")
        await eventually(lambda: app.problems == {})


async def test_an_actor_that_is_refused_after_a_reconnect_is_named_with_the_reason() -> None:
    refusing = False
    peers: list[Peer] = []

    async def script(peer: Peer) -> None:
        peers.append(peer)
        await peer.accept()
        while True:
            packet = await peer.receive()
            if packet.kind == "SUBSCRIBE":
                refused = refusing and b"halls/deaf" in packet.body
                peer.send(suback(packet.packet_id, _NOT_AUTHORISED if refused else 1))
            elif packet.kind == "PINGREQ":
                peer.send(b"\xd0\0")

    async with ScriptedBroker(script) as broker:
        app = on_broker(broker)

        @app.application("halls/deaf")
        async def deaf(payload: bytes) -> None: ...

        @app.application("halls/b")
        async def hearing(payload: bytes) -> None: ...

        async with app:
            assert app.problems == {}
            refusing = True
            while peers:
                peers.pop().reset()
            await eventually(lambda: "'halls/deaf'" in app.problems.get("deaf", ""))
            await eventually(lambda: list(app.problems) == ["deaf"])
            assert "not authorised" in app.problems["deaf"].lower()
            assert not app.healthy
            refusing = False
            while peers:
                peers.pop().reset()
            await eventually(lambda: app.healthy)


@pytest.mark.virtual
async def test_an_application_that_has_failed_says_why(caplog: pytest.LogCaptureFixture) -> None:
    app = DistributedApplication("memory://", name="plant")

    @app.producer()
    async def produce() -> None:
        raise ValueError("no sensor")

    async with app:
        await eventually(lambda: not app.healthy)
        assert app.problems == {"plant": "it has failed: ValueError: no sensor"}
        with pytest.raises(ValueError, match="no sensor"):
            await app.wait()
    assert app.problems == {"plant": "it is not running, because of ValueError: no sensor"}
    assert logging.ERROR in [record.levelno for record in caplog.records]


@pytest.mark.kafka
async def test_a_consumer_without_brokers_is_named(kafka_to_break: Kafka) -> None:
    broker = kafka_to_break
    app = DistributedApplication(
        f"{broker.url}?create_topics=all&prefix={new_prefix()}", name="plant", stop_timeout=1
    )

    @app.application("a")
    async def boiler(payload: bytes) -> None: ...

    async with app:
        assert app.problems == {}
        broker.kill()
        await eventually(lambda: "boiler" in app.problems, 60)
        assert "no connection" in app.problems["boiler"]
        broker.start()
        await eventually(lambda: app.healthy, 60)


@pytest.mark.kafka
@pytest.mark.deadline(180)
async def test_a_consumer_whose_broker_is_frozen_is_named(kafka_to_break: Kafka) -> None:
    broker = kafka_to_break
    options = "create_topics=all&request_timeout=3000&topic_refresh=1"
    url = f"{broker.url}?{options}&prefix={new_prefix()}"
    app = DistributedApplication(url, name="plant", stop_timeout=1)
    got: list[bytes] = []

    @app.application("a")
    async def boiler(payload: bytes) -> None:
        got.append(payload)

    async with app:
        await app.socket().publish("a", b"1")
        await eventually(lambda: bool(got), 60)
        broker.pause()
        await eventually(lambda: "boiler" in app.problems, 90)
        # The one until the library gives up its requests, the other then.
        assert re.search("have not answered|no connection", app.problems["boiler"])
        broker.resume()
        await eventually(lambda: app.healthy, 60)
        await app.socket().publish("a", b"2")
        await eventually(lambda: len(got) == 2, 60)
