"""The thread that runs blocking functions."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pykka
import pytest

from spa_dat.actors import Actor, ActorSystem, ThreadWorker, chain_names
from spa_dat.errors import ActorStopped
from support.waiting import eventually

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


def failing(error: BaseException) -> None:
    raise error


async def test_functions_run_one_at_a_time_in_one_other_thread() -> None:
    worker = ThreadWorker()
    threads: list[int] = []
    order: list[int] = []

    def note(number: int, *, factor: int) -> int:
        threads.append(threading.get_ident())
        order.append(number)
        return number * factor

    results = await asyncio.gather(*(worker.run(note, number, factor=2) for number in range(20)))
    assert results == [number * 2 for number in range(20)]
    assert order == list(range(20))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    assert await worker.stop()


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
async def test_what_a_function_raises_reaches_the_caller(error: BaseException) -> None:
    worker = ThreadWorker()
    with pytest.raises(type(error)) as caught:
        await worker.run(failing, error)
    assert caught.value is error
    assert await worker.run(str, 1) == "1", "the thread goes on"
    assert await worker.stop()


async def test_stop_iteration_does_not_hang_the_caller() -> None:
    worker = ThreadWorker()
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(worker.run(next, iter(())), 60)
    assert await worker.stop()


async def test_context_variables_are_the_callers() -> None:
    worker = ThreadWorker()
    variable.set("mine")
    assert await worker.run(variable.get) == "mine"
    assert await worker.stop()


async def test_the_chain_of_actors_goes_along() -> None:
    worker = ThreadWorker()

    class Blocking(Actor):
        async def on_receive(self, message: Any) -> Any:
            return await worker.run(chain_names)

    system = ActorSystem()
    assert await system.spawn(Blocking, name="blocking").ask(1) == ("blocking",)
    await system.stop_all(timeout=10)
    assert await worker.stop()


async def test_a_cancelled_call_that_has_not_begun_never_runs() -> None:
    worker = ThreadWorker()
    gate = threading.Event()
    ran: list[str] = []
    first = asyncio.create_task(worker.run(gate.wait, 10))
    second = asyncio.create_task(worker.run(ran.append, "second"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    assert await first is True
    await worker.run(ran.append, "third")
    assert ran == ["third"]
    assert await worker.stop()


async def test_stop_waits_for_what_was_taken_and_takes_no_more() -> None:
    worker = ThreadWorker("sensor")
    gate = threading.Event()
    done: list[str] = []
    first = asyncio.create_task(worker.run(gate.wait, 10))
    second = asyncio.create_task(worker.run(done.append, "second"))
    await asyncio.sleep(0)
    stopping = asyncio.create_task(worker.stop(timeout=10))
    await asyncio.sleep(0)
    with pytest.raises(ActorStopped, match="'sensor' has stopped"):
        await worker.run(done.append, "late")
    gate.set()
    assert await stopping is True
    await asyncio.gather(first, second)
    assert done == ["second"]
    assert not worker.busy
    assert await worker.stop() is True


async def test_a_hung_function_is_abandoned_after_the_timeout() -> None:
    worker = ThreadWorker("hung")
    gate = threading.Event()
    hung = asyncio.create_task(worker.run(gate.wait))
    waiting = asyncio.create_task(worker.run(str, 1))
    await asyncio.sleep(0)
    assert await worker.stop(timeout=0.01) is False
    for task in (hung, waiting):
        with pytest.raises(ActorStopped, match="'hung' was abandoned"):
            await task
    gate.set()
    await eventually(lambda: not worker._runner.actor_ref.is_alive())


async def test_abandon_leaves_the_thread_to_itself_and_a_new_worker_works() -> None:
    gate = threading.Event()
    old = ThreadWorker.spawn("old")
    call = asyncio.create_task(old.run(gate.wait))
    await asyncio.sleep(0)
    old.abandon()
    old.abandon()
    with pytest.raises(ActorStopped):
        await call
    new = ThreadWorker.spawn("new")
    assert await new.run(str, 1) == "1"
    gate.set()
    assert await new.stop()
    await eventually(lambda: not old._runner.actor_ref.is_alive())


async def test_the_thread_is_a_daemon_and_not_in_pykkas_registry() -> None:
    worker = ThreadWorker()
    assert await worker.run(lambda: threading.current_thread().daemon)
    assert pykka.ActorRegistry.get_all() == []
    assert await worker.stop()


@pytest.mark.virtual
async def test_virtual_time_stands_still_while_a_function_runs() -> None:
    worker = ThreadWorker()
    loop = asyncio.get_running_loop()
    before = loop.time()
    timer = loop.call_later(1000, lambda: None)
    assert await worker.run(lambda: sum(range(1000))) == 499500
    assert loop.time() == before
    timer.cancel()
    assert await worker.stop()
