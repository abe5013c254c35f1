"""Actors with a state for each key on real brokers."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import defaultdict
from collections.abc import Callable

import pytest

from spa_dat import Actor, DistributedApplication, KafkaConfig, KafkaTopic, RetryPolicy, on
from spa_dat.testing import Kafka, Mosquitto, Proxy
from spa_dat.transports import SocketProvider, as_provider
from support.kafka_bus import create, new_prefix
from support.waiting import eventually

KEYS, EACH = 30, 20


class Fleet(Actor):
    """Notes what each truck has sent; every tenth message fails at first."""

    per = "truck"
    retry = RetryPolicy(attempts=20, first=0.01, factor=1)
    seen: dict[str, list[int]]
    dice: random.Random

    def __init__(self, seen: dict[str, list[int]], dice: random.Random) -> None:
        self.own: list[int] = []
        self.seen = seen
        self.dice = dice

    @on("fleet/{truck}/position")
    async def position(self, number: int, truck: str) -> None:
        await asyncio.sleep(self.dice.choice((0.0, 0.0, 0.002)))
        if self.dice.random() < 0.1:
            raise ValueError("not yet")
        self.own.append(number)
        self.seen[truck].append(number)


async def send(provider: SocketProvider, numbers: range) -> None:
    sender = DistributedApplication(provider)
    async with sender:
        socket = sender.socket()
        for number in numbers:
            for truck in range(KEYS):
                socket.post(f"fleet/{truck}/position", number)
            await socket.drain()


async def check(provider: SocketProvider, name: str, cut: Callable[[], None] | None = None) -> None:
    seen: dict[str, list[int]] = defaultdict(list)
    dice = random.Random(3)

    def application() -> DistributedApplication:
        app = DistributedApplication(provider, name=name, stop_timeout=20)
        app.add(Fleet, seen, dice)
        return app

    def total() -> int:
        return sum(len(set(numbers)) for numbers in seen.values())

    async with application():
        await send(provider, range(EACH))
        await eventually(lambda: total() > KEYS * EACH / 4, 60.0)
        if cut is not None:
            cut()
        await eventually(lambda: total() > KEYS * EACH / 2, 60.0)
    async with application() as app:
        await eventually(lambda: total() == KEYS * EACH, 60.0)
        assert app.stats["dead_letters.stored"] == 0
    assert len(seen) == KEYS
    for numbers in seen.values():
        assert list(dict.fromkeys(numbers)) == list(range(EACH))


@pytest.mark.mosquitto
async def test_each_key_has_its_order_on_mosquitto_through_a_cut_and_a_restart(
    mosquitto: Mosquitto,
) -> None:
    async with Proxy(mosquitto.host, mosquitto.port) as proxy:
        provider = as_provider(f"mqtt://{proxy.host}:{proxy.port}?backoff_min=0.05")
        await check(provider, f"keyed-{uuid.uuid4().hex[:8]}", proxy.cut)


@pytest.mark.kafka
async def test_each_key_has_its_order_on_kafka_through_a_restart(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}fleet", 3)
    config = KafkaConfig(
        kafka.server,
        prefix=prefix,
        topics={"fleet/{truck}/position": KafkaTopic("fleet", key="truck")},
    )
    await check(as_provider(config), "keyed")
