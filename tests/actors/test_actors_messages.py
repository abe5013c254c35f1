"""Messages between actors: tell, send, ask, their order, failures and fairness."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from spa_dat.actors import Actor, ActorRef, ActorSystem, Mailbox, Overflow
from spa_dat.errors import ActorError, ActorStopped, ConfigurationError, MailboxFull, RequestTimeout
from support.waiting import eventually


class Failures:
    """What the system reports."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    def __call__(self, ref: ActorRef[Any], error: BaseException, where: str) -> None:
        self.seen.append((ref.name, type(error).__name__, where))


@contextlib.asynccontextmanager
async def running(failures: Failures | None = None) -> AsyncIterator[ActorSystem]:
    system = ActorSystem(on_failure=failures)
    try:
        yield system
    finally:
        await system.stop_all(timeout=10)


class Recorder(Actor):
    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.failed: list[BaseException] = []

    async def on_receive(self, message: Any) -> Any:
        if callable(message):
            result = message()
            return await result if isinstance(result, Awaitable) else result
        self.seen.append(message)
        return len(self.seen)

    def on_failure(self, error: Exception) -> None:
        self.failed.append(error)


def raising(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


async def test_messages_are_handled_one_at_a_time_in_order() -> None:
    class Slow(Recorder):
        busy = False

        async def on_receive(self, message: Any) -> Any:
            assert not self.busy
            self.busy = True
            await asyncio.sleep(0)
            self.busy = False
            self.seen.append(message)
            return list(self.seen)

    async with running() as system:
        ref = system.spawn(Slow)
        for number in range(50):
            ref.tell(number)
        await ref.send(50)
        assert await ref.ask(51) == list(range(52))


async def test_a_plain_on_receive_answers_too() -> None:
    class Plain(Actor):
        def on_receive(self, message: int) -> int:
            return message * 2

    async with running() as system:
        assert await system.spawn(Plain).ask(21) == 42


async def test_without_on_receive_a_message_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as system:
        assert await system.spawn(Actor, name="mute").ask("hello") is None
    assert "mute" in caplog.text
    assert "'hello'" in caplog.text


async def test_a_failing_tell_is_reported_and_the_actor_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = Failures()
    async with running(failures) as system:
        instance = Recorder()
        ref = system.spawn(lambda: instance, name="fragile")
        error = ValueError("broken")
        ref.tell(raising(error))
        assert await ref.ask("next") == 1
    assert instance.failed == [error]
    assert failures.seen == [("fragile", "ValueError", "on_receive")]
    record = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_a_failing_ask_goes_to_the_asker_alone() -> None:
    failures = Failures()
    async with running(failures) as system:
        ref = system.spawn(Recorder)
        with pytest.raises(ValueError, match="broken"):
            await ref.ask(raising(ValueError("broken")))
        assert await ref.ask("next") == 1
    assert failures.seen == []


async def test_stop_iteration_reaches_the_asker_as_runtime_error() -> None:
    class Exhausted(Actor):
        def on_receive(self, message: Any) -> Any:
            return next(iter(()))

    async with running() as system:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await system.spawn(Exhausted).ask(1)


async def test_a_failing_on_failure_is_reported_as_well() -> None:
    class Hopeless(Recorder):
        async def on_failure(self, error: Exception) -> None:  # type: ignore[override]
            raise KeyError("on_failure")

    failures = Failures()
    async with running(failures) as system:
        ref = system.spawn(Hopeless, name="hopeless")
        ref.tell(raising(ValueError()))
        assert await ref.ask("next") == 1
    assert [entry[1:] for entry in failures.seen] == [
        ("ValueError", "on_receive"),
        ("KeyError", "on_failure"),
    ]


async def test_a_failing_hook_of_the_system_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(ref: ActorRef[Any], error: BaseException, where: str) -> None:
        raise LookupError

    system = ActorSystem(on_failure=broken)
    ref = system.spawn(Recorder)
    ref.tell(raising(ValueError()))
    assert await ref.ask("next") == 1
    await ref.stop()
    assert "on_failure of the actor system" in caplog.text


async def test_something_cancelled_inside_a_handler_does_not_end_the_actor() -> None:
    async def await_something_cancelled() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    failures = Failures()
    async with running(failures) as system:
        ref = system.spawn(Recorder, name="target")
        ref.tell(await_something_cancelled)
        with pytest.raises(ActorError, match="'target' was waiting for was cancelled"):
            await ref.ask(await_something_cancelled)
        assert await ref.ask("next") == 1
    assert failures.seen == [("target", "ActorError", "on_receive")]


async def test_a_timeout_inside_a_handler_is_an_ordinary_failure() -> None:
    async def too_slow() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    async with running() as system:
        ref = system.spawn(Recorder)
        with pytest.raises(TimeoutError):
            await ref.ask(too_slow)
        assert await ref.ask("next") == 1


async def test_an_actor_whose_task_is_cancelled_ends_loudly() -> None:
    failures = Failures()
    system = ActorSystem(on_failure=failures)
    stopped: list[str] = []

    class Target(Recorder):
        async def on_stop(self) -> None:
            stopped.append("on_stop")

    ref = system.spawn(Target, name="target")
    asked = asyncio.create_task(ref.ask(asyncio.Event().wait))
    queued = asyncio.create_task(ref.ask("queued"))
    task = next(task for task in asyncio.all_tasks() if task.get_name() == "actor target")
    await eventually(lambda: ref._mailbox.empty() is False)
    task.cancel()
    for result in await asyncio.gather(asked, queued, return_exceptions=True):
        assert isinstance(result, ActorStopped)
    await eventually(task.done)
    assert failures.seen == [("target", "ActorError", "task")]
    assert stopped == ["on_stop"]
    assert len(system) == 0


async def test_a_full_mailbox_refuses_tell_and_lets_send_and_ask_wait() -> None:
    gate = asyncio.Event()
    async with running() as system:
        instance = Recorder()
        ref = system.spawn(lambda: instance, mailbox=Mailbox(1))
        ref.tell(gate.wait)
        await eventually(ref._mailbox.empty)
        ref.tell("first")
        with pytest.raises(MailboxFull):
            ref.tell("too much")
        sending = asyncio.create_task(ref.send("sent"))
        asking = asyncio.create_task(ref.ask("asked"))
        await asyncio.sleep(0)
        assert not sending.done()
        gate.set()
        await sending
        assert await asking == 3
    assert instance.seen == ["first", "sent", "asked"]


async def test_a_dropped_ask_is_answered() -> None:
    gate = asyncio.Event()
    async with running() as system:
        ref = system.spawn(Recorder, mailbox=Mailbox(1, Overflow.DROP_OLDEST))
        ref.tell(gate.wait)
        await eventually(ref._mailbox.empty)
        asking = asyncio.create_task(ref.ask("asked"))
        await eventually(lambda: len(ref._mailbox) == 1)
        ref.tell("newer")
        with pytest.raises(MailboxFull, match="dropped the message"):
            await asking
        gate.set()


async def test_latest_by_key_sees_the_messages_themselves() -> None:
    gate = asyncio.Event()
    mailbox = Mailbox(10, Overflow.LATEST_BY_KEY, lambda message: getattr(message, "key", message))
    dropped: list[Any] = []
    mailbox.on_drop = dropped.append
    async with running() as system:
        instance = Recorder()
        ref = system.spawn(lambda: instance, mailbox=mailbox)
        ref.tell(gate.wait)
        await eventually(mailbox.empty)
        for message in (1, 2, 1):
            ref.tell(message)
        gate.set()
        await ref.stop()
    assert instance.seen == [1, 2]
    assert dropped == [1]


@pytest.mark.virtual
async def test_ask_gives_up_after_its_timeout() -> None:
    async with running() as system:
        ref = system.spawn(Recorder, name="slow")
        gate = asyncio.Event()
        ref.tell(gate.wait)
        begin = asyncio.get_running_loop().time()
        with pytest.raises(RequestTimeout, match=r"'slow' did not answer within 3.0 s") as caught:
            await ref.ask("x", timeout=3.0)
        assert isinstance(caught.value, TimeoutError)
        assert asyncio.get_running_loop().time() - begin == pytest.approx(3.0)
        gate.set()
        assert await ref.ask("y") == 1, "what nobody waits for any more is not handled"


@pytest.mark.virtual
async def test_the_timeout_of_ask_covers_the_wait_for_a_place() -> None:
    async with running() as system:
        ref = system.spawn(Recorder, mailbox=Mailbox(1))
        gate = asyncio.Event()
        ref.tell(gate.wait)
        await eventually(ref._mailbox.empty)
        ref.tell("fills the mailbox")
        with pytest.raises(RequestTimeout):
            await ref.ask("never gets in", timeout=3.0)
        gate.set()
        assert await ref.ask("last") == 2


async def test_a_cancelled_ask_leaves_nothing_behind() -> None:
    async with running() as system:
        ref = system.spawn(Recorder)
        gate = asyncio.Event()
        ref.tell(gate.wait)
        asking = asyncio.create_task(ref.ask("x"))
        await eventually(lambda: len(ref._mailbox) == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        gate.set()
        assert await ref.ask("y") == 1


async def test_a_flood_in_one_actor_leaves_others_their_turn() -> None:
    class Endless(Actor):
        count = 0

        def on_receive(self, message: str) -> None:
            self.count += 1
            if self.count < 100_000:
                self.actor_ref.tell(message)

    async with running() as system:
        endless = Endless()
        flood = system.spawn(lambda: endless)
        flood.tell("again")
        await asyncio.sleep(0)
        other = system.spawn(Recorder)
        assert await other.ask("me too") == 1
        assert endless.count < 100_000
        await flood.stop(drain=False)


async def test_tell_works_from_another_thread_and_ask_says_what_does() -> None:
    async with running() as system:
        ref = system.spawn(Recorder, name="target")
        await asyncio.to_thread(ref.tell, "from afar")
        assert await ref.ask("x") == 2

        def ask_there() -> None:
            asyncio.run(ref.ask("x"))

        with pytest.raises(ActorError, match=r"another thread.*ref\.pykka\.ask"):
            await asyncio.to_thread(ask_there)


async def test_foreign_items_go_to_the_receive_hook() -> None:
    failures = Failures()
    async with running(failures) as system:
        got: list[tuple[Any, Any]] = []

        async def receive(instance: Recorder, item: Any) -> None:
            got.append((instance, item))
            if item == "bad":
                raise ValueError(item)

        mailbox = Mailbox()
        instance = Recorder()
        ref = system.spawn(lambda: instance, name="x", mailbox=mailbox, receive=receive)
        mailbox.force("bad")
        mailbox.force("good")
        assert await ref.ask("local") == 1
        assert got == [(instance, "bad"), (instance, "good")]
    assert failures.seen == [("x", "ValueError", "receive")]
    assert instance.seen == ["local"]
    assert instance.failed == []


async def test_without_a_receive_hook_foreign_items_are_messages() -> None:
    async with running() as system:
        mailbox = Mailbox()
        ref = system.spawn(Recorder, mailbox=mailbox)
        mailbox.force("foreign")
        assert await ref.ask("local") == 2


async def test_a_handler_knows_its_own_reference() -> None:
    class Self(Actor):
        def on_receive(self, message: Any) -> ActorRef[Self]:
            return self.actor_ref

    async with running() as system:
        ref = system.spawn(Self)
        assert await ref.ask(1) is ref


def test_an_actor_that_is_not_spawned_says_so() -> None:
    with pytest.raises(ActorStopped, match="from on_start on"):
        _ = Recorder().actor_ref
    with pytest.raises(ConfigurationError, match=r"use system\.spawn"):
        Recorder.start()


async def test_an_actor_may_have_methods_called_start_and_stop() -> None:
    class Machine(Actor):
        async def start(self, speed: float) -> float:
            return speed

        def stop(self, speed: float) -> float:
            return -speed

        async def on_receive(self, message: float) -> tuple[float, float]:
            return await self.start(message), self.stop(message)

    async with running() as system:
        ref = system.spawn(Machine)
        assert await ref.ask(3.0) == (3.0, -3.0)
        assert await asyncio.to_thread(ref.pykka.stop, timeout=10) is True
