"""Subscribing while an actor runs, on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spa_dat import Actor, DistributedApplication, Message, Socket, SyncSocket, on
from spa_dat.errors import ConfigurationError, ConnectFailed
from spa_dat.harness._eventually import Gate
from support.memory import Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual


class Scene:
    """An actor that does what messages on ``do`` tell it, and keeps the others."""

    def __init__(self, app: DistributedApplication, **options: Any) -> None:
        self.seen: list[str] = []
        self.errors: list[Exception] = []
        scene = self

        @app.application(["do", "own/#"], name="actor", **options)
        async def handle(message: Message[str], socket: Socket) -> None:
            if message.topic != "do":
                scene.seen.append(f"{message.topic}={message.payload}")
                return
            what, _, pattern = message.payload.partition(" ")
            try:
                await getattr(socket, what)(pattern)
            except Exception as error:
                scene.errors.append(error)


async def test_a_runtime_subscription_is_in_force_when_subscribe_returns() -> None:
    site = Site()
    app = site.app()
    scene = Scene(app)
    async with app:
        site.publish("more/1", "early")
        site.publish("do", "subscribe more/+")
        await site.settled()
        site.publish("more/2", "late")
        await eventually(lambda: scene.seen)
        site.publish("do", "unsubscribe more/+")
        await site.settled()
        site.publish("more/3", "too late")
        await asyncio.sleep(1)
    assert scene.seen == ["more/2=late"]
    assert scene.errors == []


async def test_a_runtime_subscription_touches_no_durable_session_and_ends_with_the_actor() -> None:
    site = Site()
    app = site.app()
    scene = Scene(app)
    async with app:
        before = dict(site.broker.queues["app.0.actor"].filters)
        site.publish("do", "subscribe more/#")
        await site.settled()
        assert dict(site.broker.queues["app.0.actor"].filters) == before
        assert not site.broker.queues["app.0.actor.now"].durable
    assert "app.0.actor.now" not in site.broker.queues
    assert "app.0.actor" in site.broker.queues
    site.publish("more/1", "while away")
    async with app:
        await asyncio.sleep(1)
    assert scene.seen == []


async def test_a_runtime_subscription_survives_a_lost_connection() -> None:
    site = Site()
    app = site.app()
    scene = Scene(app)
    async with app:
        site.publish("do", "subscribe more/#")
        await site.settled()
        site.cut("app.0.actor.now")
        await site.reconnected("app.0.actor.now")
        site.publish("more/1", "x")
        await eventually(lambda: scene.seen == ["more/1=x"])


async def test_subscribing_while_the_connection_is_gone_waits_for_it() -> None:
    site = Site()
    app = site.app()
    scene = Scene(app)
    async with app:
        site.publish("do", "subscribe a")
        await site.settled()
        site.faults.refuse_connections()
        site.cut("app.0.actor.now")
        site.publish("do", "subscribe b")
        site.publish("do", "unsubscribe a")
        await asyncio.sleep(5)
        assert site.unsettled() == 2
        site.faults.allow()
        await site.settled()
        site.publish("a", "x")
        site.publish("b", "x")
        await eventually(lambda: scene.seen == ["b=x"])
        assert list(site.broker.queues["app.0.actor.now"].filters) == ["b"]


async def test_a_filter_that_a_declared_one_covers_gives_no_second_copy() -> None:
    site = Site()
    app = site.app()
    scene = Scene(app)
    async with app:
        site.publish("do", "subscribe own/+")
        site.publish("do", "subscribe #")
        await site.settled()
        site.publish("own/1", "x")
        site.publish("other", "x")
        await eventually(lambda: len(scene.seen) == 2)
        await asyncio.sleep(1)
    assert sorted(scene.seen) == ["other=x", "own/1=x"]


async def test_where_instances_share_a_runtime_subscription_is_each_instances_own() -> None:
    site = Site()
    apps = [site.app(instance=str(number)) for number in range(2)]
    scenes = [Scene(app, deliver="share") for app in apps]
    async with apps[0], apps[1]:
        for _ in range(2):
            site.publish("do", "subscribe own/#")
        await site.settled("$share/app.actor")
        site.publish("own/1", "x")
        await eventually(lambda: sum(len(scene.seen) for scene in scenes) == 3)
    assert all("own/1=x" in scene.seen for scene in scenes)


async def test_overlapping_runtime_filters_give_one_copy() -> None:
    site = Site()
    app = site.app()
    scene = Scene(app)
    async with app:
        for pattern in ("more/#", "more/+", "more/1", "more/1"):
            site.publish("do", f"subscribe {pattern}")
        await site.settled()
        site.publish("more/1", "x")
        await eventually(lambda: scene.seen)
        site.publish("do", "unsubscribe more/#")
        await site.settled()
        site.publish("more/1", "y")
        await eventually(lambda: len(scene.seen) == 2)
        await asyncio.sleep(1)
    assert scene.seen == ["more/1=x", "more/1=y"]
    assert scene.errors == []


async def test_retained_messages_come_with_a_runtime_subscription() -> None:
    site = Site()
    app = site.app()
    scene = Scene(app)
    site.publish("more/1", "kept", retain=True)
    async with app:
        site.publish("do", "subscribe more/+")
        await eventually(lambda: scene.seen == ["more/1=kept"])


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("subscribe a/#/b", "'#'"),
        ("subscribe ", "empty"),
        ("subscribe _spa/#", "_spa"),
        ("subscribe _spa/reply/+/+/+", "_spa"),
        ("subscribe $share/g/a", "\\$share"),
        ("unsubscribe never/made", "never/made"),
        ("unsubscribe own/#", "own/#"),
    ],
)
async def test_what_can_not_be_subscribed_is_refused(what: str, named: str) -> None:
    site = Site()
    app = site.app()
    scene = Scene(app)
    async with app:
        site.publish("do", what)
        await site.settled()
    (error,) = scene.errors
    assert isinstance(error, ConfigurationError)
    assert named.replace("\\", "") in str(error)


async def test_a_runtime_subscription_that_could_not_be_made_can_be_tried_again() -> None:
    site = Site(start_timeout=1.0)
    app = site.app()
    scene = Scene(app)
    async with app:
        site.faults.refuse_connections()
        site.publish("do", "subscribe more/+")
        await site.settled()
        site.faults.allow()
        site.publish("do", "subscribe more/+")
        await site.settled()
        site.publish("more/1", "x")
        await eventually(lambda: scene.seen == ["more/1=x"])
    (error,) = scene.errors
    assert isinstance(error, ConnectFailed)


async def test_concurrent_subscriptions_of_one_actor_are_all_in_force() -> None:
    site = Site()
    app = site.app()
    seen: list[str] = []

    @app.application("do", name="actor")
    async def handle(message: Message[bytes], socket: Socket) -> None:
        if message.topic == "do":
            await asyncio.gather(*(socket.subscribe(f"more/{number}") for number in range(10)))
            await asyncio.gather(*(socket.unsubscribe(f"more/{number}") for number in range(5)))
        else:
            seen.append(message.topic)

    async with app:
        site.publish("do")
        await site.settled()
        for number in range(10):
            site.publish(f"more/{number}")
        await eventually(lambda: len(seen) >= 5)
        await asyncio.sleep(1)
    assert seen == [f"more/{number}" for number in range(5, 10)]


async def test_the_first_handler_that_can_take_it_gets_a_runtime_subscriptions_messages() -> None:
    site = Site()
    app = site.app()
    seen: list[tuple[str, ...]] = []

    class Boiler(Actor):
        @on("{machine}/temperature")
        async def measured(self, machine: str, payload: bytes) -> None:
            seen.append(("measured", machine))

        @on("do")
        async def do(self, message: Message[str], socket: Socket) -> None:
            if message.topic == "do":
                await socket.subscribe(message.payload)
            else:
                seen.append(("do", message.topic))

    app.add(Boiler)
    async with app:
        for pattern in ("old/{machine}", "new/+"):
            site.publish("do", pattern)
        await site.settled("app.0.Boiler")
        site.publish("old/a")
        site.publish("new/b")
        await eventually(lambda: len(seen) == 2)
    assert sorted(seen) == [("do", "new/b"), ("measured", "a")]


async def test_a_producer_can_not_subscribe() -> None:
    app = Site().app()
    errors: list[Exception] = []

    @app.producer()
    async def produce(socket: Socket) -> None:
        try:
            await socket.subscribe("a")
        except ConfigurationError as error:
            errors.append(error)

    async with app:
        await app.wait()
    assert "produce" in str(errors[0])


async def test_threads_subscribe_too() -> None:
    site = Site()
    app = site.app()
    seen: list[str] = []

    @app.application("do", name="actor")
    def handle(message: Message[bytes], socket: SyncSocket) -> None:
        if message.topic == "do":
            socket.subscribe("more")
        else:
            seen.append(message.topic)
            socket.unsubscribe("more")

    async with app:
        site.publish("do")
        await site.settled()
        site.publish("more")
        await eventually(lambda: seen == ["more"])


async def test_what_comes_with_a_runtime_subscription_waits_its_turn() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[str] = []

    @app.application("do", name="actor")
    async def handle(message: Message[str], socket: Socket) -> None:
        if message.payload == "subscribe":
            await socket.subscribe("more")
        elif message.payload == "wait":
            await gate.pass_()
        seen.append(message.payload)

    async with app:
        site.publish("do", "subscribe")
        await site.settled()
        site.publish("do", "wait")
        await gate.reached()
        site.publish("more", "after")
        await asyncio.sleep(1)
        assert seen == ["subscribe"]
        gate.open()
        await eventually(lambda: seen == ["subscribe", "wait", "after"])


async def test_stopping_gives_a_runtime_subscription_up_cleanly() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    seen: list[str] = []

    @app.application("do", name="actor")
    async def handle(message: Message[str], socket: Socket) -> None:
        if message.payload == "subscribe":
            await socket.subscribe("more")
        else:
            await gate.pass_()
            seen.append(message.payload)

    async with app:
        site.publish("do", "subscribe")
        await site.settled()
        for number in range(5):
            site.publish("more", str(number))
        await gate.reached()
        asyncio.get_running_loop().call_later(1, gate.open)
    assert seen == ["0"]
    assert app.stats["actors.cut_off"] == 0


async def test_the_applications_own_socket_publishes_and_requests() -> None:
    app = DistributedApplication("memory://", name="embedded")

    @app.application("double")
    async def double(number: int) -> int:
        return 2 * number

    with pytest.raises(ConfigurationError, match="is not running"):
        app.socket()
    async with app:
        assert await app.socket().request("double", 21, reply=int) == 42
        assert await app.socket().request_many("double", 21, count=1) == [b"42"]
        with pytest.raises(ConfigurationError, match="belongs to no actor"):
            await app.socket().subscribe("a")
        with pytest.raises(ConfigurationError, match="belongs to no actor"):
            await app.socket().unsubscribe("a")


async def test_an_application_without_actors_has_a_socket_too() -> None:
    app = DistributedApplication("memory://")
    async with app:
        await app.socket().publish("a", b"")


async def test_without_a_default_bus_there_is_no_socket() -> None:
    async with DistributedApplication() as app:
        with pytest.raises(ConfigurationError, match="no default socket provider"):
            app.socket()
