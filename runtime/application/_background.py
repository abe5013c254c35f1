"""An application in a program without an event loop: it gets one of its own, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from ..._logs import get_logger, log_error
from ..._texts import reason_of
from ...errors import ConfigurationError
from ._program import end_loop, new_loop

if TYPE_CHECKING:
    from ._application import DistributedApplication

__all__ = ["Background"]

log = get_logger("spa_dat")

# Seconds that a new thread takes to begin, at most.
_MOMENT = 5.0
# Seconds until a start notices Ctrl-C, at most.
_INTERRUPT = 0.5


class Background:
    """Runs an application in a thread, from `start` to `stop`.

    Args:
        application: not running.
    """

    def __init__(self, application: DistributedApplication) -> None:
        self._application = application
        self._started: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._begun = threading.Event()
        self._abandoned = False
        self._leave = asyncio.Event()
        self._failure: BaseException | None = None
        self._process = os.getpid()
        # A program that ends without a stop must not be kept alive.
        self._thread = threading.Thread(
            target=self._run, name=f"spa_dat {application.name}", daemon=True
        )

    def start(self) -> None:
        """Return when the application has started. May be called once.

        Raises:
            ConfigurationError: an event loop is running in this thread.
            BaseException: what the start of the application raises.
        """
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise ConfigurationError(
                f"'with' starts application {self._application.name!r} in a thread, and would block"
                " the event loop that is running here: write 'async with'"
            )
        try:
            self._thread.start()
            # Python notices a signal that another thread got, or that came just before a wait, only
            # once it is over.
            while not self._started.done():
                wait([self._started], timeout=_INTERRUPT)
            self._started.result()
        except BaseException:
            # It may be Ctrl-C, at any point of the start.
            self._abandon()
            raise

    def stop(self) -> BaseException | None:
        """Stop the application, and return what it has failed with; None if it has not."""
        if os.getpid() != self._process:
            # A forked process has neither the thread nor anything to stop.
            return None
        self._end()
        return self._failure

    def _end(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join()

    def _abandon(self) -> None:
        self._abandoned = True
        if self._loop is not None and self._main is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._main.cancel)
        if self._thread in threading.enumerate():
            # Thread.start() may have been left while the thread was about to begin, and until then
            # it cannot be joined; or before there was one.
            self._begun.wait(_MOMENT)
        if self._begun.is_set():
            self._thread.join()

    def _run(self) -> None:
        self._begun.set()
        try:
            self._loop = loop = new_loop()
            loop.set_exception_handler(log_error)
            self._main = main = loop.create_task(self._serve())
            if self._abandoned:
                main.cancel()
            try:
                loop.run_until_complete(main)
            except BaseException as error:
                # Not what becomes of the application because of that. A start that was given up
                # before it had begun has ended nothing.
                if not main.cancelled():
                    self._ended_loop(error)
                raise
            finally:
                end_loop(loop, main)
        except BaseException as error:  # noqa: BLE001 (raised where the application is used)
            self._failed(error)

    def _ended_loop(self, error: BaseException) -> None:
        log.error("%s: its event loop was ended: %s", self._application.name, reason_of(error))
        self._failed(error)

    async def _serve(self) -> None:
        try:
            async with self._application:
                self._started.set_result(None)
                await self._leave.wait()
        except BaseException as error:  # noqa: BLE001 (raised where the application is used)
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if not self._started.done():
            self._started.set_exception(error)
        elif self._failure is None:
            self._failure = error
