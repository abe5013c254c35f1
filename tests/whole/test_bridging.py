"""Consuming on one bus and publishing on another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from spa_dat import DistributedApplication, Message, Socket
from spa_dat.errors import ConfigurationError
from spa_dat.harness import VirtualEnvironment
from spa_dat.testing import Harness
from support.memory import Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual

Forward = Callable[[Socket, Message[bytes]], Awaitable[None]]


async def posted(socket: Socket, message: Message[bytes]) -> None:
    socket.post(message.topic, message.payload)


async def published(socket: Socket, message: Message[bytes]) -> None:
    await socket.publish(message.topic, message.payload, timeout=600)


both_ways = pytest.mark.parametrize("forward", [posted, published])


class Bridge:
    """Two buses, and an application that carries ``in/#`` from the one to the other."""

    def __init__(self, forward: Forward) -> None:
        self.near, self.far = Site(), Site()
        self.app = DistributedApplication(name="app", environment=VirtualEnvironment(7))
        self.arrivals = self.far.watch("in/#")

        @self.app.application("in/#", name="actor", socket_provider=self.near.provider)
        async def carry(message: Message[bytes]) -> None:
            await forward(self.app.socket(socket_provider=self.far.provider), message)

        @self.app.application("far", socket_provider=self.far.provider)
        async def uses_the_other_bus() -> None: ...


@both_ways
async def test_the_input_is_acknowledged_when_the_output_is_confirmed(forward: Forward) -> None:
    bridge = Bridge(forward)
    async with bridge.app:
        bridge.far.faults.drop_confirmations(1)
        bridge.near.number("in/a", 1)
        await bridge.arrivals.get(1)
        # It is there; nobody has said so.
        await asyncio.sleep(60)
        assert bridge.near.unsettled() == 1
        bridge.far.cut("app.0")
        await bridge.near.settled()
    first, *repeated = bridge.arrivals.envelopes
    assert {envelope.id for envelope in repeated} <= {first.id}


@both_ways
async def test_what_is_not_confirmed_comes_again_with_the_same_id(forward: Forward) -> None:
    bridge = Bridge(forward)
    async with bridge.app:
        bridge.far.faults.drop_confirmations(1)
        bridge.near.number("in/a", 1)
        await bridge.arrivals.get(1)
    assert bridge.near.unsettled() == 1
    async with bridge.app:
        await bridge.near.settled()
    assert bridge.arrivals.payloads == ["1", "1"]
    one, two = bridge.arrivals.envelopes
    assert one.id == two.id


@both_ways
async def test_what_the_other_bus_refuses_is_a_dead_letter_where_it_came_from(
    forward: Forward,
) -> None:
    bridge = Bridge(forward)
    bridge.far.faults.refuse_publish("in/bad")
    async with bridge.app:
        bridge.near.number("in/bad", 1)
        bridge.near.number("in/good", 2)
        await bridge.near.settled()
        (letter,) = await bridge.near.parked()
    assert (letter.headers["spa_dead_topic"], letter.payload) == ("in/bad", b"1")
    assert bridge.far.letters() == []
    assert bridge.arrivals.payloads == ["2"]


async def test_messages_wait_where_they_came_from_while_the_other_bus_is_away() -> None:
    bridge = Bridge(posted)
    async with bridge.app:
        bridge.far.faults.refuse_connections()
        bridge.far.cut("app.0")
        bridge.near.number("in/a", *range(500))
        await asyncio.sleep(60)
        assert bridge.near.unsettled() == 500
        bridge.far.faults.allow()
        await bridge.near.settled()
    assert bridge.arrivals.payloads == [str(number) for number in range(500)]


def test_requests_pass_a_bridge_in_one_piece() -> None:
    app = DistributedApplication(name="app")

    @app.application("double", socket_provider="memory://far")
    async def double(number: int) -> int:
        return 2 * number

    @app.application("double", name="actor", socket_provider="memory://near")
    async def carry(number: int) -> int:
        return await app.socket(socket_provider="memory://far").request("double", number, reply=int)

    with Harness(app) as harness:
        assert harness.request("double", 21, reply=int, bus="memory://near") == 42


def test_a_handler_that_runs_while_the_application_stops_still_has_its_socket() -> None:
    app = DistributedApplication(name="app")
    begun: list[str] = []

    @app.application("in/#", socket_provider="memory://near")
    async def carry(message: Message[bytes]) -> None:
        begun.append(message.topic)
        await asyncio.sleep(1.0)
        assert not app.healthy
        await app.socket(socket_provider="memory://far").publish(message.topic, b"late")

    @app.application("far", socket_provider="memory://far")
    async def uses_the_other_bus() -> None: ...

    with Harness(app) as harness:
        harness.publish("in/a", 1, bus="memory://near")
        harness.advance(0.5)
        assert begun == ["in/a"]
        harness.stop()
        assert harness.published() == [b"late"]
        assert harness.trace.count(" acknowledge ") == 1
        with pytest.raises(ConfigurationError, match="is not running"):
            app.socket()


async def test_a_bus_that_nobody_uses_is_named() -> None:
    app = DistributedApplication("memory://used", name="app")
    async with app:
        with pytest.raises(
            ConfigurationError, match=r"no actor uses memory://unused.*memory://use"
        ):
            app.socket(socket_provider="memory://unused")
        await eventually(lambda: app.healthy)
        await app.socket(socket_provider="memory://used").publish("a", b"")
