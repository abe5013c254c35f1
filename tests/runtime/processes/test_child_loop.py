"""The event loop of child processes: what goes on before it looks for more, and what does not."""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable, Iterator

import pytest

from spa_dat.runtime.child._child_loop import ChildLoop


class Looks(selectors.DefaultSelector):
    """Counts how often the loop has looked for more."""

    count = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.count += 1
        return super().select(timeout)


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def loop(looks: Looks) -> Iterator[ChildLoop]:
    loop = ChildLoop(looks)
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(("debug", "between"), [(False, 0), (True, 1)])
def test_a_task_that_is_woken_goes_on_before_the_next_look(
    loop: ChildLoop,
    looks: Looks,
    pair: tuple[socket.socket, socket.socket],
    debug: bool,
    between: int,
) -> None:
    # With debugging on, asyncio says which callbacks are slow, and all are called by its own loop.
    loop.set_debug(debug)
    ours, theirs = pair

    async def woken() -> int:
        arrived: asyncio.Future[int] = loop.create_future()

        def read() -> None:
            loop.remove_reader(ours)
            arrived.set_result(looks.count)

        loop.add_reader(ours, read)
        theirs.send(b"x")
        at = await arrived
        return looks.count - at

    assert loop.run_until_complete(woken()) == between


def test_callbacks_without_an_end_do_not_keep_others_from_what_comes_in(
    loop: ChildLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    calls = 0

    def again() -> None:
        nonlocal calls
        calls += 1
        assert calls < 1_000
        loop.call_soon(again)

    loop.add_reader(ours, loop.stop)
    theirs.send(b"x")
    again()
    loop.run_forever()
    loop.remove_reader(ours)


def test_nothing_is_called_that_was_cancelled(loop: ChildLoop) -> None:
    called: list[str] = []

    def first() -> None:
        second = loop.call_soon(called.append, "second")
        loop.call_soon(called.append, "third")
        second.cancel()
        loop.call_later(0, loop.stop)

    loop.call_soon(first)
    loop.run_forever()
    assert called == ["third"]


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_what_was_made_ready_ends_the_loop(
    loop: ChildLoop, end: type[BaseException]
) -> None:
    def leave() -> None:
        raise end

    def first(then: Callable[[], None]) -> None:
        loop.call_soon(then)

    loop.call_soon(first, leave)
    with pytest.raises(end):
        loop.run_forever()
