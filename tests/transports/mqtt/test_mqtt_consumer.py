"""What a consumer on MQTT does at moments that no real broker brings about on demand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spa_dat.errors import ConnectFailed, ConnectionLost, NotAuthorised
from spa_dat.transports import Subscription
from spa_dat.transports.mqtt._connection_group import ConnectionGroup
from support.mqtt import Recorder, client
from support.scripted import Packet, Peer, ScriptedBroker, connack, publish, suback
from support.waiting import eventually


async def serve(peer: Peer) -> None:
    """Grant the inbox, and then take whatever comes."""
    await peer.ready()
    await peer.wait_closed()


def filters_of(packet: Packet) -> list[str]:
    """The filters of a SUBSCRIBE."""
    body, found = packet.body, []
    position = 3 + body[2]
    while position < len(body):
        size = int.from_bytes(body[position : position + 2], "big")
        found.append(body[position + 2 : position + 2 + size].decode())
        position += 3 + size
    return found


# Filters.


async def test_filters_that_change_before_the_start_are_those_that_it_asks_for() -> None:
    asked: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        while True:
            packet = await peer.receive()
            if packet.kind == "UNSUBSCRIBE":
                # The session may have it from an earlier program.
                peer.unsuback(packet)
            elif packet.kind == "SUBSCRIBE":
                asked.extend(filters_of(packet))
                peer.send(suback(packet.packet_id, *[1] * len(asked)))

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        consumer = app.bus.consumer(Subscription("actor", ("a", "gone")), Recorder())
        await consumer.add_filter("b")
        await consumer.remove_filter("gone")
        assert broker.connections == 1, "it has none before the start"
        await consumer.start()
        assert sorted(asked) == ["a", "b"]
        await consumer.close()


async def test_a_new_filter_that_is_refused_is_not_asked_for_on_the_next_connection() -> None:
    refused = asyncio.Event()
    asked: list[str] = []

    async def first(peer: Peer) -> None:
        await peer.ready()
        await peer.subscribe(0x87)
        await refused.wait()
        peer.reset()

    async def second(peer: Peer) -> None:
        await peer.accept()
        packet = await peer.expect("SUBSCRIBE")
        asked.extend(filters_of(packet))
        peer.send(suback(packet.packet_id, 1))
        await peer.wait_closed()

    async with ScriptedBroker(serve, first, second) as broker, client(broker) as app:
        consumer, _ = await app.consume("a")
        with pytest.raises(NotAuthorised, match="'b'"):
            await consumer.add_filter("b")
        assert consumer.trouble is None
        refused.set()
        await eventually(lambda: asked)
        assert asked == ["a"]


async def test_what_stays_refused_is_asked_for_until_it_is_granted_or_the_connection_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._consumer._RETRY_REFUSED", 0.02)
    started = asyncio.Event()
    asked = 0

    async def first(peer: Peer) -> None:
        await peer.ready()
        await started.wait()
        peer.reset()

    async def refusing(peer: Peer) -> None:
        nonlocal asked
        await peer.accept(session=True)
        for _ in range(3):
            await peer.subscribe(0x87)
            asked += 1
        peer.reset()

    async def granting(peer: Peer) -> None:
        await peer.ready(session=True)
        await peer.wait_closed()

    async with ScriptedBroker(serve, first, refusing, granting) as broker, client(broker) as app:
        consumer: Any
        consumer, _ = await app.consume("a")
        started.set()
        await eventually(lambda: asked == 3)
        await eventually(lambda: app.stats["mqtt.connected"] == 4)
        assert consumer.trouble is None
        # Whoever asked on the connection before has nothing to ask any more.
        await eventually(lambda: not consumer._tasks)
        assert app.stats["mqtt.subscribe_refused"] == 1


# Messages.


async def test_what_is_for_nobody_is_not_delivered_with_qos_0_either() -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        peer.send(publish(0, topic="_spa/reply/x/y/z", qos=0) + publish(0, b"mine", qos=0))
        await peer.wait_closed()

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        _, recorder = await app.consume("#")
        await recorder.get(1)
        assert recorder.payloads == [b"mine"]
        assert app.stats["messages.reserved"] == 1


async def test_a_packet_id_that_came_with_another_message_is_acknowledged_once() -> None:
    acknowledged: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.ready()
        peer.send(publish(1, b"a") + publish(1, b"b") + publish(2, b"c"))
        while True:
            acknowledged.append((await peer.expect("PUBACK")).packet_id)

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        _, recorder = await app.consume("t", recorder=Recorder(settle=False))
        first, second, third = await recorder.get(3)
        for delivery in (first, second, third):
            delivery.start()
            delivery.settle()
        await eventually(lambda: 2 in acknowledged)
        assert acknowledged == [1, 2]


async def test_settling_while_a_connection_ends_over_too_much_loses_nothing() -> None:
    payloads = [b"%d" % number + b"x" * 1_000 for number in range(10)]
    settled = asyncio.Event()
    repeated: list[int] = []

    async def first(peer: Peer) -> None:
        await peer.accept(session=True)
        packet = await peer.expect("SUBSCRIBE")
        for number, payload in enumerate(payloads, 1):
            peer.send(publish(number, payload))
        peer.send(suback(packet.packet_id, 1))
        while (await peer.receive()).kind != "DISCONNECT":
            pass
        await settled.wait()

    async def second(peer: Peer) -> None:
        await peer.accept(session=True)
        for number, payload in enumerate(payloads, 1):
            peer.send(publish(number, payload, duplicate=True))
        while True:
            packet = await peer.receive()
            if packet.kind == "PUBACK":
                repeated.append(packet.packet_id)

    async with ScriptedBroker(serve, first, second) as broker, client(broker) as app:
        recorder = Recorder(settle=False)
        await app.consume("t", recorder=recorder, window_bytes=2_000)
        await eventually(lambda: app.stats["mqtt.overrun"] == 1)
        assert app.stats["mqtt.lost"] == 0, "the broker has not closed it yet"
        recorder.settles = True
        for delivery in recorder.deliveries:
            delivery.start()
            delivery.settle()
        settled.set()
        await eventually(lambda: len(repeated) == len(payloads))
        assert repeated == [*range(1, len(payloads) + 1)]
        assert set(recorder.payloads) == set(payloads)
        assert app.stats["mqtt.lost"] == 1


# The start and the end.


async def test_a_broker_that_accepts_while_a_consumer_is_closed_changes_nothing() -> None:
    closing: asyncio.Task[None] | None = None
    consumer: Any = None

    async def script(peer: Peer) -> None:
        nonlocal closing
        await peer.expect("CONNECT")
        # The answer is there when it is closed, and is read right after that.
        peer.send(connack(0))
        closing = asyncio.create_task(consumer.close())
        await peer.wait_closed()

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        recorder = Recorder()
        consumer = app.bus.consumer(Subscription("actor", ("t",)), recorder)
        with pytest.raises(ConnectFailed, match="closed"):
            await consumer.start()
        assert closing is not None
        await closing
        assert app.stats["mqtt.session_new"] == 0
        assert recorder.events == []
        assert app.fatal == []


async def test_what_a_consumer_has_begun_has_ended_when_it_is_closed() -> None:
    ended: list[str] = []

    async def ends_slowly() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            ended.append("it")

    async with ScriptedBroker(serve) as broker, client(broker) as app:
        # Without a connection nothing else takes time.
        consumer: Any = app.bus.consumer(Subscription("actor", ("a",)), Recorder())
        consumer._spawn(ends_slowly())
        await asyncio.sleep(0)
        await consumer.close()
        assert ended == ["it"]


async def test_a_start_whose_task_other_code_cancels_says_so() -> None:
    async with (
        ScriptedBroker(Peer.wait_closed) as broker,
        client(broker, start=False, connect_timeout=60, start_timeout=60) as app,
    ):
        starting = asyncio.create_task(app.start())
        await eventually(lambda: broker.connections)
        bus: Any = app.bus
        bus._connection._task.cancel()
        with pytest.raises(ConnectionLost, match="cancelled by other code"):
            await starting
        assert len(app.fatal) == 1


async def test_of_two_connections_that_fail_for_good_the_first_ends_the_application() -> None:
    fatal: list[BaseException] = []
    group = ConnectionGroup(fatal.append)
    first, second = ConnectFailed("one"), ConnectFailed("other")
    group.fail(first)
    group.fail(second)
    assert fatal == [first]


@pytest.mark.parametrize("option", ["tls", "websocket_path"])
async def test_what_closes_every_connection_is_not_said_to_speak_something_else(
    option: str,
) -> None:
    async def script(peer: Peer) -> None:
        peer.close()

    options: dict[str, Any] = {"tls": True} if option == "tls" else {"websocket_path": "/mqtt"}
    async with ScriptedBroker(script) as broker:
        with pytest.raises(ConnectFailed, match=f"127.0.0.1:{broker.port}") as caught:
            async with client(broker, start_timeout=0.2, **options):
                pass
        assert "answers there without" not in str(caught.value)


async def test_a_session_that_cannot_be_looked_at_proves_nothing() -> None:
    looked = 0
    started = asyncio.Event()

    async def closing(peer: Peer) -> None:
        nonlocal looked
        connect = await peer.expect("CONNECT")
        if not connect.body[7] & 2:
            # It wants to see what is there.
            looked += 1
            peer.close()
            return
        peer.send(connack(0))
        await peer.subscribe()
        await started.wait()
        await eventually(lambda: app.bus.connected)
        peer.close()

    async with (
        ScriptedBroker(closing) as broker,
        client(broker, backoff_max=0.03, backoff_min=0.01) as app,
    ):
        started.set()
        await eventually(lambda: looked >= 4)
        assert app.fatal == []
