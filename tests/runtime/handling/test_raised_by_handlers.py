"""Whatever the code of an actor raises or cancels is a failure of its message, and nothing more."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from spa_dat import Actor, Context, DistributedApplication, RetryPolicy, on
from spa_dat.actors import ActorSystem
from spa_dat.errors import ActorError, ConfigurationError, RequestTimeout
from support.memory import Site
from support.waiting import eventually, threads_have_left

pytestmark = pytest.mark.virtual

ONCE = RetryPolicy(attempts=1)


class Mine(BaseException):
    """Derived from BaseException, by somebody who knows no better."""


class Broken(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise Mine("in __str__")

    __repr__ = __str__


class Note:
    """No text, and none can be made of it."""

    def __str__(self) -> str:
        raise GeneratorExit

    __repr__ = __str__


class Odd(RequestTimeout):
    """An error that cannot say whether it is an outage."""

    @property
    def outage(self) -> bool | None:
        raise Mine("in outage")

    @outage.setter
    def outage(self, value: bool | None) -> None: ...


class OddGroup(ExceptionGroup[Exception]):
    """A group that cannot say of what."""

    @property
    def exceptions(self) -> tuple[Exception, ...]:
        raise Mine("in exceptions")


def noted() -> ValueError:
    error = ValueError("with a note")
    error.__notes__ = [Note()]  # type: ignore[list-item]
    return error


RAISED: tuple[Callable[[], BaseException], ...] = (
    lambda: ValueError("x"),
    lambda: Mine("m"),
    lambda: Odd("o"),
    lambda: OddGroup("g", [ValueError("x")]),
    lambda: ExceptionGroup("g", [Odd("o")]),
    lambda: GeneratorExit(),
    lambda: SystemExit(3),
    lambda: asyncio.CancelledError(),
    lambda: StopIteration(1),
    lambda: StopAsyncIteration(),
    lambda: BaseExceptionGroup("both", [Mine(), ValueError()]),
    lambda: pytest.fail.Exception("in a handler"),
    lambda: Broken(),
    noted,
)


@dataclasses.dataclass
class Payload:
    """Raises when it is made."""

    number: int

    def __post_init__(self) -> None:
        if self.number < len(RAISED):
            raise RAISED[self.number]()


def name_of(make: Callable[[], BaseException]) -> str:
    return type(make()).__name__


def ending(make: Callable[[], BaseException]) -> bool:
    """Return whether it is the reason to end the application, which it says then."""
    return isinstance(make(), SystemExit)


@contextlib.asynccontextmanager
async def running(
    app: DistributedApplication, make: Callable[[], BaseException]
) -> AsyncIterator[None]:
    """Run the application; what is the reason to end it is raised at the end."""
    with pytest.raises(SystemExit) if ending(make) else contextlib.nullcontext():
        async with app:
            yield


@pytest.mark.parametrize("make", RAISED, ids=name_of)
@pytest.mark.parametrize("kind", ["async", "later", "deadline", "def", "def deadline"])
async def test_it_costs_the_message_and_the_actor_goes_on(
    make: Callable[[], BaseException], kind: str
) -> None:
    site = Site()
    app = site.app()
    handled: list[int] = []
    options: dict[str, Any] = {"deadline": 5.0} if "deadline" in kind else {}

    def work_on(number: int) -> None:
        if number == 1:
            raise make()
        handled.append(number)

    if kind.startswith("def"):

        @app.application("n", name="actor", retry=RetryPolicy(attempts=2), **options)
        def plain(number: int) -> None:
            work_on(number)

    else:

        @app.application("n", name="actor", retry=RetryPolicy(attempts=2), **options)
        async def handle(number: int) -> None:
            if kind == "later":
                await asyncio.sleep(0.01)
            work_on(number)

    async with running(app, make):
        site.number("n", 0, 1, 2)
        await site.settled()
        assert handled == [0, 2]
        assert app.healthy or ending(make)
        assert app.stats["messages.failed"] == (1 if isinstance(make(), SystemExit) else 2)
        assert len(site.letters()) == 1


class Slow(Exception):
    """An error whose text takes long; it has another one each time that it is raised."""

    said = 0

    def __str__(self) -> str:
        self.said += 1
        time.sleep(0.05)
        return f"text {self.said}"


@pytest.mark.parametrize("way", ["alone", "cause", "group"])
async def test_a_text_that_takes_long_is_put_into_words_once(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site()
    app = site.app()
    slow = Slow()

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2))
    async def handle(number: int) -> None:
        if way == "cause":
            raise ValueError("outer") from slow
        raise slow if way == "alone" else ExceptionGroup("group", [slow, ValueError("other")])

    async with app:
        site.number("n", 1)
        await site.settled()
    (letter,) = site.letters()
    # Once for each attempt whose line or traceback has the text.
    assert slow.said == (2 if way == "alone" else 1)
    assert f"Slow: text {slow.said}" in caplog.text
    if way == "alone":
        assert letter.headers["spa_dead_text"] == "text 2"


@pytest.mark.parametrize("make", RAISED, ids=name_of)
async def test_it_costs_the_messages_of_a_batch_that_fail_alone(
    make: Callable[[], BaseException],
) -> None:
    site = Site()
    app = site.app()
    handled: list[int] = []

    @app.application("n", name="actor", batch=(3, 0.1), retry=ONCE)
    async def handle(numbers: list[int]) -> None:
        if 1 in numbers:
            raise make()
        handled.extend(numbers)

    async with running(app, make):
        site.number("n", 0, 1, 2, 3)
        await site.settled()
        assert handled == [0, 2, 3]
        assert app.healthy or ending(make)
        assert len(site.letters()) == 1


@pytest.mark.parametrize("make", RAISED, ids=name_of)
async def test_it_costs_a_timer_a_producer_call_and_a_reply(
    make: Callable[[], BaseException],
) -> None:
    app = DistributedApplication("memory://", name="app")
    calls: list[int] = []
    timers: list[str] = []

    @app.application("put/off")
    async def put_off(number: int, context: Context) -> None:
        def fail() -> None:
            raise make()

        async def fail_later() -> None:
            await asyncio.sleep(0.01)
            raise make()

        context.later(0.1, fail)
        context.later(0.2, fail_later)
        context.later(0.3, timers.append, "came")

    @app.application("ask")
    async def answer(number: int) -> int:
        raise make()

    if not isinstance(make(), SystemExit):

        @app.producer(every=1.0)
        async def produce() -> None:
            calls.append(len(calls))
            raise make()

    async with running(app, make):
        await app.socket().publish("put/off", 1)
        await eventually(lambda: timers == ["came"])
        assert app.stats["timers.failed"] == 2
        for _ in range(2):
            with pytest.raises(Exception, match="failed"):
                await app.socket().request("ask", 1, reply=int)
        if not isinstance(make(), SystemExit):
            await eventually(lambda: len(calls) >= 3)
            assert app.stats["producers.failed"] >= 2
        assert app.healthy or ending(make)


@pytest.mark.parametrize("make", RAISED, ids=name_of)
async def test_it_costs_a_local_message(make: Callable[[], BaseException]) -> None:
    failed: list[BaseException] = []

    class Local(Actor):
        async def on_receive(self, message: Any) -> Any:
            if message == "async":
                await asyncio.sleep(0)
            if message in ("sync", "async"):
                raise make()
            return message

        def on_failure(self, error: Exception) -> None:
            failed.append(error)
            raise make()

    system = ActorSystem()
    ref = system.spawn(Local)
    for message in ("sync", "async"):
        ref.tell(message)
        with pytest.raises(BaseException) as caught:
            await ref.ask(message)
        # It would end the event loop of whoever asks.
        assert not isinstance(caught.value, SystemExit | GeneratorExit | asyncio.CancelledError)
    assert await ref.ask("fine") == "fine"
    assert len(failed) == 2
    await system.stop_all(timeout=5)


@pytest.mark.parametrize("make", RAISED, ids=name_of)
@pytest.mark.parametrize("place", ["on_start", "__init__", "on_stop"])
async def test_it_costs_a_start_or_a_stop(make: Callable[[], BaseException], place: str) -> None:
    site = Site()
    app = site.app()
    made: list[str] = []
    handled: list[int] = []

    class Meter(Actor):
        def __init__(self) -> None:
            made.append("made")
            if place == "__init__" and len(made) == 2:
                raise make()

        async def on_start(self) -> None:
            if place != "on_stop" and len(made) == 1:
                raise make()

        async def on_stop(self) -> None:
            if place == "on_stop":
                raise make()

        @on("n")
        async def handle(self, number: int) -> None:
            handled.append(number)

    app.add(Meter)
    if ending(make) and place != "on_stop":
        with pytest.raises(SystemExit):
            await app.__aenter__()
        assert made == ["made"]
        return
    async with running(app, make):
        site.number("n", 1)
        await eventually(lambda: handled == [1])
        assert app.healthy or ending(make)
    assert len(made) == {"on_start": 2, "__init__": 3, "on_stop": 1}[place]


@pytest.mark.parametrize("make", RAISED, ids=name_of)
@pytest.mark.parametrize("place", ["open", "close", "state"])
async def test_it_costs_a_resource_or_a_state(
    make: Callable[[], BaseException], place: str
) -> None:
    app = DistributedApplication("memory://", name="app")

    @contextlib.asynccontextmanager
    async def resource() -> AsyncIterator[int]:
        if place == "open":
            raise make()
        yield 1
        if place == "close":
            raise make()

    def state() -> int:
        if place == "state":
            raise make()
        return 1

    @app.application("n", ressources={"thing": resource}, state=state)
    async def handle(number: int, thing: int, state: int) -> None: ...

    if place == "close":
        with pytest.raises(SystemExit) if ending(make) else contextlib.nullcontext():
            async with app:
                assert app.healthy
        return
    with pytest.raises(ConfigurationError, match=r"thing|state"):
        async with app:
            pass


async def test_a_payload_whose_code_raises_is_undecodable() -> None:
    site = Site()
    app = site.app()
    handled: list[Any] = []

    @app.application("n/{mine}", name="actor")
    async def handle(payload: Payload, mine: int) -> None:
        handled.append(payload.number)

    async with app:
        for number in (*range(len(RAISED)), 100):
            site.publish("n/1", f'{{"number": {number}}}', content_type="application/json")
        await site.settled()
        assert handled == [100]
        assert len(site.letters()) == len(RAISED)
        assert app.healthy


class Unlike(Exception):
    """An error that does not say what it is."""

    @property
    def __class__(self) -> Any:
        raise Mine("in __class__")

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


class Undecided(Exception):
    """An error that is neither true nor false."""

    def __bool__(self) -> bool:
        raise ValueError("neither")


class Untraceable(Exception):
    """An error that does not say where it is from."""

    @property
    def __traceback__(self) -> Any:
        raise ValueError("nowhere")

    @__traceback__.setter
    def __traceback__(self, value: Any) -> None: ...


@pytest.mark.parametrize("kind", [Unlike, Undecided, Untraceable])
async def test_an_error_at_which_nobody_can_look_costs_its_message_alone(
    kind: type[Exception],
) -> None:
    site = Site()
    app = site.app()
    handled: list[Any] = []

    class Strange(Actor):
        name = "actor"
        retry = ONCE

        @on("n")
        async def handle(self, number: int) -> None:
            if number == 1:
                raise kind
            handled.append(number)

        async def on_receive(self, message: str) -> str:
            if message == "raise":
                raise kind
            return message

    strange = app.add(Strange)

    @app.application("batch", batch=(1, 0.1), retry=ONCE)
    async def batch(numbers: list[int]) -> None:
        if numbers == [1]:
            raise kind
        handled.extend(numbers)

    @app.producer(every=1.0)
    async def produce() -> None:
        handled.append("called")
        raise kind

    async with app:
        site.number("n", 1, 2)
        await site.settled()
        await app.socket().publish("batch", 1)
        await app.socket().publish("batch", 3)
        with pytest.raises(RuntimeError, match=f"{kind.__name__}, which cannot be inspected"):
            await strange.ref.ask("raise")
        strange.ref.tell("raise")
        assert await strange.ref.ask("fine") == "fine"
        await eventually(lambda: handled.count("called") >= 2)
        await eventually(lambda: 3 in handled)
        assert 2 in handled
        assert app.stats["dead_letters.stored"] == 2
        assert app.healthy


async def test_an_error_whose_text_can_not_be_had_is_a_failure_like_any_other() -> None:
    site = Site()
    app = site.app()
    handled: list[int] = []

    @app.application("n", name="actor", retry=ONCE)
    async def handle(number: int, context: Context) -> None:
        if number == 1:
            raise Broken
        context.later(0, fail)
        handled.append(number)

    def fail() -> None:
        raise Broken

    async with app:
        site.number("n", 1, 2)
        await site.settled()
        await eventually(lambda: app.stats["timers.failed"] == 1)
        assert handled == [2]
        assert app.healthy


# Ending the program.


@pytest.mark.parametrize("make", [KeyboardInterrupt, lambda: SystemExit(3)], ids=["^C", "exit"])
async def test_ctrl_c_and_exits_end_the_application_in_good_order(
    make: Callable[[], BaseException],
) -> None:
    site = Site()
    app = site.app()
    stopped: list[str] = []

    class Meter(Actor):
        async def on_stop(self) -> None:
            stopped.append("on_stop")

        @on("n")
        async def handle(self, number: int) -> None:
            raise make()

    app.add(Meter)
    async with app:
        site.number("n", 1)
        with pytest.raises(type(make())):
            await app.wait()
        await site.settled("app.0.Meter")
    assert stopped == ["on_stop"]
    assert len(site.letters()) == 1


@pytest.mark.parametrize("every", [None, 1.0])
async def test_a_producer_that_exits_ends_the_application_with_its_code(
    every: float | None,
) -> None:
    app = DistributedApplication("memory://", name="app")

    @app.producer(every=every)
    async def produce() -> None:
        raise SystemExit(7)

    async with app:
        with pytest.raises(SystemExit) as caught:
            await app.wait()
    assert caught.value.code == 7


# Cancelling.


@pytest.mark.parametrize("way", ["at once", "waiting", "by a timer", "by a child", "twice"])
async def test_a_handler_that_cancels_itself_has_failed(way: str) -> None:
    site = Site()
    app = site.app()
    handled: list[int] = []

    @app.application("n", name="actor", retry=ONCE)
    async def handle(number: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        if number == 1:
            if way == "by a timer":
                asyncio.get_running_loop().call_later(0.1, task.cancel)
            elif way == "by a child":
                child = asyncio.create_task(_cancel(task))
                await asyncio.sleep(10)
                await child
            else:
                task.cancel()
                if way == "twice":
                    task.cancel()
            if way != "at once":
                await asyncio.sleep(10)
        handled.append(number)
        await asyncio.sleep(0.01)

    async with app:
        site.number("n", 0, 1, 2, 3)
        await site.settled()
        # What cancels itself and then waits for nothing notices at its next wait.
        assert [number for number in handled if number != 1] == [0, 2, 3]
        assert app.healthy
        assert len(site.letters()) == 1
        assert app.stats["actors.cancellations_cleared"] == 1


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()


async def test_a_handler_that_returns_right_after_it_cancelled_itself_is_done() -> None:
    site = Site()
    app = site.app()
    handled: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        if number == 1:
            app.socket().post("other", number)
            task.cancel()
        handled.append(number)

    async with app:
        site.number("n", 0, 1, 2)
        await site.settled()
        assert handled == [0, 1, 2]
        assert app.healthy
        assert app.stats["actors.cancellations_cleared"] == 1


async def test_what_an_old_library_leaves_behind_does_not_hit_later_messages(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    app = site.app()
    handled: list[int] = []

    @app.application("n", name="actor", retry=ONCE)
    async def handle(number: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        if number == 1:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)
        if number == 2:
            assert task.cancelling() == 0
            # When its time comes, the message is long done, and another one is handled.
            asyncio.get_running_loop().call_later(0.5, task.cancel)
        if number == 3:
            await asyncio.sleep(1)
        if number == 4:
            child = asyncio.create_task(asyncio.sleep(10))
            await asyncio.sleep(0)
            child.cancel()
            await child
        handled.append(number)

    async with app:
        site.number("n", 1, 2, 3, 4, 5)
        await site.settled()
        assert handled == [1, 2, 3, 5]
        assert app.healthy
        assert app.stats["actors.cancellations_cleared"] == 2
    told = [record for record in caplog.records if "did not undo that" in record.message]
    assert len(told) == 1


async def test_a_late_cancellation_does_not_hit_a_wait_between_two_attempts() -> None:
    site = Site()
    app = site.app()
    attempts: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2, first=2, jitter=0))
    async def handle(number: int, context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt == 1:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_later(1, task.cancel)
            raise ValueError

    async with app:
        site.number("n", 1)
        await site.settled()
        assert attempts == [1, 2]
        assert app.healthy
        assert app.stats["messages.handled"] == 1


async def test_an_actor_can_not_cancel_another_one() -> None:
    site = Site()
    app = site.app()
    handled: list[int] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        await asyncio.sleep(1)
        handled.append(number)

    @app.application("cancel")
    async def cancel(number: int) -> None:
        for task in asyncio.all_tasks():
            if task.get_name().startswith("actor handle") or task.get_name() == "actor actor":
                task.cancel()

    async with app:
        site.number("n", 1)
        await asyncio.sleep(0.5)
        site.number("cancel", 1)
        await site.settled()
        assert handled == [1]
        assert app.stats["actors.cancellations_cleared"] == 1


async def test_timeouts_and_task_groups_work_in_a_handler() -> None:
    site = Site()
    app = site.app()
    seen: list[Any] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.sleep(10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.1)
        with pytest.raises(ExceptionGroup):
            await _fail_in_a_group()
        assert task.cancelling() == 0
        with pytest.raises(ExceptionGroup):
            # Before Python 3.13 this leaves a cancellation behind, which is nobody's mistake here.
            async with asyncio.TaskGroup() as group:
                group.create_task(_fail())
        seen.append(number)

    async with app:
        site.number("n", 1, 2)
        await site.settled()
        assert seen == [1, 2]
        assert app.stats["actors.cancellations_cleared"] == 0


async def _fail_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_fail())
        await asyncio.sleep(10)


async def _fail() -> None:
    raise ValueError


async def test_cancelling_the_task_from_outside_of_actors_ends_it() -> None:
    failures: list[str] = []
    system = ActorSystem(on_failure=lambda ref, error, where: failures.append(where))
    ref = system.spawn(Actor, name="a")
    await system.started(ref)
    task = next(task for task in asyncio.all_tasks() if task.get_name() == "actor a")
    task.cancel()
    await eventually(task.done)
    assert failures == ["task"]


async def test_an_asker_is_told_of_an_exit_in_a_form_that_ends_no_event_loop() -> None:
    class Local(Actor):
        def on_receive(self, message: Any) -> Any:
            raise SystemExit(4)

    system = ActorSystem()
    ref = system.spawn(Local, name="a")
    with pytest.raises(ActorError, match=r"'a' raised SystemExit: 4") as caught:
        await ref.ask("x")
    assert isinstance(caught.value.__cause__, SystemExit)
    await system.stop_all(timeout=5)


# Memory.


@pytest.mark.parametrize(
    "kind",
    [
        "async",
        "waiting",
        "deadline",
        "def",
        "def deadline",
        "local",
        "asked",
        "asked full",
        "batch",
        "same",
        "same waiting",
        "same deadline",
        "same local",
        "same batch",
        "def same",
    ],
)
async def test_failures_keep_nothing_alive(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    # What is logged keeps the error.
    caplog.set_level(logging.CRITICAL + 1, logger="spa_dat")
    site = Site()
    app = site.app()
    held: list[weakref.ref[threading.Event]] = []
    is_same, kind = "same" in kind, kind.replace("same", "").strip()
    # An object that is made once, and keeps what it has come through the last time.
    same = ValueError("always the same")

    def fail() -> None:
        large = threading.Event()
        held.append(weakref.ref(large))
        raise same if is_same else ValueError("x")

    if kind.startswith("def"):

        @app.application("n", name="actor", retry=ONCE, deadline=5.0 if "line" in kind else None)
        def plain(number: int) -> None:
            fail()

    elif kind == "batch":

        @app.application("n", name="actor", retry=ONCE, batch=(1, 0))
        async def together(numbers: list[int]) -> None:
            fail()

    else:

        @app.application("n", name="actor", retry=ONCE, deadline=5 if kind == "deadline" else None)
        async def handle(number: int) -> None:
            if kind == "waiting":
                await asyncio.create_task(asyncio.to_thread(fail))
            fail()

    class Local(Actor):
        async def on_receive(self, message: Any) -> Any:
            if message is not None:
                fail()

    async with app:
        system = ActorSystem()
        ref = system.spawn(Local)
        gc.collect()
        gc.disable()
        try:
            if kind == "local":
                for number in range(5):
                    ref.tell(number)
                await ref.ask(None)
            elif kind.startswith("asked"):
                for number in range(5):
                    if kind == "asked full":
                        for _ in range(1000):
                            ref.tell(None)
                    with contextlib.suppress(ValueError):
                        await ref.ask(number)
            else:
                site.number("n", *range(5))
                await site.settled()
            assert len(held) == 5
            # The last one may still be in the thread that has raised it.
            await threads_have_left(lambda: sum(one() is not None for one in held) <= 1)
        finally:
            gc.enable()
        await system.stop_all(timeout=5)


async def test_failing_hooks_keep_nothing_alive(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, logger="spa_dat")
    held: list[weakref.ref[threading.Event]] = []

    class Failing(Actor):
        async def on_receive(self, message: Any) -> None:
            large = threading.Event()
            held.append(weakref.ref(large))
            raise ValueError

        def on_failure(self, error: Exception) -> None:
            raise KeyError from error

    system = ActorSystem()
    ref = system.spawn(Failing)
    gc.collect()
    gc.disable()
    try:
        for number in range(5):
            ref.tell(number)
        await eventually(lambda: len(held) == 5)
        await eventually(lambda: not any(one() for one in held))
    finally:
        gc.enable()
    await system.stop_all(timeout=5)
