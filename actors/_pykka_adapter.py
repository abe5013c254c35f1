"""The pykka adapter: its private parts, their check, and our actors as pykka's users see them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pykka
from pykka import messages

from .._busy_threads import waits_for_loop
from ..errors import ActorStopped, ConfigurationError
from ._deadlocks import current_frame, deadlock, find_cycle
from ._local_message import LocalMessage

if TYPE_CHECKING:
    from ._actor import Actor
    from ._actor_cell import ActorCell
    from ._mailbox import Mailbox

__all__ = [
    "SUPPORTED",
    "ActorFuture",
    "ProxyMessage",
    "PykkaRef",
    "StoppedFlag",
    "check_pykka",
    "is_handed_on",
    "is_proxy_message",
    "is_stop_message",
]

SUPPORTED = (4, 5)

_HOOKS: tuple[tuple[object, str], ...] = (
    (pykka.Actor, "_create_actor_inbox"),
    (pykka.Actor, "_create_future"),
    (pykka.Actor, "_start_actor_loop"),
    (pykka.Actor, "_handle_receive"),
    (pykka.ThreadingActor, "_start_actor_loop"),
    (pykka.ThreadingActor, "use_daemon_thread"),
    (messages, "_ActorStop"),
)
_FUTURE_FIELDS = ("_condition", "_result", "_get_hook")

_PROXY_MESSAGES = (messages.ProxyCall, messages.ProxyGetAttr, messages.ProxySetAttr)
# Seconds between two checks that the actor's event loop is still there.
_LOOK_AGAIN = 1.0


def is_stop_message(message: object) -> bool:
    """Return whether the message is pykka's request to stop an actor."""
    return isinstance(message, messages._ActorStop)


def is_proxy_message(message: object) -> bool:
    """Return whether the message is a call or an attribute access through a pykka proxy."""
    return isinstance(message, _PROXY_MESSAGES)


@functools.cache
def check_pykka() -> None:
    """Check that the internals of the installed pykka are the known ones.

    Raises:
        ConfigurationError: it is another version, or something is missing.
    """
    # It takes longer to import than the rest of the actors, and only the start needs it.
    from importlib import metadata

    version = metadata.version("pykka")
    wanted = ".".join(str(number) for number in SUPPORTED)
    numbers = version.split(".")[:2]
    missing = [f"{owner!r}.{name}" for owner, name in _HOOKS if not hasattr(owner, name)]
    fields = vars(pykka.ThreadingFuture())
    missing += [f"ThreadingFuture().{name}" for name in _FUTURE_FIELDS if name not in fields]
    if numbers != wanted.split(".") or missing:
        lacks = f", and it lacks {', '.join(missing)}" if missing else ""
        raise ConfigurationError(
            f"pykka {version} is installed{lacks}; this package requires pykka {wanted}.x:"
            f" install 'pykka>={wanted},<{SUPPORTED[0]}.{SUPPORTED[1] + 1}'"
        )


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class StoppedFlag:
    """A stand-in for the `threading.Event` that pykka keeps for each actor."""

    __slots__ = ("_cell",)

    def __init__(self, cell: ActorCell[Any]) -> None:
        self._cell = cell

    def is_set(self) -> bool:
        """Return whether the actor has stopped taking messages."""
        return self._cell.mailbox.closed


class ActorFuture(pykka.ThreadingFuture[Any]):
    """The answer of an actor: other threads `get` it, coroutines await it."""

    def __init__(self) -> None:
        super().__init__()
        self._given_up = False
        self._answers: ActorCell[Any] | None = None
        self._asked: ActorCell[Any] | None = None
        self._watchers: list[Callable[[], None]] = []

    def done(self) -> bool:
        """Return whether there is an answer, or the asker's time is up."""
        return self._result is not None or self._given_up

    def set_result(self, value: Any) -> None:
        """Give the answer, as `set` does."""
        self.set(value)

    def get(self, *, timeout: float | None = None) -> Any:
        """Return the answer, waiting up to ``timeout`` seconds for it.

        Raises:
            RuntimeError: called in an event loop's thread when it would have to wait.
            pykka.Timeout: no answer came in time.
            pykka.ActorDeadError: the actor has ended, or its event loop has.
            Exception: what the actor raised.
        """
        if self._result is None and self._get_hook is None and _on_event_loop():
            raise RuntimeError(
                "get() would block the event loop: await the future, or use 'await ref.ask(...)'"
            )
        work = waits_for_loop()
        if work is not None and self._get_hook is None:
            work.wait_until(self._subscribe, timeout)
            timeout = None if timeout is None else 0
        self._refuse_cycle()
        while self._asked is not None and self._result is None and timeout != 0:
            part = _LOOK_AGAIN if timeout is None else min(timeout, _LOOK_AGAIN)
            with contextlib.suppress(pykka.Timeout):
                return super().get(timeout=part)
            timeout = None if timeout is None else timeout - part
            if self._result is None and self._asked.task.get_loop().is_closed():
                # Nobody will ever answer: the actor was abandoned, or the ask came too late.
                self.set_exception(self._asked.stopped())
        try:
            return super().get(timeout=timeout)
        except pykka.Timeout:
            self._given_up = self._result is None
            raise

    def asked_of(self, cell: ActorCell[Any]) -> None:
        """Fail when the actor's event loop is closed."""
        self._asked = cell

    def set(self, value: Any = None) -> None:
        """Give the answer. Raises queue.Full if there is one already."""
        super().set(value)
        self._notify()

    def set_exception(self, exc_info: Any = None) -> None:
        """Fail with an exception, or with what `sys.exc_info` returns."""
        if isinstance(exc_info, BaseException):
            if isinstance(exc_info, ActorStopped):
                dead = pykka.ActorDeadError(str(exc_info))
                dead.__cause__ = exc_info
                exc_info = dead
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        super().set_exception(exc_info)
        self._notify()

    def answered_by(self, cell: ActorCell[Any]) -> None:
        """Remember an actor that asks itself: it cannot wait for the answer within the message."""
        self._answers = cell

    def _refuse_cycle(self) -> None:
        if self._answers is not None and self._result is None:
            cycle = find_cycle(current_frame(), self._answers)
            if cycle is not None:
                raise deadlock(cycle, self._answers.address)

    def _notify(self) -> None:
        with self._condition:
            watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()

    def _subscribe(self, watcher: Callable[[], None]) -> None:
        """Have a function called once, in any thread, when there is an answer."""
        with self._condition:
            if self._result is None:
                self._watchers.append(watcher)
                return
        watcher()

    def __await__(self) -> Generator[Any, None, Any]:
        self._refuse_cycle()
        loop = asyncio.get_running_loop()
        if self._get_hook is not None:
            # map, filter and the like compute in get(), which may wait for other futures.
            return (yield from asyncio.to_thread(self.get).__await__())
        answered: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            # Whoever was waiting may have closed its loop.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_end, answered)

        if self._result is None:
            self._subscribe(tell)
            yield from answered
        return self.get()

    __iter__ = __await__


def _end(watcher: asyncio.Future[None]) -> None:
    if not watcher.done():
        watcher.set_result(None)


class ProxyMessage(LocalMessage, eq=False):
    """A message for pykka's own dispatch to handle."""

    def hand_to(self, actor: Any) -> Any:
        """Have pykka call the method or read the attribute that the message names."""
        return actor._handle_receive(self.message)


def is_handed_on(item: Any, result: Any) -> bool:
    """Return whether a proxy call returned a future, which pykka does not wait for."""
    return isinstance(item, ProxyMessage) and isinstance(result, pykka.Future)


class PykkaRef(pykka.ActorRef[Any]):
    """A `pykka.ActorRef` to one of our actors, for use from other threads and with proxies.

    It stays valid through restarts. Blocking calls are refused in an event loop's thread.
    """

    def __init__(self, cell: ActorCell[Any]) -> None:
        self._cell = cell
        self._actor_weakref = cell.current_instance  # type: ignore[assignment]
        self.actor_class: type[Actor] = cell.actor_class
        self.actor_urn: str = cell.urn
        self.actor_inbox: Mailbox = cell.mailbox  # type: ignore[assignment]
        self.actor_stopped: StoppedFlag = StoppedFlag(cell)  # type: ignore[assignment]

    def tell(self, message: Any) -> None:
        """Send a message from any thread.

        Raises:
            pykka.ActorDeadError: the actor has stopped.
            MailboxFull: its mailbox has no free place.
        """
        if is_stop_message(message):
            self._cell.stop_threadsafe(None)
            return
        try:
            self._cell.mailbox.put(_local_message(message, None))
        except ActorStopped as error:
            raise pykka.ActorDeadError(str(error)) from error

    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Send a message and get the answer, or with ``block=False`` a future of it.

        Raises:
            RuntimeError: ``block=True`` on an event loop's thread.
            DeadlockDetected: the actor waits for the one who asks.
            MailboxFull: its mailbox has no free place.
            pykka.ActorDeadError: the actor has stopped.
            pykka.Timeout: no answer within ``timeout`` seconds.
        """
        if block and _on_event_loop():
            raise RuntimeError(
                f"ask would block the event loop: use 'await ref.ask(...)' of actor"
                f" {self._cell.name!r}, or block=False and await the future"
            )
        future = ActorFuture()
        future.asked_of(self._cell)
        if is_stop_message(message):
            self._cell.stop_threadsafe(future)
        else:
            self._put_asked(message, future, block=block)
        return future.get(timeout=timeout) if block else future

    def _put_asked(self, message: Any, future: ActorFuture, *, block: bool) -> None:
        frame = current_frame()
        cycle = find_cycle(frame, self._cell)
        if cycle is not None:
            if block:
                raise deadlock(cycle, self._cell.address)
            # As with a proxy to oneself: nobody waits yet, and perhaps nobody ever does.
            future.answered_by(self._cell)
            frame = None
        local = _local_message(message, future)
        local.asker = frame
        try:
            self._cell.mailbox.put(local)
        except ActorStopped as error:
            future.set_exception(error)


def _local_message(message: Any, future: ActorFuture | None) -> LocalMessage:
    local = ProxyMessage(message) if is_proxy_message(message) else LocalMessage(message)
    local.reply = future
    return local
