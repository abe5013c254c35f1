"""Actors with a state for each key: order, places, states that go, control."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import sys
import threading
import tracemalloc
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Overflow,
    Reject,
    RetryPolicy,
    Socket,
    SyncSocket,
    on,
)
from spa_dat.actors import BURST
from spa_dat.errors import ActorStopped, ConfigurationError, DecodeError, RemoteError
from spa_dat.harness._eventually import Gate
from spa_dat.runtime.hosting import _keyed_host
from spa_dat.runtime.hosting._keyed_host import HostState
from spa_dat.runtime.hosting._keyed_mailbox import KeyCell, KeyedMailbox
from spa_dat.runtime.routing._routed_deliveries import Route
from spa_dat.testing import Faults, Harness
from spa_dat.transports import Delivery, Envelope, TopicFilter
from support.memory import Site
from support.waiting import eventually, threads_have_left

pytestmark = pytest.mark.virtual

ONCE = RetryPolicy(attempts=2, first=10, factor=1, jitter=0)


class _OwnError(BaseException):
    pass


@dataclass
class Truck:
    seen: list[int] = field(default_factory=list)


def application(**options: Any) -> DistributedApplication:
    return DistributedApplication("memory://", name="app", **options)


# Order, and states.


def test_each_key_has_a_state_of_its_own_and_its_messages_in_order() -> None:
    app = application()
    at_work: list[str] = []

    @app.application("fleet/{truck}/position", per="truck", state=Truck)
    async def position(number: int, truck: str, state: Truck, context: Context) -> None:
        assert truck not in at_work
        at_work.append(truck)
        await asyncio.sleep(10)
        at_work.remove(truck)
        state.seen.append(number)
        assert context.state is state

    with Harness(app) as harness:
        for number in range(3):
            for truck in "abcd":
                harness.publish(f"fleet/{truck}/position", number)
        harness.advance(5)
        assert sorted(at_work) == list("abcd")
        harness.settle()
        assert harness.time == 30.0
        assert harness.keys("position") == list("abcd")
        for truck in "abcd":
            assert harness.state("position", key=truck).seen == [0, 1, 2]


def test_def_handlers_of_keys_have_several_threads_and_each_key_its_order() -> None:
    app = application()
    threads: set[int] = set()

    @app.application("fleet/{truck}/position", per="truck", state=Truck)
    def position(number: int, truck: str, state: Truck, socket: SyncSocket) -> None:
        threads.add(threading.get_ident())
        state.seen.append(number)
        socket.publish(f"seen/{truck}", number)

    with Harness(app) as harness:
        for number in range(5):
            for truck in "ab":
                harness.publish(f"fleet/{truck}/position", number)
        harness.settle()
        assert harness.state("position", key="a").seen == [0, 1, 2, 3, 4]
        assert harness.published("seen/b", type=int) == [0, 1, 2, 3, 4]
    assert len(threads) == 2


def test_each_key_has_an_instance_of_a_class_and_all_handlers_share_its_queue() -> None:
    app = application()

    class Fleet(Actor):
        per = "truck"
        state = Truck

        def __init__(self, limit: int) -> None:
            self.limit = limit

        @on("fleet/{truck}/position")
        async def position(self, number: int, truck: str, state: Truck) -> None:
            assert id(state) == id(self.state)
            await asyncio.sleep(10 if number == 0 else 0)
            state.seen.append(number)

        @on("fleet/{truck}/count")
        async def count(self, payload: bytes) -> int:
            return min(self.limit, len(self.state.seen))

    app.add(Fleet, 2)
    with Harness(app) as harness:
        harness.publish("fleet/a/position", 0)
        harness.publish("fleet/b/position", 1)
        assert harness.request("fleet/b/count", reply=int) == 1
        assert harness.time < 10
        assert harness.request("fleet/a/count", reply=int) == 1
        assert harness.time >= 10
        assert harness.state("Fleet", key="a").seen == [0]


def test_all_lanes_together_give_the_event_loop_a_turn_as_often_as_one_actor() -> None:
    app = application()
    turns, handled = [0], list[int]()

    def turn() -> None:
        turns[0] += 1
        if len(handled) < 1_000:
            asyncio.get_running_loop().call_soon(turn)

    @app.application("work/{key}", per="key", state=Truck)
    async def work(number: int, state: Truck) -> None:
        if not handled:
            turn()
        handled.append(turns[0])

    with Harness(app) as harness:
        for number in range(1_000):
            harness.publish(f"work/{number % 100}", number)
        harness.settle()
    assert len(handled) == 1_000
    assert max(handled.count(number) for number in set(handled)) <= BURST + 16


@pytest.mark.parametrize(("concurrency", "most"), [(None, 16), (1, 1), (3, 3)])
def test_only_so_many_keys_are_at_work_at_once(concurrency: int | None, most: int) -> None:
    app = application()
    at_work = 0
    highest = 0

    @app.application("work/{key}", per="key", concurrency=concurrency)
    async def work(key: str) -> None:
        nonlocal at_work, highest
        at_work += 1
        highest = max(highest, at_work)
        await asyncio.sleep(1)
        at_work -= 1

    with Harness(app) as harness:
        for key in range(48):
            harness.publish(f"work/{key}")
        harness.settle()
        assert harness.time == 48 / most
    assert highest == most


# Failures.


def test_a_key_that_waits_for_its_retry_holds_up_only_itself() -> None:
    app = application()
    done: list[tuple[str, int]] = []

    @app.application("work/{key}", per="key", concurrency=1, retry=ONCE)
    async def work(number: int, key: str, context: Context) -> None:
        if key == "bad" and number == 0 and context.attempt == 1:
            raise ValueError("not yet")
        done.append((key, number))

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        for number in range(2):
            harness.publish("work/bad", number)
            harness.publish("work/good", number)
        harness.advance(9)
        assert done == [("good", 0), ("good", 1)]
        harness.settle()
        assert done[2:] == [("bad", 0), ("bad", 1)]


def test_what_cannot_be_handled_becomes_a_dead_letter_of_its_key_only() -> None:
    app = application()

    @app.application("work/{key}", per="key", state=Truck)
    async def work(number: int, state: Truck) -> None:
        if number == 1:
            raise Reject("odd")
        state.seen.append(number)

    with Harness(app, allow_failures=DecodeError) as harness:
        for number in range(3):
            harness.publish("work/a", number)
        harness.publish("work/b", "no number")
        harness.settle()
        assert harness.state("work", key="a").seen == [0, 2]
        assert [letter.topic for letter in harness.dead_letters()] == ["work/b", "work/a"]


def test_a_state_that_cannot_be_made_fails_the_message_and_is_tried_again() -> None:
    app = application()
    made: list[int] = []

    def make() -> Truck:
        made.append(1)
        if len(made) == 1:
            raise OSError("not there")
        return Truck()

    @app.application("work/{key}", per="key", state=make, retry=ONCE)
    async def work(number: int, state: Truck) -> None:
        state.seen.append(number)

    with Harness(app) as harness:
        harness.expect_failure(ConfigurationError)
        harness.publish("work/a", 1)
        harness.settle()
        assert harness.state("work", key="a").seen == [1]
        assert harness.time == 10
    assert len(made) == 2


# Requests.


def test_a_request_to_ones_own_key_is_a_deadlock_and_to_another_key_works() -> None:
    app = application()

    @app.application("node/{key}", per="key", concurrency=1)
    async def node(payload: str, socket: Socket) -> str:
        if not payload:
            return "end"
        first, *rest = payload.split(",")
        return await socket.request(f"node/{first}", ",".join(rest), reply=str)

    with Harness(app) as harness:
        assert harness.request("node/7", "8", reply=str) == "end"
        for path in ("7", "8,7", "8,9,7"):
            with pytest.raises(RemoteError, match="app/0/node/7") as raised:
                harness.request("node/7", path, reply=str)
            assert raised.value.code == "deadlock"
        long = "k" * 1_000
        assert harness.request(f"node/{long}", f"{long}x", reply=str) == "end"
        with pytest.raises(RemoteError) as raised:
            harness.request(f"node/{long}", long, reply=str)
        assert raised.value.code == "deadlock"
        assert len(raised.value.text) < 1_000
        assert harness.time < 1
        harness.expect_failure(RemoteError)


def test_handlers_that_wait_for_other_keys_do_not_take_all_places() -> None:
    app = application()
    served: list[str] = []

    @app.application("ask/{key}", per="key", name="keys", concurrency=2)
    async def ask(key: str, payload: bytes, socket: Socket) -> str:
        if key.startswith("b"):
            served.append(key)
            return key
        return await socket.request(f"ask/b{key}", reply=str)

    with Harness(app) as harness:
        for number in range(20):
            harness.publish(f"ask/{number}")
        harness.settle()
        assert len(served) == 20
        assert harness.time < 1


def test_def_handlers_that_wait_for_other_keys_do_not_take_all_places() -> None:
    app = application()

    @app.application("ask/{key}", per="key", name="keys", concurrency=2)
    def ask(key: str, payload: bytes, socket: SyncSocket) -> str:
        if key.startswith("b"):
            return key
        return socket.request(f"ask/b{key}", reply=str)

    with Harness(app) as harness:
        for number in range(4):
            harness.publish(f"ask/{number}")
        harness.settle()
        assert harness.request("ask/5", reply=str) == "b5"
        assert harness.time < 1


@pytest.mark.parametrize("beside", ["later", "on_passivate"])
def test_what_is_done_beside_messages_has_no_place_while_it_waits_for_a_reply(beside: str) -> None:
    app = application()
    replies: list[str] = []

    async def ask(socket: Socket, key: str) -> None:
        replies.append(await socket.request(f"keys/b{key}", reply=str, timeout=5))

    class Keys(Actor):
        per = "key"
        concurrency = 2

        async def on_passivate(self, key: str, socket: Socket) -> None:
            if beside == "on_passivate" and not key.startswith("b"):
                await ask(socket, key)

        @on("keys/{key}")
        async def handle(self, key: str, payload: bytes, context: Context, socket: Socket) -> str:
            if beside == "later" and not key.startswith("b"):
                context.later(1, ask, socket, key)
            return key

    app.add(Keys)
    with Harness(app) as harness:
        for number in range(6):
            harness.publish(f"keys/{number}")
        harness.advance(1)
        for number in range(6):
            harness.passivate("Keys", str(number))
        harness.settle()
        assert sorted(replies) == [f"b{number}" for number in range(6)]
        # All places are there again.
        harness.publish("keys/b0")
        harness.publish("keys/b1")
        harness.settle()
        assert harness.time < 2


async def test_keys_that_wait_or_have_waited_keep_no_threads() -> None:
    app = application()
    before = threading.active_count()

    @app.application("work/{key}", per="key", concurrency=2, retry=ONCE)
    def work(payload: bytes, context: Context) -> None:
        if context.attempt == 1:
            raise OSError("not yet")

    def threads() -> int:
        return threading.active_count() - before

    async with app:
        for number in range(50):
            await app.socket().publish(f"work/{number}")
        await eventually(lambda: app.stats["messages.failed"] == 50)
        await threads_have_left(lambda: threads() == 0)
        await eventually(lambda: app.stats["messages.handled"] == 50)
        await threads_have_left(lambda: threads() <= 2)


def test_calls_that_a_thread_handler_schedules_are_made_in_a_thread() -> None:
    app = application()
    calls: list[tuple[str, bool]] = []

    @app.application("work/{key}", per="key", state=Truck)
    def work(number: int, key: str, context: Context) -> None:
        context.later(number, called, key, context)

    def called(key: str, context: Context) -> None:
        context.state.seen.append(1)
        calls.append((key, threading.current_thread() is threading.main_thread()))

    with Harness(app) as harness:
        harness.publish("work/a", 2)
        harness.publish("work/b", 1)
        harness.advance(3)
        assert harness.state("work", key="a").seen == [1]
    assert calls == [("b", False), ("a", False)]


def test_requests_made_side_by_side_leak_no_places() -> None:
    app = application()

    @app.application("answer/{key}", concurrency=50)
    async def answer(payload: bytes) -> bytes:
        await asyncio.sleep(1)
        return payload

    @app.application("refuse/{key}", concurrency=50)
    async def refuse(payload: bytes) -> bytes:
        await asyncio.sleep(2)
        raise Reject("no")

    @app.application("work/{key}", per="key", concurrency=2, retry=RetryPolicy(attempts=1))
    async def work(key: str, payload: bytes, socket: Socket) -> None:
        if key.startswith("busy"):
            await asyncio.sleep(20)
        elif key.startswith("both"):
            # The first is answered and has to wait for a place; the second ends the handler.
            requests = (socket.request(f"{other}/{key}") for other in ("answer", "refuse"))
            await asyncio.gather(*requests)

    with Harness(app) as harness:
        harness.expect_failure(RemoteError)
        harness.expect_failure(Reject)
        for number in range(4):
            harness.publish(f"work/both{number}")
        harness.advance(0.5)
        for number in range(4):
            harness.publish(f"work/busy{number}")
        harness.settle()
        begun = harness.time
        for number in range(2):
            harness.publish(f"work/busy{number}")
        harness.settle()
        assert harness.time == begun + 20
        assert len(harness.dead_letters()) == 4


@pytest.mark.parametrize("error", [_OwnError, GeneratorExit, asyncio.CancelledError])
def test_an_instance_that_cannot_be_made_fails_the_message(error: type[BaseException]) -> None:
    app = application()

    class Fleet(Actor):
        per = "truck"
        retry = RetryPolicy(attempts=1)

        def __init__(self) -> None:
            raise error("not today")

        @on("work/{truck}")
        async def work(self, payload: bytes) -> None: ...

    app.add(Fleet)
    with Harness(app) as harness:
        harness.expect_failure(ConfigurationError)
        harness.publish("work/a")
        harness.settle()
        assert "could not be made" in harness.dead_letters()[0].text


# States that go.


def test_no_more_states_go_than_are_too_many_while_on_passivate_takes_time() -> None:
    app = application()

    class Fleet(Actor):
        per = "truck"
        hot = 3

        async def on_passivate(self) -> None:
            await asyncio.sleep(10)

        @on("work/{truck}")
        async def work(self, payload: bytes) -> None: ...

    app.add(Fleet)
    with Harness(app) as harness:
        for key in "abcd":
            harness.publish(f"work/{key}")
            harness.advance(1)
        for _ in range(3):
            harness.publish("work/d")
            harness.advance(1)
        harness.settle()
        assert harness.keys("Fleet") == ["b", "c", "d"]


def test_on_passivate_of_many_keys_is_called_side_by_side_at_the_end() -> None:
    app = application()
    called: list[str] = []

    class Fleet(Actor):
        per = "truck"
        concurrency = 5

        async def on_passivate(self, truck: str) -> None:
            await asyncio.sleep(1)
            called.append(truck)

        @on("work/{truck}")
        async def work(self, payload: bytes) -> None: ...

    app.add(Fleet)
    with Harness(app) as harness:
        for number in range(20):
            harness.publish(f"work/{number}")
            harness.settle()
    assert len(called) == 20


def test_an_end_that_comes_before_on_passivate_of_all_keys_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = application(stop_timeout=10)

    class Fleet(Actor):
        per = "truck"
        concurrency = 1

        async def on_passivate(self, truck: str) -> None:
            await asyncio.sleep(4)

        @on("work/{truck}")
        async def work(self, payload: bytes) -> None: ...

    app.add(Fleet)
    with Harness(app) as harness:
        for number in range(5):
            harness.publish(f"work/{number}")
        harness.settle()
    assert "on_passivate of actor 'Fleet' was not called for 3 keys, or cut off" in caplog.text


def test_only_so_many_states_are_kept_and_the_oldest_go_first() -> None:
    app = application()

    @app.application("work/{key}", per="key", state=Truck, hot=2)
    async def work(number: int, state: Truck) -> None:
        state.seen.append(number)

    with Harness(app) as harness:
        for number, key in enumerate("abac"):
            harness.publish(f"work/{key}", number)
            harness.settle()
        assert harness.keys("work") == ["a", "c"]
        harness.publish("work/b", 4)
        harness.settle()
        assert harness.state("work", key="b").seen == [4]
        assert harness.stats["keys.forgotten"] == 2


@pytest.mark.parametrize("activates", [False, True])
def test_a_key_that_is_too_long_is_rejected_and_not_kept(activates: bool) -> None:
    app = application()

    class Work(Actor):
        per, state, retry = "key", Truck, RetryPolicy(attempts=3)

        if activates:

            def on_activate(self) -> None:
                pass

        @on("work/{key}")
        async def handle(self, number: int) -> int:
            self.state.seen.append(number)
            return len(self.state.seen)

    app.add(Work)
    longest = "x" * 1_024
    with Harness(app) as harness:
        harness.expect_failure(Reject)
        harness.expect_failure(DecodeError)
        for key in (longest, f"{longest}y"):
            harness.publish(f"work/{key}", 1)
        # Of what cannot be read no attempt is made; the next message must not be taken for it.
        harness.publish(f"work/{longest}y", "no number")
        harness.publish("work/a", 2)
        harness.settle()
        with pytest.raises(RemoteError, match="has 1025 characters, and 1024 are allowed"):
            harness.request(f"work/{longest}y", 1, reply=int)
        assert sorted(letter.error for letter in harness.dead_letters()) == [
            "DecodeError",
            "Reject",
        ]
        assert set(harness.keys("Work")) == {"a", longest}
        assert harness.state("Work", key="a").seen == [2]


def test_a_state_goes_after_it_was_idle() -> None:
    app = application()

    @app.application("work/{key}", per="key", state=Truck, idle=60)
    async def work(number: int, state: Truck) -> None:
        state.seen.append(number)

    with Harness(app) as harness:
        harness.publish("work/a", 1)
        harness.publish("work/b", 1)
        harness.advance(40)
        harness.publish("work/a", 2)
        harness.advance(30)
        assert harness.keys("work") == ["a"]
        harness.advance(60)
        assert harness.keys("work") == []


def test_a_key_stays_in_which_something_waits_runs_or_is_unsettled() -> None:
    app = application()

    @app.application("work/{key}", per="key", state=Truck)
    async def work(number: int, key: str, state: Truck, context: Context) -> None:
        state.seen.append(number)
        if key == "slow":
            await asyncio.sleep(10)
        if key == "timed":
            context.later(10, state.seen.append, -1)

    with Harness(app) as harness:
        for key in ("slow", "timed", "done"):
            harness.publish(f"work/{key}", 1)
        harness.advance(5)
        harness.passivate("work")
        harness.advance(1)
        assert harness.keys("work") == ["slow", "timed"]
        harness.advance(10)
        assert harness.state("work", key="timed").seen == [1, -1]
        harness.passivate("work", "timed")
        harness.settle()
        assert harness.keys("work") == ["slow"]


def test_a_class_is_called_when_states_come_and_go() -> None:
    app = application()
    calls: list[tuple[str, str, int]] = []

    class Fleet(Actor):
        per = "truck"
        state = Truck
        idle = 60

        async def on_activate(self, truck: str, socket: Socket) -> None:
            calls.append(("activate", truck, 0))
            await socket.publish(f"awake/{truck}")

        def on_passivate(self, truck: str, state: Truck) -> None:
            calls.append(("passivate", truck, len(state.seen)))

        @on("fleet/{truck}")
        async def position(self, number: int, state: Truck) -> None:
            state.seen.append(number)

    app.add(Fleet)
    with Harness(app) as harness:
        harness.publish("fleet/a", 1)
        harness.publish("fleet/a", 2)
        harness.advance(61)
        assert calls == [("activate", "a", 0), ("passivate", "a", 2)]
        harness.publish("fleet/b", 1)
        harness.settle()
    assert calls[2:] == [("activate", "b", 0), ("passivate", "b", 1)]


def test_an_error_in_on_activate_fails_the_message_and_one_in_on_passivate_is_reported() -> None:
    app = application()
    tries: list[int] = []

    class Fleet(Actor):
        per = "truck"
        retry = ONCE

        async def on_activate(self) -> None:
            tries.append(1)
            if len(tries) == 1:
                raise OSError("not yet")

        async def on_passivate(self) -> None:
            raise KeyError("late")

        @on("fleet/{truck}")
        async def position(self, number: int) -> None:
            self.seen = number

    app.add(Fleet)
    with Harness(app) as harness:
        harness.expect_failure(OSError, KeyError)
        harness.publish("fleet/a", 1)
        harness.settle()
        assert harness.time == 10
        assert harness.state("Fleet", key="a").seen == 1
        harness.passivate("Fleet")
        harness.settle()
        assert harness.keys("Fleet") == []
        assert harness.stats["keys.passivation_failed"] == 1


@pytest.mark.parametrize("hook", ["on_activate", "on_passivate"])
def test_a_hook_that_does_not_end_at_its_deadline_is_given_up(hook: str) -> None:
    app = application()
    stuck: list[str] = []

    async def call(name: str, key: str) -> None:
        while name == hook and key == "stuck" and len(stuck) < 2:
            try:
                stuck.append(name)
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                await asyncio.get_running_loop().create_future()

    class Fleet(Actor):
        per = "truck"
        concurrency = 1
        deadline = 1
        retry = RetryPolicy(attempts=3)

        async def on_activate(self, truck: str) -> None:
            await call("on_activate", truck)

        async def on_passivate(self, truck: str) -> None:
            await call("on_passivate", truck)

        @on("fleet/{truck}")
        async def position(self, number: int) -> None:
            self.seen = number

    app.add(Fleet)
    with Harness(app) as harness:
        harness.expect_failure(TimeoutError)
        harness.publish("fleet/stuck", 1)
        harness.publish("fleet/other", 1)
        harness.settle()
        harness.passivate("Fleet", "stuck")
        harness.settle()
        harness.publish("fleet/stuck", 2)
        harness.publish("fleet/other", 2)
        harness.settle()
        assert harness.state("Fleet", key="stuck").seen == 2
        assert harness.state("Fleet", key="other").seen == 2
        assert harness.stats["actors.abandoned"] == (1 if hook == "on_passivate" else 2)
        assert harness.stats["keys.passivation_failed"] == (1 if hook == "on_passivate" else 0)


def test_an_exit_in_on_passivate_ends_the_application_and_the_other_keys_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = application()
    gone: list[str] = []

    class Fleet(Actor):
        per = "truck"

        async def on_passivate(self, truck: str) -> None:
            gone.append(truck)
            if truck == "a":
                sys.exit(3)

        @on("fleet/{truck}")
        async def position(self, payload: bytes) -> None: ...

    @app.producer()
    async def feed(socket: Socket) -> None:
        for truck in "abc":
            await socket.publish(f"fleet/{truck}")
        app.stop()

    app.add(Fleet)
    with pytest.raises(SystemExit) as ended:
        app.run()
    assert ended.value.code == 3
    assert sorted(gone) == ["a", "b", "c"]
    assert "on_passivate of key 'a' failed: SystemExit: 3" in caplog.text
    assert "was not called" not in caplog.text


def test_a_context_belongs_to_its_key_for_as_long_as_the_state_is_there() -> None:
    app = application()
    contexts: dict[str, Context] = {}

    @app.application("work/{key}", per="key", state=Truck)
    async def work(number: int, key: str, context: Context) -> None:
        contexts.setdefault(key, context)
        context.state.seen.append(number)

    with Harness(app) as harness:
        for number, key in enumerate("abab"):
            harness.publish(f"work/{key}", number)
        harness.settle()
        assert contexts["a"].state.seen == [0, 2]
        assert contexts["b"].state.seen == [1, 3]
        harness.passivate("work", "a")
        harness.advance(1)
        with pytest.raises(ActorStopped):
            contexts["a"].state  # noqa: B018
        harness.publish("work/a", 4)
        harness.settle()
        with pytest.raises(ActorStopped):
            contexts["a"].later(1, print)


@pytest.mark.virtual
def test_what_waits_behind_a_retry_goes_on_after_a_crash_of_the_actor() -> None:
    app = application()
    seen: list[int] = []

    @app.application("work/{key}", per="key", retry=RetryPolicy(attempts=3, first=5, factor=1))
    async def work(number: int) -> None:
        seen.append(number)
        if seen == [0]:
            raise ValueError("once")

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        for number in range(3):
            harness.publish("work/a", number)
        harness.advance(1)
        assert seen == [0]
        harness.restart_actor("work")
        harness.settle()
    assert seen == [0, 0, 1, 2]


# Registration.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"key": "truck"}, "key= does not go with per='truck'"),
        ({"batch": (2, 1)}, "batch= does not go"),
        ({"placement": "process"}, "placement= does not go"),
        ({"overflow": Overflow.DROP_OLDEST}, "overflow= does not go"),
        ({"per": "lorry"}, "per='lorry' is not a capture of its topics .there are: 'truck'."),
        ({"per": "header:x"}, "per='header:x' is not a capture"),
        ({"per": 7}, "give the name of a capture"),
        ({"state": Truck()}, "one value for all keys"),
        ({"hot": 0}, "hot=0"),
        ({"idle": 0}, "idle=0"),
        ({"per": None, "hot": 3}, "hot=3 has no effect without per="),
        ({"per": None, "idle": 3}, "idle=3 has no effect without per="),
        ({"topics": ["fleet/{truck}", "all/trucks"]}, "not a capture of 'all/trucks'"),
    ],
)
def test_what_cannot_be_is_refused_at_registration(options: dict[str, Any], text: str) -> None:
    async def position(payload: bytes) -> None: ...

    given = {"per": "truck", **options}
    topics = given.pop("topics", "fleet/{truck}")
    with pytest.raises(ConfigurationError, match=text):
        application().application(topics, **given)(position)


def test_a_class_with_hooks_that_nobody_would_call_is_refused() -> None:
    class Fleet(Actor):
        per = "truck"

        def on_start(self) -> None: ...

        @on("fleet/{truck}")
        async def position(self, number: int) -> None: ...

    with pytest.raises(ConfigurationError, match="on_start is never called: use on_activate"):
        application().add(Fleet)


def test_there_is_no_reference_to_all_keys() -> None:
    class Fleet(Actor):
        per = "truck"

        @on("fleet/{truck}")
        async def position(self, number: int) -> None: ...

    with pytest.raises(ConfigurationError, match="per='truck'"):
        application().add(Fleet).ref  # noqa: B018


# Whatever happens.


@pytest.mark.parametrize("profile", [None, "mqtt", "kafka"])
@pytest.mark.parametrize("crash", [0, 0.01])
@pytest.mark.parametrize("seed", range(8))
def test_each_key_gets_its_messages_in_order_whatever_fails(
    profile: Any, seed: int, crash: float
) -> None:
    app = DistributedApplication("memory://", name="app")
    dice = random.Random(seed)
    seen: dict[str, list[int]] = defaultdict(list)
    at_work: set[str] = set()
    retry = RetryPolicy(attempts=50, first=0.5, factor=1)

    @app.application("work/{key}", per="key", concurrency=dice.choice((1, 3, 16)), retry=retry)
    async def work(number: int, key: str, socket: Socket) -> None:
        assert key not in at_work or crash
        at_work.add(key)
        try:
            await asyncio.sleep(dice.choice((0, 0, 0.1, 2)))
            if dice.random() < 0.2:
                raise ValueError("a bad day")
            await socket.publish(f"done/{key}", number)
        finally:
            at_work.discard(key)
        seen[key].append(number)

    with Harness(
        app, seed=seed, faults=replace(Faults.all(), crash=crash), profile=profile
    ) as harness:
        harness.expect_failure(ValueError)
        for number in range(1, 6):
            for key in range(12):
                harness.publish(f"work/{key}", number, key=str(key))
        harness.settle()
    assert len(seen) == 12
    for numbers in seen.values():
        firsts = list(dict.fromkeys(numbers))
        assert firsts == [1, 2, 3, 4, 5]


# Control, the end, and what operators see.


async def test_a_pause_holds_for_all_keys_and_a_restart_makes_their_states_anew() -> None:
    app = application()
    got: list[tuple[str, int]] = []
    left: list[str] = []

    class Fleet(Actor):
        per = "truck"
        count = 0

        async def on_passivate(self, truck: str) -> None:
            left.append(truck)

        @on("fleet/{truck}")
        async def position(self, truck: str) -> None:
            self.count += 1
            got.append((truck, self.count))

    app.add(Fleet)
    async with app:
        socket = app.socket()
        for truck in "abab":
            await socket.publish(f"fleet/{truck}")
        await eventually(lambda: len(got) == 4)
        app.pause("Fleet")
        for truck in "abc":
            await socket.publish(f"fleet/{truck}")
        await asyncio.sleep(10)
        assert len(got) == 4
        (health,) = app.health().actors
        assert health.mailbox == 3
        assert health.keys == 3
        app.restart("Fleet")
        app.resume("Fleet")
        await eventually(lambda: len(got) == 7)
        assert sorted(got[4:]) == [("a", 1), ("b", 1), ("c", 1)]
        assert sorted(left) == ["a", "b"]
    assert sorted(left[2:]) == ["a", "b", "c"]


async def test_an_actor_that_stops_can_not_be_paused_any_more() -> None:
    app = application()
    left: list[str] = []
    states: list[HostState] = []

    class Fleet(Actor):
        per = "truck"

        async def on_passivate(self, truck: str) -> None:
            # Otherwise this one would be the last.
            host.pause()
            left.append(truck)

        @on("fleet/{truck}")
        async def position(self, truck: str) -> int:
            return 1

    app.add(Fleet)
    async with app:
        (runner,) = app._runs.current.actors  # type: ignore[union-attr]
        assert runner.keyed is not None
        host = runner.keyed
        host.pause()
        states.append(host.state)
        host.resume()
        for truck in "abc":
            assert await app.socket().request(f"fleet/{truck}", reply=int) == 1
    assert sorted(left) == ["a", "b", "c"]
    assert [*states, host.state] == [HostState.PAUSED, HostState.STOPPING]


async def test_what_is_at_work_ends_and_what_waits_is_left_to_the_bus_at_a_stop() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    done: list[str] = []

    @app.application("work/{key}", per="key", name="actor", concurrency=2)
    async def work(key: str) -> None:
        await gate.pass_()
        done.append(key)

    async with app:
        for key in "abcabc":
            site.publish(f"work/{key}")
        await gate.reached(2)
        asyncio.get_running_loop().call_later(1, gate.open)
    assert sorted(done) == ["a", "b"]
    assert site.unsettled() == 4


async def test_a_lane_that_is_killed_leaves_what_waits_to_those_that_end_in_order() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    done: list[str] = []

    @app.application("work/{key}", per="key", name="actor", concurrency=2)
    async def work(key: str) -> None:
        await gate.pass_()
        done.append(key)

    async with app:
        run = app._runs.current
        assert run is not None
        (runner,) = run.actors
        for key in "abcd":
            site.publish(f"work/{key}")
        await gate.reached(2)
        assert runner.keyed is not None
        refs = [lane._ref for lane in runner.keyed.lanes if lane._ref is not None]
        ends = [asyncio.ensure_future(run.system.stop(ref)) for ref in refs]
        await asyncio.sleep(1)
        await run.system.kill(refs[0])
        gate.open()
        await asyncio.wait(ends)
        assert len(done) == 3


async def test_an_actor_that_stops_itself_stops_for_all_keys() -> None:
    site = Site()
    app = site.app()
    done: list[str] = []

    @app.application("work/{key}", per="key", name="actor")
    async def work(key: str, context: Context) -> None:
        if key == "end":
            context.stop()
        done.append(key)

    async with app:
        for key in ("a", "end"):
            site.publish(f"work/{key}")
        await asyncio.wait_for(app.wait(), 60)
    assert done == ["a", "end"]


async def test_a_message_without_a_promise_is_dropped_when_the_mailbox_is_full() -> None:
    site = Site()
    app = site.app()
    gate = Gate()
    done: list[str] = []

    @app.application("work/{key}", per="key", name="actor", mailbox=3, qos=0, concurrency=1)
    async def work(key: str) -> None:
        await gate.pass_()
        done.append(key)

    async with app:
        site.publish("work/0", qos=0)
        await gate.reached()
        for key in range(1, 10):
            site.publish(f"work/{key}", qos=0)
        await eventually(lambda: app.stats["messages.dropped"] == 6)
        gate.open()
        await eventually(lambda: len(done) == 4)
    assert done == ["0", "1", "2", "3"]


async def test_what_expires_while_its_key_is_busy_is_not_handled() -> None:
    site = Site()
    app = site.app()
    done: list[str] = []

    @app.application("work/{key}", per="key", name="actor")
    async def work(key: str, payload: str) -> None:
        await asyncio.sleep(10)
        done.append(f"{key}{payload}")

    async with app:
        for text in ("1", "2", "3"):
            site.publish("work/a", text, expiry=15.0)
        await eventually(lambda: app.stats["messages.expired"] == 1, 60.0)
    assert done == ["a1", "a2"]


async def test_lines_in_the_log_name_the_key(caplog: pytest.LogCaptureFixture) -> None:
    app = application()
    done = asyncio.Event()

    @app.application("work/{key}", per="key", name="actor", retry=RetryPolicy(attempts=1))
    async def work(key: str, context: Context) -> None:
        context.log.warning("at work")
        done.set()
        raise Reject("no")

    async with app:
        await app.socket().publish(f"work/{'k' * 300}")
        await done.wait()
    ours = [record for record in caplog.records if record.name == "spa_dat.actor"]
    assert len(ours) == 2
    assert all(record.spa_dat_key.startswith("k" * 50) for record in ours)  # type: ignore[attr-defined]
    assert all(len(record.spa_dat_key) < 250 for record in ours)  # type: ignore[attr-defined]


async def test_very_many_keys_are_a_problem_unless_their_number_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_keyed_host, "_MANY_KEYS", 3)
    cases: list[tuple[Any, list[str]]] = [({}, ["invented"]), ({"hot": 100}, [])]
    for options, problems in cases:
        app = application()
        done: list[str] = []

        @app.application("work/{key}", per="key", name="invented", **options)
        async def work(key: str, _done: list[str] = done) -> None:
            _done.append(key)

        async with app:
            for key in range(4):
                await app.socket().publish(f"work/{key}")
            await eventually(lambda: len(done) == 4)  # noqa: B023
            assert list(app.problems) == problems
            assert "it has 4 keys" in app.problems.get("invented", "it has 4 keys")


# Cells.


def delivery(route: Route, topic: str) -> Delivery[Route]:
    return Delivery(Envelope(topic=topic, payload=b""), route=route)


def cells() -> tuple[KeyedMailbox, Route]:
    filter_ = TopicFilter.parse("work/{key}")
    route = Route(None, None, 0, filter_, per="key")  # type: ignore[arg-type]
    return KeyedMailbox(1_000, lambda one: route.key_of(one.envelope) or "", lambda: None), route


@pytest.mark.slow
@pytest.mark.deadline(600)
def test_a_million_keys_take_little_more_than_their_names() -> None:
    mailbox, route = cells()

    def handle(numbers: range) -> None:
        for number in numbers:
            mailbox.force(delivery(route, f"work/{number}"))
            taken = mailbox.take()
            assert taken is not None
            taken[0].keep(None)
            mailbox.done(taken[0])

    tracemalloc.start()
    handle(range(50_000))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / 50_000 < 400
    handle(range(50_000, 1_000_000))
    handle(range(1_000))
    assert len(mailbox.cells) == 1_000_000
    assert len(mailbox) == 0
    assert not mailbox.ready


def test_long_keys_and_keys_that_differ_little_are_kept_apart() -> None:
    mailbox, route = cells()
    keys = ["k" * 65_000, "k" * 64_999, "", " ", "ä", "a\u0308", "%C3%A4", "\x00"]
    for key in keys:
        mailbox.force(delivery(route, f"work/{key}"))
    assert list(mailbox.cells) == keys
    names = [_keyed_host._printable(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert max(map(len, names)) <= 48
    assert all(re.fullmatch(r"[!-+\--~]+", name) for name in names)


@pytest.mark.parametrize("seed", range(30))
def test_the_mailbox_keeps_the_order_of_each_key_whatever_is_taken_back(seed: int) -> None:
    mailbox, route = cells()
    dice = random.Random(seed)
    expected: dict[str, deque[Delivery[Route]]] = defaultdict(deque)
    at_work: dict[str, tuple[KeyCell, Delivery[Route]]] = {}
    for _ in range(300):
        match dice.randrange(6):
            case 0 | 1:
                new = [delivery(route, f"work/{dice.randrange(5)}") for _ in range(3)]
                for one in new:
                    expected[one.envelope.topic].append(one)
                mailbox.force_all(new)
            case 2 | 3:
                taken = mailbox.take()
                waiting = [topic for topic in expected if expected[topic] and topic not in at_work]
                assert (taken is None) == (not waiting)
                if taken is not None:
                    topic = taken[1].envelope.topic
                    assert topic not in at_work
                    assert taken[1] is expected[topic].popleft()
                    at_work[topic] = taken
            case 4:
                if at_work:
                    topic = dice.choice(sorted(at_work))
                    cell, one = at_work.pop(topic)
                    if dice.random() < 0.3:
                        # It was interrupted, and begins again.
                        mailbox.push_front([one])
                        expected[topic].appendleft(one)
                    mailbox.done(cell)
            case 5:
                odd = {
                    id(one) for queue in expected.values() for one in queue if dice.random() < 0.5
                }
                back = mailbox.extract(lambda item: id(item) in odd)  # noqa: B023
                assert {id(one) for one in back} == odd
                for topic, queue in expected.items():
                    mine = [one for one in back if one.envelope.topic == topic]
                    rest = [one for one in queue if id(one) not in odd]
                    expected[topic] = deque((*mine, *rest))
                mailbox.push_front(back)
        assert len(mailbox) == sum(map(len, expected.values()))
        assert sorted(map(id, mailbox.waiting())) == sorted(
            id(one) for queue in expected.values() for one in queue
        )


async def test_a_state_stays_until_what_its_messages_have_posted_is_confirmed() -> None:
    site = Site()
    app = site.app()
    seen: list[tuple[str, int]] = []

    @app.application("work/{key}", per="key", name="actor", state=Truck, hot=1)
    async def work(number: int, key: str, state: Truck, socket: Socket) -> None:
        state.seen.append(number)
        seen.append((key, len(state.seen)))
        socket.post(f"out/{key}", number)

    async with app:
        site.faults.drop_confirmations(3)
        for key in "abc":
            site.number(f"work/{key}", 1)
        await eventually(lambda: len(seen) == 3)
        await asyncio.sleep(30)
        (health,) = app.health().actors
        assert health.keys == 3
    # Nobody has forgotten what may have to be handled again.
    assert app.stats["keys.forgotten"] == 0


def test_keys_at_rest_keep_no_message_alive() -> None:
    app = application()

    @app.application("work/{key}", per="key", name="actor", state=Truck)
    async def work(payload: bytes, socket: Socket) -> None:
        socket.post("out", b"")

    with Harness(app) as harness:
        for key in range(3_000):
            harness.publish(f"work/{key}", b"x" * 100)
        harness.settle()
        # Only its own: what other tests have left behind says nothing.
        (runner,) = app._runs.current.actors  # type: ignore[union-attr]
        assert runner.keyed is not None
        cells = list(runner.keyed.mailbox.cells.values())
        held = [one for cell in cells for one in gc.get_referents(cell) if isinstance(one, deque)]
        assert len(cells) >= 3_000
        assert held == []


def test_a_state_is_made_anew_after_code_that_does_not_end_at_its_deadline() -> None:
    app = application()
    states: list[int] = []

    @app.application(
        "work/{key}", per="key", name="actor", state=Truck, deadline=1, retry=ONCE, concurrency=1
    )
    async def work(number: int, key: str, state: Truck, context: Context) -> None:
        states.append(id(state))
        state.seen.append(number)
        if context.attempt == 1 and key == "stuck":
            while True:
                try:
                    await asyncio.sleep(1_000)
                except asyncio.CancelledError:
                    continue

    with Harness(app, allow_failures=TimeoutError) as harness:
        harness.publish("work/stuck", 1)
        harness.publish("work/other", 2)
        harness.settle()
        assert harness.state("actor", key="stuck").seen == [1]
        assert harness.state("actor", key="other").seen == [2]
    assert len(states) == 3
