"""The event loop of child processes: what goes on before it looks for more, and what does not."""

from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import Iterator
from typing import NoReturn

import pytest

from spa_dat.runtime.child._child_loop import PipeSelector


class Looks(PipeSelector):
    """Counts how often the loop has looked for more."""

    count = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.count += 1
        return super().select(timeout)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.fixture
def looks(pipe: tuple[int, int]) -> Looks:
    return Looks(pipe[0])


@pytest.fixture
def loop(looks: Looks) -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.SelectorEventLoop(looks)
    yield loop
    loop.close()


async def looks_until_woken(looks: Looks, reading: int, writing: int) -> int:
    """Return how often the loop looks from when it calls a reader until what that wakes goes on."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[int] = loop.create_future()

    def read() -> None:
        loop.remove_reader(reading)
        arrived.set_result(looks.count)

    loop.add_reader(reading, read)
    os.write(writing, b"x")
    at = await arrived
    return looks.count - at


def test_a_task_that_the_pipe_wakes_goes_on_before_the_next_look(
    loop: asyncio.AbstractEventLoop, looks: Looks, pipe: tuple[int, int]
) -> None:
    assert loop.run_until_complete(looks_until_woken(looks, *pipe)) == 0


def test_what_other_descriptors_wake_goes_on_as_in_any_loop(
    loop: asyncio.AbstractEventLoop, looks: Looks
) -> None:
    reading, writing = os.pipe()
    try:
        assert loop.run_until_complete(looks_until_woken(looks, reading, writing)) == 1
    finally:
        os.close(reading)
        os.close(writing)


def test_what_comes_in_by_the_pipe_and_elsewhere_at_a_time_is_all_read(
    loop: asyncio.AbstractEventLoop, pipe: tuple[int, int]
) -> None:
    other = os.pipe()
    ends = (pipe, other)
    read: list[bytes] = []

    def readable(reading: int) -> None:
        read.append(os.read(reading, 10))
        if len(read) == len(ends):
            loop.stop()

    for reading, writing in ends:
        os.write(writing, b"%d" % reading)
        loop.add_reader(reading, readable, reading)
    loop.run_forever()
    for reading, _ in ends:
        loop.remove_reader(reading)
    assert sorted(read) == sorted(b"%d" % reading for reading, _ in ends)
    os.close(other[0])
    os.close(other[1])


def test_callbacks_without_an_end_do_not_keep_the_pipe_from_being_read(
    loop: asyncio.AbstractEventLoop, pipe: tuple[int, int]
) -> None:
    calls = 0

    def again() -> None:
        nonlocal calls
        calls += 1
        assert calls < 1_000
        loop.call_soon(again)

    loop.add_reader(pipe[0], loop.stop)
    os.write(pipe[1], b"x")
    again()
    loop.run_forever()
    loop.remove_reader(pipe[0])


def test_an_error_of_what_reads_the_pipe_goes_to_the_handler_of_the_loop(
    loop: asyncio.AbstractEventLoop, pipe: tuple[int, int]
) -> None:
    errors: list[object] = []

    def read() -> NoReturn:
        loop.remove_reader(pipe[0])
        loop.stop()
        raise ValueError("broken")

    loop.set_exception_handler(lambda _, context: errors.append(str(context["exception"])))
    loop.add_reader(pipe[0], read)
    os.write(pipe[1], b"x")
    loop.run_forever()
    assert errors == ["broken"]


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_what_reads_the_pipe_ends_the_loop(
    loop: asyncio.AbstractEventLoop, pipe: tuple[int, int], end: type[BaseException]
) -> None:
    def leave() -> NoReturn:
        loop.remove_reader(pipe[0])
        raise end

    loop.add_reader(pipe[0], leave)
    os.write(pipe[1], b"x")
    with pytest.raises(end):
        loop.run_forever()
