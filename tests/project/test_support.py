"""The tests' own helpers do what they say."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, strategies as st

from spa_dat.harness import Deadlock, VirtualEnvironment
from support.deadline import deadline
from support.running import run_async_test
from support.waiting import eventually

AsyncTest = Callable[[], Coroutine[Any, Any, None]]


@pytest.mark.virtual
async def test_virtual_time_jumps_over_waits() -> None:
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    before = loop.time()
    order: list[int] = []
    loop.call_later(7200, order.append, 2)
    loop.call_later(3600, order.append, 1)
    await asyncio.sleep(86_400 * 30)
    assert loop.time() - before == pytest.approx(86_400 * 30)
    assert order == [1, 2]
    assert time.monotonic() - started < 30


@pytest.mark.virtual
async def test_virtual_time_stands_still_while_an_executor_works() -> None:
    go = threading.Event()
    threading.Timer(0.05, go.set).start()
    loop = asyncio.get_running_loop()
    before = loop.time()
    async with asyncio.timeout(1000):
        assert await loop.run_in_executor(None, lambda: sum(_busy_until(go)) >= 0)
    assert loop.time() - before < 1000


@pytest.mark.virtual
async def test_virtual_time_stands_still_while_a_thread_works() -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()

    def work() -> None:
        time.sleep(0.05)
        loop.call_soon_threadsafe(done.set_result, "worked")

    thread = threading.Thread(target=work)
    thread.start()
    async with asyncio.timeout(60):
        assert await done == "worked"
    thread.join()


@pytest.mark.virtual
async def test_virtual_wall_time_follows_the_loop() -> None:
    environment = VirtualEnvironment()
    before = environment.now()
    await asyncio.sleep(60)
    assert environment.now() - before == pytest.approx(60)


def test_virtual_time_names_a_deadlock() -> None:
    with pytest.raises(Deadlock, match="nothing is ready"):
        run_async_test(_waits_for_ever, {}, virtual=True)


async def test_eventually_names_what_it_waited_for() -> None:
    looks: list[int] = []

    def third_look() -> bool:
        looks.append(1)
        return len(looks) == 3

    assert await eventually(third_look)
    with pytest.raises(AssertionError, match="len\\(looks\\) == 0"):
        await eventually(lambda: len(looks) == 0, timeout=0.02)


@given(number=st.integers())
async def test_async_tests_run_under_hypothesis(number: int) -> None:
    await asyncio.sleep(0)
    assert number == number + 0


async def _leaks_a_task() -> None:
    asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="leaked")
    await asyncio.sleep(0)


async def _leaves_an_error() -> None:
    async def fail() -> None:
        raise ValueError("nobody looks at this")

    asyncio.get_running_loop().create_task(fail(), name="failed")
    await asyncio.sleep(0)


async def _fails_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(lambda: [][0])
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("test", "text"),
    [
        (_leaks_a_task, "leaked"),
        (_leaves_an_error, "nobody looks at this"),
        (_fails_in_a_callback, "IndexError"),
    ],
)
@pytest.mark.parametrize("virtual", [False, True])
def test_what_a_test_leaves_behind_fails_it(test: AsyncTest, text: str, virtual: bool) -> None:
    with pytest.raises(pytest.fail.Exception, match=text):
        run_async_test(test, {}, virtual=virtual)


async def _waits_for_ever() -> None:
    await asyncio.Event().wait()


def test_a_deadline_cancels_an_async_test() -> None:
    with pytest.raises(pytest.fail.Exception, match="deadline"), deadline(0.05):
        run_async_test(_waits_for_ever, {}, virtual=False)


def test_a_deadline_interrupts_a_blocked_test() -> None:
    with pytest.raises(pytest.fail.Exception, match="deadline"), deadline(0.05):
        threading.Event().wait()


def _busy_until(event: threading.Event) -> list[int]:
    rounds: list[int] = []
    while not event.is_set():
        rounds.append(1)
        if len(rounds) > 1000:
            time.sleep(0.001)
            rounds.clear()
    return rounds
