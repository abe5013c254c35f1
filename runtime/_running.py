"""Running applications as a program: signals and exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Literal

from ..errors import ConfigurationError, SpaDatError
from ._application import DistributedApplication

__all__ = ["IMPORTING", "run"]

log = logging.getLogger("spa_dat")

# Set while a module is only imported for the application in it.
IMPORTING: ContextVar[bool] = ContextVar("spa_dat_importing", default=False)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(*applications: DistributedApplication) -> None:
    """Run applications together until SIGTERM, SIGINT, or until none has anything left to do.

    They are stopped in reverse order. A second signal ends the program at once.

    Raises:
        SystemExit: with the reason, when one could not start or failed; the others are stopped.
    """
    _refuse_wrong_place()
    if IMPORTING.get():
        raise ConfigurationError(
            "run() was called, but the module is only imported: write"
            ' `if __name__ == "__main__":` above it'
        )
    try:
        # A selector loop everywhere: the MQTT client needs add_reader, Windows' default lacks it.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(_serve(applications))
    except SpaDatError as error:
        raise SystemExit(f"spa_dat: {type(error).__name__}: {error}") from error
    except _ProducerFailed as failed:
        raise SystemExit(1) from failed.__cause__


def _refuse_wrong_place() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise ConfigurationError(
            "run() was called on a running event loop, which it would block; write"
            " `async with app: await app.wait()`"
        )
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError(
            "run() was called outside the main thread, where signals can not be handled; write"
            " `async with app: await app.wait()` in a loop of your own"
        )


class _ProducerFailed(Exception):
    """An application ended because of an error in the user's code, which is logged already."""


async def _serve(applications: tuple[DistributedApplication, ...]) -> None:
    stop = asyncio.Event()
    with _signals(stop.set):
        async with AsyncExitStack() as stack:
            starting = asyncio.ensure_future(_start(stack, applications))
            interrupted = asyncio.ensure_future(stop.wait())
            try:
                await asyncio.wait((starting, interrupted), return_when="FIRST_COMPLETED")
                if not starting.done():
                    starting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await starting
                if not stop.is_set():
                    await _until_done(applications, interrupted)
            finally:
                interrupted.cancel()


async def _start(stack: AsyncExitStack, applications: tuple[DistributedApplication, ...]) -> None:
    for application in applications:
        await application._prepare()
        stack.push_async_callback(application.aclose)
    # Producers only when everybody can hear them.
    for application in applications:
        application._begin()


async def _until_done(
    applications: tuple[DistributedApplication, ...], interrupted: asyncio.Future[Literal[True]]
) -> None:
    waits = [asyncio.ensure_future(application.wait()) for application in applications]
    everything = asyncio.gather(*waits)
    try:
        await asyncio.wait((everything, interrupted), return_when="FIRST_COMPLETED")
        if everything.done():
            everything.result()
    except SpaDatError:
        raise
    except Exception as error:
        raise _ProducerFailed from error
    finally:
        everything.cancel()
        with contextlib.suppress(BaseException):
            await everything


@contextlib.contextmanager
def _signals(first: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    received = 0

    def on_signal(name: str) -> None:
        nonlocal received
        received += 1
        if received == 1:
            log.info("%s: stopping; a second signal ends at once", name)
            first()
        else:
            log.warning("%s again: ending at once", name)
            sys.stderr.flush()
            os._exit(1)

    try:
        for number in _SIGNALS:
            loop.add_signal_handler(number, on_signal, number.name)
    except NotImplementedError:  # Windows
        for number in _SIGNALS:
            signal.signal(
                number,
                lambda got, _: loop.call_soon_threadsafe(on_signal, signal.Signals(got).name),
            )
        yield
        return
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
