"""The watchdog: reports handlers that do not end, and an event loop that is blocked."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..._busy_threads import has_own_clock
from ..._logs import get_logger
from ..diagnostics._stacks import frames_of_call, frames_of_thread, place
from ._application_settings import Settings

if TYPE_CHECKING:
    from ._lane import Lane

__all__ = ["Watchdog"]

log = get_logger("spa_dat")

_SHARE = 10
_LEAST, _MOST = 0.05, 1.0
# If the watching thread wakes this much later than asked, the whole process was suspended.
_OVERSLEPT = 3
_DEBUGGERS = ("bdb", "pdb", "pydevd", "debugpy")


class Watchdog:
    """Watches the handlers of one run, and its event loop.

    Both are watched from outside, so messages that are handled in time cost nothing extra. It does
    nothing on a loop with a clock of its own, where a handler takes no time.

    Args:
        settings: the application's; ``handlers.slow`` and ``loop.blocked`` are counted.
        lanes: returns the lanes of all actors.
    """

    def __init__(self, settings: Settings, lanes: Callable[[], Iterable[Lane]]) -> None:
        self._loop = asyncio.get_running_loop()
        real = not has_own_clock(self._loop)
        self._application = settings.identity.application
        self._stats = settings.stats
        self._lanes = lanes
        self._slow = settings.slow if real else None
        self._limit = settings.blocked if real else None
        self._calls: dict[str, _Call] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._heartbeat: _Heartbeat | None = None
        self._blocked: tuple[str, str] | None = None

    def start(self) -> None:
        """Begin to watch the handlers; called on the loop."""
        if self._slow is not None:
            self._timer = self._loop.call_later(self._slow / _SHARE, self._look, self._slow)

    def watch_loop(self) -> None:
        """Begin to watch the event loop; called on it."""
        if self._limit is not None:
            self._heartbeat = _Heartbeat(self._loop, self._limit, self._is_blocked, self._goes_on)
            _heartbeat_thread.add(self._heartbeat)

    def stop(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
        if self._heartbeat is not None:
            _heartbeat_thread.remove(self._heartbeat)

    @property
    def problems(self) -> list[tuple[str, str]]:
        """What is stuck now: the name of the actor, or of the application, and a description."""
        found = [
            (name, f"running for {self._loop.time() - call.since:.0f} s: {call.place}")
            for name, call in self._calls.items()
            if call.told
        ]
        return found if self._blocked is None else [*found, self._blocked]

    def stalled(self, lane: str) -> list[tuple[str, float]]:
        """Return where a lane is stuck now, and for how many seconds; nothing if it is not."""
        call = self._calls.get(lane)
        if call is None or not call.told:
            return []
        return [(call.place, self._loop.time() - call.since)]

    @property
    def lag(self) -> float | None:
        """Seconds that the loop needed, or needs, to respond; None if it is not watched."""
        return None if self._heartbeat is None else self._heartbeat.lag(time.monotonic())

    # Handlers.

    def _look(self, slow: float) -> None:
        self._timer = self._loop.call_later(slow / _SHARE, self._look, slow)
        now = self._loop.time()
        calls: dict[str, _Call] = {}
        for lane in self._lanes():
            call = lane.running_code.call if _is_watched(lane) else None
            if call is None:
                continue
            name = lane.name
            before = self._calls.get(name)
            known = before if before is not None and before.what is call else _Call(call, now)
            calls[name] = known
            if now - known.since >= max(known.told_at * 2, _patience(lane), slow):
                self._is_slow(name, known, lane.running_code.place or "its code", now)
        for name, call_before in self._calls.items():
            if call_before.told and calls.get(name) is not call_before:
                took = now - call_before.since
                log.warning("actor %r: the call that was running for %.0f s has ended", name, took)
        self._calls = calls

    def _is_slow(self, name: str, call: _Call, where: str, now: float) -> None:
        if not call.told:
            self._stats["handlers.slow"] += 1
        call.told_at = now - call.since
        call.place = where
        waiting = "its other messages are waiting"
        log.warning("actor %r: running for %.0f s: %s; %s", name, call.told_at, where, waiting)

    # The event loop. The first of these is called in the watchdog's thread, the second on the loop.

    def _is_blocked(self, seconds: float, ident: int) -> None:
        task = asyncio.current_task(self._loop)
        frames = frames_of_thread(ident) if task is None else frames_of_call(ident, task)
        if any(str(f.f_globals.get("__name__", "")).split(".")[0] in _DEBUGGERS for f in frames):
            return
        names = [lane.name for lane in self._lanes() if task and task is lane.running_code.task]
        where = place(frames) or "code that is not the user's"
        name = names[0] if names else self._application
        self._blocked = name, f"the event loop is blocked: {where}"
        self._stats["loop.blocked"] += 1
        whose = f"actor {name!r}" if names else f"application {name!r}"
        text = "%s has blocked the event loop for %.1f s: %s; everything else is waiting"
        log.error(text, whose, seconds, where)

    def _goes_on(self, seconds: float) -> None:
        if self._blocked is not None:
            self._blocked = None
            log.warning("the event loop was blocked for %.1f s and is running again", seconds)


def _is_watched(lane: Lane) -> bool:
    # A one-shot producer may well run as long as the application does.
    return lane.spec.kind != "producer" or lane.options.every is not None


def _patience(lane: Lane) -> float:
    """Return how long a call may take according to the actor's options."""
    return max(lane.options.deadline or 0.0, lane.options.every or 0.0)


class _Call:
    """One call of the user's code, since it was first seen."""

    __slots__ = ("place", "since", "told_at", "what")

    def __init__(self, what: object, since: float) -> None:
        self.what = what
        self.since = since
        self.told_at = 0.0
        self.place = ""

    @property
    def told(self) -> bool:
        return self.told_at > 0


class _Heartbeat:
    """Checks again and again, from another thread, that one loop responds."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit: float,
        blocked: Callable[[float, int], None],
        goes_on: Callable[[float], None],
    ) -> None:
        self.pause = min(max(limit / _SHARE, _LEAST), _MOST)
        self._loop = loop
        self._ident = threading.get_ident()
        self._limit = limit
        self._blocked = blocked
        self._goes_on = goes_on
        self._asked: float | None = None
        self._told = False
        self._lag: float | None = None

    def lag(self, now: float) -> float | None:
        """Return how long the last answer took, or the one that is waited for if that is longer."""
        asked, last = self._asked, self._lag
        return last if asked is None else max(last or 0.0, now - asked)

    def look(self, now: float, overslept: float) -> bool:
        """Check the loop, in the watching thread; return whether to continue."""
        if self._asked is None:
            self._asked = now
            try:
                self._loop.call_soon_threadsafe(self._beat)
            except RuntimeError:  # the loop is closed
                return False
        elif overslept > self.pause * _OVERSLEPT:
            self._asked += overslept
        elif not self._told and now - self._asked >= self._limit:
            self._told = True
            self._blocked(now - self._asked, self._ident)
        return True

    def _beat(self) -> None:
        asked, self._asked = self._asked, None
        self._lag = None if asked is None else time.monotonic() - asked
        if self._told and asked is not None:
            self._told = False
            self._goes_on(time.monotonic() - asked)


class _HeartbeatThread:
    """One thread that watches all loops."""

    def __init__(self) -> None:
        self._heartbeats: dict[_Heartbeat, None] = {}
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def forked(self) -> None:
        """Look at nothing of a process that this one was forked off from."""
        self._heartbeats = {}
        self._change = threading.Condition()
        self._thread = None

    def add(self, heartbeat: _Heartbeat) -> None:
        with self._change:
            self._heartbeats[heartbeat] = None
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="spa_dat heartbeat", daemon=True
                )
                self._thread.spa_dat_watches = True  # type: ignore[attr-defined]
                self._thread.start()
            else:
                self._change.notify()

    def remove(self, heartbeat: _Heartbeat) -> None:
        with self._change:
            self._heartbeats.pop(heartbeat, None)

    def _run(self) -> None:
        asleep: float | None = None
        woke = time.monotonic()
        while True:
            with self._change:
                asleep = min((heartbeat.pause for heartbeat in self._heartbeats), default=None)
                self._change.wait(asleep)
                heartbeats = list(self._heartbeats)
            now = time.monotonic()
            overslept = 0.0 if asleep is None else now - woke - asleep
            woke = now
            for heartbeat in heartbeats:
                if not heartbeat.look(now, overslept):
                    self.remove(heartbeat)


_heartbeat_thread = _HeartbeatThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_heartbeat_thread.forked)
