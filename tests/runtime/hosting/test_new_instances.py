"""What goes with an instance that is replaced: its thread, its timers, its context."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from typing import Any, ClassVar

import pytest

from spa_dat import Actor, Context, RetryPolicy, Socket, on
from spa_dat.errors import ActorStopped
from spa_dat.runtime.application._application import runs_of
from support.memory import Site
from support.waiting import eventually

ONCE = RetryPolicy(attempts=1)


class Meter(Actor):
    """Notes what its instances do."""

    retry = RetryPolicy(attempts=2, first=0, hold=60)
    deadline = 0.5
    log: ClassVar[list[tuple[str, int]]]
    made: ClassVar[list[Meter]]
    release: ClassVar[threading.Event]

    def __init__(self) -> None:
        self.made.append(self)
        self.number = len(self.made)
        self.total = 0

    def on_start(self) -> None:
        self.log.append(("start", self.number))

    def on_stop(self) -> None:
        self.log.append(("stop", self.number))

    @on("hang")
    def hang(self, number: int) -> None:
        self.log.append(("hang", self.number))
        self.release.wait(30)
        self.total = 99

    @on("look")
    def look(self, number: int) -> int:
        self.log.append(("look", self.number))
        return self.total

    def on_receive(self, message: Any) -> int:
        return self.number


def fresh() -> type[Meter]:
    class Fresh(Meter):
        release = threading.Event()

    Fresh.log = []
    Fresh.made = []
    return Fresh


async def test_a_class_gets_a_new_instance_when_its_thread_was_given_up() -> None:
    site = Site()
    app = site.app()
    kind = fresh()
    spec = app.add(kind)
    async with app:
        site.publish("hang", "1")
        await site.parked()
        await eventually(lambda: len(kind.log) == 5)
        assert kind.log == [("start", 1), ("hang", 1), ("start", 2), ("hang", 2), ("start", 3)]
        kind.release.set()
        assert await app.socket().request("look", 1, reply=int) == 0
        assert kind.made[-1].number == 3
        assert await spec.ref.ask("who") == 3
        await eventually(lambda: kind.made[0].total == kind.made[1].total == 99)
        assert kind.made[-1].total == 0
        assert app.healthy
    assert [entry for entry in kind.log if entry[0] == "stop"] == [("stop", 3)]


async def test_a_local_message_after_a_lost_thread_is_the_new_instances() -> None:
    site = Site()
    app = site.app()
    kind = fresh()
    kind.retry = ONCE
    spec = app.add(kind)
    async with app:
        site.publish("hang", "1")
        await eventually(lambda: ("hang", 1) in kind.log)
        assert await spec.ref.ask("who") == 2
        kind.release.set()


async def test_the_messages_of_a_batch_are_tried_alone_by_new_instances() -> None:
    site = Site()
    app = site.app()
    seen: list[tuple[int, list[int]]] = []
    made: list[int] = []
    release = threading.Event()

    class Batched(Actor):
        retry = ONCE
        deadline = 0.5
        batch = (2, 0.05)

        def __init__(self) -> None:
            made.append(len(made) + 1)
            self.number = made[-1]

        @on("n")
        def handle(self, numbers: list[int]) -> None:
            seen.append((self.number, numbers))
            if 1 in numbers:
                release.wait(30)

    app.add(Batched)
    async with app:
        site.number("n", 1, 2)
        await site.parked()
        await site.settled("app.0.Batched")
        release.set()
    assert seen == [(1, [1, 2]), (2, [1]), (3, [2])]


async def test_an_abandoned_thread_can_not_use_its_context_any_more() -> None:
    site = Site()
    app = site.app()
    release = threading.Event()
    raised: list[str] = []
    states: list[Counter[str]] = []

    @app.application("n", name="actor", state=Counter, deadline=0.5, retry=ONCE)
    def handle(number: int, context: Context) -> None:
        states.append(context.state)
        if number != 1:
            return
        release.wait(30)
        uses = (
            lambda: context.state,
            lambda: setattr(context, "state", Counter(zombie=1)),
            lambda: context.later(0, raised.append, "put off"),
            context.stop,
        )
        for use in uses:
            try:
                use()
            except ActorStopped as error:
                raised.append(str(error))

    async with app:
        site.number("n", 1, 2)
        await site.settled()
        release.set()
        await eventually(lambda: len(raised) == 4)
        site.number("n", 3)
        await site.settled()
    assert all("has restarted" in text for text in raised)
    assert len(states) == 3
    assert states[0] is not states[1]
    assert states[1] is states[2]
    assert not states[2]


@pytest.mark.virtual
async def test_an_abandoned_coroutine_can_not_use_its_socket_any_more() -> None:
    site = Site()
    app = site.app()
    release = asyncio.Event()
    refused: list[str] = []

    @app.application("hang", deadline=0.1, retry=ONCE)
    async def hang(number: int, socket: Socket) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        for use in (socket.publish("out", 1), socket.request("out", 1), socket.drain()):
            with pytest.raises(ActorStopped, match="was given up"):
                await use
        with pytest.raises(ActorStopped, match="was given up"):
            socket.post("out", 1)
        refused.append("all")

    @app.application("look", name="look")
    async def look(number: int, socket: Socket) -> None:
        await socket.publish("out", number)

    async with app:
        watcher = site.watch("out")
        site.publish("hang", "1")
        await site.parked()
        release.set()
        await eventually(lambda: refused == ["all"])
        site.publish("look", "2")
        await watcher.get()
    assert watcher.payloads == ["2"]


async def test_what_an_instance_has_put_off_ends_with_it() -> None:
    site = Site()
    app = site.app()
    ticks: list[int] = []
    made: list[Actor] = []

    class Ticking(Actor):
        def __init__(self) -> None:
            made.append(self)
            self.number = len(made)

        async def on_start(self, context: Context) -> None:
            context.later(3, self.tick)

        @on("begin")
        async def begin(self, number: int, context: Context) -> None:
            context.later(1, self.tick)

        async def tick(self) -> None:
            ticks.append(self.number)

    app.add(Ticking)
    async with app:
        site.publish("begin", "1")
        await site.settled("app.0.Ticking")
        run = runs_of(app).current
        assert run is not None
        for actor in run.actors:
            for lane in actor.lanes:
                assert lane.crash(())
        await eventually(lambda: bool(ticks))
    assert ticks == [2]
