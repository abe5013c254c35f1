"""Message expiry on MQTT: in the mailbox on a real Mosquitto, and what the broker puts off."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from spa_dat import DistributedApplication
from spa_dat.testing import Mosquitto
from spa_dat.transports import Envelope
from support.mqtt import client
from support.scripted import Packet, Peer, ScriptedBroker
from support.waiting import eventually

NUMBERS = itertools.count()
_QUOTA_EXCEEDED = 0x97


@pytest.mark.mosquitto
async def test_what_expires_in_the_mailbox_is_not_handled(mosquitto: Mosquitto) -> None:
    topic = f"expiry/{next(NUMBERS)}"
    app = DistributedApplication(mosquitto.url, name=f"expiry-{next(NUMBERS)}")
    seen: list[int] = []
    over = asyncio.Event()

    @app.application(topic)
    async def slow(number: int) -> None:
        seen.append(number)
        if number == 0:
            await over.wait()

    async with app:
        loop = asyncio.get_running_loop()
        for number, expiry in enumerate([None, 1.0, 1000.0, None]):
            await app.socket().publish(topic, number, expiry=expiry)
        expired = loop.time() + 2.5
        await eventually(lambda: loop.time() >= expired)
        over.set()
        await eventually(lambda: len(seen) == 3)
        assert seen == [0, 2, 3]
        assert app.stats["messages.expired"] == 1


async def test_what_the_broker_puts_off_until_it_expires_is_not_sent_again() -> None:
    written: list[Packet] = []

    async def script(peer: Peer) -> None:
        await peer.ready()
        while True:
            packet = await peer.expect("PUBLISH")
            written.append(packet)
            peer.puback(packet, _QUOTA_EXCEEDED if packet.body.endswith(b"short") else 0)

    async with ScriptedBroker(script) as broker, client(broker) as app:
        short = app.bus.post(Envelope(topic="t", payload=b"short", expiry=0.2))
        await eventually(lambda: written)
        later = app.bus.post(Envelope(topic="t", payload=b"later"))
        await asyncio.wait_for(asyncio.gather(short, later), 30)
        assert written[-1].body.endswith(b"later")
        assert app.stats["publishes.expired"] == 1
