"""Brokers that send messages again, on the same connection and on the next one."""

from __future__ import annotations

import asyncio
import logging

import pytest

from spa_dat.transports import DeliveryState
from support.mqtt import Recorder, client
from support.scripted import Peer, ScriptedBroker, publish
from support.waiting import eventually


def text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def identified(value: str, time: str | None = None) -> bytes:
    """The properties of a message with an id, and perhaps a time."""
    properties = b"\x26" + text("id") + text(value)
    return properties + (b"" if time is None else b"\x26" + text("time") + text(time))


async def talk(peer: Peer) -> None:
    await peer.ready()
    await peer.wait_closed()


@pytest.mark.parametrize("size", [3, 10_000])
async def test_copies_on_the_same_connection_run_nothing_and_acknowledge_nothing(size: int) -> None:
    """Some brokers send again what is not acknowledged in time, and soon use the id again."""
    acknowledged: list[int] = []
    done = asyncio.Event()
    one, two = b"1" * size, b"2" * size

    async def script(peer: Peer) -> None:
        await peer.ready()
        peer.send(publish(7, one, properties=identified("1")))
        peer.send(publish(7, one, properties=identified("1"), duplicate=True))
        acknowledged.append((await peer.expect("PUBACK")).packet_id)
        # This copy has crossed the acknowledgement.
        peer.send(publish(7, one, properties=identified("1"), duplicate=True))
        peer.send(publish(7, two, properties=identified("2")))
        peer.send(publish(8, b"last"))
        done.set()
        while True:
            acknowledged.append((await peer.expect("PUBACK")).packet_id)

    async with ScriptedBroker(talk, script) as broker, client(broker) as app:
        _, recorder = await app.consume("t", recorder=Recorder(settle=False))
        await recorder.get(1)
        await eventually(lambda: app.stats["messages.recognised"] == 1)
        first = recorder.deliveries[0]
        assert first.start()
        first.settle()
        await asyncio.wait_for(done.wait(), 60)
        _, second, third = await recorder.get(3)
        assert recorder.payloads == [one, two, b"last"]
        assert app.stats["messages.recognised"] == 2
        assert acknowledged == [7], "the second message has not been handled yet"
        for delivery in (second, third):
            assert delivery.state is DeliveryState.QUEUED
            delivery.start()
            delivery.settle()
        await eventually(lambda: acknowledged == [7, 7, 8])


@pytest.mark.parametrize(
    ("properties", "payload", "handled"),
    [
        (identified("sensor-17"), b"99.9", 2),
        (identified("sensor-17"), b"20.5", 2),
        (identified("sensor-17", "2026-01-01T00:00:00Z"), b"99.9", 2),
        (b"", b"20.5", 2),
        (identified("unique", "2026-01-01T00:00:00Z"), b"20.5", 1),
    ],
)
async def test_equal_ids_after_a_reconnect_are_not_taken_for_what_was_acknowledged(
    properties: bytes, payload: bytes, handled: int
) -> None:
    """The second message got the packet id of the first, was lost in a cut and comes again."""
    acknowledged = 0

    async def first(peer: Peer) -> None:
        nonlocal acknowledged
        await peer.ready()
        peer.send(publish(1, b"20.5", properties=properties))
        await peer.expect("PUBACK")
        acknowledged += 1
        peer.reset()

    async def second(peer: Peer) -> None:
        nonlocal acknowledged
        await peer.ready(session=True)
        peer.send(publish(1, payload, properties=properties, duplicate=True))
        await peer.expect("PUBACK")
        acknowledged += 1
        await peer.wait_closed()

    async with ScriptedBroker(talk, first, second) as broker, client(broker) as app:
        _, recorder = await app.consume("t")
        await eventually(lambda: acknowledged == 2)
        assert recorder.payloads == [b"20.5", payload][:handled]


@pytest.mark.parametrize("durable", [True, False])
async def test_a_start_without_a_session_and_a_session_that_is_lost_are_logged_and_counted(
    durable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "spa_dat")

    async def first(peer: Peer) -> None:
        await peer.ready()
        peer.reset()

    async with ScriptedBroker(talk, first, talk) as broker, client(broker) as app:
        _, recorder = await app.consume("t", durable=durable)
        await eventually(lambda: len(recorder.events) == 2)
        assert app.stats["mqtt.session_new"] == durable
        assert app.stats["mqtt.session_lost"] == durable
        told = [record for record in caplog.records if "session of 'app.0.actor'" in record.message]
        levels = [logging.INFO, logging.WARNING] if durable else []
        assert [record.levelno for record in told] == levels


async def test_a_start_with_its_session_says_nothing_of_it() -> None:
    async def first(peer: Peer) -> None:
        await peer.ready(session=True)
        await peer.wait_closed()

    async with ScriptedBroker(talk, first) as broker, client(broker) as app:
        await app.consume("t")
        assert app.stats["mqtt.session_new"] == app.stats["mqtt.session_lost"] == 0
