"""Running applications as a program: event loop, signals and exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any, Literal

from ..._logs import get_logger, log_error
from ..._service_manager import ServiceManager
from ..._texts import describe, reason_of
from ...errors import ActorStopped, ConfigurationError, SpaDatError
from ..diagnostics._stacks import frames_of, frames_of_thread, place
from ..diagnostics._unclean_stop import let_go
from ..hosting._application_settings import LoopFactory
from ._application import DistributedApplication, runs_of
from ._signals import Signals

__all__ = ["IMPORTING", "end_loop", "new_loop", "run", "run_until_stopped"]

log = get_logger("spa_dat")

# Set while a module is imported only to find the application in it.
IMPORTING: ContextVar[bool] = ContextVar("spa_dat_importing", default=False)

# The exit code that shells report for a program ended by Ctrl-C.
_INTERRUPTED = 130

_REST = 1.0
_REST_FOR_THREADS = 5.0
_LAST_REST = 15.0
_WATCHES_END = "spa_dat end of program"
_EXITS = 5
_LOOK_AGAIN = 0.1
_OF_THE_LOOP = "asyncio_"


def run(*applications: DistributedApplication, loop_factory: LoopFactory | None = None) -> None:
    """Run applications together until SIGTERM, SIGINT, or until none has anything left to do.

    They are stopped in reverse order. A second signal ends the program at once, even while the
    event loop is blocked; the exit code is then 128 plus the signal's number.

    Args:
        applications: at least one, each with something registered.
        loop_factory: creates the event loop, as `uvloop.new_event_loop` does; by default it comes
            from the event loop policy that the program has set, or else it is a selector loop.

    Raises:
        SystemExit: with the reason, when an application could not start, failed, has no actors, or
            did not stop cleanly, so that something had to be given up. The others are stopped.
    """
    run_until_stopped(applications, loop_factory)


def run_until_stopped(
    applications: Sequence[DistributedApplication],
    loop_factory: LoopFactory | None = None,
    started: Callable[[], object] = lambda: None,
    *,
    owns_process: bool = False,
) -> bool:
    """Run applications as `run` does; returns whether a signal stopped them.

    Args:
        applications: as for `run`.
        loop_factory: as for `run`.
        started: called when all have started.
        owns_process: end the process even if threads of the user's code go on after its end.

    Raises:
        SystemExit: as `run`.
    """
    if IMPORTING.get():
        raise ConfigurationError(
            "run() was called while the module was only being imported: write"
            ' `if __name__ == "__main__":` above it'
        )
    _refuse_wrong_place()
    for application in applications:
        if not isinstance(application, DistributedApplication):
            raise ConfigurationError(
                f"run({application!r:.200}): give applications, each as an argument of its own"
            )
    signals = Signals(
        sum(runs_of(application).settings.stop_timeout for application in applications)
    )
    given_up: list[str] = []
    try:
        _refuse_nothing(applications)
        _tell_of_private_buses(applications)
        loop = (loop_factory or new_loop)()
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(log_error)
        main = loop.create_task(_serve(applications, signals, given_up, started))
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
        _watch_end(owns_process)
    if given_up:
        raise SystemExit(f"spa_dat: not stopped cleanly: {'; '.join(given_up)}")
    return signals.received


def new_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that `run` uses where none is named."""
    with warnings.catch_warnings():
        # Policies are deprecated in newer versions of Python.
        warnings.simplefilter("ignore", DeprecationWarning)
        policy = asyncio.get_event_loop_policy()
    if type(policy).__module__.partition(".")[0] == "asyncio":
        # On every platform: the MQTT client needs add_reader, which Windows' default loop lacks.
        # Not at the top: an application that is not started needs none.
        from ...transports._name_lookups import LookupLoop

        return LookupLoop()
    return policy.new_event_loop()


def _refuse_nothing(applications: Sequence[DistributedApplication]) -> None:
    if not applications:
        raise ConfigurationError("run() got no application: give it one or more")
    for application in applications:
        if not runs_of(application).specs:
            raise ConfigurationError(
                f"nothing is registered with application {application.name!r}, so it has nothing"
                " to do: decorate functions with @app.application(...) or @app.producer(), and"
                " add actor classes with app.add(...)"
            )


def _tell_of_private_buses(applications: Sequence[DistributedApplication]) -> None:
    if len(applications) < 2:
        return
    # Not at the top: most programs run one application.
    from ...transports.memory._provider import PRIVATE

    owners: dict[str, str] = {}
    for application in applications:
        for provider in runs_of(application).providers:
            if provider.address.startswith(PRIVATE):
                owners[provider.address] = application.name
    names = sorted(set(owners.values()))
    if len(names) > 1:
        log.warning(
            "the applications %s each have a memory:// of their own, so they get nothing from each"
            " other there: give all of them the same name, as in memory://%s",
            ", ".join(map(repr, names)),
            names[0],
        )


def _refuse_wrong_place() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise ConfigurationError(
            "run() was called on a running event loop, which it would block; write"
            " `async with app: await app.wait()`, or in a notebook `await app.start()`"
        )
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError(
            "run() was called outside the main thread, where signals cannot be handled; write"
            " `async with app: await app.wait()` in your own loop"
        )


class _Exit(Exception):
    """The user's code asked to end the program; raised as such in a task, it ends the loop."""

    def __init__(self, error: SystemExit | KeyboardInterrupt) -> None:
        super().__init__(describe(error))
        self.code = error.code if isinstance(error, SystemExit) else _INTERRUPTED


class _ProducerFailed(Exception):
    """An application ended because of an error in the user's code, which has been logged."""


class _Interfered(Exception):
    """Code of the program has ended something that `run` depends on."""

    def __init__(self, what: str) -> None:
        super().__init__(f"code of the program {what}; to end an application use app.stop()")


async def _serve(
    applications: Sequence[DistributedApplication],
    signals: Signals,
    given_up: list[str],
    started: Callable[[], object],
) -> None:
    stop = asyncio.Event()
    signals.install(stop.set)
    manager = ServiceManager(asyncio.get_running_loop().call_later, log.warning)
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
                    # The program's own code has stopped it in the meantime.
                    stop.set()
                if not stop.is_set():
                    manager.ready()
                    started()
                    await _until_done(applications, interrupted)
            finally:
                signals.stopping()
                manager.stopping()
                interrupted.cancel()
        for application in applications:
            last = runs_of(application).last
            if last is not None:
                _refuse_exit(last.reason.failure)
    finally:
        for application in applications:
            last = runs_of(application).last
            if last is not None:
                given_up += last.given_up.reasons


def _refuse_exit(failure: BaseException | None) -> None:
    """Raise if a handler asked to end the program while a signal was already doing so."""
    if isinstance(failure, SystemExit | KeyboardInterrupt):
        raise _Exit(failure) from failure


async def _start(stack: AsyncExitStack, applications: Sequence[DistributedApplication]) -> None:
    for application in applications:
        try:
            await runs_of(application).start()
        except (SystemExit, KeyboardInterrupt) as error:
            raise _Exit(error) from error
        stack.push_async_callback(application.aclose)
    # Producers start only once every application can receive what they send.
    for application in applications:
        runs_of(application).begin()


async def _until_done(
    applications: Sequence[DistributedApplication], interrupted: asyncio.Future[Literal[True]]
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


def end_loop(loop: asyncio.AbstractEventLoop, main: asyncio.Task[Any]) -> list[str]:
    """Cancel what is left on a loop and close it; bounded in time, unlike `asyncio.run`.

    Tasks and async generators that keep running although they were cancelled are abandoned after
    two seconds, functions in the loop's own threads after five.

    Args:
        loop: not running.
        main: the task it ran; waited for without a limit, because it has its own.

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
    # Cleanup code may call sys.exit() as well, which run_until_complete() raises here.
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
        # Any task that exists now comes from another thread.
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
        # It fails if the system has no thread left for it.
        closing.exception()
        return
    # If it were cancelled, it would wait for the threads, and the loop for it.
    let_go([closing])
    for thread in threading.enumerate():
        if thread.name.startswith(_OF_THE_LOOP) and thread.is_alive():
            where = place(frames_of_thread(thread.ident))
            if where is not None:
                abandoned.append(f"a function in a thread of the event loop keeps running: {where}")
    threading.Thread(target=_end_process, name="spa_dat end", daemon=True).start()


def _others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def _abandon(tasks: set[asyncio.Task[Any]], what: str, abandoned: list[str]) -> None:
    places = [place(frames_of(task)) for task in tasks]
    abandoned += [
        f"{what} keeps running although it was cancelled: {where}"
        for where in sorted(where for where in places if where is not None)
    ]
    if tasks and not any(places):
        abandoned.append(f"{what} keeps running although it was cancelled")
    let_go(tasks)


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {
                "message": "unhandled exception while the program was ending",
                "exception": error,
                "task": task,
            }
        )


def _end_process() -> None:
    """End a process whose main thread has ended but which other threads keep alive."""
    while not _main_thread_has_ended():
        threading.Event().wait(_LOOK_AGAIN)
    threading.Event().wait(_REST_FOR_THREADS)
    _exit_now()


def _exit_now() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


def _holding() -> list[threading.Thread]:
    """Return the threads that keep a process alive after its main thread has ended."""
    main = threading.main_thread()
    return [
        thread
        for thread in threading.enumerate()
        if thread is not main and not thread.daemon and thread.is_alive()
    ]


def _children() -> list[Any]:
    """Return the processes of multiprocessing that the interpreter waits for at its end."""
    children = getattr(sys.modules.get("multiprocessing.process"), "_children", ())
    return [child for child in tuple(children) if not (child.daemon or _has_ended(child))]


def _has_ended(child: Any) -> bool:
    from multiprocessing.connection import wait  # only who has children pays for the module

    # Asking itself whether it has would reap it under the hands of who waits for it.
    with contextlib.suppress(ValueError, OSError):
        return bool(wait((child.sentinel,), timeout=0))
    return True  # it was closed or reaped just now


def _watch_end(owns_process: bool) -> None:
    """Have it noticed if something keeps the process alive after its end; one thread looks."""
    names = {thread.name for thread in threading.enumerate()}
    if (_holding() or _children()) and _WATCHES_END not in names:
        # There may be no thread left for it.
        with contextlib.suppress(RuntimeError):
            threading.Thread(
                target=_name_holding, args=(owns_process,), name=_WATCHES_END, daemon=True
            ).start()


def _name_holding(owns_process: bool) -> None:
    """Name what keeps the process alive for long after its main thread has ended."""
    while not (_main_thread_has_ended() or _main_thread_waits_for_children()):
        if not (_holding() or _children()):
            return
        threading.Event().wait(_LOOK_AGAIN)
    threading.Event().wait(_REST_FOR_THREADS)
    for child in _children():
        log.warning(
            "the program has ended, but its child process %r (%s) keeps the process alive: end it"
            " earlier, make it a daemon process, or send another signal",
            child.name,
            child.pid,
        )
    for thread in _holding():
        log.warning(
            "the program has ended, but its thread %r keeps the process alive: %s; end it"
            " earlier, make it a daemon thread, or send another signal",
            thread.name,
            place(frames_of_thread(thread.ident)) or "in code of its own",
        )
    if owns_process:
        threading.Event().wait(_LAST_REST)
        log.error("the process is ended while some of its threads or children are still running")
        _exit_now()


def _main_thread_waits_for_children() -> bool:
    util = sys.modules.get("multiprocessing.util")
    if util is None:
        return False
    frames = frames_of_thread(threading.main_thread().ident)
    return any(frame.f_code is util._exit_function.__code__ for frame in frames)


def _main_thread_has_ended() -> bool:
    # It counts as alive until all executor threads have been joined.
    frames = frames_of_thread(threading.main_thread().ident)
    return bool(frames) and frames[0].f_code is threading._shutdown.__code__  # type: ignore[attr-defined]
