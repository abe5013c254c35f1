"""Our actors through pykka's eyes, and the check of the installed pykka."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any

import pykka
import pytest

from spa_dat.actors import Actor, ActorRef, ActorSystem, Mailbox
from spa_dat.actors._pykka_adapter import check_pykka
from spa_dat.errors import ConfigurationError, DeadlockDetected, MailboxFull
from spa_dat.runtime.diagnostics._unclean_stop import let_go
from support.waiting import eventually


class Calculator(Actor):
    def __init__(self) -> None:
        self.total = 0

    async def on_receive(self, message: Any) -> Any:
        if isinstance(message, BaseException):
            raise message
        if callable(message):
            return await message()
        self.total += message
        return self.total

    def add(self, number: int) -> int:
        self.total += number
        return self.total

    async def add_later(self, number: int) -> int:
        await asyncio.sleep(0)
        return self.add(number)


@contextlib.asynccontextmanager
async def calculator(**options: Any) -> AsyncIterator[ActorRef[Calculator]]:
    system = ActorSystem()
    try:
        yield system.spawn(Calculator, name="calculator", **options)
    finally:
        await system.stop_all(timeout=10)


async def test_it_is_a_pykka_reference_to_a_pykka_actor() -> None:
    async with calculator() as ref:
        assert isinstance(ref.pykka, pykka.ActorRef)
        assert issubclass(ref.pykka.actor_class, pykka.Actor)
        assert ref.pykka is ref.pykka
        assert ref.pykka.is_alive()
        assert ref.pykka.actor_urn.startswith("urn:uuid:")
        assert "Calculator" in repr(ref.pykka)
    assert not ref.pykka.is_alive()


async def test_other_threads_tell_ask_and_stop() -> None:
    async with calculator() as ref:

        def there() -> tuple[Any, ...]:
            ref.pykka.tell(1)
            total = ref.pykka.ask(2, timeout=10)
            with pytest.raises(ValueError, match="broken"):
                ref.pykka.ask(ValueError("broken"), timeout=10)
            stopped = ref.pykka.stop(timeout=10)
            with pytest.raises(pykka.ActorDeadError):
                ref.pykka.tell(3)
            with pytest.raises(pykka.ActorDeadError):
                ref.pykka.ask(3, timeout=10)
            return total, stopped, ref.pykka.stop(timeout=10)

        assert await asyncio.to_thread(there) == (3, True, False)
        assert not ref.is_alive


async def test_messages_of_a_thread_before_its_stop_are_handled() -> None:
    instance = Calculator()
    system = ActorSystem()
    ref = system.spawn(lambda: instance)

    def there() -> None:
        for _ in range(100):
            ref.pykka.tell(1)
        ref.pykka.stop(timeout=10)

    await asyncio.to_thread(there)
    assert instance.total == 100
    assert len(system) == 0


async def test_an_ask_that_is_still_waiting_when_the_actor_stops_is_answered() -> None:
    gate = asyncio.Event()
    async with calculator() as ref:
        ref.tell(gate.wait)
        waiting = ref.pykka.ask(1, block=False)
        await eventually(lambda: len(ref._mailbox) == 1)
        ref._cell.request_stop(drain=False)
        gate.set()
        with pytest.raises(pykka.ActorDeadError):
            await waiting


async def test_a_thread_that_gives_up_gets_pykkas_timeout() -> None:
    gate = asyncio.Event()
    async with calculator() as ref:
        ref.tell(gate.wait)
        with pytest.raises(pykka.Timeout):
            await asyncio.to_thread(ref.pykka.ask, 1, timeout=0.01)
        gate.set()
        assert await ref.ask(1) == 1, "the message of who gave up is not handled"


async def test_what_would_block_the_event_loop_raises() -> None:
    async with calculator() as ref:
        with pytest.raises(RuntimeError, match="block the event loop"):
            ref.pykka.ask(1)
        future = ref.pykka.ask(1, block=False)
        with pytest.raises(RuntimeError, match="block the event loop"):
            future.get()
        assert await future == 1
        assert future.get() == 1, "there is nothing to wait for any more"
        stopping = ref.pykka.stop(block=False)
        with pytest.raises(RuntimeError, match="block the event loop"):
            stopping.get()


async def test_mapped_futures_can_be_awaited() -> None:
    async with calculator() as ref:
        assert await ref.pykka.ask(4, block=False).map(lambda total: total * 10) == 40


async def test_awaiting_a_failed_ask_raises_its_error() -> None:
    async with calculator() as ref:
        with pytest.raises(ValueError, match="broken"):
            await ref.pykka.ask(ValueError("broken"), block=False)


async def test_proxies_call_methods_and_reach_attributes() -> None:
    async with calculator() as ref:
        await ref.ask(0)

        def there() -> list[Any]:
            proxy = ref.pykka.proxy()
            results = [proxy.add(2).get(timeout=10), proxy.add_later(3).get(timeout=10)]
            proxy.total = 40
            proxy.add.defer(2)
            return [*results, proxy.total.get(timeout=10)]

        assert await asyncio.to_thread(there) == [2, 5, 42]


async def test_a_full_mailbox_refuses_threads_and_not_their_stop() -> None:
    gate = asyncio.Event()
    async with calculator(mailbox=Mailbox(1)) as ref:
        ref.tell(gate.wait)
        await eventually(ref._mailbox.empty)
        ref.tell(1)
        with pytest.raises(MailboxFull):
            await asyncio.to_thread(ref.pykka.tell, 2)
        with pytest.raises(MailboxFull):
            await asyncio.to_thread(ref.pykka.ask, 2, timeout=10)
        stopping = asyncio.create_task(asyncio.to_thread(ref.pykka.stop, timeout=10))
        gate.set()
        assert await stopping is True


async def test_a_cycle_through_a_thread_is_refused() -> None:
    async with calculator() as ref:

        async def ask_myself_in_a_thread() -> Any:
            return await asyncio.to_thread(ref.pykka.ask, 1, timeout=10)

        with pytest.raises(DeadlockDetected, match="calculator -> calculator"):
            await ref.ask(ask_myself_in_a_thread)


class Recursive(Actor):
    """Has a proxy to itself, as pykka's documentation shows."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def first(self) -> pykka.Future[Any]:
        future: pykka.Future[Any] = self.actor_ref.pykka.proxy().second()
        self.seen.append("first")
        return future

    def second(self) -> str:
        self.seen.append("second")
        return "answer"

    async def waits(self) -> Any:
        return await self.actor_ref.pykka.proxy().second()

    def gets(self) -> Any:
        return self.actor_ref.pykka.proxy().second().get(timeout=10)


async def test_an_actor_has_a_proxy_to_itself() -> None:
    system = ActorSystem()
    ref = system.spawn(Recursive, name="recursive")
    proxy = ref.pykka.proxy()
    assert await (await proxy.first()) == "answer"
    assert await proxy.seen == ["first", "second"]
    with pytest.raises(DeadlockDetected, match="recursive -> recursive"):
        await proxy.waits()
    with pytest.raises(RuntimeError, match="block the event loop"):
        await proxy.gets()
    await ref.stop()


async def test_what_is_asked_after_a_stop_that_is_not_waited_for_comes_too_late() -> None:
    async with calculator() as ref:
        before = ref.pykka.ask(1, block=False)
        stopping = ref.pykka.stop(block=False)
        late = ref.pykka.ask(2, block=False)
        with pytest.raises(pykka.ActorDeadError):
            ref.pykka.tell(3)
        assert await before == 1
        with pytest.raises(pykka.ActorDeadError):
            await late
        assert await stopping is True

    async with calculator() as ref:

        def there() -> Any:
            ref.pykka.stop(block=False)
            return ref.pykka.ask(2, timeout=10)

        with pytest.raises(pykka.ActorDeadError):
            await asyncio.to_thread(there)


async def test_a_thread_of_pykka_and_an_actor_of_ours_talk() -> None:
    class Threaded(pykka.ThreadingActor):
        use_daemon_thread = True

        def on_receive(self, message: pykka.ActorRef[Any]) -> Any:
            return message.ask(7, timeout=10)

    async with calculator() as ref:
        threaded = Threaded.start()
        assert await asyncio.to_thread(threaded.ask, ref.pykka, timeout=10) == 7
        await asyncio.to_thread(threaded.stop)


async def test_stop_by_pykkas_registry_reaches_registered_actors() -> None:
    async with calculator(register_globally=True) as ref:
        await asyncio.to_thread(pykka.ActorRegistry.stop_all, timeout=10)
        assert not ref.is_alive


def test_after_the_loop_is_closed_the_actor_is_dead() -> None:
    async def make() -> ActorRef[Calculator]:
        ref = ActorSystem().spawn(Calculator)
        await ref.ask(1)
        ref.pykka  # noqa: B018 (made while the loop runs)
        await ref.stop()
        return ref

    ref = asyncio.run(make())
    with pytest.raises(pykka.ActorDeadError):
        ref.pykka.tell(1)
    assert ref.pykka.stop(timeout=10) is False


def test_a_thread_does_not_wait_for_an_actor_whose_loop_is_closed() -> None:
    outcomes: list[Any] = []
    begun: list[bool] = []

    def ask(ref: pykka.ActorRef[Any], message: Any) -> None:
        try:
            ref.ask(message)
        except pykka.ActorDeadError as error:
            outcomes.append(error)

    def stop(ref: pykka.ActorRef[Any]) -> None:
        outcomes.append(ref.stop())

    async def stuck() -> None:
        begun.append(True)
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def main() -> list[threading.Thread]:
        system = ActorSystem()
        ref = system.spawn(Calculator)
        threads = [
            threading.Thread(target=ask, args=(ref.pykka, stuck), daemon=True),
            threading.Thread(target=ask, args=(ref.pykka, 1), daemon=True),
            threading.Thread(target=stop, args=(ref.pykka,), daemon=True),
        ]
        threads[0].start()
        await eventually(lambda: begun == [True])
        threads[1].start()
        await eventually(lambda: len(ref._mailbox) == 1)
        threads[2].start()
        await eventually(lambda: not ref.is_alive)
        task = await system.kill(ref)
        assert isinstance(task, asyncio.Task)
        let_go([task])
        return threads

    threads = asyncio.run(main())
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert [isinstance(outcome, pykka.ActorDeadError) for outcome in outcomes].count(True) == 2
    assert outcomes.count(False) == 1


def test_another_version_of_pykka_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "4.7.0")
    check_pykka.cache_clear()
    with pytest.raises(ConfigurationError, match=r"pykka 4\.7\.0 is installed.*pykka>=4\.5,<4\.6"):
        ActorSystem()
    monkeypatch.undo()
    ActorSystem()


def test_a_missing_part_of_pykka_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pykka.Actor, "_handle_receive")
    check_pykka.cache_clear()
    with pytest.raises(ConfigurationError, match=r"lacks .*_handle_receive"):
        ActorSystem()
    monkeypatch.undo()
    ActorSystem()
