"""Running applications as a program: signals and exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import warnings
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Literal

from .._texts import describe, reason_of
from ..errors import ActorStopped, ConfigurationError, SpaDatError
from ._application import DistributedApplication
from ._loop_end import end_loop
from ._settings import LoopFactory
from ._signals import Signals

__all__ = ["IMPORTING", "run"]

# Set while a module is only imported for the application in it.
IMPORTING: ContextVar[bool] = ContextVar("spa_dat_importing", default=False)

# What shells say of a program that Ctrl-C has ended.
_INTERRUPTED = 130


def run(*applications: DistributedApplication, loop_factory: LoopFactory | None = None) -> None:
    """Run applications together until SIGTERM, SIGINT, or until none has anything left to do.

    They are stopped in reverse order. A second signal ends the program at once, with 128 and the
    signal's number as exit code, also while the event loop is blocked.

    Args:
        applications: one at least, each with something registered.
        loop_factory: makes the event loop, as `uvloop.new_event_loop` does; by default that of an
            event loop policy which the program has set, or a selector loop.

    Raises:
        SystemExit: with the reason, when one could not start or failed, has no actors, or could not
            be stopped in good order: something had to be given up. The others are stopped.
    """
    _refuse_wrong_place()
    if IMPORTING.get():
        raise ConfigurationError(
            "run() was called, but the module is only imported: write"
            ' `if __name__ == "__main__":` above it'
        )
    signals = Signals(sum(application._settings.stop_timeout for application in applications))
    given_up: list[str] = []
    try:
        _refuse_nothing(applications)
        loop = (loop_factory or _new_loop)()
        main = loop.create_task(_serve(applications, signals, given_up))
        try:
            loop.run_until_complete(main)
        except RuntimeError as error:
            if main.done():
                raise
            raise _Interfered("has stopped the event loop (loop.stop)") from error
        except asyncio.CancelledError as error:
            raise _Interfered("has cancelled the task of run()") from error
        finally:
            given_up += end_loop(loop, main)
    except SpaDatError as error:
        raise SystemExit(f"spa_dat: {reason_of(error)}") from error
    except _Exit as exit_:
        raise SystemExit(exit_.code) from exit_.__cause__
    except _ProducerFailed as failed:
        raise SystemExit(1) from failed.__cause__
    except _Interfered as error:
        raise SystemExit(f"spa_dat: {error}") from error.__cause__
    except KeyboardInterrupt as error:
        raise SystemExit(_INTERRUPTED) from error
    finally:
        signals.restore()
    if given_up:
        raise SystemExit(f"spa_dat: not stopped in good order: {'; '.join(given_up)}")


def _new_loop() -> asyncio.AbstractEventLoop:
    with warnings.catch_warnings():
        # Newer versions of Python are about to give policies up.
        warnings.simplefilter("ignore", DeprecationWarning)
        policy = asyncio.get_event_loop_policy()
    if type(policy).__module__.partition(".")[0] == "asyncio":
        # Everywhere: the MQTT client needs add_reader, Windows' default lacks it.
        return asyncio.SelectorEventLoop()
    return policy.new_event_loop()


def _refuse_nothing(applications: tuple[DistributedApplication, ...]) -> None:
    if not applications:
        raise ConfigurationError("run() got no application: give it one or more")
    for application in applications:
        if not application._registry.specs:
            raise ConfigurationError(
                f"nothing is registered with application {application.name!r}, so it has nothing"
                " to do: decorate functions with @app.application(...) or @app.producer(), and"
                " add actor classes with app.add(...)"
            )


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


class _Exit(Exception):
    """User's code asked for the end of the program; in a task that would end the event loop."""

    def __init__(self, error: SystemExit | KeyboardInterrupt) -> None:
        super().__init__(describe(error))
        self.code = error.code if isinstance(error, SystemExit) else _INTERRUPTED


class _ProducerFailed(Exception):
    """An application ended because of an error in the user's code, which is logged already."""


class _Interfered(Exception):
    """Code of the program has ended what `run` stands on."""

    def __init__(self, what: str) -> None:
        super().__init__(f"code of the program {what}; to end an application use app.stop()")


async def _serve(
    applications: tuple[DistributedApplication, ...], signals: Signals, given_up: list[str]
) -> None:
    stop = asyncio.Event()
    signals.install(stop.set)
    try:
        async with AsyncExitStack() as stack:
            starting = asyncio.ensure_future(_start(stack, applications))
            interrupted = asyncio.ensure_future(stop.wait())
            try:
                await asyncio.wait((starting, interrupted), return_when="FIRST_COMPLETED")
                if not starting.done():
                    starting.cancel()
                try:
                    await starting
                except asyncio.CancelledError:
                    pass
                except ActorStopped:
                    # The program's own code has stopped it meanwhile.
                    stop.set()
                if not stop.is_set():
                    await _until_done(applications, interrupted)
            finally:
                signals.stopping()
                interrupted.cancel()
        for application in applications:
            if application._last_run is not None:
                _refuse_exit(application._last_run.failure)
    finally:
        for application in applications:
            if application._last_run is not None:
                given_up += application._last_run.given_up.reasons


def _refuse_exit(failure: BaseException | None) -> None:
    """Raise when a handler has ended the program while a signal did."""
    if isinstance(failure, SystemExit | KeyboardInterrupt):
        raise _Exit(failure) from failure


async def _start(stack: AsyncExitStack, applications: tuple[DistributedApplication, ...]) -> None:
    for application in applications:
        try:
            await application._prepare()
        except (SystemExit, KeyboardInterrupt) as error:
            raise _Exit(error) from error
        stack.push_async_callback(application.aclose)
    # Producers only when everybody can hear them.
    for application in applications:
        application._begin()


async def _until_done(
    applications: tuple[DistributedApplication, ...], interrupted: asyncio.Future[Literal[True]]
) -> None:
    waits = [asyncio.ensure_future(_ended(application)) for application in applications]
    everything = asyncio.gather(*waits)
    try:
        await asyncio.wait((everything, interrupted), return_when="FIRST_COMPLETED")
        if everything.done():
            everything.result()
    except (SpaDatError, _Exit, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise _ProducerFailed from error
    finally:
        everything.cancel()
        with contextlib.suppress(BaseException):
            await everything


async def _ended(application: DistributedApplication) -> None:
    try:
        await application.wait()
    except (SystemExit, KeyboardInterrupt) as error:
        raise _Exit(error) from error
