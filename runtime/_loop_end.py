"""The end of an event loop, whatever still runs on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any

from .._logs import get_logger
from ._given_up import let_go
from ._stacks import frames_of, frames_of_thread, place

__all__ = ["end_loop"]

log = get_logger("spa_dat")

_REST = 1.0
_REST_FOR_THREADS = 5.0
_EXITS = 5
_LOOK_AGAIN = 0.1
_OF_THE_LOOP = "asyncio_"


def end_loop(loop: asyncio.AbstractEventLoop, main: asyncio.Task[Any]) -> list[str]:
    """Cancel what is left on a loop and close it; bounded in time, unlike `asyncio.run`.

    Tasks and async generators that go on although they were cancelled are abandoned after two
    seconds, functions in the loop's own threads after five.

    Args:
        loop: not running.
        main: what it ran; waited for, for it bounds itself.

    Returns:
        What is abandoned, in words; it is logged.
    """
    abandoned: list[str] = []
    try:
        _run(loop, _end_main(main))
        _run(loop, _end_tasks(abandoned))
        _run(loop, _end_generators(abandoned))
        _run(loop, _end_threads(abandoned))
    finally:
        loop.close()
    for what in abandoned:
        log.error("%s; it is abandoned", what)
    return abandoned


def _run(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> None:
    task = loop.create_task(coroutine)
    # What ends, too, may call sys.exit(), which comes out of here.
    for _ in range(_EXITS):
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_until_complete(task)
        if task.done():
            return


async def _end_main(main: asyncio.Task[Any]) -> None:
    if not main.done():
        main.cancel()
        await asyncio.wait((main,))
    if not main.cancelled():
        main.exception()


async def _end_tasks(abandoned: list[str]) -> None:
    for _ in range(2):
        left = _others()
        for task in left:
            task.cancel()
        if left:
            done, _pending = await asyncio.wait(left, timeout=_REST)
            for task in done:
                _report(task)
    _abandon(_others(), "a task", abandoned)


async def _end_generators(abandoned: list[str]) -> None:
    loop = asyncio.get_running_loop()
    closing = loop.create_task(loop.shutdown_asyncgens())
    await asyncio.wait((closing,), timeout=_REST)
    if closing.done():
        # What there is now comes from other threads.
        return
    for task in _others():
        task.cancel()
    await asyncio.wait(_others(), timeout=_REST)
    _abandon(_others(), "an async generator", abandoned)


async def _end_threads(abandoned: list[str]) -> None:
    loop = asyncio.get_running_loop()
    closing = loop.create_task(loop.shutdown_default_executor())
    await asyncio.wait((closing,), timeout=_REST_FOR_THREADS)
    if closing.done():
        return
    # Cancelled it would wait for the threads, and with it the loop.
    let_go([closing])
    for thread in threading.enumerate():
        if thread.name.startswith(_OF_THE_LOOP) and thread.is_alive():
            where = place(frames_of_thread(thread.ident))
            if where is not None:
                abandoned.append(f"a function in a thread of the event loop goes on: {where}")
    threading.Thread(target=_end_process, name="spa_dat end", daemon=True).start()


def _others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def _abandon(tasks: set[asyncio.Task[Any]], what: str, abandoned: list[str]) -> None:
    places = [place(frames_of(task)) for task in tasks]
    abandoned += [
        f"{what} goes on although it was cancelled: {where}"
        for where in sorted(where for where in places if where is not None)
    ]
    if tasks and not any(places):
        abandoned.append(f"{what} goes on although it was cancelled")
    let_go(tasks)


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {
                "message": "unhandled exception while the program ends",
                "exception": error,
                "task": task,
            }
        )


def _end_process() -> None:
    """End a process whose main thread has ended and which others keep alive."""
    while not _main_thread_has_ended():
        threading.Event().wait(_LOOK_AGAIN)
    threading.Event().wait(_REST_FOR_THREADS)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


def _main_thread_has_ended() -> bool:
    # It counts as alive until all threads of executors have been waited for.
    frames = frames_of_thread(threading.main_thread().ident)
    return bool(frames) and frames[0].f_code is threading._shutdown.__code__  # type: ignore[attr-defined]
